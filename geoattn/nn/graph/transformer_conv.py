"""`TransformerConv`."""

from __future__ import annotations

from typing import Any

import torch
import torch_geometric.nn as pyg
from torch import Tensor

from geoattn.nn.graph._drop_in import AttentionDropIn, as_edge_index, given_features
from geoattn.nn.graph._linears import linears, plain
from geoattn.patterns import Adjacency


class TransformerConv(AttentionDropIn, pyg.TransformerConv):
    r"""Graph transformer (Shi et al. 2021, eq. 3 to 5): PyG's ``TransformerConv``, its messages not written down.

    .. math::
        o_i = \sum_{j \in \mathcal{N}(i)} \operatorname{softmax}_j \bigl(
        (W_q x_i)^\top (W_k x_j + W_e e_{ij}) / \sqrt{C}\bigr) \, (W_v x_j + W_e e_{ij}),

    to which :math:`W_s x_i` is added, or mixed in by a learned gate (``beta``).

    Constructor, arguments, results, parameters and their names are those of `torch_geometric.nn.TransformerConv`, whose
    documentation applies; see `AttentionDropIn` for when PyG's own path runs.
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
        own = plain(self.lin_key, self.lin_value)
        out, found = self._attend(query, key, value, pattern, weights, own, edge_key=edge, edge_value=edge)
        for skipped in root:
            if self.lin_beta is not None:
                beta = self.lin_beta(torch.cat([out, skipped, out - skipped], -1)).sigmoid()
                out = beta * skipped + (1 - beta) * out
            else:
                out = skipped.add_(out) if plain(self.lin_skip) else skipped + out
        return out if found is None else (out, self._weights_of_edges(edge_index, found, pattern))
