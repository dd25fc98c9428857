"""Attention farther than a mesh's edges: to distant rings, along random edges, to and from global nodes.

Each function returns only what it adds, and nothing attends to itself; `union` joins, and
`Neighbors.with_self_loops` adds loops:

    >>> import torch
    >>> from geoattn.patterns import Neighbors
    >>> path = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6]])
    >>> mesh = Neighbors.from_edge_index(torch.cat([path, path.flip(0)], 1))
    >>> union(mesh, dilated(mesh, 3), global_nodes(torch.tensor([0]), 7)).col[:6]
    tensor([1, 2, 3, 4, 5, 6])

They run on the CPU, in a time that grows with the number of edges they read and make; patterns of another device are
copied there and back.
"""

from __future__ import annotations

import math

import numpy as np
import scipy
import torch
from torch import Tensor

from geoattn._arguments import check_tensors, checked_integer
from geoattn.patterns.neighbors import Neighbors, _check_fits, check_neighbors
from geoattn.patterns.rows import check_range


def union(*patterns: Neighbors) -> Neighbors:
    """Every query attends to the keys that it attends to in any of the patterns, each once.

    Args:
        patterns: Of the same queries and keys, on one device.

    Returns:
        A pattern with ascending rows and without duplicates; its index type is int64 if that of any pattern is.

    Raises:
        ValueError: If there is none, they do not fit together, or heads have patterns of their own.
    """
    if not patterns:
        raise ValueError("expected at least one pattern, got none")
    first, dtype = patterns[0], torch.int32
    for i, pattern in enumerate(patterns):
        check_neighbors(pattern, f"patterns[{i}]")
        if (pattern.num_queries, pattern.num_keys) != (first.num_queries, first.num_keys):
            raise ValueError(f"all patterns must have the same queries and keys, got {first} and {pattern}")
        if pattern.col.device != first.col.device:
            raise ValueError(f"all patterns must be on one device, got {first.col.device} and {pattern.col.device}")
        dtype = torch.promote_types(dtype, pattern.col.dtype)
    joined = _matrix(first)
    for pattern in patterns[1:]:
        joined = joined + _matrix(pattern)
    return _pattern(joined, dtype, first.col.device)


def dilated(pattern: Neighbors, dilation: int, steps: int = 1) -> Neighbors:
    r"""Every node attends to the nodes at graph distance ``dilation``, ``2 * dilation``, ... and none between.

    .. math::
        \mathcal{N}(i) = \{ j : d(j, i) \in \{k, 2k, \dots, nk\} \},

    where :math:`d(j, i)` is the number of edges of the shortest path from :math:`j` to :math:`i`, :math:`k` the
    dilation and :math:`n` the number of steps. With a dilation of 1 these are the nodes up to :math:`n` hops away.

    Garnier et al., "Training Transformers for Mesh-Based Simulations" (2025, arXiv 2508.18051) augment a mesh's
    adjacency by dilated sliding windows; that they are these rings is our reading, which we could not compare with
    code of theirs.

    A graph whose neighbors lie near each other in memory takes a third of the time: see `Neighbors.reorder`.

    Args:
        pattern: The graph in which distance is counted.
        dilation: Distance from one ring to the next, at least 1.
        steps: Number of rings, at least 1.

    Raises:
        ValueError: If a number is less than 1, the queries are not the keys, or heads have patterns of their own.
    """
    dilation, steps = checked_integer("dilation", dilation, least=1), checked_integer("steps", steps, least=1)
    step = _matrix(pattern)
    count = pattern._num_elements()
    ring = scipy.sparse.csr_array(scipy.sparse.identity(count, dtype=bool, format="csr"))
    reached, kept = ring, scipy.sparse.csr_array((count, count), dtype=bool)
    for distance in range(1, dilation * steps + 1):
        ring = ring @ step
        ring.sort_indices()
        ring = ring > reached
        reached = reached + ring
        if distance % dilation == 0:
            kept = kept + ring
    return _pattern(kept, pattern.col.dtype, pattern.col.device)


def random_edges(
    pattern: Neighbors, ratio: float, batch: Tensor | None = None, generator: torch.Generator | None = None
) -> Neighbors:
    """New edges between nodes of the same sample that the pattern does not join, drawn uniformly; both ways.

    Each sample gets ``ratio`` times as many new undirected edges as it has, rounded to the nearest integer, or all that
    are missing if those are fewer. Which ones is drawn without replacement, so none comes twice. An edge in one
    direction counts as an undirected one; loops do not count.

    The random edges of Garnier et al., "Training Transformers for Mesh-Based Simulations" (2025, arXiv 2508.18051), who
    draw new ones each time a mesh is loaded. What their ratio refers to is our reading.

    Args:
        pattern: The graph to add to; no edge may join two samples.
        ratio: Number of new edges for each one there is, at least 0.
        batch: Sample of every node ``[N]``, ascending; default: one sample.
        generator: Where randomness comes from; default: torch's default generator.

    Raises:
        ValueError: If ``ratio`` is negative or not finite, the shapes do not fit, an edge joins two samples, the
            queries are not the keys, or heads have patterns of their own.
    """
    check_neighbors(pattern)
    if not 0 <= ratio < math.inf:
        raise ValueError(f"ratio must be at least 0 and finite, got {ratio}")
    count = pattern._num_elements()
    ptr = _sample_ptr(batch, count)
    end = np.repeat(ptr[1:], np.diff(ptr))  # of the sample of each node

    # All pairs i < j of a sample, numbered by i, then by j: node i begins first[i + 1] - first[i] of them.
    node = np.arange(count)
    first = np.concatenate([[0], np.cumsum(end - node - 1)])
    graph = _matrix(pattern)
    joined = scipy.sparse.triu(graph + graph.T, k=1, format="csr")
    row, col = np.repeat(node, np.diff(joined.indptr)), joined.indices.astype(np.int64)
    if np.any(col >= end[row]):
        edge = int(np.argmax(col >= end[row]))
        raise ValueError(f"edges must stay within a sample of batch, got one between {row[edge]} and {col[edge]}")
    taken = first[row] + col - row - 1

    seed = torch.randint(2**63 - 1, (), generator=generator, device=None if generator is None else generator.device)
    rng = np.random.default_rng(int(seed))
    edges_before = joined.indptr[ptr].astype(np.int64)
    free_before = first[ptr] - edges_before
    drawn = [np.zeros(0, dtype=np.int64)]
    for begin, missing, edges in zip(free_before, np.diff(free_before), np.diff(edges_before), strict=False):
        number = round(min(ratio * int(edges), int(missing)))
        drawn.append(begin + rng.choice(missing, number, replace=False, shuffle=False))
    # The m-th pair that is free is the m-th of all, counted on by the pairs before it that are taken.
    free = np.concatenate(drawn)
    pair = free + np.searchsorted(taken - np.arange(len(taken)), free, side="right")
    low = np.searchsorted(first, pair, side="right") - 1
    high = pair - first[low] + low + 1
    ones = np.ones(2 * len(pair), dtype=bool)
    both = scipy.sparse.csr_array((ones, (np.concatenate([low, high]), np.concatenate([high, low]))), (count, count))
    return _pattern(both, pattern.col.dtype, pattern.col.device)


def global_nodes(nodes: Tensor, num_nodes: int, batch: Tensor | None = None) -> Neighbors:
    """A few nodes attend to all other nodes of their sample, and all of them attend to these few.

    Of ``G`` global nodes in a sample of ``n``, that is about ``2 * G * n`` edges. Any nodes may be global: those of one
    kind, such as a wall's, or some spread evenly, by `geoattn.ops.farthest_point_sample`.

    The global attention of Garnier et al., "Training Transformers for Mesh-Based Simulations" (2025, arXiv 2508.18051);
    that it joins nodes of the mesh, both ways, is our reading, which we could not compare with code of theirs.

    Args:
        nodes: The global nodes: a mask ``[num_nodes]``, or their indices ``[G]``.
        num_nodes: Number of nodes.
        batch: Sample of every node ``[num_nodes]``, ascending; default: one sample.

    Returns:
        A pattern with the index type of ``nodes``, int64 for a mask.

    Raises:
        ValueError: If shapes or types do not fit, or an index is out of range.
    """
    check_tensors(nodes=nodes)
    num_nodes = checked_integer("num_nodes", num_nodes)
    if nodes.dim() != 1 or nodes.dtype not in (torch.bool, torch.int32, torch.int64):
        raise ValueError(f"expected nodes as a mask or as indices, got {nodes.dtype} {tuple(nodes.shape)}")
    if nodes.dtype == torch.bool:
        if nodes.numel() != num_nodes:
            raise ValueError(f"expected a mask of {num_nodes} nodes, got {nodes.numel()}")
        index = nodes.nonzero().squeeze(1)
    else:
        check_range("nodes", nodes, num_nodes)
        index = nodes.unique()
    ptr = _sample_ptr(batch, num_nodes)
    chosen = index.cpu().numpy()
    size = len(ptr) - 1
    sample = np.repeat(np.arange(size), np.diff(ptr))
    member = scipy.sparse.csr_array(
        (np.ones(num_nodes, dtype=bool), sample, np.arange(num_nodes + 1)), (num_nodes, size)
    )
    of_sample = scipy.sparse.csr_array((np.ones(len(chosen), dtype=bool), (sample[chosen], chosen)), (size, num_nodes))
    to_global = member @ of_sample
    to_global.sort_indices()
    both = to_global + to_global.T.tocsr()
    both.setdiag(False)
    both.eliminate_zeros()
    return _pattern(both, index.dtype, index.device)


def _matrix(pattern: Neighbors) -> scipy.sparse.csr_array:
    """As a boolean matrix of its own memory, sorted and without duplicates."""
    check_neighbors(pattern)
    if pattern.heads > 1:
        raise ValueError(f"expected a pattern that all heads share, got {pattern}")
    pattern = pattern.to("cpu")
    pattern.ensure_valid()  # scipy does not look
    rowptr, col = pattern.rowptr.numpy(), pattern.col.numpy()
    size = pattern.num_queries, pattern.num_keys
    matrix = scipy.sparse.csr_array((np.ones(len(col), dtype=bool), col, rowptr), size, copy=True)
    matrix.sum_duplicates()
    return matrix


def _pattern(matrix: scipy.sparse.csr_array, dtype: torch.dtype, device: torch.device) -> Neighbors:
    """Of the entries of a matrix without duplicates."""
    matrix.sort_indices()
    _check_fits(dtype, queries=matrix.shape[0], keys=matrix.shape[1], edges=matrix.nnz)
    rowptr, col = (torch.from_numpy(x).to(device, dtype) for x in (matrix.indptr, matrix.indices))
    return Neighbors(rowptr, col, matrix.shape[1], check=False)


def _sample_ptr(batch: Tensor | None, num_nodes: int) -> np.ndarray:
    """Where the nodes of each sample begin and end, ``[S + 1]``, int64."""
    if batch is None:
        return np.array([0, num_nodes])
    check_tensors(batch=batch)
    if batch.shape != (num_nodes,):
        raise ValueError(f"expected batch [{num_nodes}], got {tuple(batch.shape)}")
    if bool((batch[1:] < batch[:-1]).any()):
        raise ValueError("batch must be ascending: the nodes of one sample stand together")
    size = batch.unique_consecutive(return_counts=True)[1].cpu().numpy()
    return np.concatenate([[0], np.cumsum(size)])
