"""Fewer points from many: farthest points, one point per voxel, and voxels pooled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from geoattn._arguments import check_tensors, checked_integer
from geoattn.geometry.search import checked_pos, compiled, kernels_run, samples, torch_tree
from geoattn.geometry.search.points import Points
from geoattn.ops.segment import segment_max, segment_mean, segment_min, segment_sum

_REDUCE = {"mean": segment_mean, "max": segment_max, "min": segment_min, "sum": segment_sum}


@torch.compiler.disable  # a loop over choices, and fused arithmetic would round otherwise
def farthest_point_sample(
    pos: Tensor,
    num_samples: int | Tensor | None = None,
    ratio: float | None = None,
    batch: Tensor | None = None,
    start: int | Tensor | None = None,
) -> Tensor:
    """Points spread over each sample: always the one farthest from those chosen so far, ties by the smaller index.

    Eldar et al., "The Farthest Point Strategy for Progressive Image Sampling" (1997); for point clouds, Qi et al.,
    "PointNet++" (2017). Exact, and the same on every device: squared distances are compared, in float64.

    Args:
        pos: Points ``[N, D]``.
        num_samples: How many points to choose of each sample, one number, or one for each ``[S]``; all of one that has
            fewer.
        ratio: Instead, the share of each sample, in (0, 1]: ``ceil(ratio * n)`` of its ``n`` points.
        batch: Sample of every point ``[N]``, ascending; default: one sample.
        start: Index into ``pos`` of the first point to choose, for each sample ``[S]``, or one integer where there is
            one sample; default: the first point of each.

    Returns:
        Indices into ``pos``, int64, sample after sample, in the order of choice within each.

    Raises:
        TypeError: If points are no tensors, or ``num_samples`` or ``start`` is no integer.
        ValueError: On bad shapes, non-finite coordinates, a number or ratio out of range, neither or both of them, or
            a start that is not in its sample.

    Example:
        >>> pos = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
        >>> geoattn.ops.farthest_point_sample(pos, 3)
        tensor([0, 3, 2])
    """
    if (num_samples is None) == (ratio is None):
        raise ValueError(f"give either num_samples or ratio, got {num_samples} and {ratio}")
    counts = num_samples if isinstance(num_samples, Tensor) and num_samples.dim() else None
    if num_samples is not None and counts is None:
        num_samples = checked_integer("num_samples", num_samples, least=1)
    if ratio is not None and not 0 < ratio <= 1:
        raise ValueError(f"ratio must be in (0, 1], got {ratio}")
    key = checked_pos("pos", pos)
    _, ptr = samples("batch", batch, key)
    if key.size(0) == 0:
        return ptr.new_zeros(0)
    first = ptr[:-1] if start is None else _checked_start(start, ptr)
    size = ptr.diff()
    if counts is not None:
        count = torch.minimum(size, _checked_counts(counts, size))
    else:
        count = size.clamp(max=num_samples) if ratio is None else (size.double() * ratio).ceil().long()
    return (compiled if kernels_run(key) else torch_tree).farthest(Points(key, None, ptr, None), first, count)


def grid_sample(
    pos: Tensor, size: float | Sequence[float] | Tensor, batch: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One point per occupied voxel, and the voxel of every point (the grid sampling of Point Transformer V2 and V3).

    Voxels are the cells ``floor(pos / size)``, so where they stand does not depend on the other points.

    Args:
        pos: Points ``[N, D]``.
        size: Side of a voxel in the unit of ``pos``, or one for each dimension ``[D]``.
        batch: Sample of every point ``[N]``, ascending; default: one sample. Samples do not share voxels.

    Returns:
        ``index`` ``[V]``, the point of smallest index of every voxel, and ``cluster`` ``[N]``, the voxel of every
        point, int64. Voxels are ordered by sample, then by their coordinates: ``pos[index]`` are the points
        that are kept, ``x[index][cluster]`` takes their features back to all points, ``batch[index]`` ascends.

    Raises:
        ValueError: On bad shapes, non-finite coordinates, a size that is not positive, or one so small that there
            are more voxels than 64 bits can number.
    """
    cluster, voxels = _voxels(pos, size, batch)
    index = torch.arange(cluster.numel(), device=cluster.device)
    return index.new_empty(voxels).scatter_reduce(0, cluster, index, "amin", include_self=False), cluster


class VoxelPool(NamedTuple):
    """What `voxel_pool` returns, ``V`` voxels ordered by sample, then by their coordinates."""

    x: Tensor  # [V, ...] pooled features
    pos: Tensor  # [V, D] mean positions
    batch: Tensor | None  # [V], None where none was given
    cluster: Tensor  # [N] voxel of every point, int64


def voxel_pool(
    x: Tensor,
    pos: Tensor,
    size: float | Sequence[float] | Tensor,
    batch: Tensor | None = None,
    reduce: Literal["mean", "max", "min", "sum"] = "mean",
) -> VoxelPool:
    """Pool the features of all points in a voxel, as Point Transformer V2's grid pooling.

    Differentiable in ``x`` and ``pos`` (the voxels themselves are fixed), and the same on every run.

    Args:
        x: Features ``[N, ...]``.
        pos: Points ``[N, D]``.
        size: As in `grid_sample`.
        batch: Sample of every point ``[N]``, ascending; default: one sample.
        reduce: How features are pooled. Equal largest values share the gradient.

    Returns:
        Pooled features, mean positions, samples, and the voxel of every point: ``pooled.x[pooled.cluster]`` takes
        features back to all points.

    Raises:
        ValueError: As `grid_sample`, and if ``x`` has another number of points or ``reduce`` is unknown.

    Example:
        >>> pos = torch.tensor([[0.1], [0.9], [1.5]])
        >>> geoattn.ops.voxel_pool(pos, pos, size=1.0).x
        tensor([[0.5000],
                [1.5000]])
    """
    if reduce not in _REDUCE:
        raise ValueError(f"reduce must be one of {', '.join(_REDUCE)}, got {reduce!r}")
    check_tensors(x=x, pos=pos)
    if x.dim() == 0 or x.shape[:1] != pos.shape[:1]:
        raise ValueError(f"expected x [N, ...] for pos [N, D], got {tuple(x.shape)} and {tuple(pos.shape)}")
    cluster, voxels = _voxels(pos, size, batch)
    pooled = _REDUCE[reduce](x, cluster, num_segments=voxels)
    center = segment_mean(pos, cluster, num_segments=voxels)
    sample = None if batch is None else batch.new_empty(voxels).index_put((cluster,), batch)  # equal within a voxel
    return VoxelPool(pooled, center, sample, cluster)


def _voxels(pos: Tensor, size: float | Sequence[float] | Tensor, batch: Tensor | None) -> tuple[Tensor, int]:
    """The voxel of every point, numbered by sample and coordinates, and how many there are."""
    key = checked_pos("pos", pos)
    side = torch.as_tensor(size, dtype=torch.float64, device=key.device)
    if side.dim() > 1 or (side.dim() == 1 and side.numel() != key.size(1)):
        raise ValueError(f"expected size as one number or [{key.size(1)}], got {tuple(side.shape)}")
    if not bool(((side > 0) & (side < math.inf)).all()):
        raise ValueError(f"size must be positive and finite, got {size}")
    _, ptr = samples("batch", batch, key)
    if key.size(0) == 0:
        return ptr.new_zeros(0), 0
    cell = (key.double() / side).floor()
    low, high = cell.amin(0), cell.amax(0)
    extent = [int(n) + 1 if math.isfinite(n) else 1 << 63 for n in (high - low).tolist()]
    exact = float(torch.maximum(low.abs(), high.abs()).max()) < 2**53
    if not exact or math.prod(extent) * (ptr.numel() - 1) >= 1 << 63:
        raise ValueError(f"size {size} is too small: there would be more voxels than 64 bits can number")
    sample = torch.arange(ptr.numel() - 1, device=key.device).repeat_interleave(ptr.diff())
    number = sample
    for d, n in enumerate(extent):
        number = number * n + (cell[:, d] - low[d]).long()
    occupied, cluster = number.unique(return_inverse=True)
    return cluster, occupied.numel()


def _checked_counts(counts: Tensor, size: Tensor) -> Tensor:
    if counts.shape != size.shape or counts.is_floating_point() or counts.device != size.device:
        raise ValueError(
            f"expected num_samples as one integer, or as integers [{size.numel()}], one per sample, on {size.device}, "
            f"got {tuple(counts.shape)} {counts.dtype} on {counts.device}"
        )
    if bool((counts < 1).any()):
        raise ValueError(f"num_samples must be at least 1 for every sample, got {int(counts.min())}")
    return counts.long().contiguous()


def _checked_start(start: int | Tensor, ptr: Tensor) -> Tensor:
    first = start if isinstance(start, Tensor) else torch.tensor([checked_integer("start", start)], device=ptr.device)
    if first.shape != ptr[1:].shape or first.is_floating_point() or first.device != ptr.device:
        raise ValueError(
            f"expected start as integers [{ptr.numel() - 1}], one per sample, on {ptr.device}, "
            f"got {tuple(first.shape)} {first.dtype} on {first.device}"
        )
    outside = ((first < ptr[:-1]) | (first >= ptr[1:])).nonzero()
    if outside.numel():
        s = int(outside[0])
        raise ValueError(f"start {int(first[s])} is not in its sample, points {int(ptr[s])} to {int(ptr[s + 1]) - 1}")
    return first.long().contiguous()
