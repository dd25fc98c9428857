"""Random changes of clouds: what they keep, what they change, and that all of it follows from the generator."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator
from scipy.ndimage import convolve
from torch_geometric.data import Data

from geoattn.data import PointInputs, point_augment
from geoattn.data.point_augment import (
    CenterShift,
    ChromaticAutoContrast,
    ChromaticJitter,
    ChromaticTranslation,
    ElasticDistortion,
    Mix3D,
    ObjectAugment,
    RandomAttributeDropout,
    RandomMirror,
    RandomPointDropout,
    RandomPointJitter,
    RandomRotation,
    RandomScaling,
    SceneAugment,
    merged,
)

N = 300


def cloud(seed: int = 0, count: int = N) -> Data:
    random = torch.Generator().manual_seed(seed)
    return Data(
        pos=torch.rand(count, 3, generator=random) * torch.tensor([3.0, 2, 1]) + torch.tensor([5.0, -7, 2]),
        color=torch.rand(count, 3, generator=random) * 0.5 + 0.2,
        normal=torch.nn.functional.normalize(torch.randn(count, 3, generator=random)),
        intensity=torch.rand(count, generator=random),
        y=torch.arange(count),
        name="a room",
        origin=torch.tensor([1e6, 0, 0], dtype=torch.float64),
    )


def seeded(transform, seed=0):
    return dataclasses.replace(transform, generator=torch.Generator().manual_seed(seed))


ALL = [
    ChromaticAutoContrast(p=1),
    ChromaticJitter(p=1),
    ChromaticTranslation(p=1),
    ElasticDistortion(p=1),
    Mix3D([cloud(1), cloud(2)], p=1),
    ObjectAugment(attribute_dropout=0.5),
    RandomAttributeDropout(p=0.5),
    RandomMirror(p=1),
    RandomPointDropout(p=1),
    RandomPointJitter(),
    RandomRotation(),
    RandomScaling(),
    RandomScaling(axes=True),
    SceneAugment(attribute_dropout=0.5),
]


def same(a: Data, b: Data) -> bool:
    a, b = a.to_dict(), b.to_dict()
    return a.keys() == b.keys() and all(
        torch.equal(a[key], b[key]) if torch.is_tensor(a[key]) else a[key] == b[key] for key in a
    )


@pytest.mark.parametrize("transform", ALL, ids=lambda t: type(t).__name__)
def test_the_same_generator_gives_the_same_cloud_and_nothing_given_changes(transform):
    given = cloud()
    first, second = (seeded(transform, 1)(given) for _ in range(2))
    assert same(given, cloud())
    assert same(first, second)
    assert isinstance(transform, RandomMirror) or not all(same(first, seeded(transform, i)(given)) for i in range(5))
    assert not same(first, given)
    assert first.name == "a room"
    assert all(first[key].size(0) == first.pos.size(0) for key in ("color", "normal", "intensity", "y") if key in first)
    assert first.pos.isfinite().all()
    assert first.origin.shape == (3,)
    if "color" in first:
        assert 0 <= first.color.min() <= first.color.max() <= 1
    if "normal" in first:
        assert torch.allclose(first.normal.norm(dim=1), torch.ones(first.pos.size(0)), atol=1e-5)


@pytest.mark.parametrize("transform", [t for t in ALL if hasattr(t, "p")], ids=lambda t: type(t).__name__)
def test_what_never_happens(transform):
    assert same(seeded(dataclasses.replace(transform, p=0))(cloud()), cloud())


@pytest.mark.parametrize("transform", ALL, ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("count", [1, 2])
def test_one_point_or_two_at_one_place(transform, count):
    given = Data(pos=torch.ones(count, 3))
    out = seeded(transform)(given)
    assert out.pos.isfinite().all()
    assert out.pos.size(0) >= 1


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_rotations_turn_points_and_normals_alike(axis):
    given = cloud()
    out = seeded(RandomRotation(180, axis))(given)
    first, second = (torch.pdist(data.pos.double()) for data in (given, out))
    assert torch.allclose(first, second, atol=1e-5)
    assert torch.allclose(out.pos[:, "xyz".index(axis)], given.pos[:, "xyz".index(axis)], atol=1e-5)
    moved = given.clone()
    moved.pos = given.pos + 0.1 * given.normal
    # a rotation about the center of another bounding box differs by a shift
    difference = seeded(RandomRotation(180, axis))(moved).pos - out.pos - 0.1 * out.normal
    assert torch.allclose(difference, difference[:1].expand(N, 3), atol=1e-4)
    angles = [seeded(RandomRotation(10, axis), seed)(given) for seed in range(5)]
    largest = max((torch.nn.functional.cosine_similarity(out.normal, given.normal).min()).acos() for out in angles)
    assert 0.01 < largest < np.radians(10) + 1e-3


def test_normals_stay_normals_of_stretched_planes():
    given = Data(pos=torch.rand(50, 3), normal=torch.nn.functional.normalize(torch.ones(50, 3)))
    given.pos -= (given.pos @ given.normal[0])[:, None] * given.normal[0]
    out = seeded(RandomScaling(0.5, 2, axes=True))(given)
    assert ((out.pos - out.pos[0]) @ out.normal[0]).abs().max() < 1e-5


def test_mirrors_turn_faces_around():
    given = Data(pos=torch.rand(3, 3), face=torch.tensor([[0], [1], [2]]))
    outs = [seeded(RandomMirror(), seed)(given) for seed in range(8)]
    for out in outs:
        number = int((out.pos != given.pos).any(0).sum())
        assert out.face.flatten().tolist() == ([2, 1, 0] if number % 2 else [0, 1, 2])
    assert len({tuple((out.pos != given.pos).any(0).tolist()) for out in outs}) == 4


def test_labels_follow_their_points():
    given = cloud()
    out = seeded(RandomPointDropout(0.2, p=1))(given)
    assert out.pos.size(0) == 240
    assert torch.equal(given.pos[out.y], out.pos)
    assert torch.equal(given.intensity[out.y], out.intensity)
    one = seeded(RandomPointDropout(0.99, p=1))(Data(pos=torch.zeros(2, 3), y=torch.tensor([4])))
    assert one.pos.size(0) == 1
    assert one.y.tolist() == [4]  # of the whole cloud
    mesh = Data(pos=torch.rand(9, 3), face=torch.tensor([[0], [1], [8]]))
    assert same(seeded(RandomPointDropout(0.5, p=1))(mesh), mesh)


def test_jitter_is_clipped():
    out = seeded(RandomPointJitter(0.005, 0.006))(cloud())
    moved = out.pos - cloud().pos
    assert 0.0059 < moved.abs().max() <= 0.006 + 1e-6
    assert moved.std() < 0.005


def test_elastic_distortion_is_smoothed_noise_between_grid_points():
    given, cell, magnitude = cloud(), 0.2, 0.4
    out = seeded(ElasticDistortion(((cell, magnitude),), p=1))(given)
    random = torch.Generator().manual_seed(0)
    torch.rand(1, generator=random)
    low = given.pos.amin(0).numpy()
    size = np.floor((given.pos.amax(0).numpy() - low) / np.float32(cell)).astype(int) + 3
    noise = torch.randn(3, *size.tolist(), generator=random).numpy()
    for _ in range(2):
        for axis in range(3):
            box = np.ones([3 if i == axis else 1 for i in range(3)]) / 3
            noise = np.stack([convolve(channel, box, mode="constant") for channel in noise])
    axes = [low[i] - cell + cell * np.arange(size[i]) for i in range(3)]
    field = [RegularGridInterpolator(axes, channel)(given.pos.numpy()) for channel in noise]
    expected = given.pos.numpy() + magnitude * np.stack(field, 1)
    assert np.abs(out.pos.numpy() - expected).max() < 1e-5
    with pytest.raises(ValueError, match=r"a grid of cells of 1e-06 has .* cells for this cloud"):
        ElasticDistortion(((1e-6, 1),), p=1)(given)


def test_colours():
    given = cloud()
    shifted = seeded(ChromaticTranslation(0.05, p=1))(given).color - given.color
    assert torch.allclose(shifted, shifted[:1].expand(N, 3), atol=1e-6)
    assert 0 < shifted.abs().max() <= 0.05
    stretched = seeded(ChromaticAutoContrast(p=1))(given).color
    order = given.color.argsort(0)
    assert (stretched.gather(0, order).diff(dim=0) >= 0).all()
    assert stretched.amin() < given.color.amin()
    assert stretched.amax() > given.color.amax()


def test_center_shift():
    pos = CenterShift()(cloud()).pos
    assert torch.allclose(pos.amin(0)[:2], -pos.amax(0)[:2], atol=1e-5)
    assert pos[:, 2].min() == 0


def test_attributes_are_left_out_one_by_one():
    names = ("color", "normal", "intensity")
    outs = [seeded(RandomAttributeDropout(p=0.5), seed)(cloud()) for seed in range(60)]
    found = {tuple(name in out for name in names) for out in outs}
    assert len(found) == 8


def test_scenes_are_merged_at_one_place():
    first, second = cloud(0), cloud(1, 100)
    del second.normal
    second.pos += 50
    both = merged(first, second)
    assert both.pos.size(0) == N + 100
    assert "normal" not in both
    assert torch.equal(both.y, torch.cat([first.y, second.y]))
    assert torch.equal(both.pos[:N], CenterShift()(first).pos)
    assert both.pos.amax() < 3
    mixed = seeded(Mix3D([second], p=1, augment=RandomPointDropout(0.5, p=1, generator=torch.Generator())))(first)
    assert mixed.pos.size(0) == N + 50


def test_a_scene_after_its_recipe_is_what_networks_read():
    out = PointInputs(("pos", "color", "normal"), grid_size=0.05)(SceneAugment(0.05)(cloud()))
    assert out.x.shape[1] == 9
    assert out.y.unique().numel() == out.y.numel()
    low, high = (factor * cloud().pos.amax(0).sub(cloud().pos.amin(0)).norm() for factor in (0.7, 1.5))
    assert low < (out.pos.amax(0) - out.pos.amin(0)).norm() < high


def test_every_transform_is_in_this_test():
    known = {type(transform).__name__ for transform in ALL} | {"CenterShift", "BaseTransform"}
    classes = {name: value for name, value in vars(point_augment).items() if isinstance(value, type)}
    assert known == {name for name, value in classes.items() if hasattr(value, "forward")}


def test_a_scan_too_large_for_its_voxels_names_what_to_change():
    scan = Data(pos=torch.tensor([[0.0, 0.0, 0.0], [4000.0, 4000.0, 100.0]]))
    with pytest.raises(ValueError, match=r"in training larger voxels \(grid_size, --grid-size\), or smaller scans"):
        ElasticDistortion(p=1.0)(scan)
