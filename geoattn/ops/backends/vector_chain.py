"""Vector attention whose networks are chains of linear layers and ReLU: differentiated by hand, in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook
from torch_geometric.nn import MLP, BatchNorm
from torch_geometric.nn import Linear as PyGLinear

from geoattn.ops.backends import vector_cpu, vector_reference, vector_torch
from geoattn.ops.backends.modes import differentiable, transforms_active
from geoattn.ops.backends.recompute import has_hooks, of_all_rows
from geoattn.ops.backends.vector_problem import Linear, Problem
from geoattn.patterns import Neighbors


class Kernels(Protocol):
    """What a backend has for chains."""

    def forward(self, problem: Problem) -> Tensor:
        """``[N, C]`` in the accumulation dtype."""

    def backward(self, problem: Problem, grad_out: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
        """Gradients of `Problem.tensors` where needed, in the accumulation dtype; those not needed may be None."""


KERNELS: dict[str, Kernels] = {"cpu": vector_cpu, "torch": vector_torch}


def attend(problem: Problem, backend: str) -> Tensor:
    """``[N, C]`` in the type of the query."""
    tensors = problem.tensors()
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        return _Attention.apply(KERNELS[backend], problem, *tensors)
    return KERNELS[backend].forward(problem).to(problem.query.dtype)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, problem: Problem, *tensors: Tensor | None) -> Tensor:
        ctx.kernels, ctx.shape = kernels, problem.without_tensors()
        ctx.save_for_backward(*tensors)
        return kernels.forward(problem).to(problem.query.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors, needs = ctx.saved_tensors, ctx.needs_input_grad[2:]
        if torch.is_grad_enabled() or transforms_active(grad):

            def formulas(*tensors: Tensor | None) -> tuple[Tensor]:
                return (_formulas(ctx.shape.with_tensors(tensors)),)

            return None, None, *differentiable(formulas, tensors, needs, (grad,))
        grads = ctx.kernels.backward(ctx.shape.with_tensors(tensors), grad, needs)
        return (
            None,
            None,
            *[
                None if x is None or grad is None or not needed else grad.to(x.dtype)
                for x, grad, needed in zip(tensors, grads, needs, strict=True)
            ],
        )


def _formulas(problem: Problem) -> Tensor:
    query, key, value, position, key_position = problem[:5]
    networks = [_network(problem.pos), _network(problem.attn)]
    return of_all_rows(
        vector_reference.formulas, problem.pattern, (query, position), (key, value, key_position), (), networks
    )


def _network(layers: Sequence[Linear]) -> vector_reference.Network:
    def run(x: Tensor) -> Tensor:
        for weight, bias, relu in layers:
            x = F.linear(x, weight, bias)
            x = x.relu() if relu else x
        return x

    return run


# ---- Which networks are chains ---------------------------------------------------------------------------------------


def problem(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position: Tensor,
    key_position: Tensor,
    pattern: Neighbors,
    pos_nn: Any,
    attn_nn: Any,
) -> Problem | None:
    """The call as a `Problem`; None if a network is no chain of one type, of widths that fit and called plainly."""
    pos, attn = chain(pos_nn), [] if attn_nn is None else chain(attn_nn)
    if not pos or attn is None or (attn_nn is not None and not attn):
        return None
    if torch.is_autocast_enabled(query.device.type) or position.dtype != query.dtype:
        return None
    for layer in pos + attn:
        for x in layer[:2]:
            if x is not None and (type(x) not in _PLAIN or x.dtype != query.dtype or x.device != query.device):
                return None
    channels = query.size(1)
    widths = [position.size(1), *[layer.weight.size(0) for layer in pos]]
    if widths[:-1] != [layer.weight.size(1) for layer in pos] or widths[-1] != channels:
        return None
    widths = [channels, *[layer.weight.size(0) for layer in attn]]
    if widths[:-1] != [layer.weight.size(1) for layer in attn] or not widths[-1] or channels % widths[-1]:
        return None
    return Problem(query, key, value, position, key_position, tuple(pos), tuple(attn), pattern)


_PLAIN = (Tensor, nn.Parameter)


def chain(network: Any) -> list[Linear] | None:
    """The layers of a network that is a chain of linear layers and ReLU; None if it is anything else."""
    if _has_any_global_hook():
        return None
    layers: list[Linear] = []
    for module in _leaves(network):
        if not _as_its_class(module):
            return None
        if type(module) in (nn.Linear, PyGLinear):
            layers.append(Linear(module.weight, module.bias, False))
        elif type(module) is nn.ReLU and layers:
            layers[-1] = layers[-1]._replace(relu=True)
        elif type(module) is nn.BatchNorm1d and _fits(module, layers):
            layers[-1] = _normalized(layers[-1], module)
        elif type(module) is not nn.Identity and not (type(module) is nn.Dropout and not module.training):
            return None
    return layers


def _fits(norm: nn.BatchNorm1d, layers: Sequence[Linear]) -> bool:
    """Whether normalization is a linear map of what the last layer gives: in evaluation, by running statistics."""
    return (
        not norm.training
        and norm.running_mean is not None
        and bool(layers)
        and not layers[-1].relu
        and layers[-1].weight.size(0) == norm.num_features
        and layers[-1].weight.dtype == norm.running_mean.dtype
    )


def _normalized(layer: Linear, norm: nn.BatchNorm1d) -> Linear:
    """A linear layer with the normalization behind it."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    bias = -norm.running_mean if layer.bias is None else layer.bias - norm.running_mean
    bias = bias * scale if norm.bias is None else bias * scale + norm.bias
    return Linear(layer.weight * scale.unsqueeze(1), bias, False)


def _leaves(network: Any) -> list[Any]:
    """The modules that run one after the other; the network itself where that is not known."""
    if type(network) is nn.Sequential and _as_its_class(network):
        return [leaf for module in network for leaf in _leaves(module)]
    if type(network) is BatchNorm and _as_its_class(network) and not network.training:
        return [network.module]
    if type(network) is MLP and _as_its_class(network) and not (network.training and any(network.dropout)):
        leaves = []
        for layer, norm in zip(network.lins, network.norms, strict=False):
            leaves += [layer, network.act, norm] if network.act_first else [layer, norm, network.act]
        leaves += network.lins[-1:] if network.plain_last else []
        return [leaf for part in leaves if part is not None for leaf in _leaves(part)]
    return [network]


def _as_its_class(module: Any) -> bool:
    """Whether calling a module does what the ``forward`` of its class says, and no more; hooks of all modules apart."""
    return isinstance(module, nn.Module) and "forward" not in module.__dict__ and not has_hooks(module)
