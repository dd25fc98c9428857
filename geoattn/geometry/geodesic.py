"""Geodesic distances on a surface. Computed in float64 on the CPU and not differentiable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from geoattn._arguments import check_tensors
from geoattn._optional import require
from geoattn.geometry.mesh import check_mesh, connected_components, edges

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]


def geodesic_distance(pos: Tensor, face: Tensor, source: Tensor, method: Literal["heat", "edge"] = "heat") -> Tensor:
    """Distance along the surface from each source vertex to every vertex.

    ``"heat"`` is the heat method (Crane, Weischedel and Wardetzky 2013) on a robust Laplacian, by
    ``potpourri3d``: a smooth approximation of the true distance, which comes closer with a finer mesh. Faces
    that repeat a vertex are ignored, and a component it cannot solve (of zero area, say) is measured along
    the edges. ``"edge"`` is the exact length of the shortest path along edges (Dijkstra), which is never
    below the true distance and stays above it however fine the mesh.

    Args:
        pos: [V, 3] positions.
        face: [3, F] vertex indices.
        source: [S] vertices to measure from, in any order.
        method: ``"heat"`` or ``"edge"``.

    Returns:
        [S, V] in the unit, dtype and device of ``pos``; exactly 0 at the source, infinite in other components.

    Raises:
        ValueError: If ``source`` has no such vertex, the method is unknown, or the mesh is not one.
    """
    import numpy as np

    check_mesh(pos, face)
    check_tensors(source=source)
    size = pos.size(0)
    if source.numel() and (source.dim() != 1 or int(source.min()) < 0 or int(source.max()) >= size):
        raise ValueError(f"source must be vertices in 0..{size - 1} of shape [S], got {source.tolist()}")
    points = pos.detach().cpu().double().numpy()
    triangles, start = face.t().cpu().numpy(), source.cpu().numpy()
    if method == "edge":
        distance = _edge_distance(points, triangles, start)
    elif method == "heat":
        distance = np.full((len(start), size), np.inf)
        a, b, c = triangles.T
        triangles = triangles[(a != b) & (b != c) & (c != a)]
        component = connected_components(torch.from_numpy(triangles.T), size).numpy()
        # One component at a time: across components the heat method's answer has no meaning.
        for label in np.unique(component[start]):
            member = np.flatnonzero(component == label)
            rows = np.flatnonzero(component[start] == label)
            inside = np.searchsorted(member, triangles[component[triangles[:, 0]] == label])
            local = np.searchsorted(member, start[rows])
            distance[np.ix_(rows, member)] = _heat_distance(points[member], inside, local)
    else:
        raise ValueError(f"method must be 'heat' or 'edge', got {method!r}")
    return torch.from_numpy(distance).to(pos)


def _heat_distance(points: Array, triangles: Array, source: Array) -> Array:
    """Distances [S, V] in one connected component."""
    import numpy as np

    potpourri3d = require("potpourri3d")

    if np.ptp(points, axis=0).max() == 0:
        return np.zeros((len(source), len(points)))
    try:
        solver = potpourri3d.MeshHeatMethodDistanceSolver(points, triangles)
        distance = np.stack([solver.compute_distance(int(vertex)) for vertex in source])
    except RuntimeError:
        return _edge_distance(points, triangles, source)
    if not np.isfinite(distance).all():
        return _edge_distance(points, triangles, source)
    distance = np.maximum(distance, 0)
    distance[np.arange(len(source)), source] = 0
    return distance


def _edge_distance(points: Array, triangles: Array, source: Array) -> Array:
    """Lengths [S, V] of the shortest paths along edges."""
    import numpy as np
    from scipy import sparse
    from scipy.sparse import csgraph

    if len(source) == 0:
        return np.zeros((0, len(points)))
    tail, head = edges(torch.from_numpy(np.ascontiguousarray(triangles.T))).edge.numpy()
    length = np.linalg.norm(points[head] - points[tail], axis=1)
    graph = sparse.csr_matrix((length, (tail, head)), shape=(len(points), len(points)))
    return csgraph.dijkstra(graph, directed=False, indices=source)
