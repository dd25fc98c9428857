"""The graphs the benchmarks run on."""

from __future__ import annotations

import torch
import trimesh
from torch import Tensor

from geoattn import Neighbors
from geoattn.geometry.body import BodyModel
from geoattn.geometry.curves import z_order


def random_points(size: int) -> Tensor:
    """Uniform in a cube, in random order, ``[N, 3]``."""
    return torch.rand(size, 3)


def z_ordered_points(size: int) -> Tensor:
    """The same, sorted along the Z-order curve."""
    pos = random_points(size)
    return pos[z_order(pos).argsort()]


def body_meshes(size: int) -> Neighbors:
    """Bodies of the package side by side, about ``size`` vertices, each vertex with its ring and itself.

    The order is a file's: the artist's vertices first, then what two rounds of subdivision added to each body
    (57,564 vertices a body; fewer rounds where that is more than ``size``).
    """
    body = BodyModel.load()
    vertices, faces = body.template.numpy(), body.face.t().numpy()
    for _ in range(2):
        finer = trimesh.remesh.subdivide(vertices, faces)
        if len(finer[0]) > size:
            break
        vertices, faces = finer
    count = max(1, round(size / len(vertices)))
    one = torch.as_tensor(faces).t().long()
    face = torch.cat([one + i * len(vertices) for i in range(count)], dim=1)
    return Neighbors.from_mesh(face, num_nodes=count * len(vertices))
