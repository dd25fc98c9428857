import math

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from geoattn.geometry import connected_components, geodesic_distance

METHODS = ["heat", "edge"]


def tensors(mesh):
    return torch.tensor(np.array(mesh.vertices)), torch.tensor(np.array(mesh.faces).T.copy())


def sphere(subdivisions=3):
    return tensors(trimesh.creation.icosphere(subdivisions))


def angles(pos, source):
    return torch.acos((pos[source] @ pos.t()).clamp(-1, 1))


def test_distance_on_a_sphere_is_the_angle():
    source = torch.tensor([0, 100, 7])
    errors = []
    for level in (2, 3, 4):
        pos, face = sphere(level)
        errors.append((geodesic_distance(pos, face, source) - angles(pos, source)).abs().mean())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02


def test_edge_paths_are_never_shorter_than_chords_and_obey_the_triangle_inequality():
    pos, face = sphere(2)
    distance = geodesic_distance(pos, face, torch.arange(len(pos)), "edge")
    assert (distance >= (pos[:, None] - pos).norm(dim=-1) - 1e-9).all()
    torch.testing.assert_close(distance, distance.t())
    assert (distance[:, None, :50] <= distance[:, :50, None] + distance[None, :50, :50] + 1e-9).all()


def test_flat_strip():
    # Straight along the edges, both methods know the distance.
    x = torch.linspace(0, 4, 81)
    n = len(x)
    pos = torch.cat([torch.stack([x, torch.full_like(x, y), torch.zeros_like(x)], 1) for y in (0, 0.05)])
    a = torch.arange(n - 1)
    face = torch.cat([torch.stack([a, a + 1, a + n]), torch.stack([a + 1, a + n + 1, a + n])], 1)
    torch.testing.assert_close(geodesic_distance(pos, face, torch.tensor([0]), "edge")[0, :n], x)
    torch.testing.assert_close(geodesic_distance(pos, face, torch.tensor([0]))[0, :n], x, atol=0.05, rtol=0.03)


@pytest.mark.parametrize("method", METHODS)
def test_other_components_are_infinitely_far(method):
    pos, face = sphere(2)
    size = len(pos)
    two_pos, two_face = torch.cat([pos, pos + 3, pos[:1]]), torch.cat([face, face + size], 1)
    source = torch.tensor([5, size + 9, 2 * size])
    distance = geodesic_distance(two_pos, two_face, source, method)
    alone = geodesic_distance(pos, face, torch.tensor([5, 9]), method)
    torch.testing.assert_close(distance[0, :size], alone[0])
    torch.testing.assert_close(distance[1, size : 2 * size], alone[1])
    assert torch.isinf(distance[0, size:]).all()
    assert torch.isinf(distance[1, :size]).all()
    assert torch.isinf(distance[2, :-1]).all()
    assert distance[[0, 1, 2], source].tolist() == [0, 0, 0]


@pytest.mark.parametrize("method", METHODS)
def test_motion_scale_and_order(method):
    pos, face = sphere(2)
    pos = pos * torch.tensor([1.0, 1.5, 2.0])
    source = torch.tensor([3, 50])
    distance = geodesic_distance(pos, face, source, method)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=pos.dtype, generator=torch.Generator().manual_seed(0)))
    moved = geodesic_distance(4 * pos @ turn - 3, face, source, method)
    torch.testing.assert_close(moved, 4 * distance, rtol=1e-6, atol=1e-6)
    order = torch.randperm(len(pos), generator=torch.Generator().manual_seed(1))
    mixed = geodesic_distance(pos[order], order.argsort()[face].flip(1), order.argsort()[source], method)
    torch.testing.assert_close(mixed, distance[:, order], rtol=1e-6, atol=1e-6)


def test_heat_method_passes_over_bad_faces():
    pos, face = sphere(3)
    clean = geodesic_distance(pos, face, torch.tensor([0]))[0]
    bad_pos = torch.cat([pos, pos[:1] * 5])
    bad = torch.cat([face, face[:, :3], torch.tensor([[0, 5], [0, 5], [1, len(pos)]])], 1)
    distance = geodesic_distance(bad_pos, bad, torch.tensor([0]))[0]
    torch.testing.assert_close(distance[:-1], clean, atol=0.05, rtol=0.05)
    assert math.isinf(distance[-1])


@given(st.integers(0, 2**32 - 1), st.sampled_from(METHODS))
@settings(max_examples=100, deadline=None)
def test_any_soup(seed, method):
    rng = np.random.default_rng(seed)
    size, count = rng.integers(1, 12), rng.integers(0, 14)
    pos = rng.normal(size=(size, 3)) if rng.random() < 0.5 else rng.integers(0, 2, size=(size, 3))
    pos = torch.tensor(pos, dtype=torch.float32)
    face = torch.tensor(rng.integers(0, size, size=(3, count)))
    distance = geodesic_distance(pos, face, torch.arange(size), method)
    assert distance.shape == (size, size)
    assert distance.dtype == pos.dtype
    assert not distance.isnan().any()
    assert (distance >= 0).all()
    assert (distance.diagonal() == 0).all()
    if method == "heat":
        repeated = (face == face.roll(1, 0)).any(0)
        face = face[:, ~repeated]
    label = connected_components(face, size)
    assert torch.equal(torch.isfinite(distance), label[:, None] == label)


def test_coinciding_vertices_are_at_distance_zero_by_edge():
    pos = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 0, 0], [2, 0, 0]])
    face = torch.tensor([[0, 1, 2], [1, 2, 3]]).t()
    assert geodesic_distance(pos, face, torch.tensor([0]), "edge").tolist() == [[0, 1, 1, 2]]


def test_no_source_and_errors():
    pos, face = sphere(0)
    for method in METHODS:
        assert geodesic_distance(pos, face, torch.zeros(0, dtype=torch.long), method).shape == (0, len(pos))
    with pytest.raises(ValueError, match=r"0\.\.11 .*\[12\]"):
        geodesic_distance(pos, face, torch.tensor([12]))
    with pytest.raises(ValueError, match="'heat' or 'edge', got 'exact'"):
        geodesic_distance(pos, face, torch.tensor([0]), "exact")
