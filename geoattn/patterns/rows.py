"""Edges in compressed rows, and rows turned to columns."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from geoattn import native


def compress(
    key: Tensor, query: Tensor, num_queries: int, num_keys: int, self_loops: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """``rowptr`` ``[N + 1]`` and ``col`` ``[E]`` of edges, and the number of each among those given, in ``dtype``.

    Edges in a row ascend by key, duplicates as they were. With ``self_loops``, loops are replaced by one for each of
    the first ``min(N, M)`` queries, at the end of its row; the others are then numbered without them, and they after
    the others.

    Raises:
        IndexError: On CPUs, if an index is out of range.
    """
    if key.dtype not in (torch.int32, torch.int64):
        key, query = key.to(dtype), query.to(dtype)
    library = _library(key)
    if library is not None:
        num_edges = key.numel()
        if self_loops:
            num_edges += min(num_queries, num_keys) - int((key == query).sum())
        rowptr, col, order = (key.new_empty(size, dtype=dtype) for size in (num_queries + 1, num_edges, num_edges))
        _run(
            library.geoattn_compress,
            (key.contiguous(), query.contiguous()),
            (key.numel(), num_keys, num_queries, self_loops),
            (rowptr, col, order),
            (key.dtype == torch.int64, dtype == torch.int64),
        )
        return rowptr, col, order
    key, query = key.to(dtype), query.to(dtype)
    loops = key[:0]
    if self_loops:
        kept = key != query
        key, query = key[kept], query[kept]
        loops = torch.arange(min(num_queries, num_keys), dtype=key.dtype, device=key.device)
    order = torch.cat([key.argsort(stable=True), loops.long() + key.numel()])
    key, query = torch.cat([key, loops]), torch.cat([query, loops])
    row, by_query = query[order].sort(stable=True)
    order = order[by_query]
    return _begins(row, num_queries), key[order], order.to(dtype)


def transpose(rowptr: Tensor, col: Tensor, num_keys: int, order: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``rowptr`` ``[M + 1]`` by key, and the row of every edge ``[E]``, in the type of ``col``.

    Edges of one key keep their order. The position that each had is written to ``order`` ``[E]``, of the same type.

    Raises:
        IndexError: On CPUs, if the rows do not rise or a key is out of range.
    """
    num_queries, num_edges = rowptr.numel() - 1, col.numel()
    library = _library(col)
    if library is not None:
        turned, row = rowptr.new_empty(num_keys + 1), torch.empty_like(col)
        _run(
            library.geoattn_transpose,
            (rowptr.contiguous(), col.contiguous()),
            (num_queries, num_keys, num_edges),
            (turned, row, order),
            (col.dtype == torch.int64,),
        )
        return turned, row
    ascending, position = col.sort(stable=True)
    if order is not None:
        order.copy_(position)
    return _begins(ascending, num_keys), row_of_edges(rowptr, num_edges)[position]


def row_of_edges(rowptr: Tensor, num_edges: int) -> Tensor:
    """Query of every edge, ``[E]``."""
    query = torch.arange(rowptr.numel() - 1, dtype=rowptr.dtype, device=rowptr.device)
    return query.repeat_interleave(rowptr.diff(), output_size=num_edges)


def _begins(row: Tensor, num_rows: int) -> Tensor:
    """Where each row begins and ends ``[num_rows + 1]``, given the row of every edge, ascending."""
    number = torch.arange(num_rows + 1, dtype=row.dtype, device=row.device)
    return torch.searchsorted(row, number, out_int32=row.dtype == torch.int32)


def _library(x: Tensor) -> ctypes.CDLL | None:
    """The compiled kernels, where they can count."""
    # A mode such as that of fake tensors makes results without memory.
    readable = x.device.type == "cpu" and native.in_memory(x) and not torch._C._len_torch_dispatch_stack()
    return native.library() if readable else None


def _run(function: Callable[..., int], *arguments: tuple[Tensor | int | None, ...]) -> None:
    function(*(_as_c(x) for group in arguments for x in group))


def _as_c(x: Tensor | int | None) -> ctypes.c_void_p | ctypes.c_int64:
    if isinstance(x, int):
        return ctypes.c_int64(x)
    return ctypes.c_void_p(None if x is None else x.data_ptr())
