"""Label the points of a cloud of any size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.data import Data

from geoattn._arguments import checked_integer
from geoattn.data.point_augment import mirrored, rotated
from geoattn.data.point_transforms import FEATURES, MAX_BITS, cells, checked_cloud, placed, point_features
from geoattn.geometry import point_normals
from geoattn.geometry.curves import z_order
from geoattn.models.points.inputs import PointConfig, PointNetwork
from geoattn.train.evaluate import evaluating
from geoattn.train.fabric import Precision
from geoattn.train.progress import progress_bar

VIEWS = 24
"""How many views there are: 4 rotations, at 3 scales, mirrored or not."""
_AT_ONCE = 1 << 19  # points whose scores are handed on together


@dataclass(frozen=True)
class _Voxels:
    """``M`` voxels of a cloud, along the Z-order curve."""

    order: Tensor
    """The points of the cloud ``[N]``, voxel by voxel."""
    start: Tensor
    """Where the points of each voxel begin in ``order``, ``[M]``."""
    count: Tensor
    """How many they are, ``[M]``."""
    cell: Tensor
    """``[M, 3]``."""

    def __getitem__(self, index: Tensor) -> _Voxels:
        return _Voxels(self.order, self.start[index], self.count[index], self.cell[index])

    def point(self, number: int) -> Tensor:
        """A point of each voxel, ``[M]``: the one with a number, counted around."""
        return self.order[self.start + number % self.count]


@torch.no_grad()
def point_probabilities(
    data: Data,
    model: PointNetwork,
    *,
    votes: int = 1,
    fragments: int | None = 1,
    tile_points: int = 100_000,
    precision: Precision = "float32",
    progress: bool = False,
) -> Tensor:
    """The probability of each class for each point of a cloud.

    The network reads one point of each voxel at a time, as in training. A scene with more voxels than ``tile_points``
    is cut into tiles: its voxels are halved along x or y, whichever is longer, and each tile gets up to as many again
    that lie around it, so that tiles overlap. What the network says of a point in several passes is added up, as
    probabilities. A point that no pass has read gets the average of its voxel.

    The memory needed beside the cloud is that of the network for ``tile_points``, and ``[N, K]`` numbers.

    Colours and intensities that the network reads and the cloud lacks are zero. Normals that it lacks are estimated
    (`geoattn.geometry.point_normals`) and point up.

    Args:
        data: ``pos`` ``[N, 3]`` and what there is of ``color``, ``normal``, ``intensity`` and ``category``.
        model: The network, on any device.
        votes: From how many views the cloud is labelled: as it is, turned about z by quarters, then at 0.95 and at 1.05
            times its size, then all of these mirrored; at most 24.
        fragments: Of how many points of each voxel each view reads, in a pass each; None: of all, in as many passes as
            the fullest voxel has points, which is how the published scores of Point Transformer V3 were measured. Views
            begin with different points.
        tile_points: At most so many voxels are read at once, and of a network that reads ``max_points`` no more than
            these.
        precision: ``bfloat16`` computes products and attention in bfloat16.
        progress: Whether to show a progress bar.

    Returns:
        ``[N, K]`` float32 on the CPU; each row sums to 1.

    Raises:
        TypeError: If it is given something else than a `Data` of tensors.
        ValueError: If there are no points, or some are not finite; if the network labels clouds as a whole; or if there
            would be more than 2^20 voxels along an axis.
    """
    config = model.config
    if config.labelled != "vertex":
        raise ValueError("the network gives one label to a whole cloud, not one to each point")
    votes = checked_integer("votes", votes, least=1)
    if votes > VIEWS:
        raise ValueError(f"votes is {votes}; there are {VIEWS} views")
    if fragments is not None:
        fragments = checked_integer("fragments", fragments, least=1)
    tile_points = checked_integer("tile_points", tile_points, least=8)
    given = Data(**{name: data[name] for name in FEATURES if name in data})
    given = Data(**checked_cloud(given, None, None))
    category = data.get("category")

    total = torch.zeros(given.pos.size(0), len(config.names))
    with evaluating(model), progress_bar(desc="segmenting", unit="pass", disable=not progress, total=0) as bar:
        for view in range(votes):
            seen = _viewed(given, view)
            pos = placed(seen.pos.double(), bool(config.unit_sphere))
            voxels = _voxels(pos, config.grid_size)
            seen.pos, seen.height = pos.float(), (pos[:, 2] - pos[:, 2].min()).float()
            tiles = _tiles(seen.pos[voxels.point(0)], voxels.start.numel() if config.unit_sphere else tile_points)
            reads = [min(int(voxels.count[tile].max()), fragments or len(total)) for tile in tiles]
            bar.total = bar.n + (votes - view) * sum(reads)
            for tile, passes in zip(tiles, reads, strict=True):
                summed = torch.zeros(tile.numel(), len(config.names))
                for number in range(view * passes, (view + 1) * passes):
                    point = voxels[tile].point(number)
                    cloud = Data(**{name: value[point] for name, value in seen.to_dict().items()})
                    if len(tiles) > 1:
                        cloud.pos = placed(cloud.pos.double(), unit_sphere=False).float()
                        cloud.height = cloud.pos[:, 2]
                    probability = _read(cloud, voxels.cell[tile], category, model, precision)
                    total[point] += probability
                    summed += probability
                    bar.update()
                _hand_on(total, summed / passes, voxels[tile], view * passes, passes)
    return total.div_(total.sum(1, keepdim=True))


def missing_features(data: Data, config: PointConfig) -> tuple[str, ...]:
    """What a network reads of each point and a cloud lacks: normals will be estimated, all else will be zero."""
    assert config.features is not None
    return tuple(name for name in config.features if name not in ("pos", "height") and data.get(name) is None)


def _viewed(cloud: Data, view: int) -> Data:
    """The cloud turned by a quarter for each of four views, at another scale for each of three times four, mirrored."""
    turns, scale, mirror = view % 4, (1.0, 0.95, 1.05)[view // 4 % 3], view // 12 % 2
    seen = rotated(cloud, turns * math.pi / 2) if turns else cloud.__copy__()
    if mirror:
        seen = mirrored(seen, 0)
    if scale != 1:
        seen.pos = seen.pos * scale
    return seen


def _voxels(pos: Tensor, grid_size: float | None) -> _Voxels:
    cell = cells(pos, grid_size)
    code = z_order(cell, bits=MAX_BITS)
    order = code.argsort(stable=True)
    if grid_size is None:
        return _Voxels(order, torch.arange(order.numel()), torch.ones_like(order), cell[order])
    count = code[order].unique_consecutive(return_counts=True)[1]
    start = count.cumsum(0) - count
    return _Voxels(order, start, count, cell[order[start]])


def _tiles(pos: Tensor, most: int) -> list[Tensor]:
    """Overlapping sets of at most ``most`` of the points ``[M, 3]`` that together are all, ascending indices each."""
    if pos.size(0) <= most:
        return [torch.arange(pos.size(0))]
    tiles, stack = [], [torch.arange(pos.size(0))]
    while stack:
        index = stack.pop()
        extent = pos[index].amax(0) - pos[index].amin(0)
        if index.numel() > most // 2:
            # A tower is cut across only if it could not be cut along.
            axis = int(extent[:2].argmax()) if extent[:2].max() > 1e-6 * extent.max() else 2
            index = index[pos[index, axis].argsort(stable=True)]
            stack += [index[: index.numel() // 2], index[index.numel() // 2 :]]
            continue
        tiles.append(_with_surroundings(pos, index, float(extent[:2].max()) / 4, most))
    return tiles


def _with_surroundings(pos: Tensor, index: Tensor, margin: float, most: int) -> Tensor:
    """Points and those around their bounding box up to a margin, the nearest first, at most ``most`` together."""
    low, high = pos[index].amin(0), pos[index].amax(0)
    outside = torch.zeros(pos.size(0))
    for axis in range(3):  # one at a time, in little memory
        outside = outside.maximum(low[axis] - pos[:, axis]).maximum(pos[:, axis] - high[axis])
    outside[index] = -1
    near = (outside <= margin).nonzero().flatten()
    if near.numel() > most:
        near = near[outside[near].argsort(stable=True)[:most]]
    return near.sort().values


def _read(cloud: Data, cell: Tensor, category: Tensor | None, model: PointNetwork, precision: Precision) -> Tensor:
    """Probabilities ``[M, K]`` of points in voxels of their own."""
    config, device = model.config, next(model.parameters()).device
    assert config.features is not None
    if "normal" in config.features and "normal" not in cloud:
        cloud.normal = point_normals(cloud.pos)
    count = cloud.pos.size(0)
    x = point_features(cloud.to_dict(), config.features, torch.arange(count))
    probability = x.new_empty(count, len(config.names))
    # Of more points than a network reads, it gets every second, third ..., in turn: they lie along a curve.
    parts = 1 if config.max_points is None else math.ceil(count / config.max_points)
    for part in range(parts):
        data = Data(pos=cloud.pos[part::parts], x=x[part::parts])
        if config.grid_size is not None:
            data.grid_coord = cell[part::parts] - cell[part::parts].amin(0)
        if category is not None:
            data.category = category.reshape(1)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            probability[part::parts] = model(data.to(device)).float().softmax(-1).cpu()
    return probability


def _hand_on(total: Tensor, probability: Tensor, voxels: _Voxels, first: int, reads: int) -> None:
    """Add the average of each voxel to those of its points that were not read."""
    for voxel in _in_turn(voxels.count - reads):
        unread = voxels.count[voxel] - reads
        owner = voxel.repeat_interleave(unread)
        rank = torch.arange(owner.numel()) - (unread.cumsum(0) - unread).repeat_interleave(unread)
        point = voxels.order[voxels.start[owner] + (first + reads + rank) % voxels.count[owner]]
        total[point] += probability[owner]


def _in_turn(unread: Tensor) -> Iterator[Tensor]:
    """The voxels with unread points, some at a time."""
    voxel = (unread > 0).nonzero().flatten()
    if voxel.numel():
        part = unread[voxel].cumsum(0) // _AT_ONCE
        yield from voxel.split(part.unique_consecutive(return_counts=True)[1].tolist())
