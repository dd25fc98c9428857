"""Attention through the compiled kernels for CPUs (csrc/simd_attend.cpp)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from geoattn import native
from geoattn.ops.backends.problem import Gradients, Problem
from geoattn.patterns.visits import Visits

READS_OUT, VISITS = False, True  # see `Backend`
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def unavailable(problem: Problem | Tensor | None = None) -> str | None:
    """Why the kernels cannot run (a problem, or on tensors like this one), in a sentence; None if they can."""
    if native.library() is None:
        return native.missing()
    x = problem.query if isinstance(problem, Problem) else problem
    if x is not None and x.device.type != "cpu":
        return f"the CPU kernels do not run on {x.device.type}"
    if x is not None and x.dtype not in DTYPES:
        return f"the CPU kernels do not take {x.dtype}"
    return None


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Output ``[N, H, C]`` and log-sum-exp ``[N, H]``.

    Raises:
        IndexError: If a key is out of range.
    """
    problem = _side_by_side(problem)
    count, heads, _ = problem.query.shape
    out = problem.query.new_empty(count, heads, problem.value.size(2))
    lse = problem.query.new_empty(count, heads, dtype=problem.sum_dtype)
    run("geoattn_attend_forward", _CALL.pack(_fields(problem, lse) | {"out": out.data_ptr()}))
    return out, lse


def backward(
    problem: Problem,
    columns: Visits | None,
    out: Tensor | None,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    needs: Sequence[str],
) -> Gradients:
    """Gradients of the inputs named in ``needs``; those of keys and values need the ``columns``.

    Where values are the keys and scores additive, both gradients are summed into that of keys.

    Raises:
        IndexError: If a key is out of range.
    """
    one = problem.value is problem.key and problem.att is not None and {"key", "value"}.issubset(needs)
    problem = _side_by_side(problem)
    grads = {
        name: torch.empty_like(getattr(problem, name), memory_format=torch.contiguous_format)
        for name in needs
        if not (name == "value" and one)
    }
    fields = _fields(problem, lse) | {f"grad_{name}": grad.data_ptr() for name, grad in grads.items()}
    grad_out = _narrow(grad_out if grad_out.stride(2) == 1 else grad_out.contiguous())
    fields["grad_out"] = grad_out.data_ptr()
    fields["grad_out_row"], fields["grad_out_head"], _ = grad_out.stride()
    if grad_lse is not None:
        grad_lse = grad_lse.contiguous()
        fields["grad_lse"] = grad_lse.data_ptr()
    if columns is not None:
        fields |= zip(_COLUMNS, visits_fields(columns), strict=True)
    if one:
        fields["grad_value"] = fields["grad_key"]
    run("geoattn_attend_backward", _CALL.pack(fields))
    return Gradients(**grads)


def _side_by_side(problem: Problem) -> Problem:
    """With heads of a row side by side, where the kernels read several of this width at once."""
    query, key, value = _narrow(problem.query), _narrow(problem.key), _narrow(problem.value)
    if query is problem.query and key is problem.key and value is problem.value:
        return problem
    return problem._replace(query=query, key=key, value=key if problem.value is problem.key else value)


def _narrow(x: Tensor) -> Tensor:
    _, heads, width = x.shape
    return x.contiguous() if width in (1, 4, 8) and heads > 1 and x.stride(1) != width else x


class Layout:
    """A structure of C whose fields all have 8 bytes: integers, pointers, and ``reals`` of double precision.

    Packing one is several times as fast as filling a `ctypes.Structure`, which for small graphs takes longer than the
    kernel.
    """

    def __init__(self, fields: str, reals: str = "") -> None:
        self.fields = fields.split()
        self._pack = struct.Struct("".join("d" if field in reals.split() else "q" for field in self.fields)).pack

    def pack(self, values: dict[str, int | float]) -> bytes:
        """With 0 (no tensor) for the fields that are not given."""
        get = values.get
        return self._pack(*[get(field, 0) for field in self.fields])


_ROWS, _COLUMNS = ([f"{of}_{field}" for field in ("ptr", "node", "edge", "row", "wide")] for of in ("rows", "columns"))
# ``Call`` in csrc/simd_attend.cpp.
_CALL = Layout(
    f"""
    queries keys edges heads key_heads dim width query key value
    query_row query_head key_row key_head value_row value_head {" ".join(_ROWS)}
    bias log_weight edge_key edge_value att bias_heads log_weight_heads edge_key_heads edge_value_heads
    scale negative_slope dropout seed out lse {" ".join(_COLUMNS)} grad_out grad_lse grad_out_row grad_out_head
    {" ".join(f"grad_{name}" for name in Gradients._fields)} dtype threads
    """,
    reals="scale negative_slope dropout",
)


def _fields(problem: Problem, lse: Tensor) -> dict[str, Any]:
    query, key, value, rowptr, col = problem[:5]
    fields: dict[str, Any] = {
        "edges": col.numel(),
        "query": query.data_ptr(),
        "key": key.data_ptr(),
        "value": value.data_ptr(),
        "scale": problem.scale,
        "negative_slope": problem.negative_slope,
        "dropout": problem.dropout,
        "seed": 0 if problem.seed is None else int(problem.seed),
        "lse": lse.data_ptr(),
        "dtype": DTYPES.index(query.dtype),
        "threads": torch.get_num_threads(),
    }
    fields["queries"], fields["heads"], fields["dim"] = query.shape
    fields["keys"], fields["key_heads"], fields["width"] = value.shape
    for name, x in (("query", query), ("key", key), ("value", value)):
        fields[f"{name}_row"], fields[f"{name}_head"], _ = x.stride()
    fields |= zip(_ROWS, visits_fields(problem.visits or Visits(rowptr, col)), strict=True)
    for name in ("bias", "log_weight", "edge_key", "edge_value", "att"):
        term = getattr(problem, name)
        if term is not None:
            fields[name], fields[f"{name}_heads"] = term.data_ptr(), term.size(1)
    return fields


def visits_fields(visits: Visits) -> list[int]:
    """``Visits`` in csrc/simd_walk.h, of contiguous tensors."""
    wide = visits.rowptr.dtype == torch.int64
    return [*[0 if x is None else x.data_ptr() for x in visits], wide]


def run(name: str, call: bytes) -> None:
    """Call the kernel ``name`` on a structure that counts queries, keys and edges.

    Raises:
        IndexError: If the pattern is not one of so many.
        MemoryError: If there is not enough memory.
    """
    native.function(name)(call)
