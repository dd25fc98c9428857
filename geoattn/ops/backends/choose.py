"""Which backend runs: chosen per call, inspectable, and forceable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from geoattn import native
from geoattn._forced import force
from geoattn.ops.backends import chunked, cpu, reference, triton
from geoattn.ops.backends.problem import Backend, Problem

BACKENDS: dict[str, Any] = {
    "triton": triton,
    "cpu": cpu,
    "torch": chunked,
    "reference": reference,
}
# What is tried in turn where nothing is forced; the last one takes everything.
_PREFERRED = {"cuda": ("triton", "torch"), "cpu": ("cpu", "torch")}


def backends() -> dict[str, str]:
    """Every backend of `geoattn.attend` and whether it can run here: ``"available"``, or why not.

    - ``triton``: fused kernels for CUDA.
    - ``cpu``: compiled kernels for CPUs, built on installation where there is a C++ compiler.
    - ``torch``: plain torch in chunks of rows, recomputed in the backward pass; runs anywhere.
    - ``reference``: the plain formulas; stores every edge, defines the truth.

    Without `backend`, a call runs on the first of triton, cpu and torch that takes its device and type. `Windows` run
    on torch's fused attention where it gives the same numbers (on CPUs), else in tiles that are computed again in the
    backward pass; short runs on a CPU, and all where ``cpu`` or ``triton`` is forced, run as pairs written out
    (`Windows.to_neighbors`).

    Example:
        >>> geoattn.backends()["torch"]
        'available'
    """
    return {name: module.unavailable() or "available" for name, module in BACKENDS.items()}


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Force every `geoattn.attend` inside the ``with`` block onto one backend.

    The choice holds for the whole process, so other threads see it too. A call the backend cannot take raises a
    RuntimeError that says why. Neighbor searches and `geoattn.ops.farthest_point_sample`, whose results are the same
    to the bit on every backend, follow ``cpu`` (compiled), ``torch`` and ``reference`` (not compiled).

    Args:
        name: A key of `backends`.

    Raises:
        ValueError: If there is no backend of this name.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    with force(name):
        yield


def choose(problem: Problem, name: str | None) -> Backend:
    """The backend ``name`` for ``problem``, or the best one where it is None.

    Raises:
        RuntimeError: If the backend that was asked for cannot take the problem.
    """
    if name is not None:
        reason = BACKENDS[name].unavailable(problem)
        if reason is not None:
            raise RuntimeError(f"backend {name!r} was asked for, but {reason}")
        return BACKENDS[name]
    native.warn_if_missing(problem.query)
    for preferred in _PREFERRED.get(problem.query.device.type, ()):
        if BACKENDS[preferred].unavailable(problem) is None:
            return BACKENDS[preferred]
    return BACKENDS["torch"]


def kernels_for(name: str | None, x: Tensor, what: str) -> str:
    """Name of the backend that runs ``what``, an operator with kernels of "cpu", "torch" and "reference" only.

    Args:
        name: The backend that was asked for, if any.
        x: One of the tensors it runs on.
        what: For the error, in the plural.

    Raises:
        RuntimeError: If the backend that was asked for cannot run it.
    """
    if name not in ("cpu", "torch", "reference", None):
        raise RuntimeError(f"backend {name!r} has no {what}; force one of cpu, torch, reference")
    reason = cpu.unavailable(x)
    if name == "cpu" and reason is not None:
        raise RuntimeError(f"backend 'cpu' was asked for, but {reason}")
    if name is None:
        native.warn_if_missing(x)
    return name or ("torch" if reason else "cpu")
