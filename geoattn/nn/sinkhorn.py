"""Attention whose weights sum to one along keys and, but for a factor, along queries."""

from __future__ import annotations

import torch
from torch import Tensor

from geoattn._arguments import checked_integer
from geoattn.ops.attend import attend
from geoattn.patterns.windows import Windows, check_windows


def sinkhorn_attend(
    query: Tensor, key: Tensor, value: Tensor, pattern: Windows, steps: int = 3, scale: float | None = None
) -> Tensor:
    r"""Attention with weights from Sinkhorn's algorithm instead of a softmax (Sander et al. 2022, "Sinkformers").

    In a run of :math:`n` queries and :math:`m` keys, with scores :math:`s_{ij} = \text{scale} \cdot q_i^\top k_j`,

    .. math::
        o_i = n \sum_j e^{s_{ij} + u_i + v_j} v_j, \qquad
        u_i = -\log n - \log \sum_j e^{s_{ij} + v_j}, \qquad v_j = -\log m - \log \sum_i e^{s_{ij} + u_i},

    where the potentials :math:`u` and :math:`v` start at 0 and are computed in turn, :math:`u` first. One step is the
    softmax; after an odd number, the weights of a query sum to one, after an even number, those of a key to
    :math:`n / m`; after many, both. These are the weights of the authors' transformers. The blocks with inducing points
    of their set transformer (``MABSINK``) lack the factor :math:`n`: divide by it for those.

    Each half-step is an `attend` with its log-sum-exp, so no score is kept. The authors' stop where the potentials
    change little, which depends on all samples of a batch, is left out. Differentiable any number of times, through
    all steps; half types are computed in float32.

    Args:
        query: ``[N, H, D]``.
        key: ``[M, H, D]``.
        value: ``[M, H, C]``.
        pattern: Of ``N`` queries and ``M`` keys; its runs of keys follow each other.
        steps: Number of half-steps, at least 1.
        scale: Factor of the dot product; default ``1 / sqrt(D)``.

    Returns:
        ``[N, H, C]`` in the type of ``query``; zeros for queries without keys.

    Raises:
        TypeError: If ``pattern`` is no `Windows`, or ``steps`` no integer.
        ValueError: If shapes do not fit, ``steps`` is below 1, or runs of keys do not follow each other.
    """
    check_windows(pattern, "pattern", "Windows.from_batch(batch)")
    steps = checked_integer("steps", steps, least=1)
    if query.dim() != 3 or key.dim() != 3 or query.shape[1:] != key.shape[1:]:
        raise ValueError(f"expected query [N, H, D] and key [M, H, D], got {tuple(query.shape)} and {tuple(key.shape)}")
    if scale is None:
        scale = max(query.size(-1), 1) ** -0.5
    dtype = query.dtype
    with torch.autocast(query.device.type, enabled=False):
        query, key, value = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (query * scale, key, value))
        log_n = -_counts(pattern).to(query).log().unsqueeze(1)
        log_m = -_counts(pattern.transpose).to(query).log().unsqueeze(1) if steps > 1 else log_n
        of_query, of_key = log_n.new_zeros(query.shape[:2]), log_n.new_zeros(key.shape[:2])
        for _ in range(steps // 2):
            of_query = log_n - _logsumexp(query, key, of_key, pattern)
            of_key = log_m - _logsumexp(key, query, of_query, pattern.transpose)
        out, lse = attend(_with(query), _with(key, of_key), value, pattern, scale=1.0, return_lse=True)
        if steps % 2 == 0:
            out = out * (of_query + _finite(lse) - log_n).exp().unsqueeze(-1)
    return out.to(dtype)


def _logsumexp(query: Tensor, key: Tensor, potential: Tensor, pattern: Windows) -> Tensor:
    """Of every query, over the scores plus the potentials of keys, ``[N, H]``."""
    nothing = key.new_zeros(*key.shape[:2], 1)
    return _finite(attend(_with(query), _with(key, potential), nothing, pattern, scale=1.0, return_lse=True)[1])


def _with(x: Tensor, potential: Tensor | None = None) -> Tensor:
    """One channel more, of ones or of potentials, so that dot products add the potential."""
    channel = x.new_ones(x.shape[:2]) if potential is None else potential
    return torch.cat([x, channel.unsqueeze(-1)], -1)


def _finite(lse: Tensor) -> Tensor:
    """0 where there is nothing to sum over."""
    return lse.where(lse > -torch.inf, 0)


def _counts(pattern: Windows) -> Tensor:
    """Number of queries in the run of every query, ``[N]``."""
    counts = pattern.query_ptr.diff()
    return counts.repeat_interleave(counts, output_size=pattern.num_queries)
