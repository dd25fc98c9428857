"""The operators in plain torch: every device, every floating type, differentiable any number of times.

Shapes are as in `geoattn.attend`, which checks them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from geoattn.ops.backends import philox
from geoattn.ops.backends.problem import Problem
from geoattn.ops.backends.sums import gather_rows, sum_rows


def unavailable(problem: Problem | None = None) -> str | None:
    """None: plain torch runs everywhere."""
    return None


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Attention over CSR rows: gather the keys of every edge, softmax over each row, sum the values.

    Returns:
        ``[N, H, C]`` in the type of the query, and the log-sum-exp of every row, ``[N, H]``.
    """
    query, row = problem.query, row_of_edges(problem)
    score = scores(problem, row)

    index = row.long().unsqueeze(1).expand_as(score)
    highest = score.detach().new_full(query.shape[:2], -torch.inf)
    highest = highest.scatter_reduce(0, index, score.detach(), "amax")
    highest = highest.where(highest > -torch.inf, 0)
    weight = (score - gather_rows(highest, row)).exp()
    total = sum_rows(weight, row, highest.size(0))
    lse = log(total) + highest
    weight = dropped(weight / gather_rows(total.where(total > 0, 1), row), problem)

    message = weight.unsqueeze(-1) * values(problem)
    out = sum_rows(message, row, query.size(0))
    return out.to(query.dtype), lse


def row_of_edges(problem: Problem) -> Tensor:
    """Query of every edge, ``[E]``."""
    rowptr = problem.rowptr
    query = torch.arange(rowptr.numel() - 1, dtype=rowptr.dtype, device=rowptr.device)
    return query.repeat_interleave(rowptr.diff(), output_size=problem.col.numel())


def scores(problem: Problem, row: Tensor) -> Tensor:
    """Score of every edge and head, ``[E, H]``; ``row`` is `row_of_edges`."""
    query = gather_rows(problem.query.to(problem.sum_dtype), row)
    key = keys(problem)
    if problem.att is None:
        score = (query * key).sum(-1) * problem.scale
    else:
        score = (F.leaky_relu(query + key, problem.negative_slope) * problem.att).sum(-1)
    return biased(score, problem)


def biased(score: Tensor, problem: Problem) -> Tensor:
    """Scores ``[E, H]`` with what is added to them."""
    if problem.bias is not None:
        score = score + problem.bias
    if problem.log_weight is not None:
        score = score + gather_rows(problem.log_weight, problem.col)
    return score


def keys(problem: Problem) -> Tensor:
    """Key of every edge and head, with its edge term, ``[E, H, D]``."""
    return _of_edges(problem.key, problem.edge_key, problem)


def values(problem: Problem) -> Tensor:
    """Value of every edge and head, with its edge term, ``[E, H, C]``."""
    return _of_edges(problem.value, problem.edge_value, problem)


def dropped(weight: Tensor, problem: Problem) -> Tensor:
    """Dropout of attention weights ``[E, H]``."""
    if not problem.dropout or problem.seed is None:
        return weight
    edges = torch.arange(weight.size(0), device=weight.device) + problem.first_edge
    kept = philox.keep(edges, weight.size(1), problem.dropout, problem.seed)
    return weight * kept / (1 - problem.dropout)


def _of_edges(x: Tensor, edge_term: Tensor | None, problem: Problem) -> Tensor:
    # Cast before gathering, so that autograd sums the gradients of edges in the accumulation dtype, too.
    found = _per_head(gather_rows(x.to(problem.sum_dtype), problem.col), problem)
    return found if edge_term is None else found + _per_head(edge_term.to(problem.sum_dtype), problem)


def _per_head(x: Tensor, problem: Problem) -> Tensor:
    """With as many heads as the query."""
    groups = problem.query.size(1) // x.size(1)
    return x if groups == 1 else x.repeat_interleave(groups, 1)


def log(weight: Tensor) -> Tensor:
    """Logarithm, ``-inf`` at 0 with a gradient of 0 there instead of NaN."""
    zero = weight == 0
    return weight.masked_fill(zero, 1).log().masked_fill(zero, -torch.inf)
