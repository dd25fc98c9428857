"""Attention for meshes and point clouds."""

import importlib
from typing import TYPE_CHECKING, Any

from geoattn import geometry, nn, ops, patterns
from geoattn.nn import accelerate, restore
from geoattn.ops.attend import attend
from geoattn.ops.backends.choose import backend, backends
from geoattn.patterns import Neighbors, Windows

if TYPE_CHECKING:
    from geoattn import data, metrics, models
    from geoattn.data.io import LoadError, load, save

__version__ = "0.1.0"

__all__ = [
    "LoadError",
    "Neighbors",
    "Windows",
    "accelerate",
    "attend",
    "backend",
    "backends",
    "data",
    "geometry",
    "load",
    "metrics",
    "models",
    "nn",
    "ops",
    "patterns",
    "restore",
    "save",
]

if not TYPE_CHECKING:  # where types are checked, a name that does not exist must stay an error

    def __getattr__(name: str) -> Any:
        """Import what layers and operators do not need when it is first asked for."""
        if name in ("data", "metrics", "models"):
            return importlib.import_module(f"geoattn.{name}")
        if name in ("LoadError", "load", "save"):
            return getattr(importlib.import_module("geoattn.data.io"), name)
        raise AttributeError(f"module 'geoattn' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
