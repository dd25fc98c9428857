"""`TransformerConv` of inputs narrower than its heads: attention gathers the inputs instead of keys and values."""

from __future__ import annotations

import torch
import torch_geometric.nn as pyg
from torch import Tensor
from torch.nn import functional as F

from geoattn.nn.graph._linears import plain
from geoattn.ops.attend import attend
from geoattn.patterns import Neighbors


def gathers_inputs(layer: pyg.TransformerConv, source: Tensor) -> bool:
    """Whether ``source`` ``[M, F]`` is so narrow that gathering it beats gathering keys and values."""
    return (
        2 * source.size(1) <= layer.out_channels
        and layer.heads <= 4  # the weights of values are used as one matrix of blocks, which is mostly zeros
        and source.dtype in (torch.float32, torch.float64)  # of halves, products of weights are not exact enough
        and not torch.is_autocast_enabled(source.device.type)
        and layer.root_weight
        and layer.lin_beta is None
        and not (layer.training and layer.dropout)
        and plain(layer.lin_query, layer.lin_key, layer.lin_value, layer.lin_skip)
    )


def attend_to_inputs(layer: pyg.TransformerConv, source: Tensor, target: Tensor, pattern: Neighbors) -> Tensor:
    r"""The layer with the linear maps of keys and values taken out of the sums over neighbors.

    :math:`(W_q x_i)^\top W_k x_j = (W_k^\top W_q x_i)^\top x_j` and
    :math:`\sum_j a_{ij} W_v x_j = W_v \sum_j a_{ij} x_j`: keys and values are the inputs ``[M, F]``, the same for all
    heads.
    """
    heads, inputs = layer.heads, source.unsqueeze(1)
    to_query, to_key, to_value = [
        linear.weight.view(heads, layer.out_channels, -1)
        for linear in (layer.lin_query, layer.lin_key, layer.lin_value)
    ]
    from_key = to_key.transpose(1, 2)
    bias, beside, to_skip = None, target, layer.lin_skip.weight
    if layer.lin_value.bias is not None:
        # What the bias of keys adds is the same for all neighbors, so softmax cancels it: its gradient is zero.
        bias = (from_key @ layer.lin_query.bias.view(heads, -1, 1)).flatten() + 0 * layer.lin_key.bias.sum()
        # That of values comes in where there are neighbors.
        beside = torch.cat([target, (pattern.degree > 0).to(target.dtype).unsqueeze(1)], 1)
        of_value = layer.lin_value.bias if layer.concat else layer.lin_value.bias.view(heads, -1).mean(0)
        to_skip = torch.cat([to_skip, of_value.unsqueeze(1)], 1)
    query = F.linear(target, (from_key @ to_query).flatten(0, 1), bias).view(-1, heads, source.size(1))
    attended = attend(query, inputs, inputs, pattern, scale=layer.out_channels**-0.5).flatten(1)
    from_attended = torch.block_diag(*to_value) if layer.concat else to_value.transpose(0, 1).flatten(1) / heads
    return F.linear(beside, to_skip, layer.lin_skip.bias).addmm(attended, from_attended.t())
