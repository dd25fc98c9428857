"""Who attends to whom."""

from geoattn.patterns.adjacency import Adjacency, as_neighbors
from geoattn.patterns.neighbors import Neighbors
from geoattn.patterns.windows import Windows

__all__ = ["Adjacency", "Neighbors", "Windows", "as_neighbors"]
