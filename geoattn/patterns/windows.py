"""`Windows`: runs of queries that each see one run of keys."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geoattn.patterns.neighbors import Neighbors


class Windows:
    """A block pattern: the queries ``query_ptr[b]:query_ptr[b + 1]`` attend to all of ``key_ptr[b]:key_ptr[b + 1]``.

    One run per sample is attention among everything in a sample; shorter runs of points sorted along a curve are
    serialized attention.

    Args:
        query_ptr: Where each run of queries begins and ends, ``[B + 1]``, int64.
        key_ptr: The same for the keys, ``[B + 1]``; default: ``query_ptr``.

    Raises:
        ValueError: If the two differ in length or do not rise from 0.
    """

    def __init__(self, query_ptr: Tensor, key_ptr: Tensor | None = None) -> None:
        key_ptr = query_ptr if key_ptr is None else key_ptr
        if query_ptr.dim() != 1 or query_ptr.shape != key_ptr.shape or query_ptr.numel() < 1:
            raise ValueError(
                f"expected query_ptr and key_ptr [B + 1], got {tuple(query_ptr.shape)} and {tuple(key_ptr.shape)}"
            )
        for name, ptr in (("query_ptr", query_ptr), ("key_ptr", key_ptr)):
            if ptr[0] != 0 or bool((ptr[1:] < ptr[:-1]).any()):
                raise ValueError(f"{name} must rise from 0")
        self.query_ptr = query_ptr
        self.key_ptr = key_ptr

    @classmethod
    def from_batch(cls, query_batch: Tensor, key_batch: Tensor, num_samples: int) -> Windows:
        """One run per sample.

        Args:
            query_batch: Sample of every query ``[N]``, ascending.
            key_batch: Sample of every key ``[M]``, ascending.
            num_samples: Number of samples ``B``.
        """

        def ptr(batch: Tensor) -> Tensor:
            return torch.cat([batch.new_zeros(1), torch.bincount(batch, minlength=num_samples).cumsum(0)])

        return cls(ptr(query_batch), ptr(key_batch))

    @property
    def num_queries(self) -> int:
        """Number of queries ``N``."""
        return int(self.query_ptr[-1])

    @property
    def num_keys(self) -> int:
        """Number of keys ``M``."""
        return int(self.key_ptr[-1])

    def to(self, *args: Any, **kwargs: Any) -> Windows:
        """Move to a device, as `torch.Tensor.to`."""
        return Windows(self.query_ptr.to(*args, **kwargs), self.key_ptr.to(*args, **kwargs))

    def to_neighbors(self) -> Neighbors:
        """The same pattern with every (query, key) pair written out."""
        queries, keys = self.query_ptr.diff(), self.key_ptr.diff()
        degree = keys.repeat_interleave(queries)
        rowptr = torch.cat([degree.new_zeros(1), degree.cumsum(0)])
        first = (self.key_ptr[:-1].repeat_interleave(queries) - rowptr[:-1]).repeat_interleave(degree)
        return Neighbors(rowptr, first + torch.arange(first.numel(), device=first.device), self.num_keys)

    def __repr__(self) -> str:
        return f"Windows(queries={self.num_queries}, keys={self.num_keys}, runs={self.query_ptr.numel() - 1})"
