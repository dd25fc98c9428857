"""Functions of the edges of rows that keep nothing per edge: run on some rows at a time, and again going backward.

A backward pass that is itself differentiated, and every transform of `torch.func`, differentiates the function of all
edges at once instead, which keeps what it makes of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from geoattn.ops.backends.modes import differentiable, traced, transforms_active
from geoattn.patterns import Neighbors

# A chunk has fewer edges and one row more. On a CPU its tensors stay in cache; a GPU needs large ones to be worth the
# launches.
EDGES_PER_CHUNK = {"cpu": 1 << 13, "cuda": 1 << 18}

EdgeFunction = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor], Tensor, Sequence[Any]], Tensor]


def recompute(
    function: EdgeFunction,
    pattern: Neighbors,
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    edges: Sequence[Tensor] = (),
    shared: Sequence[Any] = (),
    formulas: EdgeFunction | None = None,
) -> Tensor:
    """``function`` of all rows, some at a time, and again in the backward pass, so that nothing per edge is kept.

    It is computed `of_all_rows` at once where that is as good or the only right way: for few edges, while compiling,
    for fake tensors, under `torch.func` and in forward-mode differentiation; where modules have hooks or a ``forward``
    of their own; and where rows depend on each other, random numbers are drawn, or something is changed or remembered,
    which trying it on two rows tells.

    Half types are accumulated in float32 where edges meet in a key. The same input gives the same bits, run after run.

    Args:
        function: Maps ``(queries, keys, edges, row, shared)`` to ``[r, ...]``: of ``r`` rows with ``e`` edges, the
            tensors of the queries ``[r, ...]``, those of keys, one entry for every edge ``[e, ...]``, those of edges
            ``[e, ...]``, the row of every edge in ``[0, r)``, ascending, int64, ``[e]``, and all of ``shared``.
        pattern: Of ``N`` queries and ``M`` keys.
        queries: Tensors ``[N, ...]``.
        keys: Tensors ``[M, ...]``.
        edges: Tensors ``[E, ...]``, in the order of ``pattern.col``.
        shared: What all edges share: tensors, modules, and what holds no tensors.
        formulas: What computes all rows at once, if that is not ``function``, which then need be differentiable only
            once and must not keep what it is given.

    Returns:
        ``[N, ...]``.
    """
    if (
        not traced()
        and not transforms_active()
        and pattern.num_edges > edges_per_chunk(pattern.col.device)
        and _plain(shared)
    ):
        call, tensors = _call(function, formulas or function, pattern, queries, keys, edges, shared)
        if _can_be_cut(call, tensors):
            if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
                return _Recomputed.apply(call, *tensors)
            return _forward(call, tensors)
    return of_all_rows(formulas or function, pattern, queries, keys, edges, shared)


def of_all_rows(
    function: EdgeFunction,
    pattern: Neighbors,
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    edges: Sequence[Tensor] = (),
    shared: Sequence[Any] = (),
) -> Tensor:
    """``function`` of all rows at once, for autograd to differentiate; arguments as in `recompute`."""
    return function(queries, [gather(x, pattern.col) for x in keys], edges, pattern.row.long(), shared)


def edges_per_chunk(device: torch.device) -> int:
    """How many edges to take at a time."""
    return EDGES_PER_CHUNK["cpu" if device.type == "cpu" else "cuda"]


def slices(rowptr: Tensor, num_edges: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Slices of rows and of their edges, cut where ``rowptr`` alone says.

    They cover all rows, and have fewer than ``size`` edges and one row more.
    """
    rows = rowptr.numel() - 1
    if num_edges <= size:
        yield slice(0, rows), slice(0, num_edges)
        return
    starts = torch.arange(0, num_edges, size, dtype=rowptr.dtype, device=rowptr.device)
    cuts = torch.searchsorted(rowptr, starts)
    cuts = torch.cat([cuts, cuts.new_tensor([rows])]).unique_consecutive()
    row, edge = torch.stack([cuts, rowptr[cuts]]).tolist()  # one transfer for all that the host must know
    for c in range(len(row) - 1):
        yield slice(row[c], row[c + 1]), slice(edge[c], edge[c + 1])


class Chunk(NamedTuple):
    """Some rows and their edges."""

    rows: slice
    edges: slice
    row: Tensor  # of every edge, counted from the first of the chunk, int64
    col: Tensor  # of every edge


def chunks(pattern: Neighbors) -> Iterator[Chunk]:
    """All rows of a pattern in chunks."""
    pattern.ensure_valid()
    for rows, edges in slices(pattern.rowptr, pattern.num_edges, edges_per_chunk(pattern.col.device)):
        degree = pattern.rowptr[rows.start : rows.stop + 1].diff()
        row = torch.arange(degree.numel(), device=degree.device)
        row = row.repeat_interleave(degree, output_size=edges.stop - edges.start)
        yield Chunk(rows, edges, row, pattern.col[edges])


def gather(x: Tensor, index: Tensor) -> Tensor:
    """``x[index]`` along the first dimension, whose gradient is accumulated in float32 at least, in a fixed order."""
    wide = x.to(sum_dtype(x))
    found = wide.index_select(0, index) if x.device.type == "cpu" else wide[index.long()]
    return found.to(x.dtype)


def add_at(target: Tensor, index: Tensor, x: Tensor) -> None:
    """``target[index] += x``, in a fixed order: on a GPU `index_add_` has none."""
    if target.device.type == "cpu":
        target.index_add_(0, index, x)
    else:
        target.index_put_((index.long(),), x, accumulate=True)


def sum_dtype(x: Tensor) -> torch.dtype:
    """The accumulation dtype."""
    return torch.promote_types(x.dtype, torch.float32)


# ---- Chunk after chunk -----------------------------------------------------------------------------------------------


class _Call(NamedTuple):
    """What a call is made of, except for tensors: those of queries, keys and edges, then those of what is shared."""

    function: EdgeFunction
    formulas: EdgeFunction
    pattern: Neighbors
    of_keys: int  # number of the first tensor of keys, and so on
    of_edges: int
    of_shared: int
    shared: list[Any]  # modules as they were in the forward pass
    autocast: tuple[str, torch.dtype, bool]

    def run(self, tensors: Sequence[Tensor], row: Tensor, shared: Sequence[Any]) -> Tensor:
        """The function of a chunk's tensors."""
        queries, keys, edges = (
            tensors[: self.of_keys],
            tensors[self.of_keys : self.of_edges],
            tensors[self.of_edges : self.of_shared],
        )
        return self.function(queries, keys, edges, row, shared)

    def of_all(self, *tensors: Tensor) -> tuple[Tensor]:
        """The function of all rows."""
        queries, keys, edges = (
            tensors[: self.of_keys],
            tensors[self.of_keys : self.of_edges],
            tensors[self.of_edges : self.of_shared],
        )
        shared = with_tensors(self.shared, tensors[self.of_shared :])
        return (of_all_rows(self.formulas, self.pattern, queries, keys, edges, shared),)

    def cut(self, tensors: Sequence[Tensor], chunk: Chunk) -> list[Tensor]:
        """The tensors of a chunk."""
        return [
            *(x[chunk.rows] for x in tensors[: self.of_keys]),
            *(x.index_select(0, chunk.col) for x in tensors[self.of_keys : self.of_edges]),
            *(x[chunk.edges] for x in tensors[self.of_edges : self.of_shared]),
            *tensors[self.of_shared :],
        ]

    def add(self, total: Tensor, number: int, part: Tensor, chunk: Chunk) -> None:
        """Add the gradient of a chunk's tensor to that of the tensor of this number."""
        if number < self.of_keys:
            total[chunk.rows] += part
        elif number < self.of_edges:
            add_at(total, chunk.col, part.to(total.dtype))
        elif number < self.of_shared:
            total[chunk.edges] += part
        else:
            total += part


def _call(
    function: EdgeFunction,
    formulas: EdgeFunction,
    pattern: Neighbors,
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    edges: Sequence[Tensor],
    shared: Sequence[Any],
) -> tuple[_Call, list[Tensor]]:
    """A call and its tensors."""
    device = queries[0].device.type
    autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    counts = len(queries), len(queries) + len(keys), len(queries) + len(keys) + len(edges)
    of_shared = [x for item in shared for x in tensors_of(item)]
    kept = [_replica(item, {}) if isinstance(item, Module) else item for item in shared]
    return _Call(function, formulas, pattern, *counts, kept, autocast), [*queries, *keys, *edges, *of_shared]


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(*tensors)
        ctx.versions = call.pattern.versions()
        return _forward(call, tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        call, tensors, needs = ctx.call, ctx.saved_tensors, ctx.needs_input_grad[1:]
        if ctx.versions != call.pattern.versions():
            raise RuntimeError("the pattern was modified by an inplace operation since the forward pass")
        device, dtype, enabled = call.autocast
        with torch.autocast(device, dtype, enabled, cache_enabled=False):
            if torch.is_grad_enabled() or transforms_active(grad):
                return None, *differentiable(call.of_all, tensors, needs, (grad,))
            return None, *_backward(call, tensors, needs, grad)


def _forward(call: _Call, tensors: Sequence[Tensor]) -> Tensor:
    shared = with_tensors(call.shared, tensors[call.of_shared :])
    return torch.cat([call.run(call.cut(tensors, chunk), chunk.row, shared) for chunk in chunks(call.pattern)])


def _backward(call: _Call, tensors: Sequence[Tensor], needs: Sequence[bool], grad: Tensor) -> list[Tensor | None]:
    totals = {
        number: torch.zeros_like(x, dtype=sum_dtype(x), memory_format=torch.contiguous_format)
        for number, (x, needed) in enumerate(zip(tensors, needs, strict=True))
        if needed
    }
    for chunk in chunks(call.pattern):
        parts = [x.detach().requires_grad_(n in totals) for n, x in enumerate(call.cut(tensors, chunk))]
        with torch.enable_grad():
            out = call.run(parts, chunk.row, with_tensors(call.shared, parts[call.of_shared :]))
        if out.requires_grad:
            found = torch.autograd.grad(out, [parts[n] for n in totals], grad[chunk.rows], allow_unused=True)
            for (number, total), part in zip(totals.items(), found, strict=True):
                if part is not None:
                    call.add(total, number, part, chunk)
    return [totals[n].to(x.dtype) if n in totals else None for n, x in enumerate(tensors)]


# ---- Modules with other tensors --------------------------------------------------------------------------------------


def tensors_of(item: Any) -> list[Tensor]:
    """Parameters and buffers of a module, shared ones once; a tensor itself."""
    if isinstance(item, Module):
        return [*item.parameters(), *item.buffers()]
    return [item] if isinstance(item, Tensor) else []


def with_tensors(shared: Sequence[Any], tensors: Sequence[Tensor]) -> list[Any]:
    """What is shared with other tensors in the order of `tensors_of`."""
    left = iter(tensors)
    found: list[Any] = []
    for item in shared:
        new = {id(x): next(left) for x in tensors_of(item)}
        found.append(_replica(item, new) if isinstance(item, Module) else new.get(id(item), item))
    return found


def _replica(module: Module, tensors: dict[int, Tensor]) -> Module:
    """A module that shares all with another but some tensors, by their ids.

    Unlike in `torch.func.functional_call` the other is not touched: other threads may be running it.
    """
    replicas: dict[int, Module] = {}
    modules = list(module.modules())
    for each in modules:
        replica = replicas[id(each)] = object.__new__(type(each))
        replica.__dict__.update(each.__dict__)
        for kind in ("_parameters", "_buffers"):
            replica.__dict__[kind] = {name: tensors.get(id(x), x) for name, x in each.__dict__[kind].items()}
    for each in modules:
        replicas[id(each)].__dict__["_modules"] = {
            name: None if child is None else replicas[id(child)] for name, child in each._modules.items()
        }
    return replicas[id(module)]


def _plain(shared: Sequence[Any]) -> bool:
    """Whether modules are what their classes, parameters and buffers say: without hooks and forwards of their own."""
    modules = [module for item in shared if isinstance(item, Module) for module in item.modules()]
    return not (modules and _has_any_global_hook()) and not any(
        isinstance(module, torch.jit.ScriptModule)
        or "forward" in module.__dict__
        or has_hooks(module)
        or any(is_lazy(p) for p in module._parameters.values() if p is not None)
        for module in modules
    )


def has_hooks(module: Module) -> bool:
    """Whether something is called before or after a module itself."""
    return bool(
        module._forward_pre_hooks or module._forward_hooks or module._backward_pre_hooks or module._backward_hooks
    )


# ---- What can be computed some rows at a time ------------------------------------------------------------------------


class RandomNumbers(Exception):  # noqa: N818 - not an error
    """The function draws random numbers."""


class RefuseRandom(TorchDispatchMode):
    """Stops before a random number is drawn: in this thread, whatever others draw, and from whatever generator."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise RandomNumbers
        return func(*args, **(kwargs or {}))


@torch.inference_mode(False)  # so that changes of copies can be seen
def _can_be_cut(call: _Call, tensors: Sequence[Tensor]) -> bool:
    """Whether rows can be computed one by one, and again, to the same results.

    The function is tried on two rows of two edges, on both together and on the first alone. What is shared is copied
    before, and must not be changed. No tensor may take part in a derivative that is not among the inputs.
    """
    tried = []
    for rows in (2, 1):
        counts = [rows if n < call.of_keys else 2 * rows for n in range(call.of_shared)]
        made = [_waves((count, *x.shape[1:]), x) for count, x in zip(counts, tensors, strict=False)]
        # Behind weights that are zero at first, nothing would show.
        made += [
            _waves(x.shape, x) if x.requires_grad and not x.any() else x.detach().clone()
            for x in tensors[call.of_shared :]
        ]
        tried.append([x.requires_grad_(like.requires_grad) for x, like in zip(made, tensors, strict=True)])
    both, one = tried
    shared = with_tensors(call.shared, both[call.of_shared :])
    modules = [module for item in shared if isinstance(item, Module) for module in item.modules()]
    attributes, versions = [dict(module.__dict__) for module in modules], [x._version for x in both]
    row = torch.arange(2, device=both[0].device).repeat_interleave(2)
    try:
        with torch.enable_grad(), RefuseRandom():
            out = call.run(both, row, shared)
            part = call.run(one, row[:2], shared)
    except RandomNumbers:
        return False
    if (
        versions != [x._version for x in both]
        or not all(_same_objects(old, module.__dict__) for old, module in zip(attributes, modules, strict=True))
        or not _leaves(out) <= {id(x) for x in both}
    ):
        return False
    out, part = out.detach()[:1], part.detach()
    tolerance = torch.finfo(out.dtype).eps ** 0.5
    largest = float(out.abs().nan_to_num(posinf=0).max()) if out.numel() else 0.0
    return torch.allclose(out, part, tolerance, tolerance * largest, equal_nan=True)


def _waves(shape: Sequence[int], like: Tensor) -> Tensor:
    """Numbers that differ from each other, the same for every number of rows as far as they go."""
    x = torch.arange(math.prod(shape), device=like.device, dtype=torch.float32).mul_(1.7).sin_()
    return x.view(*shape).to(like.dtype)


def _same_objects(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(second[name] is x for name, x in first.items())


def _leaves(out: Tensor) -> set[int]:
    """What a result was computed from, as far as it wants gradients."""
    found, seen, todo = set(), set(), [out.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        todo.extend(next_node for next_node, _ in node.next_functions)
    return found
