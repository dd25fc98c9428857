"""Submanifold convolution as one node of autograd, in the forms of `modes`.

`convolve` and `correlate` are linear in each of two tensors and made of each other's derivatives, so both can be
differentiated any number of times. They keep their inputs and the map: what is gathered is gathered again.

Kernels are matrices ``[O, K, I]`` of every offset, or vectors ``[K, C]`` of depth-wise convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from geoattn import native
from geoattn._arguments import warn_once
from geoattn.ops.backends import convolution_cpu, convolution_torch
from geoattn.ops.backends.choose import kernels_for
from geoattn.ops.backends.modes import traced, transforms_active
from geoattn.patterns import KernelMap

# Of a `KernelMap`: voxel, neighbor, row, place, ptr.
Pairs = tuple[Tensor, Tensor, Tensor, Tensor, Sequence[int]]


def arguments(kernel_map: KernelMap) -> Pairs:
    """A map as the functions below take it."""
    return kernel_map.voxel, kernel_map.neighbor, kernel_map.row, kernel_map.place, kernel_map.ptr


def convolve(x: Tensor, weight: Tensor, pairs: Pairs, backend: str | None) -> Tensor:
    """``out[p] = sum over o of weight[:, o] @ x[p + o]``, ``[N, O]``, or of ``weight[o] * x[p + o]``, ``[N, C]``."""
    if backend == "reference" or transforms_active(x, weight):
        return convolution_torch.convolve_formula(x, weight, *pairs)
    if traced(x, weight):
        found: Tensor = _convolve_operator(x, weight, *pairs, backend)
        return found
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Convolve.apply(x, weight, *pairs, backend)
    return _convolve(x, weight, *pairs, backend)


def correlate(y: Tensor, x: Tensor, depthwise: bool, pairs: Pairs, backend: str | None) -> Tensor:
    """``out[:, o] = sum over p of y[p] x[p + o]^T``, ``[O, K, I]``, or of ``y[p] * x[p + o]``, ``[K, C]``."""
    if backend == "reference" or transforms_active(y, x):
        return convolution_torch.correlate_formula(y, x, depthwise, *pairs)
    if traced(y, x):
        found: Tensor = _correlate_operator(y, x, depthwise, *pairs, backend)
        return found
    if torch.is_grad_enabled() and (y.requires_grad or x.requires_grad):
        return _Correlate.apply(y, x, depthwise, *pairs, backend)
    return _correlate(y, x, depthwise, *pairs, backend)


def _choose(x: Tensor, depthwise: bool, backend: str | None) -> ModuleType:
    """The implementation; the compiled one computes matrices in float32."""
    if depthwise:
        return convolution_torch
    name = kernels_for(backend, x, "convolution of voxels")
    if name != "cpu" or x.dtype == torch.float64:
        return convolution_torch
    reason = native.outdated("geoattn_convolve")
    if reason is not None:
        warn_once(reason)
    return convolution_torch if reason else convolution_cpu


def _convolve(
    x: Tensor,
    weight: Tensor,
    voxel: Tensor,
    neighbor: Tensor,
    row: Tensor,
    place: Tensor,
    ptr: Sequence[int],
    backend: str | None,
) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    source = x.index_select(0, row).to(wide)
    out = _choose(x, weight.dim() == 2, backend).convolve(source, weight.to(wide), voxel, neighbor, ptr)
    return out.index_select(0, place).to(x.dtype)


def _correlate(
    y: Tensor,
    x: Tensor,
    depthwise: bool,
    voxel: Tensor,
    neighbor: Tensor,
    row: Tensor,
    place: Tensor,
    ptr: Sequence[int],
    backend: str | None,
) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    left, right = (t.index_select(0, row).to(wide) for t in (y, x))
    if depthwise:
        return convolution_torch.correlate_channels(left, right, voxel, neighbor, ptr).to(x.dtype)
    return _choose(x, False, backend).correlate(left, right, voxel, neighbor, ptr).contiguous().to(x.dtype)


# ---- Backward passes, of both forms ----------------------------------------------------------------------------------


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.ptr, ctx.backend = inputs
    ctx.save_for_backward(*(x for x in tensors if isinstance(x, Tensor)))


def _reversed(pairs: Pairs) -> Pairs:
    """Who is read reads: with a kernel whose inputs and outputs are exchanged, the way back of a convolution."""
    voxel, neighbor, row, place, ptr = pairs
    return neighbor, voxel, row, place, ptr


def _exchanged(weight: Tensor) -> Tensor:
    return weight if weight.dim() == 2 else weight.transpose(0, 2)


def _convolve_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, *tensors = ctx.saved_tensors
    pairs, backend = (*tensors, ctx.ptr), ctx.backend
    grad_x = convolve(grad, _exchanged(weight), _reversed(pairs), backend) if ctx.needs_input_grad[0] else None
    grad_weight = correlate(grad, x, weight.dim() == 2, pairs, backend) if ctx.needs_input_grad[1] else None
    return grad_x, grad_weight, *[None] * (len(pairs) + 1)


def _correlate_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    y, x, *tensors = ctx.saved_tensors
    pairs, backend = (*tensors, ctx.ptr), ctx.backend
    grad_y = convolve(x, grad, pairs, backend) if ctx.needs_input_grad[0] else None
    grad_x = convolve(y, _exchanged(grad), _reversed(pairs), backend) if ctx.needs_input_grad[1] else None
    return grad_y, grad_x, *[None] * (len(pairs) + 2)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        out = _convolve(*inputs)
        _keep(ctx, inputs, out)
        return out

    backward = staticmethod(_convolve_backward)


class _Correlate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        out = _correlate(*inputs)
        _keep(ctx, inputs, out)
        return out

    backward = staticmethod(_correlate_backward)


# ---- Compiled, exported, fake ----------------------------------------------------------------------------------------


_PAIRS = "Tensor voxel, Tensor neighbor, Tensor row, Tensor place, SymInt[] ptr, str? backend"
_convolve_operator = torch.library.custom_op(
    "geoattn::convolve", _convolve, mutates_args=(), schema=f"(Tensor x, Tensor weight, {_PAIRS}) -> Tensor"
)
_correlate_operator = torch.library.custom_op(
    "geoattn::correlate",
    _correlate,
    mutates_args=(),
    schema=f"(Tensor y, Tensor x, bool depthwise, {_PAIRS}) -> Tensor",
)


@_convolve_operator.register_fake
def _(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.size(0), weight.size(1 if weight.dim() == 2 else 0))


@_correlate_operator.register_fake
def _(y: Tensor, x: Tensor, depthwise: bool, *pairs: Any) -> Tensor:
    offsets = 2 * len(pairs[-2]) - 1
    return x.new_empty(offsets, x.size(1)) if depthwise else x.new_empty(y.size(1), offsets, x.size(1))


_convolve_operator.register_autograd(_convolve_backward, setup_context=_keep)
_correlate_operator.register_autograd(_correlate_backward, setup_context=_keep)
