"""`Neighbors`: for every query, the row of keys it attends to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import scipy  # which loads its parts where they are used: importing them all would take longer than the rest of geoattn
import torch
from torch import Tensor
from torch_geometric import EdgeIndex

from geoattn import native
from geoattn._arguments import check_tensors, checked_integer
from geoattn.geometry import search
from geoattn.geometry.curves import z_order
from geoattn.geometry.mesh import edge_adjacency, edges, face_vertex_adjacency, vertex_adjacency
from geoattn.patterns.rows import check_range, check_rows, compress, row_of_edges, transpose
from geoattn.patterns.visits import Visits, find_visits, may_pay

T = TypeVar("T")
INT32_MAX = torch.iinfo(torch.int32).max


class Neighbors:
    """A sparse attention pattern in compressed rows: query ``i`` attends to ``col[rowptr[i]:rowptr[i + 1]]``.

    Inside a row, keys are in ascending order, except where a builder says otherwise.

    Where heads attend to different keys (`Neighbors.per_head`), each head of an element is a query and a key of its
    own: of ``H`` heads, row ``i * H + h`` holds the keys ``j * H + h`` that head ``h`` of element ``i`` attends to.
    Everything here (``num_queries``, ``num_keys``, ``row``, ``degree``, ...) then counts heads of elements.

    Args:
        rowptr: Where each query's row begins and ends, ``[N + 1]``, int32 or int64.
        col: Key of every edge, ``[E]``, same type as ``rowptr``.
        num_keys: Number of keys ``M``.
        edge_order: For every edge, its position in the ``edge_index`` (or pattern) this one was built from, ``[E]``;
            what is built here has it in the type of ``col``.
        heads: Number of heads the queries and keys are made of; 1 if all heads share the pattern.
        check: Whether to look at the values, for which the host waits for the device. While compiling they are not
            looked at.

    Raises:
        TypeError: If an argument is no tensor, or a number no integer.
        ValueError: If shapes or types are wrong, or (``check``) ``rowptr`` does not rise from 0 to ``E``, a key is
            outside ``[0, num_keys)`` or belongs to another head than its query.
    """

    def __init__(
        self,
        rowptr: Tensor,
        col: Tensor,
        num_keys: int,
        edge_order: Tensor | None = None,
        heads: int = 1,
        *,
        check: bool = True,
    ) -> None:
        if not isinstance(rowptr, Tensor) or not isinstance(col, Tensor):
            check_tensors(rowptr=rowptr, col=col)
        num_keys = checked_integer("num_keys", num_keys)
        heads = 1 if heads == 1 else checked_integer("heads", heads)
        if rowptr.dtype not in (torch.int32, torch.int64) or rowptr.dtype != col.dtype:
            raise ValueError(f"rowptr and col must both be int32 or both int64, got {rowptr.dtype} and {col.dtype}")
        if rowptr.dim() != 1 or rowptr.numel() < 1 or col.dim() != 1:
            raise ValueError(f"expected rowptr [N + 1] and col [E], got {tuple(rowptr.shape)} and {tuple(col.shape)}")
        if edge_order is not None and edge_order.shape != col.shape:
            raise ValueError(
                f"edge_order must have one entry for each of {col.numel()} edges, got {tuple(edge_order.shape)}"
            )
        if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
            with torch.inference_mode(False):  # a pattern may be used in training whenever it was made
                rowptr, col = _normal(rowptr), _normal(col)
                edge_order = None if edge_order is None else _normal(edge_order)
        self.rowptr = rowptr
        self.col = col
        self.num_keys = num_keys
        self.edge_order = edge_order
        self.heads = heads
        # Made when first asked for. Not cached_property, whose lock torch.compile cannot see through on Python 3.11.
        self._row: Tensor | None = None
        self._transpose: Neighbors | None = None
        self._with_self_loops: Neighbors | None = None
        self._visits: dict[bool, Visits | None] = {}
        # Versions of rowptr and col whose values were found to be right, and of which the above was made.
        self._valid: tuple[int, int] | None = None
        self._made_of: tuple[int, int] | None = None
        if check and native.in_memory(rowptr, col):
            self._check()
            self._valid = self.versions()

    def _check(self) -> None:
        rowptr, col = self.rowptr, self.col
        _check_fits(col.dtype, keys=self.num_keys)
        if rowptr[0] != 0 or rowptr[-1] != col.numel() or bool((rowptr[1:] < rowptr[:-1]).any()):
            raise ValueError(f"rowptr must rise from 0 to the number of edges {col.numel()}")
        check_range("col", col, self.num_keys)
        if self.heads < 1 or self.num_queries % self.heads or self.num_keys % self.heads:
            raise ValueError(
                f"heads must divide the numbers of queries and keys, got {self.heads}, "
                f"{self.num_queries} and {self.num_keys}"
            )
        if self.heads > 1 and bool((self.row % self.heads != col % self.heads).any()):
            raise ValueError(f"each of {self.heads} heads of a query must attend to the same head of its keys")

    def versions(self) -> tuple[int, int] | None:
        """What changes where the tensors are changed in place; None where torch does not count that."""
        try:
            return self.rowptr._version, self.col._version
        except RuntimeError:  # of tensors made in inference mode
            return None

    def ensure_valid(self) -> None:
        """Look at the values if they were not looked at yet or have been changed since; on a GPU, never.

        Raises:
            IndexError: If ``rowptr`` does not rise from 0 to the number of edges, or a key is out of range.
        """
        if torch.compiler.is_compiling():
            return
        versions = self.versions()
        if versions is not None and versions == self._valid:
            return
        if self.rowptr.device.type == "cpu" and native.in_memory(self.rowptr, self.col):
            with native.outside_modes():
                check_rows(self.rowptr, self.col, self.num_keys)
            self._valid = versions

    def _forget_changed(self) -> None:
        """Keep nothing that was made of values that have been changed since."""
        if torch.compiler.is_compiling():
            return
        versions = self.versions()
        if versions != self._made_of:
            if self._made_of is not None:
                self._row = self._transpose = self._with_self_loops = None
                self._visits = {}
            self._made_of = versions

    def _kept(self, name: str, make: Callable[[], T]) -> T:
        """What is kept under ``name``, made when first asked for; while compiling nothing is kept."""
        self._forget_changed()
        found: T | None = getattr(self, name)
        if found is not None:
            return found
        if not native.in_memory(self.rowptr, self.col):
            return make()
        with native.outside_modes():
            found = make()
        setattr(self, name, found)
        return found

    @property
    def num_queries(self) -> int:
        """Number of queries ``N``."""
        return self.rowptr.numel() - 1

    @property
    def num_edges(self) -> int:
        """Number of (query, key) pairs ``E``."""
        return self.col.numel()

    @property
    def degree(self) -> Tensor:
        """Number of keys of every query, ``[N]``."""
        return self.rowptr[1:] - self.rowptr[:-1]

    @property
    def row(self) -> Tensor:
        """Query of every edge, ``[E]``, ascending."""
        return self._kept("_row", self._make_row)

    def _make_row(self) -> Tensor:
        self.ensure_valid()
        return row_of_edges(self.rowptr, self.num_edges)

    @property
    def transpose(self) -> Neighbors:
        """The same edges by key: a pattern of ``M`` queries and ``N`` keys, ascending inside each row.

        Its ``edge_order`` holds positions in *this* pattern's ``col``.
        """
        return self._kept("_transpose", self._make_transpose)

    def _make_transpose(self) -> Neighbors:
        order = torch.empty_like(self.col)
        rowptr, row = transpose(self.rowptr, self.col, self.num_keys, order)
        return Neighbors(rowptr, row, self.num_queries, order, self.heads, check=False)

    def visits(self, *, transposed: bool = False, positions: bool = True) -> Visits | None:
        """The rows in an order in which those with keys in common follow each other, for kernels that read along rows.

        What such a kernel reads then stays in the cache of a CPU, whatever the order of the elements: attention over
        100,000 random points takes half the time. None where that would not pay: on other devices, for fewer than
        32,768 keys, where rows already lie so, where the queries are not the keys; and without the compiled kernels.
        It is made when first asked for, but not while compiling.

        Args:
            transposed: Whether the rows are those of the `transpose`; positions are in *this* pattern's ``col``.
            positions: Whether those of edges are needed; without, ``edge`` may be None.

        Raises:
            IndexError: If the pattern was not checked and is wrong.
        """
        self._forget_changed()
        in_memory = native.in_memory(self.rowptr, self.col)
        if transposed not in self._visits and in_memory:
            with native.outside_modes():
                self._visits[transposed] = self._find_visits(transposed)
        found = self._visits.get(transposed)
        if found is None or found.row is None or found.edge is not None or not positions:
            return found
        if not in_memory:
            return None
        with native.outside_modes():
            found = self._visits[transposed] = self._with_positions(found, transposed)
        return found

    def _find_visits(self, transposed: bool) -> Visits | None:
        rowptr, col = self.rowptr, self.col
        if transposed and may_pay(rowptr, self.num_keys):
            rowptr, col = transpose(rowptr, col, self.num_keys)
        return find_visits(rowptr, col, self.num_keys)

    def _with_positions(self, found: Visits, transposed: bool) -> Visits:
        assert found.row is not None
        by, row = self.transpose if transposed else self, found.row.long()
        _, edge = _gather_rows(by.rowptr[:-1][row], by.degree[row], by.num_edges)
        order = by.edge_order if transposed else None
        edge = edge if order is None else order[edge.long()]
        return found._replace(edge=edge.to(found.col.dtype))

    def with_self_loops(self) -> Neighbors:
        """Every query that is also a key attends to itself, once: loops there are removed, new ones end the rows.

        Of ``N`` queries and ``M`` keys, the first ``min(N, M)`` get a loop. The ``edge_order`` counts as PyG's
        ``remove_self_loops`` and ``add_self_loops`` do: edges that are no loops in the order of the caller, then the
        loops in the order of the nodes. It is made when first asked for.

        Raises:
            ValueError: If heads have patterns of their own, or int32 cannot count the edges.
        """
        return self._kept("_with_self_loops", self._make_self_loops)

    def _make_self_loops(self) -> Neighbors:
        if self.heads > 1:
            raise ValueError(f"no self loops for patterns of heads, add them before joining: {self}")
        loops = torch.arange(min(self.num_queries, self.num_keys), dtype=self.col.dtype, device=self.col.device)
        _check_fits(self.col.dtype, edges=self.num_edges + loops.numel())
        kept = self.row != self.col
        kept_edges = kept.nonzero().squeeze(1)
        kept_before = torch.cat([self.rowptr.new_zeros(1), kept.cumsum(0, dtype=self.rowptr.dtype)])
        row = torch.arange(self.num_queries + 1, dtype=self.rowptr.dtype, device=self.rowptr.device)
        rowptr = kept_before[self.rowptr.long()] + row.clamp(max=loops.numel())
        place = torch.arange(kept_edges.numel(), device=kept.device) + self.row[kept_edges].clamp(max=loops.numel())
        loop_place = rowptr[1 : loops.numel() + 1].long() - 1

        col = self.col.new_empty(kept_edges.numel() + loops.numel())
        col[place] = self.col[kept_edges]
        col[loop_place] = loops
        rank = torch.arange(kept_edges.numel(), device=kept.device)
        if self.edge_order is not None:  # among the caller's edges that are kept
            rank = (torch.empty_like(kept).index_copy_(0, self.edge_order.long(), kept).cumsum(0) - 1)[
                self.edge_order[kept]
            ]
        edge_order = torch.empty_like(col)
        edge_order[place] = rank.to(col.dtype)
        edge_order[loop_place] = loops + kept_edges.numel()
        return Neighbors(rowptr, col, self.num_keys, edge_order, check=False)

    def reorder_edges(self, edge_value: Tensor) -> Tensor:
        """Bring values given in the order of the caller's ``edge_index`` into the order of ``col``.

        Args:
            edge_value: One entry per edge of the ``edge_index`` the pattern was built from, ``[E, ...]``.

        Raises:
            ValueError: If the pattern was not built from an ``edge_index``, or the lengths differ.
        """
        if self.edge_order is None:
            raise ValueError("this pattern has no edge_order; build it with Neighbors.from_edge_index")
        check_tensors(edge_value=edge_value)
        if edge_value.size(0) != self.num_edges:
            raise ValueError(f"expected {self.num_edges} edge values, got {edge_value.size(0)}")
        return edge_value[self.edge_order]

    def to(self, *args: Any, **kwargs: Any) -> Neighbors:
        """Move to a device and/or change the index type, as `torch.Tensor.to`.

        Raises:
            ValueError: If int32 cannot count the queries, keys or edges.
        """
        rowptr = self.rowptr.to(*args, **kwargs)
        _check_fits(rowptr.dtype, queries=self.num_queries, keys=self.num_keys, edges=self.num_edges)
        order = None if self.edge_order is None else self.edge_order.to(*args, **kwargs)
        return Neighbors(rowptr, self.col.to(*args, **kwargs), self.num_keys, order, self.heads, check=False)

    def reorder(self, pos: Tensor | None = None, batch: Tensor | None = None) -> tuple[Neighbors, Tensor]:
        """Number the elements anew, so that those that attend to each other lie close to each other in memory.

        They are numbered along the Z-order curve of ``pos`` (attention is as fast along a Hilbert curve, which takes
        longer to make), or without positions by the graph alone (reverse Cuthill-McKee, Cuthill and McKee 1969; on the
        CPU, in a time that grows with the square of the largest degree).

        Args:
            pos: Positions of the elements, ``[N, D]``.
            batch: Sample of every element, ``[N]``: samples stay together, in ascending order.

        Returns:
            The pattern of the renumbered elements, see `permute`, and ``order`` ``[N]``, int64: new element ``i`` is
            old element ``order[i]``. So ``x[order]`` goes in, and ``torch.empty_like(y).index_copy(0, order, y)``
            brings what comes out into the old order.

        Raises:
            ValueError: If the queries are not the keys, or shapes do not fit.
        """
        count = self._num_elements()
        for name, value in (("pos", pos), ("batch", batch)):
            if value is None:
                continue
            check_tensors(**{name: value})
            if value.dim() == 0 or value.size(0) != count:
                raise ValueError(f"expected {name} of {count} elements, got {tuple(value.shape)}")
        if pos is not None:
            order = z_order(pos, batch).argsort(stable=True)
        else:
            order = self._cuthill_mckee(count)
            if batch is not None:
                order = order[batch[order].argsort(stable=True)]
        return self.permute(order), order

    def permute(self, order: Tensor) -> Neighbors:
        """The same pattern, of which element ``i`` is element ``order[i]`` of this one.

        Rows move as they are: inside a row the edges keep their order, so that nearest first stays nearest first, and
        ascending keys need not be ascending afterwards. The ``edge_order`` holds positions in the ``edge_index`` that
        this pattern was built from, or else in this pattern's ``col``.

        Args:
            order: A permutation of the elements, ``[N]``, int64. It is not checked to be one.

        Raises:
            ValueError: If the queries are not the keys, or ``order`` has another shape.
        """
        count = self._num_elements()
        check_tensors(order=order)
        if order.shape != (count,):
            raise ValueError(f"expected order [{count}], got {tuple(order.shape)}")
        head = torch.arange(self.heads, device=order.device)
        rows = (order.unsqueeze(1) * self.heads + head).flatten()
        new = torch.empty_like(self.rowptr[1:])
        new[rows] = torch.arange(self.num_queries, dtype=new.dtype, device=new.device)
        rowptr, position = _gather_rows(self.rowptr[:-1][rows], self.degree[rows], self.num_edges)
        edge_order = position if self.edge_order is None else self.edge_order[position]
        return Neighbors(rowptr, new[self.col[position]], self.num_keys, edge_order, self.heads, check=False)

    def _num_elements(self) -> int:
        if self.num_queries != self.num_keys:
            raise ValueError(f"only a pattern whose queries are its keys can be renumbered, not {self}")
        self.ensure_valid()
        return self.num_queries // self.heads

    def _cuthill_mckee(self, count: int) -> Tensor:
        _check_fits(torch.int32, edges=2 * self.num_edges)  # scipy's limit; both directions are edges
        rowptr = self.rowptr[:: self.heads].cpu().to(torch.int32).numpy()
        col = (self.col // self.heads).cpu().to(torch.int32).numpy()
        graph = scipy.sparse.csr_array((np.ones(self.num_edges, dtype=bool), col, rowptr), (count, count))
        order = scipy.sparse.csgraph.reverse_cuthill_mckee(graph, symmetric_mode=False)
        return torch.from_numpy(order.astype(np.int64)).to(self.col.device)

    def repeat(self, samples: int) -> Neighbors:
        """The pattern of a batch in which every sample has this one, such as all frames of one mesh.

        Query ``i`` of sample ``s`` is query ``s * N + i``, and so for keys. The ``edge_order`` counts likewise, so that
        `reorder_edges` takes the edge values of one sample after the other.

        Args:
            samples: How many, at least 0.

        Raises:
            TypeError: If the number is no integer.
            ValueError: If the number is negative, or the index type cannot count the edges.
        """
        samples = checked_integer("samples", samples, least=0)
        queries, keys, edges = samples * self.num_queries, samples * self.num_keys, samples * self.num_edges
        _check_fits(self.col.dtype, queries=queries, keys=keys, edges=edges)
        sample = torch.arange(samples, dtype=self.col.dtype, device=self.col.device).unsqueeze(1)
        end = (self.rowptr[1:] + sample * self.num_edges).flatten()
        rowptr = torch.cat([self.rowptr[:1], end])
        col = (self.col + sample * self.num_keys).flatten()
        order = None if self.edge_order is None else (self.edge_order + sample * self.num_edges).flatten()
        return Neighbors(rowptr, col, keys, order, self.heads, check=False)

    def to_edge_index(self) -> Tensor:
        """The edges as PyG has them, ``[2, E]``: row 0 the keys (sources), row 1 the queries (targets)."""
        return torch.stack([self.col, self.row])

    def __repr__(self) -> str:
        heads = f", heads={self.heads}" if self.heads > 1 else ""
        return f"Neighbors(queries={self.num_queries}, keys={self.num_keys}, edges={self.num_edges}{heads})"

    @classmethod
    def from_edge_index(
        cls,
        edge_index: Tensor,
        num_queries: int | None = None,
        num_keys: int | None = None,
        *,
        self_loops: bool = False,
        dtype: torch.dtype | None = None,
    ) -> Neighbors:
        """Build the pattern from PyG's ``edge_index``, duplicates kept.

        Args:
            edge_index: Edges ``[2, E]``: row 0 the keys (sources), row 1 the queries (targets).
            num_queries: Number of queries; default: largest index plus one, of both rows.
            num_keys: Number of keys; default: ``num_queries``.
            self_loops: Whether to replace loops as `with_self_loops` does.
            dtype: Index type of the pattern, int32 or int64; default: that of ``edge_index``.

        Raises:
            TypeError: If ``edge_index`` is no tensor, or a number no integer.
            ValueError: If the shape is not ``[2, E]``, a type is another, or an index is out of range or more than the
                type can count.
        """
        _check_edge_index(edge_index)
        if num_queries is None:
            num_queries = int(edge_index.max()) + 1 if edge_index.numel() else 0
        num_queries = checked_integer("num_queries", num_queries)
        num_keys = num_queries if num_keys is None else checked_integer("num_keys", num_keys)
        key, query = edge_index.as_tensor() if isinstance(edge_index, EdgeIndex) else edge_index
        dtype = edge_index.dtype if dtype is None else dtype
        if edge_index.is_floating_point() or edge_index.dtype == torch.bool or dtype not in (torch.int32, torch.int64):
            raise ValueError(f"expected edge_index and dtype int32 or int64, got {edge_index.dtype} and {dtype}")
        if native.in_memory(key, query):
            edges = key.numel() + min(num_queries, num_keys) * self_loops
            _check_fits(dtype, queries=num_queries, keys=num_keys, edges=edges)
        rowptr, col, order = compress(key, query, num_queries, num_keys, self_loops, dtype)
        pattern = cls(rowptr, col, num_keys, order, check=False)
        if not torch.compiler.is_compiling():
            pattern._valid = pattern.versions()
        return pattern

    @classmethod
    def per_head(cls, patterns: Sequence[Neighbors]) -> Neighbors:
        """Join the patterns of heads that attend to different keys into one.

        Head ``h`` follows ``patterns[h]``. Of the joined pattern, query ``i * H + h`` is head ``h`` of query ``i``, and
        key ``j * H + h`` is head ``h`` of key ``j``; ``heads`` is ``H``. Values per edge are one for each edge of each
        head: `reorder_edges` takes them in the order of the patterns' ``col``, one pattern after the other.

        Args:
            patterns: One for each head, of the same queries, keys, index type and device.

        Raises:
            ValueError: If there is none, they do not fit together, or one has heads already.
        """
        if isinstance(patterns, Neighbors):
            raise TypeError(f"expected a list of patterns, one for each head, got {patterns}")
        if not patterns:
            raise ValueError("expected one pattern for each head, got none")
        first, heads = patterns[0], len(patterns)
        for h, pattern in enumerate(patterns):
            check_neighbors(pattern, f"patterns[{h}]")
            pattern.ensure_valid()
            if pattern.heads != 1:
                raise ValueError(f"pattern {h} has heads of its own: {pattern}")
            if (pattern.num_queries, pattern.num_keys) != (first.num_queries, first.num_keys):
                raise ValueError(
                    f"all heads must have the same queries and keys, got {first} and, for head {h}, {pattern}"
                )
            if (pattern.col.dtype, pattern.col.device) != (first.col.dtype, first.col.device):
                raise ValueError(
                    f"all heads must have one index type and device, got {first.col.dtype} on {first.col.device} and, "
                    f"for head {h}, {pattern.col.dtype} on {pattern.col.device}"
                )
        num_keys, num_edges = first.num_keys * heads, sum(pattern.num_edges for pattern in patterns)
        _check_fits(first.col.dtype, queries=first.num_queries * heads, keys=num_keys, edges=num_edges)
        begin, joined, before = [], [], 0
        for h, pattern in enumerate(patterns):
            begin.append(pattern.rowptr[:-1] + before)
            joined.append(pattern.col * heads + h)
            before += pattern.num_edges
        degree = torch.stack([pattern.degree for pattern in patterns], 1).flatten()
        rowptr, position = _gather_rows(torch.stack(begin, 1).flatten(), degree, num_edges)
        return cls(rowptr, torch.cat(joined)[position], num_keys, position, heads, check=False)

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

        Raises:
            TypeError: If ``face`` is no tensor, or a number no integer.
            ValueError: If shapes do not fit, a vertex is out of range, or ``hops`` is less than 1.
        """
        check_tensors(face=face)
        if num_nodes is None:
            num_nodes = int(face.max()) + 1 if face.numel() else 0
        num_nodes = checked_integer("num_nodes", num_nodes)
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
    def k_hop(
        cls, edge_index: Tensor, hops: int, num_nodes: int | None = None, *, self_loops: bool = True
    ) -> Neighbors:
        """Every node attends to itself and to the nodes from which it is reached in at most ``hops`` edges.

        Args:
            edge_index: Edges ``[2, E]``: row 0 the sources, row 1 the targets.
            hops: At least 1.
            num_nodes: Number of nodes; default: largest index plus one.
            self_loops: Whether a node attends to itself; if not, loops of ``edge_index`` are left out, too.

        Raises:
            TypeError: If ``edge_index`` is no tensor, or a number no integer.
            ValueError: If the shape is not ``[2, E]``, an index is out of range, or ``hops`` is less than 1.
        """
        _check_edge_index(edge_index)
        hops = checked_integer("hops", hops, least=1)
        if num_nodes is None:
            num_nodes = int(edge_index.max()) + 1 if edge_index.numel() else 0
        num_nodes = checked_integer("num_nodes", num_nodes)
        check_range("edge_index", edge_index, num_nodes)
        source, target = edge_index.cpu().numpy()
        loops = np.arange(num_nodes)
        ones = np.ones(len(source) + num_nodes, dtype=bool)
        step = scipy.sparse.csr_array(
            (ones, (np.concatenate([target, loops]), np.concatenate([source, loops]))), (num_nodes, num_nodes)
        )
        reached = step
        for _ in range(hops - 1):
            reached = reached @ step
        if not self_loops:
            reached.setdiag(False)
            reached.eliminate_zeros()
        reached.sort_indices()
        _check_fits(edge_index.dtype, queries=num_nodes, edges=reached.nnz)
        rowptr = torch.from_numpy(reached.indptr).to(edge_index)
        return cls(rowptr, torch.from_numpy(reached.indices).to(edge_index), num_nodes, check=False)

    @classmethod
    def knn(
        cls,
        pos: Tensor,
        k: int,
        batch: Tensor | None = None,
        query_pos: Tensor | None = None,
        query_batch: Tensor | None = None,
        dilation: int = 1,
    ) -> Neighbors:
        """Every query attends to its ``k`` nearest keys, nearest first; see `geoattn.ops.knn`.

        Without ``query_pos`` the queries are the keys, and each is its own first neighbor. With a ``dilation`` ``d``,
        keys are the nearest, the ``d``-th after it, the ``2d``-th, ...: ``k`` keys from a region ``d`` times as large,
        as in the dilated neighborhoods of PointCNN (Li et al. 2018) and DeepGCNs (Li et al. 2019). Of a sample with too
        few keys, a query gets those that there are.

        Raises:
            TypeError: If points are no tensors, or a number no integer.
            ValueError: On bad shapes, non-finite coordinates, ``k < 1`` or ``dilation < 1``.
        """
        k, dilation = checked_integer("k", k, least=1), checked_integer("dilation", dilation, least=1)
        rowptr, col = search.knn(pos, (k - 1) * dilation + 1, batch, query_pos, query_batch)
        found = cls(rowptr, col, pos.size(0))
        if dilation == 1:
            return found
        rank = torch.arange(found.num_edges, device=col.device) - rowptr[found.row]
        degree = (found.degree + dilation - 1) // dilation
        rowptr = torch.cat([degree.new_zeros(1), degree.cumsum(0)])
        return cls(rowptr, col[rank % dilation == 0], pos.size(0))

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
        rowptr, col = search.radius(pos, r, batch, query_pos, query_batch, max_neighbors)
        return cls(rowptr, col, pos.size(0))


def check_neighbors(pattern: object, name: str = "pattern") -> None:
    """That an argument is `Neighbors`.

    Raises:
        TypeError: If not; the message says how to make one of what was given.
    """
    if not isinstance(pattern, Neighbors):
        raise TypeError(f"expected Neighbors as {name}, got {how_to_make_neighbors(pattern)}")


def how_to_make_neighbors(given: object) -> str:
    """What was given as a pattern, and what makes one of it."""
    if type(given).__name__ == "SparseTensor" or (isinstance(given, Tensor) and given.layout != torch.strided):
        return "a sparse matrix; make one with geoattn.patterns.as_neighbors(matrix, num_queries, num_keys)"
    if isinstance(given, (Tensor, np.ndarray)):
        is_tensor = isinstance(given, Tensor)
        return (
            f"a {'tensor' if is_tensor else 'numpy array'} {list(given.shape)}; of an edge_index [2, E], make one with "
            f"Neighbors.from_edge_index({'edge_index' if is_tensor else 'torch.from_numpy(edge_index)'}, num_nodes)"
        )
    if type(given).__name__ == "Windows":
        return f"{given}; write its pairs out with pattern.to_neighbors()"
    return f"{type(given).__name__}; make one with Neighbors.from_edge_index, Neighbors.knn or Neighbors.from_mesh"


def _check_edge_index(edge_index: Tensor) -> None:
    if isinstance(edge_index, Tensor) and edge_index.dim() == 2 and edge_index.size(0) == 2:
        return
    if isinstance(edge_index, Neighbors):
        raise TypeError(f"edge_index must be a tensor, got {edge_index}; pass pattern.to_edge_index()")
    check_tensors(edge_index=edge_index)
    hint = "; pass edge_index.t()" if edge_index.dim() == 2 and edge_index.size(1) == 2 else ""
    raise ValueError(f"expected edge_index [2, E], got {tuple(edge_index.shape)}{hint}")


def _normal(x: Tensor) -> Tensor:
    """No tensor of inference mode."""
    return x.clone() if x.is_inference() else x


def _gather_rows(begin: Tensor, degree: Tensor, num_edges: int) -> tuple[Tensor, Tensor]:
    """Rows put one after the other: their ``rowptr`` and, for every edge, the position it is taken from.

    Args:
        begin: Position of the first edge of each row, ``[N]``.
        degree: Number of edges of each row, ``[N]``.
        num_edges: Their sum.
    """
    rowptr = torch.cat([degree.new_zeros(1), degree.cumsum(0, dtype=degree.dtype)])
    moved = (begin - rowptr[:-1]).repeat_interleave(degree, output_size=num_edges)
    return rowptr, moved + torch.arange(num_edges, dtype=moved.dtype, device=moved.device)


def _check_fits(dtype: torch.dtype, **counts: int) -> None:
    """That every count can be written in ``dtype``."""
    for name, count in counts.items():
        if dtype == torch.int32 and count > INT32_MAX:
            raise ValueError(f"int32 cannot count {count} {name}; use int64 indices")
