"""Products along edges and sums over rows through the compiled kernels (csrc/simd_edges.cpp)."""

from __future__ import annotations

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


# ``Call`` in csrc/simd_edges.cpp.
_CALL = cpu.Layout(
    """
    queries keys edges heads length ptr node positions row wide own other own_row own_head other_row other_head
    edge out dtype threads
    """
)
_ROWS = ("ptr", "node", "positions", "row", "wide")


def _run(name: str, rows: Visits, other: Tensor, **tensors: Tensor) -> None:
    """Call a kernel on tensors that are contiguous; the last dimension of ``own`` may be all that is."""
    other = _readable(other)
    rows = Visits(*(x if x is None else x.contiguous() for x in rows))  # type: ignore[arg-type]
    fields: dict[str, int | float] = {field: x.data_ptr() for field, x in tensors.items()}
    fields |= zip(_ROWS, cpu.visits_fields(rows), strict=True)
    fields["queries"], fields["edges"], fields["other"] = rows.rowptr.numel() - 1, rows.col.numel(), other.data_ptr()
    fields["keys"], fields["heads"], fields["length"] = other.shape
    fields["other_row"], fields["other_head"], _ = other.stride()
    if "own" in tensors:
        fields["own_row"], fields["own_head"], _ = tensors["own"].stride()
    fields["dtype"], fields["threads"] = cpu.DTYPES.index(other.dtype), torch.get_num_threads()
    cpu.run(name, _CALL.pack(fields))


def _readable(x: Tensor) -> Tensor:
    """With stride 1 in the last dimension."""
    return x if x.stride(2) == 1 else x.contiguous()
