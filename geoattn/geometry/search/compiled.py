"""Neighbor search and farthest point sampling by compiled k-d trees (csrc/search.cpp)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_double, c_int, c_int64, c_void_p
from functools import cache

import torch
from torch import Tensor

from geoattn import native
from geoattn.geometry.search.points import Points


def knn(points: Points, k: int, limit: float) -> tuple[Tensor, Tensor]:
    """The ``k`` nearest keys of every query within the squared distance ``limit``."""
    with _forest(points, torch.get_num_threads()) as (library, forest, queries):
        if limit == torch.inf:
            count = _keys_per_query(points).clamp(max=k)
        else:
            count = _counts(library, forest, queries, points, limit).clamp(max=k)
        rowptr, col = _rows(count)
        library.geoattn_forest_knn(
            forest, *queries, k, limit, rowptr.data_ptr(), col.data_ptr(), torch.get_num_threads()
        )
    return rowptr, col


def radius(points: Points, limit: float) -> tuple[Tensor, Tensor]:
    """All keys within the squared distance ``limit`` of every query."""
    with _forest(points, torch.get_num_threads()) as (library, forest, queries):
        rowptr, col = _rows(_counts(library, forest, queries, points, limit))
        library.geoattn_forest_radius(
            forest, *queries, limit, rowptr.data_ptr(), col.data_ptr(), torch.get_num_threads()
        )
    return rowptr, col


def farthest(points: Points, start: Tensor, count: Tensor) -> Tensor:
    """Of each sample ``count`` keys, ``start`` first, then always the farthest from those chosen."""
    # A sample is the work of one thread. Others that only help to build its tree gain less than they disturb.
    threads = min(torch.get_num_threads(), len(count))
    with _forest(points, threads) as (library, forest, _):
        rowptr, col = _rows(count)
        library.geoattn_forest_farthest(
            forest,
            points.key.data_ptr(),
            start.data_ptr(),
            rowptr.data_ptr(),
            col.data_ptr(),
            threads,
        )
    return col


@cache
def _library() -> ctypes.CDLL:
    library = native.library()
    assert library is not None
    search = [c_void_p, c_void_p, c_void_p, c_int64]  # forest, query, query_sample, queries
    declared = {
        "new": [c_void_p, c_int, c_int64, c_int, c_void_p, c_int64, c_int, c_void_p],
        "delete": [c_void_p],
        "knn": [*search, c_int64, c_double, c_void_p, c_void_p, c_int],
        "count": [*search, c_double, c_void_p, c_int],
        "radius": [*search, c_double, c_void_p, c_void_p, c_int],
        "farthest": [c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_int],
    }
    for name, arguments in declared.items():
        function = getattr(library, f"geoattn_forest_{name}")
        function.argtypes = arguments
    library.geoattn_forest_new.restype, library.geoattn_forest_delete.restype = c_void_p, None
    return library


@contextmanager
def _forest(points: Points, threads: int) -> Iterator[tuple[ctypes.CDLL, int, tuple[int | None, int | None, int]]]:
    """The library, a tree for every sample, and the queries as the library takes them."""
    library, (size, dim) = _library(), points.key.shape
    forest = library.geoattn_forest_new(
        points.key.data_ptr(),
        points.key.dtype == torch.float64,
        size,
        dim,
        points.ptr.data_ptr(),
        points.ptr.numel() - 1,
        threads,
        ctypes.cast(native.function("geoattn_distances"), c_void_p),  # type: ignore[arg-type]  # of a foreign function
    )
    if not forest:
        raise MemoryError(f"no memory for a tree over {size} points")
    query = None if points.query is None else points.query.data_ptr()
    sample = None if points.query is None or points.query_sample is None else points.query_sample.data_ptr()
    try:
        yield library, forest, (query, sample, points.num_queries)
    finally:
        library.geoattn_forest_delete(forest)


def _keys_per_query(points: Points) -> Tensor:
    size = points.ptr.diff()
    if points.query is None:
        return size.repeat_interleave(size, output_size=points.key.size(0))
    if points.query_sample is None:
        return size.expand(points.num_queries)
    sample = points.query_sample
    return size[sample.clamp(min=0)].where(sample >= 0, 0)


def _counts(
    library: ctypes.CDLL, forest: int, queries: tuple[int | None, int | None, int], points: Points, limit: float
) -> Tensor:
    count = torch.zeros(points.num_queries, dtype=torch.int64)
    library.geoattn_forest_count(forest, *queries, limit, count.data_ptr(), torch.get_num_threads())
    return count


def _rows(count: Tensor) -> tuple[Tensor, Tensor]:
    """``rowptr`` of rows of these lengths, and memory for what stands in them."""
    rowptr = count.new_zeros(len(count) + 1)
    torch.cumsum(count, 0, out=rowptr[1:])
    return rowptr, count.new_empty(int(rowptr[-1]))
