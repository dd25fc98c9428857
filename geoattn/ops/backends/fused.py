"""`attend` over `Neighbors` as one node of autograd, with the kernels of a backend in both directions.

It keeps its inputs and the log-sum-exp for the backward pass, its output where the backend reads it there, and nothing
per edge. It has three forms (see `modes`): a function of autograd; an operator of torch's library, for what is
compiled, exported or fake; and the plain formulas of the reference, which can be differentiated and transformed in any
way.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from geoattn.ops.backends import reference
from geoattn.ops.backends.choose import choose
from geoattn.ops.backends.modes import differentiable, traced, transforms_active, without_autocast
from geoattn.ops.backends.problem import Backend, Gradients, Problem
from geoattn.patterns import Neighbors
from geoattn.patterns.rows import transpose
from geoattn.patterns.visits import Visits

_INPUTS = Gradients._fields  # what has gradients


def attend(problem: Problem, pattern: Neighbors, name: str | None) -> tuple[Tensor, Tensor]:
    """Output ``[N, H, C]`` and log-sum-exp ``[N, H]``, on the backend ``name`` or the best one where it is None."""
    if name == "reference" or transforms_active():
        pattern.ensure_valid()
        return reference.forward(problem)
    inputs = _inputs(problem)
    if traced(*inputs):
        return _call_operator(problem, pattern, name)
    backend = choose(problem, name)
    if backend.VISITS:
        visits = pattern.visits(positions=_has_positions(problem))
        problem = problem if visits is None else problem._replace(visits=visits)
    else:
        pattern.ensure_valid()
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        found: tuple[Tensor, Tensor] = _Attend.apply(backend, pattern, problem, *inputs)
        return found
    return backend.forward(_with_strides(problem))


def _inputs(problem: Problem) -> tuple[Tensor | None, ...]:
    """In the order of `Gradients`; without values where those are the keys: there is one gradient then."""
    query, key, value, *others = [getattr(problem, name) for name in _INPUTS]
    return query, key, None if value is key else value, *others


def _with_inputs(problem: Problem, inputs: Sequence[Tensor | None]) -> Problem:
    named: Any = dict(zip(_INPUTS, inputs, strict=True))
    if named["value"] is None:
        named["value"] = named["key"]
    return problem._replace(**named)


def _has_positions(problem: Problem) -> bool:
    """Whether something belongs to edges, so that kernels ask for their positions."""
    return any(x is not None for x in (problem.bias, problem.edge_key, problem.edge_value, problem.seed))


def _with_strides(problem: Problem) -> Problem:
    """With the strides that `Problem` promises."""
    changed: dict[str, Any] = {}
    for name in ("query", "key", "value"):
        x = getattr(problem, name)
        if x.stride(2) != 1:
            changed[name] = x.contiguous()
    for name in ("bias", "log_weight", "edge_key", "edge_value", "att"):
        x = getattr(problem, name)
        if x is not None and not x.is_contiguous():
            changed[name] = x.contiguous()
    if problem.value is problem.key and "key" in changed:
        changed["value"] = changed["key"]
    return problem._replace(**changed) if changed else problem


def _gradients(
    backend: Backend,
    problem: Problem,
    columns: Visits | None,
    needs: Sequence[bool],
    out: Tensor | None,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> list[Tensor | None]:
    """In the order of `Gradients`, for those that ``needs`` says; values that are the keys have none of their own."""
    names = [name for name, needed in zip(_INPUTS, needs, strict=True) if needed]
    shared = problem.value is problem.key
    if shared and "key" in names:
        names.append("value")
    grads = backend.backward(_with_strides(problem), columns, out, lse, grad_out, grad_lse, names)
    if shared and grads.value is not None and grads.key is not None:
        grads = grads._replace(key=grads.key.add_(grads.value), value=None)
    return list(grads)


def _sums_along_keys(needs: Sequence[bool]) -> bool:
    """Whether a gradient is asked for that is summed over the queries of each key."""
    return any(needed for name, needed in zip(_INPUTS, needs, strict=True) if name in ("key", "value", "log_weight"))


def _formulas(problem: Problem, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
    return reference.forward(_with_inputs(problem, inputs))


# ---- Eager -----------------------------------------------------------------------------------------------------------


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, backend: Backend, pattern: Neighbors, problem: Problem, *inputs: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        out, lse = backend.forward(_with_strides(problem))
        ctx.backend, ctx.pattern = backend, pattern
        ctx.problem = _with_inputs(problem, [None] * len(_INPUTS))  # those are saved, for autograd to watch over
        ctx.save_for_backward(*inputs, problem.rowptr, problem.col, out if backend.READS_OUT else None, lse)
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
        with without_autocast(ctx.saved_tensors[0].device.type):
            return None, None, None, *_eager_gradients(ctx, grad_out, grad_lse)


def _eager_gradients(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> list[Tensor | None]:
    *inputs, _, _, out, lse = ctx.saved_tensors
    needs, pattern = ctx.needs_input_grad[3:], ctx.pattern
    if torch.is_grad_enabled() or transforms_active(grad_out, grad_lse):
        formulas = partial(_formulas, ctx.problem)
        return differentiable(formulas, inputs, needs, (grad_out, grad_lse))
    problem = _with_inputs(ctx.problem, inputs)
    columns = None
    if _sums_along_keys(needs):
        if ctx.backend.VISITS:
            columns = pattern.visits(transposed=True, positions=_has_positions(problem))
        if columns is None:
            by_key = pattern.transpose
            columns = Visits(by_key.rowptr, by_key.col, by_key.edge_order)
    if grad_out is None:
        grad_out = problem.query.new_zeros(*problem.query.shape[:2], problem.value.size(2))
    return _gradients(ctx.backend, problem, columns, needs, out, lse, grad_out, grad_lse)


# ---- Compiled, exported, fake ----------------------------------------------------------------------------------------

# The fields of `Problem` under their names, without values where those are the keys; the `Visits` of rows and of
# columns, where the pattern has any already; and the backend that is forced.
_SCHEMA = """
    Tensor query, Tensor key, Tensor? value, Tensor rowptr, Tensor col, Tensor? bias, Tensor? log_weight,
    Tensor? edge_key, Tensor? edge_value, Tensor? att, float scale, float negative_slope, float dropout, Tensor? seed,
    Tensor?[] visits, Tensor?[] columns, str? backend
"""
_NAMES = [argument.split()[1] for argument in _SCHEMA.split(",")]


def _call_operator(problem: Problem, pattern: Neighbors, name: str | None) -> tuple[Tensor, Tensor]:
    visits, columns = (_known_visits(problem, pattern, transposed, name) for transposed in (False, True))
    by_key = pattern._transpose
    if columns is None and by_key is not None:
        columns = Visits(by_key.rowptr, by_key.col, by_key.edge_order)
    named = problem._asdict() | dict(zip(_INPUTS, _inputs(problem), strict=True))
    named |= {"visits": [*(visits or ())], "columns": [*(columns or ())], "backend": name}
    found: tuple[Tensor, Tensor] = _operator(*[named[argument] for argument in _NAMES])
    return found


def _known_visits(problem: Problem, pattern: Neighbors, transposed: bool, name: str | None) -> Visits | None:
    """What the pattern already has: none is made while tracing."""
    found = pattern._visits.get(transposed) if name in (None, "cpu") else None
    return None if found is None or (found.edge is None and _has_positions(problem)) else found


@torch.library.custom_op("geoattn::attend", mutates_args=(), schema=f"({_SCHEMA}) -> (Tensor, Tensor)")
def _operator(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Output ``[N, H, C]`` and log-sum-exp ``[N, H]``."""
    problem, _, name = _problem(arguments)
    return choose(problem, name).forward(_with_strides(problem))


@torch.library.custom_op(
    "geoattn::attend_backward",
    mutates_args=(),
    schema=f"({_SCHEMA}, Tensor? out, Tensor lse, Tensor grad_out, Tensor? grad_lse, bool[] needs) -> Tensor[]",
)
def _operator_backward(*arguments: Any) -> list[Tensor]:
    """Gradients in the order of `Gradients`, empty where ``needs`` is False."""
    *arguments_, out, lse, grad_out, grad_lse, needs = arguments
    problem, columns, name = _problem(arguments_)
    if columns is None and _sums_along_keys(needs):
        edge = torch.empty_like(problem.col)
        columns = Visits(*transpose(problem.rowptr, problem.col, problem.key.size(0), edge), edge)
    grads = _gradients(choose(problem, name), problem, columns, needs, out, lse, grad_out, grad_lse)
    return [lse.new_empty(0) if grad is None else grad for grad in grads]


def _problem(arguments: Sequence[Any]) -> tuple[Problem, Visits | None, str | None]:
    """From the arguments of the operator: the problem, the columns if they were given, and the backend."""
    named = dict(zip(_NAMES, arguments, strict=True))
    visits, columns, name = (named.pop(key) for key in ("visits", "columns", "backend"))
    if named["value"] is None:
        named["value"] = named["key"]
    problem = Problem(**named, visits=Visits(*visits) if visits else None)
    return problem, Visits(*columns) if columns else None, name


@_operator.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    problem, _, _ = _problem(arguments)
    heads = problem.query.shape[:2]
    lse = problem.query.new_empty(heads, dtype=problem.sum_dtype)
    return problem.query.new_empty(*heads, problem.value.size(2)), lse


@_operator_backward.register_fake
def _(*arguments: Any) -> list[Tensor]:
    named = dict(zip(_NAMES, arguments, strict=False))
    lse, needs = arguments[-4], arguments[-1]
    inputs = [named[name] for name in _INPUTS]
    return [x.new_empty(x.shape) if needed else lse.new_empty(0) for x, needed in zip(inputs, needs, strict=True)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    named = dict(zip(_NAMES, inputs, strict=True))
    problem, _, name = _problem(inputs)
    out, lse = output
    ctx.lists = {key: len(named[key]) for key in ("visits", "columns")}
    ctx.settings = {key: x for key, x in named.items() if not isinstance(x, (Tensor, list))}
    ctx.tensors = [key for key, x in named.items() if isinstance(x, Tensor)]
    kept = out if choose(problem, name).READS_OUT else None
    ctx.save_for_backward(*[named[key] for key in ctx.tensors], *named["visits"], *named["columns"], kept, lse)


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor | None) -> tuple[Any, ...]:
    *saved, out, lse = ctx.saved_tensors
    named = ctx.settings | dict(zip(ctx.tensors, saved, strict=False))
    rest = iter(saved[len(ctx.tensors) :])
    for key, length in ctx.lists.items():
        named[key] = [next(rest) for _ in range(length)]
    arguments = [named[key] for key in _NAMES]
    needs = [ctx.needs_input_grad[_NAMES.index(name)] for name in _INPUTS]
    if torch.is_grad_enabled() or transforms_active(grad_out, grad_lse):
        problem, _, _ = _problem(arguments)
        inputs = [named[name] for name in _INPUTS]
        grads = differentiable(partial(_formulas, problem), inputs, needs, (grad_out, grad_lse))
    else:
        found = _operator_backward(*arguments, out, lse, grad_out, grad_lse, needs)
        grads = [grad if needed else None for grad, needed in zip(found, needs, strict=True)]
    of = dict(zip(_INPUTS, grads, strict=True))
    # What torch takes for no gradient: a list for a list of tensors, None for one with a None in it.
    of |= {key: None if any(x is None for x in named[key]) else [None] * len(named[key]) for key in ctx.lists}
    return tuple(of.get(key) for key in _NAMES)


_operator.register_autograd(_backward, setup_context=_keep)
