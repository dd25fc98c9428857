"""Several linear layers of one input, with one gradient of it, and scores of what a layer makes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn.dense import Linear


def linears(x: Tensor, *layers: nn.Module) -> list[Tensor]:
    """What each layer makes of ``x`` ``[N, in_channels]``.

    Autograd by itself makes a gradient of ``x`` for every layer and adds them up one by one; here the products add to
    one. Layers that are more than a product, such as those with hooks, are called, and so are all of a sparse ``x``.
    """
    if x.layout != torch.strided or not plain(*layers):
        return [layer(x) for layer in layers]
    parameters: list[Any] = [p for layer in layers for p in (layer.weight, layer.bias)]
    return products(x, *parameters)


def products(x: Tensor, *parameters: Any) -> list[Tensor]:
    """``x W^T + b`` for every two ``parameters``, a weight ``W`` ``[out_channels, in_channels]`` and a bias or None."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return [F.linear(x, w, b) for w, b in zip(parameters[::2], parameters[1::2], strict=True)]
    return list(_Linears.apply(x, *parameters))


def projected(x: Tensor, layer: nn.Module, *att: Tensor) -> list[Tensor]:
    """What ``layer`` makes of ``x`` as heads ``[N, H, C]``, and their `scores` by each ``att`` ``[1, H, C]``."""
    heads, channels = att[0].shape[1:]
    if scores_need_no_heads(x, layer, att[0]):
        out, parts = products(x, layer.weight, None, _of_scores(layer, *att), None)
        return [out.view(-1, heads, channels), *parts.unsqueeze(-1).split(heads, 1)]
    out = layer(x).view(-1, heads, channels)
    return [out, *((out * each).sum(-1, keepdim=True) for each in att)]


def scores(x: Tensor, layer: nn.Module, att: Tensor) -> Tensor:
    """Dot products ``[N, H, 1]`` of ``att`` ``[1, H, C]`` and what ``layer`` would make of ``x``, as one linear map."""
    if _is_product(layer):
        return F.linear(x, _of_scores(layer, att)).unsqueeze(-1)
    return (layer(x).view(-1, *att.shape[1:]) * att).sum(-1, keepdim=True)


def scores_need_no_heads(x: Tensor, layer: nn.Module, att: Tensor) -> bool:
    """Whether `projected` makes scores from ``x``: where it is not wider than the heads, that is less work."""
    return _is_product(layer) and x.layout == torch.strided and x.size(1) <= att.numel()


def _is_product(layer: nn.Module) -> bool:
    return plain(layer) and layer.bias is None


def _of_scores(layer: nn.Module, *att: Tensor) -> Tensor:
    """Weight of the linear map to scores, ``[H, in_channels]`` for each ``att``."""
    weight: Any = layer.weight
    of_heads = weight.view(*att[0].shape[1:], -1)
    return torch.cat([(each.transpose(0, 1) @ of_heads).squeeze(1) for each in att])


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
        blocks = _blocks(x)
        if len(blocks) < 2:
            return tuple(F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))
        outs = tuple(x.new_empty(x.size(0), weight.size(0)) for weight in weights)
        for block in blocks:
            for out, weight, bias in zip(outs, weights, biases, strict=True):
                if bias is None:
                    torch.mm(x[block], weight.t(), out=out[block])
                else:
                    torch.addmm(bias, x[block], weight.t(), out=out[block])
        return outs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        needs_x, *needs = ctx.needs_input_grad
        used = {i: grad for i, grad in enumerate(grads) if grad is not None}
        grad_x = torch.empty_like(x) if needs_x and used else None
        # A narrow x with ones beside it costs little, and its product with a gradient has those of weight and bias: the
        # gradient is read once, and the product is faster (of 3 features, 7 times).
        narrow = [4 * x.size(1) <= weight.size(0) for weight in weights]
        of_weight = {i: weights[i].new_zeros(weights[i].shape) for i in used if needs[2 * i] and not narrow[i]}
        of_both = {i: x.new_zeros(x.size(1) + 1, weights[i].size(0)) for i in used if needs[2 * i] and narrow[i]}
        of_bias = {i: x.new_zeros(weights[i].size(0)) for i in used if needs[2 * i + 1] and i not in of_both}
        for block in _blocks(x):
            rows = x[block]
            with_one = torch.cat([rows, rows.new_ones(rows.size(0), 1)], 1) if of_both else rows
            for number, (i, whole) in enumerate(used.items()):
                grad = whole[block]
                if grad_x is not None:
                    grad_x[block].addmm_(grad, weights[i], beta=min(number, 1))
                if i in of_weight:
                    of_weight[i].addmm_(grad.t(), rows)
                if i in of_both:
                    of_both[i].addmm_(with_one.t(), grad)
                if i in of_bias:
                    of_bias[i].add_(grad.sum(0))
        for i, both in of_both.items():
            of_weight[i] = both[:-1].t().contiguous()
            if needs[2 * i + 1]:
                of_bias[i] = both[-1]
        return grad_x, *[found.get(i) for i in range(len(weights)) for found in (of_weight, of_bias)]


_ROWS = 4096


def _blocks(x: Tensor) -> list[slice]:
    """Rows to work on at a time: on CPUs so few that they stay in the cache from one product to the next."""
    rows = _ROWS if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) else x.size(0)
    return [slice(begin, begin + rows) for begin in range(0, x.size(0), max(rows, 1))]
