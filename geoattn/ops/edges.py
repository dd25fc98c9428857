"""What attention without a softmax is made of: products along edges, weighted sums and maxima over rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from geoattn._arguments import check_tensors
from geoattn._forced import forced
from geoattn.ops.backends import edges_fused
from geoattn.ops.backends.modes import without_autocast
from geoattn.ops.backends.recompute import recompute
from geoattn.ops.segment import segment_max
from geoattn.patterns import Neighbors
from geoattn.patterns.neighbors import check_neighbors


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
        TypeError: If an argument is no tensor, or ``pattern`` is no `Neighbors`.
        ValueError: If shapes, types or devices do not fit together.
        RuntimeError: If a backend was forced that has no such products.
    """
    if not (isinstance(query, Tensor) and isinstance(key, Tensor) and isinstance(pattern, Neighbors)):
        _refuse_types(pattern, query=query, key=key)
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
        TypeError: If an argument is no tensor, or ``pattern`` is no `Neighbors`.
        ValueError: If shapes, types or devices do not fit together.
        RuntimeError: If a backend was forced that has no such products.
    """
    weight, value = _weights_and_values(weight, value, pattern)
    backend = forced()
    return edges_fused.weighted_sum(weight, value, edges_fused.arguments(pattern, value, backend), False, backend)


def weighted_max(weight: Tensor, value: Tensor, pattern: Neighbors) -> Tensor:
    r"""Largest of every row's values times the weights of its edges, channel by channel.

    .. math::
        o_{ic} = \max_{j \in \mathcal{N}(i)} w_{ij} v_{jc}

    Edges that have the maximum share its gradient evenly, as in `torch.amax`. Half types are multiplied in float32.
    Differentiable any number of times; nothing of width ``C`` is kept per edge, except where the gradient is to be
    differentiated again. It has no kernels of its own: every backend runs the same plain torch, some rows at a time.
    The same input gives the same bits, run after run. Under autocast, the narrower type is cast to the wider.

    Args:
        weight: ``[E, H]``, in the order of ``pattern.col``.
        value: ``[M, H, C]``.
        pattern: Of ``N`` queries and ``M`` keys.

    Returns:
        ``[N, H, C]`` in the type of ``value``; zeros for queries without keys.

    Raises:
        TypeError: If an argument is no tensor, or ``pattern`` is no `Neighbors`.
        ValueError: If shapes, types or devices do not fit together.
    """
    weight, value = _weights_and_values(weight, value, pattern)
    rows = value.new_empty(pattern.num_queries, 0)
    with without_autocast(value.device.type):
        return recompute(_highest, pattern, [rows], [value], [weight])


def _highest(
    queries: Sequence[Tensor], keys: Sequence[Tensor], edges: Sequence[Tensor], row: Tensor, _: Sequence[Tensor]
) -> Tensor:
    """Of some rows, as `recompute` wants it."""
    (value,), (weight,), dtype = keys, edges, torch.promote_types(keys[0].dtype, torch.float32)
    message = value.to(dtype) * weight.to(dtype).unsqueeze(-1)
    return segment_max(message, row, num_segments=queries[0].size(0)).to(value.dtype)


def _weights_and_values(weight: Tensor, value: Tensor, pattern: Neighbors) -> tuple[Tensor, Tensor]:
    if not (isinstance(weight, Tensor) and isinstance(value, Tensor) and isinstance(pattern, Neighbors)):
        _refuse_types(pattern, weight=weight, value=value)
    weight, value = _promoted(weight, value)
    _check("weight", weight, "value", value, pattern)
    if weight.shape != (pattern.num_edges, value.size(1)):
        raise ValueError(f"expected weight [{pattern.num_edges}, {value.size(1)}], got {tuple(weight.shape)}")
    return weight, value


def _refuse_types(pattern: Neighbors, **tensors: Tensor) -> None:
    """Called where one of them is wrong: what a check costs is felt in small graphs."""
    check_tensors(**tensors)
    check_neighbors(pattern)


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
