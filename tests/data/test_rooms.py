"""Synthetic scans of rooms: reproducible, truly occluded, denser near the sensor, every class where it belongs."""

import numpy as np
import pytest
import torch

from geoattn.data import Rooms, load_dataset
from geoattn.data.datasets.room_scenes import CEILING, CLUTTER, FLOOR, LABELS, TABLE, WALL, furnished_room
from geoattn.data.datasets.room_sensors import BALL, BOX, OPEN, ROUND, Sensor, View, cast, look_at, measured, surface_at
from geoattn.data.datasets.rooms import _points


@pytest.fixture(scope="module")
def some():
    rooms = Rooms(14, seed=11, points=1000)
    return [rooms[i] for i in range(14)]


def test_a_sample_depends_on_seed_and_index_only(some):
    again = Rooms(9, seed=11, points=1000)
    for i in (7, 3):
        for key in ("pos", "color", "normal", "y"):
            assert torch.equal(again[i][key], some[i][key])
    assert again[3].name == "room-11-3"
    other = Rooms(9, seed=12, points=1000)[3]
    assert not torch.equal(other.pos[:50], some[3].pos[:50])
    assert not torch.equal(some[4].pos[:50], some[3].pos[:50])


def test_samples_are_clouds_with_colors_normals_and_labels(some):
    seen = torch.zeros(len(LABELS), dtype=torch.int64)
    for data in some:
        count = data.num_nodes
        assert 0.3 * 1000 < count < 1.51 * 1000
        assert data.pos.shape == data.color.shape == data.normal.shape == (count, 3)
        assert data.pos.dtype == data.color.dtype == data.normal.dtype == torch.float32
        assert data.y.dtype == torch.int64
        assert data.pos.isfinite().all()
        assert ((data.color >= 0) & (data.color <= 1)).all()
        assert torch.allclose(data.normal.norm(dim=1), torch.ones(count), atol=1e-5)
        assert data.y.min() >= 0
        assert data.y.max() < len(LABELS)
        seen += torch.bincount(data.y, minlength=len(LABELS))
    assert (seen > 0).all()


def test_classes_are_where_they_belong(some):
    for data in some:
        height = data.pos[:, 2]
        assert (height[data.y == FLOOR].abs() < 0.2).all()  # a depth camera's noise at six metres
        assert (height[data.y == CEILING] > 2.1).all()
        assert (height[data.y == TABLE] < 1.0).all()


def inside(solid, point):
    """Whether points [..., 3] are inside a solid, by its definition."""
    unit = (point - solid.center) @ solid.axes / solid.half
    if solid.kind == BOX:
        return (np.abs(unit) < 1).all(-1)
    if solid.kind == BALL:
        return (unit**2).sum(-1) < 1
    if solid.kind == OPEN:
        return np.zeros(unit.shape[:-1], dtype=bool)
    return (np.linalg.norm(unit[..., :2], axis=-1) < 1 + solid.taper * unit[..., 2]) & (np.abs(unit[..., 2]) < 1)


@pytest.mark.parametrize("seed", range(3))
def test_every_point_is_seen_from_a_view(seed):
    """Along the segment from some view to the point there is nothing, up to 6 cm before it (noise of the depth)."""
    rng = np.random.default_rng(seed)
    scan = Rooms.scan(rng, 600)
    pos, *_ = _points(scan._replace(sensor=Sensor(noise=0.001)), 150, rng)
    seen = np.zeros(len(pos), dtype=bool)
    for origin in {tuple(view.origin): view.origin for view in scan.views}.values():
        way = pos - origin
        far = np.linalg.norm(way, axis=1, keepdims=True)
        share = np.linspace(0.05 / far, 1 - 0.06 / far, 100)  # [100, N, 1]
        track = origin + share * way
        free = np.ones(len(pos), dtype=bool)
        for solid in scan.scene.solids:
            free &= ~inside(solid, track).any(0)
        seen |= free
    assert seen.all()


def test_rays_end_where_a_slow_march_along_them_does():
    rng = np.random.default_rng(5)
    scene = furnished_room(rng)
    solids = [solid for solid in scene.solids if solid.kind != OPEN]
    view = View(np.array([1.2, 1.1, 1.6]), look_at(np.array([1.2, 1.1, 1.6]), scene.size * [1, 1, 0.2]), 4.0, (5, 7))
    depth = cast(solids, view).depth
    x, y = view.rays()
    rays = np.stack(np.broadcast_arrays(x, y, 1.0), 2) @ view.axes.T
    steps = np.arange(0.05, 8, 0.01)
    first = np.full(depth.shape, np.inf)
    for step in steps[::-1]:
        at = view.origin + step * rays
        for solid in solids:
            first[inside(solid, at)] = step
    both = np.isfinite(depth) & np.isfinite(first)
    assert both.mean() > 0.5
    assert (depth <= first + 1e-9).all()  # a march may step over an edge, but sees nothing that is not there
    assert np.median(first[both] - depth[both]) < 0.011
    assert (first[both] - depth[both] < 0.011).mean() > 0.97


@pytest.mark.parametrize("kind", [BOX, ROUND, OPEN, BALL])
def test_normals_are_orthogonal_to_the_surface(kind):
    """Neighboring rays on one face meet points whose difference is orthogonal to the normal."""
    rng = np.random.default_rng(kind)
    scene = furnished_room(rng)
    solid = next(s for s in scene.solids if s.kind == BOX)
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    solid = solid._replace(kind=kind, center=np.zeros(3), axes=axes, half=np.array([0.4, 0.4, 0.6]), taper=0.3)
    origin = np.array([1.5, 2.0, 1.0])
    view = View(origin, look_at(origin, np.zeros(3)), 4000.0, (400, 400))
    hits = cast([solid], view)
    met = np.isfinite(hits.depth)
    assert met.mean() > 0.9
    x, y = view.rays()
    point = np.full((*met.shape, 3), np.nan)
    rays = np.stack(np.broadcast_arrays(x, y, 1.0), 2) @ view.axes.T
    point[met] = (origin + rays * hits.depth[..., None])[met]
    normal = np.full(point.shape, np.nan)
    normal[met] = surface_at([solid], hits.solid[met], point[met], origin).normal
    assert (np.einsum("...i,...i", normal, point - origin)[met] < 0).all()
    step = point[:, 1:] - point[:, :-1]
    slope = np.abs(np.einsum("...i,...i", step, normal[:, 1:])) / np.linalg.norm(step, axis=2)
    assert np.nanmedian(slope) < 2e-3
    assert np.nanmean(slope > 2e-2) < 0.02  # across edges


def test_density_falls_with_distance():
    """On a floor below a scanner, points per area fall with the square of the distance and the cosine."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        scan = Rooms.scan(rng, 40_000)
        if scan.around:
            break
    floor = [solid for solid in scan.scene.solids if solid.label == FLOOR]
    origin = scan.views[0].origin
    views = [view for view in scan.views if view.origin is origin]
    scene = scan.scene._replace(solids=floor)
    pos, *_ = _points(scan._replace(scene=scene, views=views, sensor=Sensor(noise=1e-6, lost=0.0)), 10**6, rng)
    away = np.linalg.norm((pos - origin)[:, :2], axis=1)
    height = origin[2]
    edge = np.array([0.0, 0.5, 1.0, 1.5])
    reach = min(origin[0], origin[1], *(scene.size - origin)[:2]) + 0.3
    edge = edge[edge <= reach]
    expected = np.diff(-1 / np.hypot(edge, height))  # the solid angle of each ring, over 2 pi / height
    counted = np.histogram(away, edge)[0]
    assert len(edge) >= 3
    assert np.allclose(counted / counted.sum(), expected / expected.sum(), atol=0.04)


def test_a_projector_casts_a_shadow_beside_what_is_near():
    box = next(s for s in furnished_room(np.random.default_rng(0)).solids if s.kind == BOX)
    wall = box._replace(center=np.array([0, 3.0, 0]), axes=np.eye(3), half=np.array([9, 0.1, 9]))
    near = box._replace(center=np.array([0, 1.0, 0]), axes=np.eye(3), half=np.array([0.2, 0.1, 0.2]))
    view = View(np.zeros(3), look_at(np.zeros(3), np.array([0, 1.0, 0])), 100.0, (60, 80))
    hits = cast([wall, near], view)
    depth = measured(hits, np.ones(view.size), view, Sensor(0.0, baseline=0.075, lost=0.0), np.random.default_rng(0))
    lost = ~np.isfinite(depth)
    column = np.flatnonzero(lost[30])
    left = np.flatnonzero(hits.solid[30] == 1)[0]
    width = 100 * 0.075 * (1 / 0.9 - 1 / 2.9)
    assert abs(len(column) - width) < 2
    assert column.max() == left - 1  # the side away from the projector, which is to the right
    assert not lost[:5].any()


def test_registered_splits_share_no_seed():
    splits = [load_dataset("rooms", split, samples=20) for split in ("train", "valid", "test")]
    assert [len(split) for split in splits] == [20, 2, 2]
    assert len({split.seed for split in splits}) == 3
    assert splits[0].names == LABELS
    assert splits[0].labelled == "vertex"
    assert (0, len(LABELS) - 1) == (WALL, CLUTTER)


@pytest.mark.parametrize("bad", [{"count": -1}, {"count": 1, "points": 10}, {"count": 1, "seed": -3}])
def test_bad_arguments_are_named(bad):
    with pytest.raises(ValueError, match=next(reversed(bad))):
        Rooms(**bad)
