"""What attention without a softmax is made of: products along edges, weighted sums and maxima over rows."""

from __future__ import annotations

import torch
from torch import Tensor

from geoattn._forced import forced
from geoattn.ops.backends import edges_fused
from geoattn.patterns import Neighbors


def edge_dot(query: Tensor, key: Tensor, pattern: Neighbors) -> Tensor:
    r"""Dot product of the query and the key of every edge: :math:`s_{e} = q_i^\top k_j`.

    Half types are accumulated in float32. Differentiable any number of times; nothing of width ``D`` is kept per edge.
    The same input gives the same bits, run after run and for any number of threads on a CPU. Under autocast, the
    narrower type is cast to the wider.

    Args:
        query: ``[N, H, D]``.
        key: ``[M, H, D]``.
        pattern: Of ``N`` queries and ``M`` keys.

    Returns:
        ``[E, H]``, in the order of ``pattern.col``, in the type of ``query``.

    Raises:
        ValueError: If shapes, types or devices do not fit together.
        RuntimeError: If a backend was forced that has no such products.
    """
    query, key = _promoted(query, key)
    _check("query", query, "key", key, pattern)
    if query.shape[1:] != key.shape[1:] or query.size(0) != pattern.num_queries:
        raise ValueError(
            f"expected query [{pattern.num_queries}, H, D] and key [{pattern.num_keys}, H, D], "
            f"got {tuple(query.shape)} and {tuple(key.shape)}"
        )
    backend = forced()
    return edges_fused.edge_dot(query, key, edges_fused.arguments(pattern, key, backend), backend)


def weighted_sum(weight: Tensor, value: Tensor, pattern: Neighbors) -> Tensor:
    r"""Sum of every row's values times the weights of its edges: :math:`o_i = \sum_{j \in \mathcal{N}(i)} w_{ij} v_j`.

    Half types are accumulated in float32. Differentiable any number of times; nothing of width ``C`` is kept per edge.
    The same input gives the same bits, run after run and for any number of threads on a CPU. Under autocast, the
    narrower type is cast to the wider.

    Args:
        weight: ``[E, H]``, in the order of ``pattern.col``.
        value: ``[M, H, C]``.
        pattern: Of ``N`` queries and ``M`` keys.

    Returns:
        ``[N, H, C]`` in the type of ``value``; zeros for queries without keys.

    Raises:
        ValueError: If shapes, types or devices do not fit together.
        RuntimeError: If a backend was forced that has no such products.
    """
    weight, value = _promoted(weight, value)
    _check("weight", weight, "value", value, pattern)
    if weight.shape != (pattern.num_edges, value.size(1)):
        raise ValueError(f"expected weight [{pattern.num_edges}, {value.size(1)}], got {tuple(weight.shape)}")
    backend = forced()
    return edges_fused.weighted_sum(weight, value, edges_fused.arguments(pattern, value, backend), False, backend)


def _promoted(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """In one type, where autocast has given them two."""
    if not torch.is_autocast_enabled(second.device.type):
        return first, second
    dtype = torch.promote_types(first.dtype, second.dtype)
    return first.to(dtype), second.to(dtype)


def _check(of_query: str, first: Tensor, of_key: str, second: Tensor, pattern: Neighbors) -> None:
    if second.dim() != 3 or second.size(0) != pattern.num_keys:
        raise ValueError(f"expected {of_key} [{pattern.num_keys}, H, D], got {tuple(second.shape)}")
    if first.dtype != second.dtype or not first.is_floating_point():
        raise ValueError(f"{of_query} and {of_key} must have one floating type, got {first.dtype} and {second.dtype}")
    if pattern.heads != 1:
        raise ValueError(f"expected a pattern that all heads share, got {pattern}")
    if not first.device == second.device == pattern.col.device:
        raise ValueError(
            f"{of_query}, {of_key} and pattern must be on one device, got {first.device}, {second.device} and "
            f"{pattern.col.device}"
        )
