"""Neighbor search in scipy's k-d tree, for CPUs without the compiled kernels.

The tree finds candidates a little farther than asked; what is kept is decided by exact distances and indices.
"""

from __future__ import annotations

import math

import numpy as np
import scipy
import torch
from torch import Tensor

from geoattn.geometry.search.points import Hits, Places, Points, places, rows_of_keys, squared_distance

_MARGIN = 1 + 1e-9  # far more than the tree's distances and ours can differ by rounding


def knn(points: Points, k: int, limit: float) -> tuple[Tensor, Tensor]:
    """The ``k`` nearest keys of every query within the squared distance ``limit``."""
    found = places(points)
    tree, query, diameter = _tree(points, found)
    reach = _reach(limit, diameter)
    queries, hits = np.arange(len(query)), []
    wanted = k
    while len(queries):
        # One place more than wanted tells whether others are as far as the last; then there may be more of them.
        wanted = min(wanted + 1, tree.n)
        answer = tree.query(
            query[queries], np.arange(1, wanted + 1), distance_upper_bound=reach, workers=torch.get_num_threads()
        )
        distance, place = np.asarray(answer[0]), np.asarray(answer[1])
        tied = distance[:, -1] <= distance[:, min(k, wanted) - 1] * _MARGIN
        tied &= (wanted > k) & (wanted < tree.n) & np.isfinite(distance[:, -1])
        row, column = np.nonzero(np.isfinite(distance) & ~tied[:, None])
        hits.append((queries[row], place[row, column]))
        queries = queries[tied]
        wanted *= 2
    return _exact(points, found, np.concatenate([h[0] for h in hits]), np.concatenate([h[1] for h in hits]), limit, k)


def radius(points: Points, limit: float) -> tuple[Tensor, Tensor]:
    """All keys within the squared distance ``limit`` of every query."""
    found = places(points)
    tree, query, diameter = _tree(points, found)
    pairs = scipy.spatial.cKDTree(query).sparse_distance_matrix(tree, _reach(limit, diameter), output_type="ndarray")
    return _exact(points, found, pairs["i"], pairs["j"], limit, None)


def _tree(points: Points, found: Places) -> tuple[scipy.spatial.cKDTree, np.ndarray, float]:
    """One tree for all samples, which stand apart in one more dimension; the queries; and what is far enough."""
    query = points.key if points.query is None else points.query
    both = torch.cat([found.pos, query.double()])
    diameter = float((both.amax(0) - both.amin(0)).norm()) * _MARGIN
    apart = 2 * diameter + 1
    key = torch.cat([found.pos, found.sample.unsqueeze(1) * apart], 1)
    query = torch.cat([query.double(), points.query_samples().unsqueeze(1) * apart], 1)
    return scipy.spatial.cKDTree(key.numpy()), query.numpy(), diameter


def _reach(limit: float, diameter: float) -> float:
    """What to ask the tree for, whose bound is exclusive and is squared."""
    return max(min(math.sqrt(limit), diameter) * _MARGIN, 1e-150)


def _exact(
    points: Points, found: Places, query: np.ndarray, place: np.ndarray, limit: float, k: int | None
) -> tuple[Tensor, Tensor]:
    """Rows of the keys at the candidate places that are within ``limit``, the first ``k`` of them."""
    of, at = torch.from_numpy(query.astype(np.int64)), torch.from_numpy(place.astype(np.int64))
    pos = points.key if points.query is None else points.query
    distance = squared_distance(pos[of].double(), found.pos[at])
    near = distance <= limit
    return rows_of_keys(Hits(of[near], at[near], distance[near]), found, points.num_queries, k)
