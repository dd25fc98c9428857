"""Vector attention in plain torch: differentiable any number of times, defines the truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from geoattn.ops.backends.recompute import gather, sum_dtype

Network = Callable[[Tensor], Tensor]


def formulas(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    edges: Sequence[Tensor],
    row: Tensor,
    networks: Sequence[Any],
    dropout: float = 0.0,
) -> Tensor:
    """Vector attention of some rows, as `geoattn.ops.backends.recompute` calls it.

    Args:
        queries: ``query`` ``[r, C]`` and ``position`` ``[r, P]``.
        keys: ``key`` ``[e, C]``, ``value`` ``[e, C]`` and ``key_position`` ``[e, P]`` of every edge.
        edges: Nothing.
        row: Row of every edge, ``[e]``, int64.
        networks: ``pos_nn`` and ``attn_nn``, which may be None.
        dropout: Of attention weights.

    Returns:
        ``[r, C]``.
    """
    (query, position), (key, value, key_position), (pos_nn, attn_nn) = queries, keys, networks
    delta = checked_delta(pos_nn(gather(position, row) - key_position), value)
    relation = gather(query, row) - key + delta
    score = per_channel(relation if attn_nn is None else attn_nn(relation), value)

    weight = softmax(score, row, query.size(0))
    weight = F.dropout(weight, dropout) if dropout else weight
    message = weight * (value.to(weight.dtype) + delta)
    return message.new_zeros(query.shape).index_add(0, row, message).to(query.dtype)


def softmax(score: Tensor, row: Tensor, rows: int) -> Tensor:
    """Of every channel over the edges of a row; zeros where all scores are ``-inf``."""
    index = row.unsqueeze(1).expand_as(score)
    highest = score.detach().new_full((rows, score.size(1)), -torch.inf)
    highest = highest.scatter_reduce(0, index, score.detach(), "amax")
    highest = highest.where(highest > -torch.inf, 0)
    weight = (score - highest.index_select(0, row)).exp()
    total = torch.zeros_like(highest).index_add(0, row, weight)
    return weight / gather(total.where(total > 0, 1), row)


def checked_delta(delta: Tensor, value: Tensor) -> Tensor:
    """``delta`` if it can be added to values.

    Raises:
        ValueError: If it has another number of channels.
    """
    if delta.dim() != 2 or delta.size(1) != value.size(1):
        raise ValueError(f"pos_nn must map [e, P] to [e, {value.size(1)}], got {tuple(delta.shape)}")
    return delta


def per_channel(score: Tensor, value: Tensor) -> Tensor:
    """Scores ``[e, S]`` as ``[e, C]``, each repeated for ``C / S`` consecutive channels, in the accumulation dtype.

    Raises:
        ValueError: If ``S`` does not divide ``C``.
    """
    channels = value.size(1)
    if score.dim() != 2 or score.size(1) == 0 or channels % score.size(1):
        raise ValueError(f"attn_nn must map to [e, S] with S a divisor of {channels}, got {tuple(score.shape)}")
    score = score.to(sum_dtype(score))
    return score if score.size(1) == channels else score.repeat_interleave(channels // score.size(1), 1)
