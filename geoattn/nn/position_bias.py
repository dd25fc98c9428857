"""Biases of attention scores made from positions, for `geoattn.attend` over `Windows`."""

from __future__ import annotations

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
        offset = query_position.unsqueeze(-2) - key_position.unsqueeze(-3)
        place = offset.clamp(-self.bound, self.bound) + self.bound
        found = [self._rows(place[..., axis] + axis * (2 * self.bound + 1)) for axis in range(self.axes)]
        return torch.stack(found).sum(0).movedim(-1, -3)

    def _rows(self, place: Tensor) -> Tensor:
        """Rows of the table, whose gradients are summed in the same order run after run."""
        if place.device.type == "cpu":
            return self.rpe_table.index_select(0, place.flatten()).unflatten(0, place.shape)
        return F.embedding(place, self.rpe_table)


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
