"""AERO-GNN: edge and hop attention that stay apart over many hops (Lee et al. 2023)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn.dense import Linear
from torch_geometric.nn.inits import glorot, ones, reset

from geoattn.nn.dropout import dropout
from geoattn.ops import segment_sum, weighted_sum
from geoattn.ops.backends.modes import differentiable, traced, transforms_active
from geoattn.ops.backends.recompute import add_at, edges_per_chunk, gather
from geoattn.patterns import Adjacency, Neighbors, as_neighbors


class AEROGNN(nn.Module):
    r"""The network of Lee, Bu, Yoo and Shin 2023, "Towards Deep Attention in Graph Neural Networks" (ICML).

    A perceptron makes :math:`h^{(0)} = \operatorname{MLP}(x)`, of which :math:`K` hops of attention gather
    :math:`z^{(k)} = \sum_{\ell \le k} \gamma^{(\ell)} h^{(\ell)}`; the classes are linear in
    :math:`\operatorname{ELU}(z^{(K)})`. Both attentions of hop :math:`k` look at everything gathered before it,
    :math:`\tilde z^{(k-1)} = \ln(\lambda / k + 1 + 10^{-6}) \, z^{(k-1)}`. For every head, edge attention is positive
    and normalised on both sides, instead of by a softmax,

    .. math::
        e^{(k)}_{ij} = \operatorname{softplus}\bigl(a_k^\top \operatorname{ELU}(\tilde z_i + \tilde z_j)\bigr)
        + 10^{-6}, \qquad D_i = \sum_{j \in \mathcal{N}(i)} e^{(k)}_{ij}, \qquad
        h^{(k)}_i = \sum_{j \in \mathcal{N}(i)} \frac{e^{(k)}_{ij}}{\sqrt{D_i D_j}} \, h^{(k-1)}_j,

    and hop attention may be negative,

    .. math::
        \gamma^{(k)}_i = c_k^\top \operatorname{ELU}\bigl([h^{(k)}_i \Vert \tilde z^{(k-1)}_i]\bigr) + b_k, \qquad
        \gamma^{(0)}_i = c_0^\top \operatorname{ELU}(h^{(0)}_i) + b_0.

    This is what the authors' code computes. The formula on their poster has :math:`\tilde z_i \Vert \tilde z_j` in
    place of the sum. :math:`D` is a sum over incoming edges for both ends of an edge, also where the graph is directed;
    what comes from a node without incoming edges has weight 0.

    Hops run in float32, or float64, whatever the type of the features. Per hop, numbers are kept for every edge, but no
    vectors.

    The authors' optimizer has one weight decay for ``dense_lins`` and another for ``atts``, ``hop_atts`` and
    ``hop_biases``. Parameters are named as theirs, so that their ``state_dict`` fits.

    Source: https://github.com/syleeheal/AERO-GNN, https://arxiv.org/abs/2306.02376.

    Args:
        in_channels: Features of a node; -1: those of the first call.
        hidden_channels: Features of a head.
        out_channels: Classes.
        num_layers: Linear layers of the perceptron.
        num_hops: Number of hops :math:`K`.
        heads: Number of heads.
        lambd: :math:`\lambda`: the smaller, the less later hops look at what was gathered.
        dropout: Dropout before every linear layer of the perceptron.
        final_dropout: Whether to apply it before the last layer as well, ``--add-dropout`` of the authors.
        add_self_loops: Whether every node attends to itself, once. The authors do so to every graph they load, before
            the network sees it: else :math:`h^{(k)}` holds nothing of a node's own :math:`h^{(k-1)}`.

    Shapes:
        ``x`` ``[N, in_channels]``; output ``[N, out_channels]``, not normalised.

    Raises:
        ValueError: If ``num_layers`` is less than 1 or ``num_hops`` less than 0.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int = 1,
        num_hops: int = 10,
        heads: int = 1,
        lambd: float = 1.0,
        dropout: float = 0.6,
        final_dropout: bool = False,
        add_self_loops: bool = True,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        if num_hops < 0:
            raise ValueError(f"num_hops must be at least 0, got {num_hops}")
        self.in_channels, self.hidden_channels, self.out_channels = in_channels, hidden_channels, out_channels
        self.num_hops, self.heads, self.lambd = num_hops, heads, lambd
        self.dropout, self.final_dropout, self.add_self_loops = dropout, final_dropout, add_self_loops

        channels = heads * hidden_channels
        widths = [in_channels] + num_layers * [channels] + [out_channels]
        self.dense_lins = nn.ModuleList(
            Linear(width, next_width, weight_initializer="glorot") for width, next_width in pairwise(widths)
        )
        self.atts = nn.ParameterList(torch.empty(1, heads, hidden_channels) for _ in range(num_hops))
        self.hop_atts = nn.ParameterList(
            torch.empty(1, heads, hidden_channels if k == 0 else 2 * hidden_channels) for k in range(num_hops + 1)
        )
        self.hop_biases = nn.ParameterList(torch.empty(1, heads) for _ in range(num_hops + 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        reset(self.dense_lins)
        for att in [*self.atts, *self.hop_atts]:
            glorot(att)
        for bias in self.hop_biases:
            ones(bias)

    def forward(self, x: Tensor, edge_index: Adjacency) -> Tensor:
        """Classes of the nodes of a graph.

        Args:
            x: Features of the nodes, dense or sparse CSR.
            edge_index: The graph, as `geoattn.patterns.as_neighbors` takes it.
        """
        pattern = as_neighbors(edge_index, x.size(0), self_loops=self.add_self_loops)
        *perceptron, last = self.dense_lins
        for layer, lin in enumerate(perceptron):
            x = dropout(F.elu(x) if layer else x, self.dropout, self.training)
            x = lin(x)
        h = x.view(-1, self.heads, self.hidden_channels)
        with torch.autocast(x.device.type, enabled=False):
            z = self._gather(h.to(torch.promote_types(h.dtype, torch.float32)), pattern)
        z = F.elu(z.flatten(1)).to(x.dtype)
        return last(F.dropout(z, self.dropout, self.training and self.final_dropout))

    def _gather(self, h: Tensor, pattern: Neighbors) -> Tensor:
        """``z`` of the last hop, ``[N, H, d]``."""
        z = h * self._hop_attention(0, h)
        for k in range(1, self.num_hops + 1):
            seen = z * math.log(self.lambd / k + 1 + 1e-6)
            h = weighted_sum(_edge_attention(seen, self.atts[k - 1][0].to(h.dtype), pattern), h, pattern)
            z = z + h * self._hop_attention(k, torch.cat([h, seen], -1))
        return z

    def _hop_attention(self, k: int, x: Tensor) -> Tensor:
        attention = (self.hop_atts[k].to(x.dtype) * F.elu(x)).sum(-1) + self.hop_biases[k].to(x.dtype)
        return attention.unsqueeze(-1)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.in_channels}, {self.hidden_channels}, {self.out_channels}, "
            f"num_layers={len(self.dense_lins) - 1}, num_hops={self.num_hops}, heads={self.heads})"
        )


def _edge_attention(z: Tensor, att: Tensor, pattern: Neighbors) -> Tensor:
    """Normalised attention ``[E, H]`` of ``z`` ``[N, H, d]`` with vectors ``[H, d]``."""
    row, col = pattern.row.long(), pattern.col.long()
    if traced() or transforms_active():
        score = _score(z, att, row, col)
    else:
        score = _Score.apply(z, att, row, col, edges_per_chunk(z.device))
    weight = F.softplus(score) + 1e-6
    total = segment_sum(weight, ptr=pattern.rowptr)
    root = total.where(total > 0, torch.inf).rsqrt()
    return root.index_select(0, row) * weight * root.index_select(0, col)


def _mixed(z: Tensor, row: Tensor, col: Tensor) -> Tensor:
    return F.elu_(gather(z, row).add_(gather(z, col)))


def _score(z: Tensor, att: Tensor, row: Tensor, col: Tensor) -> Tensor:
    return torch.einsum("ehd,hd->eh", _mixed(z, row, col), att)


class _Score(torch.autograd.Function):
    """`_score` ``[E, H]`` that keeps no vector per edge: they are made again in the backward pass.

    By hand, so that it takes about as long as the plain formula does.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, att: Tensor, row: Tensor, col: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(z, att, row, col)
        ctx.size = size
        return torch.cat([_score(z, att, *ends) for ends in zip(row.split(size), col.split(size), strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, att, row, col = ctx.saved_tensors
        with torch.autocast(z.device.type, enabled=False):
            if torch.is_grad_enabled() or transforms_active(grad):

                def formulas(z: Tensor, att: Tensor) -> tuple[Tensor]:
                    return (_score(z, att, row, col),)

                grads = differentiable(formulas, (z, att), ctx.needs_input_grad[:2], (grad,))
            else:
                grads = _score_gradients(z, att, row, col, grad, ctx.size)
        return *grads, None, None, None


def _score_gradients(z: Tensor, att: Tensor, row: Tensor, col: Tensor, grad: Tensor, size: int) -> list[Tensor | None]:
    grad_z, grad_att = torch.zeros_like(z), torch.zeros_like(att)
    for i, j, part in zip(row.split(size), col.split(size), grad.split(size), strict=True):
        mixed = _mixed(z, i, j)
        grad_att += torch.einsum("ehd,eh->hd", mixed, part)
        slope = mixed.clamp_(max=0).add_(1).mul_(part.unsqueeze(-1))  # of ELU, from its values
        add_at(grad_z, i, slope)
        add_at(grad_z, j, slope)
    return [grad_z * att, grad_att]
