"""Point clouds: normals, and which way is up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from geoattn._arguments import check_tensors, checked_integer
from geoattn.geometry.search import checked_pos, knn

_CHUNK = 1 << 17  # points whose neighbors are looked at together


def point_normals(pos: Tensor, k: int = 16, viewpoint: Tensor | Sequence[float] | None = None) -> Tensor:
    """Unit normals of a cloud: the direction in which the nearest points vary least (Hoppe et al. 1992).

    Args:
        pos: Points ``[N, 3]``.
        k: How many nearest points, the point itself included.
        viewpoint: Where the sensor was, ``[3]`` or for each point ``[N, 3]``: normals then point towards it. Default:
            they point up (z > 0), or whichever way where they are level.

    Returns:
        ``[N, 3]``, float32 or float64 as ``pos``, on its device.

    Raises:
        TypeError: If points are no tensors, or ``k`` is no integer.
        ValueError: On bad shapes, non-finite coordinates or ``k < 3``.
    """
    k = checked_integer("k", k, least=3)
    key = checked_pos("pos", pos)
    if key.size(1) != 3:
        raise ValueError(f"expected pos [N, 3], got {tuple(pos.shape)}")
    towards = None if viewpoint is None else torch.as_tensor(viewpoint).to(key)
    if towards is not None and towards.shape not in ((3,), key.shape):
        raise ValueError(f"expected viewpoint [3] or {list(key.shape)}, got {list(towards.shape)}")
    normal = torch.empty_like(key)
    if not len(key):
        return normal
    _, col = knn(key, min(k, len(key)))
    near = col.view(len(key), -1)
    for start in range(0, len(key), _CHUNK):
        around = key[near[start : start + _CHUNK]].double()
        around = around - around.mean(1, keepdim=True)
        normal[start : start + _CHUNK] = torch.linalg.eigh(around.mT @ around)[1][..., 0].to(normal.dtype)
    side = normal[:, 2] if towards is None else ((towards - key) * normal).sum(1)
    return torch.where((side < 0)[:, None], -normal, normal)


def upright(normal: Tensor, guess: Sequence[float] = (0.0, -1.0, 0.0)) -> Tensor:
    """The rotation that turns a cloud of a depth camera upright, found from its normals.

    Rooms have level surfaces and plumb ones. From a first guess on, the direction is looked for to which the normals
    near it are most parallel and those across it most orthogonal: five times with all normals, five times with those
    within 15 degrees of either (Gupta, Arbelaez and Malik, CVPR 2013).

    Args:
        normal: Unit normals ``[N, 3]``; their signs do not matter.
        guess: Up, to less than 45 degrees. Default: that of a camera's own frame (x right, y down, z forward) if it is
            held level.

    Returns:
        ``[3, 3]``: ``pos @ upright(normal).T`` has z up.

    Raises:
        TypeError: If the normals are no tensor.
        ValueError: If they are not ``[N, 3]`` with N at least 1, or the guess is zero.
    """
    check_tensors(normal=normal)
    if normal.dim() != 2 or normal.size(1) != 3 or not len(normal):
        raise ValueError(f"expected normals [N, 3] with N at least 1, got {list(normal.shape)}")
    normal = normal.double()
    first = torch.as_tensor(guess, dtype=torch.float64, device=normal.device)
    if first.shape != (3,) or not float(first.norm()) > 0:
        raise ValueError(f"guess must be a direction [3], got {guess}")
    up = first / first.norm()
    for degrees in [45.0] * 5 + [15.0] * 5:
        limit = torch.sin(torch.deg2rad(torch.tensor(degrees)))
        cosine = (normal @ up).abs()
        level, plumb = normal[cosine > (1 - limit**2).sqrt()], normal[cosine < limit]
        values = torch.linalg.eigh(plumb.mT @ plumb - level.mT @ level)[1][:, 0]
        up = values if float(values @ first) >= 0 else -values
    # The camera's right, as far as it is level, becomes x.
    axis = torch.eye(3, dtype=torch.float64, device=normal.device)[int(up.abs().argmin())]
    x = axis - (axis @ up) * up
    x = x / x.norm()
    return torch.stack([x, torch.linalg.cross(up, x), up]).float()
