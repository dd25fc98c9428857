"""CoulGAT: graph attention by learnable powers of couplings (Gokden 2019), and a form of it for any graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn.dense import Linear
from torch_geometric.nn.inits import glorot, zeros

from geoattn.ops.attend import attend
from geoattn.patterns import Adjacency, as_neighbors


class CoulGATConv(nn.Module):
    r"""An attention layer of CoulGAT (Gokden 2019), for batches of graphs of a fixed number of node slots.

    Of a graph with features :math:`x_n` and couplings :math:`A`, such as :math:`1 / d^2` of distances :math:`d`, a head
    with learnable powers :math:`p_{ij}`, as of a screened Coulomb potential, makes

    .. math::
        h_n = W x_n + b_n, \qquad
        m_i = \sum_j \operatorname{softmax}_j \bigl(A_{ij}^{p_{ij}}\bigr) \, h_j, \qquad
        x'_k = \sigma \Bigl(\sum_i \operatorname{softmax}_i \bigl(\operatorname{LeakyReLU}_{0.2}(a_k^\top m_i)\bigr)
        \, h_i\Bigr).

    The powers, the attention vectors :math:`a_k` and the biases :math:`b_n` belong to node slots: the layer needs all
    graphs in the same number of slots and the same order, and is not equivariant under permutations. Empty slots are
    not hidden: as in the author's code, they are attended to as any other. `PowerLawGATConv` is free of both.

    The residual networks of the paper are made of this layer: see the example.

    Source: https://github.com/burcgokden/CoulGAT-Graph-Attention-Interpretability, https://arxiv.org/abs/1912.08409.

    Args:
        in_channels: Features of a node.
        out_channels: Features of a head.
        num_nodes: Number of node slots ``N``.
        heads: Number of heads ``H``.
        concat: Whether heads are concatenated; else they are averaged.
        learn_power: Whether there are powers; else all are 1.
        dropout: Dropout of the features :math:`h_i` that are summed (not of those that scores are made of).
        att_dropout: Dropout of attention weights.
        act: The activation :math:`\sigma`, after heads are concatenated or averaged; None for none.

    Shapes:
        ``x`` ``[..., N, in_channels]`` and ``adj`` ``[..., N, N]``, as PyG's dense layers have them; output
        ``[..., N, H * out_channels]``, averaged ``[..., N, out_channels]``.

    Example:
        >>> import torch
        >>> from geoattn.nn.graph import CoulGATConv
        >>> x, adj = torch.randn(8, 29, 20), torch.rand(8, 29, 29) + 0.1
        >>> first, second = (CoulGATConv(20, 4, num_nodes=29, heads=5, act=None) for _ in range(2))
        >>> (x + second(first(x.relu(), adj).relu(), adj)).shape  # a residual block
        torch.Size([8, 29, 20])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_nodes: int,
        heads: int = 1,
        concat: bool = True,
        learn_power: bool = True,
        dropout: float = 0.0,
        att_dropout: float = 0.0,
        act: Callable[[Tensor], Tensor] | None = F.relu,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.num_nodes, self.heads = in_channels, out_channels, num_nodes, heads
        self.concat, self.dropout, self.att_dropout, self.act = concat, dropout, att_dropout, act
        self.weight = nn.Parameter(torch.empty(heads, out_channels, in_channels))
        self.bias = nn.Parameter(torch.empty(heads, num_nodes, out_channels))
        self.att = nn.Parameter(torch.empty(heads, num_nodes, out_channels))
        self.power = nn.Parameter(torch.empty(heads, num_nodes, num_nodes)) if learn_power else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew: Glorot's uniform distribution for each head, biases 0."""
        glorot(self.weight)
        zeros(self.bias)
        glorot(self.att)
        glorot(self.power)

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        """Attend within every graph.

        Args:
            x: Features of the nodes.
            adj: Couplings, positive; the author takes 1e3 for a node and itself and 1e-5 where there is none. They are
                not checked: powers of 0 and of negative numbers may be infinite or undefined.

        Raises:
            ValueError: If shapes do not fit.
        """
        if x.shape[-2:] != (self.num_nodes, self.in_channels):
            raise ValueError(f"expected x [..., {self.num_nodes}, {self.in_channels}], got {tuple(x.shape)}")
        if adj.shape[-2:] != (self.num_nodes, self.num_nodes):
            raise ValueError(f"expected adj [..., {self.num_nodes}, {self.num_nodes}], got {tuple(adj.shape)}")
        h = torch.einsum("...nf,hcf->...hnc", x, self.weight) + self.bias
        coupling = adj.unsqueeze(-3)
        if self.power is not None:
            coupling = coupling**self.power
        mean = coupling.softmax(-1) @ h
        score = F.leaky_relu(self.att @ mean.transpose(-1, -2), 0.2)
        weight = F.dropout(score.softmax(-1), self.att_dropout, self.training)
        out = weight @ F.dropout(h, self.dropout, self.training)
        out = out.transpose(-3, -2).flatten(-2) if self.concat else out.mean(-3)
        return out if self.act is None else self.act(out)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.in_channels}, {self.out_channels}, num_nodes={self.num_nodes}, "
            f"heads={self.heads})"
        )


class PowerLawGATConv(nn.Module):
    r"""CoulGAT's idea for any graph: scores of features averaged by learnable powers of couplings.

    This layer is ours, not Gokden's (2019): a generalisation of `CoulGATConv` that no node slot is part of, and that is
    equivariant under permutations. With couplings :math:`A_{ij} > 0` of edges, such as :math:`1 / d_{ij}`, a head makes

    .. math::
        h_i = W x_i + b, \qquad
        m_i = \sum_{j \in \mathcal{N}(i)} \operatorname{softmax}_j \bigl(A_{ij}^p\bigr) \, h_j, \qquad
        x'_k = \sigma \Bigl(\sum_{i \in \mathcal{N}(k)} \operatorname{softmax}_i \bigl(
        \operatorname{LeakyReLU}_{0.2}(a_q^\top m_k + a^\top m_i)\bigr) \, h_i\Bigr).

    What differs: both softmaxes run over neighbors; a head has one power :math:`p` and one vector :math:`a` in place of
    one for each pair of slots and for each slot; and there is the term of the query :math:`k`, which is GAT's
    (Velickovic et al. 2018), since no vector :math:`a_k` tells one query from another. On complete graphs with self
    loops and with :math:`a_q = 0`, it is a `CoulGATConv` whose slots share their parameters.

    A node without neighbors gets :math:`\sigma(0)`. Self loops are those of the graph; none are added, since only the
    caller knows their coupling.

    Args:
        in_channels: Features of a node; -1 to take it from the first input.
        out_channels: Features of a head.
        heads: Number of heads ``H``.
        concat: Whether heads are concatenated; else they are averaged.
        dropout: Dropout of the features :math:`h_i` that are summed (not of those that scores are made of).
        att_dropout: Dropout of attention weights.
        act: The activation :math:`\sigma`, after heads are concatenated or averaged; None for none.

    Shapes:
        ``x`` ``[N, in_channels]``, ``edge_weight`` ``[E]``; output ``[N, H * out_channels]``, averaged
        ``[N, out_channels]``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        dropout: float = 0.0,
        att_dropout: float = 0.0,
        act: Callable[[Tensor], Tensor] | None = F.relu,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.heads = in_channels, out_channels, heads
        self.concat, self.dropout, self.att_dropout, self.act = concat, dropout, att_dropout, act
        self.lin = Linear(in_channels, heads * out_channels, weight_initializer="glorot", bias_initializer="zeros")
        self.att_query = nn.Parameter(torch.empty(heads, out_channels))
        self.att_key = nn.Parameter(torch.empty(heads, out_channels))
        self.power = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew; powers begin at 1, the couplings as they are."""
        self.lin.reset_parameters()
        glorot(self.att_query)
        glorot(self.att_key)
        nn.init.ones_(self.power)

    def forward(self, x: Tensor, edge_index: Adjacency, edge_weight: Tensor) -> Tensor:
        """Attend along a graph.

        Args:
            x: Features of the nodes.
            edge_index: The graph, as `geoattn.patterns.as_neighbors` takes it.
            edge_weight: Coupling of every edge, positive (not checked), in the order of ``edge_index``.

        Raises:
            ValueError: If shapes do not fit.
        """
        pattern = as_neighbors(edge_index, x.size(0))
        if edge_weight.shape != (pattern.num_edges,):
            raise ValueError(f"expected edge_weight [{pattern.num_edges}], got {tuple(edge_weight.shape)}")
        if pattern.edge_order is not None:
            edge_weight = pattern.reorder_edges(edge_weight)
        h = self.lin(x).view(-1, self.heads, self.out_channels)
        no_score = h.new_zeros(h.size(0), self.heads, 1)
        coupling = edge_weight.unsqueeze(1) ** self.power
        mean = attend(no_score, no_score, h, pattern, bias=coupling)

        query = (mean * self.att_query).sum(-1, keepdim=True)
        key = (mean * self.att_key).sum(-1, keepdim=True)
        value = F.dropout(h, self.dropout, self.training)
        dropout = self.att_dropout if self.training else 0.0
        out = attend(query, key, value, pattern, dropout=dropout, att=torch.ones_like(self.att_key[:, :1]))
        out = out.flatten(1) if self.concat else out.mean(1)
        return out if self.act is None else self.act(out)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.in_channels}, {self.out_channels}, heads={self.heads})"
