"""Products along edges and sums over rows in plain torch: stores every edge, defines the truth."""

from __future__ import annotations

from torch import Tensor

from geoattn.ops.backends.recompute import sum_dtype
from geoattn.ops.backends.sums import gather_rows, sum_rows
from geoattn.patterns.rows import row_of_edges
from geoattn.patterns.visits import Visits


def edge_dot(query: Tensor, key: Tensor, rows: Visits) -> Tensor:
    """``[E, H]``"""
    row = row_of_edges(rows.rowptr, rows.col.numel())
    found = gather_rows(query.to(sum_dtype(query)), row) * gather_rows(key.to(sum_dtype(key)), rows.col)
    return found.sum(-1).to(query.dtype)


def weighted_sum(weight: Tensor, value: Tensor, rows: Visits) -> Tensor:
    """``[N, H, C]``; ``rows.edge`` says which weight is whose."""
    weight_ = weight.to(sum_dtype(weight))
    weight_ = weight_ if rows.edge is None else weight_.index_select(0, rows.edge)
    message = weight_.unsqueeze(-1) * gather_rows(value.to(sum_dtype(value)), rows.col)
    row = row_of_edges(rows.rowptr, rows.col.numel())
    return sum_rows(message, row, rows.rowptr.numel() - 1).to(value.dtype)
