"""`attend`: softmax attention over a pattern, the one operator all layers are made of."""

from __future__ import annotations

from typing import Literal, NoReturn, overload

import torch
from torch import Tensor, nn

from geoattn._arguments import check_tensors
from geoattn._forced import forced
from geoattn.ops.backends import fused, reference, windows
from geoattn.ops.backends.modes import autocast, traced, transforms_active, without_autocast
from geoattn.ops.backends.problem import Problem
from geoattn.ops.segment import segment_softmax
from geoattn.patterns import Neighbors, Windows
from geoattn.patterns.neighbors import check_neighbors, how_to_make_neighbors

Pattern = Neighbors | Windows


@overload
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern,
    bias: Tensor | nn.Module | None = ...,
    scale: float | None = ...,
    dropout: float = ...,
    *,
    position: Tensor | None = ...,
    key_position: Tensor | None = ...,
    key_weight: Tensor | None = ...,
    edge_key: Tensor | None = ...,
    edge_value: Tensor | None = ...,
    att: Tensor | None = ...,
    negative_slope: float = ...,
    return_lse: Literal[False] = ...,
) -> Tensor: ...


@overload
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern,
    bias: Tensor | nn.Module | None = ...,
    scale: float | None = ...,
    dropout: float = ...,
    *,
    position: Tensor | None = ...,
    key_position: Tensor | None = ...,
    key_weight: Tensor | None = ...,
    edge_key: Tensor | None = ...,
    edge_value: Tensor | None = ...,
    att: Tensor | None = ...,
    negative_slope: float = ...,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern,
    bias: Tensor | nn.Module | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    *,
    position: Tensor | None = None,
    key_position: Tensor | None = None,
    key_weight: Tensor | None = None,
    edge_key: Tensor | None = None,
    edge_value: Tensor | None = None,
    att: Tensor | None = None,
    negative_slope: float = 0.2,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Softmax attention of every query over the keys its pattern names.

    .. math::
        o_i = \sum_{j \in \mathcal{N}(i)} \operatorname{softmax}_j
        \bigl(s_{ij} + b_{ij} + \log w_j\bigr) \, (v_j + e^v_{ij}), \qquad
        s_{ij} = \text{scale} \cdot q_i^\top (k_j + e^k_{ij})

    or, where ``att`` is given, with the additive scores of GATv2 (Brody et al. 2022, eq. 7)

    .. math::
        s_{ij} = a^\top \operatorname{LeakyReLU}(q_i + k_j + e^k_{ij}),

    which are those of GAT (Velickovic et al. 2018) where ``D`` is 1 and queries and keys are the two halves of its
    score. With ``edge_key`` and ``edge_value`` the same tensor, dot products are those of the graph transformer of Shi
    et al. (2021, eq. 3 and 4), PyG's ``TransformerConv``.

    A query without keys, or all of whose scores are :math:`-\infty`, gives zeros. Half types are accumulated in
    float32. Differentiable any number of times: first derivatives are fused and store nothing per edge, higher ones
    run the plain formulas. The same input gives the same bits, run after run, and for any number of threads where the
    CPU's compiled kernels run; torch's own products, on which long windows run, repeat for one number of threads.
    Under autocast, queries, keys, values and edge terms are cast to its type. See `geoattn.backends` for what runs.

    Args:
        query: ``[N, H, D]``.
        key: ``[M, G, D]``; ``G`` divides ``H``, and each key head serves ``H / G`` consecutive query heads.
        value: ``[M, G, C]``; where it is the very tensor given as ``key``, one gradient is made of both.
        pattern: Who attends to whom: `Neighbors` or `Windows`, of ``N`` queries and ``M`` keys. Where heads have
            patterns of their own (`Neighbors.per_head`), ``H`` below counts as 1 for what is given per edge.
        bias: Added to the scores: per edge and head for `Neighbors`, ``[E, H]`` or ``[E, 1]``, in the order of
            ``pattern.col`` (see `Neighbors.reorder_edges`). For `Windows`, a module that maps the positions of runs of
            queries ``[R, q, P]`` and of keys ``[R, k, P]`` to ``[R, H, q, k]`` or ``[R, 1, q, k]``, every pair by
            itself, such as `geoattn.nn.RelativePositionTable`; it is given some pairs at a time, and run again in the
            backward pass, so that the bias is never there for all pairs.
        scale: Factor of the dot product; default ``1 / sqrt(D)``. Additive scores have none.
        dropout: Probability with which an attention weight is zeroed (the others are scaled up). It applies
            whenever it is not 0: pass 0 in evaluation. Seeded by torch's default generator.
        position: Of the queries, ``[N, P]``, for a module as ``bias``.
        key_position: Of the keys, ``[M, P]``; default ``position``.
        key_weight: Weight ``w`` of every key, not negative, ``[M]`` or ``[M, H]``, such as an area or a
            quadrature weight; 0 hides the key, which then has no gradient, its weight included.
        edge_key: Added to the key of every edge, ``[E, G', D]`` with ``G'`` dividing ``H``, in the order of
            ``pattern.col``, for `Neighbors`.
        edge_value: Added to the value of every edge, ``[E, G', C]``, likewise.
        att: Attention vector of additive scores, ``[H, D]``, for `Neighbors`.
        negative_slope: Slope of the LeakyReLU of additive scores.
        return_lse: Also return the log-sum-exp of each query's scores, ``[N, H]`` (``-inf`` where empty).

    Returns:
        ``[N, H, C]`` in the type of ``query``, and the log-sum-exp in float32 (float64 for float64 inputs) if
        asked for.

    Raises:
        TypeError: If an argument is no tensor, or ``pattern`` no pattern: of an ``edge_index``, make one with
            `Neighbors.from_edge_index`.
        ValueError: If shapes, types or devices do not fit together, or ``dropout`` is outside ``[0, 1)``.
        RuntimeError: If a backend was forced that cannot take the call.

    Example:
        >>> import torch, geoattn
        >>> pattern = geoattn.Neighbors.knn(torch.rand(100, 3), k=16)
        >>> q, k, v = torch.randn(3, 100, 4, 32).unbind()
        >>> geoattn.attend(q, k, v, pattern).shape
        torch.Size([100, 4, 32])
    """
    if not (isinstance(query, Tensor) and isinstance(key, Tensor) and isinstance(value, Tensor)):
        check_tensors(query=query, key=key, value=value)
    same = value is key
    query, key, value, edge_key, edge_value = autocast(  # type: ignore[assignment]
        query.device.type, query, key, value, edge_key, edge_value
    )
    value = key if same else value
    bias, module = windows.split_bias(bias)
    _check(query, key, value, pattern, bias, dropout, key_weight, edge_key, edge_value, att)
    key_position = position if key_position is None else key_position
    windows.check_positions(query, key, pattern, module, position, key_position)
    if scale is None:
        scale = max(query.size(-1), 1) ** -0.5
    log_weight = _log_weight(key_weight, query)
    seed = torch.randint(2**63 - 1, ()) if dropout else None
    if isinstance(pattern, Windows) and not windows.pairs_written_out(forced(), pattern, query, module):
        inputs = windows.Inputs(query, key, value, log_weight, position, key_position)
        out, lse = windows.attend(inputs, pattern, scale, dropout, seed, module, forced())
        return (out, lse) if return_lse else out
    if isinstance(pattern, Windows):
        pattern = pattern.to_neighbors()

    problem = _problem(query, key, value, pattern, bias, log_weight, edge_key, edge_value, att, scale, negative_slope)
    if dropout:
        problem = problem._replace(dropout=dropout, seed=seed)
    with without_autocast(query.device.type):
        out, lse = fused.attend(problem, pattern, forced())
    if pattern.heads > 1:
        out, lse = out.view(*query.shape[:2], -1), lse.view(query.shape[:2])
    return (out, lse) if return_lse else out


def attention_weights(
    query: Tensor,
    key: Tensor,
    pattern: Neighbors,
    bias: Tensor | None = None,
    scale: float | None = None,
    *,
    key_weight: Tensor | None = None,
    edge_key: Tensor | None = None,
    att: Tensor | None = None,
    negative_slope: float = 0.2,
) -> Tensor:
    """The weights with which `attend` sums values, before dropout: to look at, or to train against.

    It gathers the keys of all edges, as `attend` never does. Differentiable any number of times. Arguments and errors
    are those of `attend`.

    Returns:
        ``[E, H]`` in the order of ``pattern.col``, in float32 (float64 for float64 inputs).
    """
    check_tensors(query=query, key=key)
    check_neighbors(pattern)
    query, key, edge_key = autocast(query.device.type, query, key, edge_key)  # type: ignore[assignment]
    _check(query, key, key, pattern, bias, 0.0, key_weight, edge_key, None, att)
    if scale is None:
        scale = query.size(-1) ** -0.5
    log_weight = _log_weight(key_weight, query)
    pattern.ensure_valid()
    problem = _problem(query, key, key, pattern, bias, log_weight, edge_key, None, att, scale, negative_slope)
    return segment_softmax(reference.scores(problem, reference.row_of_edges(problem)), ptr=problem.rowptr)


def _log_weight(key_weight: Tensor | None, query: Tensor) -> Tensor | None:
    """``[M, H or 1]``, in the accumulation dtype."""
    if key_weight is None:
        return None
    # On a GPU the host would have to wait; NaN goes on into the output there.
    seen = key_weight.device.type == "cpu" and not transforms_active(key_weight) and not traced(key_weight)
    if seen and not bool((key_weight >= 0).all()):
        raise ValueError(f"key_weight must not be negative or NaN, got {float(key_weight.detach().amin())}")
    log_weight = reference.log(key_weight.to(torch.promote_types(query.dtype, torch.float32)))
    return log_weight.unsqueeze(1) if log_weight.dim() == 1 else log_weight


def _problem(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Neighbors,
    bias: Tensor | None,
    log_weight: Tensor | None,
    edge_key: Tensor | None,
    edge_value: Tensor | None,
    att: Tensor | None,
    scale: float,
    negative_slope: float,
) -> Problem:
    """What a backend is given, without dropout."""
    sum_dtype = torch.promote_types(query.dtype, torch.float32)
    problem = Problem(
        query=query,
        key=key,
        value=value,
        rowptr=pattern.rowptr,
        col=pattern.col,
        bias=None if bias is None else bias.to(sum_dtype),
        log_weight=log_weight,
        edge_key=edge_key,
        edge_value=edge_value,
        att=None if att is None else att.to(sum_dtype),
        scale=scale,
        negative_slope=negative_slope,
        dropout=0.0,
        seed=None,
    )
    return _heads_as_nodes(problem) if pattern.heads > 1 else problem


def _heads_as_nodes(problem: Problem) -> Problem:
    """For patterns of `Neighbors.per_head`, whose queries and keys are heads of elements: one head each."""
    heads = problem.query.size(1)
    weight = problem.log_weight

    def nodes(x: Tensor) -> Tensor:
        return x.repeat_interleave(heads // x.size(1), 1).flatten(0, 1).unsqueeze(1)

    return problem._replace(
        query=problem.query.flatten(0, 1).unsqueeze(1),
        key=nodes(problem.key),
        value=nodes(problem.value),
        log_weight=None if weight is None else nodes(weight),
    )


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern,
    bias: Tensor | None,
    dropout: float,
    key_weight: Tensor | None,
    edge_key: Tensor | None,
    edge_value: Tensor | None,
    att: Tensor | None,
) -> None:
    if not isinstance(pattern, (Neighbors, Windows)):
        raise TypeError(f"expected Neighbors or Windows as pattern, got {how_to_make_neighbors(pattern)}")
    of_query, of_key, of_value = query.shape, key.shape, value.shape

    def refuse(reason: str) -> NoReturn:
        raise ValueError(f"{reason}, got query {tuple(of_query)}, key {tuple(of_key)}, value {tuple(of_value)}")

    if not len(of_query) == len(of_key) == len(of_value) == 3:
        refuse("expected query [N, H, D], key [M, G, D] and value [M, G, C]")
    heads, groups = of_query[1], of_key[1]
    if of_query[2] != of_key[2]:
        refuse("query and key must have the same last dimension D")
    if of_key[:2] != of_value[:2]:
        refuse("key and value must have the same first dimensions [M, G]")
    if groups == 0 or heads % groups:
        refuse("the number of key heads must divide the number of query heads")
    if query.dtype != key.dtype or query.dtype != value.dtype or not query.is_floating_point():
        raise ValueError(
            f"query, key and value must have one floating type, got {query.dtype}, {key.dtype} and {value.dtype}"
        )
    of_heads = pattern.heads if isinstance(pattern, Neighbors) else 1
    if isinstance(pattern, Windows):
        fits = pattern.fits(of_query[0], of_key[0])
    else:
        fits = pattern.num_queries == of_query[0] * of_heads and pattern.num_keys == of_key[0] * of_heads
    if not fits:
        refuse(f"{pattern} does not fit")
    if of_heads not in (1, heads):
        refuse(f"{pattern} was made for {of_heads} heads")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    if isinstance(pattern, Windows):
        for name, term in (("bias", bias), ("edge_key", edge_key), ("edge_value", edge_value), ("att", att)):
            if term is not None:
                raise ValueError(f"Windows takes no {name}; write its pairs out with pattern.to_neighbors()")
        index = pattern.query_ptr
    else:
        if not (bias is edge_key is edge_value is att is None):
            _check_edges(heads, key, value, pattern, bias, edge_key, edge_value, att)
        index = pattern.col
    if key_weight is not None:
        check_tensors(key_weight=key_weight)
        if key_weight.shape not in (of_key[:1], (of_key[0], heads)):
            shape = tuple(key_weight.shape)
            raise ValueError(f"expected key_weight [{of_key[0]}] or [{of_key[0]}, {heads}], got {shape}")
    if not query.device == key.device == value.device == index.device:
        raise ValueError(
            f"query, key, value and pattern must be on one device, got {query.device}, {key.device}, "
            f"{value.device} and {index.device}"
        )


def _check_edges(
    heads: int,
    key: Tensor,
    value: Tensor,
    pattern: Neighbors,
    bias: Tensor | None,
    edge_key: Tensor | None,
    edge_value: Tensor | None,
    att: Tensor | None,
) -> None:
    terms = {"bias": bias, "edge_key": edge_key, "edge_value": edge_value, "att": att}
    check_tensors(**{name: term for name, term in terms.items() if term is not None})
    edges = pattern.num_edges
    if pattern.heads > 1:
        if att is not None:
            raise ValueError("additive scores need a pattern that all heads share; call attend for each head by itself")
        heads = 1
    if bias is not None and (bias.dim() != 2 or bias.size(0) != edges or bias.size(1) not in (1, heads)):
        raise ValueError(f"expected bias [{edges}, {heads}] or [{edges}, 1], got {tuple(bias.shape)}")
    for name, term, last in (("edge_key", edge_key, key.size(2)), ("edge_value", edge_value, value.size(2))):
        if term is None:
            continue
        if term.dim() != 3 or term.size(0) != edges or term.size(2) != last or not term.size(1) or heads % term.size(1):
            raise ValueError(f"expected {name} [{edges}, G', {last}] with G' dividing {heads}, got {tuple(term.shape)}")
        if term.dtype != key.dtype:
            raise ValueError(f"{name} must have the type of key, {key.dtype}, got {term.dtype}")
    if att is not None and att.shape != (heads, key.size(2)):
        raise ValueError(f"expected att [{heads}, {key.size(2)}], got {tuple(att.shape)}")
