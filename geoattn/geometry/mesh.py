"""Triangle meshes: normals, areas, edges, adjacency, components, sampling, simplification.

A mesh is ``pos`` [V, 3], the positions of its vertices, and ``face`` [3, F], three vertex indices per face
(PyTorch Geometric's layout). Every function takes any triangle soup: open or closed, manifold or not, with
degenerate faces, vertices in no face, several components, mixed winding, no faces at all. Nothing returns NaN
for finite positions; what a degenerate case returns instead is written at each function.

Functions of ``pos`` are differentiable in ``pos``, unless they say otherwise. Results are on the device of
the arguments.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from geoattn._arguments import check_tensors, checked_integer
from geoattn._optional import require


class EdgeTopology(NamedTuple):
    """Undirected edges of a mesh and how its faces use them.

    Attributes:
        edge: [2, E] the two ends of each edge, the smaller index first.
        face_edge: [3, F] the edge on each side of a face: sides (v0, v1), (v1, v2), (v2, v0).
        edge_count: [E] how many face sides lie on the edge: 1 at a boundary, 2 inside a manifold, else more.
    """

    edge: Tensor
    face_edge: Tensor
    edge_count: Tensor


class EdgeFeatures(NamedTuple):
    """Geometry around each edge, invariant to rotation, translation and (all but ``length``) scale.

    Attributes:
        dihedral: [E] signed angle between the two faces in radians, see :func:`dihedral_angles`.
        length: [E] edge length.
        opposite_angles: [E, 2] angles opposite to the edge in its two faces, in radians, ascending.
        height_ratios: [E, 2] height of each of the two faces over the edge, divided by its length, ascending.
    """

    dihedral: Tensor
    length: Tensor
    opposite_angles: Tensor
    height_ratios: Tensor


def check_mesh(pos: Tensor, face: Tensor) -> None:
    """Check that ``pos`` and ``face`` describe a mesh.

    Args:
        pos: [V, 3] finite floating point positions.
        face: [3, F] int64 or int32 vertex indices in ``0..V-1``.

    Raises:
        TypeError: If they are no tensors.
        ValueError: If they do not; the message names the argument and the value.
    """
    _check_pos(pos)
    _check_face(face)
    if not torch.isfinite(pos).all():
        first = int((~torch.isfinite(pos)).any(dim=1).nonzero()[0])
        raise ValueError(f"pos[{first}] is {pos[first].tolist()}; remove or repair vertices that are not finite")
    if face.numel() and (int(face.min()) < 0 or int(face.max()) >= pos.size(0)):
        outside = (face < 0) | (face >= pos.size(0))
        first = int(outside.any(dim=0).nonzero()[0])
        vertex = int(face[:, first][outside[:, first]][0])
        raise ValueError(f"face {first} refers to vertex {vertex}; pos has {pos.size(0)} vertices, counted from 0")


def _check_pos(pos: Tensor) -> None:
    """All of `check_mesh` that needs no look at the values, of positions."""
    check_tensors(pos=pos)
    if pos.dim() != 2 or pos.size(1) != 3 or not pos.is_floating_point():
        hint = " (pass pos.t())" if pos.dim() == 2 and pos.size(0) == 3 and pos.size(1) != 3 else ""
        hint = hint or ("" if pos.is_floating_point() else " (pass pos.float())")
        raise ValueError(f"pos must be floating point of shape [V, 3], got {pos.dtype} {list(pos.shape)}{hint}")


def _check_face(face: Tensor) -> None:
    """All of `check_mesh` that needs no look at the values, of faces."""
    check_tensors(face=face)
    # Other integers do not index, or are masks.
    indexes = face.dtype in (torch.int64, torch.int32)
    if face.dim() != 2 or face.size(0) != 3 or not indexes:
        hint = " (pass face.t())" if face.dim() == 2 and face.size(0) != 3 and face.size(1) == 3 else ""
        hint = hint or ("" if indexes else " (pass face.long())")
        raise ValueError(f"face must be int64 or int32 of shape [3, F], got {face.dtype} {list(face.shape)}{hint}")


def _face_vectors(pos: Tensor, face: Tensor) -> Tensor:
    """Cross product of two sides of each face [F, 3]: twice the area times the normal; 0 if degenerate."""
    _check_pos(pos)
    _check_face(face)
    a, b, c = pos[face[0]], pos[face[1]], pos[face[2]]
    cross = torch.linalg.cross(b - a, c - a)
    longest = torch.stack([(b - a).square().sum(-1), (c - b).square().sum(-1), (a - c).square().sum(-1)]).amax(0)
    degenerate = cross.norm(dim=-1) <= torch.finfo(pos.dtype).eps * longest
    return torch.where(degenerate[:, None], torch.zeros_like(cross), cross)


def _unit(vector: Tensor) -> Tensor:
    """Rows scaled to length 1; zero rows stay zero, with a finite gradient."""
    # Scaling by the largest component first keeps the squares of tiny vectors from underflowing.
    largest = vector.detach().abs().amax(dim=-1, keepdim=True)
    vector = vector / torch.where(largest > 0, largest, torch.ones_like(largest))
    norm = vector.norm(dim=-1, keepdim=True)
    return vector / torch.where(norm > 0, norm, torch.ones_like(norm))


def face_normals(pos: Tensor, face: Tensor) -> Tensor:
    """Unit normals of the faces [F, 3], by the right-hand rule.

    A degenerate face has the zero vector. Degenerate is a face whose doubled area is at most the rounding
    error of its longest side squared.
    """
    return _unit(_face_vectors(pos, face))


def face_areas(pos: Tensor, face: Tensor) -> Tensor:
    """Areas of the faces [F]; 0 for a degenerate one."""
    return _face_vectors(pos, face).norm(dim=-1) / 2


def face_centroids(pos: Tensor, face: Tensor) -> Tensor:
    """Mean of the three corners of each face [F, 3]."""
    _check_pos(pos)
    _check_face(face)
    return (pos[face[0]] + pos[face[1]] + pos[face[2]]) / 3


def vertex_normals(pos: Tensor, face: Tensor) -> Tensor:
    """Unit normals of the vertices [V, 3]: the area-weighted mean of the normals of the faces around each.

    A vertex in no face of non-zero area, or whose faces cancel, has the zero vector.
    """
    vectors = _face_vectors(pos, face)
    return _unit(torch.zeros_like(pos).index_add(0, face.reshape(-1), vectors.repeat(3, 1)))


def vertex_areas(pos: Tensor, face: Tensor) -> Tensor:
    """Barycentric areas of the vertices [V]: a third of each face around it; 0 for a vertex in no face.

    They sum to the area of the mesh.
    """
    thirds = face_areas(pos, face) / 3
    return pos.new_zeros(pos.size(0)).index_add(0, face.reshape(-1), thirds.repeat(3))


def edges(face: Tensor) -> EdgeTopology:
    """Undirected edges, numbered in order of first appearance.

    The walk goes through the faces in order and in each face through (v0, v1), (v1, v2), (v2, v0): this is
    the numbering of MeshCNN and of its published segmentations of edges. A face that repeats a vertex has an
    edge from this vertex to itself, so that ``face_edge`` is always defined.

    Args:
        face: [3, F] vertex indices.

    Returns:
        ``EdgeTopology(edge [2, E], face_edge [3, F], edge_count [E])``.
    """
    _check_face(face)
    face = face.long()  # the keys below exceed int32
    start, end = face.t().reshape(-1), face.roll(-1, 0).t().reshape(-1)
    low, high = torch.minimum(start, end), torch.maximum(start, end)
    base = int(high.max()) + 1 if high.numel() else 1
    key, slot = torch.unique(low * base + high, return_inverse=True)
    walk = torch.arange(slot.numel(), device=face.device)
    first = torch.full_like(key, slot.numel()).scatter_reduce(0, slot, walk, "amin")
    order = first.argsort()
    rank = torch.empty_like(order)
    rank[order] = torch.arange(order.numel(), device=face.device)
    key, face_edge = key[order], rank[slot]
    return EdgeTopology(
        edge=torch.stack([key // base, key % base]),
        face_edge=face_edge.view(-1, 3).t().contiguous(),
        edge_count=torch.bincount(face_edge, minlength=key.numel()),
    )


def boundary_edges(face: Tensor) -> Tensor:
    """Edges on exactly one face side [2, K], in the order of :func:`edges`, without self-edges."""
    edge, _, count = edges(face)
    return edge[:, (count == 1) & (edge[0] != edge[1])]


def nonmanifold_edges(face: Tensor) -> Tensor:
    """Edges on more than two face sides [2, K], in the order of :func:`edges`, without self-edges."""
    edge, _, count = edges(face)
    return edge[:, (count > 2) & (edge[0] != edge[1])]


def _edge_sides(face: Tensor, topology: EdgeTopology) -> tuple[Tensor, Tensor]:
    """The first two face sides on each edge: their face [2, E] and the corner of it they start at [2, E].

    An edge with only one face has this face twice.
    """
    flat = topology.face_edge.t().reshape(-1)
    by_edge = flat.argsort(stable=True)
    start = topology.edge_count.cumsum(0) - topology.edge_count
    side = torch.stack([by_edge[start], by_edge[start + (topology.edge_count > 1).long()]])
    return side // 3, side % 3


def dihedral_angles(pos: Tensor, face: Tensor) -> Tensor:
    """Signed angles between the normals of the two faces at each edge [E], in radians, in [-pi, pi].

    0 is flat, positive is convex (a cube with outward normals: pi/2), negative is concave, seen from the side
    the first face's normal points to. The inner angle between the faces is pi minus this. If the two faces
    are wound inconsistently, the second is flipped first. At a boundary edge and beside a degenerate face the
    angle is 0; at a non-manifold edge it is the angle between its first two faces in file order. Edges are in
    the order of :func:`edges`.
    """
    return _dihedral(pos, face, *_edge_sides(face, edges(face)))


def _dihedral(pos: Tensor, face: Tensor, side_face: Tensor, side_corner: Tensor) -> Tensor:
    normal = face_normals(pos, face)
    start = face[side_corner, side_face]
    end = face[(side_corner + 1) % 3, side_face]
    along = _unit(pos[end[0]] - pos[start[0]])
    first, second = normal[side_face[0]], normal[side_face[1]]
    same_direction = (start[0] == start[1]) & (side_face[0] != side_face[1])
    second = torch.where(same_direction[:, None], -second, second)
    sine = (torch.linalg.cross(first, second) * along).sum(-1)
    angle = _angle(sine, (first * second).sum(-1))
    return torch.where(side_face[0] == side_face[1], torch.zeros_like(angle), angle)


def _angle(sine: Tensor, cosine: Tensor) -> Tensor:
    """``atan2`` that is 0, with gradient 0, where both are 0."""
    undefined = (sine == 0) & (cosine == 0)
    return torch.atan2(sine, torch.where(undefined, torch.ones_like(cosine), cosine))


def edge_features(pos: Tensor, face: Tensor) -> EdgeFeatures:
    """Dihedral angle, length, opposite angles and height ratios of each edge.

    ``pi - abs(dihedral)``, ``opposite_angles`` and ``height_ratios`` are the five input features of MeshCNN
    (Hanocka et al. 2019, section 3.1), except that MeshCNN's code adds 0.1 to the lengths it divides by and
    this does not. A boundary edge has the values of its one face twice; a non-manifold edge those of its
    first two faces in file order. In a degenerate face the opposite angle is 0 or pi and the height ratio 0;
    a ratio over a zero length is 0.

    Args:
        pos: [V, 3] positions.
        face: [3, F] vertex indices.

    Returns:
        ``EdgeFeatures(dihedral [E], length [E], opposite_angles [E, 2], height_ratios [E, 2])``, edges in the
        order of :func:`edges`.
    """
    topology = edges(face)
    side_face, side_corner = _edge_sides(face, topology)
    length = (pos[topology.edge[1]] - pos[topology.edge[0]]).norm(dim=-1)
    start, end, apex = (pos[face[(side_corner + i) % 3, side_face]] for i in range(3))
    doubled_area = _face_vectors(pos, face).norm(dim=-1)[side_face]
    angle = _angle(doubled_area, ((start - apex) * (end - apex)).sum(-1))
    square = length.square()
    ratio = doubled_area / torch.where(square > 0, square, torch.ones_like(square))
    return EdgeFeatures(
        dihedral=_dihedral(pos, face, side_face, side_corner),
        length=length,
        opposite_angles=angle.t().sort(dim=1).values,
        height_ratios=torch.where(square > 0, ratio, torch.zeros_like(ratio)).t().sort(dim=1).values,
    )


def _sharing(member: Tensor, group: Tensor, size: int) -> Tensor:
    """Pairs [2, M] of different members that have a group in common, sorted, without repeats."""
    import numpy as np
    from scipy import sparse

    groups = int(group.max()) + 1 if group.numel() else 0
    ones = np.ones(member.numel(), dtype=np.int64)
    incidence = sparse.csr_matrix((ones, (member.cpu().numpy(), group.cpu().numpy())), shape=(size, groups))
    pairs = sparse.csr_matrix(incidence @ incidence.T)
    pairs.sort_indices()
    row = np.repeat(np.arange(size), np.diff(pairs.indptr))
    index = torch.from_numpy(np.stack([row, pairs.indices.astype(np.int64)]))
    return index[:, index[0] != index[1]].to(member.device)


def _faces_as_members(face: Tensor) -> Tensor:
    _check_face(face)
    return torch.arange(face.size(1), device=face.device).repeat(3)


def face_adjacency(face: Tensor) -> Tensor:
    """Faces that share an edge, as an ``edge_index`` [2, M] of both directions, sorted by row, then column.

    All pairs of faces at a non-manifold edge are adjacent.
    """
    return _sharing(_faces_as_members(face), edges(face).face_edge.reshape(-1), face.size(1))


def face_vertex_adjacency(face: Tensor) -> Tensor:
    """Faces that share at least one vertex, as an ``edge_index`` [2, M] of both directions, sorted."""
    return _sharing(_faces_as_members(face), face.reshape(-1), face.size(1))


def edge_adjacency(face: Tensor) -> Tensor:
    """Edges that share a face, as an ``edge_index`` [2, M] of both directions over :func:`edges`, sorted."""
    edge, face_edge, _ = edges(face)
    return _sharing(face_edge.reshape(-1), _faces_as_members(face), edge.size(1))


def vertex_adjacency(face: Tensor, num_nodes: int) -> Tensor:
    """Vertices that share an edge, as an ``edge_index`` [2, M] of both directions, sorted."""
    edge = edges(face).edge
    edge = edge[:, edge[0] != edge[1]]
    both = torch.cat([edge, edge.flip(0)], dim=1)
    num_nodes = checked_integer("num_nodes", num_nodes)
    return both[:, (both[0] * max(num_nodes, 1) + both[1]).argsort()]


def connected_components(face: Tensor, num_nodes: int) -> Tensor:
    """Label of the connected component of each vertex [V], numbered in order of first vertex.

    Faces that share a vertex are connected; a vertex in no face is a component of its own.
    """
    import numpy as np
    from scipy import sparse
    from scipy.sparse import csgraph

    _check_face(face)
    num_nodes = checked_integer("num_nodes", num_nodes)
    a, b, c = face.cpu().numpy()
    row, column = np.concatenate([a, b]), np.concatenate([b, c])
    graph = sparse.coo_matrix((np.ones(len(row), dtype=np.int8), (row, column)), shape=(num_nodes, num_nodes))
    if num_nodes == 0:
        return face.new_empty(0)
    _, label = csgraph.connected_components(graph, directed=False)
    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    rank = first.argsort().argsort()
    return torch.from_numpy(rank[inverse]).to(face.device)


def sample_surface(
    pos: Tensor, face: Tensor, count: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Independent points, uniform on the surface.

    Differentiable in ``pos`` for the faces and barycentric coordinates drawn. If the whole surface has zero
    area, all faces are equally likely.

    Args:
        pos: [V, 3] positions.
        face: [3, F] vertex indices.
        count: How many points, S.
        generator: Source of the random numbers; torch's global one if not given.

    Returns:
        Points [S, 3], the face of each [S], and its barycentric coordinates there [S, 3].

    Raises:
        TypeError: If ``count`` is no integer.
        ValueError: If there are points to draw and no faces, or the mesh is not one (see :func:`check_mesh`).
    """
    check_mesh(pos, face)
    count = checked_integer("count", count, least=0)
    if count > 0 and face.size(1) == 0:
        raise ValueError("the mesh has no faces to sample from; sample its vertices instead")
    device = generator.device if generator is not None else torch.device("cpu")
    random = torch.rand(3, count, dtype=torch.float64, generator=generator, device=device).to(pos.device)
    area = face_areas(pos.detach().double(), face)
    # Uniform where every area is 0, so that the cumulative sum is increasing in any case.
    cumulative = torch.where(area.sum() > 0, area, torch.ones_like(area)).cumsum(0)
    chosen = torch.searchsorted(cumulative, random[0] * cumulative[-1:], right=True)
    chosen = chosen.clamp_max(max(face.size(1) - 1, 0))
    # Square root: uniform in the triangle (Turk 1990, Generating random points in triangles).
    root = random[1].sqrt()
    barycentric = torch.stack([1 - root, root * (1 - random[2]), root * random[2]], dim=1).to(pos.dtype)
    points = torch.einsum("sc,csd->sd", barycentric, pos[face[:, chosen]])
    return points, chosen, barycentric


def simplify(pos: Tensor, face: Tensor, faces: int) -> tuple[Tensor, Tensor]:
    """Fewer faces, by collapsing the edges of least quadric error (Garland and Heckbert 1997).

    Not differentiable. The work is done by ``fast_simplification``. The number of faces comes close to
    ``faces`` and may miss it on both sides: a collapse removes two faces at once, and the faces it flattened
    are dropped afterwards; where a shape does not allow further collapses, more stay. The new vertices are
    not a subset of the old ones and their order is new; carry labels over by proximity. Vertices in no face
    are dropped.

    Args:
        pos: [V, 3] positions.
        face: [3, F] vertex indices.
        faces: How many faces to aim for, at least 1.

    Returns:
        ``pos`` [V', 3] and ``face`` [3, F'] with 1 <= F' <= F, no face repeating a vertex, each vertex in a
        face; or the two arguments themselves if F <= ``faces`` or if a simplification would leave no face.

    Raises:
        TypeError: If ``faces`` is no integer.
        ValueError: If ``faces`` is less than 1, or the mesh is not one (see :func:`check_mesh`).
    """
    import numpy as np

    fast_simplification = require("fast_simplification")

    check_mesh(pos, face)
    faces = checked_integer("faces", faces, least=1)
    if face.size(1) <= faces:
        return pos, face
    new_pos, new_face = fast_simplification.simplify(
        pos.detach().cpu().double().numpy().copy(),
        face.t().cpu().numpy().astype(np.int32, order="C"),
        target_count=faces,
    )
    new_face = new_face.astype(np.int64)
    a, b, c = new_face.T
    new_face = new_face[(a != b) & (b != c) & (c != a)]
    if len(new_face) == 0 or not np.isfinite(new_pos).all():
        return pos, face
    used, index = np.unique(new_face, return_inverse=True)
    return (
        torch.from_numpy(new_pos[used]).to(pos),
        torch.from_numpy(index.reshape(-1, 3).T.copy()).to(face),
    )


def normalize(pos: Tensor, face: Tensor) -> Tensor:
    """Positions [V, 3] moved to put the surface's centroid at the origin and scaled to total area 1.

    A mesh of zero area (or without faces) has the mean of its vertices moved to the origin and the farthest
    vertex scaled to distance 1; if all vertices coincide, nothing is scaled.
    """
    area = face_areas(pos, face)
    total = area.sum()
    if total > 0:
        centroid = (area[:, None] * face_centroids(pos, face)).sum(0) / total
        return (pos - centroid) / total.sqrt()
    centered = pos - pos.mean(0, keepdim=True) if pos.size(0) else pos
    radius = centered.norm(dim=1).amax() if pos.size(0) else pos.new_zeros(())
    return centered / radius if radius > 0 else centered
