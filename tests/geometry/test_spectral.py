import math

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from geoattn.geometry import (
    biharmonic_embedding,
    eigenbasis,
    eigendecomposition,
    face_areas,
    heat_kernel_signature,
    laplacian,
    vertex_areas,
)


def tensors(mesh):
    return torch.tensor(np.array(mesh.vertices)), torch.tensor(np.array(mesh.faces).T.copy())


def sphere(subdivisions=3):
    return tensors(trimesh.creation.icosphere(subdivisions))


def blob(seed=0):
    """A sphere pulled out of all symmetry, so that its eigenvalues are simple."""
    pos, face = sphere(3)
    generator = torch.Generator().manual_seed(seed)
    bend = torch.randn(3, 3, dtype=pos.dtype, generator=generator)
    return pos * torch.tensor([1.0, 1.3, 1.9], dtype=pos.dtype) + 0.2 * torch.cos(2 * pos @ bend), face


def garbage(seed):
    """A triangle soup or a point cloud with repeated, coinciding, collinear, unused vertices."""
    rng = np.random.default_rng(seed)
    size, count = rng.integers(0, 14), rng.integers(0, 16)
    pos = rng.normal(size=(size, 3))
    kind = rng.integers(6)
    if kind == 0:
        pos = rng.integers(0, 2, size=(size, 3)).astype(float)
    elif kind == 1:
        pos[:] = 1
    elif kind == 2:
        pos[:, 1:] = 0
    elif kind == 3:
        pos = 1e-12 * pos + 5
    elif kind == 4:
        pos *= 10.0 ** rng.integers(-15, 10)
    face = rng.integers(0, max(size, 1), size=(3, count if size else 0))
    dtype = torch.float32 if rng.random() < 0.5 else torch.float64
    return torch.tensor(pos, dtype=dtype), torch.tensor(face)


def check_laplacian(L, mass, size):
    assert L.shape == (size, size)
    assert mass.shape == (size,)
    assert np.isfinite(L.data).all()
    assert torch.isfinite(mass).all()
    assert (mass > 0).all()
    if size:
        dense = L.toarray()
        scale = np.abs(dense).max()
        assert np.abs(dense - dense.T).max() <= 1e-9 * scale
        assert np.abs(dense.sum(1)).max() <= 1e-6 * scale
        assert np.linalg.eigvalsh(dense).min() >= -1e-9 * scale


def check_basis(values, vectors, mass, tolerance=1e-8):
    assert (values >= 0).all()
    assert (values.diff() >= 0).all()
    gram = vectors.t() @ (mass[:, None] * vectors)
    torch.testing.assert_close(gram, torch.eye(len(values), dtype=gram.dtype), atol=tolerance, rtol=0)


@pytest.mark.parametrize("robust", [None, True, False])
def test_sphere_has_spherical_harmonics(robust):
    values, vectors = eigenbasis(*sphere(4), 25, robust)
    exact = torch.tensor([float(degree * (degree + 1)) for degree in range(5) for _ in range(2 * degree + 1)])
    torch.testing.assert_close(values.float(), exact, rtol=0.02, atol=1e-8)
    assert vectors.shape == (2562, 25)


def test_eigenvalues_converge_under_refinement():
    errors = [abs(float(eigenbasis(*sphere(level), 9)[0][8]) - 6) for level in (1, 2, 3)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]


def test_square_has_neumann_eigenvalues():
    n = 33
    x, y = torch.meshgrid(torch.linspace(0, 1, n), torch.linspace(0, 1, n), indexing="ij")
    pos = torch.stack([x, y, torch.zeros_like(x)], -1).reshape(-1, 3)
    corner = (torch.arange(n - 1)[:, None] * n + torch.arange(n - 1)).reshape(-1)
    lower, upper = [corner, corner + n, corner + n + 1], [corner, corner + n + 1, corner + 1]
    face = torch.cat([torch.stack(lower), torch.stack(upper)], 1)
    values, _ = eigenbasis(pos, face, 6)
    torch.testing.assert_close(values / math.pi**2, torch.tensor([0.0, 1, 1, 2, 4, 4]), rtol=0.01, atol=1e-6)


def test_linear_functions_have_their_dirichlet_energy():
    # For piecewise linear functions the cotangent Laplacian is exact: the energy of a coordinate on a closed
    # surface, summed over the three coordinates, is twice the area.
    pos, face = blob()
    L, mass = laplacian(pos, face)
    assert np.trace(pos.numpy().T @ (L @ pos.numpy())) == pytest.approx(2 * float(face_areas(pos, face).sum()))
    torch.testing.assert_close(mass, vertex_areas(pos, face))


def test_eigenpairs_satisfy_the_equation_in_both_solvers():
    pos, face = blob()
    L, mass = laplacian(pos, face)
    few, many = eigendecomposition(L, mass, 40), eigendecomposition(L, mass, len(pos))
    for values, vectors in (few, many):
        check_basis(values, vectors, mass)
        residual = torch.from_numpy(L @ vectors.numpy()) - mass[:, None] * vectors * values
        assert residual.abs().max() < 1e-8 * float(L.diagonal().max())
    torch.testing.assert_close(few[0], many[0][:40])
    torch.testing.assert_close(few[1], many[1][:, :40], atol=1e-6, rtol=1e-6)
    assert many[1].shape == (len(pos), len(pos))


def test_same_input_gives_the_same_bits():
    pos, face = blob()
    for k in (20, 300):
        first, second = eigenbasis(pos, face, k), eigenbasis(pos, face, k)
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])


def test_more_columns_than_vertices():
    pos, face = sphere(0)
    values, vectors = eigenbasis(pos.float(), face, 50)
    assert values.shape == (12,)
    assert vectors.shape == (12, 12)
    assert values.dtype == vectors.dtype == torch.float32
    with pytest.raises(ValueError, match="k must be at least 1"):
        eigenbasis(pos, face, 0)


def test_motion_scale_and_order():
    pos, face = blob()
    values, vectors = eigenbasis(pos, face, 12)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=pos.dtype, generator=torch.Generator().manual_seed(0)))
    moved_values, moved = eigenbasis(3 * pos @ turn + 5, face.flip(0), 12)
    torch.testing.assert_close(moved_values * 9, values, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(moved * 3, vectors, rtol=1e-6, atol=1e-6)
    order = torch.randperm(len(pos), generator=torch.Generator().manual_seed(1))
    mixed_values, mixed = eigenbasis(pos[order], order.argsort()[face].flip(1), 12)
    torch.testing.assert_close(mixed_values, values, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(mixed, vectors[order], rtol=1e-6, atol=1e-6)


def test_components_and_unused_vertices():
    # Three equal spheres, one of them larger, and a vertex in no face.
    pos, face = sphere(1)
    size = len(pos)
    all_pos = torch.cat([pos, pos + 5, 2 * pos - 5, torch.full((1, 3), 9.0)])
    all_face = torch.cat([face, face + size, face + 2 * size], 1)
    L, mass = laplacian(all_pos, all_face)
    values, vectors = eigendecomposition(L, mass, 30)
    check_basis(values, vectors, mass)
    assert (values == 0).tolist() == [True] * 3 + [False] * 27
    assert (vectors[-1] == 0).all()
    assert (vectors[2 * size : -1, 0] > 0).all()
    assert (vectors[: 2 * size, 0] == 0).all()
    single = eigenbasis(pos, face, 12)[0][1:]
    expected = torch.cat([single, single, single / 4]).sort().values[:12]
    torch.testing.assert_close(values[3:15], expected)
    assert eigenbasis(all_pos, all_face, 2)[0].tolist() == [0, 0]
    assert eigenbasis(all_pos, all_face, 1000)[1].shape == (3 * size + 1, 3 * size)


def test_no_surface():
    for face in (torch.zeros(3, 0, dtype=torch.long), torch.tensor([[0, 1], [0, 2], [1, 2]])):
        L, mass = laplacian(torch.rand(3, 3), face)
        assert L.nnz == 0
        assert mass.tolist() == [1, 1, 1]
        assert eigenbasis(torch.rand(3, 3), face, 4)[1].shape == (3, 0)


def test_bad_faces_change_little():
    # A repeated face (non-manifold), a face without area and an unused vertex beside a good mesh.
    pos, face = blob()
    clean, _ = eigenbasis(pos, face, 10)
    bad_pos = torch.cat([pos, pos[:1] + 9])
    worse = torch.cat([face, face[:, :1], torch.tensor([[0], [0], [1]])], 1)
    values, vectors = eigenbasis(bad_pos, worse, 10)
    torch.testing.assert_close(values, clean, rtol=0.02, atol=1e-8)
    assert (vectors[-1] == 0).all()


def test_sliver_triangles_do_not_spoil_the_small_eigenvalues():
    # Split a side at a point next to one of its ends: two faces of height 1e-9.
    pos, face = blob()
    a, b, c = face[:, 0].tolist()
    new = pos[a] + 1e-9 * (pos[b] - pos[a])
    other = next(i for i in range(1, face.size(1)) if {a, b} <= set(face[:, i].tolist()))
    d = next(v for v in face[:, other].tolist() if v not in (a, b))
    n = len(pos)
    split = torch.tensor([[a, n, c], [n, b, c], [n, a, d], [b, n, d]]).t()
    keep = [i for i in range(1, face.size(1)) if i != other]
    split_pos, split_face = torch.cat([pos, new[None]]), torch.cat([face[:, keep], split], 1)
    for k in (10, len(split_pos)):
        L, mass = laplacian(split_pos, split_face)
        values, vectors = eigendecomposition(L, mass, k)
        check_basis(values, vectors, mass)
        torch.testing.assert_close(values[:10], eigenbasis(pos, face, 10)[0], rtol=0.01, atol=1e-8)


def test_point_cloud_of_a_sphere():
    pos, _ = sphere(3)
    values, _ = eigenbasis(pos, None, 9)
    torch.testing.assert_close(values, torch.tensor([0.0] + [2] * 3 + [6] * 5).double(), rtol=0.05, atol=1e-8)
    # Repeated points are one point: the same eigenvalues, and the same entries in each copy.
    twice, vectors = eigenbasis(torch.cat([pos, pos[::2], pos[:1].expand(40, 3)]), None, 9)
    torch.testing.assert_close(twice, values, rtol=1e-3, atol=1e-8)
    torch.testing.assert_close(vectors[len(pos) : len(pos) + 321], vectors[: len(pos) : 2], rtol=0, atol=1e-3)


def test_points_on_a_line_have_a_basis():
    pos = torch.zeros(50, 3, dtype=torch.float64)
    pos[:, 0] = torch.linspace(0, 1, 50)
    L, mass = laplacian(pos, None)
    values, vectors = eigendecomposition(L, mass, 5)
    check_basis(values, vectors, mass)


@given(st.integers(0, 2**32 - 1), st.sampled_from([None, True, False]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_garbage_gives_a_finite_basis(seed, robust, cloud):
    pos, face = garbage(seed)
    L, mass = laplacian(pos, None if cloud else face, robust)
    check_laplacian(L, mass, len(pos))
    values, vectors = eigendecomposition(L, mass, 6)
    assert vectors.shape == (len(pos), len(values))
    check_basis(values, vectors, mass, tolerance=1e-6)
    assert torch.isfinite(heat_kernel_signature(values, vectors)).all()
    assert torch.isfinite(biharmonic_embedding(values, vectors, 4)).all()


def test_heat_kernel_signature_of_a_sphere_is_constant():
    # sum_l (2 l + 1) / (4 pi) exp(-l (l + 1) t), for times past the resolution of the basis.
    values, vectors = eigenbasis(*sphere(4), 100)
    times = torch.tensor([0.2, 0.5, 1.0, 5.0])
    signature = heat_kernel_signature(values, vectors, times)
    degree = torch.arange(30)
    exact = ((2 * degree + 1) / (4 * math.pi) * torch.exp(-degree * (degree + 1) * times[:, None])).sum(1)
    torch.testing.assert_close(signature, exact.double().expand(len(signature), 4), rtol=0.02, atol=0)


def test_default_times_follow_the_size_of_the_shape():
    pos, face = blob()
    here = heat_kernel_signature(*eigenbasis(pos, face, 30), count=7)
    there = heat_kernel_signature(*eigenbasis(10 * pos, face, 30), count=7)
    assert here.shape == (len(pos), 7)
    torch.testing.assert_close(100 * there, here, rtol=1e-5, atol=1e-6)
    values, vectors = eigenbasis(pos, face, 30)
    ends = 4 * math.log(10) / values[[-1, 1]]
    torch.testing.assert_close(here[:, [0, -1]], heat_kernel_signature(values, vectors, ends), rtol=1e-5, atol=1e-6)


def test_biharmonic_embedding_gives_the_biharmonic_distance():
    # The distance of Lipman et al.: G(x, x) + G(y, y) - 2 G(x, y), G the pseudo-inverse of the bi-Laplacian.
    pos, face = sphere(1)
    L, mass = laplacian(pos, face)
    root = mass.sqrt().numpy()
    inverse = np.linalg.pinv(L.toarray() / root[:, None] / root, rcond=1e-10, hermitian=True)
    green = inverse @ inverse / root[:, None] / root
    exact = np.diag(green)[:, None] + np.diag(green) - 2 * green
    embedding = biharmonic_embedding(*eigendecomposition(L, mass, len(pos)), len(pos))
    torch.testing.assert_close(torch.cdist(embedding, embedding) ** 2, torch.tensor(exact), atol=1e-8, rtol=1e-6)
    assert (embedding[:, -1] == 0).all()
    assert biharmonic_embedding(*eigenbasis(pos, face, 10), 4).shape == (len(pos), 4)
