"""The operators in plain torch: every device, every floating type, differentiable any number of times.

Shapes are as in `geoattn.attend`, which checks them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from geoattn.patterns import Neighbors, Windows


def neighbors(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Neighbors,
    bias: Tensor | None,
    scale: float,
    dropout: float,
    key_weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Attention over CSR rows: gather the keys of every edge, softmax over each row, sum the values."""
    query_, key_, value_ = _accumulated(query, key, value)
    row, col = pattern.row, pattern.col
    score = (query_.index_select(0, row) * key_.index_select(0, col)).sum(-1) * scale
    if bias is not None:
        score = score + bias.to(score.dtype)
    if key_weight is not None:
        score = score + _log(key_weight, score).index_select(0, col)

    index = row.long().unsqueeze(1).expand_as(score)
    highest = score.detach().new_full(query.shape[:2], -torch.inf)
    highest = highest.scatter_reduce(0, index, score.detach(), "amax")
    highest = highest.where(highest > -torch.inf, 0)
    weight = (score - highest.index_select(0, row)).exp()
    total = torch.zeros_like(highest).index_add(0, row, weight)
    lse = _log(total, score) + highest
    weight = weight / total.where(total > 0, 1).index_select(0, row)

    weight = F.dropout(weight, dropout) if dropout else weight
    message = weight.unsqueeze(-1) * value_.index_select(0, col)
    out = message.new_zeros(*query.shape[:2], value.size(2)).index_add(0, row, message)
    return out.to(query.dtype), lse


def windows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Windows,
    scale: float,
    dropout: float,
    key_weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Attention in runs: pad them to the longest, multiply, mask what was padded."""
    query_, key_, value_ = _accumulated(query, key, value)
    query_slot, query_length = _slots(pattern.query_ptr)
    key_slot, key_length = _slots(pattern.key_ptr)
    runs = pattern.query_ptr.numel() - 1

    def padded(x: Tensor, slot: Tensor, length: int) -> Tensor:
        """``[N, ...]`` to ``[B, L, ...]``, zeros where nothing stands."""
        flat = x.new_zeros(runs * length, *x.shape[1:]).index_copy(0, slot, x)
        return flat.view(runs, length, *x.shape[1:])

    q = padded(query_, query_slot, query_length).transpose(1, 2)
    k = padded(key_, key_slot, key_length).transpose(1, 2)
    v = padded(value_, key_slot, key_length).transpose(1, 2)
    score = q @ k.transpose(2, 3) * scale

    log_weight = key_.new_zeros(key.size(0), 1)
    if key_weight is not None:
        log_weight = _log(key_weight, score)
    hidden = key_.new_full((runs * key_length, log_weight.size(1)), -torch.inf)
    hidden = hidden.index_copy(0, key_slot, log_weight).view(runs, key_length, log_weight.size(1))
    score = score + hidden.transpose(1, 2).unsqueeze(2)

    highest = score.detach().amax(-1, keepdim=True) if key_length else score.new_zeros(*score.shape[:-1], 1)
    highest = highest.where(highest > -torch.inf, 0)
    weight = (score - highest).exp()
    total = weight.sum(-1, keepdim=True)
    lse = _log(total, score) + highest
    weight = weight / total.where(total > 0, 1)

    weight = F.dropout(weight, dropout) if dropout else weight
    out = (weight @ v).transpose(1, 2).flatten(0, 1).index_select(0, query_slot)
    lse = lse.squeeze(-1).transpose(1, 2).flatten(0, 1).index_select(0, query_slot)
    return out.to(query.dtype), lse


def _accumulated(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In the type sums are made in, with as many key heads as query heads."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    groups = query.size(1) // key.size(1)
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return query.to(dtype), key.to(dtype), value.to(dtype)


def _log(weight: Tensor, score: Tensor) -> Tensor:
    """Logarithm, ``[M, 1 or H]`` from ``[M]``, ``-inf`` at 0 with a gradient of 0 there instead of NaN."""
    weight = weight.to(score.dtype)
    weight = weight.unsqueeze(1) if weight.dim() == 1 else weight
    positive = weight > 0
    return weight.where(positive, 1).log().where(positive, -torch.inf)


def _slots(ptr: Tensor) -> tuple[Tensor, int]:
    """For each element of each run its place when all runs are padded to the longest, and that length."""
    length = ptr.diff()
    longest = int(length.max()) if length.numel() else 0
    run = torch.arange(length.numel(), device=ptr.device).repeat_interleave(length)
    return torch.arange(run.numel(), device=ptr.device) - ptr[run] + run * longest, longest
