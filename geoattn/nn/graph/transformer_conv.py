"""`TransformerConv`."""

from __future__ import annotations

from typing import Any

import torch
import torch_geometric.nn as pyg
from torch import Tensor

from geoattn.nn.graph._drop_in import AttentionDropIn, as_edge_index, given_features, sources_and_targets
from geoattn.nn.graph._gathered_inputs import attend_to_inputs, gathers_inputs
from geoattn.patterns import Adjacency


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

    pyg_layer = pyg.TransformerConv
    additive = False
    needs_edge_attr = True

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor],
        edge_index: Adjacency,
        edge_attr: Tensor | None = None,
        return_attention_weights: bool | None = None,
    ) -> Any:
        """Features ``[N, H * C]`` of the targets (``[N, C]`` averaged), and attention weights if asked for."""
        source, target = sources_and_targets(x)
        features = given_features(edge_index, edge_attr)
        self._check_edge_attr(edge_index, features)
        weights = isinstance(return_attention_weights, bool)
        if self._pygs_path_needed(edge_index, features, weights, source, target) or (features is None) != (
            self.lin_edge is None
        ):
            return super().forward(x, as_edge_index(edge_index), edge_attr, return_attention_weights)

        pattern = self._pattern(edge_index, source, target)
        if features is None and not weights and gathers_inputs(self, source):
            return attend_to_inputs(self, source, target, pattern)
        query = self._heads(self.lin_query(target))
        key, value = self._heads(self.lin_key(source)), self._heads(self.lin_value(source))
        edge = None
        if features is not None:
            edge = self._heads(self.lin_edge(self._edge_features(edge_index, features, pattern)))
        out, found = self._attend(query, key, value, pattern, weights, edge_key=edge, edge_value=edge)
        if self.root_weight:
            root = self.lin_skip(target)
            if self.lin_beta is not None:
                beta = self.lin_beta(torch.cat([out, root, out - root], -1)).sigmoid()
                out = beta * root + (1 - beta) * out
            else:
                out = out + root
        return out if found is None else (out, self._weights_of_edges(edge_index, found, pattern))
