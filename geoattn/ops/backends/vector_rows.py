"""Vector attention of some rows in plain torch, in few passes: what is computed again in a backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geoattn.ops.backends.recompute import add_at, sum_dtype
from geoattn.ops.backends.vector_reference import checked_delta, per_channel


def of_rows(
    queries: Sequence[Tensor], keys: Sequence[Tensor], edges: Sequence[Tensor], row: Tensor, networks: Sequence[Any]
) -> Tensor:
    """What `vector_reference.formulas` compute, to be differentiated once."""
    (query, position), (key, value, key_position), (pos_nn, attn_nn) = queries, keys, networks
    rows = Rows.of(row, query.size(0))
    delta = checked_delta(pos_nn(_Difference.apply(position, key_position, None, rows)), value)
    relation = _Difference.apply(query, key, delta, rows)
    score = per_channel(relation if attn_nn is None else attn_nn(relation), value)
    return _Average.apply(score, value, delta, rows).to(query.dtype)


class Rows(NamedTuple):
    """``r`` rows and their ``e`` edges. In k-NN graphs all rows are equally long, and nothing needs an index."""

    row: Tensor  # [e], ascending
    number: int
    length: int  # of every row; 0 if they differ

    @classmethod
    def of(cls, row: Tensor, number: int) -> Rows:
        """The row of every edge, and how many rows there are."""
        length = row.numel() // max(number, 1)
        if length == 0 or length * number != row.numel():
            return cls(row, number, 0)
        expected = torch.arange(number, device=row.device).unsqueeze(1).expand(-1, length)
        return cls(row, number, length if torch.equal(row.view(number, length), expected) else 0)

    def per_row(self, x: Tensor) -> Tensor:
        """``[e, C]`` as ``[r, length, C]`` where rows are equally long."""
        return x.view(self.number, self.length, x.size(1)) if self.length else x

    def spread(self, x: Tensor) -> Tensor:
        """``[r, C]`` so that it can be added to `per_row`."""
        return x.unsqueeze(1) if self.length else x.index_select(0, self.row)

    def sum(self, x: Tensor) -> Tensor:
        """``[e, C]`` to ``[r, C]`` in the accumulation dtype, always in one order."""
        x = x.to(sum_dtype(x))
        if self.length:
            return self.per_row(x).sum(1)
        out = x.new_zeros(self.number, x.size(1))
        add_at(out, self.row, x)
        return out

    def exponentials(self, score: Tensor) -> tuple[Tensor, Tensor]:
        """Those of scores ``[e, C]``, shifted so that the largest of a row is 1; their sums ``[r, C]``, or 1 for 0."""
        if self.length:
            highest = self.per_row(score).amax(1)
        else:
            highest = score.new_full((self.number, score.size(1)), -torch.inf)
            highest.scatter_reduce_(0, self.row.unsqueeze(1).expand_as(score), score, "amax")
        highest = highest.where(highest > -torch.inf, 0)
        weight = torch.empty_like(score)
        torch.sub(self.per_row(score), self.spread(highest), out=self.per_row(weight)).exp_()
        total = self.sum(weight)
        return weight, total.where(total > 0, 1)


class _Difference(torch.autograd.Function):
    """``x_i - y_e + z_e`` for the row ``i`` of every edge ``e``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, z: Tensor | None, rows: Rows) -> Tensor:
        ctx.rows, ctx.dtypes = rows, (x.dtype, y.dtype, None if z is None else z.dtype)
        out = y.neg() if z is None else z - y
        rows.per_row(out).add_(rows.spread(x))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, y, z), needs = ctx.dtypes, ctx.needs_input_grad
        return (
            ctx.rows.sum(grad).to(x) if needs[0] else None,
            grad.neg().to(y) if needs[1] else None,
            grad.to(z) if needs[2] else None,
            None,
        )


class _Average(torch.autograd.Function):
    """The sum of ``value_e + delta_e`` over every row, weighted by the softmax of the scores."""

    @staticmethod
    def forward(ctx: Any, score: Tensor, value: Tensor, delta: Tensor, rows: Rows) -> Tensor:
        weight, total = rows.exponentials(score.contiguous())
        message = value + delta
        out = rows.sum(message * weight).div_(total)
        ctx.rows, ctx.dtypes = rows, (value.dtype, delta.dtype)
        ctx.save_for_backward(weight, message, total, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, message, total, out = ctx.saved_tensors
        rows, (of_value, of_delta) = ctx.rows, ctx.dtypes
        upstream = weight
        rows.per_row(upstream).mul_(rows.spread(grad / total))
        of_score = message.to(weight.dtype)
        rows.per_row(of_score).sub_(rows.spread(out))
        return of_score.mul_(upstream), upstream.to(of_value), upstream.to(of_delta), None
