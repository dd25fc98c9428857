"""`Windows`: runs of queries that each see one run of keys."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from geoattn._arguments import check_tensors, checked_integer
from geoattn.patterns.neighbors import Neighbors

T = TypeVar("T")

# Consecutive runs of so many queries are processed where they lie; shorter ones are gathered with others like them.
_WORTH_A_CALL = 4096


class Windows:
    """A block pattern: every query of a run attends to all keys of one run of keys.

    The runs of queries follow each other and hold every query once. Runs of keys are any intervals: they may overlap,
    repeat, leave keys out or be empty. One run per sample is attention among everything in a sample; runs along a
    space-filling curve are serialized attention (see `along`); a few latents that read from their sample are a run of
    queries of their own for every sample.

    Args:
        query_ptr: Where each run of queries begins and ends, ``[B + 1]``, int32 or int64.
        key_run: The run of keys of each run of queries, of the same type: where each begins and ends, ``[B, 2]``, or
            ``[B + 1]`` where they follow each other; default: ``query_ptr``.
        num_keys: Number of keys ``M``; default: where the last run of keys ends.
        check: Whether to look at the values now, for which the host waits for the device, or when they are first
            needed.

    Raises:
        TypeError: If runs are no tensors, or ``num_keys`` is no integer.
        ValueError: If shapes, types or devices are wrong, ``query_ptr`` does not rise from 0, a run of keys ends before
            it begins or is not inside ``[0, num_keys]``, or those that follow each other do not begin at 0.
    """

    def __init__(
        self, query_ptr: Tensor, key_run: Tensor | None = None, num_keys: int | None = None, *, check: bool = True
    ) -> None:
        key_run = query_ptr if key_run is None else key_run
        check_tensors(query_ptr=query_ptr, key_run=key_run)
        num_keys = None if num_keys is None else checked_integer("num_keys", num_keys)
        runs = query_ptr.numel() - 1
        if query_ptr.dim() != 1 or runs < 0 or key_run.shape not in ((runs + 1,), (runs, 2)):
            raise ValueError(
                "expected query_ptr [B + 1] and key_run [B + 1] or [B, 2], "
                f"got {tuple(query_ptr.shape)} and {tuple(key_run.shape)}"
            )
        if query_ptr.dtype not in (torch.int32, torch.int64) or query_ptr.dtype != key_run.dtype:
            raise ValueError(
                f"query_ptr and key_run must both be int32 or both int64, got {query_ptr.dtype} and {key_run.dtype}"
            )
        if query_ptr.device != key_run.device:
            raise ValueError(
                f"query_ptr and key_run must be on one device, got {query_ptr.device} and {key_run.device}"
            )
        follow = key_run.dim() == 1
        with _lasting():
            if not torch.compiler.is_compiling() and query_ptr.is_inference():
                query_ptr, key_run = query_ptr.clone(), key_run.clone()
            self.query_ptr = query_ptr
            self.key_run = torch.stack([key_run[:-1], key_run[1:]], 1) if follow else key_run
        # What the host knows of the values. Not cached_property, whose lock torch.compile cannot see through on
        # Python 3.11.
        self._host: tuple[np.ndarray, np.ndarray] | None = None
        self._plan: Plan | None = None
        self._neighbors: Neighbors | None = None
        self._transpose: Windows | None = None
        self._among_queries: Windows | None = None
        self._latents: dict[int, Windows] = {}
        self._num_queries: int | None = None
        self._num_pairs: int | None = None
        self._num_keys = num_keys
        if check and not _traced():
            self._check(follow)
            self._plan = _plan(*self._on_host(), self.num_keys)

    def _check(self, follow: bool = False) -> None:
        ptr, run = self._on_host()
        if ptr[0] != 0 or (np.diff(ptr) < 0).any():
            raise ValueError("query_ptr must rise from 0")
        if follow and len(run) and (run[0, 0] != 0 or (run[:, 0] > run[:, 1]).any()):
            raise ValueError("key_run must rise from 0 where it is [B + 1]; give begin and end of each as [B, 2]")
        wrong = (run[:, 0] > run[:, 1]) | (run[:, 0] < 0) | (run[:, 1] > self.num_keys)
        if wrong.any():
            first = int(wrong.argmax())
            raise ValueError(
                f"every run of keys must lie in [0, {self.num_keys}], got {run[first].tolist()} for run {first}"
            )
        self._num_queries = int(ptr[-1])

    def _on_host(self) -> tuple[np.ndarray, np.ndarray]:
        """Values of ``query_ptr`` and ``key_run``."""
        if self._host is None:
            both = torch.cat([self.query_ptr, self.key_run.flatten()]).cpu().long().numpy()
            ptr, run = np.split(both, [self.query_ptr.numel()])
            self._host = ptr, run.reshape(-1, 2)
        return self._host

    @classmethod
    def from_batch(
        cls, query_batch: Tensor, key_batch: Tensor | None = None, num_samples: int | None = None
    ) -> Windows:
        """One run per sample.

        Args:
            query_batch: Sample of every query ``[N]``, ascending.
            key_batch: Sample of every key ``[M]``, ascending; default: ``query_batch``.
            num_samples: Number of samples ``B``; default: as many as there are in both.

        Raises:
            TypeError: If samples are no tensor.
            ValueError: If samples do not ascend, or there are more than ``num_samples``.
        """
        batches = [query_batch] if key_batch is None else [query_batch, key_batch]
        for name, batch in zip(("query_batch", "key_batch"), batches, strict=False):
            _check_samples(name, batch)
        if num_samples is not None:
            num_samples = checked_integer("num_samples", num_samples)
        else:
            num_samples = max((int(batch[-1]) + 1 for batch in batches if batch.numel()), default=0)
        ptrs = [_ptr(_counts(batch, num_samples)) for batch in batches]
        return cls(ptrs[0], ptrs[-1])

    @classmethod
    def along(
        cls,
        size: int,
        batch: Tensor | None = None,
        *,
        counts: Tensor | Sequence[int] | None = None,
        borrow: bool = False,
    ) -> Windows:
        """Runs of ``size`` elements one after the other, in every sample by itself: patches along a curve.

        The elements are to be sorted, by sample and then along the curve (`geoattn.geometry.curves`). The last run of a
        sample is shorter where ``size`` does not divide its number of elements. With ``borrow`` it sees the last
        ``size`` elements of the sample, as in Point Transformer V3 (Wu et al. 2024), whose last patch is filled up with
        points of the one before; samples of fewer elements are one run either way. The host looks at the counts: make
        the pattern outside of what is compiled.

        Args:
            size: Number of elements of a run, at least 1.
            batch: Sample of every element ``[N]``, ascending.
            counts: Instead, the number of elements of every sample, ``[B]``.
            borrow: Whether the keys of a sample's last run reach back into the run before.

        Raises:
            TypeError: If ``size`` is no integer, or ``batch`` no tensor.
            ValueError: If ``size`` is below 1, samples do not ascend, counts are negative, or not exactly one of
                ``batch`` and ``counts`` is given.

        Example:
            >>> Windows.along(4, counts=[10], borrow=True).key_run.tolist()
            [[0, 4], [4, 8], [6, 10]]
        """
        size = checked_integer("size", size, least=1)
        if (batch is None) == (counts is None):
            raise ValueError("give either batch or counts")
        if batch is not None:
            _check_samples("batch", batch)
            counts = _counts(batch, int(batch[-1]) + 1 if batch.numel() else 0)
        device = counts.device if isinstance(counts, Tensor) else None
        count = torch.as_tensor(counts)
        if count.dim() != 1 or (count.is_floating_point() and count.numel()):
            raise ValueError(f"expected counts as integers [B], got {counts}")
        count = count.long().cpu()
        if bool((count < 0).any()):
            raise ValueError(f"counts must not be negative, got {count.tolist()}")
        runs = (count + size - 1) // size
        begin_of_sample = _ptr(count)[:-1].repeat_interleave(runs)
        end_of_sample = _ptr(count)[1:].repeat_interleave(runs)
        place = torch.arange(int(runs.sum())) - _ptr(runs)[:-1].repeat_interleave(runs)
        begin = begin_of_sample + place * size
        end = torch.minimum(begin + size, end_of_sample)
        key_begin = torch.maximum(end - size, begin_of_sample) if borrow else begin
        query_ptr = torch.cat([begin, count.sum().view(1)])
        return cls(query_ptr.to(device), torch.stack([key_begin, end], 1).to(device), int(count.sum()))

    @property
    def key_begin(self) -> Tensor:
        """Where each run of keys begins, ``[B]``."""
        return self.key_run[:, 0]

    @property
    def key_end(self) -> Tensor:
        """Where each run of keys ends, ``[B]``."""
        return self.key_run[:, 1]

    @property
    def num_runs(self) -> int:
        """Number of runs ``B``."""
        return self.query_ptr.numel() - 1

    @property
    def num_queries(self) -> int:
        """Number of queries ``N``."""
        if self._num_queries is None:
            self._num_queries = int(self._on_host()[0][-1])
        return self._num_queries

    @property
    def num_keys(self) -> int:
        """Number of keys ``M``."""
        if self._num_keys is None:
            self._num_keys = int(self._on_host()[1][:, 1].max(initial=0))
        return self._num_keys

    @property
    def num_pairs(self) -> int:
        """Number of (query, key) pairs."""
        if self._num_pairs is None:
            ptr, run = self._on_host()
            self._num_pairs = int((np.diff(ptr) * (run[:, 1] - run[:, 0])).sum())
        return self._num_pairs

    def fits(self, queries: int, keys: int) -> bool:
        """Whether it is a pattern of so many queries and keys; True where that is not known while compiling."""
        if _traced() and self._host is None:
            return self._num_queries in (None, queries) and self._num_keys in (None, keys)
        return self.num_queries == queries and self.num_keys == keys

    @property
    def plan(self) -> Plan:
        """Runs of one length together, known to the host; made when first asked for."""
        if self._plan is None:
            if torch.compiler.is_compiling():
                raise RuntimeError(
                    "the host must know the values of these Windows, for a bias made by a module or under a transform: "
                    "make them outside of what is compiled"
                )
            self._check()
            self._plan = _untraced(_plan)(*self._on_host(), self.num_keys)
        return self._plan

    @property
    def transpose(self) -> Windows:
        """The keys as queries: each run of keys attends to the run of queries that sees it.

        Raises:
            ValueError: If the runs of keys do not follow each other from the first key to the last.
        """
        if self._transpose is None:
            if not _traced():
                run = self._on_host()[1]
                ends = np.concatenate([[0], run[:, 1]])
                if (run[:, 0] != ends[:-1]).any() or ends[-1] != self.num_keys:
                    raise ValueError(f"only runs of keys that follow each other can be transposed, not those of {self}")
            with _lasting():
                ptr = torch.cat([self.key_run[:1, 0], self.key_run[:, 1]]) if self.num_runs else self.query_ptr
            found = Windows(ptr, self.query_ptr, self._num_queries, check=False)
            found._num_queries = self._num_keys
            if _traced():
                return found
            self._transpose = found
        return self._transpose

    @property
    def among_queries(self) -> Windows:
        """The same runs of queries, each of which attends to itself."""
        if self._among_queries is None:
            found = Windows(self.query_ptr, num_keys=self._num_queries, check=False)
            found._num_queries = self._num_queries
            if _traced():
                return found
            self._among_queries = found
        return self._among_queries

    def latents(self, count: int) -> Windows:
        """``count`` queries of its own for every run, which see the run's keys: latents, inducing points, seeds.

        Raises:
            TypeError: If ``count`` is no integer.
            ValueError: If it is below 1.
        """
        count = checked_integer("count", count, least=1)
        found = self._latents.get(count)
        if found is None:
            with _lasting():
                ptr = count * torch.arange(self.num_runs + 1, dtype=self.query_ptr.dtype, device=self.query_ptr.device)
            found = Windows(ptr, self.key_run, self._num_keys, check=False)
            found._num_queries = count * self.num_runs
            if _traced():
                return found
            if self._host is not None:
                found._host = count * np.arange(self.num_runs + 1), self._host[1]
            self._latents[count] = found
        return found

    def to(self, *args: Any, **kwargs: Any) -> Windows:
        """Move to a device and/or change the index type, as `torch.Tensor.to`."""
        found = Windows(
            self.query_ptr.to(*args, **kwargs), self.key_run.to(*args, **kwargs), self._num_keys, check=False
        )
        found._host, found._plan, found._num_queries = self._host, self._plan, self._num_queries
        return found

    def to_neighbors(self) -> Neighbors:
        """The same pattern with every (query, key) pair written out; made when first asked for."""
        if self._neighbors is not None:
            return self._neighbors
        with _lasting():
            queries, keys = self.query_ptr.diff(), self.key_end - self.key_begin
            degree = keys.repeat_interleave(queries)
            rowptr = torch.cat([degree.new_zeros(1), degree.cumsum(0, dtype=degree.dtype)])
            first = (self.key_begin.repeat_interleave(queries) - rowptr[:-1]).repeat_interleave(degree)
            col = first + torch.arange(first.numel(), dtype=first.dtype, device=first.device)
            found = Neighbors(rowptr, col, self.num_keys, check=False)
        if not _traced():
            self._neighbors = found
        return found

    def __repr__(self) -> str:
        return f"Windows(queries={self.num_queries}, keys={self.num_keys}, runs={self.num_runs})"


def check_windows(given: object, name: str, how: str) -> None:
    """That an argument is `Windows`; ``how`` says what makes them.

    Raises:
        TypeError: If it is something else.
    """
    if not isinstance(given, Windows):
        raise TypeError(f"expected Windows as {name}, got {type(given).__name__}; make them with {how}")


class Runs(NamedTuple):
    """Some runs, or like parts of them, with equally many queries and equally many keys."""

    queries: int  # of each
    keys: int
    query_begin: list[int]
    key_begin: list[int]
    first_pair: list[int]  # position of the first (query, key) pair in `Windows.to_neighbors`
    pairs_per_query: int  # in the whole run
    follow: bool  # whether both queries and keys of one run follow those of the run before

    @property
    def num_runs(self) -> int:
        """Number of runs ``R``."""
        return len(self.query_begin)

    def split(self, size: int) -> Iterator[Runs]:
        """At most ``size`` runs at a time."""
        if size >= self.num_runs:
            yield self
            return
        for i in range(0, self.num_runs, size):
            part = slice(i, i + size)
            yield self._replace(
                query_begin=self.query_begin[part], key_begin=self.key_begin[part], first_pair=self.first_pair[part]
            )

    def split_queries(self, size: int) -> Iterator[Runs]:
        """At most ``size`` queries of each run at a time."""
        if size >= self.queries:
            yield self
            return
        for i in range(0, self.queries, size):
            yield self._replace(
                queries=min(size, self.queries - i),
                query_begin=[begin + i for begin in self.query_begin],
                first_pair=[pair + i * self.pairs_per_query for pair in self.first_pair],
                follow=self.num_runs == 1,
            )

    def split_keys(self, size: int) -> Iterator[Runs]:
        """At most ``size`` keys of each run at a time."""
        if size >= self.keys:
            yield self
            return
        for i in range(0, self.keys, size):
            yield self._replace(
                keys=min(size, self.keys - i),
                key_begin=[begin + i for begin in self.key_begin],
                first_pair=[pair + i for pair in self.first_pair],
                follow=self.num_runs == 1,
            )


class Plan(NamedTuple):
    """What the host knows of `Windows`: the runs that have queries, those of one length together."""

    groups: list[Runs]
    apart: bool  # whether no key is in two runs
    whole: bool  # whether there is one group, which holds all queries and keys in their order


def _plan(ptr: np.ndarray, run: np.ndarray, num_keys: int) -> Plan:
    queries, keys = np.diff(ptr), run[:, 1] - run[:, 0]
    pairs = queries * keys
    kept = queries.nonzero()[0]
    order = kept[np.lexsort((keys[kept], queries[kept]))]
    q, k, query_begin, key_begin = queries[order], keys[order], ptr[:-1][order], run[order, 0]
    first_pair = (pairs.cumsum() - pairs)[order]

    differs = np.ones(len(order), dtype=bool)
    differs[1:] = (np.diff(q) != 0) | (np.diff(k) != 0)
    breaks = differs.copy()
    breaks[1:] |= (np.diff(query_begin) != q[:-1]) | (np.diff(key_begin) != k[:-1])
    length, chain = np.cumsum(differs, dtype=np.int64), np.cumsum(breaks, dtype=np.int64)
    # Chains long enough are groups of their own; what is left of one length is one group.
    alone = np.bincount(chain, q)[chain] >= _WORTH_A_CALL if len(order) else differs
    group = np.where(alone, chain + len(order) + 1, length)
    by_group = np.argsort(group, kind="stable")
    cuts = np.diff(group[by_group]).nonzero()[0] + 1
    groups = [
        Runs(
            queries=int(q[members[0]]),
            keys=int(k[members[0]]),
            query_begin=query_begin[members].tolist(),
            key_begin=key_begin[members].tolist(),
            first_pair=first_pair[members].tolist(),
            pairs_per_query=int(k[members[0]]),
            follow=not bool(breaks[members[1:]].any()),
        )
        for members in (np.split(by_group, cuts) if len(order) else [])
    ]
    begins, ends = np.sort(run[keys > 0], 0).T
    whole = len(groups) == 1 and groups[0].follow and num_keys > 0
    whole = whole and groups[0].key_begin[0] == 0 and groups[0].keys * groups[0].num_runs == num_keys
    return Plan(groups, bool((begins[1:] >= ends[:-1]).all()), whole)


def _untraced(function: Callable[..., T]) -> Callable[..., T]:
    """Out of sight of `torch.compile`, which would translate numpy; what hides things from it is slow to import."""
    dynamo = sys.modules.get("torch._dynamo")
    return function if dynamo is None else dynamo.disable(function)


def _traced() -> bool:
    """Whether tensors made now may be fake or part of a program, and must not be kept."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def _lasting() -> AbstractContextManager[Any]:
    """Tensors made inside can be used for training later, even if this is inference mode."""
    return nullcontext() if torch.compiler.is_compiling() else torch.inference_mode(False)


def _check_samples(name: str, batch: Tensor) -> None:
    check_tensors(**{name: batch})
    if batch.dim() != 1 or batch.is_floating_point() or batch.dtype == torch.bool:
        raise ValueError(f"expected {name} as integers [N], got {batch.dtype} {list(batch.shape)}")


def _counts(batch: Tensor, num_samples: int) -> Tensor:
    """Number of elements of every sample."""
    if batch.numel() and not torch.compiler.is_compiling():
        if bool((batch[1:] < batch[:-1]).any()) or int(batch[0]) < 0:
            raise ValueError("samples must ascend from 0 on; sort the elements by sample first")
        if int(batch[-1]) >= num_samples:
            raise ValueError(f"expected samples below num_samples {num_samples}, got {int(batch[-1])}")
    return torch.bincount(batch, minlength=num_samples)


def _ptr(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
