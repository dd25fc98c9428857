"""Functions on tensors: attention and neighbor search."""

from geoattn.ops.attend import attend
from geoattn.ops.search import knn, radius

__all__ = ["attend", "knn", "radius"]
