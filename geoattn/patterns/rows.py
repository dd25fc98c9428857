"""Edges in compressed rows, and rows turned to columns."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor


def compress(
    key: Tensor, query: Tensor, num_queries: int, num_keys: int, self_loops: bool
) -> tuple[Tensor, Tensor, Tensor] | None:
    """``rowptr`` ``[N + 1]`` and ``col`` ``[E]`` of the edges given by key and query, and the number of each, int64.

    Edges in a row ascend by key, duplicates as they were. With ``self_loops``, loops are replaced by one for each of
    the first ``min(N, M)`` queries, at the end of its row; the others are then numbered without them, and they after
    the others. None without the compiled kernels, on other devices and while compiling.

    Raises:
        IndexError: If an index is out of range.
    """
    from geoattn.ops.backends import cpu  # ops is built on patterns

    library = cpu.library()
    if library is None or key.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    room = key.numel()
    if self_loops:
        room += min(num_queries, num_keys) - int((key == query).sum())
    rowptr, col = key.new_empty(num_queries + 1), key.new_empty(room)
    order = torch.empty(room, dtype=torch.int64)
    wide = key.dtype == torch.int64
    _run(
        library.geoattn_compress,
        (key.contiguous(), query.contiguous()),
        (key.numel(), num_keys, num_queries, self_loops),
        (rowptr, col, order),
        (wide,),
    )
    return rowptr, col, order


def transpose(rowptr: Tensor, col: Tensor, num_keys: int) -> tuple[Tensor, Tensor, Tensor]:
    """``rowptr`` ``[M + 1]`` by key, and the row and the position of every edge ``[E]``; all in the type of ``col``.

    Edges of one key keep their order.

    Raises:
        IndexError: On CPUs, if the rows do not rise or a key is out of range.
    """
    from geoattn.ops.backends import cpu  # ops is built on patterns

    library = cpu.library()
    num_queries, num_edges = rowptr.numel() - 1, col.numel()
    if library is not None and col.device.type == "cpu" and not torch.compiler.is_compiling():
        found = rowptr.new_empty(num_keys + 1), torch.empty_like(col), torch.empty_like(col)
        _run(
            library.geoattn_transpose,
            (rowptr.contiguous(), col.contiguous()),
            (num_queries, num_keys, num_edges),
            found,
            (col.dtype == torch.int64,),
        )
        return found
    ascending, order = col.sort(stable=True)
    key = torch.arange(num_keys + 1, dtype=col.dtype, device=col.device)
    turned = torch.searchsorted(ascending, key, out_int32=col.dtype == torch.int32)
    return turned, row_of_edges(rowptr, num_edges)[order], order.to(col.dtype)


def row_of_edges(rowptr: Tensor, num_edges: int) -> Tensor:
    """Query of every edge, ``[E]``."""
    query = torch.arange(rowptr.numel() - 1, dtype=rowptr.dtype, device=rowptr.device)
    return query.repeat_interleave(rowptr.diff(), output_size=num_edges)


def _run(function: ctypes._FuncPointer, *arguments: tuple[Tensor | int, ...]) -> None:
    flat = [x for group in arguments for x in group]
    function.restype = ctypes.c_int64
    result = function(*(ctypes.c_void_p(x.data_ptr()) if isinstance(x, Tensor) else ctypes.c_int64(x) for x in flat))
    if result < 0:
        raise IndexError("an edge names a query or a key that does not exist, or rows do not rise to the edges")
