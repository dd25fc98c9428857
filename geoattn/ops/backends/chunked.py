"""Attention in plain torch that keeps nothing per edge: worked off piece by piece, and again in the backward pass.

Dot products on a CPU with MKL go head by head through sparse matrix products, in which nothing of width ``D`` is
gathered: scores are a product sampled at the edges, outputs a sparse times a dense matrix. Everything else goes through
the reference formulas in chunks of rows that fit the cache.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from geoattn.ops.backends import reference
from geoattn.ops.backends.problem import Gradients, Problem, Transpose

# Numbers in the largest temporary of a chunk.
_CHUNK = {"cpu": 1 << 20}
_CHUNK_ELSEWHERE = 1 << 26


def unavailable(problem: Problem | None = None) -> str | None:
    """None: plain torch runs everywhere."""
    return None


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Output ``[N, H, C]`` and log-sum-exp ``[N, H]``."""
    return _forward_sparse(problem) if _takes_sparse(problem) else _forward_rows(problem)


def backward(
    problem: Problem,
    transpose: Transpose | None,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    needs: Sequence[str],
) -> Gradients:
    """Gradients of the inputs named in ``needs``; those of keys and values need the ``transpose``."""
    if _takes_sparse(problem):
        return _backward_sparse(problem, transpose, out, lse, grad_out, grad_lse, needs)
    return _backward_rows(problem, out, lse, grad_out, grad_lse, needs)


def _empty(problem: Problem) -> tuple[Tensor, Tensor]:
    heads = problem.query.shape[:2]
    out = problem.query.new_empty(*heads, problem.value.size(2))
    return out, problem.query.new_empty(heads, dtype=problem.sum_dtype)


# ---- Sparse matrix products, head by head ----------------------------------------------------------------------------


def _takes_sparse(problem: Problem) -> bool:
    queries, keys = problem.query.size(0), problem.key.size(0)
    return (
        problem.query.device.type == "cpu"
        and torch.backends.mkl.is_available()
        and problem.att is None
        and problem.edge_key is None
        and problem.edge_value is None
        and not problem.dropout
        and 0 < problem.col.numel() <= queries * keys  # sampled_addmm refuses more
        and problem.query.size(2) > 0
        and problem.value.size(2) > 0
    )


class _Matrix:
    """The pattern as a sparse matrix whose values are given when it is used."""

    def __init__(self, rowptr: Tensor, col: Tensor, columns: int) -> None:
        # MKL takes 32-bit indices: converted here, they are not converted again in every product.
        small = max(col.numel(), columns) < 2**31
        self.rowptr, self.col = (rowptr.int(), col.int()) if small else (rowptr.long(), col.long())
        self.shape = (rowptr.numel() - 1, columns)

    def __call__(self, values: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            return torch.sparse_csr_tensor(self.rowptr, self.col, values, self.shape, check_invariants=False)

    def dots(self, a: Tensor, b: Tensor) -> Tensor:
        """``a_i . b_j`` of every edge."""
        sampled = torch.sparse.sampled_addmm(self(a.new_zeros(self.col.numel())), a, b.t(), beta=0.0)
        return sampled.values()


def _one_head(x: Tensor, head: int, problem: Problem) -> Tensor:
    return x[:, head].to(problem.sum_dtype).contiguous()


def _scores_of_head(problem: Problem, matrix: _Matrix, head: int) -> Tensor:
    key_head = head // (problem.query.size(1) // problem.key.size(1))
    score = matrix.dots(_one_head(problem.query, head, problem), _one_head(problem.key, key_head, problem))
    score *= problem.scale
    if problem.bias is not None:
        score += problem.bias[:, head % problem.bias.size(1)]
    if problem.log_weight is not None:
        weight = problem.log_weight[:, head % problem.log_weight.size(1)]
        score += weight.index_select(0, problem.col)
    return score


def _forward_sparse(problem: Problem) -> tuple[Tensor, Tensor]:
    query, key = problem.query, problem.key
    matrix = _Matrix(problem.rowptr, problem.col, key.size(0))
    row = reference.row_of_edges(problem).long()
    out, lse = _empty(problem)
    for head in range(query.size(1)):
        score = _scores_of_head(problem, matrix, head)
        highest = score.new_full((query.size(0),), -torch.inf).scatter_reduce_(0, row, score, "amax")
        highest = highest.where(highest > -torch.inf, 0)
        weight = score.sub_(highest.index_select(0, row)).exp_()
        total = torch.zeros_like(highest).index_add_(0, row, weight)
        value = _one_head(problem.value, head // (query.size(1) // key.size(1)), problem)
        out[:, head] = (matrix(weight) @ value).div_(total.where(total > 0, 1).unsqueeze(1))
        lse[:, head] = total.log() + highest
    return out, lse


def _backward_sparse(
    problem: Problem,
    transpose: Transpose | None,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    needs: Sequence[str],
) -> Gradients:
    query, key, value = problem.query, problem.key, problem.value
    matrix = _Matrix(problem.rowptr, problem.col, key.size(0))
    along_keys = None
    if transpose is not None:
        along_keys = _Matrix(transpose.rowptr, transpose.row, query.size(0))
    row = torch.repeat_interleave(matrix.rowptr.diff(), output_size=problem.col.numel())
    sums = {name: getattr(problem, name).dtype for name in needs}
    if query.size(1) != key.size(1):  # several heads add to one gradient
        sums |= {name: problem.sum_dtype for name in needs if name in ("key", "value")}
    grads = {name: torch.zeros(getattr(problem, name).shape, dtype=dtype) for name, dtype in sums.items()}

    for head in range(query.size(1)):
        key_head = head // (query.size(1) // key.size(1))
        shift = lse[:, head].where(lse[:, head] > -torch.inf, 0)
        weight = _scores_of_head(problem, matrix, head).sub_(shift.index_select(0, row)).exp_()
        upstream = _one_head(grad_out, head, problem)
        if "value" in grads and along_keys is not None and transpose is not None:
            grads["value"][:, key_head] += along_keys(weight.index_select(0, transpose.order)) @ upstream
        delta = (upstream * out[:, head]).sum(-1)
        if grad_lse is not None:
            delta -= grad_lse[:, head].where(lse[:, head] > -torch.inf, 0)
        of_score = matrix.dots(upstream, _one_head(value, key_head, problem))
        of_score.sub_(delta.index_select(0, row)).mul_(weight)
        del weight, upstream
        if "bias" in grads:
            grads["bias"][:, head % grads["bias"].size(1)] += of_score
        if "log_weight" in grads:
            grads["log_weight"][:, head % grads["log_weight"].size(1)].index_add_(0, problem.col, of_score)
        of_score *= problem.scale
        if "query" in grads:
            grads["query"][:, head] = matrix(of_score) @ _one_head(key, key_head, problem)
        if "key" in grads and along_keys is not None and transpose is not None:
            of_score = of_score.index_select(0, transpose.order)
            grads["key"][:, key_head] += along_keys(of_score) @ _one_head(query, head, problem)
    return Gradients(**{name: grad.to(getattr(problem, name).dtype) for name, grad in grads.items()})


# ---- The reference formulas, in chunks of rows -----------------------------------------------------------------------


def _chunks(problem: Problem) -> Iterator[tuple[slice, slice]]:
    """Slices of rows, and of their edges: whole rows, of few enough edges (but always one)."""
    query, value = problem.query, problem.value
    widest = query.size(1) * max(query.size(2), value.size(2), 1)
    edges = max(_CHUNK.get(query.device.type, _CHUNK_ELSEWHERE) // widest, 1)
    rowptr = problem.rowptr.cpu()
    begin, count = 0, rowptr.numel() - 1
    while begin < count:
        limit = int(rowptr[begin]) + edges
        end = int(torch.searchsorted(rowptr, limit, right=True)) - 1
        end = min(max(end, begin + 1), count)
        yield slice(begin, end), slice(int(rowptr[begin]), int(rowptr[end]))
        begin = end


def _cut(problem: Problem, rows: slice, edges: slice) -> Problem:
    """The problem of some rows, with keys and values already gathered for each of their edges."""
    col = problem.col[edges]
    return problem._replace(
        query=problem.query[rows],
        key=problem.key.index_select(0, col),
        value=problem.value.index_select(0, col),
        rowptr=problem.rowptr[rows.start : rows.stop + 1] - edges.start,
        col=torch.arange(col.numel(), dtype=col.dtype, device=col.device),
        bias=None if problem.bias is None else problem.bias[edges],
        log_weight=None if problem.log_weight is None else problem.log_weight.index_select(0, col),
        edge_key=None if problem.edge_key is None else problem.edge_key[edges],
        edge_value=None if problem.edge_value is None else problem.edge_value[edges],
        first_edge=edges.start,
    )


def _forward_rows(problem: Problem) -> tuple[Tensor, Tensor]:
    out, lse = _empty(problem)
    for rows, edges in _chunks(problem):
        out[rows], lse[rows] = reference.forward(_cut(problem, rows, edges))
    return out, lse


def _backward_rows(
    problem: Problem,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    needs: Sequence[str],
) -> Gradients:
    summed = ("key", "value", "log_weight", "att")
    grads = {}
    for name in needs:
        x = getattr(problem, name)
        grads[name] = torch.zeros(x.shape, dtype=problem.sum_dtype if name in summed else x.dtype, device=x.device)
    for rows, edges in _chunks(problem):
        cut = _cut(problem, rows, edges)
        of_lse = None if grad_lse is None else grad_lse[rows]
        found = _gradients_of_edges(cut, out[rows], lse[rows], grad_out[rows], of_lse)
        for name in needs:
            grad = _sum_heads(found[name], grads[name])
            if name == "query":
                grads[name][rows] = grad
            elif name == "att":
                grads[name] += grad
            elif name in summed:
                grads[name].index_add_(0, problem.col[edges], grad)
            else:
                grads[name][edges] = grad.to(problem.query.dtype) if name != "bias" else grad
    return Gradients(**{name: grad.to(getattr(problem, name).dtype) for name, grad in grads.items()})


def _gradients_of_edges(
    cut: Problem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
) -> dict[str, Tensor]:
    """Of query and att summed, of everything else per edge; per head of the query throughout."""
    row, dtype = reference.row_of_edges(cut), cut.sum_dtype
    shift = lse.where(lse > -torch.inf, 0)
    weight = (reference.scores(cut, row) - shift.index_select(0, row)).exp()
    kept = reference.dropped(torch.ones_like(weight), cut)
    delta = (grad_out.to(dtype) * out.to(dtype)).sum(-1)
    if grad_lse is not None:
        delta = delta - grad_lse.where(lse > -torch.inf, 0)
    upstream = grad_out.to(dtype).index_select(0, row)
    value = reference.values(cut)
    of_score = weight * ((upstream * value).sum(-1) * kept - delta.index_select(0, row))

    query, key = cut.query.to(dtype).index_select(0, row), reference.keys(cut)
    of_dot = of_score.unsqueeze(-1)
    if cut.att is None:
        of_query, of_key, of_att = of_dot * key * cut.scale, of_dot * query * cut.scale, of_dot
    else:
        both = query + key
        slope = torch.full_like(both, cut.negative_slope).masked_fill_(both > 0, 1)
        of_query = of_key = of_dot * cut.att * slope
        of_att = (of_dot * torch.nn.functional.leaky_relu(both, cut.negative_slope)).sum(0)
    of_value = (weight * kept).unsqueeze(-1) * upstream
    return {
        "query": torch.zeros_like(cut.query, dtype=dtype).index_add_(0, row, of_query),
        "key": of_key,
        "value": of_value,
        "bias": of_score,
        "log_weight": of_score,
        "edge_key": of_key,
        "edge_value": of_value,
        "att": of_att,
    }


def _sum_heads(grad: Tensor, like: Tensor) -> Tensor:
    """Adds up the heads of ``grad`` that share a head of ``like``."""
    if grad.size(1) == like.size(1):
        return grad
    return grad.unflatten(1, (like.size(1), -1)).sum(2)
