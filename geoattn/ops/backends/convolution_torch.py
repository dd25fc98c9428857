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
    """``[N, O]`` of ``[N, I]`` and ``[O, K, I]``, voxels in the order of the map."""
    out = x @ weight[:, len(ptr) - 1].t()
    for offset, reader, read in _chunks(voxel, neighbor, ptr, weight.size(0) + weight.size(2)):
        # No voxel comes twice: also where additions are atomic, their order is that of the offsets.
        out.index_add_(0, reader, x.index_select(0, read) @ weight[:, offset].t())
    return out


def correlate(y: Tensor, x: Tensor, voxel: Tensor, neighbor: Tensor, ptr: Sequence[int]) -> Tensor:
    """``[O, K, I]`` of ``[N, O]`` and ``[N, I]``."""
    out = x.new_zeros(y.size(1), 2 * len(ptr) - 1, x.size(1))
    out[:, len(ptr) - 1] = y.t() @ x
    for offset, reader, read in _chunks(voxel, neighbor, ptr, y.size(1) + x.size(1)):
        out[:, offset] += y.index_select(0, reader).t() @ x.index_select(0, read)
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
    out = source @ kernel[:, len(ptr) - 1].t()
    for offset, reader, read in offsets(voxel, neighbor, ptr):
        out = out.index_add(0, reader, source.index_select(0, read) @ kernel[:, offset].t())
    return out.index_select(0, place).to(x.dtype)


def correlate_formula(
    y: Tensor, x: Tensor, voxel: Tensor, neighbor: Tensor, row: Tensor, place: Tensor, ptr: Sequence[int]
) -> Tensor:
    """Likewise."""
    wide = torch.promote_types(x.dtype, torch.float32)
    left, right = (t.index_select(0, row).to(wide) for t in (y, x))
    found = [left.t() @ right] * (2 * len(ptr) - 1)
    for offset, reader, read in offsets(voxel, neighbor, ptr):
        found[offset] = left.index_select(0, reader).t() @ right.index_select(0, read)
    return torch.stack(found, 1).to(x.dtype)
