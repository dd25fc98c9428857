"""Kernels of vector attention in plain torch: chunks of rows that stay in cache, in few passes over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from geoattn.ops.backends.recompute import Chunk, add_at, chunks
from geoattn.ops.backends.vector_problem import Linear, Problem
from geoattn.ops.backends.vector_rows import Rows


def forward(problem: Problem) -> Tensor:
    """``[N, C]`` in the accumulation dtype."""
    wide = _wide(problem)
    out = torch.empty_like(wide.query)
    for chunk in chunks(wide.pattern):
        rows = Rows.of(chunk.row, chunk.rows.stop - chunk.rows.start)
        edges = _compute(wide, chunk, rows)
        message = wide.value.index_select(0, chunk.col).add_(edges.pos[-1]).mul_(edges.weight)
        out[chunk.rows] = rows.sum(message).div_(edges.total)
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
    for chunk in chunks(wide.pattern):
        rows = Rows.of(chunk.row, chunk.rows.stop - chunk.rows.start)
        edges = _compute(wide, chunk, rows)
        value = wide.value.index_select(0, chunk.col).add_(edges.pos[-1])
        mean = rows.sum(value * edges.weight).div_(edges.total)
        message = edges.weight
        rows.per_row(message).mul_(rows.spread(grad_out[chunk.rows] / edges.total))
        rows.per_row(value).sub_(rows.spread(mean))
        of_score = value.mul_(message)
        scores = edges.attn[-1].size(1)
        if scores < of_score.size(1):
            of_score = of_score.unflatten(1, (scores, of_score.size(1) // scores)).sum(-1)
        of_relation = _pull_back(wide.attn, edges.attn, of_score, of_attn, True)
        assert of_relation is not None
        if of_query is not None:
            of_query[chunk.rows] = rows.sum(of_relation)
        if of_key is not None:
            add_at(of_key, chunk.col, of_relation.neg())
        if of_value is not None:
            add_at(of_value, chunk.col, message)
        wanted = of_position is not None or of_key_position is not None
        of_offset = _pull_back(wide.pos, edges.pos, message.add_(of_relation), of_pos, wanted)
        if of_position is not None and of_offset is not None:
            of_position[chunk.rows] = rows.sum(of_offset)
        if of_key_position is not None and of_offset is not None:
            add_at(of_key_position, chunk.col, of_offset.neg())
    return grads


class _Edges(NamedTuple):
    """What is computed of the edges of some rows."""

    pos: list[Tensor]  # what enters the layers of pos_nn, and what comes out, [e, C]
    attn: list[Tensor]  # likewise
    weight: Tensor  # [e, C], exponentials of scores, not normalized
    total: Tensor  # [r, C], their sums; 1 where they are 0


def _compute(wide: Problem, chunk: Chunk, rows: Rows) -> _Edges:
    offset = wide.key_position.index_select(0, chunk.col).neg_()
    rows.per_row(offset).add_(rows.spread(wide.position[chunk.rows]))
    pos = _activations(wide.pos, offset)
    relation = wide.key.index_select(0, chunk.col)
    relation = torch.sub(pos[-1], relation, out=relation)
    rows.per_row(relation).add_(rows.spread(wide.query[chunk.rows]))
    attn = _activations(wide.attn, relation)
    score, channels = attn[-1], relation.size(1)
    score = score.repeat_interleave(channels // score.size(1), 1) if score.size(1) < channels else score
    weight, total = rows.exponentials(score)
    return _Edges(pos, attn, weight, total)


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
