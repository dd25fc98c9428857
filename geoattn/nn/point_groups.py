"""What layers over groups of points share."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geoattn.ops.backends.recompute import gather


class BatchNorm(nn.BatchNorm1d):
    """Batch normalization over all rows of ``[R, C]``; with a single row, which has no variance, as in evaluation."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if not self.training:
            return super().forward(x)
        if x.size(0) == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        if x.device.type != "cpu" or self.momentum is None or x.dtype not in (torch.float32, torch.float64):
            return super().forward(x)
        # On CPUs, torch adds [R, C] up row by row, which loses digits in float32: 1e-4 of 100,000 rows, and growing.
        mean = x.mean(0)
        centered = x - mean
        variance = centered.square().mean(0)
        self._remember(mean.detach(), variance.detach() * (x.size(0) / (x.size(0) - 1)))
        return torch.addcmul(self.bias, centered, self.weight * (variance + self.eps).rsqrt())

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked.add_(1)


def perceptron(*channels: int, bias: bool = True) -> nn.Sequential:
    """Linear layers, each with batch normalization and ReLU."""
    layers = [
        (nn.Linear(before, after, bias), BatchNorm(after), nn.ReLU(inplace=True))
        for before, after in pairwise(channels)
    ]
    return nn.Sequential(*(layer for three in layers for layer in three))


class GroupLinear(nn.Linear):
    """A linear layer of what each point of a group is: where it lies from the center, and its features.

    It maps ``[p_j - c_i, x_j]`` for all points ``j`` of the group around each center ``c_i``. As it is linear, features
    are mapped once for each point and not for each group it is in, and the pairs are never written out.

    Args:
        in_channels: Features of a point, may be 0.
        out_channels: Features made of them.
        bias: Whether to add one.
        position_last: Whether the columns of the weight for ``p_j - c_i`` come after those for the features.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True, position_last: bool = False) -> None:
        super().__init__(in_channels + 3, out_channels, bias)
        self.columns = (in_channels, 3) if position_last else (3, in_channels)
        self.position_last = position_last

    def forward(self, x: Tensor | None, pos: Tensor, index: Tensor, center: Tensor) -> Tensor:  # type: ignore[override]
        """Features ``[G * k, C_out]`` of every point in every group.

        Args:
            x: Features ``[N, C]``; None where there are none.
            pos: Positions ``[N, 3]``.
            index: The points of each group, ``[G, k]``.
            center: Where each group is, ``[G, 3]``.

        Raises:
            ValueError: If there is not one row of features, as wide as the layer, for each position.
        """
        width, rows = self.in_features - 3, pos.size(0)
        if width if x is None else x.shape != (rows, width):
            found = None if x is None else tuple(x.shape)
            raise ValueError(f"expected x [N, {width}] for pos {tuple(pos.shape)}, got {found}")
        groups, k = index.shape
        columns = self.weight.split(self.columns, 1)
        of_position, of_features = reversed(columns) if self.position_last else columns
        relative = gather(pos, index.flatten()).view(groups, k, 3) - center.unsqueeze(1)
        out = F.linear(relative.flatten(0, 1).to(self.weight.dtype), of_position, self.bias)
        if x is None:
            return out
        return out + gather(F.linear(x, of_features), index.flatten())


def largest_of_groups(x: Tensor, groups: int) -> Tensor:
    """Channel by channel the largest of every group, ``[G * k, C]`` to ``[G, C]``."""
    return x.view(groups, -1, x.size(1)).max(1).values


def clouds(batch: Tensor | None, points: int, device: torch.device) -> Tensor:
    """The number of points of each cloud that has any, ``[B]``."""
    if batch is None:
        return torch.tensor([points], device=device)
    return batch.unique_consecutive(return_counts=True)[1]
