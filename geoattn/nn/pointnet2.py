"""PointNet++ (Qi et al., NeurIPS 2017): perceptrons over balls around centers, and back to all points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from geoattn.nn.point_groups import BatchNorm, GroupLinear, clouds, largest_of_groups, perceptron
from geoattn.ops import ball_query, farthest_point_sample, knn_interpolate, segment_max
from geoattn.ops.backends.recompute import gather


class SetAbstraction(nn.Module):
    """From all points to centers, each with the largest features in balls around it (Qi et al. 2017, 3.2 and 3.3).

    Centers are the points farthest from each other, beginning with the first of each cloud. Around each, for every
    scale, the first points within a radius (`geoattn.ops.ball_query`) go through one perceptron with what they are and
    where they lie from the center, and the largest value of each channel stays. One scale is the paper's single-scale
    grouping, several are its multi-scale grouping. Numbers are those of the PyTorch code of Yan, which has the
    weights of positions first with one scale and last with several; but it begins at a random point.

    Args:
        in_channels: Features of a point; 0 if it has none.
        centers: Number of centers in each cloud; all points of one that has fewer.
        radii: Radius of the ball of each scale, in the unit of positions.
        neighbors: Number of points in the ball of each scale.
        channels: For each scale, the widths of the layers of its perceptron.
        random_start: Whether the first center is drawn at random, in training.

    Attributes:
        out_channels: Features of a center.

    Raises:
        ValueError: If there is not one radius and one number of neighbors for each perceptron.

    Example:
        >>> pos = torch.rand(1000, 3)
        >>> layer = geoattn.nn.SetAbstraction(0, centers=100, radii=[0.2], neighbors=[32], channels=[[64, 128]])
        >>> x, center, batch = layer(None, pos)
        >>> x.shape, center.shape
        (torch.Size([100, 128]), torch.Size([100, 3]))
    """

    def __init__(
        self,
        in_channels: int,
        centers: int,
        radii: Sequence[float],
        neighbors: Sequence[int],
        channels: Sequence[Sequence[int]],
        random_start: bool = False,
    ) -> None:
        super().__init__()
        if not len(radii) == len(neighbors) == len(channels) > 0 or not all(channels):
            raise ValueError(
                "expected a radius, a number of neighbors and widths of layers for each scale, "
                f"got {radii}, {neighbors} and {channels}"
            )
        self.centers, self.random_start = centers, random_start
        self.radii, self.neighbors = tuple(radii), tuple(neighbors)
        self.out_channels = sum(widths[-1] for widths in channels)
        several = len(channels) > 1
        self.first = nn.ModuleList(GroupLinear(in_channels, w[0], position_last=several) for w in channels)
        self.rest = nn.ModuleList(
            nn.Sequential(BatchNorm(w[0]), nn.ReLU(inplace=True), *perceptron(*w)) for w in channels
        )

    def forward(
        self, x: Tensor | None, pos: Tensor, batch: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Features ``[M, C]``, positions ``[M, 3]`` and clouds ``[M]`` of the centers.

        Args:
            x: Features ``[N, C_in]``; None where there are none.
            pos: Positions ``[N, 3]``.
            batch: Cloud of each point ``[N]``, ascending; default: one cloud.
        """
        chosen = farthest_point_sample(pos, self.centers, batch=batch, start=self._start(pos, batch))
        center, center_batch = gather(pos, chosen), None if batch is None else batch[chosen]
        found = []
        for radius, k, first, rest in zip(self.radii, self.neighbors, self.first, self.rest, strict=True):
            index = ball_query(pos, radius, k, batch, center, center_batch)
            found.append(largest_of_groups(rest(first(x, pos, index, center)), chosen.numel()))
        return torch.cat(found, 1), center, center_batch

    def _start(self, pos: Tensor, batch: Tensor | None) -> Tensor | None:
        if not (self.training and self.random_start):
            return None
        count = clouds(batch, pos.size(0), pos.device)
        place = torch.rand(count.numel(), dtype=torch.float64).to(pos.device)
        return count.cumsum(0) - count + (place * count).long()


class GlobalSetAbstraction(nn.Module):
    """From all points of a cloud to one with the largest features (Qi et al. 2017, section 3.4, "group all").

    Args:
        in_channels: Features of a point.
        *channels: Widths of the layers of the perceptron that reads positions, then features.
    """

    def __init__(self, in_channels: int, *channels: int) -> None:
        super().__init__()
        self.perceptron = perceptron(3 + in_channels, *channels)

    def forward(self, x: Tensor, pos: Tensor, batch: Tensor | None = None) -> Tensor:
        """Features ``[B, C]`` of the clouds.

        Args:
            x: Features ``[N, C_in]``.
            pos: Positions ``[N, 3]``.
            batch: Cloud of each point ``[N]``, ascending; default: one cloud.
        """
        if x.dim() != 2 or len(x) != len(pos):
            raise ValueError(f"expected x [N, C] and pos [N, 3], got {tuple(x.shape)} and {tuple(pos.shape)}")
        batch = torch.zeros(pos.size(0), dtype=torch.int64, device=pos.device) if batch is None else batch
        return segment_max(self.perceptron(torch.cat([pos.to(x.dtype), x], 1)), batch)


class FeaturePropagation(nn.Module):
    """From few points back to all, interpolated among the three nearest (Qi et al. 2017, section 3.4, eq. 2).

    Args:
        in_channels: Features of a point of both levels together.
        *channels: Widths of the layers of the perceptron that reads the features a point had before, then the
            interpolated ones.
    """

    def __init__(self, in_channels: int, *channels: int) -> None:
        super().__init__()
        self.perceptron = perceptron(in_channels, *channels)

    def forward(
        self,
        x: Tensor | None,
        pos: Tensor,
        coarse_x: Tensor,
        coarse_pos: Tensor,
        batch: Tensor | None = None,
        coarse_batch: Tensor | None = None,
    ) -> Tensor:
        """Features ``[N, C]`` of all points.

        Args:
            x: Their features on the way down, ``[N, C_fine]``; None where there are none.
            pos: Their positions ``[N, 3]``.
            coarse_x: Features of the few ``[M, C_coarse]``.
            coarse_pos: Positions of the few ``[M, 3]``.
            batch: Cloud of each point ``[N]``, ascending; default: one cloud.
            coarse_batch: Cloud of each of the few ``[M]``.
        """
        coarse = knn_interpolate(coarse_x, coarse_pos, pos, coarse_batch, batch, eps=1e-8)
        return self.perceptron(coarse if x is None else torch.cat([x, coarse.to(x.dtype)], 1))
