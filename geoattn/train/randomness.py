"""Random generators: seeded where a run needs it, and given back as they were."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def mixed_seed(*numbers: int) -> int:
    """A seed that follows from all the numbers; zeros at their end do not count."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_all(*numbers: int) -> None:
    """Seed Python's, NumPy's and torch's global generators as a function of all the numbers."""
    mixed = mixed_seed(*numbers)
    random.seed(mixed)
    np.random.seed(mixed)  # noqa: NPY002  # datasets and augmentations use the global generator
    torch.manual_seed(mixed)


@contextmanager
def own_random_state(device: torch.device) -> Iterator[None]:
    """Give the global generators back as they were."""
    state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)  # noqa: NPY002
