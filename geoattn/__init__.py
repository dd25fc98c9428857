"""Attention for meshes and point clouds."""

from geoattn.ops import attend
from geoattn.patterns import Neighbors, Windows

__version__ = "0.1.0"

__all__ = ["Neighbors", "Windows", "attend"]
