"""Products along edges, sums and maxima over rows in plain torch: stores every edge, defines the truth."""

from __future__ import annotations

import torch
from torch import Tensor

from geoattn.patterns.rows import row_of_edges
from geoattn.patterns.visits import Visits


def edge_dot(query: Tensor, key: Tensor, rows: Visits) -> Tensor:
    """``[E, H]``"""
    query_, key_ = query.to(sum_dtype(query)), key.to(sum_dtype(key))
    row = row_of_edges(rows.rowptr, rows.col.numel())
    return (query_.index_select(0, row) * key_.index_select(0, rows.col)).sum(-1).to(query.dtype)


def weighted_sum(weight: Tensor, value: Tensor, rows: Visits) -> Tensor:
    """``[N, H, C]``; ``rows.edge`` says which weight is whose."""
    weight_ = weight.to(sum_dtype(weight))
    weight_ = weight_ if rows.edge is None else weight_.index_select(0, rows.edge)
    message = weight_.unsqueeze(-1) * value.to(sum_dtype(value)).index_select(0, rows.col)
    row = row_of_edges(rows.rowptr, rows.col.numel())
    return _sum(message, row, rows.rowptr.numel() - 1).to(value.dtype)


def weighted_max(weight: Tensor, value: Tensor, rowptr: Tensor, col: Tensor) -> Tensor:
    """``[N, H, C]``, 0 where there is no edge."""
    rows = rowptr.numel() - 1
    row = row_of_edges(rowptr, col.numel())
    message = weight.to(sum_dtype(weight)).unsqueeze(-1) * value.to(sum_dtype(value)).index_select(0, col)
    top, count = maxima(message.detach(), row, rows)
    has = ~(message < top.index_select(0, row))  # true of NaN, which goes on
    return (_sum(message.where(has, 0), row, rows) / count).to(value.dtype)


def maxima(message: Tensor, row: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Of every row, and how many edges have it, ``[rows, H, C]``; 0 and 1 where there is no edge."""
    index = row.long().view(-1, 1, 1).expand_as(message)
    top = message.new_zeros(rows, *message.shape[1:])
    top = top.scatter_reduce(0, index, message, "amax", include_self=False)
    count = _sum((~(message < top.index_select(0, row))).to(message.dtype), row, rows)
    return top, count.clamp(min=1)


def _sum(message: Tensor, row: Tensor, rows: int) -> Tensor:
    return message.new_zeros(rows, *message.shape[1:]).index_add(0, row, message)


def sum_dtype(x: Tensor) -> torch.dtype:
    """The accumulation dtype."""
    return torch.promote_types(x.dtype, torch.float32)
