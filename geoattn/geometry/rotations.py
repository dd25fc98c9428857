"""Rotations of what is not a vector."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import scipy
import torch
from torch import Tensor


def wigner_d(rotation: Tensor, max_degree: int) -> list[Tensor]:
    r"""Matrices by which a rotation acts on real spherical harmonics: :math:`Y_l(R p) = D_l(R) \, Y_l(p)`.

    The harmonics of degree :math:`l` are in the order :math:`m = -l, \dots, l`, without the Condon-Shortley phase;
    those of degree 1 are :math:`(y, z, x)`, so that :math:`D_1` is the rotation with its axes in that order. The
    product of harmonics of degrees 1 and :math:`l - 1` contains those of degree :math:`l` once, whence

    .. math::
        D_l = C_l \, (D_1 \otimes D_{l - 1}) \, C_l^\top

    with constant :math:`C_l` of orthonormal rows. The entries are polynomials of those of the rotation: there is no
    angle, and no rotation where the gradient is not defined.

    Args:
        rotation: Orthogonal matrices ``[N, 3, 3]``.
        max_degree: Largest degree, at least 1.

    Returns:
        The matrices of degree 1 to ``max_degree``, ``[N, 2 * l + 1, 2 * l + 1]``.
    """
    axes = [1, 2, 0]
    first = rotation[:, axes][:, :, axes]
    matrices = [first]
    for degree in range(2, max_degree + 1):
        c = torch.from_numpy(_coupling(degree)).to(first)
        half = torch.einsum("mab,nac->nmbc", c, first)
        half = torch.einsum("nmbc,nbd->nmcd", half, matrices[-1])
        matrices.append(torch.einsum("nmcd,kcd->nmk", half, c))
    return matrices


@lru_cache
def _coupling(degree: int) -> np.ndarray:
    """``C_l``, ``[2 * l + 1, 3, 2 * l - 1]``: integrals of three harmonics, each row scaled to length 1.

    They are sums over Gauss-Legendre points in z and equal steps around it, exact for what is integrated here.
    """
    z, weight = np.polynomial.legendre.leggauss(degree + 1)
    around = np.arange(2 * degree + 1) * (2 * np.pi / (2 * degree + 1))
    z, around = (grid.ravel() for grid in np.meshgrid(z, around, indexing="ij"))
    weight = np.repeat(weight, 2 * degree + 1)
    product = np.einsum(
        "p,pm,pa,pb->mab", weight, *(_harmonics(of, z, around) for of in (degree, 1, degree - 1)), optimize=True
    )
    return product / np.sqrt(np.square(product).sum((1, 2), keepdims=True))


def _harmonics(degree: int, z: np.ndarray, around: np.ndarray) -> np.ndarray:
    """Real spherical harmonics at heights ``z`` and angles ``around`` it, ``[P, 2 * degree + 1]``, up to a factor."""
    columns = []
    for m in range(-degree, degree + 1):
        order = abs(m)
        size = math.sqrt((2 if m else 1) * math.factorial(degree - order) / math.factorial(degree + order))
        turn = np.cos(m * around) if m >= 0 else np.sin(order * around)
        columns.append(size * (-1) ** order * scipy.special.lpmv(order, degree, z) * turn)
    return np.stack(columns, 1)
