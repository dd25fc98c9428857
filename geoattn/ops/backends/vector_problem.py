"""What kernels of vector attention are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from geoattn.patterns import Neighbors


class Linear(NamedTuple):
    """``x W^T + b``, then perhaps ReLU."""

    weight: Tensor
    bias: Tensor | None
    relu: bool


class Problem(NamedTuple):
    """One call of `geoattn.ops.vector_attend` whose networks are chains, all of one floating type."""

    query: Tensor  # [N, C]
    key: Tensor  # [M, C]
    value: Tensor  # [M, C]
    position: Tensor  # [N, P]
    key_position: Tensor  # [M, P]
    pos: tuple[Linear, ...]
    attn: tuple[Linear, ...]  # empty: scores are what would enter
    pattern: Neighbors

    @property
    def sum_dtype(self) -> torch.dtype:
        """The accumulation dtype."""
        return torch.promote_types(self.query.dtype, torch.float32)

    def tensors(self) -> list[Tensor | None]:
        """The five inputs, then weight and bias of every layer."""
        return [*self[:5], *(x for layer in self.pos + self.attn for x in layer[:2])]

    def with_tensors(self, tensors: Sequence[Tensor | None]) -> Problem:
        """The same call of other `tensors`."""
        layers = [
            Linear(weight, bias, old.relu)  # type: ignore[arg-type]
            for weight, bias, old in zip(tensors[5::2], tensors[6::2], self.pos + self.attn, strict=True)
        ]
        pos, attn = tuple(layers[: len(self.pos)]), tuple(layers[len(self.pos) :])
        return Problem(*tensors[:5], pos, attn, self.pattern)  # type: ignore[call-arg, arg-type]

    def without_tensors(self) -> Problem:
        """What is left to be filled by `with_tensors`."""
        return self.with_tensors([None] * len(self.tensors()))
