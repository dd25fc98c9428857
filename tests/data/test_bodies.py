"""Synthetic labelled bodies: reproducible, closed, with all eight parts where they belong."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geoattn.data.datasets.bodies import (
    LABELS,
    Bodies,
    _cut_pinches,
    bone_parts,
    is_closed_surface,
    random_phenotype,
)
from geoattn.data.datasets.body_poses import FAMILIES, LIMITS, RELAXED, Skeleton, random_angles


@pytest.fixture(scope="module")
def bodies() -> Bodies:
    return Bodies(1000, seed=11)


def test_a_sample_depends_on_seed_and_index_only(bodies):
    again = Bodies(5, seed=11)
    last, first = again[4], again[3]
    for key in ("pos", "face", "y"):
        assert torch.equal(bodies[4][key], last[key])
        assert torch.equal(bodies[3][key], first[key])
    assert not torch.equal(Bodies(5, seed=12)[4].pos[:100], last.pos[:100])
    assert not torch.equal(last.pos[:100], first.pos[:100])


@given(st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_every_sample_is_a_labelled_closed_surface(bodies, index):
    data = bodies[index]
    face, pos = data.face.t().numpy(), data.pos.double().numpy()
    assert data.pos.dtype == torch.float32
    assert data.face.dtype == data.y.dtype == torch.int64
    assert data.y.shape == (len(face),)
    assert 0.8 * 1500 < len(face) < 1.2 * 1500
    assert np.array_equal(np.unique(face), np.arange(len(pos)))
    assert np.isfinite(pos).all()
    assert is_closed_surface(pos, face)
    corners = pos[face]
    assert (corners[:, 0] * np.cross(corners[:, 1], corners[:, 2])).sum() > 0  # outward oriented
    assert data.y.unique().tolist() == list(range(8))


def test_parts_have_plausible_sizes(bodies):
    """Every part's mean share of the area is within half and twice a human's."""
    shares = np.zeros(8)
    for index in range(20):
        body = bodies[index]  # made anew each time it is asked for
        corners = body.pos[body.face]
        area = torch.linalg.cross(corners[1] - corners[0], corners[2] - corners[0]).norm(dim=1)
        shares += np.bincount(body.y, area, 8) / float(area.sum()) / 20
    human = np.array([0.075, 0.03, 0.065, 0.085, 0.33, 0.2, 0.14, 0.068])
    assert (shares > human / 2).all()
    assert (shares < human * 2).all()


def test_parts_are_in_the_order_of_the_body(bodies):
    """In the standing reference pose heads are above bodies above upper legs above lower legs above feet."""
    labels = bodies.part_weights.argmax(1)
    height = bodies.body({}).vertices[0, :, 2].numpy()
    means = [height[labels == LABELS.index(part)].mean() for part in ("head", "body", "upper leg", "lower leg", "foot")]
    assert means == sorted(means, reverse=True)
    sideways = np.abs(bodies.body({}).vertices[0, :, 0].numpy())
    means = [sideways[labels == LABELS.index(part)].mean() for part in ("body", "upper arm", "lower arm", "hand")]
    assert means == sorted(means)


def test_both_sides_have_the_same_parts(bodies):
    for name in bodies.body.bone_names:
        assert bone_parts(name).sum() == 1
        if name.endswith(".L"):
            assert np.array_equal(bone_parts(name), bone_parts(name[:-1] + "R"))
    with pytest.raises(ValueError, match="tail"):
        bone_parts("tail")


def test_exchanging_sides_mirrors_the_pose(bodies):
    left, right = random_angles(np.random.default_rng(3))
    trunk = {name: 0.0 for name in left if name.split()[0] in ("spine", "neck")}
    left, right = left | trunk, right | trunk
    joints = [
        bodies.body({}, torch.from_numpy(bodies.skeleton.pose(*sides)).float()[None]).joints[0]
        for sides in ((left, right), (right, left))
    ]
    index = bodies.skeleton.index
    for name in index:
        if name.endswith(".L"):
            mirrored = joints[1][index[name[:-1] + "R"]] * torch.tensor([-1.0, 1.0, 1.0])
            torch.testing.assert_close(joints[0][index[name]], mirrored, atol=5e-3, rtol=0)


def test_joint_angles_mean_what_they_say():
    from geoattn.geometry.body import BodyModel

    body = BodyModel.load()
    skeleton = Skeleton(body)
    at = skeleton.index

    def joints(**angles):
        given = dict.fromkeys(RELAXED, 0.0) | {name.replace("_", " "): value for name, value in angles.items()}
        return body({}, torch.from_numpy(skeleton.pose(given, given)).float()[None]).joints[0]

    def direction(pose, start, end):
        return torch.nn.functional.normalize(pose[at[end]] - pose[at[start]], dim=0)

    t_pose = joints(arm_elevation=90.0)
    assert direction(t_pose, "upperarm01.L", "wrist.L")[0] > 0.99
    assert direction(t_pose, "upperarm01.R", "wrist.R")[0] < -0.99
    forwards = joints(arm_elevation=90.0, arm_azimuth=90.0)
    assert direction(forwards, "upperarm01.L", "lowerarm01.L")[1] < -0.95
    assert joints(spine_bend=60.0)[at["head"], 1] < joints()[at["head"], 1] - 0.2
    sitting = joints(hip_flexion=90.0, knee=90.0)
    assert direction(sitting, "upperleg01.L", "lowerleg01.L")[1] < -0.9
    assert direction(sitting, "lowerleg01.L", "foot.L")[2] < -0.9
    bent = joints(elbow=120.0)
    fold = direction(bent, "upperarm01.L", "lowerarm01.L") @ direction(bent, "lowerarm01.L", "wrist.L")
    assert float(fold) == pytest.approx(np.cos(np.radians(120)), abs=0.05)


def test_random_numbers_stay_within_human_limits(bodies):
    rng = np.random.default_rng(0)
    assert sum(chance for chance, _, _ in FAMILIES) == pytest.approx(1)
    for _ in range(200):
        phenotype = random_phenotype(rng)
        assert (phenotype >= 0).all()
        assert (phenotype <= 1).all()
        for side in random_angles(rng):
            assert set(side) == set(LIMITS) == set(RELAXED)
            assert 0 <= side["arm elevation"] + 20 <= 200
            assert -20 <= side["knee"] <= 150
            assert -20 <= side["elbow"] <= 160


def test_a_pinched_surface_is_cut_there():
    """Two tetrahedra glued along an edge come apart, and the larger piece stays; a sphere stays whole."""
    tetrahedron = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]])
    # A tetrahedron with one face split in three: five vertices, six faces.
    larger = np.concatenate([tetrahedron[1:], [[0, 2, 4], [2, 1, 4], [1, 0, 4]]])
    smaller = np.array([0, 1, 5, 6])[tetrahedron]
    old, face = _cut_pinches(np.concatenate([larger, smaller]))
    assert sorted(old) == [0, 1, 2, 3, 4]
    assert len(face) == 6
    assert is_closed_surface(np.random.default_rng(0).normal(size=(5, 3)), face)
    old, face = _cut_pinches(larger)
    assert np.array_equal(old[face], larger)


def test_open_or_broken_surfaces_are_not_closed():
    pos = np.random.default_rng(0).normal(size=(8, 3))
    tetrahedron = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]])
    assert is_closed_surface(pos[:4], tetrahedron)
    assert not is_closed_surface(pos[:4], tetrahedron[1:])  # a hole
    assert not is_closed_surface(pos[:4], tetrahedron[:, [1, 0, 2]][[0, 1, 2, 2]])  # a face twice
    assert not is_closed_surface(pos, np.concatenate([tetrahedron, tetrahedron + 4]))  # two pieces
    flat = pos[:4].copy()
    flat[1] = flat[0]
    assert not is_closed_surface(flat, tetrahedron)  # no area


def test_the_number_of_faces_follows_the_wish():
    assert 0.8 * 1300 < Bodies(1, faces=1300)[0].face.shape[1] < 1.2 * 1300
    with pytest.raises(ValueError, match="faces"):
        Bodies(1, faces=20)
