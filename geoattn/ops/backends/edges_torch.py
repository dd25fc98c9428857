"""Products along edges and sums over rows in plain torch: some rows at a time, to gather little at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from geoattn.ops.backends.chunked import numbers_per_chunk
from geoattn.ops.backends.recompute import slices, sum_dtype
from geoattn.patterns.visits import Visits


def edge_dot(query: Tensor, key: Tensor, rows: Visits) -> Tensor:
    """``[E, H]``, for rows that are in their own order."""
    out = query.new_empty(rows.col.numel(), query.size(1))
    for chunk, edges, row in _chunks(query, rows):
        product = query[chunk].to(sum_dtype(query)).index_select(0, row)
        product *= key.index_select(0, rows.col[edges])
        out[edges] = product.sum(-1)
    return out


def weighted_sum(weight: Tensor, value: Tensor, rows: Visits) -> Tensor:
    """``[N, H, C]``, for rows that are in their own order; ``rows.edge`` says which weight is whose."""
    out = value.new_empty(rows.rowptr.numel() - 1, *value.shape[1:])
    for chunk, edges, row in _chunks(value, rows):
        message = value.index_select(0, rows.col[edges]).to(sum_dtype(value))
        message *= (weight[edges] if rows.edge is None else weight.index_select(0, rows.edge[edges])).unsqueeze(-1)
        if value.device.type == "cpu":
            out[chunk] = torch.zeros_like(out[chunk], dtype=message.dtype).index_add_(0, row, message)
        else:  # without atomics, which add in an order of their own each time
            degree = rows.rowptr[chunk.start : chunk.stop + 1].diff()
            out[chunk] = torch.segment_reduce(message, "sum", lengths=degree, axis=0, unsafe=True)
    return out


def _chunks(x: Tensor, rows: Visits) -> Iterator[tuple[slice, slice, Tensor]]:
    """Slices of rows, of their edges, and the row of every edge counted from the first of them."""
    width = max(x.size(1) * x.size(2), 1)
    for chunk, edges in slices(rows.rowptr, rows.col.numel(), max(numbers_per_chunk(x.device) // width, 1)):
        degree = rows.rowptr[chunk.start : chunk.stop + 1].diff()
        row = torch.arange(degree.numel(), device=degree.device)
        yield chunk, edges, row.repeat_interleave(degree, output_size=edges.stop - edges.start)
