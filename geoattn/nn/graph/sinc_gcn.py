"""SIR-GCN and SINC-GCN: messages that know both ends of an edge, and the whole neighborhood (Lim et al.)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn.dense import Linear
from torch_geometric.nn.inits import reset
from torch_geometric.nn.resolver import activation_resolver

from geoattn.nn.graph._edges import by_rows, gather
from geoattn.ops import segment_max, segment_sum, weighted_sum
from geoattn.patterns import Adjacency, Neighbors, as_neighbors

AGGREGATIONS = ("sum", "mean", "max", "sym")


class SIRGCNConv(nn.Module):
    r"""The soft-isomorphic relational graph convolution of "Contextualized Messages Boost Graph Representations".

    Lim, Lim, Tan and Ikeda 2024: a nonlinear message for every edge,

    .. math::
        h^*_u = \bigoplus_{v \in \mathcal{N}(u)} W_R \, \sigma(W_Q h_u + W_K h_v).

    :math:`\bigoplus` is a sum, a mean, a maximum per channel, or ``"sym"``, a sum with the weights
    :math:`1 / \sqrt{d^{in}_u \, d^{out}_v}` of the numbers of incoming and outgoing edges. :math:`W_Q` and :math:`W_R`
    may have a bias. As in the authors' code, a linear aggregation comes before :math:`W_R`, whose bias then counts once
    per node, and all that a node without incoming edges gets; a maximum comes after it and is 0 there. Equal largest
    messages share the gradient, while in the authors' code (DGL) one of them gets it.

    Nothing per edge is kept for the backward pass, which makes the messages again.

    Source: https://github.com/briangodwinlim/SINC-GCN, https://arxiv.org/abs/2403.12529.

    Args:
        in_channels: Features of a node; -1: those of the first call.
        hidden_channels: Width of the messages before :math:`W_R`.
        out_channels: Features of a node afterwards.
        act: :math:`\sigma`, by its name as in PyG's layers or as a function. The authors train with ReLU and with
            LeakyReLU of slope 0.2. One that draws random numbers makes the layer keep its messages.
        act_kwargs: Arguments of an activation given by name.
        aggr: :math:`\bigoplus`: ``"sum"``, ``"mean"``, ``"max"`` or ``"sym"``.
        dropout: Dropout of :math:`W_Q h` and :math:`W_K h`.
        inner_bias: Whether :math:`W_Q` has a bias.
        outer_bias: Whether :math:`W_R` has a bias.

    Shapes:
        ``x`` ``[N, in_channels]``; output ``[N, out_channels]``.

    Raises:
        ValueError: If there is no such aggregation.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        act: str | Callable[[Tensor], Tensor] = "relu",
        act_kwargs: dict[str, Any] | None = None,
        aggr: str = "sum",
        dropout: float = 0.0,
        inner_bias: bool = True,
        outer_bias: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels, self.hidden_channels, self.out_channels = in_channels, hidden_channels, out_channels
        self.act = activation_resolver(act, **(act_kwargs or {}))
        self.aggr, self.dropout = _checked("aggr", aggr), dropout
        self.linear_query = Linear(in_channels, hidden_channels, bias=inner_bias)
        self.linear_key = Linear(in_channels, hidden_channels, bias=False)
        self.linear_relation = Linear(hidden_channels, out_channels, bias=outer_bias)

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        for module in self.children():
            reset(module)

    def forward(self, x: Tensor, edge_index: Adjacency) -> Tensor:
        """New features of the nodes of a graph.

        Args:
            x: Features of the nodes.
            edge_index: The graph, as `geoattn.patterns.as_neighbors` takes it; nodes gather along incoming edges.
        """
        pattern = as_neighbors(edge_index, x.size(0))
        key = self._dropped(self.linear_key(x))
        return self._aggregate(self._query(x, pattern), key, pattern)

    def _query(self, x: Tensor, pattern: Neighbors) -> Tensor:
        """What all messages to a node share, ``[N, hidden_channels]``."""
        query: Tensor = self._dropped(self.linear_query(x))
        return query

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)

    def _aggregate(self, query: Tensor, key: Tensor, pattern: Neighbors) -> Tensor:
        if self.aggr != "max":
            weight = _weight(self.aggr, pattern, query.dtype)
            return self.linear_relation(by_rows(_gathered, query, key, pattern, weight, [self.act]))
        return by_rows(_highest, query, key, pattern, None, [self.act, self.linear_relation])

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.in_channels}, {self.hidden_channels}, {self.out_channels}, aggr={self.aggr})"
        )


class SINCGCNConv(SIRGCNConv):
    r"""The convolution of "Enhancing Graph Representations with Neighborhood-Contextualized Message-Passing".

    Lim, Lim, Tan, King and Ikeda 2025: a nonlinear message for every edge, which knows all neighbors of its target,

    .. math::
        h^*_u = \bigoplus_{v \in \mathcal{N}(u)} W_R \, \sigma \Bigl(
        W_Q h_u + W_K h_v + W_N \bigotimes_{w \in \mathcal{N}(u)} h_w \Bigr).

    :math:`\bigotimes` is one of the aggregations of `SIRGCNConv`, which is this layer without :math:`W_N`. As in the
    authors' code, :math:`W_N`, without bias, comes after it, which matters for the maximum.

    Source: https://github.com/briangodwinlim/SINC-GCN, https://arxiv.org/abs/2511.11046.

    Args:
        in_channels: Features of a node; -1: those of the first call.
        hidden_channels: Width of the messages before :math:`W_R`.
        out_channels: Features of a node afterwards.
        act: :math:`\sigma`, as in `SIRGCNConv`.
        act_kwargs: Arguments of an activation given by name.
        aggr: :math:`\bigoplus`: ``"sum"``, ``"mean"``, ``"max"`` or ``"sym"``.
        neigh_aggr: :math:`\bigotimes`, likewise.
        dropout: Dropout of :math:`W_Q h`, :math:`W_K h` and :math:`W_N \bigotimes h`.
        inner_bias: Whether :math:`W_Q` has a bias.
        outer_bias: Whether :math:`W_R` has a bias.

    Shapes:
        ``x`` ``[N, in_channels]``; output ``[N, out_channels]``.

    Raises:
        ValueError: If there is no such aggregation.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        act: str | Callable[[Tensor], Tensor] = "relu",
        act_kwargs: dict[str, Any] | None = None,
        aggr: str = "sum",
        neigh_aggr: str = "sum",
        dropout: float = 0.0,
        inner_bias: bool = True,
        outer_bias: bool = True,
    ) -> None:
        super().__init__(
            in_channels, hidden_channels, out_channels, act, act_kwargs, aggr, dropout, inner_bias, outer_bias
        )
        self.neigh_aggr = _checked("neigh_aggr", neigh_aggr)
        self.linear_neigh = Linear(in_channels, hidden_channels, bias=False)

    def _query(self, x: Tensor, pattern: Neighbors) -> Tensor:
        query = super()._query(x, pattern)
        if self.neigh_aggr == "max":
            around = by_rows(_highest_key, x, x, pattern)
        else:
            around = weighted_sum(_weight(self.neigh_aggr, pattern, x.dtype), x.unsqueeze(1), pattern).squeeze(1)
        return query + self._dropped(self.linear_neigh(around))

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, neigh_aggr={self.neigh_aggr})"


def _weight(aggr: str, pattern: Neighbors, dtype: torch.dtype) -> Tensor:
    """Of every edge in a sum, ``[E, 1]``."""
    row, col = pattern.row.long(), pattern.col.long()
    in_degree = pattern.degree.to(torch.promote_types(dtype, torch.float32))
    if aggr == "sum":
        weight = in_degree.new_ones(row.shape)
    elif aggr == "mean":
        weight = in_degree.reciprocal()[row]
    else:
        weight = in_degree.rsqrt()[row] * pattern.transpose.degree.to(in_degree.dtype).rsqrt()[col]
    return weight.to(dtype).unsqueeze(1)


Function = Callable[[Tensor], Tensor]


def _gathered(query: Tensor, key: Tensor, row: Tensor, weight: Tensor, act: Function) -> Tensor:
    message = act(gather(query, row) + key) * weight
    return segment_sum(message, row, num_segments=query.size(0)).to(query.dtype)


def _highest(query: Tensor, key: Tensor, row: Tensor, _: None, act: Function, linear: Function) -> Tensor:
    return segment_max(linear(act(gather(query, row) + key)), row, num_segments=query.size(0))


def _highest_key(query: Tensor, key: Tensor, row: Tensor, _: None) -> Tensor:
    return segment_max(key, row, num_segments=query.size(0))


def _checked(name: str, aggr: str) -> str:
    if aggr not in AGGREGATIONS:
        raise ValueError(f"{name} must be one of {', '.join(AGGREGATIONS)}, got {aggr!r}")
    return aggr
