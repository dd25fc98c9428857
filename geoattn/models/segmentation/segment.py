"""Segment a mesh or a cloud of any size with a trained network."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch_geometric.data import Data

from geoattn._arguments import check_data
from geoattn.data.transforms import Element, element_corners
from geoattn.geometry import face_areas, face_normals, simplify, vertex_normals
from geoattn.models.network import Network
from geoattn.models.points.inputs import PointNetwork
from geoattn.models.points.point_transformer_v3 import PointTransformerV3
from geoattn.models.points.segment_cloud import point_probabilities
from geoattn.models.segmentation.surface_transformer import SurfaceTransformer
from geoattn.train.evaluate import evaluating
from geoattn.train.fabric import Precision

HUMAN = Path(__file__).parent / "assets" / "human"
"""The checkpoint that comes with the package: eight parts of human bodies, trained on `geoattn.data.Bodies` only."""

SCENE = Path(__file__).parent / "assets" / "scene"
"""Likewise for clouds, in metres and z up: what the points of rooms are, trained on `geoattn.data.Rooms` only."""


class Segmentation(NamedTuple):
    """The parts of a mesh or a cloud.

    Attributes:
        label: Class of each labelled thing ``[M]``: each face, vertex (or point) or edge, as the network's config says.
        score: Its probability ``[M]``.
        probability: Of every class ``[M, K]``.
    """

    label: Tensor
    score: Tensor
    probability: Tensor


@torch.no_grad()
def segment(
    data: Data,
    model: Network | None = None,
    *,
    precision: Precision = "float32",
    votes: int = 1,
    fragments: int | None = 1,
    progress: bool = False,
) -> Segmentation:
    """Label the parts of a mesh, or the points of a cloud.

    Of a cloud, or of the vertices of a mesh if the network is one of clouds, it is done in overlapping tiles, from
    several views and in bounded memory: see `geoattn.models.points.point_probabilities`.

    Of a mesh, vertices at one place are treated as one, so that a mesh whose faces share no vertices (an STL) is a
    surface too. A mesh with more than 1.2 times the faces the network was trained on is simplified to that number
    first; its own faces, vertices or edges then get the average of the nearest four that look the same way. The time of
    the network so does not grow with the mesh. It runs on the device of the network; the results are on the CPU.

    Args:
        data: A mesh with ``pos`` ``[V, 3]`` and ``face`` ``[3, F]``, or a cloud with ``pos`` ``[N, 3]`` and what there
            is of ``color``, ``normal`` and ``intensity``. It is not changed.
        model: The network; default: the one that comes with the package, of meshes for human bodies, of clouds for
            rooms, in metres and z up.
        precision: ``bfloat16`` computes products and attention in bfloat16.
        votes: Of clouds: from how many views.
        fragments: Of clouds: how many points of each voxel are read.
        progress: Whether to show a progress bar, of a cloud.

    Raises:
        TypeError: If it is given something else than a `Data`, such as the path of a file, or the network is neither a
            `SurfaceTransformer` nor a `PointNetwork`.
        ValueError: If there are no faces, or no points, or coordinates are not finite.
    """
    check_data(data)
    if model is None and data.face is None:
        model = PointTransformerV3.from_pretrained(SCENE)
    elif model is None:
        model = SurfaceTransformer.from_pretrained(HUMAN)
    if isinstance(model, PointNetwork):
        probability = point_probabilities(
            data, model, votes=votes, fragments=fragments, precision=precision, progress=progress
        )
        score, label = probability.max(-1)
        return Segmentation(label, score, probability)
    if not isinstance(model, SurfaceTransformer):
        raise TypeError(
            f"expected a SurfaceTransformer or a PointNetwork, got a {type(model).__name__}, which does not label parts"
        )
    config = model.config
    if data.face is None or data.face.numel() == 0:
        raise ValueError("expected a mesh with faces; for a point cloud give a network of clouds as model")
    pos, face = data.pos.double().cpu(), data.face.cpu()
    small, of_vertex = pos.unique(dim=0, return_inverse=True)
    small_face = of_vertex[face]
    simplified = face.size(1) > 1.2 * config.faces
    if simplified:
        small, small_face = simplify(small, small_face, config.faces)

    device = next(model.parameters()).device
    elements = model.input_transform()(Data(pos=small, face=small_face)).to(device)
    with evaluating(model), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        probability = model(elements).float().softmax(-1).cpu()

    if simplified or config.labelled != "face":
        size = max(float((face_areas(small, small_face).sum() / small_face.size(1)).sqrt()), 1e-12)
        tree = cKDTree(_places(small, small_face, config.labelled, size))
        nearest = range(1, min(4, probability.size(0)) + 1)
        distance, index = map(torch.from_numpy, tree.query(_places(pos, face, config.labelled, size), nearest))
        weight = (1 / (distance + 1e-3 * size)).float()
        weight = (weight / weight.sum(1, keepdim=True)).unsqueeze(2)
        probability = (weight * probability[index]).sum(1)
    score, label = probability.max(-1)
    return Segmentation(label, score, probability)


def _places(pos: Tensor, face: Tensor, labelled: Element, size: float) -> Tensor:
    """Where each thing is and where it looks, ``[M, 6]``: opposite normals are two faces' size apart."""
    normal = face_normals(pos, face) if labelled == "face" else vertex_normals(pos, face)
    corners = element_corners(face, pos.size(0), labelled)
    if labelled == "edge":
        normal = normal[corners].mean(0)
    return torch.cat([pos[corners].mean(0), normal * size], 1)
