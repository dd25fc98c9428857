"""Products along edges and sums over rows, each one node of autograd in the forms of `modes`.

They are made of each other's derivatives, so both can be differentiated any number of times; neither keeps anything per
edge but weights.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from geoattn.ops.backends import edges_cpu, edges_reference, edges_torch
from geoattn.ops.backends.choose import kernels_for
from geoattn.ops.backends.modes import traced, transforms_active
from geoattn.patterns import Neighbors
from geoattn.patterns.rows import transpose
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
    pattern.ensure_valid()
    missing: Pattern = [None] * 4
    columns, visits, column_visits = missing, missing, missing
    if of_key.requires_grad and torch.is_grad_enabled():
        if pattern._transpose is None and traced(of_key):
            edge = torch.empty_like(pattern.col)
            columns = [*transpose(pattern.rowptr, pattern.col, pattern.num_keys, edge), edge, None]
        else:
            by_key = pattern.transpose
            columns = [by_key.rowptr, by_key.col, by_key.edge_order, None]
    if backend != "torch" and of_key.numel() * of_key.element_size() >= VISIT_BYTES and not traced(of_key):
        visits = [*(pattern.visits() or missing)]
        column_visits = [*((pattern.visits(transposed=True) if columns is not missing else None) or missing)]
    return [pattern.rowptr, pattern.col, None, None, *columns, *visits, *column_visits]


def edge_dot(query: Tensor, key: Tensor, pattern: Pattern, backend: str | None) -> Tensor:
    """Dot products ``[E, H]``."""
    if backend == "reference" or transforms_active(query, key):
        return edges_reference.edge_dot(query, key, _rows(pattern))
    if traced(query, key):
        found: Tensor = _dot_operator(query, key, pattern, backend)
        return found
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad):
        return _EdgeDot.apply(query, key, pattern, backend)
    return _edge_dot(query, key, pattern, backend)


def weighted_sum(weight: Tensor, value: Tensor, pattern: Pattern, by_key: bool, backend: str | None) -> Tensor:
    """Sums ``[N, H, C]`` over rows of values of keys; ``by_key``, ``[M, H, C]`` over columns of values of queries."""
    if backend == "reference" or transforms_active(weight, value):
        return edges_reference.weighted_sum(weight, value, _rows(pattern, by_key))
    if traced(weight, value):
        found: Tensor = _sum_operator(weight, value, pattern, by_key, backend)
        return found
    if torch.is_grad_enabled() and (weight.requires_grad or value.requires_grad):
        return _WeightedSum.apply(weight, value, pattern, by_key, backend)
    return _weighted_sum(weight, value, pattern, by_key, backend)


def _rows(pattern: Pattern, by_key: bool = False) -> Visits:
    """The rows or the columns, in their own order."""
    return Visits(*pattern[4 if by_key else 0 :][:4])  # type: ignore[arg-type]


def _choose(x: Tensor, pattern: Pattern, by_key: bool, backend: str | None) -> tuple[ModuleType, Visits]:
    """The implementation, and the compressed rows it is to process."""
    name = kernels_for(backend, x, "products along edges")
    at = 4 if by_key else 0
    if name == "cpu" and pattern[at + 8] is not None:
        at += 8
    return edges_cpu if name == "cpu" else edges_torch, Visits(*pattern[at : at + 4])  # type: ignore[arg-type]


def _edge_dot(query: Tensor, key: Tensor, pattern: Pattern, backend: str | None) -> Tensor:
    implementation, rows = _choose(query, pattern, False, backend)
    return implementation.edge_dot(query, key, rows)


def _weighted_sum(weight: Tensor, value: Tensor, pattern: Pattern, by_key: bool, backend: str | None) -> Tensor:
    implementation, rows = _choose(value, pattern, by_key, backend)
    return implementation.weighted_sum(weight, value, rows)


# ---- Backward passes, of both forms ----------------------------------------------------------------------------------


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
        query, key = (value, grad) if by_key else (grad, value)
        grad_weight = edge_dot(query, key, pattern, backend)
    if ctx.needs_input_grad[1]:
        grad_value = weighted_sum(weight, grad, pattern, not by_key, backend)
    return grad_weight, grad_value, None, None, None


class _EdgeDot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        out = _edge_dot(*inputs)
        _keep(ctx, inputs, out)
        return out

    backward = staticmethod(_edge_dot_backward)


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        out = _weighted_sum(*inputs)
        _keep(ctx, inputs, out)
        return out

    backward = staticmethod(_weighted_sum_backward)


# ---- Compiled, exported, fake ----------------------------------------------------------------------------------------


_dot_operator = torch.library.custom_op(
    "geoattn::edge_dot",
    _edge_dot,
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor?[] pattern, str? backend) -> Tensor",
)
_sum_operator = torch.library.custom_op(
    "geoattn::weighted_sum",
    _weighted_sum,
    mutates_args=(),
    schema="(Tensor weight, Tensor value, Tensor?[] pattern, bool by_key, str? backend) -> Tensor",
)


@_dot_operator.register_fake
def _(query: Tensor, key: Tensor, pattern: Pattern, backend: str | None) -> Tensor:
    return query.new_empty(_rows(pattern).col.size(0), query.size(1))


@_sum_operator.register_fake
def _(weight: Tensor, value: Tensor, pattern: Pattern, by_key: bool, backend: str | None) -> Tensor:
    return value.new_empty(_rows(pattern, by_key).rowptr.size(0) - 1, *value.shape[1:])


_dot_operator.register_autograd(_edge_dot_backward, setup_context=_keep)
_sum_operator.register_autograd(_weighted_sum_backward, setup_context=_keep)
