"""Neighbor search in point sets: exact, the same on every device and on every run.

Trees search among few dimensions, products of matrices or blocks among many; `geoattn.ops.knn` and `geoattn.ops.radius`
choose. All compute the squared distance that `points.Points` defines, so their results are the same to the bit.
"""

from __future__ import annotations

import math
from types import ModuleType

import torch
from torch import Tensor

from geoattn import native
from geoattn._arguments import check_tensors, checked_integer
from geoattn._forced import forced
from geoattn.geometry.search import brute_force, compiled, scipy_tree, torch_tree
from geoattn.geometry.search.points import Points

# Without the compiled kernels: dimensions from which a matrix product of all pairs is faster than a tree, and points of
# a sample up to which it is on CPUs, where trees gain much if the points fill few of their dimensions.
_WIDE, _MANY = 12, 30_000


@torch.compiler.disable  # sizes depend on the data, and fused arithmetic would round otherwise
def knn(
    pos: Tensor,
    k: int,
    batch: Tensor | None = None,
    query_pos: Tensor | None = None,
    query_batch: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The ``k`` nearest keys of every query, nearest first, ties broken by the smaller index.

    Squared distances are compared, in float64. A query whose sample has fewer than ``k`` keys gets them all.

    Args:
        pos: Keys ``[M, D]``.
        k: Number of neighbors, at least 1.
        batch: Sample of every key ``[M]``, ascending; default: one sample.
        query_pos: Queries ``[N, D]``; default: the keys, each of which then is its own first neighbor
            (or a key of smaller index at the very same place).
        query_batch: Sample of every query ``[N]``, ascending.

    Returns:
        ``rowptr`` ``[N + 1]`` and ``col`` ``[E]``, int64: the keys of query ``i`` are
        ``col[rowptr[i]:rowptr[i + 1]]``.

    Raises:
        TypeError: If points are no tensors, or ``k`` is no integer.
        ValueError: On bad shapes, non-finite coordinates or ``k < 1``.
    """
    k = checked_integer("k", k, least=1)
    points = _points(pos, batch, query_pos, query_batch)
    if _none(points):
        return _no_rows(points)
    return _implementation(points).knn(points, k, math.inf)


@torch.compiler.disable
def radius(
    pos: Tensor,
    r: float,
    batch: Tensor | None = None,
    query_pos: Tensor | None = None,
    query_batch: Tensor | None = None,
    max_neighbors: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The keys within distance ``r`` of every query, nearest first, ties broken by the smaller index.

    Distances are compared in float64; a key at distance ``r`` is in.

    Args:
        pos: Keys ``[M, D]``.
        r: Radius, in the unit of ``pos``.
        batch: Sample of every key ``[M]``, ascending; default: one sample.
        query_pos: Queries ``[N, D]``; default: the keys, each of which then is its own neighbor.
        query_batch: Sample of every query ``[N]``, ascending.
        max_neighbors: Keep at most so many, the nearest; default: all.

    Returns:
        ``rowptr`` ``[N + 1]`` and ``col`` ``[E]``, int64, as `knn`.

    Raises:
        TypeError: If points are no tensors, or ``max_neighbors`` is no integer.
        ValueError: On bad shapes, non-finite coordinates, ``r < 0`` or ``max_neighbors < 1``.
    """
    if not r >= 0:
        raise ValueError(f"r must not be negative, got {r}")
    if max_neighbors is not None:
        max_neighbors = checked_integer("max_neighbors", max_neighbors, least=1)
    points = _points(pos, batch, query_pos, query_batch)
    if _none(points):
        return _no_rows(points)
    limit = _largest_square(float(r))
    if max_neighbors is None:
        return _implementation(points).radius(points, limit)
    return _implementation(points).knn(points, max_neighbors, limit)


def kernels_run(pos: Tensor) -> bool:
    """Whether the compiled kernels search among points like these: not if plain torch is forced.

    Raises:
        RuntimeError: If they are forced and cannot.
    """
    wanted = forced()
    if wanted in ("torch", "reference"):
        return False
    reason = native.missing() if native.library() is None else None
    if pos.device.type != "cpu":
        reason = f"the CPU kernels do not run on {pos.device.type}"
    if wanted == "cpu" and reason is not None:
        raise RuntimeError(f"backend 'cpu' was asked for, but {reason}")
    if wanted is None:
        native.warn_if_missing(pos)
    return reason is None


def _implementation(points: Points) -> ModuleType:
    """The fastest that can search here; all give the same rows."""
    if kernels_run(points.key):
        return compiled
    wide = points.key.size(1) >= _WIDE
    if points.key.device.type != "cpu":
        return brute_force if wide else torch_tree
    return brute_force if wide and int(points.ptr.diff().max()) <= _MANY else scipy_tree


def _largest_square(r: float) -> float:
    """The largest number whose square root, rounded, is at most ``r``: distances are compared by their squares."""
    square = r * r
    while math.sqrt(square) > r:
        square = math.nextafter(square, 0)
    while square < math.inf and math.sqrt(math.nextafter(square, math.inf)) <= r:
        square = math.nextafter(square, math.inf)
    return square


def _points(pos: Tensor, batch: Tensor | None, query_pos: Tensor | None, query_batch: Tensor | None) -> Points:
    key = checked_pos("pos", pos)
    if query_pos is None:
        if query_batch is not None:
            raise ValueError("query_batch was given without query_pos")
        ids, ptr = samples("batch", batch, key)
        return Points(key, None, ptr, None)
    query = checked_pos("query_pos", query_pos)
    if key.size(1) != query.size(1) or key.device != query.device:
        raise ValueError(
            f"expected pos [M, D] and query_pos [N, D] on one device, "
            f"got {tuple(pos.shape)} on {pos.device} and {tuple(query_pos.shape)} on {query_pos.device}"
        )
    if (batch is None) != (query_batch is None):
        raise ValueError("give batch and query_batch both, or neither")
    dtype = torch.promote_types(key.dtype, query.dtype)
    key, query = key.to(dtype), query.to(dtype)
    ids, ptr = samples("batch", batch, key)
    if batch is None or query_batch is None:
        return Points(key, query, ptr, None)
    samples("query_batch", query_batch, query)
    wanted = query_batch.long().contiguous()
    if ids.numel() == 0:
        return Points(key, query, ptr, torch.full_like(wanted, -1))
    sample = torch.searchsorted(ids, wanted).clamp(max=ids.numel() - 1)
    return Points(key, query, ptr, sample.where(ids[sample] == wanted, -1))


def checked_pos(name: str, pos: Tensor) -> Tensor:
    """``pos [N, D]``, detached and contiguous, in float32 if that holds it exactly, else in float64."""
    check_tensors(**{name: pos})
    if pos.dim() != 2 or pos.size(1) == 0:
        raise ValueError(f"expected {name} [N, D] with D at least 1, got {tuple(pos.shape)}")
    if pos.is_complex() or pos.dtype == torch.bool:
        raise ValueError(f"{name} must have real coordinates, got {pos.dtype}")
    if pos.size(0) >= 2**31 - 1:
        raise ValueError(f"{name} has {pos.size(0)} points; at most {2**31 - 2} can be searched")
    half = pos.dtype in (torch.float16, torch.bfloat16)
    pos = pos.detach().to(torch.float32 if half or pos.dtype == torch.float32 else torch.float64).contiguous()
    highest = _highest(pos)
    if not math.isfinite(highest):
        raise ValueError(f"{name} has NaN or infinite coordinates")
    if highest > 1e150:
        raise ValueError(f"{name} has coordinates beyond 1e150, whose squares are more than float64 can hold")
    return pos


def _highest(pos: Tensor) -> float:
    """The largest magnitude, NaN if there is a NaN."""
    if not pos.numel():
        return 0.0
    if pos.device.type == "cpu":
        # Not by torch: it wakes all its threads for this, and they go on spinning for longer than a search may take.
        return max(abs(float(pos.numpy().min())), abs(float(pos.numpy().max())))
    low, high = pos.aminmax()
    return max(abs(float(low)), abs(float(high)))


def samples(name: str, batch: Tensor | None, pos: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of the samples that have points ``[S]``, and where each one's points begin and end ``[S + 1]``."""
    count = pos.size(0)
    if batch is None:
        return torch.zeros(1, dtype=torch.int64, device=pos.device), torch.tensor([0, count], device=pos.device)
    check_tensors(**{name: batch})
    if batch.shape != (count,):
        hint = "; are the positions transposed?" if batch.shape == (pos.size(1),) else ""
        raise ValueError(
            f"expected {name} [{count}], the sample of each of {count} points {list(pos.shape)}, "
            f"got {list(batch.shape)}{hint}"
        )
    if batch.is_floating_point() or batch.dtype == torch.bool or batch.device != pos.device:
        raise ValueError(f"{name} must have integers on {pos.device}, got {batch.dtype} on {batch.device}")
    if bool((batch[1:] < batch[:-1]).any()):
        raise ValueError(f"{name} must be ascending: the points of one sample stand together")
    ids, size = batch.long().unique_consecutive(return_counts=True)
    return ids, torch.cat([size.new_zeros(1), size.cumsum(0)])


def _none(points: Points) -> bool:
    sample = points.query_sample
    return 0 in (points.key.size(0), points.num_queries) or (sample is not None and bool((sample < 0).all()))


def _no_rows(points: Points) -> tuple[Tensor, Tensor]:
    return points.ptr.new_zeros(points.num_queries + 1), points.ptr.new_zeros(0)
