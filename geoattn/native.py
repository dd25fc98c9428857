"""The compiled kernels for CPUs: finding them, for every module that has a use for one.

They are built by ``pip install`` where there is a compiler and are absent where there is none, which is said once, at
the first call that would have run them. The library has a plain C interface and knows nothing of torch, so one build
serves every version; it runs on torch's own threads.
"""

from __future__ import annotations

import ctypes
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import torch
from torch.utils._python_dispatch import _disable_current_modes

from geoattn._arguments import warn_once

_INSTRUCTION_SETS = {"AVX512": "avx512", "AVX2": "avx2"}
OUT_OF_RANGE = "the pattern names a key or a query that does not exist"
NOT_RISING = "rowptr of the pattern does not rise from 0 to the number of its edges"
# What a kernel returns (geoattn::Failure in csrc/parallel.h), and what it means.
_FAILURES = {
    -1: IndexError(OUT_OF_RANGE),
    -2: IndexError(NOT_RISING),
    -3: MemoryError("the CPU kernels ran out of memory; process fewer queries, or fewer samples, at a time"),
}


class _Library(ctypes.CDLL):
    """Functions that raise where they fail."""

    def __getitem__(self, name: Any) -> Any:
        function = super().__getitem__(name)
        function.errcheck = _raise_failure
        return function


def _raise_failure(result: Any, function: Any, arguments: tuple[Any, ...]) -> Any:
    failure = _FAILURES.get(result) if result else None
    if failure is not None:
        raise type(failure)(*failure.args)
    return result


_PACKAGE = Path(__file__).parent


def _load() -> tuple[_Library | None, str | None]:
    """The library, or why it cannot be loaded, if it was built."""
    path = next((_PACKAGE / "ops" / "backends").glob("_cpu*.so"), None)
    try:
        return None if path is None else _Library(str(path)), None
    except OSError as error:  # of another machine
        return None, str(error)


_LIBRARY, _NOT_LOADED = _load()


def library() -> ctypes.CDLL | None:
    """The kernels, or None where they were not built."""
    return _LIBRARY


@cache
def missing() -> str:
    """Why there are no kernels, and what helps."""
    if sys.platform == "win32":
        return "the CPU kernels are not built on Windows"
    if _NOT_LOADED is not None:
        return f"the CPU kernels cannot be loaded ({_NOT_LOADED}); build them for this machine: {_build_command()}"
    return (
        f"the CPU kernels were not built; install a C++ compiler (Debian: apt-get install g++), then {_build_command()}"
    )


def _build_command() -> str:
    """The command that builds the kernels where they are missing, from where the package was installed from."""
    root = _PACKAGE.parent
    if (root / "pyproject.toml").exists():  # a clone
        return f"`pip install -e {shlex.quote(str(root))}`"
    try:
        source = json.loads(metadata.distribution("geoattn").read_text("direct_url.json") or "{}")
    except metadata.PackageNotFoundError:
        source = {}
    url = source.get("url", "")
    if "vcs_info" in source:
        what = f"{source['vcs_info']['vcs']}+{url}@{source['vcs_info']['commit_id']}"
    elif "dir_info" in source:
        what = shlex.quote(unquote(urlsplit(url).path))
    elif url and not url.endswith(".whl"):
        what = shlex.quote(url)
    else:  # from an index, where a wheel may have been without them
        what = "--no-binary geoattn geoattn"
    return f"`pip install --force-reinstall --no-cache-dir --no-deps {what}`"


def warn_if_missing(x: torch.Tensor) -> None:
    """Say, once in a process, that kernels would have run on this tensor had they been built."""
    if _LIBRARY is None and x.device.type == "cpu" and sys.platform != "win32" and not torch.compiler.is_compiling():
        warn_once(f"geoattn is several times slower than it could be: {missing()}")


@cache
def function(name: str) -> Callable[..., int]:
    """The kernel ``name`` for the best instruction set that torch finds on this machine.

    Raises:
        RuntimeError: If the kernels were not built.
    """
    if _LIBRARY is None:
        raise RuntimeError(missing())
    wanted = _INSTRUCTION_SETS.get(torch.backends.cpu.get_cpu_capability(), "base")
    return getattr(_LIBRARY, f"{name}_{wanted}", None) or getattr(_LIBRARY, f"{name}_base")


def outdated(name: str) -> str | None:
    """Why the kernel ``name`` is not among those that were built, and what helps; None if it is."""
    if _LIBRARY is None or hasattr(_LIBRARY, f"{name}_base"):
        return None
    return f"the CPU kernels are older than the package; build them again: {_build_command()}"


def in_memory(*tensors: torch.Tensor) -> bool:
    """Whether tensors have memory that may be read now: not fake, not wrapped by ``torch.func``, not being traced."""
    return (
        not torch.compiler.is_compiling()
        and all(type(x) is torch.Tensor for x in tensors)
        and not (
            torch._C._are_functorch_transforms_active()
            and any(torch._C._functorch.is_functorch_wrapped_tensor(x) for x in tensors)
        )
    )


def modes_active() -> bool:
    """Whether what torch makes now may be something else than a tensor in memory."""
    return torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack() > 0


def outside_modes() -> AbstractContextManager[Any]:
    """Inside, tensors in memory give such tensors, which may be kept.

    They belong to no ``torch.inference_mode``, no transform of ``torch.func`` and no mode such as that of fake tensors.
    """
    return _outside_modes() if torch.is_inference_mode_enabled() or modes_active() else nullcontext()


@contextmanager
def _outside_modes() -> Iterator[None]:
    with torch.inference_mode(False), _disable_current_modes(), torch._C._DisableFuncTorch():
        yield
