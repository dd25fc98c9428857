"""A function of every edge that keeps nothing per edge: it runs on some rows at a time, and again going backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.nn import Module

from geoattn.ops.backends.recompute import gather as gather
from geoattn.ops.backends.recompute import recompute
from geoattn.patterns import Neighbors

EdgeFunction = Callable[..., Tensor]


def by_rows(
    function: EdgeFunction,
    query: Tensor,
    key: Tensor,
    pattern: Neighbors,
    edge: Tensor | None = None,
    parameters: Sequence[Tensor | Module] = (),
) -> Tensor:
    """``function`` of all rows, some at a time, and again in the backward pass, so that nothing per edge is kept.

    The function must depend on tensors and modules through its arguments only, and leave tensors as they are.
    Differentiable any number of times: derivatives of derivatives keep what the function makes of all edges. Where rows
    cannot be computed one by one, and again, to the same results (random numbers, statistics of all edges, hooks), it
    runs once on all of them, which keeps what it makes of them, too; so it does for few edges.

    Args:
        function: Maps ``(query [r, ...], key [e, ...], row [e], edge [e, ...], *parameters)`` to ``[r, ...]``: ``r``
            rows, the keys of their ``e`` edges, the row in ``[0, r)`` of every edge, int64, and what belongs to edges.
            Queries are brought to edges by `gather`, which accumulates their gradient in float32.
        query: ``[N, ...]``.
        key: ``[M, ...]``.
        pattern: Of ``N`` queries and ``M`` keys.
        edge: ``[E, ...]``, in the order of ``pattern.col``.
        parameters: Tensors and modules that all edges share.

    Returns:
        ``[N, ...]``.
    """

    def of_groups(
        queries: Sequence[Tensor], keys: Sequence[Tensor], edges: Sequence[Tensor], row: Tensor, shared: Sequence[Any]
    ) -> Tensor:
        return function(*queries, *keys, row, edges[0] if edges else None, *shared)

    return recompute(of_groups, pattern, [query], [key], [] if edge is None else [edge], parameters)
