"""Several linear layers of one input, with one gradient of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn.dense import Linear


def linears(x: Tensor, *layers: nn.Module) -> list[Tensor]:
    """What each layer makes of ``x`` ``[N, in_channels]``.

    Autograd by itself makes a gradient of ``x`` for every layer and adds them up one by one; here the products add to
    one. Layers that are more than a product, such as those with hooks, are called.
    """
    if not plain(*layers):
        return [layer(x) for layer in layers]
    parameters: list[Any] = [p for layer in layers for p in (layer.weight, layer.bias)]
    return products(x, *parameters)


def products(x: Tensor, *parameters: Any) -> list[Tensor]:
    """``x W^T + b`` for every two ``parameters``, a weight ``W`` ``[out_channels, in_channels]`` and a bias or None."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return [F.linear(x, w, b) for w, b in zip(parameters[::2], parameters[1::2], strict=True)]
    return list(_Linears.apply(x, *parameters))


def plain(*layers: nn.Module) -> bool:
    """Whether each is a linear layer and no more, so that its output is known to its caller alone."""
    return all(type(layer) in (Linear, nn.Linear) and not _hooked(layer) for layer in layers)


def _hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


class _Linears(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Any) -> tuple[Tensor, ...]:
        weights, biases = parameters[::2], parameters[1::2]
        ctx.save_for_backward(x, *weights)
        ctx.set_materialize_grads(False)  # None for a layer whose output is not used
        return tuple(F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        needs_x, *needs = ctx.needs_input_grad
        grad_x: Tensor | None = None
        found: list[Tensor | None] = []
        # A narrow x with ones beside it costs little, and its product with a gradient has those of weight and bias: the
        # gradient is read once, and the product is faster (of 3 features, 7 times).
        narrow = 4 * x.size(1) <= weights[0].size(0)
        with_one = torch.cat([x, x.new_ones(x.size(0), 1)], 1) if narrow else None
        for i, (grad, weight) in enumerate(zip(grads, weights, strict=True)):
            if grad is None:
                found += [None, None]
                continue
            if grad_x is not None:
                grad_x = grad_x.addmm(grad, weight) if torch.is_grad_enabled() else grad_x.addmm_(grad, weight)
            elif needs_x:
                grad_x = grad @ weight
            of_weight, of_bias = needs[2 * i : 2 * i + 2]
            if with_one is not None and of_weight:
                both = with_one.t() @ grad
                found += [both[:-1].t().contiguous(), both[-1] if of_bias else None]
            else:
                found += [grad.t() @ x if of_weight else None, grad.sum(0) if of_bias else None]
        return grad_x, *found
