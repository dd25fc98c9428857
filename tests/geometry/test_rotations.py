"""How rotations act on spherical harmonics."""

import math

import torch
from scipy.spatial.transform import Rotation
from torch.autograd import gradcheck

from geoattn.geometry import wigner_d


def rotations(count, seed=1):
    vectors = 2 * torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.from_numpy(Rotation.from_rotvec(vectors.numpy()).as_matrix())


def test_wigner_matrices_of_degree_one_and_two():
    rotation = rotations(20)
    first, second = wigner_d(rotation, 2)
    axes = [1, 2, 0]
    torch.testing.assert_close(first, rotation[:, axes][:, :, axes])

    def harmonics(p):  # of degree 2, as polynomials
        x, y, z = p.unbind(-1)
        root = math.sqrt(3)
        return torch.stack(
            [root * x * y, root * y * z, z * z - (x * x + y * y) / 2, root * x * z, root / 2 * (x - y) * (x + y)], -1
        )

    point = torch.randn(20, 3, dtype=torch.float64)
    turned = (rotation @ point.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(harmonics(turned), (second @ harmonics(point).unsqueeze(-1)).squeeze(-1))


def test_wigner_matrices_are_a_representation():
    a, b = rotations(10), rotations(10, seed=7)
    of_product, of_a, of_b = (wigner_d(r, 6) for r in (a @ b, a, b))
    for degree, (d, da, db) in enumerate(zip(of_product, of_a, of_b, strict=True), 1):
        assert d.shape == (10, 2 * degree + 1, 2 * degree + 1)
        torch.testing.assert_close(d, da @ db)
        torch.testing.assert_close(da @ da.mT, torch.eye(2 * degree + 1, dtype=d.dtype).expand_as(d))


def test_wigner_matrices_about_the_axis():
    angle = torch.tensor([0.0, 0.3, -2.0, math.pi], dtype=torch.float64)
    turn = torch.from_numpy(Rotation.from_euler("z", angle.unsqueeze(1).numpy()).as_matrix())
    for degree, d in enumerate(wigner_d(turn, 5), 1):
        m = torch.arange(-degree, degree + 1)
        expected = torch.diag_embed(torch.cos(m * angle.unsqueeze(1)))
        expected = expected + torch.diag_embed(torch.sin(-m * angle.unsqueeze(1))).flip(-1)
        torch.testing.assert_close(d, expected)


def test_wigner_matrix_that_swaps_two_axes():
    """Of degree 3, of y to -z and z to -y: the constant that the authors' code reads from a file."""
    swap = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, -1.0, 0.0]]], dtype=torch.float64)
    expected = torch.zeros(7, 7, dtype=torch.float64)
    expected[0, 3] = expected[2, 5] = math.sqrt(10) / 4
    expected[0, 5], expected[2, 3] = -math.sqrt(6) / 4, math.sqrt(6) / 4
    expected[4, 6] = -math.sqrt(15) / 4
    expected = expected + expected.T
    expected[1, 1], expected[4, 4], expected[6, 6] = 1.0, -0.25, 0.25
    torch.testing.assert_close(wigner_d(swap, 3)[-1][0], expected)


def test_wigner_matrices_have_gradients_everywhere():
    eye = torch.eye(3, dtype=torch.float64).unsqueeze(0).requires_grad_()
    assert gradcheck(lambda r: tuple(wigner_d(r, 3)), (eye,))
