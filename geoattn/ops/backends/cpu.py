"""Attention through the compiled kernels for CPUs (csrc/simd_attend.cpp)."""

from __future__ import annotations

import ctypes
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
        return native.MISSING
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
    query, heads = problem.query, problem.query.size(1)
    out = query.new_empty(query.size(0), heads, problem.value.size(2))
    lse = query.new_empty(query.size(0), heads, dtype=problem.sum_dtype)
    call = _call(problem, lse)
    call.out = out.data_ptr()
    run("geoattn_attend_forward", call)
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
    call = _call(problem, lse)
    grad_out = _narrow(grad_out if grad_out.stride(2) == 1 else grad_out.contiguous())
    call.grad_out, call.grad_out_stride = grad_out.data_ptr(), strides(grad_out)
    if grad_lse is not None:
        grad_lse = grad_lse.contiguous()
        call.grad_lse = grad_lse.data_ptr()
    if columns is not None:
        call.columns = c_visits(columns)
    for name, grad in grads.items():
        setattr(call, f"grad_{name}", grad.data_ptr())
    if one:
        call.grad_value = call.grad_key
    run("geoattn_attend_backward", call)
    return Gradients(**grads)


def _side_by_side(problem: Problem) -> Problem:
    query, key = _narrow(problem.query), _narrow(problem.key)
    value = key if problem.value is problem.key else _narrow(problem.value)
    return problem._replace(query=query, key=key, value=value)


def _narrow(x: Tensor) -> Tensor:
    """Heads of a row side by side, where the kernels read several of this width at once."""
    apart = x.size(1) > 1 and x.stride(1) != x.size(2)
    return x.contiguous() if apart and x.size(2) in (1, 4, 8) else x


class CVisits(ctypes.Structure):
    """Mirrors ``Visits`` in csrc/simd_walk.h."""

    _fields_ = [*[(name, ctypes.c_void_p) for name in ("ptr", "node", "edge", "row")], ("wide", ctypes.c_int64)]


class _Call(ctypes.Structure):
    """Mirrors ``Call`` in csrc/simd_attend.cpp."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("queries", "keys", "edges", "heads", "key_heads", "dim", "width")],
        *[(name, ctypes.c_void_p) for name in ("query", "key", "value")],
        *[(f"{name}_stride", ctypes.c_int64 * 2) for name in ("query", "key", "value")],
        ("rows", CVisits),
        *[(name, ctypes.c_void_p) for name in ("bias", "log_weight", "edge_key", "edge_value", "att")],
        *[(f"{name}_heads", ctypes.c_int64) for name in ("bias", "weight", "edge_key", "edge_value")],
        *[(name, ctypes.c_double) for name in ("scale", "negative_slope", "dropout")],
        ("seed", ctypes.c_uint64),
        *[(name, ctypes.c_void_p) for name in ("out", "lse")],
        ("columns", CVisits),
        *[(name, ctypes.c_void_p) for name in ("grad_out", "grad_lse")],
        ("grad_out_stride", ctypes.c_int64 * 2),
        *[(f"grad_{name}", ctypes.c_void_p) for name in Gradients._fields],
        *[(name, ctypes.c_int64) for name in ("dtype", "threads")],
    ]


def _call(problem: Problem, lse: Tensor) -> _Call:
    query, key, value, rowptr, col = problem[:5]
    call = _Call(
        queries=query.size(0),
        keys=key.size(0),
        edges=col.numel(),
        heads=query.size(1),
        key_heads=key.size(1),
        dim=query.size(2),
        width=value.size(2),
        query=query.data_ptr(),
        key=key.data_ptr(),
        value=value.data_ptr(),
        query_stride=strides(query),
        key_stride=strides(key),
        value_stride=strides(value),
        rows=c_visits(problem.visits or Visits(rowptr, col)),
        scale=problem.scale,
        negative_slope=problem.negative_slope,
        dropout=problem.dropout,
        seed=0 if problem.seed is None else int(problem.seed),
        lse=lse.data_ptr(),
        dtype=DTYPES.index(query.dtype),
        threads=torch.get_num_threads(),
    )
    for name, heads in (
        ("bias", "bias_heads"),
        ("log_weight", "weight_heads"),
        ("edge_key", "edge_key_heads"),
        ("edge_value", "edge_value_heads"),
        ("att", None),
    ):
        term = getattr(problem, name)
        if term is not None:
            setattr(call, name, term.data_ptr())
            if heads:
                setattr(call, heads, term.size(1))
    return call


def c_visits(visits: Visits) -> CVisits:
    """Of contiguous tensors."""
    return CVisits(*[None if x is None else x.data_ptr() for x in visits], visits.rowptr.dtype == torch.int64)


def strides(x: Tensor) -> ctypes.Array[ctypes.c_int64]:
    """Of the first two dimensions."""
    return (ctypes.c_int64 * 2)(x.stride(0), x.stride(1))


def run(name: str, call: Any) -> None:
    """Call the kernel ``name`` on a structure that counts queries, keys and edges.

    Raises:
        IndexError: If the pattern is not one of so many.
    """
    error = native.function(name)(ctypes.byref(call))
    if error == 1:
        raise IndexError(f"the pattern names a key outside [0, {call.keys}) or a query outside [0, {call.queries})")
    if error:
        raise IndexError(f"rowptr of the pattern does not rise from 0 to {call.edges}")
