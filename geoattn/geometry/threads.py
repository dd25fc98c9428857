"""Computing on one thread, where several only wait for each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from geoattn._optional import require

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch, NumPy and SciPy compute on one thread; afterwards on as many as before.

    The tensors of one mesh are too small to gain from threads, and threads that wait for each other spin: as soon as
    another process wants one of the cores they make such work several times slower.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _thread_pools().limit(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


@lru_cache
def _thread_pools() -> ThreadpoolController:
    from scipy import linalg  # noqa: F401  (brings its own BLAS, which must be loaded to be found)

    return require("threadpoolctl").ThreadpoolController()  # looks through all loaded libraries, so once is enough
