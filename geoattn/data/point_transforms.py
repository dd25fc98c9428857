"""From a point cloud to what a network reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from geoattn._arguments import check_data, check_tensors, checked_integer
from geoattn.geometry import face_normals, sample_surface
from geoattn.geometry.curves import z_order

Feature = Literal["pos", "height", "color", "normal", "intensity"]
FEATURES: dict[Feature, int] = {"pos": 3, "height": 1, "color": 3, "normal": 3, "intensity": 1}
"""What the features of a point can be made of, with the number of channels of each."""

MAX_BITS = 20  # per axis, so that the cell of a point is one integer


@dataclass(frozen=True)
class PointInputs(BaseTransform):
    """A cloud of any size as what the networks of `geoattn.models.points` read: one point for each occupied voxel.

    From ``pos`` ``[N, 3]`` and what there is of ``color``, ``normal``, ``intensity``, ``y`` and ``category`` it makes a
    `Data` of ``M`` points, sorted along the Z-order curve:

    - ``pos`` ``[M, 3]`` float32: moved, so that a scene's bounding box is centered in x and y and begins at z = 0; or,
      with ``unit_sphere``, to mean 0 and largest norm 1.
    - ``x`` ``[M, C]`` float32: the features, one after the other. What the cloud lacks is zeros. Scanners give
      intensities in units of their own, so they are divided by the largest of the cloud.
    - ``grid_coord`` ``[M, 3]`` int64: the voxel, from 0 on, no two of them alike. Only with a ``grid_size``.
    - ``voxel_index`` ``[N]``: for each point of the cloud, which of the M stands for it: the one in its voxel, or,
      where ``max_points`` left that out, the nearest one.
    - ``y`` ``[M]`` and ``point_y`` ``[N]``: labels of the M and of all points; or ``y`` ``[1]``, of the whole cloud.
    - ``category`` ``[1]``: as given.

    Of a mesh, points are drawn on its surface where it has one label or none; otherwise its vertices are the points.
    All of it is made on the CPU.

    Args:
        features: What ``x`` is made of.
        grid_size: Side of a voxel, in the unit of ``pos``, or of the unit sphere. None: all points are kept.
        max_points: At most so many points; None: any number.
        unit_sphere: Whether the cloud is an object, whose place and size do not matter, rather than a scene.
        generator: Draws the point of each voxel, and those that ``max_points`` keeps. Default: the first point of each
            voxel, and points evenly spread along the Z-order curve.

    Raises:
        TypeError: If it is given something else than a `Data` of tensors.
        ValueError: If there are no points, they are not ``[N, 3]`` or not finite, an attribute has another number of
            rows, or ``grid_size`` is too small for the extent of the cloud.
    """

    features: tuple[Feature, ...] = ("pos",)
    grid_size: float | None = None
    max_points: int | None = None
    unit_sphere: bool = False
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if not self.features or set(self.features) - set(FEATURES) or len(set(self.features)) < len(self.features):
            raise ValueError(f"features must be some of {', '.join(FEATURES)}, each once; got {self.features!r}")
        if self.grid_size is not None and not 0 < self.grid_size < float("inf"):
            raise ValueError(f"grid_size must be positive, got {self.grid_size}")
        if self.max_points is not None:
            checked_integer("max_points", self.max_points, least=1)

    def forward(self, data: Data) -> Data:
        """Apply to one cloud."""
        cloud = checked_cloud(data, self.max_points, self.generator)
        pos = placed(cloud["pos"].double(), self.unit_sphere)
        cell = cells(pos, self.grid_size)
        index, voxel_index = _one_of_each(z_order(cell, bits=MAX_BITS), self.generator, keep_all=self.grid_size is None)
        if self.max_points is not None and index.numel() > self.max_points:
            kept = self._thin(index.numel(), self.max_points)
            tree = cKDTree(pos[index[kept]].numpy())
            index, voxel_index = index[kept], torch.from_numpy(tree.query(pos[index].numpy())[1])[voxel_index]

        cloud["pos"] = pos.float()
        out = Data(pos=cloud["pos"][index], x=point_features(cloud, self.features, index), voxel_index=voxel_index)
        if self.grid_size is not None:
            out.grid_coord = cell[index]
        y = data.get("y")
        if y is not None and y.numel() == 1 and cloud["pos"].size(0) != 1:
            out.y = y.reshape(1)
        elif y is not None:
            out.y, out.point_y = y[index], y
        if data.get("category") is not None:
            out.category = data.category.reshape(1)
        return out

    def _thin(self, count: int, wanted: int) -> Tensor:
        """Which of ``count`` points to keep, ascending."""
        if self.generator is None:
            return torch.arange(wanted) * count // wanted
        return torch.randperm(count, generator=self.generator)[:wanted].sort().values

    def __repr__(self) -> str:
        return (
            f"PointInputs({self.features}, grid_size={self.grid_size}, max_points={self.max_points}, "
            f"unit_sphere={self.unit_sphere})"
        )


def check_points(data: object, *, grid: bool = False) -> Data:
    """That a sample or a batch was made by `PointInputs`: what networks of clouds are given.

    Raises:
        TypeError: If it is no `Data`, such as the path of a file.
        ValueError: If something is missing.
    """
    check_data(data)
    assert isinstance(data, Data)
    missing = [name for name in ("pos", "x", *(["grid_coord"] if grid else [])) if data.get(name) is None]
    if missing:
        raise ValueError(
            f"the network reads clouds with pos, x{' and grid_coord' if grid else ''}, and this has no "
            f"{', '.join(missing)}: make it with the network's own input_transform()(cloud)"
        )
    return data


def placed(pos: Tensor, unit_sphere: bool) -> Tensor:
    """Points ``[N, 3]`` where networks read them: objects in the unit sphere, scenes centered in x and y on z = 0."""
    if unit_sphere:
        pos = pos - pos.mean(0)
        return pos / pos.norm(dim=1).max().clamp_min(1e-12)
    low, high = pos.amin(0), pos.amax(0)
    return pos - torch.stack([*((low + high) / 2)[:2], low[2]])


def cells(pos: Tensor, grid_size: float | None) -> Tensor:
    """The voxel of each point ``[N, 3]`` int64, from 0 on; without voxels, cells to sort the points by.

    Raises:
        ValueError: If there are more than 2^20 along an axis.
    """
    low, extent = pos.amin(0), float((pos.amax(0) - pos.amin(0)).max())
    if grid_size is None:
        return ((pos - low) / (max(extent, 1e-12) / ((1 << 10) - 1))).long()
    cell = (pos / grid_size).floor()
    cell = cell - cell.amin(0)
    if float(cell.max()) >= 1 << MAX_BITS:
        raise ValueError(
            f"grid_size {grid_size:g} is too small for a cloud of extent {extent:g}: there would be more than "
            f"{1 << MAX_BITS} voxels along an axis. Is the cloud in the unit the network was trained on?"
        )
    return cell.long()


def checked_cloud(data: Data, max_points: int | None, generator: torch.Generator | None) -> dict[str, Tensor]:
    """The attributes of the points that are there, each with a row for each of them; intensities at most 1."""
    check_data(data)
    cloud = {name: data.get(name) for name in ("pos", "color", "normal", "intensity")}
    cloud = {name: value for name, value in cloud.items() if value is not None}
    check_tensors(**cloud)
    if "pos" not in cloud or cloud["pos"].dim() != 2 or cloud["pos"].size(1) != 3 or not cloud["pos"].size(0):
        found = list(cloud["pos"].shape) if "pos" in cloud else None
        raise ValueError(f"expected a cloud with pos [N, 3] of at least one point, got {found}")
    y = data.get("y")
    if data.get("face") is not None and data.face.numel() and (y is None or y.numel() == 1):
        pos, face, _ = sample_surface(
            cloud["pos"].cpu(), data.face.cpu(), max(4 * (max_points or 0), 10_000), generator or torch.Generator()
        )
        cloud = {"pos": pos, "normal": face_normals(cloud["pos"].cpu(), data.face.cpu())[face]}
    count = cloud["pos"].size(0)
    for name, value in {**cloud, **({"y": y} if y is not None and y.numel() > 1 else {})}.items():
        if value.size(0) != count:
            raise ValueError(f"{name} has {value.size(0)} rows for {count} points")
    cloud = {name: value.detach().cpu() for name, value in cloud.items()}
    if "intensity" in cloud:
        intensity = cloud["intensity"].float().nan_to_num(0, 0, 0)
        cloud["intensity"] = intensity / intensity.abs().max().clamp_min(1e-12)
    if not bool(cloud["pos"].isfinite().all()):
        bad = int((~cloud["pos"].isfinite().all(1)).nonzero()[0])
        raise ValueError(f"point {bad} has the coordinates {cloud['pos'][bad].tolist()}, which are not finite; drop it")
    return cloud


def point_features(cloud: Mapping[str, Tensor], features: Sequence[Feature], index: Tensor) -> Tensor:
    """Features ``[M, C]`` of the chosen points of a cloud that was placed. Heights are above the lowest point."""
    known = {"height": cloud["pos"][:, 2] - cloud["pos"][:, 2].min(), **cloud}
    return torch.cat([_channels(known.get(name), FEATURES[name], index) for name in features], 1)


def _channels(values: Tensor | None, channels: int, index: Tensor) -> Tensor:
    """``[M, channels]`` float32 of the chosen points; zeros for what is missing or not finite."""
    if values is None:
        return torch.zeros(index.numel(), channels)
    chosen = values.reshape(values.size(0), -1)[index].float()
    if chosen.size(1) < channels:
        raise ValueError(f"expected attributes of {channels} channels, got {list(values.shape)}")
    return chosen[:, :channels].nan_to_num(0, 0, 0)


def _one_of_each(code: Tensor, generator: torch.Generator | None, *, keep_all: bool) -> tuple[Tensor, Tensor]:
    """A point of each cell ``[M]``, in the order of the codes, and the cell of each point ``[N]``."""
    count = code.numel()
    if keep_all:
        order = code.argsort(stable=True)
        return order, torch.empty_like(order).scatter_(0, order, torch.arange(count))
    cells, cluster = code.unique(return_inverse=True)
    rank = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
    first = torch.full((cells.numel(),), count).scatter_reduce_(0, cluster, rank, "amin")
    of_rank = torch.empty_like(rank).scatter_(0, rank, torch.arange(count))
    return of_rank[first], cluster


def crop_to_sphere(data: Data, count: int, generator: torch.Generator | None = None) -> Data:
    """The ``count`` points nearest to a random one, of what `PointInputs` makes; all of a cloud that has fewer.

    The sphere crop of Point Transformer V3's training. The result has no ``voxel_index`` and no ``point_y``.
    """
    kept = torch.arange(data.pos.size(0))
    if kept.numel() > count:
        center = data.pos[int(torch.randint(kept.numel(), (), generator=generator))]
        kept = (data.pos - center).square().sum(1).argsort(stable=True)[:count].sort().values
    of_points = ("pos", "x", "grid_coord", *(["y"] if "point_y" in data else []))
    return Data(
        **{
            name: value[kept] if name in of_points else value
            for name, value in data.to_dict().items()
            if name not in ("voxel_index", "point_y")
        }
    )
