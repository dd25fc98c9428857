"""Attention for meshes and point clouds."""

from geoattn import data, geometry, metrics, models, nn, ops, patterns
from geoattn.data.io import LoadError, load, save
from geoattn.nn import accelerate, restore
from geoattn.ops import attend
from geoattn.ops.backends.choose import backend, backends
from geoattn.patterns import Neighbors, Windows

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
