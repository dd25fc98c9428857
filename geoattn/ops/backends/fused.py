"""`attend` over `Neighbors` as an operator of torch: autograd, `torch.compile`, `torch.export`, autocast see one node.

It keeps its inputs and the log-sum-exp for the backward pass, its output where the backend reads it there, and nothing
per edge. A backward pass that is to be differentiated again runs the reference formulas instead, which are right to any
order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from geoattn.ops.backends import reference
from geoattn.ops.backends.choose import choose
from geoattn.ops.backends.problem import Gradients, Problem
from geoattn.patterns.visits import Visits

# The backends with a backward pass of their own, and None for whichever is best where the operator runs.
OWN_GRADIENTS = ("torch", "cpu", "triton", None)
_NAMES = Gradients._fields


# The fields of `Problem`, without the values where those are the keys: there is one gradient then, that of keys; the
# `Visits` of rows, if they have any; those of columns, or else columns as they are, where a gradient needs them; and
# the backend.
_ARGUMENTS = """
    Tensor query, Tensor key, Tensor? value, Tensor rowptr, Tensor col, Tensor? bias, Tensor? log_weight,
    Tensor? edge_key, Tensor? edge_value, Tensor? att, float scale, float negative_slope, float dropout, Tensor? seed,
    Tensor?[] visits, Tensor?[] columns, str? backend
"""


@torch.library.custom_op(
    "geoattn::attend", mutates_args=(), schema=f"({_ARGUMENTS}, bool overwrite) -> (Tensor, Tensor)"
)
def attend(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Output ``[N, H, C]`` and log-sum-exp ``[N, H]``."""
    problem, _, backend = _read(arguments[:-1])
    found: tuple[Tensor, Tensor] = choose(problem, backend).forward(problem)
    return found


@attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor | None, *_: Any) -> tuple[Tensor, Tensor]:
    lse_dtype = torch.promote_types(query.dtype, torch.float32)
    width = (key if value is None else value).size(2)
    return query.new_empty(*query.shape[:2], width), query.new_empty(query.shape[:2], dtype=lse_dtype)


@torch.library.custom_op(
    "geoattn::attend_backward",
    mutates_args=(),
    schema=f"({_ARGUMENTS}, Tensor? out, Tensor lse, Tensor grad_out, Tensor? grad_lse, bool[] needs) -> Tensor[]",
)
def attend_backward(*arguments: Any) -> list[Tensor]:
    """Gradients in the order of `Gradients`, empty where ``needs`` is False."""
    return _gradients(arguments)


def _gradients(arguments: Sequence[Any], overwrite: bool = False) -> list[Tensor]:
    *arguments_, out, lse, grad_out, grad_lse, needs = arguments
    problem, columns, backend = _read(arguments_)
    problem = problem._replace(overwrite=overwrite)
    names = [name for name, needed in zip(_NAMES, needs, strict=True) if needed]
    if arguments[2] is None and "key" in names:
        names.append("value")
    grads = choose(problem, backend).backward(problem, columns, out, lse, grad_out, grad_lse, names)
    if arguments[2] is None and grads.value is not None:
        grads = grads._replace(key=grads.key.add_(grads.value), value=None)
    return [lse.new_empty(0) if grad is None else grad for grad in grads]


@attend_backward.register_fake
def _(*arguments: Any) -> list[Tensor]:
    inputs, lse, needs = arguments[:3] + arguments[5:10], arguments[-4], arguments[-1]
    return [x.new_empty(x.shape) if needed else lse.new_empty(0) for x, needed in zip(inputs, needs, strict=True)]


def _read(arguments: Sequence[Any]) -> tuple[Problem, Visits | None, str | None]:
    """With the strides that `Problem` promises."""
    query, key, value, *others, seed, visits, columns, backend = arguments
    query, key, value = [x if x is None or x.stride(2) == 1 else x.contiguous() for x in (query, key, value)]
    others = [x.contiguous() if isinstance(x, Tensor) else x for x in others]
    number = None if seed is None else int(seed)
    problem = Problem._make(
        [query, key, key if value is None else value, *others, number, 0, Visits(*visits) if visits else None, False]
    )
    return problem, Visits(*columns) if columns else None, backend


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, scale, negative_slope, dropout, seed, visits, columns, backend, overwrite = inputs
    query, key, value, *others = inputs[:13]
    problem = Problem._make([query, key, key if value is None else value, *others, None, 0, None, False])
    out, lse = output
    kept = out if choose(problem, backend).READS_OUT else None
    ctx.settings, ctx.backend, ctx.overwrite = (scale, negative_slope, dropout), backend, overwrite
    ctx.lengths = [len(visits), len(columns)]
    ctx.save_for_backward(*tensors, seed, *visits, *columns, kept, lse)


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor | None) -> tuple[Any, ...]:
    *saved, out, lse = ctx.saved_tensors
    tensors, seed, rest = saved[:10], saved[10], iter(saved[11:])
    orders = [list(islice(rest, length)) for length in ctx.lengths]
    needs = ctx.needs_input_grad[:3] + ctx.needs_input_grad[5:10]
    if torch.is_grad_enabled():
        grads = _differentiable(tensors, ctx.settings, seed, needs, grad_out, grad_lse)
    else:
        arguments = (*tensors, *ctx.settings, seed, *orders, ctx.backend, out, lse, grad_out, grad_lse, needs)
        written = [x for x in tensors[1:3] if x is not None]
        if ctx.overwrite and not _graph_is_kept() and all(type(x) is Tensor and not x.is_leaf for x in written):
            found = _gradients(arguments, overwrite=True)
            for x in written:
                torch.autograd.graph.increment_version(x)
        else:
            found = attend_backward(*arguments)
        grads = [grad if needed else None for grad, needed in zip(found, needs, strict=True)]
    # What torch takes for no gradient: a list for a list of tensors, None for one with a None in it.
    nothing = [None if any(x is None for x in order) else [None] * len(order) for order in orders]
    return *grads[:3], None, None, *grads[3:], None, None, None, None, *nothing, None, None


# Whether the backward pass may run again (``retain_graph``), and what it keeps must stay as it is.
_graph_is_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def _differentiable(
    tensors: Sequence[Any],
    settings: tuple[float, float, float],
    seed: Tensor | None,
    needs: Sequence[bool],
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> list[Tensor | None]:
    """The gradients through the reference formulas, as functions of the inputs and of the upstream gradients."""
    tensors = list(tensors)
    places = [place for place, needed in zip((0, 1, 2, 5, 6, 7, 8, 9), needs, strict=True) if needed]
    for place in places:
        tensors[place] = tensors[place].view_as(tensors[place])  # where this backward pass ends
    if tensors[2] is None:
        tensors[2] = tensors[1]
    out, lse = reference.forward(Problem._make([*tensors, *settings, seed, 0, None, False]))
    outputs, upstream = [out], [grad_out]
    if grad_lse is not None:
        outputs, upstream = [out, lse], [grad_out, grad_lse]
    found = iter(torch.autograd.grad(outputs, [tensors[p] for p in places], upstream, create_graph=True))
    return [next(found) if needed else None for needed in needs]


attend.register_autograd(_backward, setup_context=_keep)


def autocast(device: str, *tensors: Tensor | None) -> list[Tensor | None]:
    """Tensors in the type that autocast asks matrix products to run in; float64 and None stay as they are."""
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [x if x is None or x.dtype == torch.float64 else x.to(dtype) for x in tensors]


def _register_autocast(device: str) -> None:
    def cast(query: Tensor, key: Tensor, value: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
        rowptr, col, bias, log_weight, edge_key, edge_value, *others = rest
        query_, key_, value_, edge_key, edge_value = autocast(device, query, key, value, edge_key, edge_value)
        with torch.autocast(device, enabled=False):
            return attend(query_, key_, value_, rowptr, col, bias, log_weight, edge_key, edge_value, *others)

    _library.impl("attend", cast, f"Autocast{device.upper()}")


_library = torch.library.Library("geoattn", "FRAGMENT")
_register_autocast("cpu")
_register_autocast("cuda")
