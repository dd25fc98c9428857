"""Attention that knows the relative pose of query and key: geometric transform attention (Miyato et al. 2024)."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from geoattn.geometry import wigner_d
from geoattn.ops.attend import Pattern, attend
from geoattn.patterns import Adjacency, Windows, as_neighbors


@dataclass(frozen=True)
class GTARepresentation:
    r"""What the channels of a head stand for, that is, how they are transformed; in this order.

    The names are those of the paper's code: a head of 64 channels with ``se3=32, so2=32`` has eight blocks of
    homogeneous coordinates followed by 16 pairs. SE(2) is ours: SE(3) in the plane, for meshes and simulations in two
    dimensions; it comes last.

    Args:
        triv: Channels that are not transformed.
        se3: Channels in blocks of four, homogeneous coordinates that the pose :math:`P = (R, t)` multiplies.
        so3: Channels in blocks of :math:`3 + 5 + \dots + (2 n + 1)`, harmonics of degree 1 to ``so3_degree`` that
            `wigner_d` of :math:`R` multiplies.
        so2: Channels in pairs, each rotated by an angle :math:`2 \pi \phi f u` of one coordinate :math:`u`, where
            :math:`\phi` is ``max_frequency`` and :math:`f = 2^{j - F}, j = 1, \dots, F`. Pairs are ordered by
            frequency, then by axis: ``so2`` is :math:`2 F` times ``axes``.
        t2: Channels in blocks of three, that :math:`\begin{pmatrix} I & 0 \\ u^\top & 1 \end{pmatrix}` of two
            coordinates :math:`u` multiplies.
        se2: Channels in blocks of three, homogeneous coordinates that a planar pose multiplies.
        so3_degree: Largest degree :math:`n`.
        axes: Number of coordinates :math:`u`.
        max_frequency: Factor :math:`\phi` of all frequencies.
        shared_frequencies: All :math:`f` are 1.
        euclidean: Queries and keys are compared by their squared distance. Blocks of ``se3`` and ``se2`` are points, of
            three and two channels, whose homogeneous coordinate is 1. Not with ``t2``, which would not be
            relative then.

    Raises:
        ValueError: If a number of channels is negative or no multiple of the size of its blocks, there are no channels,
            or ``euclidean`` comes with ``t2``.
    """

    triv: int = 0
    se3: int = 0
    so3: int = 0
    so2: int = 0
    t2: int = 0
    se2: int = 0
    so3_degree: int = 2
    axes: int = 2
    max_frequency: float = 1.0
    shared_frequencies: bool = False
    euclidean: bool = False

    def __post_init__(self) -> None:
        for name in ("so3_degree", "axes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        homogeneous = 0 if self.euclidean else 1
        blocks = {
            "triv": 1,
            "se3": 3 + homogeneous,
            "so3": (self.so3_degree + 1) ** 2 - 1,
            "so2": 2 * self.axes,
            "t2": 3,
            "se2": 2 + homogeneous,
        }
        for name, block in blocks.items():
            size = getattr(self, name)
            if size < 0 or size % block:
                raise ValueError(f"{name} must be a multiple of {block} channels, got {size}")
        if not self.channels:
            raise ValueError("a head must have channels, got 0 of every kind")
        if self.t2 and self.axes != 2:
            raise ValueError(f"t2 is of 2 coordinates, got axes={self.axes}")
        if self.t2 and self.euclidean:
            raise ValueError(f"no t2 with euclidean: distances would not be relative, got t2={self.t2}")

    @property
    def channels(self) -> int:
        """Channels of a head."""
        return self.triv + self.se3 + self.so3 + self.so2 + self.t2 + self.se2

    @property
    def has_translations(self) -> bool:
        """Whether the translations of poses matter."""
        return self.se3 + self.se2 > 0


class GTATransforms:
    r"""The matrices :math:`\rho_i` of ``N`` tokens, block by block; made once, for all layers of a network.

    Per token they take 12 numbers for ``se3``, 34 for ``so3`` of degree 2, ``so2`` for ``so2``: nothing per pair.

    Args:
        representation: What the channels of a head stand for.
        pose: Where each token's own frame lies: homogeneous matrices ``[N, 4, 4]`` from coordinates in the frame to
            those of the world, of which the axes of the frame and its origin are the columns. For a camera, the
            inverse of its extrinsic matrix. Rotations must be orthogonal. For ``se3`` and ``so3``.
        coord: Coordinates of each token ``[N, axes]``, such as a pixel's row and column over the height and width of
            its image. For ``so2`` and ``t2``.
        planar_pose: As ``pose``, in the plane: ``[N, 3, 3]``. For ``se2``.

    Raises:
        ValueError: If what a part of the representation needs is missing, or shapes, types or devices do not fit.
    """

    def __init__(
        self,
        representation: GTARepresentation,
        pose: Tensor | None = None,
        coord: Tensor | None = None,
        planar_pose: Tensor | None = None,
    ) -> None:
        self.representation = rep = representation
        moved, placed = rep.se3 + rep.so3 > 0, rep.so2 + rep.t2 > 0
        given = [
            _given("pose", pose, (4, 4), "se3 and so3", moved),
            _given("coord", coord, (rep.axes,), "so2 and t2", placed),
            _given("planar_pose", planar_pose, (3, 3), "se2", rep.se2 > 0),
        ]
        present = [x for x in given if x is not None]
        if len({(x.size(0), x.dtype, x.device) for x in present}) > 1:
            raise ValueError(
                "pose, coord and planar_pose must be of as many tokens, one type and device, got "
                + ", ".join(f"{tuple(x.shape)} {x.dtype} on {x.device}" for x in present)
            )
        pose, coord, planar_pose = given
        # None where all channels are trivial: such transforms are those of any tokens.
        self.num_tokens = present[0].size(0) if present else None
        self.dtype = present[0].dtype if present else None

        rigid = _RigidPoints if rep.euclidean else _Rigid
        parts: list[tuple[int, _Part]] = [(rep.triv, _Trivial())]
        if pose is not None:
            parts.append((rep.se3, rigid(pose[:, :3, :3], pose[:, :3, 3])))
        if pose is not None and rep.so3:
            with torch.autocast(pose.device.type, enabled=False):
                parts.append((rep.so3, _Harmonics(wigner_d(pose[:, :3, :3], rep.so3_degree))))
        if coord is not None:
            parts.append((rep.so2, _Pairs(_angles(coord, rep))))
            parts.append((rep.t2, _PlaneTranslation(coord)))
        if planar_pose is not None:
            parts.append((rep.se2, rigid(planar_pose[:, :2, :2], planar_pose[:, :2, 2])))
        self._parts = [(size, part) for size, part in parts if size]

    def scaled(self, translation_scale: Tensor) -> GTATransforms:
        """The same with the translations of poses multiplied by a number."""
        made = copy(self)
        made._parts = [
            (size, type(part)(part.rotation, part.translation * translation_scale.to(part.translation)))
            if isinstance(part, _Rigid)
            else (size, part)
            for size, part in self._parts
        ]
        return made

    def apply(self, x: Tensor) -> Tensor:
        r""":math:`\rho_i x_i`, for keys and values ``[N, H, D]``."""
        return self._map("apply", x)

    def apply_inverse(self, x: Tensor) -> Tensor:
        r""":math:`\rho_i^{-1} x_i`, for outputs ``[N, H, D]``."""
        return self._map("apply_inverse", x)

    def apply_to_query(self, x: Tensor) -> Tensor:
        r""":math:`\rho_i^{-\top} x_i`, or of points :math:`\rho_i x_i`, for queries ``[N, H, D]``."""
        return self._map("apply_to_query", x)

    def _map(self, method: str, x: Tensor) -> Tensor:
        sizes = [size for size, _ in self._parts]
        parts = zip(self._parts, x.split(sizes, -1), strict=True)
        return torch.cat([getattr(part, method)(channels) for (_, part), channels in parts], -1)

    def __repr__(self) -> str:
        return f"GTATransforms({self.representation}, tokens={self.num_tokens})"


def _given(name: str, x: Tensor | None, shape: tuple[int, ...], parts: str, needed: bool) -> Tensor | None:
    """In float32 at least; None if no part needs it."""
    if not needed:
        return None
    if x is None:
        raise ValueError(f"{parts} need {name}, got None")
    if x.dim() != 1 + len(shape) or tuple(x.shape[1:]) != shape or not x.is_floating_point():
        raise ValueError(f"expected {name} [N, {', '.join(map(str, shape))}], got {tuple(x.shape)} of {x.dtype}")
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _angles(coord: Tensor, rep: GTARepresentation) -> Tensor:
    """Of every pair, ``[N, so2 / 2]``: by frequency, then by axis."""
    count = rep.so2 // (2 * rep.axes)
    frequency = torch.exp2(torch.arange(1 - count, 1, dtype=coord.dtype, device=coord.device))
    if rep.shared_frequencies:
        frequency = torch.ones_like(frequency)
    return (2 * math.pi * rep.max_frequency * frequency.unsqueeze(1) * coord.unsqueeze(1)).flatten(1)


class _Part(Protocol):
    """One kind of channels of all heads, ``[N, H, C]``."""

    def apply(self, x: Tensor) -> Tensor: ...
    def apply_inverse(self, x: Tensor) -> Tensor: ...
    def apply_to_query(self, x: Tensor) -> Tensor: ...


class _Trivial:
    def apply(self, x: Tensor) -> Tensor:
        return x

    apply_inverse = apply_to_query = apply


class _Rigid:
    """Blocks of homogeneous coordinates, times ``(R, t)`` with rotations ``[N, n, n]`` and translations ``[N, n]``."""

    def __init__(self, rotation: Tensor, translation: Tensor) -> None:
        self.rotation, self.translation = rotation, translation

    def _blocks(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """First ``n`` coordinates and last one of every block, ``[N, H, B, n]`` and ``[N, H, B, 1]``; ``t``."""
        n = self.translation.size(1)
        first, last = x.unflatten(-1, (-1, n + 1)).split([n, 1], -1)
        return first, last, self.translation[:, None, None]

    def apply(self, x: Tensor) -> Tensor:
        first, last, t = self._blocks(x)
        return torch.cat([_turn(self.rotation, first) + t * last, last], -1).flatten(-2)

    def apply_inverse(self, x: Tensor) -> Tensor:
        first, last, t = self._blocks(x)
        return torch.cat([_turn(self.rotation.mT, first - t * last), last], -1).flatten(-2)

    def apply_to_query(self, x: Tensor) -> Tensor:
        first, last, t = self._blocks(x)
        first = _turn(self.rotation, first)
        return torch.cat([first, last - (t * first).sum(-1, keepdim=True)], -1).flatten(-2)


class _RigidPoints(_Rigid):
    """Blocks of ``n`` coordinates of points, moved by ``(R, t)``."""

    def apply(self, x: Tensor) -> Tensor:
        points = x.unflatten(-1, (-1, self.translation.size(1)))
        return (_turn(self.rotation, points) + self.translation[:, None, None]).flatten(-2)

    def apply_inverse(self, x: Tensor) -> Tensor:
        points = x.unflatten(-1, (-1, self.translation.size(1)))
        return _turn(self.rotation.mT, points - self.translation[:, None, None]).flatten(-2)

    apply_to_query = apply


class _Harmonics:
    """Blocks of harmonics of rising degree, times matrices ``[N, 3, 3]``, ``[N, 5, 5]``, ..."""

    def __init__(self, matrices: list[Tensor]) -> None:
        self.matrices = matrices

    def apply(self, x: Tensor) -> Tensor:
        return self._turn(self.matrices, x)

    def apply_inverse(self, x: Tensor) -> Tensor:
        return self._turn([d.mT for d in self.matrices], x)

    apply_to_query = apply

    def _turn(self, matrices: list[Tensor], x: Tensor) -> Tensor:
        sizes = [d.size(1) for d in matrices]
        degrees = x.unflatten(-1, (-1, sum(sizes))).split(sizes, -1)
        return torch.cat([_turn(d, part) for d, part in zip(matrices, degrees, strict=True)], -1).flatten(-2)


class _Pairs:
    """Pairs of channels, rotated by angles ``[N, C / 2]``."""

    def __init__(self, angle: Tensor) -> None:
        self.cos, self.sin = angle.cos().unsqueeze(1), angle.sin().unsqueeze(1)

    def apply(self, x: Tensor) -> Tensor:
        return self._rotate(x, self.sin)

    def apply_inverse(self, x: Tensor) -> Tensor:
        return self._rotate(x, -self.sin)

    apply_to_query = apply

    def _rotate(self, x: Tensor, sin: Tensor) -> Tensor:
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([self.cos * a - sin * b, sin * a + self.cos * b], -1).flatten(-2)


class _PlaneTranslation:
    """Blocks of three channels, times ``[[I, 0], [u, 1]]`` with coordinates ``[N, 2]``."""

    def __init__(self, coord: Tensor) -> None:
        self.coord = coord[:, None, None]

    def apply(self, x: Tensor) -> Tensor:
        first, last = x.unflatten(-1, (-1, 3)).split([2, 1], -1)
        return torch.cat([first, last + (self.coord * first).sum(-1, keepdim=True)], -1).flatten(-2)

    def apply_inverse(self, x: Tensor) -> Tensor:
        first, last = x.unflatten(-1, (-1, 3)).split([2, 1], -1)
        return torch.cat([first, last - (self.coord * first).sum(-1, keepdim=True)], -1).flatten(-2)

    def apply_to_query(self, x: Tensor) -> Tensor:
        first, last = x.unflatten(-1, (-1, 3)).split([2, 1], -1)
        return torch.cat([first - self.coord * last, last], -1).flatten(-2)


def _turn(matrix: Tensor, x: Tensor) -> Tensor:
    """Matrices ``[N, d, d]`` times all blocks ``[N, H, B, d]``."""
    return torch.einsum("nij,nhbj->nhbi", matrix, x)


def gta_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern,
    of_queries: GTATransforms,
    of_keys: GTATransforms,
    *,
    v_transform: bool = True,
) -> Tensor:
    r"""Softmax attention on keys and values brought into the frame of the query (Miyato et al. 2024).

    .. math::
        o_i = \sum_j \operatorname{softmax}_j \bigl(q_i^\top \rho_i^{-1} \rho_j k_j / \sqrt{D}\bigr) \,
        \rho_i^{-1} \rho_j v_j

    (the paper writes :math:`\rho_{g_i g_j^{-1}}`, its :math:`g` being the inverse of our pose), computed as one
    transform of every query, key, value and output,

    .. math::
        o_i = \rho_i^{-1} \sum_j \operatorname{softmax}_j
        \bigl((\rho_i^{-\top} q_i)^\top (\rho_j k_j) / \sqrt{D}\bigr) \, \rho_j v_j,

    so that nothing is stored per pair. With ``euclidean`` representations the product is replaced by
    :math:`-\tfrac12 \lVert \rho_i q_i - \rho_j k_j \rVert^2`. Moving all poses by one rigid motion, or all coordinates
    by one translation, changes nothing but rounding, which grows with the size of the translations: keep the origin
    near the tokens.

    Args:
        query: ``[N, H, D]``, ``D`` being the representation's channels.
        key: ``[M, H, D]``.
        value: ``[M, H, D]``.
        pattern: Who attends to whom, ``N`` queries and ``M`` keys.
        of_queries: Transforms of ``N`` tokens.
        of_keys: Transforms of ``M`` tokens.
        v_transform: Whether values and outputs are transformed too, or only queries and keys.

    Returns:
        ``[N, H, D]``; zeros for queries without keys.

    Raises:
        ValueError: If shapes, types or representations do not fit together.
    """
    _check(query, key, value, of_queries, of_keys)
    work = of_queries.dtype or torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):  # translations cancel in the products
        q = of_queries.apply_to_query(query.to(work))
        k = of_keys.apply(key.to(work))
        v = value.to(work)
        v = of_keys.apply(v) if v_transform else v
        scale = query.size(-1) ** -0.5
        if not of_queries.representation.euclidean:
            out = attend(q, k, v, pattern, scale=scale)
            out = of_queries.apply_inverse(out) if v_transform else out
            return out.to(query.dtype)

        # -|q - k|^2 / 2 = q k - k^2 / 2 but for a term of the query alone, which the softmax does not see.
        q = torch.cat([q, torch.ones_like(q[..., :1])], -1)
        k = torch.cat([k, -0.5 * k.square().sum(-1, keepdim=True)], -1)
        out, lse = attend(q, k, v, pattern, scale=scale, return_lse=True)
        if v_transform:
            # Without keys there are no points to move.
            out = of_queries.apply_inverse(out).masked_fill(lse.unsqueeze(-1) == -math.inf, 0.0)
        return out.to(query.dtype)


def _check(query: Tensor, key: Tensor, value: Tensor, of_queries: GTATransforms, of_keys: GTATransforms) -> None:
    rep = of_queries.representation
    if rep != of_keys.representation:
        raise ValueError(f"queries and keys must have one representation, got {rep} and {of_keys.representation}")
    for name, x, of_x in (("query", query, of_queries), ("key", key, of_keys), ("value", value, of_keys)):
        count = x.size(0) if of_x.num_tokens is None else of_x.num_tokens
        if x.dim() != 3 or x.size(0) != count or x.size(2) != rep.channels:
            raise ValueError(f"expected {name} [{count}, H, {rep.channels}], got {tuple(x.shape)}")
        dtype = of_x.dtype
        if dtype is not None and (torch.promote_types(x.dtype, dtype) != dtype or dtype != of_queries.dtype):
            raise ValueError(
                f"transforms must have one type, as precise as that of {name} {x.dtype}, "
                f"got {of_queries.dtype} and {of_keys.dtype}"
            )


class GTAttention(nn.Module):
    r"""Geometric transform attention (Miyato et al., "GTA: A Geometry-Aware Attention Mechanism for Multi-View
    Transformers", ICLR 2024): a multi-head layer around `gta_attend`.

    .. math::
        q = W_q x, \quad k = W_k x, \quad v = W_v x, \quad y = W_o \, \operatorname{concat}_h o^h + b_o

    As in the authors' code (github.com/autonomousvision/gta at 1dcbd37, which corrected the squared distances of
    earlier versions), translations of poses are multiplied by a learned number of the layer, and weights start from a
    truncated normal distribution of variance ``1 / in_channels``. There, tokens are patches of images with the pose of
    their camera; here any tokens with a pose each, such as points with a frame, attend along any graph. Attention
    within samples is `Windows`.

    Args:
        in_channels: Channels of ``x``, or of sources and targets.
        heads: Number of heads.
        representation: What the channels of a head stand for.
        out_channels: Channels of the output; default: those of the targets.
        translation_scale: Start of the learned factor of translations (the authors' is for scenes some units across).
            Only with ``se3`` or ``se2``.
        v_transform: Whether values and outputs are transformed too, or only queries and keys.
        dropout: Of outputs, in training.

    Shapes:
        ``x`` ``[N, in_channels]``; a pair ``([M, in_channels[0]], [N, in_channels[1]])`` of sources and targets;
        output ``[N, out_channels]``.

    Example:
        >>> import torch, geoattn
        >>> from geoattn.nn.graph.gta import GTARepresentation, GTATransforms, GTAttention
        >>> pose = torch.eye(4).repeat(100, 1, 1)
        >>> pose[:, :3, 3] = torch.rand(100, 3)
        >>> representation = GTARepresentation(triv=8, se3=16, so3=8)
        >>> layer = GTAttention(64, heads=4, representation=representation)
        >>> pattern = geoattn.Neighbors.knn(pose[:, :3, 3], k=16)
        >>> layer(torch.randn(100, 64), pattern, GTATransforms(representation, pose)).shape
        torch.Size([100, 64])
    """

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        heads: int,
        representation: GTARepresentation,
        out_channels: int | None = None,
        *,
        translation_scale: float = 0.01,
        v_transform: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        source, target = (in_channels, in_channels) if isinstance(in_channels, int) else in_channels
        inner = heads * representation.channels
        self.heads, self.representation, self.v_transform = heads, representation, v_transform
        self.initial_translation_scale = translation_scale
        self.query = nn.Linear(target, inner, bias=False)
        self.key = nn.Linear(source, inner, bias=False)
        self.value = nn.Linear(source, inner, bias=False)
        self.out = nn.Linear(inner, target if out_channels is None else out_channels)
        self.dropout = nn.Dropout(dropout)
        self.translation_scale = nn.Parameter(torch.empty(1)) if representation.has_translations else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start anew."""
        for linear in (self.query, self.key, self.value, self.out):
            std = linear.in_features**-0.5
            nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std)
        nn.init.zeros_(self.out.bias)
        if self.translation_scale is not None:
            nn.init.constant_(self.translation_scale, self.initial_translation_scale)

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor],
        edge_index: Adjacency | Windows,
        transforms: GTATransforms | tuple[GTATransforms, GTATransforms],
    ) -> Tensor:
        """Attend along a graph or within windows.

        Args:
            x: Features ``[N, in_channels]``, or a pair of those of sources (keys) and targets (queries).
            edge_index: Who attends to whom: what `as_neighbors` takes, or `Windows`.
            transforms: Of ``N`` tokens with the layer's representation, or a pair of those of sources and targets.

        Returns:
            ``[N, out_channels]``.

        Raises:
            ValueError: If shapes, types or representations do not fit together.
        """
        source, target = (x, x) if isinstance(x, Tensor) else x
        of_source, of_target = (transforms, transforms) if isinstance(transforms, GTATransforms) else transforms
        for of_x in (of_source, of_target):
            if of_x.representation != self.representation:
                raise ValueError(f"the layer's representation is {self.representation}, got {of_x}")
        if self.translation_scale is not None:
            same = of_target is of_source
            of_source = of_source.scaled(self.translation_scale)
            of_target = of_source if same else of_target.scaled(self.translation_scale)
        if isinstance(edge_index, Windows):
            pattern: Pattern = edge_index
        else:
            pattern = as_neighbors(edge_index, target.size(0), source.size(0))
        query, key, value = (
            linear(features).unflatten(-1, (self.heads, -1))
            for linear, features in ((self.query, target), (self.key, source), (self.value, source))
        )
        found = gta_attend(query, key, value, pattern, of_target, of_source, v_transform=self.v_transform)
        return self.dropout(self.out(found.flatten(1)))
