"""Reductions over the edges of each node: sum, mean, max, min, log-sum-exp and softmax.

Every function takes values ``src [E, ...]`` and either ``index [E]``, the segment of each (in any order), or ``ptr
[N + 1]``, where each segment's run begins and ends. Both forms give the same values and gradients to the bit where the
index is ascending. Results do not vary from run to run, nor with the number of CPU threads; on CUDA that costs a sort
of the index in sums, and under `torch.compile` there it holds after ``torch.use_deterministic_algorithms(True)``.

On the CPU an index or a ptr that does not fit raises a `ValueError`; on CUDA it stops the kernel by an assertion, and
under `torch.compile` and `torch.export` nothing is checked beforehand.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geoattn._arguments import check_tensors, checked_integer
from geoattn.ops.backends.modes import traced
from geoattn.ops.backends.sums import gather_rows, sum_rows


def segment_sum(
    src: Tensor, index: Tensor | None = None, ptr: Tensor | None = None, num_segments: int | None = None
) -> Tensor:
    """Sum of each segment, 0 where it is empty.

    Half types are accumulated in float32; sums of more than 1,024 terms in float64. Differentiable any number of times.

    Args:
        src: Values ``[E, ...]``.
        index: Segment of each value, ``[E]``, int32 or int64, in any order.
        ptr: Instead of ``index``: segment ``i`` is ``src[ptr[i]:ptr[i + 1]]``; ``[N + 1]``.
        num_segments: Number of segments ``N``; default: largest index plus one (give it under `torch.compile`).

    Returns:
        ``[N, ...]`` in the type of ``src``.

    Raises:
        TypeError: If an argument is no tensor, or ``num_segments`` no integer.
        ValueError: If not exactly one of ``index`` and ``ptr`` is given, ``num_segments`` is given with ``ptr``, or
            shapes, types or ranges do not fit.
    """
    row, n = _rows(src, index, ptr, num_segments)
    return sum_rows(_accumulated(src), row, n).to(src.dtype)


def segment_mean(
    src: Tensor, index: Tensor | None = None, ptr: Tensor | None = None, num_segments: int | None = None
) -> Tensor:
    """Mean of each segment, 0 where it is empty; arguments and errors as in `segment_sum`, floating types only."""
    _check_floating(src)
    row, n = _rows(src, index, ptr, num_segments)
    count = row.new_zeros(n).scatter_add(0, row, torch.ones_like(row)).clamp(min=1)
    return (sum_rows(_accumulated(src), row, n) / _unsqueezed(count, src)).to(src.dtype)


def segment_max(
    src: Tensor, index: Tensor | None = None, ptr: Tensor | None = None, num_segments: int | None = None
) -> Tensor:
    """Largest value of each segment, 0 where it is empty (as PyG); arguments and errors as in `segment_sum`.

    Equal largest values share the gradient evenly, as in `torch.amax`, so that it does not depend on their order.
    """
    row, n = _rows(src, index, ptr, num_segments)
    return _extreme(_accumulated(src), row, n, "amax").to(src.dtype)


def segment_min(
    src: Tensor, index: Tensor | None = None, ptr: Tensor | None = None, num_segments: int | None = None
) -> Tensor:
    """Smallest value of each segment, 0 where it is empty (as PyG); arguments and errors as in `segment_sum`.

    Equal smallest values share the gradient evenly, as in `torch.amin`, so that it does not depend on their order.
    """
    row, n = _rows(src, index, ptr, num_segments)
    return _extreme(_accumulated(src), row, n, "amin").to(src.dtype)


def segment_logsumexp(
    src: Tensor, index: Tensor | None = None, ptr: Tensor | None = None, num_segments: int | None = None
) -> Tensor:
    """``log(sum(exp(src)))`` of each segment; arguments and errors as in `segment_sum`, floating types only.

    A segment that is empty, or all ``-inf``, gives ``-inf`` and no gradient.
    """
    _check_floating(src)
    row, n = _rows(src, index, ptr, num_segments)
    _, total, highest = _exponentials(_accumulated(src), row, n)
    positive = total != 0  # true of NaN, which goes on
    return (total.where(positive, 1).log().where(positive, -torch.inf) + highest).to(src.dtype)


def segment_softmax(
    src: Tensor, index: Tensor | None = None, ptr: Tensor | None = None, num_segments: int | None = None
) -> Tensor:
    """Softmax within each segment; arguments and errors as in `segment_sum`, floating types only.

    A segment all of whose values are ``-inf`` gives zeros.

    Returns:
        ``[E, ...]`` in the type of ``src``.
    """
    _check_floating(src)
    row, n = _rows(src, index, ptr, num_segments)
    weight, total, _ = _exponentials(_accumulated(src), row, n)
    return (weight / gather_rows(total.where(total != 0, 1), row)).to(src.dtype)


def _exponentials(src: Tensor, row: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """``exp(src - highest)`` [E, ...], its sums and the largest values [N, ...]; the latter a constant to autograd."""
    highest = _extreme(src.detach(), row, n, "amax")
    highest = highest.where(highest.isfinite(), 0)
    weight = (src - gather_rows(highest, row)).exp()
    return weight, sum_rows(weight, row, n), highest


def _extreme(src: Tensor, row: Tensor, n: int, reduce: str) -> Tensor:
    function = _Extreme if torch.compiler.is_compiling() else _ExtremeEager
    extreme: Tensor = function.apply(src, row, n, reduce)
    return extreme


class _Extreme(torch.autograd.Function):
    """scatter_reduce's own gradient takes the zeros it starts from for one more equal where a largest value is 0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(src: Tensor, row: Tensor, n: int, reduce: str) -> Tensor:
        start = src.new_zeros(n, *src.shape[1:])  # what empty segments keep
        return start.scatter_reduce(0, _unsqueezed(row, src).expand_as(src), src, reduce, include_self=False)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int, str], output: Tensor) -> None:
        src, row, _, _ = inputs
        ctx.save_for_backward(src, row, output)
        ctx.save_for_forward(src, row, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        src, row, extreme = ctx.saved_tensors
        return _shares(src, row, extreme) * gather_rows(grad, row), None, None, None


class _ExtremeEager(_Extreme):
    """Differentiable in forward mode, too: torch.compile takes no function that says how."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        src, row, extreme = ctx.saved_tensors
        return sum_rows(_shares(src, row, extreme) * tangent, row, extreme.size(0))


def _shares(src: Tensor, row: Tensor, extreme: Tensor) -> Tensor:
    """Of every entry in the derivative of the extreme value of its row: 0, or 1 by how many are equal to it."""
    equal = (src == gather_rows(extreme, row)).to(src.dtype)
    return equal / gather_rows(sum_rows(equal, row, extreme.size(0)), row)


def _accumulated(src: Tensor) -> Tensor:
    """In the accumulation dtype: at least float32 for floating types, unchanged for integers."""
    return src.to(torch.promote_types(src.dtype, torch.float32)) if src.is_floating_point() else src


def _unsqueezed(per_row: Tensor, like: Tensor) -> Tensor:
    """``[E]`` to ``[E, 1, ...]`` with as many dimensions as ``like``."""
    return per_row.view(-1, *[1] * (like.dim() - 1))


def _rows(src: Tensor, index: Tensor | None, ptr: Tensor | None, num_segments: int | None) -> tuple[Tensor, int]:
    """The segment of each edge, ``[E]`` int64, and how many segments there are."""
    check_tensors(src=src)
    if src.dim() == 0:
        raise ValueError("expected src [E, ...], got a scalar")
    if index is not None and ptr is None:
        return _rows_of_index(src, index, num_segments)
    if ptr is not None and index is None:
        if num_segments is not None:
            raise ValueError("num_segments goes with index; ptr has its own number of segments")
        return _rows_of_ptr(src, ptr)
    raise ValueError(f"give either index or ptr, got {'neither' if index is None else 'both'}")


def _rows_of_index(src: Tensor, index: Tensor, num_segments: int | None) -> tuple[Tensor, int]:
    _check_integers("index", index, src)
    if index.shape != src.shape[:1]:
        raise ValueError(f"expected index [{src.size(0)}], one entry per row of src, got {tuple(index.shape)}")
    if num_segments is None:
        num_segments = int(index.max()) + 1 if index.numel() else 0
    num_segments = checked_integer("num_segments", num_segments)
    if index.is_cuda:  # indexing there counts negative numbers from the end; let them fail as well
        index = index.where(index >= 0, num_segments)
    elif not traced(index) and index.numel():
        lowest, highest = (int(bound) for bound in index.aminmax())
        if lowest < 0 or highest >= num_segments:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"index must be in [0, {num_segments}), got {wrong}")
    return index.long(), num_segments


def _rows_of_ptr(src: Tensor, ptr: Tensor) -> tuple[Tensor, int]:
    _check_integers("ptr", ptr, src)
    if ptr.dim() != 1 or ptr.numel() == 0:
        raise ValueError(f"expected ptr [N + 1], got {tuple(ptr.shape)}")
    degree = ptr.diff()
    if not ptr.is_cuda and not traced(ptr):
        if ptr[0] != 0 or ptr[-1] != src.size(0):
            raise ValueError(f"ptr must go from 0 to {src.size(0)}, got {int(ptr[0])} to {int(ptr[-1])}")
        if (degree < 0).any():
            raise ValueError(f"ptr must not fall, got a step of {int(degree.min())}")
    n = ptr.numel() - 1
    return torch.arange(n, device=ptr.device).repeat_interleave(degree, output_size=src.size(0)), n


def _check_integers(name: str, tensor: Tensor, src: Tensor) -> None:
    check_tensors(**{name: tensor})
    if tensor.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name} must be int32 or int64, got {tensor.dtype}")
    if tensor.device != src.device:
        raise ValueError(f"src and {name} must be on one device, got {src.device} and {tensor.device}")


def _check_floating(src: Tensor) -> None:
    check_tensors(src=src)
    if not src.is_floating_point():
        raise ValueError(f"src must have a floating type, got {src.dtype}")
