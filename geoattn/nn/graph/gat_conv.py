"""`GATConv`."""

from __future__ import annotations

from typing import Any

import torch_geometric.nn as pyg
from torch import Tensor

from geoattn.nn.graph._drop_in import AttentionDropIn, as_edge_index, given_features, sources_and_targets
from geoattn.nn.graph._linears import scores, scores_of_edges
from geoattn.patterns import Adjacency


class GATConv(AttentionDropIn, pyg.GATConv):
    r"""Graph attention (Velickovic et al. 2018, eq. 1 to 6): PyG's ``GATConv``, its messages not written down.

    .. math::
        o_i = \sum_{j \in \mathcal{N}(i) \cup \{i\}} \operatorname{softmax}_j \operatorname{LeakyReLU}\bigl(
        a_s^\top W x_j + a_t^\top W x_i + a_e^\top W_e e_{ij}\bigr) \, W x_j

    Constructor, arguments, results, parameters and their names are those of `torch_geometric.nn.GATConv`, whose
    documentation applies; see `AttentionDropIn` for when PyG's own path runs. Of edges only the scores are made, as
    :math:`(W_e^\top a_e)^\top e_{ij}`, and not the heads.
    """

    pyg_layer = pyg.GATConv
    additive = True
    ignores_edge_attr = True

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor | None],
        edge_index: Adjacency,
        edge_attr: Tensor | None = None,
        size: tuple[int, int] | None = None,
        return_attention_weights: bool | None = None,
    ) -> Any:
        """Features ``[N, H * C]`` of the targets (``[N, C]`` averaged), and attention weights if asked for."""
        source, target = sources_and_targets(x)
        self._check_edge_attr(edge_index, edge_attr)
        features = None if self.lin_edge is None else given_features(edge_index, edge_attr)
        weights = bool(return_attention_weights)
        if self._pygs_path_needed(edge_index, features, weights, source, target):
            return super().forward(x, as_edge_index(edge_index), edge_attr, size, return_attention_weights)

        pattern = self._pattern(edge_index, source, target, size)
        res = None if target is None or self.res is None else self.res(target)
        lin_src, lin_dst = (self.lin_src, self.lin_dst) if self.lin is None else (self.lin, self.lin)
        value = lin_src(source)
        if target is None:
            (key,) = scores(value, self.att_src)
            query = key.new_zeros(pattern.num_queries, self.heads, 1)
        elif target is source and lin_src is lin_dst:
            key, query = scores(value, self.att_src, self.att_dst)
        else:
            (key,), (query,) = scores(value, self.att_src), scores(lin_dst(target), self.att_dst)
        edge = None
        if features is not None:
            edge = scores_of_edges(self._edge_features(edge_index, features, pattern), self.lin_edge, self.att_edge)
        terms = {"att": key.new_ones(self.heads, 1), "negative_slope": self.negative_slope, "edge_key": edge}
        out, found = self._attend(query, key, self._heads(value), pattern, weights, **terms)
        out = out if res is None else out + res
        out = out if self.bias is None else out + self.bias
        return out if found is None else (out, self._weights_of_edges(edge_index, found, pattern))
