"""Any graph that PyTorch Geometric takes, as a pattern; a graph that is used again is sorted once."""

from __future__ import annotations

import weakref
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.index import ptr2index
from torch_geometric.typing import SparseTensor
from torch_geometric.utils import is_torch_sparse_tensor

from geoattn import native
from geoattn._arguments import described
from geoattn.patterns.neighbors import INT32_MAX, Neighbors

Adjacency: TypeAlias = Tensor | SparseTensor | Neighbors


class _Kept(NamedTuple):
    version: tuple[object, ...]  # of the tensor, when the patterns were made
    patterns: dict[tuple[int, int, bool], Neighbors]  # by size and loops
    forget: weakref.ref[Tensor | SparseTensor]  # drops all of this when the tensor goes


_made: dict[int, _Kept] = {}  # by the id of the tensor


def as_neighbors(
    adjacency: Adjacency,
    num_queries: int,
    num_keys: int | None = None,
    *,
    self_loops: bool = False,
) -> Neighbors:
    """The pattern of a graph in any form that layers of PyTorch Geometric take.

    The pattern is kept for as long as the tensor lives, so that a graph that is used again, in the next layer or the
    next epoch, is sorted once. A tensor that was changed in place is sorted anew; as with autograd, changes
    through ``.data`` or numpy are not seen. Nothing is kept while compiling and for tensors made in inference mode.

    Args:
        adjacency: ``edge_index`` ``[2, E]``, row 0 the keys (sources), row 1 the queries (targets); PyG's
            ``EdgeIndex``, whose cached rows and columns are used; the transposed adjacency matrix ``[N, M]`` as torch's
            sparse COO, CSR or CSC tensor or as ``SparseTensor``; or a pattern.
        num_queries: Number of queries ``N``.
        num_keys: Number of keys ``M``; default: ``num_queries``.
        self_loops: Whether to apply `Neighbors.with_self_loops`.

    Returns:
        The pattern. Its ``edge_order`` counts the edges as PyG does: in the order of ``edge_index``, or of a sparse
        matrix sorted by rows.

    Raises:
        ValueError: If the graph does not have this size, or an index is out of range.
        TypeError: If it is none of these.
    """
    settings = num_queries, num_queries if num_keys is None else num_keys, self_loops
    version = _version(adjacency)
    if version is None:
        return _make(adjacency, *settings)
    name = id(adjacency)
    kept = _made.get(name)
    if kept is None or kept.version != version:
        forget = None if kept is None else kept.forget
        kept = _made[name] = _Kept(version, {}, forget or weakref.ref(adjacency, lambda _: _made.pop(name, None)))
    pattern = kept.patterns.get(settings)
    if pattern is None:
        with native.outside_modes():
            pattern = kept.patterns[settings] = _make(adjacency, *settings)
    return pattern


def _version(adjacency: Adjacency) -> tuple[object, ...] | None:
    """What changes when the tensor is changed in place; None if that cannot be known, or nothing is to be kept."""
    if isinstance(adjacency, SparseTensor):
        part = adjacency.storage.col()
    elif isinstance(adjacency, Tensor):
        part = adjacency
    else:
        return None
    values = part.as_tensor() if isinstance(part, EdgeIndex) else part
    return (part._version, part.shape) if native.in_memory(values) and not values.is_inference() else None


def _make(adjacency: Adjacency, num_queries: int, num_keys: int, self_loops: bool) -> Neighbors:
    size = num_queries, num_keys
    if isinstance(adjacency, Neighbors):
        pattern = adjacency
    elif isinstance(adjacency, SparseTensor) or (isinstance(adjacency, Tensor) and is_torch_sparse_tensor(adjacency)):
        if (adjacency.size(0), adjacency.size(1)) != size:
            raise ValueError(
                f"expected a matrix of {num_queries} rows (queries) and {num_keys} columns (keys), "
                f"got {adjacency.size(0)} and {adjacency.size(1)}"
            )
        pattern = _from_matrix(adjacency, *size)
    elif isinstance(adjacency, EdgeIndex) and adjacency.is_sorted and not torch.compiler.is_compiling():
        pattern = _from_edge_index(adjacency, *size)
    elif isinstance(adjacency, Tensor):
        edge_index = adjacency.as_tensor() if isinstance(adjacency, EdgeIndex) else adjacency
        if edge_index.is_floating_point() or edge_index.dtype == torch.bool:
            raise ValueError(f"expected an edge_index of integers, got {edge_index.dtype}")
        narrow = max(*size, edge_index.size(-1)) < INT32_MAX // 2  # so that loops fit, too
        dtype = torch.int32 if narrow else torch.int64
        return Neighbors.from_edge_index(edge_index, *size, self_loops=self_loops, dtype=dtype)
    else:
        given = described("edge_index", adjacency)
        raise TypeError(f"expected an edge_index, a sparse matrix or Neighbors as edge_index, got {given}")
    if (pattern.num_queries, pattern.num_keys) != size:
        raise ValueError(f"expected a pattern of {num_queries} queries and {num_keys} keys, got {pattern}")
    return pattern.with_self_loops() if self_loops else pattern


def _from_matrix(matrix: Tensor | SparseTensor, num_queries: int, num_keys: int) -> Neighbors:
    """Rows of a matrix are queries; edges are counted as its values are."""
    if isinstance(matrix, SparseTensor):
        rowptr, col, _ = matrix.csr()
    elif matrix.layout == torch.sparse_csr:
        rowptr, col = matrix.crow_indices(), matrix.col_indices()
    else:
        if matrix.layout == torch.sparse_csc:
            query, key = matrix.row_indices(), ptr2index(matrix.ccol_indices())
        else:
            query, key = matrix._indices()
        return Neighbors.from_edge_index(torch.stack([key, query]), num_queries, num_keys)
    return Neighbors(rowptr, col, num_keys, torch.arange(col.numel(), device=col.device))


def _from_edge_index(edge_index: EdgeIndex, num_queries: int, num_keys: int) -> Neighbors:
    """With the rows and columns that a sorted ``EdgeIndex`` has, or makes and then has."""
    had_columns = edge_index.is_sorted_by_row or edge_index._T_perm is not None
    (rowptr, col), order = edge_index.get_csc()
    order = torch.arange(col.numel(), device=col.device) if order is None else order.long()
    pattern = Neighbors(_extended(rowptr, num_queries), col, num_keys, order)
    if had_columns:
        (rowptr, row), of_key = edge_index.get_csr()
        place = torch.empty_like(order).index_copy_(0, order, torch.arange(order.numel(), device=order.device))
        place = (place if of_key is None else place[of_key.long()]).to(col.dtype)
        pattern._transpose = Neighbors(_extended(rowptr, num_keys), row, num_queries, place, check=False)
    return pattern


def _extended(rowptr: Tensor, rows: int) -> Tensor:
    """With empty rows at the end, where an ``EdgeIndex`` does not know how many there are."""
    missing = rows + 1 - rowptr.numel()
    return torch.cat([rowptr, rowptr[-1:].expand(missing)]) if missing > 0 else rowptr
