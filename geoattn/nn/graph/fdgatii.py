"""FDGATII: graph attention with the initial residual and the identity mapping of GCNII (Kulatilleke et al. 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn.dense import Linear

from geoattn.nn.dropout import dropout
from geoattn.ops.attend import attend
from geoattn.patterns import Adjacency, as_neighbors


class FDGATIIConv(nn.Module):
    r"""A layer of FDGATII (Kulatilleke, Portmann, Ko and Chandra 2021): attention in place of GCNII's propagation.

    With :math:`h = W x`, where :math:`W` has no bias, nodes gather

    .. math::
        \hat x_i = \operatorname{ELU}\Bigl(\sum_{j \in \mathcal{N}(i)} \alpha_{ij} h_j\Bigr), \qquad
        \alpha_{ij} = \operatorname{softmax}_j \bigl(-a^\top \operatorname{LeakyReLU}_{0.2}(h_j)\bigr),

    and with :math:`x^0`, what entered the first layer, and :math:`\beta = \ln(\theta / \ell + 1)` in layer :math:`\ell`

    .. math::
        r = (1 - \alpha) \hat x + \alpha x^0, \qquad
        x' = \begin{cases}
            \hat x & \text{support 0} \\
            \beta \, r \, \Theta + (1 - \beta) \, r & \text{support 1, as GCNII} \\
            \beta \, [\hat x \,\Vert\, x^0] \, \Theta + (1 - \beta) \, r & \text{support 2, as GCNII*}
        \end{cases}

    This is what the authors' code computes, including the minus sign. There the score is
    :math:`-[a_q \Vert a]^\top \operatorname{LeakyReLU}([h_i \Vert h_j])`, which is a term of :math:`i` plus a term of
    :math:`j`: the former is the same for all keys of a query and cancels in the softmax. So :math:`a_q` has no effect
    and no gradient, this layer has none, and all queries give a key the same weight up to normalisation: the
    attention is static in the sense of Brody et al. (2022), although it is meant to be dynamic.

    Source: https://github.com/gayanku/FDGATII, https://arxiv.org/abs/2110.11464.

    Args:
        channels: Features of a node, before and after.
        alpha: Strength of the initial residual.
        theta: Strength of the identity mapping in the first layer, :math:`\lambda` in the paper; named as in PyG's
            ``GCN2Conv``.
        layer: Number :math:`\ell` of the layer, from 1.
        support: 0, 1 or 2, as above. With 0 there is no :math:`\Theta`, and ``alpha``, ``theta`` and ``layer`` have no
            effect.
        att_dropout: Dropout of attention weights.
        add_self_loops: Whether every node attends to itself, once, as in the authors' preprocessing.

    Shapes:
        ``x`` and ``x_0`` ``[N, channels]``; output ``[N, channels]``. :math:`\Theta` is ``weight``,
        ``[channels, channels]``, for support 2 ``[2 channels, channels]``.

    Raises:
        ValueError: If ``support`` is not 0, 1 or 2, or ``layer`` is less than 1.
    """

    def __init__(
        self,
        channels: int,
        alpha: float,
        theta: float,
        layer: int,
        support: int = 1,
        att_dropout: float = 0.6,
        add_self_loops: bool = True,
    ) -> None:
        super().__init__()
        if support not in (0, 1, 2):
            raise ValueError(f"support must be 0, 1 or 2, got {support}")
        if layer < 1:
            raise ValueError(f"layer must be at least 1, got {layer}")
        self.channels, self.alpha, self.support = channels, alpha, support
        self.beta = math.log(theta / layer + 1)
        self.att_dropout, self.add_self_loops = att_dropout, add_self_loops
        self.lin = nn.Linear(channels, channels, bias=False)
        self.att = nn.Parameter(torch.empty(channels))
        self.weight = nn.Parameter(torch.empty(support * channels, channels)) if support else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, as the authors' code does."""
        gain = 1.414
        nn.init.xavier_normal_(self.lin.weight, gain)
        nn.init.normal_(self.att, std=gain * math.sqrt(2 / (2 * self.channels + 1)))  # half of a [1, 2 channels] matrix
        if self.weight is not None:
            bound = 1 / math.sqrt(self.channels)
            nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor, x_0: Tensor, edge_index: Adjacency) -> Tensor:
        """Attend along a graph.

        Args:
            x: Features of the nodes.
            x_0: What entered the first layer.
            edge_index: The graph, as `geoattn.patterns.as_neighbors` takes it. Queries are the targets; in the
                authors' code they are the rows of the adjacency matrix, for directed graphs the sources.
        """
        pattern = as_neighbors(edge_index, x.size(0), self_loops=self.add_self_loops)
        h = self.lin(x)
        key = -(F.leaky_relu(h, 0.2) @ self.att).view(-1, 1, 1)
        dropout = self.att_dropout if self.training else 0.0
        found = attend(torch.ones_like(key), key, h.unsqueeze(1), pattern, scale=1.0, dropout=dropout)
        found = F.elu(found.squeeze(1))

        if self.weight is None:
            return found
        mixed = (1 - self.alpha) * found + self.alpha * x_0
        mapped = mixed if self.support == 1 else torch.cat([found, x_0], 1)
        return self.beta * (mapped @ self.weight) + (1 - self.beta) * mixed

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.channels}, alpha={self.alpha}, beta={self.beta:.4g}, support={self.support})"
        )


class FDGATII(nn.Module):
    r"""The network of Kulatilleke et al. (2021) for node classification: linear, `FDGATIIConv` layers, linear.

    .. math::
        x^0 = \operatorname{ReLU}(W_1 x), \qquad
        x^\ell = \operatorname{ReLU}\bigl(\text{layer}_\ell(x^{\ell - 1}, x^0)\bigr), \qquad
        y = W_2 x^L,

    with dropout before every step but on :math:`x^0` as the residual. Like PyG's models it returns logits; the authors'
    returns their log-softmax.

    The authors train it full batch with Adam (learning rate 0.01, ``dropout`` 0.5), on Cora with 2 layers of 64
    channels, ``support=1``, ``alpha=0.2`` and weight decay 1e-4, on CiteSeer with 1 layer of 128 channels,
    ``support=2``, ``alpha=0.5`` and weight decay 5e-6; ``theta=0.5`` for both.

    Source: https://github.com/gayanku/FDGATII, https://arxiv.org/abs/2110.11464.

    Args:
        in_channels: Features of a node; -1 to take it from the first input.
        hidden_channels: Features inside.
        out_channels: Number of classes.
        num_layers: Number of attention layers.
        alpha: See `FDGATIIConv`.
        theta: See `FDGATIIConv`.
        support: See `FDGATIIConv`.
        dropout: Dropout of features.
        att_dropout: Dropout of attention weights.
        add_self_loops: See `FDGATIIConv`.

    Shapes:
        ``x`` ``[N, in_channels]``; output ``[N, out_channels]``.

    Raises:
        ValueError: As `FDGATIIConv`.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int,
        alpha: float = 0.5,
        theta: float = 0.5,
        support: int = 1,
        dropout: float = 0.5,
        att_dropout: float = 0.6,
        add_self_loops: bool = True,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.lin_in = Linear(in_channels, hidden_channels)
        self.convs = nn.ModuleList(
            FDGATIIConv(hidden_channels, alpha, theta, layer, support, att_dropout, add_self_loops)
            for layer in range(1, num_layers + 1)
        )
        self.lin_out = Linear(hidden_channels, out_channels)

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        for part in (self.lin_in, *self.convs, self.lin_out):
            part.reset_parameters()

    def forward(self, x: Tensor, edge_index: Adjacency) -> Tensor:
        """Logits of every node's classes.

        Args:
            x: Features of the nodes, dense or sparse CSR.
            edge_index: The graph, see `FDGATIIConv.forward`.
        """
        x = x_0 = self.lin_in(self._dropout(x)).relu()
        for conv in self.convs:
            x = conv(self._dropout(x), x_0, edge_index).relu()
        return self.lin_out(self._dropout(x))

    def _dropout(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)
