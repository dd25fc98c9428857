"""Who attends to whom."""

from geoattn.patterns.neighbors import Neighbors
from geoattn.patterns.windows import Windows

__all__ = ["Neighbors", "Windows"]
