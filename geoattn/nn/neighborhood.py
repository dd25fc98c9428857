"""Neighborhood attention, on regular grids as in NATTEN and on points that lie anywhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from geoattn._arguments import check_tensors
from geoattn.nn.position_bias import rows_of_table
from geoattn.ops.attend import attend
from geoattn.patterns import Adjacency, Neighbors, as_neighbors, grid_neighbors, grid_offsets
from geoattn.patterns.grid import window_of_axes


class _Projections(nn.Module):
    """What all of them have, with the names that NATTEN's parameters have."""

    def __init__(
        self, embed_dim: int, num_heads: int, qkv_bias: bool, qk_scale: float | None, proj_drop: float
    ) -> None:
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"num_heads must divide embed_dim, got {num_heads} and {embed_dim}")
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.scale = (embed_dim // num_heads) ** -0.5 if qk_scale is None else qk_scale
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``[N, H, D]`` of ``[N, C]``."""
        query, key, value = self.qkv(x).unflatten(1, (3, self.num_heads, -1)).unbind(1)
        return query, key, value


class _GridAttention(_Projections):
    axes: int

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        is_causal: bool | Sequence[bool] = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        rel_pos_bias: bool = False,
    ) -> None:
        super().__init__(embed_dim, num_heads, qkv_bias, qk_scale, proj_drop)
        window = window_of_axes(self.axes, kernel_size, stride, dilation, is_causal)
        self.kernel_size, self.stride, self.dilation, self.is_causal = self._window = window
        self.rpb: nn.Parameter | None = None
        if rel_pos_bias:
            self.rpb = nn.Parameter(torch.empty(num_heads, *(2 * size - 1 for size in self.kernel_size)))
            nn.init.trunc_normal_(self.rpb, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within windows; as ``x``."""
        check_tensors(x=x)
        if x.dim() != self.axes + 2 or x.size(-1) != self.embed_dim:
            axes = ", ".join("XYZ"[: self.axes])
            raise ValueError(f"expected x [B, {axes}, {self.embed_dim}], got {tuple(x.shape)}")
        if not x.size(0):
            return x
        samples, shape = x.size(0), x.shape[1:-1]
        pattern = grid_neighbors(shape, *self._window, samples=samples, device=x.device)
        bias = None
        if self.rpb is not None:
            place = grid_offsets(shape, *self._window, device=x.device)
            bias = rows_of_table(self.rpb.flatten(1).t(), place).repeat(samples, 1)
        out = attend(*self.project(x.flatten(0, -2)), pattern, bias, self.scale)
        return self.proj_drop(self.proj(out.flatten(1))).view(x.shape)

    def extra_repr(self) -> str:
        """What windows look like."""
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}, causal={self.is_causal}"
        )


class NeighborhoodAttention2d(_GridAttention):
    """Neighborhood attention on grids of two axes: each position attends to a window around it.

    The module ``NeighborhoodAttention2D`` of NATTEN, with its constructor, layout and parameter names, on CPU and GPU
    and differentiable any number of times. Windows are exactly NATTEN's (see `geoattn.patterns.grid_neighbors`):
    Hassani et al. 2023, "Neighborhood Attention Transformer"; Hassani and Shi 2022, "Dilated Neighborhood Attention
    Transformer"; Hassani et al. 2025, "Generalized Neighborhood Attention".

    Args:
        embed_dim: Channels ``C``.
        num_heads: Number of heads; divides ``embed_dim``.
        kernel_size: Number of keys along every axis, one for all axes or one for each.
        stride: Number of consecutive positions that share a window, from 1 to the kernel size.
        dilation: Distance between the keys of a window.
        is_causal: Whether keys lie at or before the query, on all axes or on each.
        qkv_bias: Whether queries, keys and values have a bias.
        qk_scale: Factor of dot products; default ``head_dim ** -0.5``.
        proj_drop: Dropout of the output, in training.
        rel_pos_bias: Whether a learned number for each head and offset is added to scores: the parameter ``rpb``, of
            ``2 * kernel_size - 1`` entries for each axis, which the first models have and NATTEN no longer has.

    Raises:
        TypeError: If a number is no integer, or ``is_causal`` no bool.
        ValueError: If ``num_heads`` does not divide ``embed_dim``, or a number is out of its range; in the forward
            pass, if the window does not fit the grid.

    Shapes:
        ``x`` ``[B, X, Y, C]``; output alike.
    """

    axes = 2


class NeighborhoodAttention1d(_GridAttention):
    """Neighborhood attention on sequences ``[B, X, C]``; arguments and errors as of `NeighborhoodAttention2d`."""

    axes = 1


class NeighborhoodAttention3d(_GridAttention):
    """Neighborhood attention on grids ``[B, X, Y, Z, C]``; arguments and errors as of `NeighborhoodAttention2d`."""

    axes = 3


class NeighborhoodAttention(_Projections):
    r"""Neighborhood attention on points that lie anywhere: each attends to its neighbors, itself among them.

    Neighbors are the ``k`` nearest (as many everywhere, as in a window on a grid), those within ``radius``, every
    ``dilation``-th of the nearest, or those of a graph. The formula is that of `NeighborhoodAttention2d`: fed with the
    windows of a grid, both give the same. Where points lie is known to the scores through ``position_bias`` or
    ``rotary`` only.

    Args:
        embed_dim: Channels ``C``.
        num_heads: Number of heads; divides ``embed_dim``.
        k: Number of neighbors of each point; with ``radius``, at most so many, the nearest. None: as many as there are.
        radius: Distance up to which neighbors lie, in the unit of ``pos``; default: any.
        dilation: Every how manieth of the ``k * dilation`` nearest is a neighbor; without ``radius``.
        position_bias: A module that maps positions of queries ``[E, 1, P]`` and of keys ``[E, 1, P]`` to what is added
            to scores, ``[E, H, 1, 1]``, such as `OffsetMLP`, `OffsetTable`, `DistanceBias`, `RelativePositionTable`.
        rotary: A module that maps features ``[N, H, D]`` and positions ``[N, P]`` to features, for queries and keys:
            `RotaryPositions`.
        qkv_bias: Whether queries, keys and values have a bias.
        qk_scale: Factor of dot products; default ``head_dim ** -0.5``.
        proj_drop: Dropout of the output, in training.

    Raises:
        ValueError: If ``num_heads`` does not divide ``embed_dim``, or ``dilation`` is given without ``k`` or with
            ``radius``.

    Example:
        >>> layer = NeighborhoodAttention(32, num_heads=4, k=16, position_bias=OffsetMLP(4, unit=0.1))
        >>> layer(torch.randn(100, 32), torch.rand(100, 3)).shape
        torch.Size([100, 32])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        k: int | None = None,
        radius: float | None = None,
        dilation: int = 1,
        position_bias: nn.Module | None = None,
        rotary: nn.Module | None = None,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(embed_dim, num_heads, qkv_bias, qk_scale, proj_drop)
        if dilation != 1 and (k is None or radius is not None):
            raise ValueError(f"dilation is one of the k nearest, got k={k}, radius={radius} and dilation={dilation}")
        self.k, self.radius, self.dilation = k, radius, dilation
        self.position_bias, self.rotary = position_bias, rotary

    def neighbors(self, pos: Tensor, batch: Tensor | None = None) -> Neighbors:
        """The pattern of points, which layers with the same neighbors can share: pass it as ``edge_index``.

        Args:
            pos: ``[N, P]``.
            batch: Sample of every point ``[N]``, ascending; default: one sample.

        Raises:
            ValueError: If the layer was made with neither ``k`` nor ``radius``.
        """
        if self.radius is not None:
            return Neighbors.radius(pos, self.radius, batch, max_neighbors=self.k)
        if self.k is None:
            raise ValueError("give k or radius to NeighborhoodAttention, or edge_index to its forward pass")
        return Neighbors.knn(pos, self.k, batch, dilation=self.dilation)

    def forward(
        self, x: Tensor, pos: Tensor, edge_index: Adjacency | None = None, batch: Tensor | None = None
    ) -> Tensor:
        """Attend to neighbors.

        Args:
            x: Features ``[N, C]``.
            pos: Positions ``[N, P]``.
            edge_index: Who attends to whom: a pattern or any graph that `as_neighbors` takes, used as it is; default:
                the layer's `neighbors`.
            batch: Sample of every point ``[N]``, ascending; default: one sample. Not used where a graph is given.

        Returns:
            ``[N, C]``.
        """
        check_tensors(x=x, pos=pos)
        if x.dim() != 2 or x.size(1) != self.embed_dim or pos.dim() != 2 or pos.size(0) != x.size(0):
            raise ValueError(
                f"expected x [N, {self.embed_dim}] and pos [N, P], got {tuple(x.shape)} and {tuple(pos.shape)}"
            )
        pattern = self.neighbors(pos, batch) if edge_index is None else as_neighbors(edge_index, x.size(0))
        query, key, value = self.project(x)
        if self.rotary is not None:
            query, key = self.rotary(query, pos), self.rotary(key, pos)
        bias = None
        if self.position_bias is not None:
            at_query, at_key = pos[pattern.row].unsqueeze(1), pos[pattern.col].unsqueeze(1)
            bias = self.position_bias(at_query, at_key).flatten(1)
        out = attend(query, key, value, pattern, bias, self.scale)
        return self.proj_drop(self.proj(out.flatten(1)))
