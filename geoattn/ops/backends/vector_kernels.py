"""What vector attention does between its networks, for the edges of some rows, in plain torch."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from geoattn.ops.backends import vector_reference


class Rows(NamedTuple):
    """Rows ``begin`` to ``end`` of a pattern and their edges."""

    rowptr: Tensor  # of the whole pattern
    col: Tensor  # [e], key of every edge of these rows
    begin: int
    end: int
    first: int  # edge of the pattern that is number 0 here
    uniform: int  # number of keys of every row of the pattern; 0 if they differ

    @property
    def degree(self) -> Tensor:
        """``[end - begin]``"""
        return self.rowptr[self.begin : self.end + 1].diff()

    @property
    def row(self) -> Tensor:
        """Row of every edge, counted from ``begin``, ``[e]``."""
        rows = torch.arange(self.end - self.begin, device=self.col.device)
        return rows.repeat_interleave(self.degree, output_size=self.col.numel())

    def repeat(self, x: Tensor) -> Tensor:
        """``[end - begin, C]`` to ``[e, C]``."""
        if self.uniform:
            return x.unsqueeze(1).expand(-1, self.uniform, -1).reshape(-1, x.size(1))
        return x.repeat_interleave(self.degree, 0, output_size=self.col.numel())

    def sum(self, x: Tensor) -> Tensor:
        """``[e, C]`` to ``[end - begin, C]``."""
        if self.uniform:
            return x.view(-1, self.uniform, x.size(1)).sum(1)
        if x.device.type == "cpu":
            return x.new_zeros(self.end - self.begin, x.size(1)).index_add_(0, self.row, x)
        return torch.segment_reduce(x, "sum", lengths=self.degree, axis=0, unsafe=True)  # without atomics


class Kernels(Protocol):
    """Edge tensors are ``[e, C]`` in the order of ``rows.col``, node tensors whole; all in the type of sums."""

    def relate(self, rows: Rows, query: Tensor, key: Tensor, delta: Tensor) -> Tensor:
        """``query_i - key_j + delta``."""

    def sum(self, rows: Rows, score: Tensor, delta: Tensor, value: Tensor, out: Tensor) -> None:
        """Write the softmax-weighted sums of ``value_j + delta`` to the rows of ``out``."""

    def sum_backward(
        self, rows: Rows, score: Tensor, delta: Tensor, value: Tensor, grad_out: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of ``score`` and of ``value_j + delta``."""

    def collect(
        self,
        rows: Rows,
        of_relation: Tensor,
        message: Tensor,
        of_query: Tensor | None,
        of_key: Tensor | None,
        of_value: Tensor | None,
    ) -> None:
        """Add the gradients of `relate` and of ``value_j + delta`` to those of the nodes."""

    def collect_positions(
        self, rows: Rows, of_offset: Tensor, of_position: Tensor | None, of_key_position: Tensor | None
    ) -> None:
        """Add the gradient of ``position_i - key_position_j`` to those of the nodes."""


class TorchKernels:
    """`Kernels` for any device."""

    def relate(self, rows: Rows, query: Tensor, key: Tensor, delta: Tensor) -> Tensor:  # noqa: D102
        relation = key.index_select(0, rows.col)
        torch.sub(delta, relation, out=relation)
        own = query[rows.begin : rows.end]
        if rows.uniform:
            relation.view(-1, rows.uniform, own.size(1)).add_(own.unsqueeze(1))
        else:
            relation += rows.repeat(own)
        return relation

    def sum(self, rows: Rows, score: Tensor, delta: Tensor, value: Tensor, out: Tensor) -> None:  # noqa: D102
        message = value.index_select(0, rows.col).add_(delta).mul_(self._softmax(rows, score))
        out[rows.begin : rows.end] = rows.sum(message)

    def sum_backward(  # noqa: D102
        self, rows: Rows, score: Tensor, delta: Tensor, value: Tensor, grad_out: Tensor
    ) -> tuple[Tensor, Tensor]:
        weight = self._softmax(rows, score)
        moved = value.index_select(0, rows.col).add_(delta)
        mean, grad = rows.sum(weight * moved), grad_out[rows.begin : rows.end]
        if rows.uniform:
            shape = (-1, rows.uniform, value.size(1))
            moved.view(shape).sub_(mean.unsqueeze(1))
            weight.view(shape).mul_(grad.unsqueeze(1))
        else:
            moved -= rows.repeat(mean)
            weight *= rows.repeat(grad)
        return moved.mul_(weight), weight

    def collect(  # noqa: D102
        self,
        rows: Rows,
        of_relation: Tensor,
        message: Tensor,
        of_query: Tensor | None,
        of_key: Tensor | None,
        of_value: Tensor | None,
    ) -> None:
        if of_query is not None:
            of_query[rows.begin : rows.end] = rows.sum(of_relation)
        if of_key is not None:
            add_at(of_key, rows.col, of_relation, -1)
        if of_value is not None:
            add_at(of_value, rows.col, message, 1)

    def collect_positions(  # noqa: D102
        self, rows: Rows, of_offset: Tensor, of_position: Tensor | None, of_key_position: Tensor | None
    ) -> None:
        if of_position is not None:
            of_position[rows.begin : rows.end] = rows.sum(of_offset)
        if of_key_position is not None:
            add_at(of_key_position, rows.col, of_offset.to(of_key_position.dtype), -1)

    def _softmax(self, rows: Rows, score: Tensor) -> Tensor:
        if rows.uniform:
            weight = score.view(-1, rows.uniform, score.size(1)).softmax(1)
            if bool(weight.sum().isfinite()):
                return weight.view_as(score)
        return vector_reference.softmax(score, rows.row, rows.end - rows.begin)


def add_at(target: Tensor, index: Tensor, x: Tensor, sign: int) -> None:
    """``target[index] += sign * x``, in one order run after run: on a GPU `index_add_` has none."""
    x = x if sign == 1 else x.neg()  # not `alpha`, with which `index_add_` takes four times as long
    if target.device.type == "cpu":
        target.index_add_(0, index, x)
    else:
        target.index_put_((index.long(),), x, accumulate=True)
