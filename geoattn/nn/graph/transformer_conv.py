"""`TransformerConv`."""

from __future__ import annotations

from typing import Any

import torch
import torch_geometric.nn as pyg
from torch import Tensor

from geoattn.nn.graph._drop_in import AttentionDropIn, as_edge_index, given_features
from geoattn.nn.graph._linears import linears, plain, products
from geoattn.ops import attend
from geoattn.patterns import Adjacency, Neighbors


class TransformerConv(AttentionDropIn, pyg.TransformerConv):
    r"""Graph transformer (Shi et al. 2021, eq. 3 to 5): PyG's ``TransformerConv``, its messages not written down.

    .. math::
        o_i = \sum_{j \in \mathcal{N}(i)} \operatorname{softmax}_j \bigl(
        (W_q x_i)^\top (W_k x_j + W_e e_{ij}) / \sqrt{C}\bigr) \, (W_v x_j + W_e e_{ij}),

    to which :math:`W_s x_i` is added, or mixed in by a learned gate (``beta``).

    Constructor, arguments, results, parameters and their names are those of `torch_geometric.nn.TransformerConv`, whose
    documentation applies; see `AttentionDropIn` for when PyG's own path runs. Up to 4 heads at least twice as wide as
    the inputs, as in a first layer, gather the inputs instead of keys and values.
    """

    peer = pyg.TransformerConv

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor],
        edge_index: Adjacency,
        edge_attr: Tensor | None = None,
        return_attention_weights: bool | None = None,
    ) -> Any:
        """Features ``[N, H * C]`` of the targets (``[N, C]`` averaged), and attention weights if asked for."""
        source, target = (x, x) if isinstance(x, Tensor) else x
        features = given_features(edge_index, edge_attr)
        weights = isinstance(return_attention_weights, bool)
        if self._steps_back(edge_index, features, weights, source, target) or (features is None) != (
            self.lin_edge is None
        ):
            return super().forward(x, as_edge_index(edge_index), edge_attr, return_attention_weights)

        pattern = self._pattern(edge_index, source, target)
        if features is None and not weights and self._gathers_inputs(source):
            return self._attend_to_inputs(source, target, pattern)
        skip = [self.lin_skip] if self.root_weight else []
        if target is source:
            query, key, value, *root = linears(source, self.lin_query, self.lin_key, self.lin_value, *skip)
        else:
            query, *root = linears(target, self.lin_query, *skip)
            key, value = linears(source, self.lin_key, self.lin_value)
        query, key, value = self._heads(query, key, value)
        edge = None
        if features is not None:
            (edge,) = self._heads(self.lin_edge(self._edge_features(edge_index, features, pattern)))
        out, found = self._attend(query, key, value, pattern, weights, edge_key=edge, edge_value=edge)
        for skipped in root:
            if self.lin_beta is not None:
                beta = self.lin_beta(torch.cat([out, skipped, out - skipped], -1)).sigmoid()
                out = beta * skipped + (1 - beta) * out
            else:
                out = skipped.add_(out) if plain(self.lin_skip) else skipped + out
        return out if found is None else (out, self._weights_of_edges(edge_index, found, pattern))

    def _gathers_inputs(self, source: Tensor) -> bool:
        """Whether inputs are so narrow that gathering them beats gathering keys and values."""
        return (
            2 * source.size(1) <= self.out_channels
            and self.heads <= 4  # the weights of values are used as one matrix of blocks, which is mostly zeros
            and source.dtype in (torch.float32, torch.float64)  # of halves, products of weights are not exact enough
            and not torch.is_autocast_enabled(source.device.type)
            and self.root_weight
            and self.lin_beta is None
            and not (self.training and self.dropout)
            and plain(self.lin_query, self.lin_key, self.lin_value, self.lin_skip)
        )

    def _attend_to_inputs(self, source: Tensor, target: Tensor, pattern: Neighbors) -> Tensor:
        r"""The layer with the linear maps of keys and values taken out of the sums over neighbors.

        :math:`(W_q x_i)^\top W_k x_j = (W_k^\top W_q x_i)^\top x_j` and
        :math:`\sum_j a_{ij} W_v x_j = W_v \sum_j a_{ij} x_j`: keys and values are the inputs
        ``[M, F]``, the same for all heads.
        """
        heads, inputs = self.heads, source.unsqueeze(1)
        to_query, to_key, to_value = [
            linear.weight.view(heads, self.out_channels, -1)
            for linear in (self.lin_query, self.lin_key, self.lin_value)
        ]
        from_key = to_key.transpose(1, 2)
        bias, beside, to_skip = None, target, self.lin_skip.weight
        if self.lin_value.bias is not None:
            # What the bias of keys adds is the same for all neighbors, so softmax cancels it: its gradient is zero.
            bias = (from_key @ self.lin_query.bias.view(heads, -1, 1)).flatten() + 0 * self.lin_key.bias.sum()
            # That of values comes in where there are neighbors.
            beside = torch.cat([target, (pattern.rowptr.diff() > 0).to(target.dtype).unsqueeze(1)], 1)
            of_value = self.lin_value.bias if self.concat else self.lin_value.bias.view(heads, -1).mean(0)
            to_skip = torch.cat([to_skip, of_value.unsqueeze(1)], 1)
        (query,) = products(target, (from_key @ to_query).flatten(0, 1), bias)
        (out,) = products(beside, to_skip, self.lin_skip.bias)
        query = query.view(-1, heads, source.size(1))
        attended = attend(query, inputs, inputs, pattern, scale=self.out_channels**-0.5).flatten(1)
        from_attended = torch.block_diag(*to_value) if self.concat else to_value.transpose(0, 1).flatten(1) / heads
        return out.addmm_(attended, from_attended.t())
