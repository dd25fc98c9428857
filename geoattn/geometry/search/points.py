"""The input of a neighbor search, and the steps that searches without compiled code share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Points(NamedTuple):
    """Keys and queries of one search, checked: finite, contiguous, float32 or float64, on one device.

    The squared distance of two points is the sum, in float64, of the squared differences of their coordinates, added
    up from the first to the last, every operation rounded by itself (no fused multiply-add). All implementations
    compute exactly this.
    """

    key: Tensor  # [M, D]
    query: Tensor | None  # [N, D] in the type of the keys; None: the keys are the queries
    ptr: Tensor  # [S + 1], the keys of sample s are ptr[s]:ptr[s + 1]
    query_sample: Tensor | None  # [N], -1 where the sample has no keys; None: that of the keys, or 0

    @property
    def num_queries(self) -> int:
        """``N``."""
        return self.key.size(0) if self.query is None else self.query.size(0)

    def key_samples(self) -> Tensor:
        """The sample of every key, ``[M]``."""
        sample = torch.arange(self.ptr.numel() - 1, device=self.key.device)
        return sample.repeat_interleave(self.ptr.diff(), output_size=self.key.size(0))

    def query_samples(self) -> Tensor:
        """The sample of every query, ``[N]``."""
        if self.query is None:
            return self.key_samples()
        if self.query_sample is None:
            return self.ptr.new_zeros(self.num_queries)
        return self.query_sample


class Places(NamedTuple):
    """Keys of one sample at the very same place are searched for as one, however many they are.

    Places are ordered by their first keys, so ties between places are ties between keys.
    """

    pos: Tensor  # [P, D] float64
    sample: Tensor  # [P] ascending
    start: Tensor  # [P], the keys of place p are key[start[p]:][:size[p]], ascending
    size: Tensor  # [P]
    key: Tensor  # [M]


def places(points: Points) -> Places:
    """The places of the keys."""
    pos, sample = points.key.double() + 0.0, points.key_samples()  # -0.0 becomes 0.0, which some sorts tell apart
    order = torch.arange(pos.size(0), device=pos.device)
    for column in (*pos.unbind(1), sample):
        order = order[column[order].argsort(stable=True)]
    pos, sample = pos[order], sample[order]
    new = torch.ones_like(order, dtype=torch.bool)
    new[1:] = (pos[1:] != pos[:-1]).any(1) | (sample[1:] != sample[:-1])
    start = new.nonzero().squeeze(1)
    size = torch.cat([start[1:], start.new_tensor([len(order)])]) - start
    first = order[start].argsort()
    start, size = start[first], size[first]
    return Places(pos[start], sample[start], start, size, order)


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Of points ``[..., D]`` in float64, broadcast against each other: ``[...]``."""
    total = (a[..., 0] - b[..., 0]).square()
    for d in range(1, a.size(-1)):
        total = total + (a[..., d] - b[..., d]).square()
    return total


class Hits(NamedTuple):
    """Candidates: ``target`` (a place or a key) is at the squared ``distance`` from ``query``."""

    query: Tensor  # [H]
    target: Tensor  # [H]
    distance: Tensor  # [H]


def nearest_first(hits: Hits, k: int | None) -> Hits:
    """Sorted by query, distance and target; of every query the first ``k``."""
    order = hits.target.argsort(stable=True)
    for column in (hits.distance, hits.query):
        order = order[column[order].argsort(stable=True)]
    if k is not None:
        order = order[rank_in_run(hits.query[order]) < k]
    return Hits(*(column[order] for column in hits))


def rank_in_run(x: Tensor) -> Tensor:
    """Of every entry of sorted ``x [H]``, how many before it are equal."""
    position = torch.arange(len(x), device=x.device)
    first = torch.zeros_like(position)
    first[1:] = position[1:].where(x[1:] != x[:-1], 0)
    return position - first.cummax(0).values


def rows_of_keys(hits: Hits, found: Places, num_queries: int, k: int | None) -> tuple[Tensor, Tensor]:
    """``rowptr`` and ``col`` from hits of places, of which every query has its first ``k`` at least, in any order."""
    query, place, distance = hits
    count = found.size[place] if k is None else found.size[place].clamp(max=k)
    hit = torch.arange(len(place), device=place.device).repeat_interleave(count)
    within = torch.arange(len(hit), device=hit.device) - (count.cumsum(0) - count)[hit]
    key = found.key[found.start[place[hit]] + within]
    query, col, _ = nearest_first(Hits(query[hit], key, distance[hit]), k)
    degree = torch.bincount(query, minlength=num_queries)
    return torch.cat([degree.new_zeros(1), degree.cumsum(0)]), col
