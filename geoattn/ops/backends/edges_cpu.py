"""Products along edges and sums over rows through the compiled kernels (csrc/simd_edges.cpp)."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from geoattn.ops.backends import cpu
from geoattn.patterns.visits import Visits


def edge_dot(query: Tensor, key: Tensor, rows: Visits) -> Tensor:
    """``[E, H]``

    Raises:
        IndexError: If a key is out of range.
    """
    out = query.new_empty(rows.col.numel(), query.size(1))
    _run("geoattn_edge_dot", rows, key, own=_readable(query), edge=out)
    return out


def weighted_sum(weight: Tensor, value: Tensor, rows: Visits) -> Tensor:
    """``[N, H, C]``; ``rows.edge`` says which weight is whose.

    Raises:
        IndexError: If a key is out of range.
    """
    out = value.new_empty(rows.rowptr.numel() - 1, *value.shape[1:])
    _run("geoattn_weighted_sum", rows, value, edge=weight.contiguous(), out=out)
    return out


class _Call(ctypes.Structure):
    """Mirrors ``Call`` in csrc/simd_edges.cpp."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("queries", "keys", "edges", "heads", "length")],
        ("rows", cpu.CVisits),
        *[(name, ctypes.c_void_p) for name in ("own", "other")],
        *[(name, ctypes.c_int64 * 2) for name in ("own_stride", "other_stride")],
        *[(name, ctypes.c_void_p) for name in ("edge", "out")],
        *[(name, ctypes.c_int64) for name in ("dtype", "threads")],
    ]


def _run(name: str, rows: Visits, other: Tensor, **tensors: Tensor) -> None:
    """Call a kernel on tensors that are contiguous; the last dimension of ``own`` may be all that is."""
    other = _readable(other)
    rowptr, col, edge, row = (None if x is None else x.contiguous() for x in rows)
    assert rowptr is not None
    assert col is not None
    call = _Call(
        queries=rowptr.numel() - 1,
        keys=other.size(0),
        edges=col.numel(),
        heads=other.size(1),
        length=other.size(2),
        rows=cpu.c_visits(Visits(rowptr, col, edge, row)),
        other=other.data_ptr(),
        other_stride=cpu.strides(other),
        dtype=cpu.DTYPES.index(other.dtype),
        threads=torch.get_num_threads(),
    )
    for field, x in tensors.items():
        setattr(call, field, x.data_ptr())
    if "own" in tensors:
        call.own_stride = cpu.strides(tensors["own"])
    cpu.run(name, call)


def _readable(x: Tensor) -> Tensor:
    """With stride 1 in the last dimension."""
    return x if x.stride(2) == 1 else x.contiguous()
