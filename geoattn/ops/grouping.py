"""Groups of equally many points around centres, and features from few points to many."""

from __future__ import annotations

import torch
from torch import Tensor

from geoattn._arguments import check_tensors, checked_integer
from geoattn.geometry.search import knn, radius
from geoattn.ops.edges import weighted_sum
from geoattn.patterns import Neighbors


@torch.compiler.disable  # sizes depend on the data
def knn_query(
    pos: Tensor,
    k: int,
    batch: Tensor | None = None,
    query_pos: Tensor | None = None,
    query_batch: Tensor | None = None,
) -> Tensor:
    """Exactly ``k`` keys for every query: the nearest, and the first of the sample again for those it lacks.

    What Point Transformer's layers attend to (Zhao et al. 2021): in the first author's code a sample of fewer than
    ``k`` keys is filled with its first one. See `knn`, which gives such samples shorter rows.

    Args:
        pos: Keys ``[M, D]``.
        k: Number of keys for each query, at least 1.
        batch: Sample of every key ``[M]``, ascending; default: one sample.
        query_pos: Queries ``[N, D]``; default: the keys, each of which then is its own first neighbor.
        query_batch: Sample of every query ``[N]``, ascending.

    Returns:
        Indices into ``pos``, ``[N, k]``, int64, nearest first.

    Raises:
        TypeError: If points are no tensors, or ``k`` is no integer.
        ValueError: On bad shapes, non-finite coordinates or ``k < 1``, or if a query is in a sample without keys.
    """
    k = checked_integer("k", k, least=1)
    rowptr, col = knn(pos, k, batch, query_pos, query_batch)
    degree = rowptr.diff()
    _check_all_have_keys(degree, "its sample has none")
    if col.numel() == k * degree.numel():
        return col.view(-1, k)
    query_batch = batch if query_pos is None else query_batch
    if batch is None or query_batch is None:
        first = torch.zeros_like(degree)
    else:
        first = torch.searchsorted(batch.contiguous(), query_batch.contiguous())
    rank = torch.arange(k, device=col.device)
    there = rank < degree[:, None]
    return col[rowptr[:-1, None] + rank.where(there, 0)].where(there, first[:, None])


@torch.compiler.disable
def ball_query(
    pos: Tensor,
    r: float,
    k: int,
    batch: Tensor | None = None,
    query_pos: Tensor | None = None,
    query_batch: Tensor | None = None,
) -> Tensor:
    """Exactly ``k`` keys within distance ``r`` of every query: the first by index, and the very first again if fewer.

    Qi et al., "PointNet++" (2017), as in the authors' code. Which keys these are follows from the order of the keys,
    unlike those of `radius` with ``max_neighbors``, which are the nearest. Distances are compared as in `radius`.

    Args:
        pos: Keys ``[M, D]``.
        r: Radius, in the unit of ``pos``.
        k: Number of keys for each query, at least 1.
        batch: Sample of every key ``[M]``, ascending; default: one sample.
        query_pos: Queries ``[N, D]``; default: the keys.
        query_batch: Sample of every query ``[N]``, ascending.

    Returns:
        Indices into ``pos``, ``[N, k]``, int64; those of a row ascend, and then its first one is repeated.

    Raises:
        TypeError: If points are no tensors, or ``k`` is no integer.
        ValueError: On bad shapes, non-finite coordinates, ``r < 0`` or ``k < 1``, or if a query has no key within
            ``r``.

    Example:
        >>> pos = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
        >>> geoattn.ops.ball_query(pos, 2.0, 3)
        tensor([[0, 1, 2],
                [0, 1, 2],
                [0, 1, 2],
                [3, 3, 3]])
    """
    k = checked_integer("k", k, least=1)
    rowptr, col = radius(pos, r, batch, query_pos, query_batch)
    degree = rowptr.diff()
    _check_all_have_keys(degree, f"none is within r = {r:g}")
    # Rows from nearest-first to ascending: sorted as one, with numbers that grow from row to row.
    keys = max(pos.size(0), 1)
    row = torch.arange(degree.numel(), device=col.device).repeat_interleave(degree, output_size=col.numel())
    col = (row * keys + col).sort().values % keys
    rank = torch.arange(k, device=col.device)
    return col[rowptr[:-1, None] + rank.where(rank < degree[:, None], 0)]


@torch.compiler.disable
def knn_interpolate(
    x: Tensor,
    pos_x: Tensor,
    pos_y: Tensor,
    batch_x: Tensor | None = None,
    batch_y: Tensor | None = None,
    k: int = 3,
    *,
    power: int = 2,
    eps: float = 1e-16,
) -> Tensor:
    r"""Features of the ``k`` nearest points, averaged with the inverse of their distances as weights.

    .. math::
        y_i = \frac{\sum_j w_{ij} x_j}{\sum_j w_{ij}}, \qquad w_{ij} = \frac{1}{\|p_i - p_j\|^{power} + eps}

    Qi et al., "PointNet++" (2017), eq. 2. Arguments and results are those of `torch_geometric.nn.knn_interpolate`; the
    authors' code has ``eps=1e-8``, Point Transformer's ``power=1, eps=1e-8``. A sample of fewer than ``k`` points gives
    what it has, so one point gives its features to all. Weights are not differentiated, as in PyG.

    Args:
        x: Features ``[M, C]`` of points.
        pos_x: Their positions ``[M, D]``.
        pos_y: Where features are wanted, ``[N, D]``.
        batch_x: Sample of every point ``[M]``, ascending; default: one sample.
        batch_y: Sample of every place ``[N]``, ascending.
        k: Number of neighbors.
        power: 2 for squared distances, 1 for distances.
        eps: Keeps the weights of points at distance 0 finite.

    Returns:
        ``[N, C]`` in the type of ``x``; zeros in samples that have no points.

    Raises:
        TypeError: If an argument is no tensor, or ``k`` is no integer.
        ValueError: On bad shapes or non-finite coordinates, or if ``power`` is neither 1 nor 2.
    """
    check_tensors(x=x, pos_x=pos_x, pos_y=pos_y)
    if x.dim() != 2 or x.size(0) != pos_x.size(0):
        raise ValueError(f"expected x [M, C] and pos_x [M, D], got {tuple(x.shape)} and {tuple(pos_x.shape)}")
    if power not in (1, 2):
        raise ValueError(f"power must be 1 (distances) or 2 (squared distances), got {power}")
    rowptr, col = knn(pos_x, k, batch_x, pos_y, batch_y)
    neighbors = Neighbors(rowptr, col, pos_x.size(0), check=False)
    with torch.no_grad():
        row = neighbors.row.long()
        square = (pos_x[col] - pos_y[row]).square().sum(1)
        weight = 1 / ((square if power == 2 else square.sqrt()) + eps)
        total = weight.new_zeros(pos_y.size(0)).index_put((row,), weight, accumulate=True)
        weight = (weight / total[row]).to(x.dtype)
    return weighted_sum(weight.unsqueeze(1), x.unsqueeze(1), neighbors).squeeze(1)


def _check_all_have_keys(degree: Tensor, reason: str) -> None:
    if bool((degree == 0).any()):
        query = int((degree == 0).nonzero()[0])
        raise ValueError(f"query {query} has no key: {reason}, and there must be one to repeat")
