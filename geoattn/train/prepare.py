"""Samples prepared once for training, in parallel processes, and kept on disk if wanted."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset
from torch_geometric.data import Data

from geoattn.geometry.cache import cached, fingerprint
from geoattn.geometry.threads import one_thread
from geoattn.train.progress import progress_bar
from geoattn.train.randomness import mixed_seed, own_random_state, seed_all
from geoattn.train.task import Prepare, Samples


class SampleError(ValueError):
    """A sample cannot be read or prepared.

    Where that happens in a process that reads samples for torch's loader, torch makes the error anew, with the whole
    traceback as its message. The message is then the original one again, and the traceback its cause.
    """

    def __init__(self, message: str) -> None:
        traceback_and_message = message.rsplit(f"{type(self).__name__}: ", 1)
        super().__init__(traceback_and_message[-1].strip())
        if len(traceback_and_message) == 2:
            self.__cause__ = RuntimeError(f"in another process:\n{message}")


class Prepared:
    """Samples turned into what a network reads, each in several random variants that take turns over the epochs.

    What is prepared follows from the samples and ``seed`` alone, bit for bit: not from the number of processes, and
    not from the state of the global generators, which are seeded for each sample and afterwards as they were. So
    ``prepare`` may also draw from those, as PyG's transforms do.

    Args:
        samples: The samples.
        prepare: ``prepare(sample, generator)``, which must not change ``sample``: of a random variant of it that
            ``generator`` decides, or, where that is None, of the sample itself.
        copies: How many of each to prepare: the sample itself and ``copies - 1`` variants, each from a generator of
            its own. None: nothing is kept; a sample is prepared when it is read, another variant in each epoch.
        seed: Of the generators.
        workers: Processes that prepare; 0: this one. Default: one for each core that this process may use (a share of
            them under ``torchrun``) if it takes more than a second; where Python starts processes anew (macOS,
            Windows), which scripts without ``if __name__ == "__main__":`` do not survive, none.
        cache: Keep what is prepared in `geoattn.geometry.cache_dir` and look there first. ``prepare`` must then be a
            function at the top of a module, or an object of a class there, or its method, that does what its attributes
            say; samples and what it makes of them hold tensors, strings and numbers. Without ``copies`` there is
            nothing to keep.
        title: Shown at the progress bar.

    Raises:
        ValueError: If ``copies`` is less than 1; or with the sample's index, its ``name`` if it has one, and the
            reason, if a sample cannot be read or prepared.
        TypeError: If ``cache`` is True and nothing says when ``prepare`` or a sample changes.
    """

    def __init__(
        self,
        samples: Samples,
        prepare: Prepare,
        copies: int | None = 1,
        seed: int = 0,
        workers: int | None = None,
        cache: bool = False,
        title: str = "preparing",
    ) -> None:
        if copies is not None and copies < 1:
            raise ValueError(f"copies must be at least 1, got {copies}")
        self.copies = copies
        # In shared memory, so that processes that outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()
        self._recipe = _Recipe(samples, prepare, copies or 0, seed, fingerprint(prepare) if cache else None)
        self._kept: list[list[Data]] = []
        if copies is not None:
            with progress_bar(desc=title, unit="sample", total=len(samples) * copies) as bar:
                for variants in _in_processes(self._recipe, workers):
                    self._kept.append(variants)
                    bar.update(copies)

    def set_epoch(self, epoch: int) -> None:
        """Choose the variants of this epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._recipe)

    def __getitem__(self, index: int) -> Data:
        if self.copies is None:
            return self._recipe.variant(index, int(self._epoch))
        return self._kept[index][(int(self._epoch) + index) % self.copies]


@dataclass
class _Recipe:
    """How samples are prepared, as a data set that processes can read: ``recipe[i]`` are the copies of sample i."""

    samples: Samples
    prepare: Prepare
    copies: int
    seed: int
    identity: str | None  # of what prepares, where it is cached

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> list[Data]:
        return self._named(index, lambda sample: [self._copy(sample, index, copy) for copy in range(self.copies)])

    def variant(self, index: int, epoch: int) -> Data:
        """The variant of a sample that belongs to an epoch, made now."""
        return self._named(index, lambda sample: self._make(sample, (self.seed, epoch, index)))

    def _named(self, index: int, make: Callable[[Data], Any]) -> Any:
        """``make`` of a sample; what goes wrong names it."""
        name = None
        try:
            sample = self.samples[index]
            name = getattr(sample, "name", None)
            return make(sample)
        except Exception as error:
            sample_name = f"sample {index}" if name is None else f"sample {index} ({name})"
            reason = str(error) if isinstance(error, ValueError) else traceback.format_exception_only(error)[-1].strip()
            raise SampleError(f"{sample_name} cannot be prepared: {reason}") from error

    def _copy(self, sample: Data, index: int, copy: int) -> Data:
        numbers = (self.seed, index, copy) if copy else None
        if self.identity is None:
            return self._make(sample, numbers)
        key = fingerprint(self.identity, sample.to_dict(), numbers)
        kept = Data()
        for name, value in cached(key, lambda: self._make(sample, numbers).to_dict()).items():
            kept[name] = value  # one after the other, which keeps their order
        return kept

    def _make(self, sample: Data, numbers: tuple[int, int, int] | None) -> Data:
        """Prepare a variant that follows from the numbers, or the sample itself, on one thread."""
        with one_thread(), own_random_state(torch.device("cpu")):
            seed_all(*(numbers or (0,)))
            # Not the seed of the global generators: they must not draw the same numbers.
            generator = None if numbers is None else torch.Generator().manual_seed(mixed_seed(*numbers, 1))
            return self.prepare(sample, generator)


class _Pickled:
    """The recipe for another process: it returns bytes, because tensors would be sent as open files, one for each."""

    def __init__(self, recipe: _Recipe) -> None:
        self.recipe = recipe

    def __len__(self) -> int:
        return len(self.recipe)

    def __getitem__(self, index: int) -> bytes:
        try:
            return pickle.dumps(self.recipe[index])
        except ValueError as error:
            return pickle.dumps((str(error), traceback.format_exc()))

    def __reduce__(self) -> Any:
        # For the same reason, where the process is not a fork of this one.
        return _unpickled, (pickle.dumps(self.recipe),)


def _unpickled(recipe: bytes) -> _Pickled:
    return _Pickled(pickle.loads(recipe))


def _in_processes(recipe: _Recipe, workers: int | None) -> Iterator[list[Data]]:
    """What the recipe makes of each sample, in order."""
    method = multiprocessing.get_start_method()
    if torch.cuda.is_initialized() and len(recipe):
        sample = recipe.samples[0]
        if isinstance(sample, Data) and sample.is_cuda():
            method = "spawn"  # a fork could not use it
    done = 0
    if workers is None:
        workers = spare_cores() if method == "fork" else 0
        # Starting processes is not worth it for what is done in a second.
        until = time.monotonic() + 1
        while done < len(recipe) and (workers < 2 or time.monotonic() < until):
            yield recipe[done]
            done += 1
    left = range(done, len(recipe))
    if workers == 0 or not left:
        yield from (recipe[index] for index in left)
        return
    results = iter(
        DataLoader(
            cast("Dataset[bytes]", _Pickled(recipe)),
            batch_size=None,
            sampler=left,
            num_workers=min(workers, len(left)),
            multiprocessing_context=method,
            worker_init_fn=_end_with_parent,
            generator=torch.Generator(),  # instead of the global one, which stays as it is
        )
    )
    try:
        for result in _while_processes_live(results):
            variants = pickle.loads(result)
            if isinstance(variants, tuple):
                message, where = variants
                raise SampleError(message) from RuntimeError(f"in another process:\n{where}")
            yield variants
    finally:
        del results  # which ends the processes


def _while_processes_live(results: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from results
    except RuntimeError as error:  # torch says it with the number of the process
        raise ChildProcessError(
            "a process that prepares samples was ended from outside, as systems do when memory runs out; "
            "let fewer processes prepare: workers=1 or 0 (--workers)"
        ) from error


def _end_with_parent(worker: int) -> None:
    """On Linux, have the system end this process when its parent ends, however that happens."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def spare_cores() -> int:
    """How many cores this process may use for processes of its own."""
    if multiprocessing.current_process().daemon:  # which may not have any
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun sets it
