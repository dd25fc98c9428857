"""`Visits`: the rows of a pattern in the order in which a kernel visits them."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from geoattn import native

# Below, the keys and values of a call are in the cache anyway (1 KiB together, at 4 heads of 32 channels in float32).
MIN_KEYS = 32_768


class Visits(NamedTuple):
    """Compressed rows in any order; all of one type, int32 or int64."""

    rowptr: Tensor  # [N + 1]
    col: Tensor  # [E]
    edge: Tensor | None = None  # [E], position of every edge in the pattern's own col; None: its own, or not needed
    row: Tensor | None = None  # [N], the number each row has in the pattern; None: its own


def may_pay(rowptr: Tensor, num_keys: int) -> bool:
    """Whether an order is worth looking for: of these rows, or of their columns."""
    rows = rowptr.numel() - 1
    readable = native.library() is not None and rowptr.device.type == "cpu" and native.in_memory(rowptr)
    return readable and rows == num_keys and rows >= MIN_KEYS


def find_visits(rowptr: Tensor, col: Tensor, num_keys: int) -> Visits | None:
    """An order of rows that keeps what they read in cache, without ``edge``, or None where it would not pay.

    Clusters of 512 rows are grown one after the other, each along the edges from where the last ones ended. They are
    taken if 512 rows in succession then read clearly fewer keys than before.

    Args:
        rowptr: Where each row begins and ends, ``[N + 1]``, int32 or int64.
        col: Key of every edge, ``[E]``, likewise.
        num_keys: Number of keys.

    Raises:
        IndexError: If a key is out of range or the rows do not rise.
    """
    rows, edges = rowptr.numel() - 1, col.numel()
    library = native.library()
    if library is None or not may_pay(rowptr, num_keys):
        return None
    dtype = torch.int32 if max(rows, edges) < 2**31 else torch.int64
    found = [torch.empty(size, dtype=dtype) for size in (rows + 1, edges, rows)]
    arguments = [rowptr.contiguous(), col.contiguous(), *found]
    pays = library.geoattn_visits(
        *[ctypes.c_void_p(x.data_ptr()) for x in arguments],
        *[ctypes.c_int64(number) for number in (rows, edges)],
        ctypes.c_int64(rowptr.dtype == torch.int64),
        ctypes.c_int64(dtype == torch.int64),
    )
    return Visits(found[0], found[1], row=found[2]) if pays else None
