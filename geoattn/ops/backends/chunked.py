"""Attention in plain torch that keeps nothing per edge: computed piece by piece, and again in the backward pass.

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
from geoattn.ops.backends.problem import Gradients, Problem
from geoattn.ops.backends.recompute import slices
from geoattn.patterns.rows import check_rows
from geoattn.patterns.visits import Visits

READS_OUT, VISITS = True, False  # see `Backend`

# Numbers in the largest temporary of a chunk.
_CHUNK = {"cpu": 1 << 19}
_CHUNK_ELSEWHERE = 1 << 26
_EDGES_AT_A_TIME = 1 << 18  # where only the numbers of their rows are written out


def unavailable(problem: Problem | None = None) -> str | None:
    """None: plain torch runs everywhere."""
    return None


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Output ``[N, H, C]`` and log-sum-exp ``[N, H]``."""
    return _forward_sparse(problem) if _takes_sparse(problem) else _forward_rows(problem)


def backward(
    problem: Problem,
    columns: Visits | None,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    needs: Sequence[str],
) -> Gradients:
    """Gradients of the inputs named in ``needs``; those of keys and values need the ``columns``."""
    if _takes_sparse(problem):
        return _backward_sparse(problem, columns, out, lse, grad_out, grad_lse, needs)
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
    """The pattern as a sparse matrix whose values are given when it is used.

    Raises:
        IndexError: If the pattern is not one of so many columns: MKL would read and write anywhere.
    """

    def __init__(self, rowptr: Tensor, col: Tensor, columns: int) -> None:
        check_rows(rowptr, col, columns)  # compiled programs bring tensors that no pattern has checked
        # MKL takes 32-bit indices: converted here, they are not converted again in every product.
        small = max(col.numel(), columns) < 2**31
        self.rowptr, self.col = (rowptr.int(), col.int()) if small else (rowptr.long(), col.long())
        self.shape = (rowptr.numel() - 1, columns)

    def per_edge(self, x: Tensor, out: Tensor) -> Tensor:
        """Writes for every edge what stands in ``x`` for its row."""
        for rows, edges in slices(self.rowptr, self.col.numel(), _EDGES_AT_A_TIME):
            degree = self.rowptr[rows.start : rows.stop + 1].diff()
            row = torch.repeat_interleave(degree, output_size=edges.stop - edges.start)
            torch.index_select(x[rows], 0, row, out=out[edges])
        return out

    def __call__(self, values: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            return torch.sparse_csr_tensor(self.rowptr, self.col, values, self.shape, check_invariants=False)

    def add_dots(self, values: Tensor, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
        """Adds ``scale * a_i . b_j`` to the value of every edge."""
        matrix = self(values)
        torch.sparse.sampled_addmm(matrix, a, b.t(), alpha=scale, out=matrix)
        return values

    def product(self, values: Tensor, x: Tensor, out: Tensor, scale: float = 1.0, add: bool = False) -> None:
        """Writes the product with ``x``, times ``scale``, to ``out``, or adds it."""
        if out.dtype == x.dtype:
            out.addmm_(self(values), x, alpha=scale, beta=float(add))  # in place: through the strides of a head
        else:
            out.copy_((self(values) @ x).mul_(scale))


def _buffers(problem: Problem) -> tuple[Tensor, ...]:
    """Memory for two inputs of a head, in either of which the edges fit, too, and twice for the edges.

    One block for all heads: after many smaller ones, free memory would lie scattered between what is in use.
    """
    rows, width = max(problem.query.size(0), problem.key.size(0)), max(problem.query.size(2), problem.value.size(2))
    edges = problem.col.numel()
    nodes = max(rows * width, edges)
    block = problem.query.new_empty(2 * nodes + 2 * edges, dtype=problem.sum_dtype)
    return block.split([nodes, nodes, edges, edges])


def _one_head(x: Tensor, head: int, buffer: Tensor) -> Tensor:
    return buffer[: x.size(0) * x.size(2)].view(x.size(0), x.size(2)).copy_(x[:, head])


def _add_scores(score: Tensor, problem: Problem, head: int, matrix: _Matrix, query: Tensor, key: Tensor) -> Tensor:
    """Adds the scores of a head, given its queries and keys."""
    matrix.add_dots(score, query, key, problem.scale)
    if problem.bias is not None:
        score += problem.bias[:, head % problem.bias.size(1)]
    if problem.log_weight is not None:
        score += problem.log_weight[:, head % problem.log_weight.size(1)].index_select(0, matrix.col)
    return score


def _forward_sparse(problem: Problem) -> tuple[Tensor, Tensor]:
    groups = problem.query.size(1) // problem.key.size(1)
    out, lse = _empty(problem)
    matrix = _Matrix(problem.rowptr, problem.col, problem.key.size(0))
    buffer, other_buffer, weight, of_row = _buffers(problem)
    ones = weight.new_ones(problem.key.size(0))
    for head in range(problem.query.size(1)):
        query = _one_head(problem.query, head, buffer)
        key = _one_head(problem.key, head // groups, other_buffer)
        score = _add_scores(weight.zero_(), problem, head, matrix, query, key)
        highest = torch.segment_reduce(score, "max", offsets=matrix.rowptr, unsafe=True)
        highest = highest.where(highest > -torch.inf, 0)
        score.sub_(matrix.per_edge(highest, of_row)).exp_()
        total = matrix(weight) @ ones
        weight.div_(matrix.per_edge(total.where(total > 0, 1), of_row))
        matrix.product(weight, _one_head(problem.value, head // groups, buffer), out[:, head])
        lse[:, head] = total.log() + highest
    return out, lse


def _backward_sparse(
    problem: Problem,
    columns: Visits | None,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    needs: Sequence[str],
) -> Gradients:
    queries, heads = problem.query.shape[:2]
    groups = heads // problem.key.size(1)
    matrix = _Matrix(problem.rowptr, problem.col, problem.key.size(0))
    buffer, other_buffer, weight, of_score = _buffers(problem)
    by_key = None if columns is None else _Matrix(columns.rowptr, columns.col, queries)
    grads = {}
    for name in needs:
        x = getattr(problem, name)
        several = groups > 1 and name in ("key", "value")  # heads add to one gradient
        grads[name] = x.new_empty(x.shape, dtype=problem.sum_dtype if several else x.dtype)
        if name in ("bias", "log_weight"):
            grads[name].zero_()

    def along_keys(name: str, values: Tensor, x: Tensor, head: int, scale: float = 1.0) -> None:
        if columns is not None and by_key is not None:
            assert columns.edge is not None  # those without are for the CPU's kernels
            values = torch.index_select(values, 0, columns.edge, out=other_buffer[: values.numel()])
            by_key.product(values, x, grads[name][:, head // groups], scale, add=head % groups > 0)

    for head in range(heads):
        finite = lse[:, head] > -torch.inf
        upstream = _one_head(grad_out, head, buffer)
        delta = _one_head(out, head, other_buffer).mul_(upstream).sum(-1)
        if grad_lse is not None:
            delta -= grad_lse[:, head].where(finite, 0)
        matrix.per_edge(delta.neg_(), of_score)
        matrix.add_dots(of_score, upstream, _one_head(problem.value, head // groups, other_buffer))

        matrix.per_edge(lse[:, head].where(finite, 0).neg_(), weight)
        query = _one_head(problem.query, head, buffer)
        key = _one_head(problem.key, head // groups, other_buffer)
        of_score *= _add_scores(weight, problem, head, matrix, query, key).exp_()
        if "bias" in grads:
            grads["bias"][:, head % grads["bias"].size(1)] += of_score
        if "log_weight" in grads:
            grads["log_weight"][:, head % grads["log_weight"].size(1)].index_add_(0, problem.col, of_score)
        if "query" in grads:
            matrix.product(of_score, key, grads["query"][:, head], problem.scale)
        if "key" in grads:
            along_keys("key", of_score, query, head, problem.scale)
        if "value" in grads:
            along_keys("value", weight, _one_head(grad_out, head, buffer), head)
    return Gradients(**{name: grad.to(getattr(problem, name).dtype) for name, grad in grads.items()})


# ---- The reference formulas, in chunks of rows -----------------------------------------------------------------------


def _chunks(problem: Problem) -> Iterator[tuple[slice, slice]]:
    """`slices` that fit the cache."""
    query, value = problem.query, problem.value
    widest = query.size(1) * max(query.size(2), value.size(2), 1)
    size = max(numbers_per_chunk(query.device) // widest, 1)
    return slices(problem.rowptr, problem.col.numel(), size)


def numbers_per_chunk(device: torch.device) -> int:
    """Numbers in the largest temporary of a chunk."""
    return _CHUNK.get(device.type, _CHUNK_ELSEWHERE)


def _cut(problem: Problem, rows: slice, edges: slice) -> Problem:
    """The problem of some rows."""
    return problem._replace(
        query=problem.query[rows],
        rowptr=problem.rowptr[rows.start : rows.stop + 1] - edges.start,
        col=problem.col[edges],
        bias=None if problem.bias is None else problem.bias[edges],
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
    # What was gathered is worked on in place: writing takes most of the time.
    query, key = cut.query.to(dtype).index_select(0, row), reference.keys(cut)
    if cut.att is None:
        score = (query * key).sum(-1) * cut.scale
    else:
        both = query.add_(key)
        active = torch.nn.functional.leaky_relu(both, cut.negative_slope)
        score = (active * cut.att).sum(-1)
    shift = lse.where(lse > -torch.inf, 0)
    weight = (reference.biased(score, cut) - shift.index_select(0, row)).exp()
    kept = reference.dropped(torch.ones_like(weight), cut)
    delta = (grad_out.to(dtype) * out.to(dtype)).sum(-1)
    if grad_lse is not None:
        delta = delta - grad_lse.where(lse > -torch.inf, 0)
    upstream = grad_out.to(dtype).index_select(0, row)
    of_score = weight * (reference.values(cut).mul_(upstream).sum(-1) * kept - delta.index_select(0, row))
    of_value = upstream.mul_((weight * kept).unsqueeze(-1))

    of_dot = of_score.unsqueeze(-1)
    if cut.att is None:
        of_query, of_key, of_att = key.mul_(of_dot * cut.scale), query.mul_(of_dot * cut.scale), of_dot
    else:
        of_att = active.mul_(of_dot).sum(0)
        of_query = of_key = torch.ops.aten.leaky_relu_backward(of_dot * cut.att, both, cut.negative_slope, False)
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
