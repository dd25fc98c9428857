"""`Neighbors`: for every query, the row of keys it attends to."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from geoattn.geometry.mesh import edge_adjacency, edges, face_vertex_adjacency, vertex_adjacency


class Neighbors:
    """A sparse attention pattern in compressed rows: query ``i`` attends to ``col[rowptr[i]:rowptr[i + 1]]``.

    Inside a row, keys are in ascending order, except where a builder says otherwise.

    Args:
        rowptr: Where each query's row begins and ends, ``[N + 1]``, int32 or int64.
        col: Key of every edge, ``[E]``, same type as ``rowptr``.
        num_keys: Number of keys ``M``.
        edge_order: For every edge, its position in the ``edge_index`` the pattern was built from, ``[E]``.

    Raises:
        ValueError: If ``rowptr`` does not rise from 0 to ``E``, or a key is outside ``[0, num_keys)``.
    """

    def __init__(self, rowptr: Tensor, col: Tensor, num_keys: int, edge_order: Tensor | None = None) -> None:
        if rowptr.dtype not in (torch.int32, torch.int64) or rowptr.dtype != col.dtype:
            raise ValueError(f"rowptr and col must both be int32 or both int64, got {rowptr.dtype} and {col.dtype}")
        if rowptr.dim() != 1 or rowptr.numel() < 1 or col.dim() != 1:
            raise ValueError(f"expected rowptr [N + 1] and col [E], got {tuple(rowptr.shape)} and {tuple(col.shape)}")
        if rowptr[0] != 0 or rowptr[-1] != col.numel() or bool((rowptr[1:] < rowptr[:-1]).any()):
            raise ValueError(f"rowptr must rise from 0 to the number of edges {col.numel()}")
        if col.numel() and (int(col.min()) < 0 or int(col.max()) >= num_keys):
            raise ValueError(f"col must be in [0, {num_keys}), got values from {int(col.min())} to {int(col.max())}")
        if edge_order is not None and edge_order.shape != col.shape:
            raise ValueError(
                f"edge_order must have one entry for each of {col.numel()} edges, got {tuple(edge_order.shape)}"
            )
        self.rowptr = rowptr
        self.col = col
        self.num_keys = num_keys
        self.edge_order = edge_order

    @property
    def num_queries(self) -> int:
        """Number of queries ``N``."""
        return self.rowptr.numel() - 1

    @property
    def num_edges(self) -> int:
        """Number of (query, key) pairs ``E``."""
        return self.col.numel()

    @cached_property
    def degree(self) -> Tensor:
        """Number of keys of every query, ``[N]``."""
        return self.rowptr[1:] - self.rowptr[:-1]

    @cached_property
    def row(self) -> Tensor:
        """Query of every edge, ``[E]``, ascending."""
        query = torch.arange(self.num_queries, dtype=self.col.dtype, device=self.col.device)
        return query.repeat_interleave(self.degree, output_size=self.num_edges)

    @cached_property
    def transpose(self) -> Neighbors:
        """The same edges by key: a pattern of ``M`` queries and ``N`` keys.

        Its ``edge_order`` holds positions in *this* pattern's ``col``.
        """
        order = torch.argsort(self.col, stable=True)
        rowptr = torch.zeros(self.num_keys + 1, dtype=self.col.dtype, device=self.col.device)
        rowptr[1:] = torch.bincount(self.col, minlength=self.num_keys).cumsum(0)
        return Neighbors(rowptr, self.row[order], self.num_queries, order)

    def reorder_edges(self, edge_value: Tensor) -> Tensor:
        """Bring values given in the order of the caller's ``edge_index`` into the order of ``col``.

        Args:
            edge_value: One entry per edge of the ``edge_index`` the pattern was built from, ``[E, ...]``.

        Raises:
            ValueError: If the pattern was not built from an ``edge_index``, or the lengths differ.
        """
        if self.edge_order is None:
            raise ValueError("this pattern has no edge_order; build it with Neighbors.from_edge_index")
        if edge_value.size(0) != self.num_edges:
            raise ValueError(f"expected {self.num_edges} edge values, got {edge_value.size(0)}")
        return edge_value[self.edge_order]

    def to(self, *args: Any, **kwargs: Any) -> Neighbors:
        """Move to a device and/or change the index type, as `torch.Tensor.to`."""
        order = None if self.edge_order is None else self.edge_order.to(*args, **kwargs)
        return Neighbors(self.rowptr.to(*args, **kwargs), self.col.to(*args, **kwargs), self.num_keys, order)

    def to_edge_index(self) -> Tensor:
        """The edges as PyG has them, ``[2, E]``: row 0 the keys (sources), row 1 the queries (targets)."""
        return torch.stack([self.col, self.row])

    def __repr__(self) -> str:
        return f"Neighbors(queries={self.num_queries}, keys={self.num_keys}, edges={self.num_edges})"

    @classmethod
    def from_edge_index(
        cls, edge_index: Tensor, num_queries: int | None = None, num_keys: int | None = None
    ) -> Neighbors:
        """Build the pattern from PyG's ``edge_index``, duplicates kept.

        Args:
            edge_index: Edges ``[2, E]``: row 0 the keys (sources), row 1 the queries (targets).
            num_queries: Number of queries; default: largest index plus one, of both rows.
            num_keys: Number of keys; default: ``num_queries``.

        Raises:
            ValueError: If the shape is not ``[2, E]`` or an index is out of range.
        """
        if edge_index.dim() != 2 or edge_index.size(0) != 2:
            raise ValueError(f"expected edge_index [2, E], got {tuple(edge_index.shape)}")
        if num_queries is None:
            num_queries = int(edge_index.max()) + 1 if edge_index.numel() else 0
        num_keys = num_queries if num_keys is None else num_keys
        key, query = edge_index
        if query.numel() and (int(query.min()) < 0 or int(query.max()) >= num_queries):
            raise ValueError(
                f"edge_index[1] must be in [0, {num_queries}), got values from {int(query.min())} to {int(query.max())}"
            )
        order = torch.argsort(key, stable=True)
        order = order[torch.argsort(query[order], stable=True)]
        rowptr = torch.zeros(num_queries + 1, dtype=edge_index.dtype, device=edge_index.device)
        rowptr[1:] = torch.bincount(query, minlength=num_queries).cumsum(0)
        return cls(rowptr, key[order], num_keys, order)

    @classmethod
    def from_mesh(cls, face: Tensor, element: str = "vertex", num_nodes: int | None = None, hops: int = 1) -> Neighbors:
        """Every element attends to itself and to the elements up to ``hops`` steps away on the surface.

        One step leads from a vertex along a mesh edge; from a face to those sharing a vertex with it; from an
        edge to those sharing a face with it.

        Args:
            face: Triangles ``[3, F]``.
            element: ``"vertex"``, ``"face"`` or ``"edge"`` (numbered as in `geoattn.geometry.edges`).
            num_nodes: Number of vertices; default: largest index plus one.
            hops: How many steps, at least 1.
        """
        if num_nodes is None:
            num_nodes = int(face.max()) + 1 if face.numel() else 0
        if element == "vertex":
            edge_index, count = vertex_adjacency(face, num_nodes), num_nodes
        elif element == "face":
            edge_index, count = face_vertex_adjacency(face), face.size(1)
        elif element == "edge":
            edge_index, count = edge_adjacency(face), edges(face).edge.size(1)
        else:
            raise ValueError(f'element must be "vertex", "face" or "edge", got {element!r}')
        return cls.k_hop(edge_index, hops, count)

    @classmethod
    def k_hop(cls, edge_index: Tensor, hops: int, num_nodes: int | None = None) -> Neighbors:
        """Every node attends to itself and to the nodes from which it is reached in at most ``hops`` edges.

        Args:
            edge_index: Edges ``[2, E]``: row 0 the sources, row 1 the targets.
            hops: At least 1.
            num_nodes: Number of nodes; default: largest index plus one.
        """
        if hops < 1:
            raise ValueError(f"hops must be at least 1, got {hops}")
        if num_nodes is None:
            num_nodes = int(edge_index.max()) + 1 if edge_index.numel() else 0
        source, target = edge_index.cpu().numpy()
        loops = np.arange(num_nodes)
        ones = np.ones(len(source) + num_nodes, dtype=bool)
        step = csr_array(
            (ones, (np.concatenate([target, loops]), np.concatenate([source, loops]))), (num_nodes, num_nodes)
        )
        reached = step
        for _ in range(hops - 1):
            reached = reached @ step
        reached.sort_indices()
        rowptr = torch.from_numpy(reached.indptr.astype(np.int64))
        col = torch.from_numpy(reached.indices.astype(np.int64))
        return cls(rowptr.to(edge_index), col.to(edge_index), num_nodes)

    @classmethod
    def knn(
        cls,
        pos: Tensor,
        k: int,
        batch: Tensor | None = None,
        query_pos: Tensor | None = None,
        query_batch: Tensor | None = None,
    ) -> Neighbors:
        """Every query attends to its ``k`` nearest keys, nearest first; see `geoattn.ops.knn`.

        Without ``query_pos`` the queries are the keys, and each is its own first neighbor.
        """
        from geoattn.ops.search import knn  # here, because ops is built on patterns

        rowptr, col = knn(pos, k, batch, query_pos, query_batch)
        return cls(rowptr, col, pos.size(0))

    @classmethod
    def radius(
        cls,
        pos: Tensor,
        r: float,
        batch: Tensor | None = None,
        query_pos: Tensor | None = None,
        query_batch: Tensor | None = None,
        max_neighbors: int | None = None,
    ) -> Neighbors:
        """Every query attends to the keys within distance ``r``, nearest first; see `geoattn.ops.radius`."""
        from geoattn.ops.search import radius  # here, because ops is built on patterns

        rowptr, col = radius(pos, r, batch, query_pos, query_batch, max_neighbors)
        return cls(rowptr, col, pos.size(0))
