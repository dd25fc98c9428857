"""What attention without a softmax is made of: products along edges, and weighted sums over rows.

Each is made of the other's derivatives, so both can be differentiated any number of times, and neither keeps anything
per edge but weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geoattn.patterns import Neighbors

# Edges taken at a time, so that what is gathered stays in the cache.
EDGES_PER_CHUNK = 1 << 14


def edge_dot(query: Tensor, key: Tensor, pattern: Neighbors) -> Tensor:
    r"""Dot product of the query and the key of every edge: :math:`s_{e} = q_i^\top k_j`.

    Half types are accumulated in float32. Differentiable any number of times.

    Args:
        query: ``[N, H, D]``.
        key: ``[M, H, D]``.
        pattern: Of ``N`` queries and ``M`` keys.

    Returns:
        ``[E, H]``, in the order of ``pattern.col``, in the type of ``query``.

    Raises:
        ValueError: If shapes or types do not fit together.
    """
    _check("query", query, "key", key, pattern)
    if query.shape[1:] != key.shape[1:] or query.size(0) != pattern.num_queries:
        raise ValueError(
            f"expected query [{pattern.num_queries}, H, D] and key [{pattern.num_keys}, H, D], "
            f"got {tuple(query.shape)} and {tuple(key.shape)}"
        )
    return _EdgeDot.apply(query, key, pattern)


def weighted_sum(weight: Tensor, value: Tensor, pattern: Neighbors) -> Tensor:
    r"""Sum of every row's values times the weights of its edges: :math:`o_i = \sum_{j \in \mathcal{N}(i)} w_{ij} v_j`.

    Half types are accumulated in float32. Differentiable any number of times.

    Args:
        weight: ``[E, H]``, in the order of ``pattern.col``.
        value: ``[M, H, C]``.
        pattern: Of ``N`` queries and ``M`` keys.

    Returns:
        ``[N, H, C]`` in the type of ``value``; zeros for queries without keys.

    Raises:
        ValueError: If shapes or types do not fit together.
    """
    _check("weight", weight, "value", value, pattern)
    if weight.shape != (pattern.num_edges, value.size(1)):
        raise ValueError(f"expected weight [{pattern.num_edges}, {value.size(1)}], got {tuple(weight.shape)}")
    return _WeightedSum.apply(weight, value, pattern)


class _EdgeDot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, pattern: Neighbors) -> Tensor:
        ctx.save_for_backward(query, key)
        ctx.pattern = pattern
        parts = [
            (query[row].to(_sums(query)) * key[col].to(_sums(query))).sum(-1)
            for row, col in zip(pattern.row.split(EDGES_PER_CHUNK), pattern.col.split(EDGES_PER_CHUNK), strict=True)
        ]
        return torch.cat(parts).to(query.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        query, key = ctx.saved_tensors
        pattern = ctx.pattern
        grad_query = _WeightedSum.apply(grad, key, pattern) if ctx.needs_input_grad[0] else None
        grad_key = _by_key(grad, query, pattern) if ctx.needs_input_grad[1] else None
        return grad_query, grad_key, None


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, value: Tensor, pattern: Neighbors) -> Tensor:
        ctx.save_for_backward(weight, value)
        ctx.pattern = pattern
        out = value.new_zeros(pattern.num_queries, *value.shape[1:], dtype=_sums(value))
        for begin in range(0, pattern.num_edges, EDGES_PER_CHUNK):
            chunk = slice(begin, begin + EDGES_PER_CHUNK)
            message = value[pattern.col[chunk]].to(out.dtype) * weight[chunk].to(out.dtype).unsqueeze(-1)
            out.index_add_(0, pattern.row[chunk], message)
        return out.to(value.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weight, value = ctx.saved_tensors
        pattern = ctx.pattern
        grad_weight = _EdgeDot.apply(grad, value, pattern) if ctx.needs_input_grad[0] else None
        grad_value = _by_key(weight, grad, pattern) if ctx.needs_input_grad[1] else None
        return grad_weight, grad_value, None


def _by_key(weight: Tensor, of_query: Tensor, pattern: Neighbors) -> Tensor:
    """For every key the sum of its queries' values times the weights of the edges."""
    turned = pattern.transpose
    assert turned.edge_order is not None
    return _WeightedSum.apply(weight[turned.edge_order.long()], of_query, turned)


def _sums(x: Tensor) -> torch.dtype:
    """The type sums are made in."""
    return torch.promote_types(x.dtype, torch.float32)


def _check(of_query: str, first: Tensor, of_key: str, second: Tensor, pattern: Neighbors) -> None:
    if second.dim() != 3 or second.size(0) != pattern.num_keys:
        raise ValueError(f"expected {of_key} [{pattern.num_keys}, H, D], got {tuple(second.shape)}")
    if first.dtype != second.dtype or not first.is_floating_point():
        raise ValueError(f"{of_query} and {of_key} must have one floating type, got {first.dtype} and {second.dtype}")
    if pattern.heads != 1:
        raise ValueError(f"expected a pattern that all heads share, got {pattern}")
