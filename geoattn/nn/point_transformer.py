"""Point Transformer (Zhao et al., ICCV 2021) as its authors built it: vector attention among the nearest points."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geoattn._arguments import check_tensors
from geoattn.nn.point_groups import BatchNorm, GroupLinear, clouds, largest_of_groups, perceptron
from geoattn.ops import farthest_point_sample, knn_interpolate, knn_query
from geoattn.ops.backends.recompute import edges_per_chunk, gather


class PointTransformerLayer(nn.Module):
    r"""Vector self-attention of every point to its nearest ones, in the form of the first author's code.

    .. math::
        o_i = \sum_{j \in \mathcal{N}(i)} \operatorname{softmax}_j \bigl(\gamma(k_j - q_i + \delta_{ij})\bigr)
        \odot (v_j + \delta_{ij}), \qquad \delta_{ij} = \theta(p_j - p_i)

    Zhao et al. 2021, eq. 3; beside the paper, the code takes the key minus the query, has batch normalization over all
    pairs inside :math:`\theta` (``pos_nn``) and :math:`\gamma` (``attn_nn``), and lets the ``share`` channels ``c``,
    ``c + C / share``, ``c + 2 C / share``, ... have one weight. `PointTransformerConv` is PyG's layer, which has none
    of that. Only differences of positions enter.

    In training, where statistics are of all pairs, some tensors ``[N, k, C]`` are kept for the backward pass; in
    evaluation some thousand pairs are computed at a time.

    Args:
        channels: Features of a point.
        share: Channels that have one weight; it divides ``channels``.

    Raises:
        ValueError: If ``share`` does not divide ``channels``.

    Example:
        >>> pos, x = torch.rand(100, 3), torch.randn(100, 32)
        >>> layer = geoattn.nn.PointTransformerLayer(32)
        >>> layer(x, pos, geoattn.ops.knn_query(pos, 16)).shape
        torch.Size([100, 32])
    """

    def __init__(self, channels: int, share: int = 8) -> None:
        super().__init__()
        if share < 1 or channels % share:
            raise ValueError(f"share must divide channels, got {share} and {channels}")
        self.channels, self.share = channels, share
        weights = channels // share
        self.query, self.key, self.value = (nn.Linear(channels, channels) for _ in range(3))
        self.pos_nn = nn.Sequential(nn.Linear(3, 3), BatchNorm(3), nn.ReLU(inplace=True), nn.Linear(3, channels))
        self.attn_nn = nn.Sequential(
            BatchNorm(channels),
            nn.ReLU(inplace=True),
            nn.Linear(channels, weights),
            BatchNorm(weights),
            nn.ReLU(inplace=True),
            nn.Linear(weights, weights),
        )

    def forward(self, x: Tensor, pos: Tensor, neighbors: Tensor) -> Tensor:
        """Attend.

        Args:
            x: Features ``[N, C]``.
            pos: Positions ``[N, 3]``.
            neighbors: The points that each attends to ``[N, k]``, int64, as `geoattn.ops.knn_query` gives them.

        Returns:
            ``[N, C]``.

        Raises:
            TypeError: If something is no tensor, such as `geoattn.Neighbors` as neighbors.
            ValueError: If shapes do not fit.
        """
        check_tensors(x=x, pos=pos, neighbors=neighbors)
        if x.dim() != 2 or x.size(1) != self.channels or pos.shape != (x.size(0), 3):
            raise ValueError(
                f"expected x [N, {self.channels}] and pos [N, 3], got {tuple(x.shape)} and {tuple(pos.shape)}"
            )
        if neighbors.dim() != 2 or neighbors.size(0) != x.size(0):
            raise ValueError(
                f"expected neighbors [{x.size(0)}, k], as geoattn.ops.knn_query(pos, k) gives them, "
                f"got {tuple(neighbors.shape)}"
            )
        query, key, value = self.query(x), self.key(x), self.value(x)
        if self.training:
            return self._attend(query, pos, neighbors, key, value, pos)
        rows = max(edges_per_chunk(x.device) // neighbors.size(1), 1)
        parts = zip(query.split(rows), pos.split(rows), neighbors.split(rows), strict=True)
        return torch.cat([self._attend(q, p, n, key, value, pos) for q, p, n in parts])

    def _attend(
        self, query: Tensor, query_pos: Tensor, neighbors: Tensor, key: Tensor, value: Tensor, pos: Tensor
    ) -> Tensor:
        (n, k), index = neighbors.shape, neighbors.flatten()
        relative = gather(pos, index).view(n, k, 3) - query_pos.unsqueeze(1)
        delta = self.pos_nn(relative.flatten(0, 1).to(key.dtype))
        relation = (gather(key, index) + delta).view(n, k, -1) - query.unsqueeze(1)
        weight = self.attn_nn(relation.flatten(0, 1)).view(n, k, 1, -1).softmax(1)
        message = (gather(value, index) + delta).view(n, k, self.share, -1)
        return (weight * message).sum(1).flatten(1).to(query.dtype)


class PointTransformerBlock(nn.Module):
    """A residual block around `PointTransformerLayer` (Zhao et al. 2021, fig. 4a), with batch normalization.

    Args:
        channels: Features of a point.
        share: As of the layer.
    """

    def __init__(self, channels: int, share: int = 8) -> None:
        super().__init__()
        self.before = perceptron(channels, channels, bias=False)
        self.attention = PointTransformerLayer(channels, share)
        self.between = nn.Sequential(BatchNorm(channels), nn.ReLU(inplace=True))
        self.after = nn.Sequential(nn.Linear(channels, channels, bias=False), BatchNorm(channels))

    def forward(self, x: Tensor, pos: Tensor, neighbors: Tensor) -> Tensor:
        """Features ``[N, C]``; arguments as of the layer."""
        return (self.after(self.between(self.attention(self.before(x), pos, neighbors))) + x).relu()


class TransitionDown(nn.Module):
    """From all points to a share of them, each with the largest features among its nearest (Zhao et al. 2021, fig. 4b).

    The points are the farthest from each other, beginning with the first of each cloud: ``floor(n / stride)`` of its
    ``n``, and of a smaller cloud its first, where the authors' code would leave none.

    Args:
        in_channels: Features of a point.
        out_channels: Features made of them.
        stride: Points for which one is kept.
        k: Nearest points that are read.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 4, k: int = 16) -> None:
        super().__init__()
        self.stride, self.k = stride, k
        self.linear = GroupLinear(in_channels, out_channels, bias=False)
        self.norm = BatchNorm(out_channels)

    def forward(self, x: Tensor, pos: Tensor, batch: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Features ``[M, C_out]``, positions ``[M, 3]`` and clouds ``[M]`` of the points that are kept.

        Args:
            x: Features ``[N, C_in]``.
            pos: Positions ``[N, 3]``.
            batch: Cloud of each point ``[N]``, ascending; default: one cloud.
        """
        count = (clouds(batch, pos.size(0), pos.device) // self.stride).clamp(min=1)
        kept = farthest_point_sample(pos, count, batch=batch)
        kept_pos, kept_batch = gather(pos, kept), None if batch is None else batch[kept]
        index = knn_query(pos, self.k, batch, kept_pos, kept_batch)
        groups = self.norm(self.linear(x, pos, index, kept_pos)).relu()
        return largest_of_groups(groups, kept.numel()), kept_pos, kept_batch


class TransitionUp(nn.Module):
    """From few points back to all, whose own features are added (Zhao et al. 2021, fig. 4c).

    Args:
        in_channels: Features of the few points.
        out_channels: Features of all points, before and after.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.skip = perceptron(out_channels, out_channels)
        self.coarse = perceptron(in_channels, out_channels)

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        coarse_x: Tensor,
        coarse_pos: Tensor,
        batch: Tensor | None = None,
        coarse_batch: Tensor | None = None,
    ) -> Tensor:
        """Features ``[N, C_out]`` of all points.

        Args:
            x: Their features on the way down, ``[N, C_out]``.
            pos: Their positions ``[N, 3]``.
            coarse_x: Features of the few ``[M, C_in]``.
            coarse_pos: Positions of the few ``[M, 3]``.
            batch: Cloud of each point ``[N]``, ascending; default: one cloud.
            coarse_batch: Cloud of each of the few ``[M]``.
        """
        coarse = self.coarse(coarse_x)
        return self.skip(x) + knn_interpolate(coarse, coarse_pos, pos, coarse_batch, batch, power=1, eps=1e-8)
