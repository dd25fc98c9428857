"""The reference formulas over torch-scatter's kernels: an alternative, and a yardstick for ours.

torch-scatter's own second derivatives through ``segment_csr`` are silently wrong (its backward pass fills a buffer that
autograd does not see), so its kernels are called here from functions that bring their own derivatives, right to any
order.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from geoattn._optional import require
from geoattn.ops.backends import reference
from geoattn.ops.backends.problem import Problem


def unavailable(problem: Problem | None = None) -> str | None:
    """Why torch-scatter cannot run (``problem``), in a sentence; None if it can."""
    if torch.compiler.is_compiling():
        return "torch-scatter's operations do not take part in torch.compile and torch.export"
    failure = _import_failure()
    if failure is not None or problem is None:
        return failure
    device = problem.query.device.type
    if device not in ("cpu", "cuda"):
        return f"torch-scatter does not run on {device}"
    if device == "cuda" and torch.ops.torch_scatter.cuda_version() < 0:
        return "the installed torch-scatter was built without CUDA"
    return None


@cache
def _import_failure() -> str | None:
    try:
        require("torch_scatter", "scatter")
    except (ImportError, OSError, RuntimeError) as error:  # the latter two: built for another version of torch
        return f"torch-scatter cannot be imported: {error}"
    return None


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Output ``[N, H, C]`` in the type of the query and log-sum-exp ``[N, H]``; differentiable any number of times."""
    rowptr, row = problem.rowptr.long(), reference.row_of_edges(problem)
    score = reference.scores(problem, row)
    highest, _ = torch.ops.torch_scatter.segment_max_csr(score.detach(), rowptr, None)  # 0 in empty rows, never -inf
    weight = (score - highest.index_select(0, row)).exp()
    total = _sum(weight, rowptr, row)
    lse = reference.log(total) + highest
    weight = reference.dropped(weight / _spread(total.where(total > 0, 1), rowptr, row), problem)

    out = _sum(weight.unsqueeze(-1) * reference.values(problem), rowptr, row)
    return out.to(problem.query.dtype), lse


def _sum(src: Tensor, rowptr: Tensor, row: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(src, rowptr, row)
    return total


def _spread(x: Tensor, rowptr: Tensor, row: Tensor) -> Tensor:
    spread: Tensor = _Spread.apply(x, rowptr, row)
    return spread


class _Sum(torch.autograd.Function):
    """Sum of every row, ``[E, ...]`` to ``[N, ...]``. Being linear, it has its adjoint `_Spread` for derivative."""

    @staticmethod
    def forward(ctx: Any, src: Tensor, rowptr: Tensor, row: Tensor) -> Tensor:
        ctx.save_for_backward(rowptr, row)
        total: Tensor = torch.ops.torch_scatter.segment_sum_csr(src, rowptr, None)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _spread(grad, *ctx.saved_tensors), None, None


class _Spread(torch.autograd.Function):
    """Each row's entry for every edge, ``[N, ...]`` to ``[E, ...]``; its derivative is `_Sum`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rowptr: Tensor, row: Tensor) -> Tensor:
        ctx.save_for_backward(rowptr, row)
        return x.index_select(0, row)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _sum(grad, *ctx.saved_tensors), None, None
