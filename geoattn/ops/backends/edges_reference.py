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


def _sum(message: Tensor, row: Tensor, rows: int) -> Tensor:
    return message.new_zeros(rows, *message.shape[1:]).index_add(0, row, message)


def sum_dtype(x: Tensor) -> torch.dtype:
    """The accumulation dtype."""
    return torch.promote_types(x.dtype, torch.float32)
