"""What a neighbor search is given, and the last steps that searches without compiled code share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Points(NamedTuple):
    """Keys and queries of one search, checked: finite, contiguous, float32 or float64, on one device.

    The squared distance of two points is the sum, in float64, of the squared differences of their coordinates, added
    up from the first to the last, every operation rounded by itself. All backends compute exactly this.
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
    """Keys of one sample at the very same place are searched for as one, however many they are."""

    pos: Tensor  # [P, D] float64
    sample: Tensor  # [P] ascending
    key: Tensor  # [M] keys, place by place, ascending within one
    ptr: Tensor  # [P + 1] where each place's keys stand


def places(points: Points) -> Places:
    """The places of the keys, ordered by sample."""
    pos, sample = points.key.double() + 0.0, points.key_samples()  # -0.0 becomes 0.0, which some sorts tell apart
    order = torch.arange(pos.size(0), device=pos.device)
    for column in (*pos.unbind(1), sample):
        order = order[column[order].argsort(stable=True)]
    pos, sample = pos[order], sample[order]
    new = torch.ones_like(order, dtype=torch.bool)
    new[1:] = (pos[1:] != pos[:-1]).any(1) | (sample[1:] != sample[:-1])
    start = new.nonzero().squeeze(1)
    return Places(pos[start], sample[start], order, torch.cat([start, start.new_tensor([len(order)])]))


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Of points ``[..., D]`` in float64, broadcast against each other: ``[...]``."""
    total = (a[..., 0] - b[..., 0]).square()
    for d in range(1, a.size(-1)):
        total = total + (a[..., d] - b[..., d]).square()
    return total


def expanded(hits: tuple[Tensor, Tensor, Tensor], found: Places, k: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """``(query, place, distance)`` to ``(query, key, distance)``, the first ``k`` keys of a place."""
    query, place, distance = hits
    if found.ptr.numel() == found.key.numel() + 1:
        return query, found.key[place], distance
    count = found.ptr.diff()[place]
    count = count if k is None else count.clamp(max=k)
    hit = torch.arange(len(place), device=place.device).repeat_interleave(count)
    within = torch.arange(len(hit), device=hit.device) - (count.cumsum(0) - count)[hit]
    return query[hit], found.key[found.ptr[place[hit]] + within], distance[hit]


def first_of_rows(
    hits: tuple[Tensor, Tensor, Tensor], num_queries: int, k: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """``rowptr``, ``index`` and ``distance`` of the hits ``(query, index, distance)``, sorted in this order of keys.

    Of every query the first ``k`` by distance, then index.
    """
    query, index, distance = hits
    order = index.argsort(stable=True)
    for column in (distance, query):
        order = order[column[order].argsort(stable=True)]
    query, index, distance = query[order], index[order], distance[order]
    count = torch.bincount(query, minlength=num_queries)
    start = count.cumsum(0) - count
    if k is not None:
        kept = torch.arange(len(query), device=query.device) - start[query] < k
        index, distance, count = index[kept], distance[kept], count.clamp(max=k)
    return torch.cat([count.new_zeros(1), count.cumsum(0)]), index, distance
