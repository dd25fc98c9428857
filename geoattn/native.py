"""The compiled kernels for CPUs: finding them, for every module that has a use for one.

They are built by ``pip install`` where there is a compiler and are absent where there is none. The library has a plain
C interface and knows nothing of torch, so one build serves every version; it runs on torch's own threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

MISSING = "the CPU kernels were not built; install a C++ compiler, then `pip install --force-reinstall geoattn`"

_INSTRUCTION_SETS = {"AVX512": "avx512", "AVX2": "avx2"}
_BUILT = (Path(__file__).parent / "ops" / "backends").glob("_cpu*.so")
_LIBRARY = next((ctypes.CDLL(str(path)) for path in _BUILT), None)


def library() -> ctypes.CDLL | None:
    """The kernels, or None where they were not built."""
    return _LIBRARY


@cache
def function(name: str) -> Callable[..., int]:
    """The kernel ``name`` for the best instruction set that torch finds on this machine.

    Raises:
        RuntimeError: If the kernels were not built.
    """
    if _LIBRARY is None:
        raise RuntimeError(MISSING)
    wanted = _INSTRUCTION_SETS.get(torch.backends.cpu.get_cpu_capability(), "base")
    return getattr(_LIBRARY, f"{name}_{wanted}", None) or getattr(_LIBRARY, f"{name}_base")
