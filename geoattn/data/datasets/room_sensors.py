"""Scans of scenes made of boxes, round bodies and balls: exact ray casting, and what sensors make of it.

A sensor looks along the pixels of a pinhole camera; a laser scanner that looks all around is six of them. Every ray
ends at the first surface it meets, so what lies behind something else is missing from the scan, as in real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

BOX, ROUND, OPEN, BALL = range(4)
PLAIN, GRAIN, PRINT = range(3)


class Solid(NamedTuple):
    """A body that rays end at, in a frame of its own.

    Attributes:
        kind: `BOX`; `ROUND`, a cylinder or frustum along z; `OPEN`, the same without lid and wall thickness, as a cup;
            or `BALL`, an ellipsoid.
        center: Of its frame, [3], metres.
        axes: Its x, y and z axis as columns, [3, 3].
        half: Half its size along each axis, [3]; of a frustum that is the size in the middle.
        label: Its class.
        color: [3], 0 to 1.
        other: A second colour, for the pattern, [3].
        pattern: `PLAIN`; `GRAIN`, as of wood; or `PRINT`, patches.
        taper: By how much of its middle radius a frustum widens from the middle to the top.
    """

    kind: int
    center: Array
    axes: Array
    half: Array
    label: int
    color: Array
    other: Array
    pattern: int = PLAIN
    taper: float = 0.0


class View(NamedTuple):
    """A pinhole camera.

    Attributes:
        origin: Where it is, [3].
        axes: Its right, down and forward directions as columns, [3, 3].
        focal: Focal length in pixels.
        size: Rows and columns of pixels.
    """

    origin: Array
    axes: Array
    focal: float
    size: tuple[int, int]

    def rays(self) -> tuple[Array, Array]:
        """The x of the columns [1, W] and the y of the rows [H, 1] of rays (x, y, 1) through the pixels."""
        high, wide = self.size
        x = (np.arange(wide) - (wide - 1) / 2) / self.focal
        y = (np.arange(high) - (high - 1) / 2) / self.focal
        return x[None, :], y[:, None]


class Hits(NamedTuple):
    """Where the rays of a view end.

    Attributes:
        depth: Along the view's forward direction, [H, W]; infinite where nothing is met.
        solid: Index of what is met, [H, W]; -1 for nothing.
    """

    depth: Array
    solid: Array


def look_at(origin: Array, target: Array, roll: float = 0.0) -> Array:
    """Axes of a view from ``origin`` to ``target``, z up, turned by ``roll`` about its forward direction."""
    forward = (target - origin) / np.linalg.norm(target - origin)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    cos, sin = np.cos(roll), np.sin(roll)
    return np.stack([cos * right + sin * down, cos * down - sin * right, forward], 1)


def cast(solids: list[Solid], view: View, nearest: float = 0.05) -> Hits:
    """What each ray of a view meets first, beyond ``nearest`` metres of depth."""
    with np.errstate(divide="ignore", invalid="ignore"):  # of rays that run along a surface
        return _cast(solids, view, nearest)


def _cast(solids: list[Solid], view: View, nearest: float) -> Hits:
    x, y = view.rays()
    depth = np.full(view.size, np.inf)
    index = np.full(view.size, -1)
    center, axes, half = (np.stack(part) for part in zip(*((s.center, s.axes, s.half) for s in solids), strict=True))
    frame = axes / half[:, None]  # takes vectors to the coordinates of the solids of half size 1
    origin = np.einsum("ni,nij->nj", view.origin - center, frame)
    turn = np.einsum("ik,nij->nkj", view.axes, frame)
    for number, rows, columns in _windows(solids, center, axes, half, view):
        way = [
            turn[number, 0, i] * x[:, columns] + (turn[number, 1, i] * y[rows] + turn[number, 2, i]) for i in range(3)
        ]
        solid = solids[number]
        found = _METHODS[solid.kind](origin[number], way, solid.taper, nearest)
        closer = found < depth[rows, columns]
        depth[rows, columns][closer] = found[closer]
        index[rows, columns][closer] = number
    return Hits(depth, index)


def _windows(
    solids: list[Solid], center: Array, axes: Array, half: Array, view: View
) -> Iterator[tuple[int, slice, slice]]:
    """The solids that a view may see, and the rows and columns of pixels where it may."""
    taper = np.array([abs(solid.taper) for solid in solids])
    reach = half * (1 + taper[:, None] * [1, 1, 0])
    corners = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)])
    corner = np.einsum("cj,nij->nci", corners, axes * reach[:, None]) + center[:, None] - view.origin
    corner = corner @ view.axes  # [S, 8, 3] in the view's frame
    near, far = corner[:, :, 2].min(1), corner[:, :, 2].max(1)
    high, wide = view.size
    pixel = corner[:, :, :2] / np.maximum(corner[:, :, 2:], 1e-3) * view.focal + (np.array([wide, high]) - 1) / 2
    first = np.clip(np.ceil(pixel.min(1)), 0, [wide, high]).astype(int)
    last = np.clip(np.floor(pixel.max(1)) + 1, 0, [wide, high]).astype(int)
    first[near < 1e-3], last[near < 1e-3] = 0, [wide, high]  # partly behind the view
    for number in np.flatnonzero((far > 0) & (first < last).all(1)):
        yield int(number), slice(first[number, 1], last[number, 1]), slice(first[number, 0], last[number, 0])


def _meet_box(origin: Array, way: list[Array], taper: float, nearest: float) -> Array:
    enter, leave = np.array(-np.inf), np.array(np.inf)
    for start, step in zip(origin, way, strict=True):
        one, other = (-1 - start) / step, (1 - start) / step
        enter, leave = np.maximum(enter, np.minimum(one, other)), np.minimum(leave, np.maximum(one, other))
    return np.where((enter < leave) & (enter > nearest), enter, np.inf)


def _meet_ball(origin: Array, way: list[Array], taper: float, nearest: float) -> Array:
    a = way[0] ** 2 + way[1] ** 2 + way[2] ** 2
    b = origin[0] * way[0] + origin[1] * way[1] + origin[2] * way[2]
    under = b * b - a * (origin @ origin - 1)
    time = (-b - np.sqrt(np.maximum(under, 0))) / a
    return np.where((under > 0) & (time > nearest), time, np.inf)


def _meet_round(origin: Array, way: list[Array], taper: float, nearest: float, lid: bool = True) -> Array:
    """The side x² + y² = (1 + taper z)², |z| <= 1, from outside and, without a lid, from inside; bottom and top."""
    start, slope = 1 + taper * origin[2], taper * way[2]
    a = way[0] ** 2 + way[1] ** 2 - slope * slope
    b = origin[0] * way[0] + origin[1] * way[1] - start * slope
    under = b * b - a * (origin[0] ** 2 + origin[1] ** 2 - start * start)
    root = np.sqrt(np.maximum(under, 0))
    first = np.full(a.shape, np.inf)
    for sign in (-1, 1):
        time = (-b + sign * root) / a
        side = (under > 0) & (time > nearest) & (np.abs(origin[2] + time * way[2]) <= 1)
        first = np.where(side & (time < first), time, first)
    for end in (-1, 1) if lid else (-1,):
        time = (end - origin[2]) / way[2]
        x, y = origin[0] + time * way[0], origin[1] + time * way[1]
        cap = (x * x + y * y <= (1 + taper * end) ** 2) & (time > nearest)
        first = np.where(cap & (time < first), time, first)
    return first


def _meet_open(origin: Array, way: list[Array], taper: float, nearest: float) -> Array:
    return _meet_round(origin, way, taper, nearest, lid=False)


_METHODS = {BOX: _meet_box, ROUND: _meet_round, OPEN: _meet_open, BALL: _meet_ball}


class Surface(NamedTuple):
    """What is known of the surface where rays meet it.

    Attributes:
        normal: Towards the sensor, [N, 3].
        place: In the frame of the solid, in metres, [N, 3].
    """

    normal: Array
    place: Array


def surface_at(solids: list[Solid], index: Array, point: Array, origin: Array) -> Surface:
    """Normals at points [N, 3] on solids ``index`` [N], seen from ``origin``."""
    kind = np.array([solid.kind for solid in solids])[index]
    half = np.stack([solid.half for solid in solids])[index]
    axes = np.stack([solid.axes for solid in solids])[index]
    taper = np.array([solid.taper for solid in solids])[index]
    place = np.einsum("ni,nij->nj", point - np.stack([solid.center for solid in solids])[index], axes)
    unit = place / half
    rows = np.arange(len(index))
    normal = unit / half  # of a ball
    box = kind == BOX
    flat = np.abs(unit).argmax(1)
    normal[box] = 0
    normal[rows[box], flat[box]] = unit[rows[box], flat[box]]
    round_ = (kind == ROUND) | (kind == OPEN)
    radius = 1 + taper * unit[:, 2]
    normal[round_, 2] = (-taper * radius / half[:, 2])[round_]
    end = round_ & (1 - np.abs(unit[:, 2]) < 1e-6)
    normal[end] = [0, 0, 1]
    normal = np.einsum("nij,nj->ni", axes, normal)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    away = np.einsum("ni,ni->n", normal, point - origin) > 0
    normal[away] *= -1
    return Surface(normal, place)


class Sensor(NamedTuple):
    """What a sensor adds to the exact depth.

    Attributes:
        noise: Standard deviation of the depth, metres, at 1 m of depth or nearer.
        growth: By how much it grows with the square of the depth beyond 1 m, 1 / metre.
        step: Width of a step of the inverse depth, 1 / metre, as of triangulating cameras; 0: no steps.
        baseline: Metres from the camera to its projector, whose shadows have no depth; 0: no shadows.
        lost: Share of the rays that never come back.
        reach: The largest depth it measures, metres.
    """

    noise: float
    growth: float = 0.0
    step: float = 0.0
    baseline: float = 0.0
    lost: float = 0.01
    reach: float = 50.0


def measured(hits: Hits, cosine: Array, view: View, sensor: Sensor, rng: np.random.Generator) -> Array:
    """The depth [H, W] that a sensor gives, infinite where it gives none.

    Args:
        hits: Where its rays end.
        cosine: Of the angle between ray and normal, [H, W]: rays that graze a surface are often lost.
        view: Where it looks.
        sensor: What it is like.
        rng: Source of the noise.
    """
    depth, met = hits.depth.copy(), np.isfinite(hits.depth)
    lost = rng.random(depth.shape) < sensor.lost + np.exp(-cosine / 0.04)
    if sensor.baseline:
        x, _ = view.rays()
        # Where the projector sees a pixel; its light does not reach what is behind something further to the right.
        lit = x - sensor.baseline / depth
        lost |= lit > np.minimum.accumulate(lit[:, ::-1], 1)[:, ::-1] + 0.5 / view.focal
    depth[met] += (
        rng.normal(size=int(met.sum())) * sensor.noise * (1 + sensor.growth * np.maximum(depth[met] - 1, 0) ** 2)
    )
    if sensor.step:
        depth[met] = 1 / (np.maximum(np.round(1 / (depth[met] * sensor.step)), 1) * sensor.step)
    depth[lost | (depth > sensor.reach)] = np.inf
    return depth
