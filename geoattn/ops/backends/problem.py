"""What a backend is given: one attention problem over compressed rows, already checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from geoattn.patterns import Visits


class Problem(NamedTuple):
    r"""One call of `geoattn.attend` over `Neighbors`.

    Query ``i`` attends to the keys ``j = col[e]``, ``rowptr[i] <= e < rowptr[i + 1]``. Head ``h`` of the query uses
    head ``h // (H / G)`` of a tensor with ``G`` heads. With :math:`k = key_j + edge\_key_e` and
    :math:`v = value_j + edge\_value_e`, the score of edge ``e`` is ``scale * (query_i . k)``, or
    ``sum_d att_d * leaky_relu(query_id + k_d)`` where ``att`` is given, plus ``bias_e`` plus ``log_weight_j``.

    ``T`` is the type of the inputs; ``A`` is the accumulation dtype: float64 for float64, else float32. The
    last dimension of query, key and value has stride 1; everything else is contiguous.

    Dropout keeps edge ``e + first_edge`` in head ``h`` where word ``h % 4`` of Philox4x32-10 at counter
    ``((e + first_edge) mod 2^32, (e + first_edge) >> 32, h // 4, 0)`` with key ``(seed mod 2^32, seed >> 32)`` is at
    least ``floor(dropout * 2^32)``, and multiplies what it keeps by ``1 / (1 - dropout)``.
    """

    query: Tensor  # [N, H, D] T
    key: Tensor  # [M, G, D] T
    value: Tensor  # [M, G, C] T
    rowptr: Tensor  # [N + 1], int32 or int64
    col: Tensor  # [E]
    bias: Tensor | None  # [E, H or 1] A
    log_weight: Tensor | None  # [M, H or 1] A
    edge_key: Tensor | None  # [E, G', D] T, G' divides H
    edge_value: Tensor | None  # [E, G', C] T
    att: Tensor | None  # [H, D] A
    scale: float
    negative_slope: float
    dropout: float
    seed: int | Tensor | None  # in [0, 2^63), None without dropout; a number wherever a kernel is called
    first_edge: int = 0  # position of the first edge, where the problem is a cut of a larger one
    visits: Visits | None = None  # the same rows in an order that suits the cache of a CPU

    @property
    def sum_dtype(self) -> torch.dtype:
        """``A``, the accumulation dtype, also that of scores and the log-sum-exp."""
        return torch.promote_types(self.query.dtype, torch.float32)


class Gradients(NamedTuple):
    """Of the inputs of the same name, in their shapes and types; None where it was not asked for."""

    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    bias: Tensor | None = None
    log_weight: Tensor | None = None
    edge_key: Tensor | None = None
    edge_value: Tensor | None = None
    att: Tensor | None = None


class Backend(Protocol):
    """What a backend of `geoattn.attend` is: a module with these functions, all called without autograd.

    The reference has no ``backward``: autograd differentiates its plain formulas.
    """

    READS_OUT: bool  # whether the backward pass reads the output
    VISITS: bool  # whether rows are read in the order of `Neighbors.visits`

    def unavailable(self, problem: Problem | None = None) -> str | None:
        """Why the backend cannot run, at all or on ``problem``, in a sentence; None if it can."""

    def forward(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """Output ``[N, H, C]`` and log-sum-exp ``[N, H]``."""

    def backward(
        self,
        problem: Problem,
        columns: Visits | None,
        out: Tensor | None,
        lse: Tensor,
        grad_out: Tensor,
        grad_lse: Tensor | None,
        needs: Sequence[str],
    ) -> Gradients:
        """Gradients of the inputs named in ``needs``; those of keys, values and key weights need the ``columns``."""
