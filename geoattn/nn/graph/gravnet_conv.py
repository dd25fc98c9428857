"""`GravNetConv`."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
import torch_geometric.nn as pyg
from torch import Tensor
from torch_geometric.nn.aggr import MaxAggregation, MeanAggregation, MultiAggregation
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.dense import Linear

from geoattn.nn.graph._drop_in import DropIn, as_edge_index, sources_and_targets
from geoattn.nn.graph._edges import by_rows
from geoattn.ops import segment_max, segment_mean
from geoattn.patterns import Neighbors


class GravNetConv(DropIn, pyg.GravNetConv):
    r"""GravNet's layer (Qasim et al. 2019): PyG's ``GravNetConv``, its messages not kept, and without pyg-lib.

    Every element takes part of itself to a place :math:`s_i` and looks at the :math:`k` nearest there:

    .. math::
        s_i = W_s x_i + b_s, \quad h_i = W_h x_i + b_h, \quad w_{ij} = \exp\bigl(-10 \, |s_j - s_i|^2\bigr), \\
        o_i = W_1 x_i + W_2 \Bigl[ \operatorname*{mean}_{j \in \mathcal{N}_k(i)} w_{ij} h_j \,\Big\Vert\,
        \max_{j \in \mathcal{N}_k(i)} w_{ij} h_j \Bigr] + b_2.

    Constructor, arguments, results, parameters and their names are those of `torch_geometric.nn.GravNetConv`, whose
    documentation applies; the factor 10 is PyG's. Neighbors are found by `geoattn.ops.knn`, which is exact on every
    device; a sample of fewer than ``k`` elements gives them all. Squared distances are made in float32 where the type
    is narrower. Neighbors with the same maximum share its gradient evenly, as in PyG on CPUs; unlike there, that holds
    where the maximum is 0, too. Per edge, differences of places are kept for the backward pass, and weights. See
    `DropIn` for when PyG's own messages are made.
    """

    pyg_layer = pyg.GravNetConv
    aggregations = (MultiAggregation, MeanAggregation, MaxAggregation)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        space_dimensions: int,
        propagate_dimensions: int,
        k: int,
        num_workers: int | None = None,
        **kwargs: Any,
    ) -> None:
        # Not PyG's constructor, which refuses to work without pyg-lib.
        MessagePassing.__init__(self, aggr=["mean", "max"], flow="source_to_target", **kwargs)
        if num_workers is not None:
            warnings.warn("num_workers is deprecated and does nothing", stacklevel=2)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.k = k
        self.lin_s = Linear(in_channels, space_dimensions)
        self.lin_h = Linear(in_channels, propagate_dimensions)
        self.lin_out1 = Linear(in_channels, out_channels, bias=False)
        self.lin_out2 = Linear(2 * propagate_dimensions, out_channels)
        self.reset_parameters()

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor],
        batch: Tensor | tuple[Tensor | None, Tensor | None] | None = None,
    ) -> Tensor:
        """Features ``[N, out_channels]`` of the targets.

        Args:
            x: Features of all elements ``[N, in_channels]``, or of sources ``[M, in_channels]`` and targets.
            batch: Sample of every element ``[N]``, ascending; or of sources and of targets.

        Raises:
            ValueError: If features are not matrices or not finite, or samples do not fit or do not ascend.
        """
        source, target = sources_and_targets(x)
        if source.dim() != 2 or target.dim() != 2:
            raise ValueError(f"expected x [N, in_channels], got {tuple(source.shape)} and {tuple(target.shape)}")
        of_source, of_target = batch if isinstance(batch, tuple) else (batch, batch)

        h, place = self.lin_h(source), self.lin_s(source)
        if isinstance(x, Tensor):
            target_place, pattern = place, Neighbors.knn(place, self.k, of_source)
        else:
            target_place = self.lin_s(target)
            pattern = Neighbors.knn(place, self.k, of_source, target_place, of_target)
        weight = _weight(place, target_place, pattern).to(h.dtype)

        if self._messages_needed():
            out = self.propagate(
                as_edge_index(pattern), x=(h, None), edge_weight=weight, size=(source.size(0), target.size(0))
            )
        else:
            out = by_rows(partial(_mean_and_max, self.k), target.detach(), h, pattern, weight)
        return self.lin_out1(target) + self.lin_out2(out)

    def _aggregators(self) -> tuple[Any, ...]:
        return (self.aggr_module, *getattr(self.aggr_module, "aggrs", ()))


def _weight(place: Tensor, target_place: Tensor, pattern: Neighbors) -> Tensor:
    """Of every edge, ``[E]``."""
    dtype = torch.promote_types(place.dtype, torch.float32)
    difference = _gather(place.to(dtype), pattern.col) - _gather(target_place.to(dtype), pattern.row)
    return torch.exp(-10 * difference.square().sum(1))


def _mean_and_max(k: int, target: Tensor, h: Tensor, row: Tensor, weight: Tensor) -> Tensor:
    """Of the messages of some rows, ``[r, 2 C]``; no row has more than ``k``."""
    dtype = torch.promote_types(h.dtype, torch.float32)
    message, rows = h.to(dtype) * weight.to(dtype).unsqueeze(1), target.size(0)
    if message.size(0) == rows * k:
        message = message.view(rows, k, h.size(1))
        pooled = message.mean(1), message.amax(1)
    else:
        pooled = segment_mean(message, row, num_segments=rows), segment_max(message, row, num_segments=rows)
    return torch.cat(pooled, 1).to(h.dtype)


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """Rows of ``x``; the gradient is summed in one order on every device."""
    return x[index] if x.is_cuda else x.index_select(0, index)
