"""Random bits that belong to an edge and a head rather than to a moment: nothing of dropout has to be kept."""

from __future__ import annotations

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF


def keep(edges: Tensor, heads: int, dropout: float, seed: int | Tensor) -> Tensor:
    """Which edges dropout keeps, ``[E, heads]``: Philox4x32-10 (Salmon et al. 2011) as `Problem` lays it out.

    Args:
        edges: Positions in ``col``, ``[E]``.
        heads: Number of heads.
        dropout: Probability of not being kept.
        seed: Not negative.
    """
    edges = edges.long()
    groups = torch.arange((heads + 3) // 4, device=edges.device)
    c0, c1 = (edges & _LOW).unsqueeze(1), (edges >> 32).unsqueeze(1)
    c2 = groups.expand(edges.numel(), -1)
    c3 = torch.zeros_like(c2)
    if isinstance(seed, Tensor):
        seed = seed.to(edges.device)
    k0, k1 = seed & _LOW, seed >> 32
    for _ in range(10):
        # Products of 32-bit words wrap around in int64, but all 64 bits are right.
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c2 = ((b >> 32) & _LOW) ^ c1 ^ k0, ((a >> 32) & _LOW) ^ c3 ^ k1
        c1, c3 = b & _LOW, a & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    words = torch.stack(torch.broadcast_tensors(c0, c1, c2, c3), -1).flatten(1)[:, :heads]
    return words >= int(dropout * 2**32)
