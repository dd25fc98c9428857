"""From a mesh to what a network reads."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from geoattn._arguments import check_data, check_tensors, checked_integer
from geoattn.geometry import (
    biharmonic_embedding,
    check_mesh,
    edges,
    eigenbasis,
    face_areas,
    face_normals,
    heat_descriptors,
    moment_descriptors,
    normalize,
    vertex_areas,
    vertex_normals,
)
from geoattn.geometry.descriptors import HEAT_TIMES, RADII
from geoattn.geometry.threads import one_thread
from geoattn.patterns import Neighbors

Element = Literal["vertex", "face", "edge"]
ELEMENTS: tuple[Element, ...] = ("vertex", "face", "edge")
CHANNELS = 8 * len(RADII) + 5 * len(HEAT_TIMES)
"""Number of descriptors of an element."""
_FIELDS = ("x", "pos", "normal", "area", "spectral", "neighbor_index", "corner_index")  # of what `MeshElements` makes


class MeshElements(BaseTransform):
    """A mesh as a set of elements: its vertices, its faces or its edges, with what attention needs to know of each.

    From ``pos`` ``[V, 3]`` and ``face`` ``[3, F]`` of any triangle mesh, closed or not, manifold or not, it makes a
    `Data` of ``N`` elements, all of it independent of where the mesh is, how large it is and how it is turned, but for
    ``pos`` and ``normal``, which turn with it:

    - ``pos`` ``[N, 3]``, ``normal`` ``[N, 3]``: center and unit normal, of the mesh moved to its centroid and scaled to
      area 1; ``area`` ``[N]``: share of the area.
    - ``x`` ``[N, 132]``: descriptors, `geoattn.geometry.moment_descriptors` and `heat_descriptors`.
    - ``spectral`` ``[N, 8]``: coordinates in which distances are biharmonic distances, of mean square 1.
    - ``neighbor_index`` ``[2, E]``: the pattern of `Neighbors.from_mesh` as an ``edge_index``.
    - ``corner_index`` ``[C, M]``: the elements that each labelled thing is read from: its vertices where vertices are
      the elements and faces or edges are labelled, otherwise itself.
    - ``y`` ``[M]`` or ``[1]``, if the mesh has labels: one per labelled thing, or one for the whole mesh.

    Elements keep the mesh's order; edges are numbered as in `geoattn.geometry.edges`. All of it is made on the CPU.

    Args:
        element: What attends: ``"vertex"``, ``"face"`` or ``"edge"``.
        labelled: What has labels: ``element``, or any of the three where vertices are the elements.
        hops: How many steps away on the surface an element still attends to.
        eigenpairs: How many eigenfunctions of the Laplacian the descriptors are made from.

    Raises:
        TypeError: If it is given something else than a `Data` of tensors.
        ValueError: If the mesh has no face, or is not one (see `geoattn.geometry.check_mesh`), or ``y`` has neither one
            label per labelled thing nor one in all.
    """

    def __init__(
        self, element: Element = "vertex", labelled: Element = "face", hops: int = 1, eigenpairs: int = 64
    ) -> None:
        for name, value in (("element", element), ("labelled", labelled)):
            if value not in ELEMENTS:
                raise ValueError(f"{name} must be one of {ELEMENTS}, got {value!r}")
        if element not in ("vertex", labelled):
            raise ValueError(f"where each {element} is an element, each {element} is labelled, not each {labelled}")
        self.element: Element = element
        self.labelled: Element = labelled
        self.hops = checked_integer("hops", hops, least=1)
        self.eigenpairs = checked_integer("eigenpairs", eigenpairs, least=1)

    @one_thread()
    def forward(self, data: Data) -> Data:
        """Apply to one mesh."""
        check_data(data)
        given = {name: data[name] for name in ("pos", "face") if data.get(name) is not None}
        check_tensors(**given)
        if len(given) < 2 or data.face.numel() == 0:
            raise ValueError("expected a mesh with pos [V, 3] and face [3, F], F > 0; a point cloud has no faces")
        pos, face = data.pos.double().cpu(), data.face.cpu()
        check_mesh(pos, face)
        face, vertices = face.long(), pos.size(0)
        pos = normalize(pos, face)
        eigenvalues, eigenvectors = eigenbasis(pos, face, self.eigenpairs)
        heat = heat_descriptors(pos, vertex_normals(pos, face), vertex_areas(pos, face), eigenvalues, eigenvectors)
        spectral = biharmonic_embedding(eigenvalues, eigenvectors, 8)

        corners = element_corners(face, vertices, self.element)
        center, spectral = pos[corners].mean(0), spectral[corners].mean(0)
        normal, area = _normal_and_area(pos, face, self.element)
        moments = moment_descriptors(center, normal, area)
        out = Data(
            pos=center.float(),
            normal=normal.float(),
            area=area.float(),
            x=torch.cat([moments, heat[corners].mean(0)], 1).float(),
            spectral=(spectral / (spectral.square().sum(1) @ area).sqrt().clamp_min(1e-12)).float(),
            neighbor_index=Neighbors.from_mesh(face, self.element, vertices, self.hops).to_edge_index(),
            corner_index=(
                element_corners(face, vertices, self.labelled)
                if self.element == "vertex"
                else torch.arange(center.size(0)).unsqueeze(0)
            ),
            num_nodes=center.size(0),
        )
        if data.y is not None:
            check_tensors(y=data.y)
            y = data.y.reshape(1) if data.y.dim() == 0 else data.y
            if y.size(0) not in (1, out.corner_index.size(1)):
                raise ValueError(
                    f"y has {y.size(0)} labels; expected 1, or one per {self.labelled}: {out.corner_index.size(1)}"
                )
            out.y = y
        return out

    def __repr__(self) -> str:
        return f"MeshElements({self.element!r}, {self.labelled!r}, hops={self.hops}, eigenpairs={self.eigenpairs})"


def check_elements(data: object) -> None:
    """That a sample or a batch was made by `MeshElements`: what networks of meshes are given.

    Raises:
        TypeError: If it is no `Data`, such as the path of a file.
        ValueError: If something is missing.
    """
    check_data(data)
    assert isinstance(data, Data)
    missing = [name for name in _FIELDS if data.get(name) is None]
    if missing:
        raise ValueError(
            f"the network reads elements, and these have no {', '.join(missing)}: make them with "
            "geoattn.data.MeshElements()(mesh), or let geoattn.models.segmentation.segment(mesh) do it"
        )


class RandomDeform(BaseTransform):
    """A slightly different shape with the same faces: stretched, waved and roughened at random.

    It is stretched along three random orthogonal axes by about 10 %, displaced by random waves with an amplitude of a
    few per cent of its radius, and each vertex by 0.3 %.

    Args:
        generator: Source of randomness; default: torch's global one.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self.generator = generator

    def forward(self, data: Data) -> Data:
        """Apply to one mesh."""
        check_data(data)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=self.generator).to(data.pos)

        out = data.clone()
        pos = data.pos - data.pos.mean(0)
        radius = pos.norm(dim=1).max().clamp_min(1e-12)
        pos = pos / radius
        axes = torch.linalg.qr(normal(3, 3))[0]
        pos = pos @ axes @ torch.diag((0.1 * normal(3)).exp()) @ axes.T
        waves, phase, amplitude = 4 * normal(16, 3), torch.pi * normal(16), 0.012 * normal(16, 3)
        pos = pos + (pos @ waves.T + phase).sin() @ amplitude + 0.003 * normal(*pos.shape)
        out.pos = pos * radius
        return out


def element_corners(face: Tensor, num_nodes: int, element: Element) -> Tensor:
    """The vertices each element is made of, ``[1, V]``, ``[3, F]`` or ``[2, E]``."""
    if element == "vertex":
        return torch.arange(num_nodes).unsqueeze(0)
    return face if element == "face" else edges(face).edge


def _normal_and_area(pos: Tensor, face: Tensor, element: Element) -> tuple[Tensor, Tensor]:
    if element == "vertex":
        normal, area = vertex_normals(pos, face), vertex_areas(pos, face)
    else:
        normal, area = face_normals(pos, face), face_areas(pos, face)
        if element == "edge":
            topology = edges(face)
            share = (area / 3).repeat(3)
            side = topology.face_edge.flatten()
            total = area.new_zeros(topology.edge.size(1))
            summed = normal.new_zeros(topology.edge.size(1), 3).index_add(
                0, side, (normal * area[:, None]).repeat(3, 1)
            )
            normal = torch.nn.functional.normalize(summed, dim=1)
            area = total.index_add(0, side, share)
    return normal, area / area.sum().clamp_min(1e-30)
