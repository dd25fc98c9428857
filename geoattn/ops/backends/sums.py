"""Sums over rows that stay right however long a row is, and gathering, whose gradient is such a sum.

Added one by one in float32, many terms drift, and a sum stops growing where a term is less than half a unit of its last
place: ones at 2^24. Here terms are added in float64 and the sum is rounded once. The order of additions is the same
every time. Both functions can be differentiated any number of times, in either mode, and batched.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Edges that are added in float32 because no sum of them is long: it errs by at most 2^10 * 2^-24 = 2^-14 of the sum of
# the absolute values, and usually by a thousandth of that.
SHORT = 1 << 10
_CHUNK = 1 << 16  # numbers that are converted at once: they stay in the cache of a CPU


def sum_rows(src: Tensor, row: Tensor, num_rows: int) -> Tensor:
    """Sum of the entries of every row.

    Args:
        src: Values ``[E, ...]``, in the accumulation dtype.
        row: The row of each, ``[E]``, int32 or int64, in any order.
        num_rows: Number of rows ``N``.

    Returns:
        ``[N, ...]`` in the type of ``src``.
    """
    if src.dtype == torch.float32 and _recorded():  # whatever the size, which may be a symbol
        return _sum(src.double(), row, num_rows).to(src.dtype)
    if src.dtype != torch.float32 or src.size(0) <= SHORT:
        return _sum(src, row, num_rows)
    total: Tensor = _SumRows.apply(src, row, num_rows)
    return total


def gather_rows(x: Tensor, row: Tensor) -> Tensor:
    """The row of every entry, ``[N, ...]`` to ``[E, ...]``; its gradient is `sum_rows`."""
    if x.dtype == torch.float32 and _recorded():
        return _gather(x.double(), row).to(x.dtype)
    if x.dtype != torch.float32 or row.size(0) <= SHORT:
        return _gather(x, row)
    found: Tensor = _GatherRows.apply(x, row)
    return found


def _recorded() -> bool:
    """Whether a program is made of what runs: it is then to hold operators of torch alone."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def _sum(src: Tensor, row: Tensor, num_rows: int) -> Tensor:
    zeros = src.new_zeros(num_rows, *src.shape[1:])
    if src.is_cuda:  # sorts and adds in order, where index_add adds atomically, in an order of its own each time
        return zeros.index_put((row,), src, accumulate=True)
    return zeros.index_add(0, row, src)


def _gather(x: Tensor, row: Tensor) -> Tensor:
    return x[row] if x.is_cuda else x.index_select(0, row)  # the gradient of the latter is index_add


class _SumRows(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(src: Tensor, row: Tensor, num_rows: int) -> Tensor:
        if src.is_cuda:
            return _sum(src.double(), row, num_rows).to(src.dtype)
        total = src.new_zeros(num_rows, *src.shape[1:], dtype=torch.float64)
        step = max(_CHUNK * src.size(0) // max(src.numel(), 1), 1)
        for begin in range(0, src.size(0), step):
            total.index_add_(0, row[begin : begin + step], src[begin : begin + step].double())
        return total.to(src.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        _, row, ctx.num_rows = inputs
        ctx.save_for_backward(row)
        ctx.save_for_forward(row)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (row,) = ctx.saved_tensors
        return gather_rows(grad, row), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        (row,) = ctx.saved_tensors
        return sum_rows(tangent, row, ctx.num_rows)


class _GatherRows(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, row: Tensor) -> Tensor:
        return _gather(x, row)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        x, row = inputs
        ctx.num_rows = x.size(0)
        ctx.save_for_backward(row)
        ctx.save_for_forward(row)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (row,) = ctx.saved_tensors
        return sum_rows(grad, row, ctx.num_rows), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (row,) = ctx.saved_tensors
        return gather_rows(tangent, row)
