"""`attend`: softmax attention over a pattern, the one operator all layers are made of."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from geoattn.ops.backends import reference
from geoattn.patterns import Neighbors, Windows

Pattern = Neighbors | Windows


@overload
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern,
    bias: Tensor | None = ...,
    scale: float | None = ...,
    dropout: float = ...,
    *,
    key_weight: Tensor | None = ...,
    return_lse: Literal[False] = ...,
) -> Tensor: ...


@overload
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern,
    bias: Tensor | None = ...,
    scale: float | None = ...,
    dropout: float = ...,
    *,
    key_weight: Tensor | None = ...,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern,
    bias: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    *,
    key_weight: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Softmax attention of every query over the keys its pattern names.

    .. math::
        o_i = \sum_{j \in \mathcal{N}(i)} \operatorname{softmax}_j
        \bigl(s \, q_i^\top k_j + b_{ij} + \log w_j\bigr) \, v_j

    A query without keys, or all of whose scores are :math:`-\infty`, gives zeros. Half types are accumulated in
    float32. Differentiable any number of times.

    Args:
        query: ``[N, H, D]``.
        key: ``[M, G, D]``; ``G`` divides ``H``, and each key head serves ``H / G`` consecutive query heads.
        value: ``[M, G, C]``.
        pattern: Who attends to whom: `Neighbors` or `Windows`, of ``N`` queries and ``M`` keys.
        bias: Added to the scores: per edge and head for `Neighbors`, ``[E, H]`` or ``[E, 1]``, in the order of
            ``pattern.col`` (see `Neighbors.reorder_edges`). `Windows` takes none.
        scale: Factor ``s`` of the dot product; default ``1 / sqrt(D)``.
        dropout: Probability with which an attention weight is zeroed (the others are scaled up). It applies
            whenever it is not 0: pass 0 in evaluation.
        key_weight: Weight ``w`` of every key, not negative, ``[M]`` or ``[M, H]``, such as an area or a
            quadrature weight; 0 hides the key.
        return_lse: Also return the log-sum-exp of each query's scores, ``[N, H]`` (``-inf`` where empty).

    Returns:
        ``[N, H, C]`` in the type of ``query``, and the log-sum-exp in float32 (float64 for float64 inputs) if
        asked for.

    Raises:
        ValueError: If shapes, types or devices do not fit together, or ``dropout`` is outside ``[0, 1)``.

    Example:
        >>> import torch, geoattn
        >>> pattern = geoattn.Neighbors.knn(torch.rand(100, 3), k=16)
        >>> q, k, v = torch.randn(3, 100, 4, 32).unbind()
        >>> geoattn.attend(q, k, v, pattern).shape
        torch.Size([100, 4, 32])
    """
    _check(query, key, value, pattern, bias, dropout, key_weight)
    if scale is None:
        scale = query.size(-1) ** -0.5
    if isinstance(pattern, Windows):
        out, lse = reference.windows(query, key, value, pattern, scale, dropout, key_weight)
    else:
        out, lse = reference.neighbors(query, key, value, pattern, bias, scale, dropout, key_weight)
    return (out, lse) if return_lse else out


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern,
    bias: Tensor | None,
    dropout: float,
    key_weight: Tensor | None,
) -> None:
    shapes = f"got query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if not query.dim() == key.dim() == value.dim() == 3:
        raise ValueError(f"expected query [N, H, D], key [M, G, D] and value [M, G, C], {shapes}")
    if query.size(2) != key.size(2):
        raise ValueError(f"query and key must have the same last dimension D, {shapes}")
    if key.shape[:2] != value.shape[:2]:
        raise ValueError(f"key and value must have the same first dimensions [M, G], {shapes}")
    if query.size(1) % key.size(1):
        raise ValueError(f"the number of key heads must divide the number of query heads, {shapes}")
    if query.dtype != key.dtype or query.dtype != value.dtype or not query.is_floating_point():
        raise ValueError(
            f"query, key and value must have one floating type, got {query.dtype}, {key.dtype} and {value.dtype}"
        )
    if pattern.num_queries != query.size(0) or pattern.num_keys != key.size(0):
        raise ValueError(f"{pattern} does not fit: {shapes}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    heads = query.size(1)
    if bias is not None:
        if isinstance(pattern, Windows):
            raise ValueError("Windows takes no bias; write its pairs out with pattern.to_neighbors()")
        if bias.dim() != 2 or bias.size(0) != pattern.num_edges or bias.size(1) not in (1, heads):
            raise ValueError(f"expected bias [{pattern.num_edges}, {heads}], got {tuple(bias.shape)}")
    if key_weight is not None and key_weight.shape not in ((key.size(0),), (key.size(0), heads)):
        raise ValueError(
            f"expected key_weight [{key.size(0)}] or [{key.size(0)}, {heads}], got {tuple(key_weight.shape)}"
        )
    index = pattern.query_ptr if isinstance(pattern, Windows) else pattern.col
    if not query.device == key.device == value.device == index.device:
        raise ValueError(
            f"query, key, value and pattern must be on one device, got {query.device}, {key.device}, "
            f"{value.device} and {index.device}"
        )
