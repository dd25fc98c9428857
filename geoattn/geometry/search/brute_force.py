"""Neighbor search by matrix products, in plain torch, among many dimensions, where trees keep little out.

A product gives all squared distances with an error that has a bound; keys that may be among the nearest, given the
bound, are measured exactly. In float64: there, hardly any are measured in vain, and nothing rounds products to TF32 or
bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from geoattn.geometry.search.points import Hits, Points, places, rows_of_keys, squared_distance

_PAIRS = {"cpu": 1 << 20}  # looked at in one go: bounds the memory, and on CPUs they stay in the cache
_PAIRS_ELSEWHERE = 1 << 24
_NUMBERS = 1 << 17  # coordinates gathered in one go for exact distances
_EPSILON = torch.finfo(torch.float64).eps
_TINY = torch.finfo(torch.float64).tiny


def knn(points: Points, k: int, limit: float) -> tuple[Tensor, Tensor]:
    """The ``k`` nearest keys of every query within the squared distance ``limit``."""
    return _search(points, k, limit)


def radius(points: Points, limit: float) -> tuple[Tensor, Tensor]:
    """All keys within the squared distance ``limit`` of every query."""
    return _search(points, None, limit)


def _search(points: Points, k: int | None, limit: float) -> tuple[Tensor, Tensor]:
    found, sample = places(points), points.query_samples()
    pos = (points.key if points.query is None else points.query).double()
    # Far from the origin, squares would lose all digits; a median, unlike a mean, no single point can move.
    center = found.pos.sort(0).values[len(found.pos) // 2]
    query = (sample >= 0).nonzero().squeeze(1)
    count = torch.bincount(found.sample, minlength=points.ptr.numel() - 1)
    end = count.cumsum(0)
    ends, begins = end[sample[query]].tolist(), (end - count)[sample[query]].tolist()
    parts = []
    for a, b in _blocks(begins, ends, 0, len(query), _PAIRS.get(pos.device.type, _PAIRS_ELSEWHERE)):
        rows, keys = query[a:b], slice(begins[a], ends[b - 1])
        apart = None
        if begins[a] != begins[b - 1]:  # of several samples
            apart = sample[rows].unsqueeze(1) != found.sample[keys]
        row, place, distance = _near(pos[rows], found.pos[keys], center, apart, k, limit)
        parts.append(Hits(rows[row], place + keys.start, distance))
    hits = Hits(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
    return rows_of_keys(hits, found, points.num_queries, k)


def _blocks(begins: list[int], ends: list[int], a: int, b: int, pairs: int) -> Iterator[tuple[int, int]]:
    """Queries from ``a`` to ``b``, whose keys run from ``begins`` to ``ends``, cut into blocks of at most ``pairs``."""
    if b - a > 1 and (b - a) * (ends[b - 1] - begins[a]) > pairs:
        yield from _blocks(begins, ends, a, (a + b) // 2, pairs)
        yield from _blocks(begins, ends, (a + b) // 2, b, pairs)
    else:
        yield a, b


def _near(query: Tensor, key: Tensor, center: Tensor, apart: Tensor | None, k: int | None, limit: float) -> Hits:
    """Pairs within ``limit`` that are not ``apart`` ``[N, M]``, among them the ``k`` nearest keys of every query."""
    q, m = query - center, key - center
    qq, mm = q.square().sum(1, keepdim=True), m.square().sum(1)
    # Sums of D products are off by at most D roundings of (|q| + |m|)^2 <= 2 (qq + mm), the exact distance by as many,
    # and both by what is too small for float64.
    relative, absolute = 2 * (q.size(1) + 10) * _EPSILON, 8 * q.size(1) * _TINY
    lowest = torch.addmm(mm * (1 - relative), q, m.T, alpha=-2).add_(qq * (1 - relative) - absolute)
    if apart is not None:
        lowest.masked_fill_(apart, math.inf)
    bound = torch.full_like(qq, min(limit, torch.finfo(torch.float64).max))
    if k is not None:
        least, index = lowest.topk(min(k, len(key)), dim=1, largest=False)
        highest = least + 2 * (relative * (qq + mm[index]) + absolute)
        bound = torch.minimum(bound, highest.amax(1, keepdim=True))
    row, place = (lowest <= bound).nonzero().unbind(1)
    some = max(1, _NUMBERS // q.size(1))
    distance = torch.cat(
        [squared_distance(query[i], key[j]) for i, j in zip(row.split(some), place.split(some), strict=True)]
    )
    near = distance <= limit
    return Hits(row[near], place[near], distance[near])
