"""Products along edges, sums and maxima as operators of torch: autograd, compile and export see one node each.

`edge_dot` and `weighted_sum` are made of each other's derivatives, so both can be differentiated any number of times. A
backward pass of `weighted_max` that is to be differentiated again runs the reference formulas. None keeps anything per
edge but weights.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from geoattn.ops.backends import edges_cpu, edges_reference, edges_torch
from geoattn.ops.backends.choose import choose_simple
from geoattn.patterns import Neighbors
from geoattn.patterns.visits import Visits

Pattern = list[Tensor | None]

# Bytes of the rows that are gathered from which an order of visits pays, on a CPU with 32 MiB of cache.
VISIT_BYTES = 24 << 20


def arguments(pattern: Neighbors, of_key: Tensor, backend: str | None) -> Pattern:
    """A pattern as the operators take it: four tensors each for its rows, its columns, and both in the order of visits.

    Columns are for gradients that are summed along keys.

    Args:
        pattern: The pattern.
        of_key: What belongs to keys.
        backend: Name of the backend that is forced, if any.
    """
    by_key = of_key.requires_grad and torch.is_grad_enabled()
    missing: Pattern = [None] * 4
    columns, visits, column_visits = missing, missing, missing
    if by_key:
        turned = pattern.transpose
        columns = [turned.rowptr, turned.col, turned.edge_order, None]
    if backend != "torch" and of_key.numel() * of_key.element_size() >= VISIT_BYTES:
        visits = [*(pattern.visits() or missing)]
        column_visits = [*((pattern.visits(transposed=True) if by_key else None) or missing)]
    return [pattern.rowptr, pattern.col, None, None, *columns, *visits, *column_visits]


@torch.library.custom_op(
    "geoattn::edge_dot",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor?[] pattern, str? backend) -> Tensor",
)
def edge_dot(query: Tensor, key: Tensor, pattern: Pattern, backend: str | None) -> Tensor:
    """Dot products ``[E, H]``."""
    implementation, rows = _choose(query, pattern, False, backend)
    return implementation.edge_dot(query, key, rows)


@torch.library.custom_op(
    "geoattn::weighted_sum",
    mutates_args=(),
    schema="(Tensor weight, Tensor value, Tensor?[] pattern, bool by_key, str? backend) -> Tensor",
)
def weighted_sum(weight: Tensor, value: Tensor, pattern: Pattern, by_key: bool, backend: str | None) -> Tensor:
    """Sums ``[N, H, C]`` over rows of values of keys; ``by_key``, ``[M, H, C]`` over columns of values of queries."""
    implementation, rows = _choose(value, pattern, by_key, backend)
    return implementation.weighted_sum(weight, value, rows)


@edge_dot.register_fake
def _(query: Tensor, key: Tensor, pattern: Pattern, backend: str | None) -> Tensor:
    assert pattern[1] is not None
    return query.new_empty(pattern[1].size(0), query.size(1))


@weighted_sum.register_fake
def _(weight: Tensor, value: Tensor, pattern: Pattern, by_key: bool, backend: str | None) -> Tensor:
    rowptr = pattern[4 if by_key else 0]
    assert rowptr is not None
    return value.new_empty(rowptr.size(0) - 1, *value.shape[1:])


@torch.library.custom_op(
    "geoattn::weighted_max",
    mutates_args=(),
    schema="(Tensor weight, Tensor value, Tensor?[] pattern, str? backend) -> (Tensor, Tensor)",
)
def weighted_max(weight: Tensor, value: Tensor, pattern: Pattern, backend: str | None) -> tuple[Tensor, Tensor]:
    """Maxima over rows, and how many edges have each, ``[N, H, C]``; of float32 or float64."""
    implementation, rows = _choose(value, pattern, False, backend)
    return implementation.weighted_max(weight, value, rows)


@torch.library.custom_op(
    "geoattn::weighted_max_backward",
    mutates_args=(),
    schema="(Tensor weight, Tensor value, Tensor?[] pattern, str? backend, Tensor top, Tensor share)"
    " -> (Tensor, Tensor)",
)
def weighted_max_backward(
    weight: Tensor, value: Tensor, pattern: Pattern, backend: str | None, top: Tensor, share: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of weights and values, the latter empty where no columns were given."""
    implementation, rows = _choose(value, pattern, False, backend)
    columns = None if pattern[4] is None else _choose(value, pattern, True, backend)[1]
    grad_weight, grad_value = implementation.weighted_max_backward(weight, value, top, share, rows, columns)
    return grad_weight, value.new_empty(0) if grad_value is None else grad_value


@weighted_max.register_fake
def _(weight: Tensor, value: Tensor, pattern: Pattern, backend: str | None) -> tuple[Tensor, Tensor]:
    assert pattern[0] is not None
    shape = pattern[0].size(0) - 1, *value.shape[1:]
    return value.new_empty(shape), value.new_empty(shape)


@weighted_max_backward.register_fake
def _(weight: Tensor, value: Tensor, pattern: Pattern, *_: Any) -> tuple[Tensor, Tensor]:
    return weight.new_empty(weight.shape), value.new_empty(0 if pattern[4] is None else value.shape)


def _choose(x: Tensor, pattern: Pattern, by_key: bool, backend: str | None) -> tuple[ModuleType, Visits]:
    """The implementation, and the compressed rows it is to work on."""
    name = choose_simple(backend, x, "products along edges")
    at = 4 if by_key else 0
    if name == "cpu" and pattern[at + 8] is not None:
        at += 8
    return edges_cpu if name == "cpu" else edges_torch, Visits(*pattern[at : at + 4])  # type: ignore[arg-type]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    first, second, pattern, *ctx.settings = inputs
    ctx.save_for_backward(first, second, *pattern)


def _edge_dot_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    query, key, *pattern = ctx.saved_tensors
    (backend,) = ctx.settings
    grad_query = weighted_sum(grad, key, pattern, False, backend) if ctx.needs_input_grad[0] else None
    grad_key = weighted_sum(grad, query, pattern, True, backend) if ctx.needs_input_grad[1] else None
    return grad_query, grad_key, None, None


def _weighted_sum_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    weight, value, *pattern = ctx.saved_tensors
    by_key, backend = ctx.settings
    grad_weight = grad_value = None
    if ctx.needs_input_grad[0]:
        grad_weight = edge_dot(*((value, grad) if by_key else (grad, value)), pattern, backend)
    if ctx.needs_input_grad[1]:
        grad_value = weighted_sum(weight, grad, pattern, not by_key, backend)
    return grad_weight, grad_value, None, None, None


def _keep_maxima(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    weight, value, pattern, ctx.backend = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(weight, value, *output, *pattern)


def _weighted_max_backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    weight, value, top, count, *pattern = ctx.saved_tensors
    if torch.is_grad_enabled():
        weight_, value_ = weight.view_as(weight), value.view_as(value)  # where this backward pass ends
        out = edges_reference.weighted_max(weight_, value_, pattern[0], pattern[1])
        wanted = [x for x, needed in zip((weight_, value_), ctx.needs_input_grad, strict=False) if needed]
        found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
        grads = [next(found) if needed else None for needed in ctx.needs_input_grad[:2]]
    else:
        both = weighted_max_backward(weight, value, pattern, ctx.backend, top, grad / count)
        grads = [x if needed else None for x, needed in zip(both, ctx.needs_input_grad, strict=False)]
    return *grads, None, None


edge_dot.register_autograd(_edge_dot_backward, setup_context=_keep)
weighted_sum.register_autograd(_weighted_sum_backward, setup_context=_keep)
weighted_max.register_autograd(_weighted_max_backward, setup_context=_keep_maxima)
