"""Attention for meshes and point clouds."""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if "torch" not in sys.modules:
    # OpenMP reads it when torch is loaded. Its threads then sleep while they wait for each other; as a rule they spin,
    # and as soon as other processes want the cores as well, training takes ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from geoattn import geometry, nn, ops, patterns
from geoattn.nn import accelerate, restore
from geoattn.ops import attend
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
