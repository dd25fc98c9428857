"""GravNetNorm (Murnane 2022): messages between points that lie close to each other in a learned space."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import global_add_pool, global_max_pool, global_mean_pool

from geoattn.ops import edge_dot, weighted_sum
from geoattn.patterns import Neighbors


class GravNetNormConv(nn.Module):
    r"""Attention by distance in a learned space (Murnane, "Graph Structure from Point Clouds: Geometric Attention Is
    All You Need", workshop Machine Learning and the Physical Sciences, NeurIPS 2022).

    With :math:`\tilde x_i = [x_i, \operatorname{mean}(x_i)]`, points have places on a sphere, and receive from the
    nearest ones within a radius :math:`r`:

    .. math::
        s_i &= \frac{\operatorname{MLP}_s(\tilde x_i)}{\lVert \operatorname{MLP}_s(\tilde x_i) \rVert_2}, \qquad
        h_i = \frac{\tilde x_i}{\lVert \tilde x_i \rVert_1} \\
        a_i &= \sum_{j \ne i, \; \lVert s_i - s_j \rVert \le r}
        \exp\bigl(-g \, \lVert s_i - s_j \rVert^2 / r^2\bigr) \, h_j \\
        x_i' &= \operatorname{MLP}_f([a_i, \tilde x_i])

    Equations and defaults are those of the author's code (github.com/murnanedaniel/GeometricAttention, settings
    ``full_train_norm``), but which points are kept where more than ``max_neighbors`` lie within the radius: here the
    nearest, and among equally near ones the first; there, any, as its search finds them. Its settings
    ``full_train_vanilla``, GravNet with these perceptrons, are ``graph="knn", norm=False, radius=0.3``. What PyTorch
    Geometric calls ``GravNetConv`` is another layer: the mean and maximum over k nearest neighbors weighted by
    :math:`\exp(-10 d^2)`.

    Places are learned through the weights of neighbors only: a graph without edges between different points teaches
    them nothing. So it may be at the start, at the default radius too (of standard normal features in 21 channels, no
    two points of a sample were neighbors): look at `neighbors`, and choose the radius by the data. The ``radius`` and
    ``grav_weight`` are attributes that may be changed between epochs, as the author's schedules do.

    Args:
        in_channels: Channels of ``x``.
        out_channels: Channels of the output.
        space_channels: Dimension of the learned space.
        radius: Radius :math:`r`, of the graph and of the weights; places are on a sphere of radius 1.
        max_neighbors: Largest number of neighbors of a point, without itself; with ``graph="knn"`` the number of
            neighbors, with itself.
        grav_weight: Factor :math:`g`.
        graph: ``"radius"``, or ``"knn"``: the nearest points, however far.
        norm: Whether places are scaled to length 1 and messages to absolute sum 1.
        self_loops: Whether points within the radius include the point itself, as one of ``max_neighbors``. The author
            has it so where the perceptrons have dropout, of which the published settings have none.
        mlp_layers: Linear layers of :math:`\operatorname{MLP}_f`; :math:`\operatorname{MLP}_s` has one more. Each is
            followed by layer norm, batch norm and SiLU, which at the end of :math:`\operatorname{MLP}_s` is ReLU.

    Shapes:
        ``x`` ``[N, in_channels]``, ``batch`` ``[N]``; output ``[N, out_channels]``.

    Raises:
        ValueError: If a number is not positive, or ``graph`` is none of these.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        space_channels: int = 64,
        *,
        radius: float = 0.1,
        max_neighbors: int = 16,
        grav_weight: float = 3.0,
        graph: Literal["radius", "knn"] = "radius",
        norm: bool = True,
        self_loops: bool = False,
        mlp_layers: int = 3,
    ) -> None:
        super().__init__()
        for name, number in (("radius", radius), ("max_neighbors", max_neighbors), ("mlp_layers", mlp_layers)):
            if not number > 0:
                raise ValueError(f"{name} must be positive, got {number}")
        if graph not in ("radius", "knn"):
            raise ValueError(f'graph must be "radius" or "knn", got {graph!r}')
        self.radius, self.max_neighbors, self.grav_weight = radius, max_neighbors, grav_weight
        self.graph, self.norm, self.self_loops = graph, norm, self_loops
        wide = in_channels + 1
        self.spatial_network = _mlp([wide, *[in_channels] * mlp_layers, space_channels], last=nn.ReLU)
        self.feature_network = _mlp([2 * wide, *[out_channels] * mlp_layers], last=nn.SiLU)

    def reset_parameters(self) -> None:
        """Start anew."""
        _reset(self.spatial_network, self.feature_network)

    def forward(self, x: Tensor, batch: Tensor | None = None) -> Tensor:
        """Find the graph, and pass messages along it.

        Args:
            x: Features ``[N, in_channels]``.
            batch: Sample of every point ``[N]``, ascending; default: one sample. Points of different samples are never
                neighbors.

        Raises:
            ValueError: If the network's places are not finite, or ``batch`` does not fit.
        """
        x = torch.cat([x, x.mean(1, keepdim=True)], 1)
        place = self.spatial_network(x)
        # Squared distances below are small differences of numbers near 1.
        place = place.double()
        place = F.normalize(place, dim=1) if self.norm else place
        pattern = self.neighbors(place, batch)
        distance = _squared_distance(place, pattern)
        weight = torch.exp(-self.grav_weight / self.radius**2 * distance).to(x.dtype)
        message = F.normalize(x, p=1.0, dim=1) if self.norm else x
        received = weighted_sum(weight.unsqueeze(1), message.unsqueeze(1), pattern).squeeze(1)
        return self.feature_network(torch.cat([received, x], 1))

    def neighbors(self, place: Tensor, batch: Tensor | None = None) -> Neighbors:
        """The graph of points at ``place`` ``[N, S]``, nearest first."""
        if self.graph == "knn":
            return Neighbors.knn(place, self.max_neighbors, batch)
        if self.self_loops:
            return Neighbors.radius(place, self.radius, batch, max_neighbors=self.max_neighbors)
        found = Neighbors.radius(place, self.radius, batch, max_neighbors=self.max_neighbors + 1)
        return _others(found, self.max_neighbors)


class GravNetNorm(nn.Module):
    r"""Classifier of point clouds made of `GravNetNormConv` (Murnane 2022), for jets of particles.

    A perceptron lifts the features; the outputs of all layers are joined, their sum, mean and maximum over each sample
    too, and a perceptron makes the logits. Equations, defaults and parameter names are those of the author's code
    (``GravNet`` with ``concat_all_layers``, ``aggregation: mean_sum`` and ``layer_shape: flat``).

    Its published results are for jets of the top tagging reference data, which this library does not have: they have
    not been reproduced with this class.

    Args:
        in_channels: Features of a point.
        hidden_channels: Channels of every layer.
        out_channels: Number of logits; for signal against background 1, for ``binary_cross_entropy_with_logits``.
        num_layers: Number of layers.
        dropout: Of what was pooled, in training.
        space_channels: See `GravNetNormConv`, as the arguments below.
        radius: Likewise.
        max_neighbors: Likewise.
        grav_weight: Likewise.
        graph: Likewise.
        norm: Likewise.
        self_loops: Likewise.
        mlp_layers: Linear layers of the first perceptron; the last one has one more.

    Shapes:
        ``x`` ``[N, in_channels]``, ``batch`` ``[N]``; output ``[B, out_channels]``.

    Example:
        >>> import torch
        >>> from geoattn.nn.graph import GravNetNorm
        >>> batch = torch.tensor([0] * 30 + [1] * 40)
        >>> GravNetNorm(21)(torch.randn(70, 21), batch).shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int = 256,
        out_channels: int = 1,
        num_layers: int = 3,
        *,
        dropout: float = 0.2,
        space_channels: int = 64,
        radius: float = 0.1,
        max_neighbors: int = 16,
        grav_weight: float = 3.0,
        graph: Literal["radius", "knn"] = "radius",
        norm: bool = True,
        self_loops: bool = False,
        mlp_layers: int = 3,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        self.feature_encoder = _mlp([in_channels, *[hidden_channels] * mlp_layers])
        self.grav_convs = nn.ModuleList(
            GravNetNormConv(
                hidden_channels,
                hidden_channels,
                space_channels,
                radius=radius,
                max_neighbors=max_neighbors,
                grav_weight=grav_weight,
                graph=graph,
                norm=norm,
                self_loops=self_loops,
                mlp_layers=mlp_layers,
            )
            for _ in range(num_layers)
        )
        self.dropout = nn.Dropout(dropout)
        joined = num_layers * hidden_channels
        self.output_network = _mlp([3 * joined, *[joined] * mlp_layers, out_channels])

    def reset_parameters(self) -> None:
        """Start anew."""
        _reset(self)

    def forward(self, x: Tensor, batch: Tensor | None = None, batch_size: int | None = None) -> Tensor:
        """Logits of every sample.

        Args:
            x: Features ``[N, in_channels]``.
            batch: Sample of every point ``[N]``, ascending; default: one sample.
            batch_size: Number of samples ``B``; default: the largest in ``batch`` plus one.

        Returns:
            ``[B, out_channels]``.
        """
        if batch is None:
            batch = torch.zeros(x.size(0), dtype=torch.long, device=x.device)
        x = self.feature_encoder(x)
        layers = []
        for conv in self.grav_convs:
            x = conv(x, batch)
            layers.append(x)
        joined = torch.cat(layers, 1)
        pooled = [pool(joined, batch, batch_size) for pool in (global_add_pool, global_mean_pool, global_max_pool)]
        return self.output_network(self.dropout(torch.cat(pooled, 1)))


def _mlp(sizes: list[int], *, last: type[nn.Module] | None = None) -> nn.Sequential:
    """Linear layers, each followed by norms and SiLU, the last one by norms and ``last``, or by nothing."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.BatchNorm1d(after), nn.SiLU()]
    layers = layers[:-1] + [last()] if last else layers[:-3]
    return nn.Sequential(*layers)


def _reset(*modules: nn.Module) -> None:
    for module in modules:
        for part in module.modules():
            if isinstance(part, nn.Linear | nn.LayerNorm | nn.BatchNorm1d):
                part.reset_parameters()


def _squared_distance(place: Tensor, pattern: Neighbors) -> Tensor:
    """Of the two points of every edge, ``[E]``."""
    square = place.square().sum(1)
    product = edge_dot(place.unsqueeze(1), place.unsqueeze(1), pattern).squeeze(1)
    return square[pattern.row] + square[pattern.col] - 2 * product


def _others(pattern: Neighbors, count: int) -> Neighbors:
    """The first ``count`` keys of every row that are not the query itself.

    A query need not be in its own row: it is not where more points than fit lie at its place.
    """
    other = pattern.row != pattern.col
    before = torch.cat([other.new_zeros(1, dtype=torch.long), other.cumsum(0)])
    rank = before[1:] - before[pattern.rowptr[pattern.row]]
    kept = other & (rank <= count)
    kept_before = torch.cat([kept.new_zeros(1, dtype=torch.long), kept.cumsum(0)])
    return Neighbors(kept_before[pattern.rowptr], pattern.col[kept], pattern.num_keys, check=False)
