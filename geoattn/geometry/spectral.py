"""The Laplacian of a surface, its eigenfunctions, and the descriptors made of them.

Computed in float64 on the CPU and not differentiable. Vertices that carry no surface (in no face, or only in
faces that repeat a vertex) have an empty row in the Laplacian and zeros in every eigenvector.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from geoattn._arguments import checked_integer
from geoattn._optional import require
from geoattn.geometry.mesh import check_mesh, nonmanifold_edges
from geoattn.geometry.threads import one_thread

if TYPE_CHECKING:
    import numpy as np
    from scipy import sparse

    Array = np.ndarray[Any, np.dtype[Any]]

# Heights below this share of the longest side are noise in float32 positions; it is also how far
# robust_laplacian lengthens edges.
_SLIVER = 1e-5
# Mass of a vertex without surface, as a share of the mean: not 0, so that dividing by the mass is safe.
_LEAST_MASS = 1e-8


def laplacian(pos: Tensor, face: Tensor | None, robust: bool | None = None) -> tuple[sparse.csr_matrix, Tensor]:
    """Cotangent Laplacian (weak form, positive semi-definite) and lumped mass matrix of a surface.

    Clean meshes have the plain cotangent weights (Pinkall and Polthier 1993) and barycentric vertex areas.
    Others, with edges of more than two faces, repeated vertices in a face or slivers (height below 1e-5 of
    the longest side), go through ``robust_laplacian`` (Sharp and Crane 2020, A Laplacian for Nonmanifold
    Triangle Meshes), as do point clouds. Orientation does not matter.

    In a point cloud, coinciding points share one point's area and are tied together, with the weight of an edge
    1e-5 long; a cloud with points that span no triangle with their neighbors (on one line, say) is first
    jittered by 1e-5 or, if need be, 1e-3 of its extent.

    Args:
        pos: [V, 3] positions.
        face: [3, F] vertex indices, or None for a point cloud.
        robust: Force the robust or the plain Laplacian. The plain one then ignores degenerate faces.

    Returns:
        ``L`` [V, V], a ``scipy.sparse.csr_matrix`` in float64 without units, whose rows sum to 0, and the
        mass [V] in float64, an area, on the device of ``pos``. Without any surface ``L`` is 0 and the mass 1. A
        vertex without surface has a row of zeros and a mass of 1e-8 of the mean.

    Raises:
        ValueError: If the mesh is not one (see :func:`geoattn.geometry.check_mesh`).
    """
    import numpy as np
    from scipy import sparse

    check_mesh(pos, torch.empty(3, 0, dtype=torch.long) if face is None else face)
    points = pos.detach().cpu().double().numpy()
    empty = sparse.csr_matrix((len(points), len(points))), np.zeros(len(points))
    if face is None:
        matrix, mass = _point_laplacian(points) or empty
    else:
        triangles = face.t().cpu().numpy()
        if robust is None:
            robust = _is_bad(points, triangles) or nonmanifold_edges(face.cpu()).size(1) > 0
        matrix, mass = (_robust_laplacian if robust else _plain_laplacian)(points, triangles) or empty
    if mass.sum() == 0:
        return matrix, torch.ones(len(points), dtype=torch.float64, device=pos.device)
    return matrix, torch.from_numpy(np.maximum(mass, _LEAST_MASS * mass.mean())).to(pos.device)


def _is_bad(points: Array, triangles: Array) -> bool:
    """Whether a face repeats a vertex or is a sliver."""
    import numpy as np

    corner = points[triangles]
    side = corner - np.roll(corner, 1, axis=1)
    doubled_area = np.linalg.norm(np.cross(side[:, 0], side[:, 1]), axis=1)
    return bool((doubled_area <= _SLIVER * (side**2).sum(-1).max(1, initial=0)).any())


def _plain_laplacian(points: Array, triangles: Array) -> tuple[sparse.csr_matrix, Array] | None:
    import numpy as np
    from scipy import sparse

    corner = points[triangles]
    doubled_area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1)
    keep = doubled_area > 0
    triangles, corner, doubled_area = triangles[keep], corner[keep], doubled_area[keep]
    size = len(points)
    row, column, weight = [], [], []
    for i in range(3):
        a, b = (i + 1) % 3, (i + 2) % 3
        cotangent = ((corner[:, a] - corner[:, i]) * (corner[:, b] - corner[:, i])).sum(-1) / doubled_area
        row += [triangles[:, a], triangles[:, b]]
        column += [triangles[:, b], triangles[:, a]]
        weight += [-cotangent / 2] * 2
    entries = np.concatenate(weight), (np.concatenate(row), np.concatenate(column))
    off_diagonal = sparse.coo_matrix(entries, shape=(size, size)).tocsr()
    diagonal = -np.asarray(off_diagonal.sum(axis=1)).ravel()
    mass = np.bincount(triangles.ravel(), np.repeat(doubled_area / 6, 3), minlength=size)
    return (off_diagonal + sparse.diags(diagonal)).tocsr(), mass


def _robust_laplacian(points: Array, triangles: Array) -> tuple[sparse.csr_matrix, Array] | None:
    """Through ``robust_laplacian``, which must see no face that repeats a vertex and no unused vertex."""
    import numpy as np
    from scipy import sparse

    robust_laplacian = require("robust_laplacian")
    a, b, c = triangles.T
    triangles = triangles[(a != b) & (b != c) & (c != a)]
    used, index = np.unique(triangles, return_inverse=True)
    if len(used) == 0 or np.ptp(points[used], axis=0).max() == 0:
        return None
    matrix, mass = robust_laplacian.mesh_laplacian(points[used], index.reshape(-1, 3))
    # To the full set of vertices, where the unused have empty rows.
    spread = sparse.eye(len(points), format="csc")[:, used]
    return (spread @ matrix @ spread.T).tocsr(), spread @ mass.diagonal()


def _point_laplacian(points: Array) -> tuple[sparse.csr_matrix, Array] | None:
    """Through ``robust_laplacian``, which must see each point once."""
    import numpy as np
    from scipy import sparse

    distinct, first, index, count = np.unique(
        points, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    found = _distinct_point_laplacian(distinct)
    if found is None:
        return None
    matrix, mass = found
    index = index.reshape(-1)
    place = sparse.eye(len(points), format="csc")[:, first]
    tie = sparse.eye(len(points), format="csr") - place[:, index].T
    weight = matrix.diagonal()[index] / _SLIVER
    matrix = place @ matrix @ place.T + tie.T @ sparse.diags(weight) @ tie
    return matrix.tocsr(), (mass / count)[index]


def _distinct_point_laplacian(points: Array) -> tuple[sparse.csr_matrix, Array] | None:
    import numpy as np

    robust_laplacian = require("robust_laplacian")
    if len(points) < 3:
        return None
    neighbors = min(30, len(points) - 1)
    extent = np.ptp(points, axis=0).max()
    noise = np.random.default_rng(0).uniform(-extent, extent, points.shape)
    # It fails if some point and all its neighbors lie on one line and span no triangle.
    for jitter in (0.0, 1e-5, 1e-3):
        try:
            matrix, mass = robust_laplacian.point_cloud_laplacian(points + jitter * noise, n_neighbors=neighbors)
        except RuntimeError:
            continue
        return matrix.tocsr(), mass.diagonal()
    return None


def eigenbasis(pos: Tensor, face: Tensor | None, k: int, robust: bool | None = None) -> tuple[Tensor, Tensor]:
    """The ``k`` smoothest eigenfunctions of the Laplacian of a surface.

    Args:
        pos: [V, 3] positions.
        face: [3, F] vertex indices, or None for a point cloud.
        k: How many, at least 1.
        robust: As in :func:`laplacian`.

    Returns:
        Eigenvalues [K] and eigenvectors [V, K] as in :func:`eigendecomposition`, in the dtype and on the device
        of ``pos``.

    Raises:
        TypeError: If ``k`` is no integer.
        ValueError: If ``k`` is less than 1, or the mesh is not one.
    """
    eigenvalues, eigenvectors = eigendecomposition(*laplacian(pos, face, robust), k)
    return eigenvalues.to(pos), eigenvectors.to(pos)


def eigendecomposition(L: sparse.csr_matrix, mass: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` smallest solutions of ``L phi = lambda M phi``.

    Each connected component of the matrix is solved by itself, so that several components, and equal ones,
    cost no accuracy: each has one eigenvalue that is exactly 0, with the eigenvector constant there and 0
    elsewhere. The same input gives the same result. The sign of an eigenvector, arbitrary in itself, makes
    its entry of largest magnitude positive; eigenvectors of a repeated eigenvalue are one basis out of many.

    Args:
        L: [V, V] symmetric positive semi-definite, rows summing to 0.
        mass: [V] positive.
        k: How many, at least 1.

    Returns:
        Eigenvalues [K], ascending, at least 0, and eigenvectors [V, K] with ``phi^T M phi = I``, both
        float64 and on the device of ``mass``. K is ``k``, or the number of vertices with surface (a non-zero row in
        ``L``) if that is less. Among the zero eigenvalues the component of largest mass is first.

    Raises:
        TypeError: If ``k`` is no integer.
        ValueError: If ``k`` is less than 1.
    """
    import numpy as np
    from scipy.sparse import csgraph

    k = checked_integer("k", k, least=1)
    surface = np.flatnonzero(L.diagonal() > 0)
    k = min(k, len(surface))
    vectors = np.zeros((L.shape[0], k))
    if k == 0:
        return mass.new_zeros(0, dtype=torch.float64), torch.from_numpy(vectors).to(mass.device)
    weight = mass.cpu().double().numpy()
    count, label = csgraph.connected_components(L[surface][:, surface], directed=False)
    component_mass = np.bincount(label, weight[surface])
    members = np.split(surface[np.argsort(label, kind="stable")], np.bincount(label).cumsum()[:-1])
    members = [members[i] for i in np.argsort(-component_mass, kind="stable")]

    for column, member in enumerate(members[:k]):
        vectors[member, column] = 1 / math.sqrt(weight[member].sum())
    wanted = max(k - count, 0)
    found: list[tuple[float, Array, Array]] = []
    with one_thread():  # the vectors are short
        for member in members if wanted else []:
            values, functions = _component_modes(L[member][:, member], weight[member], wanted)
            found += [(value, member, function) for value, function in zip(values, functions.T, strict=True)]
    found = sorted(found, key=lambda mode: mode[0])[:wanted]
    for column, (_, member, function) in enumerate(found, start=count):
        vectors[member, column] = function * np.sign(function[np.abs(function).argmax()])
    values = np.zeros(k)
    values[k - len(found) :] = [value for value, _, _ in found]
    return torch.from_numpy(values).to(mass.device), torch.from_numpy(vectors).to(mass.device)


def _component_modes(L: sparse.csr_matrix, mass: Array, k: int) -> tuple[Array, Array]:
    """The ``k`` smallest eigenpairs after the constant of a connected component, ascending.

    Both ways look for the largest theta in ``M phi = theta (L + s M) phi``, where lambda = 1 / theta - s:
    slivers give ``L`` entries so large that they would drown the small eigenvalues, but not the large theta.
    One over the area is the scale of the smallest eigenvalues, so s does not depend on the units of the
    positions.
    """
    import numpy as np
    from scipy import linalg, sparse
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh, splu

    size = len(mass)
    k = min(k, size - 1)
    if k == 0:
        return np.zeros(0), np.zeros((size, 0))
    shift = 1 / mass.sum()
    shifted = (L + shift * sparse.diags(mass)).tocsc()
    root = np.sqrt(mass)

    def dense() -> tuple[Array, Array]:
        return linalg.eigh(np.diag(mass), shifted.toarray(), subset_by_index=(size - k - 1, size - 1))

    def lanczos() -> tuple[Array, Array]:
        solve = splu(shifted, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}).solve
        inverse = LinearOperator((size, size), matvec=lambda x: root * solve(root * x.ravel()), dtype=float)
        start = np.random.default_rng(0).standard_normal(size)
        theta, phi = eigsh(inverse, k + 1, which="LA", v0=start)
        return theta, phi / root[:, None]

    # Measured on one thread: Lanczos is faster up to about a sixth of all eigenpairs.
    if size < 6 * k:
        theta, phi = dense()
    else:
        try:
            theta, phi = lanczos()
        except ArpackError:
            theta, phi = dense()
    order = np.argsort(-theta)[1:]
    # Slivers blur the orthogonality of the stiffest modes; this restores it and keeps the smoothest.
    q, _ = np.linalg.qr(np.column_stack([root, root[:, None] * phi[:, order]]))
    return np.maximum(1 / theta[order] - shift, 0), q[:, 1:] / root[:, None]


def _nonzero(eigenvalues: Tensor) -> Tensor:
    return eigenvalues > 1e-8 * eigenvalues.max() if eigenvalues.numel() else eigenvalues > 0


def heat_kernel_signature(
    eigenvalues: Tensor, eigenvectors: Tensor, times: Tensor | None = None, count: int = 16
) -> Tensor:
    """Heat kernel signature ``sum_i exp(-lambda_i t) phi_i(x)^2`` (Sun, Ovsjanikov and Guibas 2009).

    A time t sees a neighborhood of radius about ``sqrt(t)``, so times scale as areas: normalize the mesh
    first to compare shapes of different size. The default times follow the paper: spaced evenly
    on a logarithmic scale from ``4 ln 10 / lambda_max`` to ``4 ln 10 / lambda_2``, taken from the eigenvalues
    given; such times adapt to the size of the shape, and the values are then in units of 1 / area.

    Args:
        eigenvalues: [K].
        eigenvectors: [V, K], orthonormal in the mass.
        times: [T] in units of area.
        count: How many default times.

    Returns:
        [V, T]. With default times and no non-zero eigenvalue, the times are 1.
    """
    if times is None:
        nonzero = eigenvalues[_nonzero(eigenvalues)]
        if nonzero.numel():
            low, high = 4 * math.log(10) / nonzero.max(), 4 * math.log(10) / nonzero.min()
            times = torch.logspace(float(low.log10()), float(high.log10()), checked_integer("count", count, least=1))
        else:
            times = torch.ones(count)
    return eigenvectors.square() @ torch.exp(-eigenvalues[:, None] * times.to(eigenvalues))


def biharmonic_embedding(eigenvalues: Tensor, eigenvectors: Tensor, dim: int) -> Tensor:
    """Coordinates whose Euclidean distance approximates the biharmonic distance on the surface.

    Column i is ``phi_i / lambda_i`` over the non-zero eigenvalues, smallest first (Lipman, Rustamov and
    Funkhouser 2010). Zero eigenvalues (at most 1e-8 of the largest), one per component, are left out, so
    the distance between points of different components means nothing. Distances have the unit of area.

    Args:
        eigenvalues: [K], ascending.
        eigenvectors: [V, K], orthonormal in the mass.
        dim: How many coordinates.

    Returns:
        [V, dim]; if there are fewer than ``dim`` non-zero eigenvalues, the last columns are 0.
    """
    dim = checked_integer("dim", dim, least=0)
    nonzero = _nonzero(eigenvalues)
    columns = (eigenvectors[:, nonzero] / eigenvalues[nonzero])[:, :dim]
    return torch.nn.functional.pad(columns, (0, dim - columns.size(1)))
