"""What a mesh or a point cloud is, and what may go wrong with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geoattn.geometry.mesh import check_mesh, connected_components, edges, face_areas

Point = tuple[float, float, float]


@dataclass(frozen=True)
class MeshReport:
    """What :func:`describe` found. As a string it is a table, the notes below it.

    How faces hang together (all from ``edges`` to ``components``) is counted with vertices at the same place merged and
    without faces that then repeat a vertex.

    Attributes:
        vertices: Vertices, or points of a cloud.
        faces: Faces; 0 for a cloud.
        area: Of the surface, in square units of the positions.
        low: Smallest coordinate along each axis; NaN without vertices.
        high: Largest coordinate along each axis; NaN without vertices.
        edges: Edges of faces.
        boundary_edges: Edges with one face.
        nonmanifold_edges: Edges with more than two faces.
        inconsistent_edges: Edges that both of their two faces run through in the same direction: their normals point to
            opposite sides of the surface.
        euler_number: Vertices of faces - edges + faces: 2 for a sphere, 0 for a torus, 2 for each of several spheres.
        components: Pieces; faces that share a vertex are in one.
        duplicate_vertices: Vertices at the place of an earlier one.
        unused_vertices: Places of vertices that are in no face; 0 for a cloud.
        degenerate_faces: Faces of area 0, within rounding.
    """

    vertices: int
    faces: int
    area: float
    low: Point
    high: Point
    edges: int
    boundary_edges: int
    nonmanifold_edges: int
    inconsistent_edges: int
    euler_number: int
    components: int
    duplicate_vertices: int
    unused_vertices: int
    degenerate_faces: int

    @property
    def watertight(self) -> bool:
        """Whether the surface is closed: there are edges, and each has exactly two faces."""
        return self.edges > 0 and self.boundary_edges == self.nonmanifold_edges == 0

    @property
    def oriented(self) -> bool:
        """Whether neighboring faces agree on which side of the surface their normals point to."""
        return self.edges > 0 and self.inconsistent_edges == 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What may go wrong, in words: nothing for a closed, oriented surface in one piece."""
        merge = ": load(path, process=True) merges them" if self.faces else ""
        found = (
            (self.duplicate_vertices, f"vertices share a place with another{merge}"),
            (self.unused_vertices, "places of vertices are in no face"),
            (self.degenerate_faces, "faces have no area"),
            (self.nonmanifold_edges, "edges have more than two faces: there the surface branches"),
            (self.boundary_edges, "edges have one face: the surface is open"),
            (self.inconsistent_edges, "edges have faces of opposite orientation: normals change sides there"),
            (self.components - 1, "more components: distances along the surface do not join them"),
        )
        return tuple(f"{count} {what}" for count, what in found if count > 0)

    def __str__(self) -> str:
        facts: dict[str, object] = {"vertices": self.vertices}
        if self.faces:
            facts |= {
                "faces": self.faces,
                "edges": self.edges,
                "components": self.components,
                "area": f"{self.area:.6g}",
                "boundary edges": self.boundary_edges,
                "non-manifold edges": self.nonmanifold_edges,
                "Euler number": self.euler_number,
                "watertight": "yes" if self.watertight else "no",
                "oriented": "yes" if self.oriented else "no",
            }
        else:
            facts["faces"] = "none: a point cloud"
        facts["bounds"] = "  ".join(
            f"{axis} {low:.6g} to {high:.6g}" for axis, low, high in zip("xyz", self.low, self.high, strict=True)
        )
        rows = [*facts.items(), *(("note", note) for note in self.notes)]
        return "\n".join(f"{name:>18}  {value}" for name, value in rows)


def describe(pos: Tensor, face: Tensor | None = None) -> MeshReport:
    """Count what is in a mesh or a point cloud, and find what may go wrong with it.

    ``print(describe(pos, face))`` is what the command ``geoattn info`` prints.

    Args:
        pos: ``[V, 3]``.
        face: ``[3, F]``, or None for a cloud.

    Raises:
        ValueError: If these are no mesh (see :func:`check_mesh`).
    """
    face = torch.empty(3, 0, dtype=torch.int64) if face is None else face
    check_mesh(pos, face)
    pos, face = pos.detach().cpu(), face.cpu()
    area = face_areas(pos, face)
    bounds = pos.aminmax(dim=0) if pos.size(0) else [pos.new_full((3,), torch.nan)] * 2
    low, high = (tuple(bound.tolist()) for bound in bounds)

    place = _places(pos)
    places = int(place.max()) + 1 if pos.size(0) else 0
    merged = place[face]
    unused = places - _distinct(merged) if face.size(1) else 0
    a, b, c = merged
    surface = merged[:, (a != b) & (b != c) & (c != a)]
    topology = edges(surface)
    count = topology.edge_count
    # Each side of a face runs its edge up (to the larger vertex) or down.
    up = (surface < surface.roll(-1, 0)).flatten()
    ups = torch.zeros_like(count).index_add(0, topology.face_edge.flatten(), up.long())
    components = _distinct(connected_components(surface, places)[surface[0]])
    return MeshReport(
        vertices=pos.size(0),
        faces=face.size(1),
        area=float(area.double().sum()),
        low=low,
        high=high,
        edges=count.numel(),
        boundary_edges=int((count == 1).sum()),
        nonmanifold_edges=int((count > 2).sum()),
        inconsistent_edges=int(((count == 2) & (ups != 1)).sum()),
        euler_number=_distinct(surface) - count.numel() + surface.size(1),
        components=components,
        duplicate_vertices=pos.size(0) - places,
        unused_vertices=unused,
        degenerate_faces=int((area == 0).sum()),
    )


def _distinct(index: Tensor) -> int:
    """How many different ones there are."""
    return int((torch.bincount(index.flatten()) > 0).sum())


def _places(pos: Tensor) -> Tensor:
    """A number for each vertex [V], the same for vertices at the same place."""
    import numpy as np

    # A fifth of the time of `torch.unique(dim=0)`.
    point = pos.numpy()
    order = np.lexsort(point.T)
    new = (point[order[1:]] != point[order[:-1]]).any(1)
    place = np.zeros(len(point), dtype=np.int64)
    place[order[1:]] = new.cumsum()
    return torch.from_numpy(place)
