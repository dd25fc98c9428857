"""Edges in compressed sparse rows (CSR), and their transpose."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any, cast

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
        ValueError: If an index is out of range.
    """
    if key.dtype not in (torch.int32, torch.int64):
        key, query = key.to(dtype), query.to(dtype)
    if _counts(key):
        most = key.numel() + (min(num_queries, num_keys) if self_loops else 0)
        rowptr, col, order = (key.new_empty(size, dtype=dtype) for size in (num_queries + 1, most, most))
        key, query, wide = key.contiguous(), query.contiguous(), key.dtype == torch.int64
        try:
            _function("geoattn_compress", "pp nnnn ppp nn")(
                *(key.data_ptr(), query.data_ptr()),
                *(key.numel(), num_keys, num_queries, self_loops),
                *(rowptr.data_ptr(), col.data_ptr(), order.data_ptr()),
                *(wide, dtype == torch.int64),
            )
        except IndexError:
            _check_edges(key, query, num_queries, num_keys)  # says which
            raise
        num_edges = int(rowptr[-1]) if self_loops else most
        return (rowptr, col, order) if num_edges == most else (rowptr, col[:num_edges], order[:num_edges])
    if native.in_memory(key, query):
        _check_edges(key, query, num_queries, num_keys)
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
    return _row_pointers(row, num_queries), key[order], order.to(dtype)


def transpose(rowptr: Tensor, col: Tensor, num_keys: int, order: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``rowptr`` ``[M + 1]`` by key, and the row of every edge ``[E]``, in the type of ``col``.

    Edges of one key keep their order. The position that each had is written to ``order`` ``[E]``, of the same type.

    Raises:
        IndexError: On CPUs, if the rows do not rise or a key is out of range.
    """
    num_queries, num_edges = rowptr.numel() - 1, col.numel()
    if _counts(col):
        by_key, row = rowptr.new_empty(num_keys + 1), torch.empty_like(col)
        rowptr, col = rowptr.contiguous(), col.contiguous()
        _function("geoattn_transpose", "pp nnn ppp n")(
            *(rowptr.data_ptr(), col.data_ptr()),
            *(num_queries, num_keys, num_edges),
            *(by_key.data_ptr(), row.data_ptr(), None if order is None else order.data_ptr()),
            col.dtype == torch.int64,
        )
        return by_key, row
    if col.device.type == "cpu" and native.in_memory(rowptr, col) and not native.modes_active():
        check_rows(rowptr, col, num_keys)
    ascending, position = col.sort(stable=True)
    if order is not None:
        order.copy_(position)
    return _row_pointers(ascending, num_keys), row_of_edges(rowptr, num_edges)[position]


def check_rows(rowptr: Tensor, col: Tensor, num_keys: int) -> None:
    """Look at the values of a pattern; on a GPU the host waits for them.

    Raises:
        IndexError: If the rows do not rise from 0 to the number of edges, or a key is out of range.
    """
    if int(rowptr[0]) != 0 or int(rowptr[-1]) != col.numel() or bool((rowptr[1:] < rowptr[:-1]).any()):
        raise IndexError(native.NOT_RISING)
    if col.numel():
        low, high = col.aminmax()
        if int(low) < 0 or int(high) >= num_keys:
            raise IndexError(native.OUT_OF_RANGE)


def row_of_edges(rowptr: Tensor, num_edges: int) -> Tensor:
    """Query of every edge, ``[E]``."""
    query = torch.arange(rowptr.numel() - 1, dtype=rowptr.dtype, device=rowptr.device)
    return query.repeat_interleave(rowptr.diff(), output_size=num_edges)


def _row_pointers(row: Tensor, num_rows: int) -> Tensor:
    """``rowptr`` ``[num_rows + 1]``, given the row of every edge, ascending."""
    number = torch.arange(num_rows + 1, dtype=row.dtype, device=row.device)
    return torch.searchsorted(row, number, out_int32=row.dtype == torch.int32)


def _counts(x: Tensor) -> bool:
    """Whether the compiled kernels can count, which is several times as fast as sorting."""
    built = x.device.type == "cpu" and native.library() is not None
    return built and native.in_memory(x) and not native.modes_active()  # in which results have no memory


@cache
def _function(name: str, arguments: str) -> Callable[..., int]:
    """A function of the library, and which of its arguments are pointers and which are numbers."""
    function: Any = getattr(native.library(), name)
    function.argtypes = [{"p": ctypes.c_void_p, "n": ctypes.c_int64}[kind] for kind in arguments.replace(" ", "")]
    return cast("Callable[..., int]", function)


def _check_edges(key: Tensor, query: Tensor, num_queries: int, num_keys: int) -> None:
    check_range("edge_index[0]", key, num_keys)
    check_range("edge_index[1]", query, num_queries)


def check_range(name: str, index: Tensor, count: int) -> None:
    """That numbers are in ``[0, count)``.

    Raises:
        ValueError: If one is not.
    """
    if index.numel() == 0:
        return
    low, high = index.aminmax()
    if int(low) < 0 or int(high) >= count:
        raise ValueError(f"{name} must be in [0, {count}), got values from {int(low)} to {int(high)}")
