"""Submanifold convolution in plain torch: some pairs at a time, and as formulas that can be transformed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from geoattn.patterns.kernel_map import offsets

# Rows that are gathered at once hold so many numbers: on a CPU they stay in cache; a GPU needs large ones to be worth
# the launches.
_CHUNK = {"cpu": 1 << 17, "cuda": 1 << 25}


def convolve(x: Tensor, weight: Tensor, voxel: Tensor, neighbor: Tensor, ptr: Sequence[int]) -> Tensor:
    """``[N, O]`` of ``[N, I]`` and ``[O, K, I]``, or ``[N, C]`` of ``[N, C]`` and ``[K, C]``; voxels as in the map."""
    out = _product(x, weight, len(ptr) - 1)
    for offset, reader, read in _chunks(voxel, neighbor, ptr, out.size(1) + x.size(1)):
        # No voxel comes twice: also where additions are atomic, their order is that of the offsets.
        out.index_add_(0, reader, _product(x.index_select(0, read), weight, offset))
    return out


def _product(x: Tensor, weight: Tensor, offset: int) -> Tensor:
    return x * weight[offset] if weight.dim() == 2 else x @ weight[:, offset].t()


def correlate(y: Tensor, x: Tensor, voxel: Tensor, neighbor: Tensor, ptr: Sequence[int]) -> Tensor:
    """``[O, K, I]`` of ``[N, O]`` and ``[N, I]``."""
    out = x.new_zeros(y.size(1), 2 * len(ptr) - 1, x.size(1))
    out[:, len(ptr) - 1] = y.t() @ x
    for offset, reader, read in _chunks(voxel, neighbor, ptr, y.size(1) + x.size(1)):
        out[:, offset] += y.index_select(0, reader).t() @ x.index_select(0, read)
    return out


def correlate_channels(y: Tensor, x: Tensor, voxel: Tensor, neighbor: Tensor, ptr: Sequence[int]) -> Tensor:
    """``[K, C]`` of ``[N, C]`` and ``[N, C]``."""
    out = x.new_zeros(2 * len(ptr) - 1, x.size(1))
    out[len(ptr) - 1] = (y * x).sum(0)
    for offset, reader, read in _chunks(voxel, neighbor, ptr, y.size(1) + x.size(1)):
        out[offset] += (y.index_select(0, reader) * x.index_select(0, read)).sum(0)
    return out


def _chunks(voxel: Tensor, neighbor: Tensor, ptr: Sequence[int], width: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Pairs of every offset but the centre, some at a time."""
    size = max(_CHUNK["cpu" if voxel.device.type == "cpu" else "cuda"] // max(width, 1), 1)
    for offset, reader, read in offsets(voxel, neighbor, ptr):
        for begin in range(0, len(reader), size):
            yield offset, reader[begin : begin + size], read[begin : begin + size]


def convolve_formula(
    x: Tensor, weight: Tensor, voxel: Tensor, neighbor: Tensor, row: Tensor, place: Tensor, ptr: Sequence[int]
) -> Tensor:
    """Of features in their own order, nothing in place."""
    wide = torch.promote_types(x.dtype, torch.float32)
    source, kernel = x.index_select(0, row).to(wide), weight.to(wide)
    out = _product(source, kernel, len(ptr) - 1)
    for offset, reader, read in offsets(voxel, neighbor, ptr):
        out = out.index_add(0, reader, _product(source.index_select(0, read), kernel, offset))
    return out.index_select(0, place).to(x.dtype)


def correlate_formula(
    y: Tensor,
    x: Tensor,
    depthwise: bool,
    voxel: Tensor,
    neighbor: Tensor,
    row: Tensor,
    place: Tensor,
    ptr: Sequence[int],
) -> Tensor:
    """Likewise."""
    wide = torch.promote_types(x.dtype, torch.float32)
    left, right = (t.index_select(0, row).to(wide) for t in (y, x))

    def summed(y: Tensor, x: Tensor) -> Tensor:
        return (y * x).sum(0) if depthwise else y.t() @ x

    found = [summed(left, right)] * (2 * len(ptr) - 1)
    for offset, reader, read in offsets(voxel, neighbor, ptr):
        found[offset] = summed(left.index_select(0, reader), right.index_select(0, read))
    return torch.stack(found, 0 if depthwise else 1).to(x.dtype)
