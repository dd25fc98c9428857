"""Neighbor search in plain torch, for CUDA: no loop over points, and fast whatever their distribution.

Keys and queries are sorted into balanced k-d trees, level by level. Then both trees are descended together: a list of
pairs (node of queries, node of keys) is split in four and pruned at every level, so all work is done on long tensors
and the host loops over levels only. A grid would be simpler, but one far point or a dense cluster ruins it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geoattn.geometry.search.points import (
    Hits,
    Points,
    nearest_first,
    places,
    rank_in_run,
    rows_of_keys,
    squared_distance,
)

_LEAF = 32  # points of a leaf
_CHUNK = 1 << 22  # distances looked at in one go: bounds the memory


def knn(points: Points, k: int, limit: float) -> tuple[Tensor, Tensor]:
    """The ``k`` nearest keys of every query within the squared distance ``limit``."""
    return _search(points, k, limit)


def radius(points: Points, limit: float) -> tuple[Tensor, Tensor]:
    """All keys within the squared distance ``limit`` of every query."""
    return _search(points, None, limit)


def farthest(points: Points, start: Tensor, count: Tensor) -> Tensor:
    """Of each sample ``count`` keys, ``start`` first, then always the farthest from those chosen."""
    pos, sample = points.key.double(), points.key_samples()
    samples, most = len(count), int(count.max())
    index = torch.arange(len(pos), device=pos.device)
    away = torch.full_like(pos[:, 0], torch.inf)  # squared distance to the closest chosen point, negative if chosen
    chosen = start.new_empty(most, samples)
    for i in range(most):
        chosen[i] = start
        away = torch.minimum(away, squared_distance(pos, pos[start[sample]])).index_fill(0, start, -1)
        if samples == 1:
            start = index.where(away == away.amax(), len(pos)).amin(0, keepdim=True)
        else:
            highest = away.new_empty(samples).scatter_reduce(0, sample, away, "amax", include_self=False)
            candidate = index.where(away == highest[sample], len(pos))
            start = start.scatter_reduce(0, sample, candidate, "amin", include_self=False)
    return chosen.T[torch.arange(most, device=pos.device) < count.unsqueeze(1)]


class _Level(NamedTuple):
    """The nodes of one level of a tree: the box, the range of samples and the number of points of each."""

    low: Tensor  # [nodes, D], inf in a node without points
    high: Tensor  # [nodes, D], -inf
    first_sample: Tensor  # [nodes]
    last_sample: Tensor  # [nodes]
    size: Tensor  # [nodes]


class _Tree(NamedTuple):
    levels: list[_Level]
    point: Tensor  # [leaves, LEAF], -1 where there is none
    pos: Tensor  # [leaves, LEAF, D], inf


def _build(pos: Tensor, sample: Tensor) -> _Tree:
    """Sort points into equal halves, by sample as long as a node has several, else along the longest side of its box.

    Every sample is filled up with points at infinity to whole leaves, and the tree to a power of two of them.
    """
    samples, count = sample.unique_consecutive(return_counts=True)
    room = (count + _LEAF - 1) // _LEAF * _LEAF
    slot = torch.arange(len(pos), device=pos.device) + (
        room.cumsum(0) - room - count.cumsum(0) + count
    ).repeat_interleave(count)
    filled = int(room.sum())
    depth = (filled // _LEAF - 1).bit_length()
    size = _LEAF << depth
    order = torch.arange(size, device=pos.device)
    index = order.new_full((size,), -1).index_copy(0, slot, order[: len(pos)])
    pos = pos.new_full((size, pos.size(1)), torch.inf).index_copy(0, slot, pos)
    sample = torch.cat([samples.repeat_interleave(room), samples[-1:].expand(size - filled) + 1])

    levels = []
    for level in range(depth + 1):
        order = order.view(1 << level, -1)
        here, p, s = index[order] >= 0, pos[order], sample[order]
        low, high = p.amin(1), p.where(here.unsqueeze(2), -torch.inf).amax(1)
        first, last = s.amin(1), s.amax(1)
        levels.append(_Level(low, high, first, last, here.sum(1)))
        if level < depth:
            widest = (high - low).argmax(1)
            along = p.gather(2, widest.view(-1, 1, 1).expand(-1, p.size(1), 1)).squeeze(2)
            key = s.double().where((last > first).unsqueeze(1), along)
            order = order.gather(1, key.argsort(dim=1, stable=True)).flatten()
    return _Tree(levels, index[order], pos[order])


def _search(points: Points, k: int | None, limit: float) -> tuple[Tensor, Tensor]:
    found = places(points)
    keys = _build(found.pos, found.sample)
    query = points.key if points.query is None else points.query
    queries = _build(query.double(), points.query_samples())
    pairs, bound = _pairs(queries, keys, k, limit)
    worst = bound.new_full((len(query),), limit)  # squared distance of every query's k-th place so far
    parts = []
    for some in _chunks(pairs[0]):
        visits = _visits(queries, keys, pairs[:, some], bound)
        parts.append(
            _all_hits(queries, keys, visits, worst) if k is None else _nearest(queries, keys, visits, worst, k)
        )
    hits = Hits(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
    return rows_of_keys(hits, found, len(query), k)


def _pairs(queries: _Tree, keys: _Tree, k: int | None, limit: float) -> tuple[Tensor, Tensor]:
    """Leaves of queries and of keys ``[2, pairs]`` that may have neighbors, sorted by the former.

    And the squared distance ``[leaves]`` within which all queries of a leaf have all their neighbors.
    """
    pair = keys.point.new_zeros(2, 1)
    bound = keys.pos.new_full((1,), limit)  # per node of queries
    for level in range(max(len(queries.levels), len(keys.levels))):
        if level:
            of, at = pair
            if level < len(queries.levels):
                of, at = torch.cat([2 * of, 2 * of + 1]), at.repeat(2)
                bound = bound.repeat_interleave(2)
            if level < len(keys.levels):
                of, at = of.repeat(2), torch.cat([2 * at, 2 * at + 1])
            pair = torch.stack([of, at])
        q = _Level(*(x[pair[0]] for x in queries.levels[min(level, len(queries.levels) - 1)]))
        n = _Level(*(x[pair[1]] for x in keys.levels[min(level, len(keys.levels) - 1)]))
        shared = (q.first_sample <= n.last_sample) & (n.first_sample <= q.last_sample) & (q.size > 0) & (n.size > 0)
        zero = torch.zeros_like(q.low)
        nearest = squared_distance(torch.maximum(torch.maximum(n.low - q.high, q.low - n.high), zero), zero)
        kept = shared & (nearest <= bound[pair[0]])
        if k is not None:
            farthest = squared_distance(torch.maximum(n.high - q.low, q.high - n.low), zero)
            alike = (q.first_sample == q.last_sample) & (n.first_sample == n.last_sample) & kept
            bound = torch.minimum(bound, _kth(pair[0], farthest, n.size.where(alike, 0), k, len(bound)))
            kept &= nearest <= bound[pair[0]]
        pair = pair[:, kept]
    return pair[:, pair[0].argsort(stable=True)], bound


def _kth(node: Tensor, distance: Tensor, count: Tensor, k: int, nodes: int) -> Tensor:
    """For each node the smallest distance up to which its pairs count ``k`` or more, inf if there is none."""
    order = distance.argsort(stable=True)
    order = order[node[order].argsort(stable=True)]
    node, distance, count = node[order], distance[order], count[order]
    total = count.cumsum(0)
    before = total.new_zeros(nodes).scatter_reduce(0, node, total - count, "amin", include_self=False)
    reached = distance.where(total - before[node] >= k, torch.inf)
    return distance.new_full((nodes,), torch.inf).scatter_reduce(0, node, reached, "amin")


def _chunks(leaf: Tensor) -> list[slice]:
    """Cuts the pairs, sorted by ``leaf``, into parts of bounded size wherever a leaf begins."""
    if not len(leaf):
        return [slice(0, 0)]
    wanted = torch.arange(0, len(leaf), _CHUNK // _LEAF, device=leaf.device)
    cuts = torch.searchsorted(leaf, leaf[wanted]).unique().tolist()
    return [slice(a, b) for a, b in zip(cuts, [*cuts[1:], len(leaf)], strict=True)]


class _Visits(NamedTuple):
    """A query looks at a leaf of keys, whose box is at the squared distance ``gap``."""

    query: Tensor  # [V]
    slot: Tensor  # [V], of the query among all of its tree
    leaf: Tensor  # [V]
    gap: Tensor  # [V]

    def at(self, index: Tensor) -> _Visits:
        """Some of them."""
        return _Visits(*(column[index] for column in self))


def _visits(queries: _Tree, keys: _Tree, pairs: Tensor, bound: Tensor) -> _Visits:
    """Of the queries of each pair those close enough, sorted by query, the nearest leaf first."""
    of, at = pairs
    q = queries.pos[of]
    low, high = keys.levels[-1].low[at].unsqueeze(1), keys.levels[-1].high[at].unsqueeze(1)
    zero = torch.zeros_like(q)
    gap = squared_distance(torch.maximum(torch.maximum(low - q, q - high), zero), zero)
    pair, i = ((gap <= bound[of].unsqueeze(1)) & (queries.point[of] >= 0)).nonzero().unbind(1)
    gap, slot = gap[pair, i], of[pair] * _LEAF + i
    order = gap.argsort(stable=True)
    order = order[slot[order].argsort(stable=True)]
    return _Visits(queries.point[of[pair], i], slot, at[pair], gap).at(order)


def _all_hits(queries: _Tree, keys: _Tree, visits: _Visits, worst: Tensor) -> Hits:
    """All places in the leaves visited that are within each query's ``worst [N]``."""
    pos = queries.pos.flatten(0, 1)
    parts = []
    for query, slot, leaf, _ in zip(*(column.split(_CHUNK // _LEAF) for column in visits), strict=True):
        distance = squared_distance(pos[slot].unsqueeze(1), keys.pos[leaf])
        visit, j = ((distance <= worst[query].unsqueeze(1)) & (keys.point[leaf] >= 0)).nonzero().unbind(1)
        parts.append(Hits(query[visit], keys.point[leaf[visit], j], distance[visit, j]))
    return Hits(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _nearest(queries: _Tree, keys: _Tree, visits: _Visits, worst: Tensor, k: int) -> Hits:
    """The nearest ``k`` places of every query; ``worst`` is updated.

    Every query visits few leaves, then twice as many, and so on, until the next is farther than what it has. All leaves
    at once would be many where points of very different spacing share a leaf.
    """
    rank = rank_in_run(visits.slot)
    width = -(-k // _LEAF)
    best = _all_hits(queries, keys, visits.at(rank < 0), worst)
    while len(rank):
        more = _all_hits(queries, keys, visits.at(rank < width), worst)
        best = nearest_first(Hits(*(torch.cat(columns) for columns in zip(best, more, strict=True))), k)
        last = rank_in_run(best.query) == k - 1
        worst[best.query[last]] = best.distance[last]
        left = (rank >= width) & (visits.gap <= worst[visits.query])
        rank, visits = rank[left], visits.at(left)
        width *= 2
    return best
