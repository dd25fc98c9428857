"""The blocks of Set Transformer, on sets of any sizes side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geoattn.ops.attend import attend
from geoattn.patterns.windows import Windows, check_windows

# What maps queries, keys, values, a pattern and a scale to outputs.
Attention = Callable[..., Tensor]
SETS = "Windows.from_batch(batch)"


class MAB(nn.Module):
    r"""Multihead attention block (Lee et al. 2019, "Set Transformer", eq. 6 and 7), as in the authors' code.

    .. math::
        H = Q + \operatorname{softmax}\bigl(Q K^\top / \sqrt{d}\bigr) V, \qquad
        \operatorname{MAB}(X, Y) = H + \operatorname{ReLU}(H W_o),

    head by head, with :math:`Q = X W_q`, :math:`K = Y W_k`, :math:`V = Y W_v`, and :math:`d` the width of all heads
    together, not that of one. Parameters have the names of the public code.

    Args:
        dim_q: Features of ``x``.
        dim_k: Features of ``y``.
        dim_v: Features of the output.
        num_heads: Number of heads; divides ``dim_v``.
        ln: Whether :math:`H` and the output are normalized by a LayerNorm.
        attention: What maps queries, keys, values, pattern and ``scale`` to outputs: `geoattn.attend`, or
            `geoattn.nn.sinkhorn_attend` with a number of steps, with which it is that of a Sinkformer.

    Shapes:
        ``x`` ``[N, dim_q]``, ``y`` ``[M, dim_k]``; output ``[N, dim_v]``.
    """

    def __init__(
        self, dim_q: int, dim_k: int, dim_v: int, num_heads: int, ln: bool = False, attention: Attention = attend
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim_v % num_heads:
            raise ValueError(f"num_heads must divide the width of the output, got {num_heads} and {dim_v}")
        self.num_heads, self.scale, self.attention = num_heads, dim_v**-0.5, attention
        self.fc_q = nn.Linear(dim_q, dim_v)
        self.fc_k = nn.Linear(dim_k, dim_v)
        self.fc_v = nn.Linear(dim_k, dim_v)
        self.ln0 = nn.LayerNorm(dim_v) if ln else None
        self.ln1 = nn.LayerNorm(dim_v) if ln else None
        self.fc_o = nn.Linear(dim_v, dim_v)

    def forward(self, x: Tensor, y: Tensor, pattern: Windows) -> Tensor:
        """Attend from ``x`` to ``y``."""
        query, key, value = (
            projected.unflatten(1, (self.num_heads, -1)) for projected in (self.fc_q(x), self.fc_k(y), self.fc_v(y))
        )
        out = (query + self.attention(query, key, value, pattern, scale=self.scale)).flatten(1)
        out = out if self.ln0 is None else self.ln0(out)
        out = out + F.relu(self.fc_o(out))
        return out if self.ln1 is None else cast("Tensor", self.ln1(out))


class SAB(nn.Module):
    """Set attention block (Lee et al. 2019, eq. 8): the elements of a set attend to each other, `MAB` of it and itself.

    Args:
        dim_in: Features of an element.
        dim_out: Features of the output.
        num_heads: Number of heads; divides ``dim_out``.
        ln: As of `MAB`.
        attention: As of `MAB`.
    """

    def __init__(
        self, dim_in: int, dim_out: int, num_heads: int, ln: bool = False, attention: Attention = attend
    ) -> None:
        super().__init__()
        self.mab = MAB(dim_in, dim_in, dim_out, num_heads, ln, attention)

    def forward(self, x: Tensor, sets: Windows) -> Tensor:
        """Of elements ``[N, dim_in]``, ``[N, dim_out]``; ``sets`` has a run for each set, of ``N`` queries and keys."""
        check_windows(sets, "sets", SETS)
        return cast("Tensor", self.mab(x, x, sets))


class ISAB(nn.Module):
    """Induced set attention block (Lee et al. 2019, eq. 9 and 10), at a cost linear in the number of elements.

    Learned inducing points attend to the elements of a set, and the elements to what these found.

    Args:
        dim_in: Features of an element.
        dim_out: Features of the output.
        num_heads: Number of heads; divides ``dim_out``.
        num_inds: Number of inducing points.
        ln: As of `MAB`.
        attention: As of `MAB`.
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        num_heads: int,
        num_inds: int,
        ln: bool = False,
        attention: Attention = attend,
    ) -> None:
        super().__init__()
        self.I = nn.Parameter(torch.empty(1, num_inds, dim_out))
        nn.init.xavier_uniform_(self.I)
        self.mab0 = MAB(dim_out, dim_in, dim_out, num_heads, ln, attention)
        self.mab1 = MAB(dim_in, dim_out, dim_out, num_heads, ln, attention)

    def forward(self, x: Tensor, sets: Windows) -> Tensor:
        """Of elements ``[N, dim_in]``, ``[N, dim_out]``; ``sets`` has a run for each set, of ``N`` queries and keys."""
        check_windows(sets, "sets", SETS)
        reading = sets.latents(self.I.size(1))
        found = self.mab0(self.I[0].repeat(sets.num_runs, 1), x, reading)
        return cast("Tensor", self.mab1(x, found, reading.transpose))


class PMA(nn.Module):
    """Pooling by multihead attention (Lee et al. 2019, eq. 11): learned seeds attend to the elements of a set.

    As in the authors' code, the elements go in as they are, without the paper's row-wise perceptron before.

    Args:
        dim: Features of an element and of the output.
        num_heads: Number of heads; divides ``dim``.
        num_seeds: Number of seeds ``k``.
        ln: As of `MAB`.
        attention: As of `MAB`.
    """

    def __init__(
        self, dim: int, num_heads: int, num_seeds: int, ln: bool = False, attention: Attention = attend
    ) -> None:
        super().__init__()
        self.S = nn.Parameter(torch.empty(1, num_seeds, dim))
        nn.init.xavier_uniform_(self.S)
        self.mab = MAB(dim, dim, dim, num_heads, ln, attention)

    def forward(self, x: Tensor, sets: Windows) -> Tensor:
        """Of elements ``[N, dim]`` in ``B`` sets, ``[B * k, dim]``: sets ``sets.latents(k).among_queries``."""
        check_windows(sets, "sets", SETS)
        return cast("Tensor", self.mab(self.S[0].repeat(sets.num_runs, 1), x, sets.latents(self.S.size(1))))
