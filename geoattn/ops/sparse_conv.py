"""Convolution on the occupied voxels of a grid, whose neighbors were found before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geoattn._arguments import check_tensors
from geoattn.ops.backends.modes import autocast, transforms_active, without_autocast
from geoattn.patterns import KernelMap

# Rows that are gathered at once hold so many numbers: on a CPU they stay in cache; a GPU needs large ones to be worth
# the launches.
_CHUNK = {"cpu": 1 << 17, "cuda": 1 << 25}


def submanifold_conv(x: Tensor, weight: Tensor, kernel_map: KernelMap, bias: Tensor | None = None) -> Tensor:
    """Submanifold sparse convolution (Graham et al. 2018): what `geoattn.nn.SubMConv3d` computes.

    Half types are accumulated in float32. Differentiable any number of times. Of what it gathers nothing is kept: the
    backward pass gathers again.

    Args:
        x: Features of the voxels ``[N, I]``.
        weight: ``[O, k, k, k, I]``, kernel axes in the order of the coordinates.
        kernel_map: Of ``N`` voxels and this kernel size.
        bias: ``[O]``.

    Returns:
        ``[N, O]`` in the type of ``x``, or of autocast.

    Raises:
        TypeError: If an argument is no tensor, or ``kernel_map`` no `KernelMap`.
        ValueError: If shapes, types, devices or kernel sizes do not fit together.
    """
    _check(x, weight, kernel_map, bias)
    device = x.device.type
    cast: list[Any] = autocast(device, x, weight, bias)
    with without_autocast(device):
        out = _convolve(cast[0], cast[1].flatten(1, 3), kernel_map)
        return out if bias is None else out + cast[2]


def _check(x: Tensor, weight: Tensor, kernel_map: KernelMap, bias: Tensor | None) -> None:
    if not isinstance(kernel_map, KernelMap):
        raise TypeError(f"expected a KernelMap, got {type(kernel_map).__name__}; make one: KernelMap.from_grid")
    check_tensors(x=x, weight=weight)
    if weight.dim() != 5 or tuple(weight.shape[1:4]) != kernel_map.kernel_size:
        kernel = ", ".join(map(str, kernel_map.kernel_size))
        raise ValueError(f"expected weight [O, {kernel}, I] for {kernel_map}, got {list(weight.shape)}")
    if x.shape != (kernel_map.num_voxels, weight.size(4)):
        raise ValueError(f"expected x [{kernel_map.num_voxels}, {weight.size(4)}], got {list(x.shape)}")
    given = {"x": x, "weight": weight}
    if bias is not None:
        check_tensors(bias=bias)
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"expected bias [{weight.size(0)}], got {list(bias.shape)}")
        given["bias"] = bias
    for name, value in given.items():
        if value.device != kernel_map.device:
            raise ValueError(f"{name} is on {value.device} and kernel_map on {kernel_map.device}; move one of them")
        if not value.is_floating_point() or (value.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type)):
            raise ValueError(f"x, weight and bias must have one floating type, got {name} {value.dtype}, x {x.dtype}")


# Both functions are linear in each of two tensors, and their gradients are made of the two again. Kernels are
# [O, K, I]: their offsets in one axis.


def _convolve(x: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
    """``out[p] = sum over o of weight[:, o] @ x[p + o]``, ``[N, O]``."""
    if transforms_active(x, weight):
        return _convolve_formula(x, weight, kernel_map)
    found: Tensor = _Convolve.apply(x, weight, kernel_map)
    return found


def _correlate(y: Tensor, x: Tensor, kernel_map: KernelMap) -> Tensor:
    """``out[:, o] = sum over p of y[p] x[p + o]^T``, ``[O, K, I]``."""
    if transforms_active(y, x):
        return _correlate_formula(y, x, kernel_map)
    found: Tensor = _Correlate.apply(y, x, kernel_map)
    return found


def _transposed(weight: Tensor) -> Tensor:
    """The kernel that goes from outputs back to inputs: voxel ``p`` is read by ``p - o``."""
    return weight.flip(1).transpose(0, 2)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.kernel_map = kernel_map
        wide = torch.promote_types(x.dtype, torch.float32)
        kernel = weight.to(wide)
        out = x.to(wide) @ kernel[:, kernel_map.num_offsets // 2].t()
        for offset, voxel, neighbor in _chunks(kernel_map, sum(weight.shape[::2])):
            out.index_add_(0, voxel, x.index_select(0, neighbor).to(wide) @ kernel[:, offset].t())
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        of_x = _convolve(grad, _transposed(weight), ctx.kernel_map) if ctx.needs_input_grad[0] else None
        of_weight = _correlate(grad, x, ctx.kernel_map) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, None


class _Correlate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, kernel_map: KernelMap) -> Tensor:
        ctx.save_for_backward(y, x)
        ctx.kernel_map = kernel_map
        wide = torch.promote_types(x.dtype, torch.float32)
        out = x.new_zeros(y.size(1), kernel_map.num_offsets, x.size(1), dtype=wide)
        out[:, kernel_map.num_offsets // 2] = y.to(wide).t() @ x.to(wide)
        for offset, voxel, neighbor in _chunks(kernel_map, y.size(1) + x.size(1)):
            out[:, offset] += y.index_select(0, voxel).to(wide).t() @ x.index_select(0, neighbor).to(wide)
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        y, x = ctx.saved_tensors
        of_y = _convolve(x, grad, ctx.kernel_map) if ctx.needs_input_grad[0] else None
        of_x = _convolve(y, _transposed(grad), ctx.kernel_map) if ctx.needs_input_grad[1] else None
        return of_y, of_x, None


def _chunks(kernel_map: KernelMap, width: int) -> Any:
    """Pairs of every offset but the centre, some at a time."""
    size = max(_CHUNK["cpu" if kernel_map.device.type == "cpu" else "cuda"] // max(width, 1), 1)
    for offset, voxel, neighbor in kernel_map.pairs():
        for begin in range(0, len(voxel), size):
            yield offset, voxel[begin : begin + size], neighbor[begin : begin + size]


def _convolve_formula(x: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
    """For transforms of torch: nothing in place."""
    wide = torch.promote_types(x.dtype, torch.float32)
    source, kernel = x.to(wide), weight.to(wide)
    out = source @ kernel[:, kernel_map.num_offsets // 2].t()
    for offset, voxel, neighbor in kernel_map.pairs():
        out = out.index_add(0, voxel, source.index_select(0, neighbor) @ kernel[:, offset].t())
    return out.to(x.dtype)


def _correlate_formula(y: Tensor, x: Tensor, kernel_map: KernelMap) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    left, right = y.to(wide), x.to(wide)
    out: list[Tensor] = [left.t() @ right] * kernel_map.num_offsets
    for offset, voxel, neighbor in kernel_map.pairs():
        out[offset] = left.index_select(0, voxel).t() @ right.index_select(0, neighbor)
    return torch.stack(out, 1).to(x.dtype)
