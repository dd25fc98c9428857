"""`vector_attend`: attention with a weight for every channel, as in Point Transformer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from geoattn._arguments import check_tensors
from geoattn._forced import forced
from geoattn.ops.backends import vector_chain, vector_reference, vector_rows
from geoattn.ops.backends.choose import kernels_for
from geoattn.ops.backends.modes import traced, transforms_active
from geoattn.ops.backends.recompute import of_all_rows, recompute
from geoattn.patterns import Neighbors
from geoattn.patterns.neighbors import check_neighbors


def vector_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Neighbors,
    position: Tensor,
    key_position: Tensor | None = None,
    *,
    pos_nn: Callable[[Tensor], Tensor],
    attn_nn: Callable[[Tensor], Tensor] | None = None,
    dropout: float = 0.0,
) -> Tensor:
    r"""Vector attention: every channel has its own softmax over the keys of a row.

    .. math::
        o_i = \sum_{j \in \mathcal{N}(i)} \operatorname{softmax}_j \bigl(\gamma(q_i - k_j + \delta_{ij})\bigr)
        \odot (v_j + \delta_{ij}), \qquad \delta_{ij} = \theta(p_i - p_j)

    with the networks :math:`\theta` (``pos_nn``) and :math:`\gamma` (``attn_nn``): Zhao et al. 2021, Point Transformer,
    eq. 3, with the signs of PyG's ``PointTransformerConv``. A query without keys gives zeros. Half types are
    accumulated in float32. Differentiable any number of times.

    Nothing per edge is kept for the backward pass, which runs the networks again, on some thousand edges at a time. So
    the networks must be modules that take every edge by itself. Those that do not (batch normalization in training
    mode, ...), that draw random numbers (dropout in training mode), that change their buffers, or that are not modules
    are found out by trying them on four edges; the plain formulas then run, which give the right numbers but keep every
    edge. So they do with ``dropout``, and while compiling or exporting.

    Chains of linear layers and ReLU, ``nn.Sequential`` or PyG's ``MLP``, are fastest on CPUs: they run inside the
    compiled kernels. The same input gives the same bits, run after run; for such chains on a CPU also for any number of
    threads, for others as far as torch's own products do.

    Args:
        query: ``[N, C]``.
        key: ``[M, C]``.
        value: ``[M, C]``.
        pattern: Who attends to whom, of ``N`` queries and ``M`` keys.
        position: Of the queries, ``[N, P]``.
        key_position: Of the keys, ``[M, P]``; default ``position``.
        pos_nn: Maps differences of positions ``[e, P]`` to ``[e, C]``.
        attn_nn: Maps ``[e, C]`` to scores ``[e, S]``; default: the identity. ``S`` divides ``C``, and score ``s`` is
            shared by ``C / S`` consecutive channels, as the groups of Point Transformer V2 (Wu et al. 2022, eq. 4).
            (Point Transformer's own code shares it by the channels ``s``, ``s + S``, ``s + 2 S``, ...)
        dropout: Probability with which an attention weight is zeroed (the others are scaled up). It applies whenever
            it is not 0: pass 0 in evaluation.

    Returns:
        ``[N, C]`` in the type of ``query``.

    Raises:
        TypeError: If an argument is no tensor, or ``pattern`` is no `Neighbors`.
        ValueError: If shapes, types or devices do not fit together, or ``dropout`` is outside ``[0, 1)``.
        RuntimeError: If a backend was forced that has no vector attention.

    Example:
        >>> import torch, geoattn
        >>> pos = torch.rand(100, 3)
        >>> pattern = geoattn.Neighbors.knn(pos, k=16)
        >>> q, k, v = torch.randn(3, 100, 64).unbind()
        >>> mlp = torch.nn.Sequential(torch.nn.Linear(3, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64))
        >>> geoattn.ops.vector_attend(q, k, v, pattern, pos, pos_nn=mlp).shape
        torch.Size([100, 64])
    """
    key_position = position if key_position is None else key_position
    _check(query, key, value, pattern, position, key_position, dropout)
    pattern.ensure_valid()
    backend = kernels_for(forced(), query, "vector attention")
    queries, keys, networks = (query, position), (key, value, key_position), (pos_nn, attn_nn)
    if backend == "reference" or dropout or not all(x is None or isinstance(x, nn.Module) for x in networks):
        formulas = partial(vector_reference.formulas, dropout=dropout)
        return of_all_rows(formulas, pattern, queries, keys, (), networks)
    if not traced(query) and not transforms_active():
        problem = vector_chain.problem(query, key, value, position, key_position, pattern, pos_nn, attn_nn)
        if problem is not None:
            return vector_chain.attend(problem, backend)
    return recompute(vector_rows.of_rows, pattern, queries, keys, (), networks, formulas=vector_reference.formulas)


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Neighbors,
    position: Tensor,
    key_position: Tensor,
    dropout: float,
) -> None:
    check_tensors(query=query, key=key, value=value, position=position, key_position=key_position)
    check_neighbors(pattern)
    shapes = f"got query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if not query.dim() == key.dim() == value.dim() == 2 or key.shape != value.shape or query.size(1) != key.size(1):
        raise ValueError(f"expected query [N, C], key [M, C] and value [M, C], {shapes}")
    if query.dtype != key.dtype or query.dtype != value.dtype or not query.is_floating_point():
        raise ValueError(
            f"query, key and value must have one floating type, got {query.dtype}, {key.dtype} and {value.dtype}"
        )
    if pattern.num_queries != query.size(0) or pattern.num_keys != key.size(0):
        raise ValueError(f"{pattern} does not fit: {shapes}")
    points = f"got position {tuple(position.shape)} and key_position {tuple(key_position.shape)}, {shapes}"
    if not position.dim() == key_position.dim() == 2 or position.size(1) != key_position.size(1):
        raise ValueError(f"expected position [N, P] and key_position [M, P], {points}")
    if position.size(0) != query.size(0) or key_position.size(0) != key.size(0):
        raise ValueError(f"every query and every key must have a position, {points}")
    if not position.is_floating_point() or position.dtype != key_position.dtype:
        raise ValueError(f"positions must have one floating type, got {position.dtype} and {key_position.dtype}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    devices = {t.device for t in (query, key, value, position, key_position, pattern.col)}
    if len(devices) > 1:
        raise ValueError(f"all tensors and the pattern must be on one device, got {sorted(map(str, devices))}")
