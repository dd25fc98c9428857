"""Descriptors where their values are known: a plane and a sphere; and what they do not depend on."""

import math

import pytest
import torch
import trimesh

from geoattn.geometry import (
    eigenbasis,
    face_areas,
    face_centroids,
    face_normals,
    heat_descriptors,
    moment_descriptors,
    normalize,
    vertex_areas,
    vertex_normals,
)


def plane(side=60):
    """The unit square in the plane z = 0, as points with equal areas."""
    line = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    pos = torch.cartesian_prod(line, line, torch.zeros(1, dtype=torch.float64))
    normal = torch.tensor([0.0, 0, 1], dtype=torch.float64).expand_as(pos)
    return pos, normal, torch.full((len(pos),), 1 / len(pos), dtype=torch.float64)


def sphere():
    ball = trimesh.creation.icosphere(4)
    pos, face = torch.tensor(ball.vertices), torch.tensor(ball.faces.T.copy())
    return normalize(pos, face), face


def test_moments_of_a_plane():
    pos, normal, area = plane()
    middle = (pos[:, :2] - 0.5).norm(dim=1).argmin()
    radii = (0.125, 0.125 / math.sqrt(2))
    found = moment_descriptors(pos, normal, area, radii)[middle].view(2, 8)
    # As much mass as a flat disc has, centered, all normals alike, variance r^2 / 2 along the plane.
    expected = torch.tensor([0, 0, 0, 1, 1, 0, math.sqrt(0.5), math.sqrt(0.5)], dtype=torch.float64)
    torch.testing.assert_close(found[0], expected, rtol=0.02, atol=0.1)  # the center is half a cell off
    torch.testing.assert_close(found[1], expected, rtol=0.02, atol=0.15)


def test_moments_of_a_sphere_look_inwards_and_are_the_same_everywhere():
    pos, face = sphere()
    found = moment_descriptors(face_centroids(pos, face), face_normals(pos, face), face_areas(pos, face))
    assert found.std(0).max() < 0.05
    along_normal = found.mean(0).view(-1, 8)[:, 2]
    assert (along_normal < 0).all()
    radius = math.sqrt(1 / (4 * math.pi))
    # A cap of a sphere of radius R: its Gaussian mean lies r^2 / (2 R) inside, up to the next order.
    assert along_normal[-1].item() == pytest.approx(-(2**-4) / (2 * radius), rel=0.05)


def test_chunks_make_no_difference():
    pos, normal, area = plane(12)
    whole, parts = (moment_descriptors(pos, normal, area, chunk=chunk) for chunk in (4096, 17))
    torch.testing.assert_close(parts, whole)


def test_heat_on_a_sphere_carries_the_mean_position_inwards():
    pos, face = sphere()
    eigenvalues, eigenvectors = eigenbasis(pos, face, 64)
    found = heat_descriptors(
        pos, vertex_normals(pos, face), vertex_areas(pos, face), eigenvalues, eigenvectors, times=(0.05,)
    )
    radius = math.sqrt(1 / (4 * math.pi))
    # Coordinates are eigenfunctions of eigenvalue 2 / R^2; the taper takes its share.
    first = 2 / radius**2
    left = math.exp(-first * 0.05) * (1 - first / eigenvalues[-1].item())
    expected = radius * (1 - left) / math.sqrt(0.05)
    torch.testing.assert_close(found[:, 1], torch.full_like(found[:, 1], expected), rtol=0.02, atol=0)
    torch.testing.assert_close(found[:, 2], torch.full_like(found[:, 1], -expected), rtol=0.02, atol=0)
    torch.testing.assert_close(found[:, 4], torch.full_like(found[:, 1], left), rtol=0.02, atol=0)


def test_the_basis_of_a_repeated_eigenvalue_does_not_matter():
    pos, face = sphere()
    eigenvalues, eigenvectors = eigenbasis(pos, face, 10)  # the third eigenspace has 5 functions, from the 5th on
    eigenvalues = torch.tensor([0.0] + [1.0] * 3 + [3.0] * 5 + [6.0]).double()
    mixed = eigenvectors.clone()
    mixed[:, 4:9] = eigenvectors[:, 4:9] @ torch.linalg.qr(torch.randn(5, 5).double())[0]
    arguments = pos, vertex_normals(pos, face), vertex_areas(pos, face), eigenvalues
    torch.testing.assert_close(heat_descriptors(*arguments, mixed), heat_descriptors(*arguments, eigenvectors))
