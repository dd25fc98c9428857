"""`GATv2Conv`."""

from __future__ import annotations

from typing import Any

import torch_geometric.nn as pyg
from torch import Tensor

from geoattn.nn.graph._drop_in import AttentionDropIn, as_edge_index, given_features, sources_and_targets
from geoattn.patterns import Adjacency


class GATv2Conv(AttentionDropIn, pyg.GATv2Conv):
    r"""Dynamic graph attention (Brody et al. 2022, eq. 7): PyG's ``GATv2Conv``, its messages not written down.

    .. math::
        o_i = \sum_{j \in \mathcal{N}(i) \cup \{i\}} \operatorname{softmax}_j \bigl(a^\top \operatorname{LeakyReLU}(
        W_l x_j + W_r x_i + W_e e_{ij})\bigr) \, W_l x_j

    Constructor, arguments, results, parameters and their names are those of `torch_geometric.nn.GATv2Conv`, whose
    documentation applies; see `AttentionDropIn` for when PyG's own path runs.
    """

    pyg_layer = pyg.GATv2Conv
    additive = True

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
        weights = bool(return_attention_weights)
        if self._pygs_path_needed(edge_index, features, weights, source, target) or target is None:
            return super().forward(x, as_edge_index(edge_index), edge_attr, return_attention_weights)

        pattern = self._pattern(edge_index, source, target)
        res = None if self.res is None else self.res(target)
        value = query = self._heads(self.lin_l(source))
        if target is not source or not self.share_weights:
            query = self._heads(self.lin_r(target))
        edge = None
        if features is not None:
            edge = self._heads(self.lin_edge(self._edge_features(edge_index, features, pattern)))
        terms = {"att": self.att[0], "negative_slope": self.negative_slope, "edge_key": edge}
        out, found = self._attend(query, value, value, pattern, weights, **terms)
        out = out if res is None else out + res
        out = out if self.bias is None else out + self.bias
        return out if found is None else (out, self._weights_of_edges(edge_index, found, pattern))
