"""What a surface looks like from one of its points: numbers that no rotation, translation or scaling changes."""

from __future__ import annotations

import torch
from torch import Tensor

# A surface of area 1 is about 1 across (a sphere 0.56, a standing person 2): these reach from a few faces
# of a mesh of thousands to all of it.
RADII = tuple(2.0 ** (-i / 2) for i in range(9))
HEAT_TIMES = tuple(2.0 ** (-i) for i in range(1, 13))


def moment_descriptors(
    pos: Tensor, normal: Tensor, area: Tensor, radii: tuple[float, ...] = RADII, chunk: int = 2048
) -> Tensor:
    r"""Moments of the surface in a Gaussian ball around each of its points, at several radii.

    With :math:`w_j = a_j \exp(-|p_j - p_i|^2 / r^2)`: the mass :math:`\sum_j w_j` relative to a flat disc's; the
    offset of the center of mass, its length and its component along the normal, over ``r``; the mean normal's length
    and its component along the normal; the sorted eigenvalues of the covariance over ``r^2``.

    Args:
        pos: Points ``[N, 3]`` on a surface of area 1 (`geoattn.geometry.normalize`).
        normal: Unit normals ``[N, 3]``.
        area: Share of the area at each point ``[N]``, summing to 1.
        radii: Radii ``r``, falling by a factor of :math:`\sqrt 2`.
        chunk: Points computed at a time; memory grows with ``chunk * N``.

    Returns:
        ``[N, 8 * R]``.
    """
    x, y, z = pos.unbind(1)
    second = torch.stack([x * x, y * y, z * z, x * y, x * z, y * z], 1)
    moment = torch.cat([torch.ones_like(pos[:, :1]), pos, normal, second], 1) * area.unsqueeze(1)
    return torch.cat(
        [_moments(pos[i : i + chunk], normal[i : i + chunk], pos, moment, radii) for i in range(0, len(pos), chunk)]
    )


def _moments(center: Tensor, center_normal: Tensor, pos: Tensor, moment: Tensor, radii: tuple[float, ...]) -> Tensor:
    kernel = (-torch.cdist(center, pos).square() / radii[0] ** 2).exp()
    sums = [kernel @ moment]
    for _ in radii[1:]:
        kernel = kernel.square()  # that of the next radius, r / sqrt(2)
        sums.append(kernel @ moment)
    summed = torch.stack(sums)
    r = center.new_tensor(radii).view(-1, 1, 1)
    mass = summed[..., :1].clamp_min(1e-12)
    mean, mean_normal, second = (summed[..., 1:] / mass).split([3, 3, 6], 2)
    offset = (mean - center) / r
    xx, yy, zz, xy, xz, yz = second.unbind(2)
    covariance = torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], 2).unflatten(2, (3, 3))
    covariance = (covariance - mean.unsqueeze(3) * mean.unsqueeze(2)) / r.unsqueeze(3) ** 2
    found = [
        (mass / (torch.pi * r**2)).log(),
        offset.norm(dim=2, keepdim=True),
        (offset * center_normal).sum(2, keepdim=True),
        mean_normal.norm(dim=2, keepdim=True),
        (mean_normal * center_normal).sum(2, keepdim=True),
        torch.linalg.eigvalsh(covariance).clamp_min(0).sqrt(),
    ]
    return torch.cat(found, 2).transpose(0, 1).flatten(1)


def heat_descriptors(
    pos: Tensor,
    normal: Tensor,
    area: Tensor,
    eigenvalues: Tensor,
    eigenvectors: Tensor,
    times: tuple[float, ...] = HEAT_TIMES,
) -> Tensor:
    r"""What heat spreading from a point along the surface finds, at several times.

    The heat kernel signature (Sun, Ovsjanikov and Guibas 2009, eq. 4), as a logarithm; and with :math:`H_t` the heat
    operator, how far the position :math:`H_t p` that the heat has on average reached is from the point, as a length and
    along the normal, over :math:`\sqrt t`, and the same two of the mean normal :math:`H_t n`.

    The last eigenvalue's function has weight 0 and the others' fade towards it, so that the choice of a basis within
    an eigenspace that the cut-off splits makes no difference.

    Args:
        pos: Points ``[N, 3]`` on a surface of area 1.
        normal: Unit normals ``[N, 3]``.
        area: Share of the area at each point ``[N]``, summing to 1.
        eigenvalues: Of the Laplacian of that surface ``[K]``, ascending.
        eigenvectors: Orthonormal under ``area``, ``[N, K]``.
        times: Times ``t``.

    Returns:
        ``[N, 5 * T]``.
    """
    taper = (1 - eigenvalues / eigenvalues[-1:].clamp_min(1e-12)).clamp_min(0)
    content = eigenvectors.T @ (torch.cat([pos, normal], 1) * area.unsqueeze(1))
    found = []
    for t in times:
        decay = taper * (-eigenvalues * t).exp()
        signature = (eigenvectors.square() @ decay).clamp_min(1e-6).unsqueeze(1)
        mean, mean_normal = (eigenvectors @ (decay.unsqueeze(1) * content)).split(3, 1)
        offset = (mean - pos) / t**0.5
        found += [
            signature.log(),
            offset.norm(dim=1, keepdim=True),
            (offset * normal).sum(1, keepdim=True),
            mean_normal.norm(dim=1, keepdim=True),
            (mean_normal * normal).sum(1, keepdim=True),
        ]
    return torch.cat(found, 1)
