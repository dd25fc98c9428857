"""Neighbor search in point sets, exact and the same on every run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

Array = NDArray[np.float64]
Index = NDArray[np.int64]


def knn(
    pos: Tensor,
    k: int,
    batch: Tensor | None = None,
    query_pos: Tensor | None = None,
    query_batch: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The ``k`` nearest keys of every query, nearest first, ties broken by the smaller index.

    Distances are compared in float64. A query whose sample has fewer than ``k`` keys gets them all.

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
        ValueError: On bad shapes, non-finite coordinates or ``k < 1``.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")

    def search(key: Array, query: Array) -> list[Index]:
        tree = cKDTree(key)
        count = min(k, len(key))
        # One neighbor more tells whether the k-th distance is shared by a key the tree left out.
        found = tree.query(query, k=np.arange(1, min(count + 1, len(key)) + 1))
        distance, index = np.asarray(found[0]), np.asarray(found[1], dtype=np.int64)
        rows = list(_by_distance(key, query, index, count))
        reach = distance[:, count - 1] * (1 + 1e-9)
        tied: list[int] = np.flatnonzero(distance[:, -1] <= reach).tolist() if len(key) > count else []
        for i in tied:
            candidates = np.asarray(tree.query_ball_point(query[i], reach[i]), dtype=np.int64)
            rows[i] = next(_by_distance(key, query[i : i + 1], candidates[None], count))
        return rows

    return _per_sample(search, pos, batch, query_pos, query_batch)


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
        ValueError: On bad shapes, non-finite coordinates, ``r < 0`` or ``max_neighbors < 1``.
    """
    if not r >= 0:
        raise ValueError(f"r must not be negative, got {r}")
    if max_neighbors is not None and max_neighbors < 1:
        raise ValueError(f"max_neighbors must be at least 1, got {max_neighbors}")

    def search(key: Array, query: Array) -> list[Index]:
        # The tree compares squares, which rounds differently at the rim: ask for a little more, then compare.
        found = cKDTree(key).query_ball_point(query, r * (1 + 1e-9))
        rows = []
        for i, candidates in enumerate(found):
            index = np.asarray(candidates, dtype=np.int64)
            index = index[_distance(key[index], query[i]) <= r]
            rows.append(next(_by_distance(key, query[i : i + 1], index[None], max_neighbors or len(index))))
        return rows

    return _per_sample(search, pos, batch, query_pos, query_batch)


def _distance(key: Array, query: Array) -> Array:
    return np.asarray(np.sqrt(((key - query) ** 2).sum(-1)), dtype=np.float64)


def _by_distance(key: Array, query: Array, index: Index, count: int) -> Iterator[Index]:
    """Of each row of candidates, the ``count`` nearest, ordered by distance and then by index."""
    index = np.sort(index, axis=-1)
    order = np.argsort(_distance(key[index], query[:, None]), axis=-1, kind="stable")[:, :count]
    yield from np.take_along_axis(index, order, axis=-1)


def _per_sample(
    search: Callable[[Array, Array], list[Index]],
    pos: Tensor,
    batch: Tensor | None,
    query_pos: Tensor | None,
    query_batch: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Run ``search`` on each sample by itself and join its rows."""
    if query_pos is None:
        query_pos, query_batch = pos, batch
    if pos.dim() != 2 or query_pos.dim() != 2 or pos.size(1) != query_pos.size(1):
        raise ValueError(
            f"expected pos [M, D] and query_pos [N, D], got {tuple(pos.shape)} and {tuple(query_pos.shape)}"
        )
    if (batch is None) != (query_batch is None):
        raise ValueError("give batch and query_batch both, or neither")
    for name, value in (("pos", pos), ("query_pos", query_pos)):
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} has NaN or infinite coordinates")
    key_batch = _sample_of("batch", batch, pos.size(0))
    of_query = _sample_of("query_batch", query_batch, query_pos.size(0))
    key = pos.detach().cpu().double().numpy()
    query = query_pos.detach().cpu().double().numpy()

    rows: list[Index] = []
    for sample in np.unique(of_query):
        lo, hi = np.searchsorted(key_batch, [sample, sample + 1])
        mine = query[of_query == sample]
        if hi > lo:
            rows += [row + lo for row in search(key[lo:hi], mine)]
        else:
            rows += [np.zeros(0, dtype=np.int64)] * len(mine)
    rowptr = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=rowptr[1:])
    col = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
    return torch.from_numpy(rowptr).to(pos.device), torch.from_numpy(col).to(pos.device)


def _sample_of(name: str, batch: Tensor | None, count: int) -> Index:
    if batch is None:
        return np.zeros(count, dtype=np.int64)
    if batch.shape != (count,):
        raise ValueError(f"expected {name} [{count}], got {tuple(batch.shape)}")
    if bool((batch[1:] < batch[:-1]).any()):
        raise ValueError(f"{name} must be ascending: the points of one sample stand together")
    return batch.cpu().numpy().astype(np.int64)
