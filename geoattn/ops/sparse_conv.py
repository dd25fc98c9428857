"""Convolution on the occupied voxels of a grid, whose neighbors were found before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geoattn._arguments import check_tensors
from geoattn._forced import forced
from geoattn.ops.backends import convolution
from geoattn.ops.backends.modes import autocast, without_autocast
from geoattn.patterns import KernelMap


def submanifold_conv(x: Tensor, weight: Tensor, kernel_map: KernelMap, bias: Tensor | None = None) -> Tensor:
    """Submanifold sparse convolution (Graham et al. 2018): what `geoattn.nn.SubMConv3d` computes.

    Half types are accumulated in float32. Differentiable any number of times. Of what it gathers nothing is kept: the
    backward pass gathers again. The same input gives the same bits, run after run.

    Args:
        x: Features of the voxels ``[N, I]``.
        weight: ``[O, k, k, k, I]``, kernel axes in the order of the coordinates; of a depth-wise convolution, which
            does not mix channels, ``[k, k, k, I]``.
        kernel_map: Of ``N`` voxels and this kernel size.
        bias: ``[O]``.

    Returns:
        ``[N, O]`` in the type of ``x``, or of autocast.

    Raises:
        TypeError: If an argument is no tensor, or ``kernel_map`` no `KernelMap`.
        ValueError: If shapes, types, devices or kernel sizes do not fit together.
        RuntimeError: If a backend was forced that has no such convolution.
    """
    _check(x, weight, kernel_map, bias)
    device = x.device.type
    cast: list[Any] = autocast(device, x, weight, bias)
    with without_autocast(device):
        kernel = cast[1].flatten(-4, -2)
        out = convolution.convolve(cast[0], kernel, convolution.arguments(kernel_map), forced())
        return out if bias is None else out + cast[2]


def _check(x: Tensor, weight: Tensor, kernel_map: KernelMap, bias: Tensor | None) -> None:
    if not isinstance(kernel_map, KernelMap):
        raise TypeError(f"expected a KernelMap, got {type(kernel_map).__name__}; make one: KernelMap.from_grid")
    check_tensors(x=x, weight=weight)
    if weight.dim() not in (4, 5) or tuple(weight.shape[-4:-1]) != kernel_map.kernel_size:
        kernel = ", ".join(map(str, kernel_map.kernel_size))
        raise ValueError(
            f"expected weight [O, {kernel}, I], or depth-wise [{kernel}, I], for {kernel_map}, got {list(weight.shape)}"
        )
    if x.shape != (kernel_map.num_voxels, weight.size(-1)):
        raise ValueError(f"expected x [{kernel_map.num_voxels}, {weight.size(-1)}], got {list(x.shape)}")
    given = {"x": x, "weight": weight}
    if bias is not None:
        check_tensors(bias=bias)
        channels = weight.size(0 if weight.dim() == 5 else -1)
        if bias.shape != (channels,):
            raise ValueError(f"expected bias [{channels}], got {list(bias.shape)}")
        given["bias"] = bias
    for name, value in given.items():
        if value.device != kernel_map.device:
            raise ValueError(f"{name} is on {value.device} and kernel_map on {kernel_map.device}; move one of them")
        if not value.is_floating_point() or (value.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type)):
            raise ValueError(f"x, weight and bias must have one floating type, got {name} {value.dtype}, x {x.dtype}")
