"""Rotary positions of points in space."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RotaryPositions(nn.Module):
    r"""Turns pairs of channels by angles proportional to coordinates, so that scores depend on offsets.

    .. math::
        \begin{pmatrix} x_{2m} \\ x_{2m+1} \end{pmatrix} \to
        \begin{pmatrix} \cos\theta & -\sin\theta \\ \sin\theta & \cos\theta \end{pmatrix}
        \begin{pmatrix} x_{2m} \\ x_{2m+1} \end{pmatrix}, \qquad
        \theta = \frac{p_a}{\text{unit}} \, \text{base}^{-f / F}

    The rotary embedding of RoFormer (Su et al. 2021, eq. 14 and 34) axis by axis (Heo et al. 2024, eq. 7, whose base is
    100): of ``D`` channels, each of ``P`` axes turns ``F = D // (2 P)`` pairs, and what is left over stays as it is.
    With queries and keys turned so, ``q . k`` depends on ``p_j - p_i`` only: moving all points changes nothing, turning
    them does. Angles are computed in float32 at least; points far from the origin should be centered first.

    Args:
        head_dim: Channels ``D`` of a head, at least ``2 P``.
        unit: Distance over which the fastest pair turns by one radian, in the unit of positions.
        axes: Number of coordinates ``P``.
        base: The slowest pair turns about ``base`` times as slowly as the fastest.

    Shapes:
        Features ``[N, H, D]`` and positions ``[N, P]``; output ``[N, H, D]``.
    """

    frequency: Tensor

    def __init__(self, head_dim: int, unit: float = 1.0, axes: int = 3, base: float = 100.0) -> None:
        super().__init__()
        pairs = head_dim // (2 * axes)
        if pairs < 1:
            raise ValueError(f"{axes} axes need at least {2 * axes} channels in a head, got {head_dim}")
        if not unit > 0:
            raise ValueError(f"unit must be positive, got {unit}")
        self.axes = axes
        frequency = base ** -(torch.arange(pairs, dtype=torch.float64) / pairs) / unit
        self.register_buffer("frequency", frequency.float(), persistent=False)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Turned features.

        Raises:
            ValueError: If positions have another number of coordinates.
        """
        if position.size(-1) != self.axes:
            raise ValueError(f"expected positions [N, {self.axes}], got {tuple(position.shape)}")
        position = position.to(torch.promote_types(position.dtype, torch.float32))
        angle = (position.unsqueeze(-1) * self.frequency).flatten(1).unsqueeze(1)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        turned = 2 * angle.size(-1)
        first, second = x[..., :turned:2], x[..., 1:turned:2]
        pairs = torch.stack([first * cos - second * sin, first * sin + second * cos], -1)
        return torch.cat([pairs.flatten(-2), x[..., turned:]], -1)
