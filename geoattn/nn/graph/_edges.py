"""A function of every edge that keeps nothing per edge: it runs on some rows at a time, and again going backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geoattn.patterns import Neighbors

# A chunk has at most as many edges and one row more. A GPU needs large ones to be worth the launches.
EDGES_PER_CHUNK = {"cpu": 1 << 14, "cuda": 1 << 18}

EdgeFunction = Callable[..., Tensor]


def by_rows(
    function: EdgeFunction,
    query: Tensor,
    key: Tensor,
    pattern: Neighbors,
    edge: Tensor | None = None,
    parameters: Sequence[Tensor] = (),
) -> Tensor:
    """``function`` of all rows, some at a time, and again in the backward pass, so that nothing per edge is kept.

    The function must depend on tensors through its arguments only, leave them as they are, and draw no random numbers.
    Differentiable any number of times: derivatives of derivatives keep what the function makes of all edges.

    Args:
        function: Maps ``(query [r, ...], key [e, ...], row [e], edge [e, ...], *parameters)`` to ``[r, ...]``: ``r``
            rows, the keys of their ``e`` edges, the row in ``[0, r)`` of every edge, int64, and what belongs to edges.
        query: ``[N, ...]``.
        key: ``[M, ...]``.
        pattern: Of ``N`` queries and ``M`` keys.
        edge: ``[E, ...]``, in the order of ``pattern.col``.
        parameters: Tensors that all edges share.

    Returns:
        ``[N, ...]``.

    Raises:
        RuntimeError: If the function draws random numbers.
    """
    if torch.compiler.is_compiling():
        return _whole(function, pattern, query, key, edge, *parameters)
    return _ByRows.apply(function, pattern, query, key, edge, *parameters)


def add_rows(total: Tensor, index: Tensor, part: Tensor) -> None:
    """``total[index] += part``, in the same order every time."""
    if total.is_cuda:  # index_add_ adds atomically there
        total.index_put_((index,), part, accumulate=True)
    else:
        total.index_add_(0, index, part)


def edges_per_chunk(pattern: Neighbors) -> int:
    """How many edges to take at a time."""
    return EDGES_PER_CHUNK["cpu" if pattern.col.device.type == "cpu" else "cuda"]


class _Chunk(NamedTuple):
    rows: slice
    edges: slice
    row: Tensor  # of every edge, counted from the first of the chunk
    col: Tensor


def _chunks(pattern: Neighbors) -> Iterator[_Chunk]:
    size, device = edges_per_chunk(pattern), pattern.rowptr.device
    cuts, first = [0, pattern.num_queries], [0, pattern.num_edges]
    if pattern.num_edges > size:
        starts = torch.arange(0, pattern.num_edges, size, dtype=pattern.rowptr.dtype, device=device)
        cut = torch.searchsorted(pattern.rowptr, starts)
        cut = torch.cat([cut, cut.new_tensor([pattern.num_queries])]).unique_consecutive()
        cuts, first = torch.stack([cut, pattern.rowptr[cut]]).tolist()
    for c in range(len(cuts) - 1):
        rows, edges = slice(cuts[c], cuts[c + 1]), slice(first[c], first[c + 1])
        yield _Chunk(rows, edges, pattern.row[edges].long() - cuts[c], pattern.col[edges].long())


def _whole(
    function: EdgeFunction, pattern: Neighbors, query: Tensor, key: Tensor, edge: Tensor | None, *parameters: Tensor
) -> Tensor:
    return function(query, key.index_select(0, pattern.col.long()), pattern.row.long(), edge, *parameters)


class _ByRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        function: EdgeFunction,
        pattern: Neighbors,
        query: Tensor,
        key: Tensor,
        edge: Tensor | None,
        *parameters: Tensor,
    ) -> Tensor:
        device = query.device.type
        ctx.function, ctx.pattern = function, pattern
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        ctx.save_for_backward(query, key, edge, *parameters)
        before = _random_state(query.device)
        out = []
        for rows, edges, row, col in _chunks(pattern):
            of_edges = None if edge is None else edge[edges]
            out.append(function(query[rows], key.index_select(0, col), row, of_edges, *parameters))
        if not torch.equal(before, _random_state(query.device)):
            raise RuntimeError("a function of edges runs again in the backward pass: it must draw no random numbers")
        return torch.cat(out) if len(out) > 1 else out[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[2:]
        device, dtype, enabled = ctx.autocast
        with torch.autocast(device, dtype, enabled, cache_enabled=False):
            if torch.is_grad_enabled():
                found = differentiable(partial(_whole, ctx.function, ctx.pattern), ctx.saved_tensors, needs, grad)
            else:
                found = _gradients(ctx.function, ctx.pattern, ctx.saved_tensors, needs, grad)
        return None, None, *found


def _gradients(
    function: EdgeFunction,
    pattern: Neighbors,
    tensors: Sequence[Tensor | None],
    needs: Sequence[bool],
    grad: Tensor,
) -> list[Tensor | None]:
    query, key, edge, *parameters = tensors
    assert query is not None
    assert key is not None
    totals = {
        i: torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        for i, x in enumerate(tensors)
        if x is not None and needs[i]
    }
    for rows, edges, row, col in _chunks(pattern):
        parts = [query[rows], key.index_select(0, col), None if edge is None else edge[edges], *parameters]
        ends = [None if x is None else x.detach().requires_grad_(i in totals) for i, x in enumerate(parts)]
        with torch.enable_grad():
            out = function(ends[0], ends[1], row, *ends[2:])
        wanted = [x for x in ends if x is not None and x.requires_grad]
        found = torch.autograd.grad(out, wanted, grad[rows], allow_unused=True)
        for (i, total), part in zip(totals.items(), found, strict=True):
            if part is None:
                continue
            if i == 1:
                add_rows(total, col, part.to(total.dtype))
            else:
                total[{0: rows, 2: edges}.get(i, ...)] += part
    return [totals[i].to(x.dtype) if x is not None and i in totals else None for i, x in enumerate(tensors)]


def differentiable(
    function: EdgeFunction, tensors: Sequence[Tensor | None], needs: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """Gradients of ``function(*tensors)`` where needed, as functions of the tensors and of the upstream gradient."""
    ends = [None if x is None else x.view_as(x) for x in tensors]  # where this backward pass ends
    wanted = [x for x, needed in zip(ends, needs, strict=True) if x is not None and needed]
    found = iter(torch.autograd.grad(function(*ends), wanted, grad, create_graph=True, allow_unused=True))
    return [next(found) if needed else None for needed in needs]


def _random_state(device: torch.device) -> Tensor:
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else state
