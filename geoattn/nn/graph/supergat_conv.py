"""`SuperGATConv`."""

from __future__ import annotations

import math

import torch
import torch_geometric.nn as pyg
from torch import Tensor
from torch.nn import functional as F
from torch_geometric.utils import dropout_edge

from geoattn.nn.graph._drop_in import DropIn, as_edge_index, of_caller
from geoattn.nn.graph._linears import scores
from geoattn.ops import edge_dot
from geoattn.ops.attend import attend
from geoattn.patterns import Adjacency, Neighbors, as_neighbors


class SuperGATConv(DropIn, pyg.SuperGATConv):
    r"""Self-supervised graph attention (Kim and Oh 2021, eq. 2 to 5): PyG's ``SuperGATConv``, its messages not kept.

    .. math::
        o_i = \sum_{j \in \mathcal{N}(i) \cup \{i\}} \operatorname{softmax}_j \operatorname{LeakyReLU}(s_{ij}) \, h_j,
        \qquad h = W x, \qquad s_{ij} = h_i^\top h_j / \sqrt{C} \;\text{(SD)} \quad \text{or} \quad
        (a_l^\top h_j + a_r^\top h_i) \, \sigma(h_i^\top h_j) \;\text{(MX)}

    In training, products of edges and of sampled pairs without one are kept for `get_attention_loss`.

    Constructor, arguments, results, parameters and their names are those of `torch_geometric.nn.SuperGATConv`, whose
    documentation applies; ``edge_index`` may be a `geoattn.Neighbors`, too. See `DropIn` for when PyG's own path runs.
    """

    pyg_layer = pyg.SuperGATConv

    def forward(
        self,
        x: Tensor,
        edge_index: Adjacency,
        neg_edge_index: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Tensor:
        """Features ``[N, H * C]``, or ``[N, C]`` averaged over heads."""
        dropout = self.dropout if self.training else 0.0
        width = self.heads * self.out_channels
        if self._messages_needed(x) or dropout >= 1 or self._faster_as_pygs(x, edge_index, width, not dropout, True):
            return super().forward(x, as_edge_index(edge_index), neg_edge_index, batch)

        pattern = self._pattern(edge_index, x, x)
        heads = self.lin(x)
        h = heads.view(-1, self.heads, self.out_channels)
        if self.attention_type == "MX":
            of_key, of_query = scores(heads, self.att_l, self.att_r)
            product = edge_dot(h, h, pattern)
            one = torch.ones_like(of_key)  # the sum of both as a dot product, for which no edge gathers them
            total = edge_dot(torch.cat([of_query, one], -1), torch.cat([one, of_key], -1), pattern)
            score = total * product.sigmoid()
        else:
            score = product = edge_dot(h, h, pattern) / math.sqrt(self.out_channels)
        nothing = h.new_zeros(h.size(0), self.heads, 1)
        bias = F.leaky_relu(score, self.negative_slope)
        out = attend(nothing, nothing, h, pattern, bias, dropout=dropout)

        if self.training:
            self._keep_products(h, product, pattern, neg_edge_index, batch)
        out = out.flatten(1) if self.concat else out.mean(1)
        return out if self.bias is None else out + self.bias

    def _keep_products(
        self, h: Tensor, product: Tensor, pattern: Neighbors, neg_edge_index: Tensor | None, batch: Tensor | None
    ) -> None:
        """What `get_attention_loss` compares: a sample of edges and of pairs without one, and which are edges."""
        edge_index = as_edge_index(pattern)
        _, kept = dropout_edge(edge_index, p=1.0 - self.edge_sample_ratio, training=True)
        if neg_edge_index is None:
            neg_edge_index = self.negative_sampling(edge_index, h.size(0), batch)
        absent = as_neighbors(neg_edge_index, h.size(0))
        of_absent = edge_dot(h, h, absent)
        if self.attention_type == "SD":
            of_absent = of_absent / math.sqrt(self.out_channels)
        of_edges, of_absent = of_caller(pattern, product)[kept], of_caller(absent, of_absent)
        self.att_x = torch.cat([of_edges, of_absent])
        self.att_y = torch.cat([self.att_x.new_ones(len(of_edges)), self.att_x.new_zeros(len(of_absent))])
