"""Biases of attention scores made from positions: for `geoattn.attend` over `Windows`, and `NeighborhoodAttention`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RelativePositionTable(nn.Module):
    r"""Learned numbers for the difference of two positions on a grid, one table for each axis (Wu et al. 2024).

    .. math::
        b_{hij} = \sum_a T^a_h\bigl[\operatorname{clamp}(p_{ia} - p_{ja}, -B, B)\bigr],
        \qquad B = \lfloor 2 \, (4K)^{1/3} \rfloor

    The relative positional encoding of Point Transformer V3, with the bound of its code (class ``RPE``) for patches of
    ``K`` points.

    Args:
        heads: Number of heads ``H``.
        patch_size: Number of points ``K`` of a patch, of which the bound ``B`` is made.
        axes: Number of coordinates ``P``.

    Shapes:
        Grid coordinates of queries ``[..., q, P]`` and of keys ``[..., k, P]``, integers; output ``[..., H, q, k]``.
    """

    def __init__(self, heads: int, patch_size: int, axes: int = 3) -> None:
        super().__init__()
        self.bound = int((4 * patch_size) ** (1 / 3) * 2)
        self.axes = axes
        self.rpe_table = nn.Parameter(torch.empty(axes * (2 * self.bound + 1), heads))
        nn.init.trunc_normal_(self.rpe_table, std=0.02)

    def forward(self, query_position: Tensor, key_position: Tensor) -> Tensor:
        """The bias of every pair.

        Raises:
            ValueError: If positions are no integers, or have another number of coordinates.
        """
        if query_position.is_floating_point() or query_position.size(-1) != self.axes:
            raise ValueError(
                f"expected integer grid coordinates [..., {self.axes}], got {query_position.dtype} and "
                f"{tuple(query_position.shape)}"
            )
        pairs = zip(query_position.unbind(-1), key_position.unbind(-1), strict=True)
        offsets = [query.unsqueeze(-1) - key.unsqueeze(-2) for query, key in pairs]
        return sum_over_axes(self.rpe_table, offsets, self.bound)


class OffsetTable(nn.Module):
    r"""Learned numbers for the offset of two points in cells of a given size, one table for each axis.

    .. math::
        b_{hij} = \sum_a T^a_h\Bigl[\operatorname{clamp}\Bigl(\Bigl\lfloor \frac{p_{ja} - p_{ia}}{\text{cell}} +
        \frac12 \Bigr\rfloor, -B, B\Bigr)\Bigr]

    Offsets are quantized as in Stratified Transformer (Lai et al. 2022, section 3.3); the numbers do not depend on
    features here. Positions have no gradient through it.

    Args:
        heads: Number of heads ``H``.
        cell: Side of a cell, in the unit of positions.
        bound: Number of cells ``B`` on either side that have a number of their own.
        axes: Number of coordinates ``P``.

    Shapes:
        Positions of queries ``[..., q, P]`` and of keys ``[..., k, P]``; output ``[..., H, q, k]``.
    """

    def __init__(self, heads: int, cell: float, bound: int = 8, axes: int = 3) -> None:
        super().__init__()
        if not cell > 0:
            raise ValueError(f"cell must be positive, got {cell}")
        self.cell, self.bound = cell, bound
        self.table = nn.Parameter(torch.empty(axes * (2 * bound + 1), heads))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, query_position: Tensor, key_position: Tensor) -> Tensor:
        """The bias of every pair."""
        pairs = zip(query_position.unbind(-1), key_position.unbind(-1), strict=True)
        offsets = [(key.unsqueeze(-2) - query.unsqueeze(-1)) / self.cell for query, key in pairs]
        return sum_over_axes(self.table, [(offset + 0.5).floor().long() for offset in offsets], self.bound)


class OffsetMLP(nn.Module):
    r"""A small network of the offset of two points: :math:`b_{hij} = \operatorname{MLP}_h((p_j - p_i) / \text{unit})`.

    The continuous relative position bias of Swin Transformer V2 (Liu et al. 2022, eq. 3), on offsets as they are. It
    keeps ``hidden`` numbers of every pair for the backward pass.

    Args:
        heads: Number of heads ``H``.
        hidden: Width of the hidden layer.
        unit: What offsets are divided by, such as a typical distance of neighbors, in the unit of positions.
        axes: Number of coordinates ``P``.

    Shapes:
        Positions of queries ``[..., q, P]`` and of keys ``[..., k, P]``; output ``[..., H, q, k]``.
    """

    def __init__(self, heads: int, hidden: int = 16, unit: float = 1.0, axes: int = 3) -> None:
        super().__init__()
        if not unit > 0:
            raise ValueError(f"unit must be positive, got {unit}")
        self.unit = unit
        self.mlp = nn.Sequential(nn.Linear(axes, hidden), nn.ReLU(), nn.Linear(hidden, heads, bias=False))

    def forward(self, query_position: Tensor, key_position: Tensor) -> Tensor:
        """The bias of every pair."""
        offset = key_position.unsqueeze(-3) - query_position.unsqueeze(-2)
        found: Tensor = self.mlp(offset / self.unit)
        return found.movedim(-1, -3)


class DistanceBias(nn.Module):
    r"""A learned factor of each head times the distance (Zhdanov et al. 2025, Erwin).

    .. math::
        b_{hij} = \sigma_h \, |p_i - p_j|

    The factor may have any sign and starts near -1, as in the authors' code. At distance 0, gradients of positions are
    taken as 0.

    Args:
        heads: Number of heads ``H``.

    Shapes:
        Positions of queries ``[..., q, P]`` and of keys ``[..., k, P]``; output ``[..., H, q, k]``.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.sigma_att = nn.Parameter(-1 + 0.01 * torch.randn(1, heads, 1, 1))

    def forward(self, query_position: Tensor, key_position: Tensor) -> Tensor:
        """The bias of every pair."""
        square = (query_position.unsqueeze(-2) - key_position.unsqueeze(-3)).square().sum(-1)
        apart = square > 0
        distance = square.where(apart, 1).sqrt().where(apart, 0)  # the root has no derivative at 0
        return self.sigma_att.squeeze(0) * distance.unsqueeze(-3)


def sum_over_axes(table: Tensor, offsets: Sequence[Tensor], bound: int) -> Tensor:
    """Of tables ``[P * (2 * bound + 1), H]``, the sums for ``P`` integer offsets ``[..., q, k]``: ``[..., H, q, k]``.

    Tables of several axes are joined to one of all their combinations where that is small beside the number of pairs:
    a look-up for each pair costs more than making it.
    """
    joined: list[tuple[Tensor, Tensor]] = []  # tables, and which row of each is wanted
    for rows, offset in zip(table.unflatten(0, (len(offsets), -1)).unbind(0), offsets, strict=True):
        place = offset.clamp(-bound, bound) + bound
        if joined and 2 * len(joined[-1][0]) * len(rows) <= place.numel():
            before, place_before = joined.pop()
            rows, place = (before.unsqueeze(1) + rows).flatten(0, 1), place_before * len(rows) + place
        joined.append((rows, place))
    found = [rows_of_table(rows, place) for rows, place in joined]
    return reduce(torch.add, found).movedim(-1, -3)


def rows_of_table(table: Tensor, place: Tensor) -> Tensor:
    """Rows of a table, whose gradients are summed in the same order run after run."""
    if place.device.type == "cpu":
        return table.index_select(0, place.flatten()).unflatten(0, place.shape)
    return F.embedding(place, table)
