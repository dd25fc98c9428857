"""Synthetic labelled scans of furnished rooms and laid tables, made on the fly without any download.

Each sample is a random scene (`room_scenes`) as a sensor sees it from some places (`room_sensors`): what is hidden is
missing, near things have more points, depth is noisy, and at edges, on grazed surfaces and behind windows there is
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch_geometric.data import Data, Dataset

from geoattn._arguments import checked_integer
from geoattn.data.datasets.room_scenes import LABELS, Scene, furnished_room, table_top, turn
from geoattn.data.datasets.room_sensors import (
    GRAIN,
    PRINT,
    Sensor,
    Solid,
    View,
    cast,
    look_at,
    measured,
    surface_at,
)
from geoattn.data.labelled import Labelled
from geoattn.data.registry import register_dataset
from geoattn.geometry import point_normals
from geoattn.geometry.threads import one_thread

Array = NDArray[Any]


class Scan(NamedTuple):
    """A scene and how it is scanned.

    Attributes:
        scene: What there is.
        sensor: What it is scanned with.
        views: From where.
        around: Whether the views are the six sides of cubes, of a scanner that turns.
    """

    scene: Scene
    sensor: Sensor
    views: list[View]
    around: bool


class Rooms(Dataset):
    """Random labelled scans of rooms and tables, a new one for each index.

    Sample ``i`` depends only on ``seed``, ``points`` and ``i`` (to the bit on one machine, to rounding on another).
    Give training and validation different seeds. Half of the samples are rooms seen by a laser scanner from two to five
    places; three of ten are rooms, or parts of them, in two to fourteen frames of a depth camera; and two of ten are
    tables with things on them, in one to three frames of such a camera from nearby.

    Args:
        count: How many samples.
        seed: The stream of samples.
        points: About how many points each sample has, at least 100; a sample's own number is half to one and a half of
            it.
        transform: Applied to each sample.

    Each sample is a `Data` with `pos` ``[N, 3]`` float32 (metres, z up, turned about z at random, the floor at z = 0,
    the first view at x = y = 0), `color` ``[N, 3]`` float32 in 0 to 1, `normal` ``[N, 3]`` float32 (estimated
    from the 16 nearest points, towards the sensor), `y` ``[N]`` int64, the class of each point as an index in
    `names`, and `name`.

    Raises:
        ValueError: If ``count`` is negative or ``points`` is less than 100.
    """

    names: tuple[str, ...] = LABELS
    labelled: Labelled = "vertex"

    def __init__(
        self, count: int, seed: int = 0, points: int = 40_000, transform: Callable[[Data], Data] | None = None
    ) -> None:
        self.count = checked_integer("count", count, least=0)
        self.seed = checked_integer("seed", seed, least=0)
        self.points = checked_integer("points", points, least=100)
        super().__init__(transform=transform)

    def len(self) -> int:
        """How many samples."""
        return self.count

    @one_thread()
    def get(self, idx: int) -> Data:
        """Make sample ``idx``."""
        rng = np.random.default_rng([self.seed, idx])
        count = round(self.points * rng.uniform(0.5, 1.5))
        scan = self.scan(rng, count)
        pos, color, normal, y = _points(scan, count, rng)
        about = turn(2, rng.uniform(0, 2 * np.pi))
        middle = scan.views[0].origin * [1, 1, 0]
        return Data(
            pos=torch.from_numpy((pos - middle) @ about.T).float(),
            color=torch.from_numpy(color).float(),
            normal=torch.from_numpy(normal @ about.T).float(),
            y=torch.from_numpy(y),
            name=f"room-{self.seed}-{idx}",
        )

    @staticmethod
    def scan(rng: np.random.Generator, count: int) -> Scan:
        """A random scene and the views of it that give about ``count`` points or some more."""
        kind = rng.choice(["scanner", "frames", "table"], p=[0.5, 0.3, 0.2])
        if kind == "table":
            return _table_scan(rng, count)
        scene = furnished_room(rng)
        if kind == "scanner":
            sensor = Sensor(noise=rng.uniform(0.001, 0.004), growth=0.05, lost=rng.uniform(0.0, 0.05))
            places = rng.integers(2, 6)
            side = int(np.ceil(np.sqrt(count / places / 6 * 2.6)))
            views: list[View] = []
            for _ in range(places):
                origin, about = _standpoint(rng, scene), turn(2, rng.uniform(0, 2 * np.pi))
                views += [View(origin, about @ axes, side / 2, (side, side)) for axes in _SIDES]
            return Scan(scene, sensor, views, True)
        frames = rng.integers(2, 15)
        high = int(np.ceil(np.sqrt(count / frames * 1.7 * 0.75)))
        views = []
        for _ in range(frames):
            origin = _standpoint(rng, scene)
            target = scene.targets[rng.integers(len(scene.targets))] + rng.normal(size=3) * 0.3
            target[:2] += (np.linalg.norm((target - origin)[:2]) < 0.3) * np.array([0.5, 0.5])
            views.append(_camera(origin, target, high, rng))
        return Scan(scene, _depth_camera(rng), views, False)


@register_dataset("rooms")
def _rooms(split: str, samples: int | None) -> Rooms:
    """Rooms of the splits never share a seed."""
    count = 500 if samples is None else samples
    seed = {"train": 0, "valid": 1, "test": 2}[split]
    return Rooms(count if split == "train" else max(count // 10, 1), seed)


# The six sides of a cube around a scanner: right, down and forward of each as columns.
_SIDES = [
    np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]),
    np.array([[-1.0, 0, 0], [0, 0, -1], [0, -1, 0]]),
    np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]]),
    np.array([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]]),
    np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]),
]


def _depth_camera(rng: np.random.Generator) -> Sensor:
    """As the first Kinect: noise and steps grow with the square of the depth; its projector casts shadows."""
    noise = rng.uniform(0.0005, 0.002)
    return Sensor(noise, 1.0, rng.choice([0.0, 0.0028]), rng.choice([0.0, 0.075]), rng.uniform(0.0, 0.05), reach=6.0)


def _camera(origin: Array, target: Array, high: int, rng: np.random.Generator) -> View:
    """A camera with a field of view of about 58 by 45 degrees."""
    wide = high * 4 // 3
    return View(origin, look_at(origin, target, rng.normal() * 0.07), 0.9 * wide, (high, wide))


def _table_scan(rng: np.random.Generator, count: int) -> Scan:
    scene = table_top(rng)
    frames = rng.integers(1, 4)
    high = int(np.ceil(np.sqrt(count / frames * 1.7 * 0.75)))
    side = rng.uniform(0, np.pi)
    views = []
    for _ in range(frames):
        target = scene.targets[rng.integers(len(scene.targets))]
        around, above, far = side + rng.normal() * 0.4, rng.uniform(0.35, 1.15), rng.uniform(0.6, 1.5)
        way = np.array([np.cos(around) * np.cos(above), np.sin(around) * np.cos(above), np.sin(above)])
        views.append(_camera(target + far * way, target, high, rng))
    return Scan(scene, _depth_camera(rng), views, False)


def _standpoint(rng: np.random.Generator, scene: Scene) -> Array:
    """A place in the room at about the height of the eyes, 15 cm from everything, if one is found soon."""
    solids = scene.solids
    center = np.stack([solid.center for solid in solids])
    axes = np.stack([solid.axes for solid in solids])
    half = np.stack([solid.half * (1 + abs(solid.taper)) for solid in solids])
    for _ in range(50):
        place = np.array([*rng.uniform(0.25, scene.size[:2] - 0.25), rng.uniform(1.2, 1.85)])
        inside = np.abs(np.einsum("nij,ni->nj", axes, place - center)) < half + 0.15
        if not inside.all(1).any():
            break
    return place


def _points(scan: Scan, count: int, rng: np.random.Generator) -> tuple[Array, Array, Array, Array]:
    """Positions, colours, normals [N, 3] and classes [N] of at most ``count`` points that the sensor gives."""
    solids = scan.scene.solids
    lamp = np.array([0.5, 0.5, 0.95]) * scan.scene.size
    light = rng.uniform(0.3, 0.7)
    parts: list[tuple[Array, ...]] = []
    for view in scan.views:
        hits = cast(solids, view)
        x, y = view.rays()
        length = np.sqrt(1 + x * x + y * y)
        met = np.isfinite(hits.depth)
        ray = np.stack(np.broadcast_arrays(x, y, 1.0), 2)[met] @ view.axes.T
        index = hits.solid[met]
        exact = view.origin + ray * hits.depth[met][:, None]
        surface = surface_at(solids, index, exact, view.origin)
        cosine = np.zeros(view.size)
        cosine[met] = -np.einsum("ni,ni->n", ray, surface.normal) / length[met]
        depth = measured(hits, cosine, view, scan.sensor, rng)
        found = np.isfinite(depth)
        if scan.around:  # a scanner that turns has no more rays towards the edges of a cube than elsewhere
            found &= rng.random(view.size) < length**-3
        kept = found[met]
        pos = view.origin + ray[kept] * depth[found][:, None]
        color = _color(solids, index[kept], surface.place[kept], rng)
        color = color * (1 - light + light * _lit(pos, surface.normal[kept], lamp))[:, None]
        gain = np.exp(rng.normal() * 0.12 + rng.normal(size=3) * 0.03)  # exposure and white balance
        color = np.round(np.clip(color * gain + rng.normal(size=color.shape) * 0.015, 0, 1) * 255) / 255
        label = np.array([solid.label for solid in solids])[index[kept]]
        parts.append((pos, color, np.broadcast_to(view.origin, pos.shape), label))
    pos, color, origin, label = (np.concatenate(part) for part in zip(*parts, strict=True))
    if len(pos) > count:
        chosen = np.sort(rng.choice(len(pos), count, replace=False))
        pos, color, origin, label = pos[chosen], color[chosen], origin[chosen], label[chosen]
    return pos, color, point_normals(torch.from_numpy(pos), viewpoint=torch.from_numpy(origin)).numpy(), label


def _color(solids: list[Solid], index: Array, place: Array, rng: np.random.Generator) -> Array:
    """The colour of the material at places [N, 3] in the frames of solids ``index`` [N]."""
    one = np.stack([solid.color for solid in solids])[index]
    other = np.stack([solid.other for solid in solids])[index]
    pattern = np.array([solid.pattern for solid in solids])[index]
    mixed = np.zeros(len(index))
    grain = pattern == GRAIN
    along = place[grain]
    mixed[grain] = 0.5 + 0.5 * np.sin(70 * along[:, 1] + 40 * along[:, 2] + 2 * np.sin(4 * along[:, 0]))
    print_ = pattern == PRINT
    patch = np.floor(place[print_] / [0.06, 0.05, 0.07] + 0.3).astype(np.int64)
    hashed = (patch * [73856093, 19349663, 83492791]).sum(1) ^ (index[print_] * 2654435761)
    mixed[print_] = (hashed >> 7) % 5 < 2
    return one + mixed[:, None] * (other - one)


def _lit(pos: Array, normal: Array, lamp: Array) -> Array:
    """How much light of the lamp falls on surfaces, [N]."""
    way = lamp - pos
    cosine = np.einsum("ni,ni->n", way, normal) / np.linalg.norm(way, axis=1)
    lit: Array = np.clip(cosine, 0, 1)
    return lit
