"""Vector attention in plain torch: differentiable any number of times, stores every edge, defines the truth."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from geoattn.patterns import Neighbors

Network = Callable[[Tensor], Tensor]


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position: Tensor,
    key_position: Tensor,
    pattern: Neighbors,
    pos_nn: Network,
    attn_nn: Network | None,
    dropout: float,
) -> Tensor:
    """Arguments as in `geoattn.ops.vector_attend`, which checks them."""
    row, col = pattern.row, pattern.col
    delta = checked_delta(pos_nn(position.index_select(0, row) - key_position.index_select(0, col)), value)
    relation = query.index_select(0, row) - key.index_select(0, col) + delta
    score = per_channel(relation if attn_nn is None else attn_nn(relation), value)

    weight = softmax(score, row, pattern.num_queries)
    weight = F.dropout(weight, dropout) if dropout else weight
    message = weight * (value.to(weight.dtype).index_select(0, col) + delta)
    out = message.new_zeros(pattern.num_queries, value.size(1)).index_add(0, row, message)
    return out.to(query.dtype)


def softmax(score: Tensor, row: Tensor, rows: int) -> Tensor:
    """Of every channel over the edges of a row; zeros where all scores are ``-inf``."""
    index = row.long().unsqueeze(1).expand_as(score)
    highest = score.detach().new_full((rows, score.size(1)), -torch.inf)
    highest = highest.scatter_reduce(0, index, score.detach(), "amax")
    highest = highest.where(highest > -torch.inf, 0)
    weight = (score - highest.index_select(0, row)).exp()
    total = torch.zeros_like(highest).index_add(0, row, weight)
    return weight / total.where(total > 0, 1).index_select(0, row)


def checked_delta(delta: Tensor, value: Tensor) -> Tensor:
    """``delta`` if it can be added to values.

    Raises:
        ValueError: If it has another number of channels.
    """
    if delta.dim() != 2 or delta.size(1) != value.size(1):
        raise ValueError(f"pos_nn must map [e, P] to [e, {value.size(1)}], got {tuple(delta.shape)}")
    return delta


def per_channel(score: Tensor, value: Tensor) -> Tensor:
    """Scores ``[e, S]`` as ``[e, C]``, each repeated for ``C / S`` consecutive channels, in the type of sums.

    Raises:
        ValueError: If ``S`` does not divide ``C``.
    """
    channels = value.size(1)
    if score.dim() != 2 or score.size(1) == 0 or channels % score.size(1):
        raise ValueError(f"attn_nn must map to [e, S] with S a divisor of {channels}, got {tuple(score.shape)}")
    score = score.to(torch.promote_types(score.dtype, torch.float32))
    return score if score.size(1) == channels else score.repeat_interleave(channels // score.size(1), 1)
