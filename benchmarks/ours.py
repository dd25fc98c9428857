"""Calling geoattn on a chosen backend."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from geoattn import Neighbors, attend, backend, backends
from geoattn.ops.vector import vector_attend

_BY_DEVICE = {"cpu": ("cpu", "torch"), "cuda": ("triton", "torch")}


def fast_backends(device: str) -> list[str]:
    """Those that are meant to be used on the device and can run here, fastest first."""
    return [name for name in _BY_DEVICE[device] if available(name)]


def available(name: str) -> bool:
    """Whether a backend can run here."""
    return backends()[name] == "available"


def attend_on(name: str, pattern: Neighbors, **settings: float) -> Callable[..., Tensor]:
    """`attend` over the pattern on the backend ``name``."""
    pattern.transpose  # noqa: B018 - part of the pattern that is built once; counted as an input

    def run(query: Tensor, key: Tensor, value: Tensor, **terms: Tensor) -> Tensor:
        with backend(name):
            return attend(query, key, value, pattern, **settings, **terms)

    return run


def vector_attend_on(name: str, pattern: Neighbors) -> Callable[..., Tensor]:
    """`vector_attend` over the pattern on the backend ``name``."""
    pattern.transpose  # noqa: B018 - as above

    def run(query: Tensor, key: Tensor, value: Tensor, position: Tensor, **networks: nn.Module | None) -> Tensor:
        with backend(name):
            return vector_attend(query, key, value, pattern, position, **networks)

    return run
