import math

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from geoattn.geometry import (
    boundary_edges,
    check_mesh,
    connected_components,
    dihedral_angles,
    edge_adjacency,
    edge_features,
    edges,
    face_adjacency,
    face_areas,
    face_centroids,
    face_normals,
    face_vertex_adjacency,
    nonmanifold_edges,
    normalize,
    sample_surface,
    simplify,
    vertex_adjacency,
    vertex_areas,
    vertex_normals,
)


def tensors(mesh):
    return torch.tensor(np.array(mesh.vertices)), torch.tensor(np.array(mesh.faces).T.copy())


def sphere(subdivisions=3):
    return tensors(trimesh.creation.icosphere(subdivisions))


def cube():
    return tensors(trimesh.creation.box())


def torus():
    return tensors(trimesh.creation.torus(2.0, 0.7, major_sections=24, minor_sections=12))


def rotation(seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    return q * torch.det(q)


@st.composite
def soups(draw):
    """Random triangle soups: repeated vertices, repeated faces, coinciding and unused vertices, no faces."""
    size = draw(st.integers(1, 10))
    count = draw(st.integers(0, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["random", "grid", "line", "point", "tiny", "large"]))
    pos = rng.normal(size=(size, 3))
    if kind == "grid":
        pos = rng.integers(0, 2, size=(size, 3)).astype(float)
    elif kind == "line":
        pos[:, 1:] = 0
    elif kind == "point":
        pos[:] = pos[0]
    elif kind == "tiny":
        pos = 5 + 1e-7 * pos
    elif kind == "large":
        pos *= 1e6
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    return torch.tensor(pos, dtype=dtype), torch.tensor(rng.integers(0, size, size=(3, count)))


def test_areas_and_normals_of_a_sphere():
    pos, face = sphere(4)
    assert face_areas(pos, face).sum() == pytest.approx(4 * math.pi, rel=5e-3)
    assert vertex_areas(pos, face).sum() == pytest.approx(float(face_areas(pos, face).sum()))
    assert (vertex_normals(pos, face) * pos).sum(1).min() > 0.999
    assert (face_normals(pos, face) * face_centroids(pos, face)).sum(1).min() > 0.99


def test_gauss_bonnet():
    # The angle defects of a closed mesh sum to 2 pi times the Euler characteristic: 2 - 2 genus.
    for (pos, face), euler in ((sphere(2), 2), (cube(), 2), (torus(), 0)):
        a, b, c = (pos[face[i]] for i in range(3))
        total = 0.0
        for p, q, r in ((a, b, c), (b, c, a), (c, a, b)):
            u, v = q - p, r - p
            total += torch.acos((u * v).sum(1) / (u.norm(dim=1) * v.norm(dim=1))).sum()
        assert 2 * math.pi * len(pos) - total == pytest.approx(2 * math.pi * euler, abs=1e-6)
        topology = edges(face)
        assert len(pos) - topology.edge.size(1) + face.size(1) == euler
        assert (topology.edge_count == 2).all()


def meshcnn_edges(face):
    """MeshCNN's loop, as its build_gemm numbers the edges."""
    number = {}
    for triangle in face.t().tolist():
        for i in range(3):
            number.setdefault(tuple(sorted((triangle[i], triangle[(i + 1) % 3]))), len(number))
    return number


@given(soups())
@settings(max_examples=60, deadline=None)
def test_edges_are_numbered_by_first_appearance(soup):
    _, face = soup
    expected = meshcnn_edges(face)
    edge, face_edge, count = edges(face)
    assert [tuple(pair) for pair in edge.t().tolist()] == list(expected)
    assert face_edge.shape == face.shape
    for triangle, sides in zip(face.t().tolist(), face_edge.t().tolist(), strict=True):
        assert sides == [expected[tuple(sorted((triangle[i], triangle[(i + 1) % 3])))] for i in range(3)]
    assert count.tolist() == torch.bincount(face_edge.reshape(-1), minlength=len(expected)).tolist()


def test_boundary_and_nonmanifold_edges():
    pages = torch.tensor([[0, 1, 2], [1, 0, 3], [0, 1, 4]]).t()
    assert nonmanifold_edges(pages).tolist() == [[0], [1]]
    assert boundary_edges(pages).size(1) == 6
    _, face = sphere(1)
    assert boundary_edges(face).size(1) == 0
    assert boundary_edges(face[:, 1:]).size(1) == 3
    assert boundary_edges(torch.tensor([[0], [0], [0]])).size(1) == 0


def test_dihedral_angles_of_a_cube():
    pos, face = cube()
    for turned, sign in ((face, 1), (face.flip(0), -1)):
        angle = dihedral_angles(pos, turned)
        bent = angle.abs() > 1e-6
        assert bent.sum() == 12
        torch.testing.assert_close(angle[bent], torch.full((12,), sign * math.pi / 2, dtype=pos.dtype))


def test_dihedral_angle_of_a_hinge():
    face = torch.tensor([[0, 1, 2], [1, 0, 3]]).t()
    for fold in torch.linspace(-3, 3, 13, dtype=torch.float64).tolist():
        wing = [0.5, -math.cos(fold), -math.sin(fold)]
        pos = torch.tensor([[0, 0, 0], [1, 0, 0], [0.5, 1, 0], wing], dtype=torch.float64)
        assert dihedral_angles(pos, face)[0] == pytest.approx(fold, abs=1e-9)
        # The second face wound the other way is the same surface.
        mixed = torch.tensor([[0, 1, 2], [0, 1, 3]]).t()
        assert dihedral_angles(pos, mixed)[0] == pytest.approx(fold, abs=1e-9)
    assert (dihedral_angles(pos, face)[1:] == 0).all()


def test_edge_features_of_a_right_triangle_pair():
    pos = torch.tensor([[0.0, 0, 0], [2, 0, 0], [0, 1, 0], [1, -4, 0]])
    features = edge_features(pos, torch.tensor([[0, 1, 2], [1, 0, 3]]).t())
    angles = sorted([math.atan2(2, 1), 2 * math.atan2(1, 4)])
    torch.testing.assert_close(features.opposite_angles[0], torch.tensor(angles))
    torch.testing.assert_close(features.height_ratios[0], torch.tensor([0.5, 2.0]))
    assert features.length[0] == 2
    assert features.dihedral[0] == 0
    torch.testing.assert_close(features.opposite_angles[1], torch.full((2,), math.pi / 2))


def test_edge_features_do_not_see_motion_or_scale():
    pos, face = torus()
    pos = pos + 0.05 * torch.randn(pos.shape, generator=torch.Generator().manual_seed(0), dtype=pos.dtype)
    here, there = edge_features(pos, face), edge_features(3 * pos @ rotation().t() + 7, face)
    for name in ("dihedral", "opposite_angles", "height_ratios"):
        torch.testing.assert_close(getattr(here, name), getattr(there, name), atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(3 * here.length, there.length)


def test_permuting_vertices_and_faces_permutes_results():
    pos, face = torus()
    generator = torch.Generator().manual_seed(1)
    vertex_order = torch.randperm(len(pos), generator=generator)
    face_order = torch.randperm(face.size(1), generator=generator)
    new_pos, new_face = pos[vertex_order], vertex_order.argsort()[face][:, face_order]
    torch.testing.assert_close(face_normals(new_pos, new_face), face_normals(pos, face)[face_order])
    torch.testing.assert_close(vertex_normals(new_pos, new_face), vertex_normals(pos, face)[vertex_order])
    torch.testing.assert_close(vertex_areas(new_pos, new_face), vertex_areas(pos, face)[vertex_order])
    back = face_order.argsort()
    pairs = {tuple(p) for p in back[face_adjacency(face)].t().tolist()}
    assert {tuple(p) for p in face_adjacency(new_face).t().tolist()} == pairs


def brute_force(groups):
    """Pairs of different items whose sets meet, sorted."""
    n = range(len(groups))
    return [[i, j] for i in n for j in n if i != j and groups[i] & groups[j]]


@given(soups())
@settings(max_examples=60, deadline=None)
def test_adjacency_against_sets(soup):
    pos, face = soup
    edge, face_edge, _ = edges(face)
    assert face_adjacency(face).t().tolist() == brute_force([set(f) for f in face_edge.t().tolist()])
    assert face_vertex_adjacency(face).t().tolist() == brute_force([set(f) for f in face.t().tolist()])
    holders = [set((face_edge == i).any(0).nonzero().flatten().tolist()) for i in range(edge.size(1))]
    assert edge_adjacency(face).t().tolist() == brute_force(holders)
    owners = [set((face == i).any(0).nonzero().flatten().tolist()) for i in range(len(pos))]
    assert vertex_adjacency(face, len(pos)).t().tolist() == brute_force(owners)


def test_components_of_two_spheres_and_a_lost_vertex():
    pos, face = sphere(1)
    both = torch.cat([face + len(pos) + 1, face], dim=1)
    label = connected_components(both, 2 * len(pos) + 1)
    assert label.tolist() == [0] * len(pos) + [1] + [2] * len(pos)
    assert connected_components(face[:, :0], 3).tolist() == [0, 1, 2]


def test_samples_lie_on_their_face_and_are_uniform():
    pos = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [3, 0, 1], [0, 1, 1]], dtype=torch.float64)
    face = torch.tensor([[0, 1, 2], [3, 4, 5], [0, 0, 1]]).t()
    points, chosen, barycentric = sample_surface(pos, face, 20000, torch.Generator().manual_seed(0))
    assert (barycentric >= 0).all()
    torch.testing.assert_close(barycentric.sum(1), torch.ones(20000, dtype=torch.float64))
    torch.testing.assert_close(points, torch.einsum("sc,csd->sd", barycentric, pos[face[:, chosen]]))
    counts = torch.bincount(chosen, minlength=3) / 20000
    torch.testing.assert_close(counts, torch.tensor([0.25, 0.75, 0]), atol=0.02, rtol=0)
    torch.testing.assert_close(barycentric.mean(0), torch.full((3,), 1 / 3, dtype=torch.float64), atol=0.01, rtol=0)
    again = sample_surface(pos, face, 20000, torch.Generator().manual_seed(0))
    assert torch.equal(points, again[0])
    with pytest.raises(ValueError, match="no faces"):
        sample_surface(pos, face[:, :0], 1)


def test_simplified_sphere_is_a_sphere():
    pos, face = sphere(4)
    before = pos.clone()
    few_pos, few_face = simplify(pos, face, 600)
    assert torch.equal(pos, before)
    assert few_face.size(1) == pytest.approx(600, rel=0.05)
    assert few_pos.dtype == pos.dtype
    assert len(few_pos) - edges(few_face).edge.size(1) + few_face.size(1) == 2
    assert face_areas(few_pos, few_face).sum() == pytest.approx(4 * math.pi, rel=0.03)
    assert (few_pos.norm(dim=1) - 1).abs().max() < 0.05
    assert (few_pos, few_face) == simplify(few_pos, few_face, few_face.size(1))


def test_normalize():
    pos, face = torus()
    moved = normalize(5 * pos @ rotation().t() + 9, face)
    assert face_areas(moved, face).sum() == pytest.approx(1)
    area = face_areas(moved, face)[:, None]
    torch.testing.assert_close((area * face_centroids(moved, face)).sum(0), torch.zeros(3, dtype=pos.dtype))
    torch.testing.assert_close(normalize(moved, face), moved)
    line = normalize(torch.tensor([[0.0, 0, 0], [4, 0, 0]]), face[:, :0])
    assert line.tolist() == [[-1, 0, 0], [1, 0, 0]]


@given(soups())
@settings(max_examples=100, deadline=None)
def test_any_soup_gives_finite_results_and_gradients(soup):
    pos, face = soup
    pos.requires_grad_()
    edge_count = edges(face).edge.size(1)
    features = edge_features(pos, face)
    results = {
        face_normals(pos, face): (face.size(1), 3),
        face_areas(pos, face): (face.size(1),),
        face_centroids(pos, face): (face.size(1), 3),
        vertex_normals(pos, face): (len(pos), 3),
        vertex_areas(pos, face): (len(pos),),
        features.dihedral: (edge_count,),
        features.length: (edge_count,),
        features.opposite_angles: (edge_count, 2),
        features.height_ratios: (edge_count, 2),
        normalize(pos, face): (len(pos), 3),
    }
    for result, shape in results.items():
        assert result.shape == shape
        assert result.dtype == pos.dtype
        assert torch.isfinite(result).all()
        (gradient,) = torch.autograd.grad(result.sum(), pos, retain_graph=True, allow_unused=True)
        assert gradient is None or torch.isfinite(gradient).all()
    for normal in (face_normals(pos, face), vertex_normals(pos, face)):
        norm = normal.norm(dim=1)
        assert ((norm == 0) | ((norm - 1).abs() < 1e-5)).all()
    new_pos, new_face = simplify(pos, face, 4)
    check_mesh(new_pos, new_face)
    assert new_face.size(1) <= face.size(1)
    if new_face is not face:
        assert new_face.unique().numel() == len(new_pos)
        assert new_face.size(1) > 0
        assert (new_face != new_face.roll(1, 0)).all()
    if face.size(1):
        assert torch.isfinite(sample_surface(pos, face, 5)[0]).all()


def test_faces_may_be_int32():
    pos, face = torch.rand(100_000, 3), torch.randint(0, 100_000, (3, 50))  # products of indices exceed int32
    for function in (edges, face_adjacency, edge_adjacency, face_vertex_adjacency, boundary_edges):
        expected, found = function(face), function(face.int())
        for a, b in zip(expected, found, strict=True):
            assert torch.equal(a, b)
    for function in (face_normals, vertex_normals, vertex_areas, dihedral_angles, normalize):
        assert torch.equal(function(pos, face), function(pos, face.int()))


def test_gradients():
    pos, face = cube()
    pos = (
        pos + 0.1 * torch.rand(pos.shape, generator=torch.Generator().manual_seed(0), dtype=pos.dtype)
    ).requires_grad_()
    for function in (face_normals, face_areas, vertex_normals, vertex_areas, dihedral_angles, normalize):
        assert torch.autograd.gradcheck(lambda p, function=function: function(p, face), pos)


@pytest.mark.parametrize(
    ("pos", "face", "message"),
    [
        (torch.zeros(4, 2), torch.zeros(3, 0, dtype=torch.long), r"pos .*\[4, 2\]"),
        (torch.tensor([[0.0, 0, math.nan]]), torch.zeros(3, 0, dtype=torch.long), r"pos\[0\] is .*nan"),
        (torch.zeros(4, 3), torch.zeros(5, 3, dtype=torch.long), r"pass face.t\(\)"),
        (torch.zeros(4, 3), torch.tensor([[0], [1], [4]]), "face 0 refers to vertex 4; pos has 4 vertices"),
        (torch.zeros(4, 3), torch.tensor([[0, 0], [1, -1], [2, 9]]), "face 1 refers to vertex -1; pos has 4 vertices"),
        (torch.zeros(4, 3), torch.zeros(3, 1, dtype=torch.uint8), r"uint8 \[3, 1\] \(pass face.long\(\)\)"),
    ],
)
def test_errors_say_what_is_wrong(pos, face, message):
    with pytest.raises(ValueError, match=message):
        check_mesh(pos, face)
