"""Kernels of vector attention in plain torch: chunks of rows that stay in cache, in few passes over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from geoattn.ops.backends.recompute import add_at, edges_per_chunk, slices
from geoattn.ops.backends.vector_problem import Linear, Problem


def forward(problem: Problem) -> Tensor:
    """``[N, C]`` in the accumulation dtype."""
    wide = _wide(problem)
    out = torch.empty_like(wide.query)
    for rows in _chunks(wide):
        edges = _compute(wide, rows)
        message = wide.value.index_select(0, rows.col).add_(edges.pos[-1]).mul_(edges.weight)
        out[rows.rows] = rows.sum(message).div_(edges.total)
    return out


def backward(problem: Problem, grad_out: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """Gradients of `Problem.tensors` where needed, in the accumulation dtype."""
    wide = _wide(problem)
    grad_out = grad_out.to(wide.query.dtype)
    grads = [
        torch.zeros_like(x) if x is not None and needed else None
        for x, needed in zip(wide.tensors(), needs, strict=True)
    ]
    of_query, of_key, of_value, of_position, of_key_position = grads[:5]
    of_pos, of_attn = grads[5 : 5 + 2 * len(wide.pos)], grads[5 + 2 * len(wide.pos) :]
    for rows in _chunks(wide):
        edges = _compute(wide, rows)
        value = wide.value.index_select(0, rows.col).add_(edges.pos[-1])
        mean = rows.sum(value * edges.weight).div_(edges.total)
        message = edges.weight
        rows.per_row(message).mul_(rows.spread(grad_out[rows.rows] / edges.total))
        rows.per_row(value).sub_(rows.spread(mean))
        of_score = value.mul_(message)
        scores = edges.attn[-1].size(1)
        if scores < of_score.size(1):
            of_score = of_score.unflatten(1, (scores, of_score.size(1) // scores)).sum(-1)
        of_relation = _pull_back(wide.attn, edges.attn, of_score, of_attn, True)
        assert of_relation is not None
        if of_query is not None:
            of_query[rows.rows] = rows.sum(of_relation)
        if of_key is not None:
            add_at(of_key, rows.col, of_relation.neg())
        if of_value is not None:
            add_at(of_value, rows.col, message)
        wanted = of_position is not None or of_key_position is not None
        of_offset = _pull_back(wide.pos, edges.pos, message.add_(of_relation), of_pos, wanted)
        if of_position is not None and of_offset is not None:
            of_position[rows.rows] = rows.sum(of_offset)
        if of_key_position is not None and of_offset is not None:
            add_at(of_key_position, rows.col, of_offset.neg())
    return grads


class _Rows(NamedTuple):
    """Some rows and their ``e`` edges. In k-NN graphs rows are equally long, and nothing needs an index."""

    rows: slice
    row: Tensor  # [e], counted from the first
    col: Tensor  # [e]
    length: int  # of every row; 0 if they differ

    def per_row(self, x: Tensor) -> Tensor:
        """``[e, C]`` as ``[r, length, C]`` where rows are equally long."""
        return x.view(-1, self.length, x.size(1)) if self.length else x

    def spread(self, x: Tensor) -> Tensor:
        """``[r, C]`` so that it can be added to `per_row`."""
        return x.unsqueeze(1) if self.length else x.index_select(0, self.row)

    def sum(self, x: Tensor) -> Tensor:
        """``[e, C]`` to ``[r, C]``, always in one order."""
        if self.length:
            return self.per_row(x).sum(1)
        out = x.new_zeros(self.rows.stop - self.rows.start, x.size(1))
        add_at(out, self.row, x)
        return out

    def highest(self, x: Tensor) -> Tensor:
        """``[e, C]`` to ``[r, C]``; 0 where there is none above ``-inf``."""
        if self.length:
            found = self.per_row(x).amax(1)
        else:
            found = x.new_full((self.rows.stop - self.rows.start, x.size(1)), -torch.inf)
            found.scatter_reduce_(0, self.row.unsqueeze(1).expand_as(x), x, "amax")
        return found.where(found > -torch.inf, 0)


class _Edges(NamedTuple):
    """What is computed of the edges of some rows."""

    pos: list[Tensor]  # what enters the layers of pos_nn, and what comes out, [e, C]
    attn: list[Tensor]  # likewise
    weight: Tensor  # [e, C], exponentials of scores, not normalized
    total: Tensor  # [r, C], their sums; 1 where they are 0


def _chunks(wide: Problem) -> Iterator[_Rows]:
    rowptr, col = wide.pattern.rowptr, wide.pattern.col
    degree = rowptr.diff()
    length = int(degree[0]) if degree.numel() and bool((degree == degree[0]).all()) else 0
    for rows, edges in slices(rowptr, wide.pattern.num_edges, edges_per_chunk(wide.pattern)):
        row = torch.arange(rows.stop - rows.start, device=col.device)
        row = row.repeat_interleave(degree[rows], output_size=edges.stop - edges.start)
        yield _Rows(rows, row, col[edges], length)


def _compute(wide: Problem, rows: _Rows) -> _Edges:
    offset = wide.position[rows.rows].index_select(0, rows.row).sub_(wide.key_position.index_select(0, rows.col))
    pos = _activations(wide.pos, offset)
    relation = wide.key.index_select(0, rows.col)
    relation = torch.sub(pos[-1], relation, out=relation)
    rows.per_row(relation).add_(rows.spread(wide.query[rows.rows]))
    attn = _activations(wide.attn, relation)
    score, channels = attn[-1], relation.size(1)
    score = score.repeat_interleave(channels // score.size(1), 1) if score.size(1) < channels else score
    weight = torch.empty_like(score)
    torch.sub(rows.per_row(score), rows.spread(rows.highest(score)), out=rows.per_row(weight)).exp_()
    total = rows.sum(weight)
    return _Edges(pos, attn, weight, total.where(total > 0, 1))


def _activations(layers: Sequence[Linear], x: Tensor) -> list[Tensor]:
    passed = [x]
    for weight, bias, relu in layers:
        x = x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())
        passed.append(x.relu_() if relu else x)
    return passed


def _pull_back(
    layers: Sequence[Linear], passed: list[Tensor], grad: Tensor, totals: Sequence[Tensor | None], wanted: bool
) -> Tensor | None:
    """The gradient of what entered a chain, if wanted; those of its weights and biases are added to ``totals``."""
    for place in reversed(range(len(layers))):
        weight, _, relu = layers[place]
        x, y = passed[place : place + 2]
        of_weight, of_bias = totals[2 * place : 2 * place + 2]
        if relu:
            grad = torch.ops.aten.threshold_backward(grad, y, 0)
        if of_bias is not None:
            of_bias += grad.sum(0)
        if of_weight is not None:
            # The narrower side first: the other way round a product of few columns takes several times as long.
            of_weight += (x.t() @ grad).t() if x.size(1) < grad.size(1) else grad.t() @ x
        if place == 0 and not wanted:
            return None
        grad = grad @ weight
    return grad


def _wide(problem: Problem) -> Problem:
    """In the accumulation dtype."""
    tensors = [None if x is None else x.detach().to(problem.sum_dtype) for x in problem.tensors()]
    return problem.with_tensors(tensors)
