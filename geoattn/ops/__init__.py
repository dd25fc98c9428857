"""Functions on tensors: attention, segment reductions and neighbor search."""

from geoattn.ops.attend import attend
from geoattn.ops.search import knn, radius
from geoattn.ops.segment import (
    segment_logsumexp,
    segment_max,
    segment_mean,
    segment_min,
    segment_softmax,
    segment_sum,
)

__all__ = [
    "attend",
    "knn",
    "radius",
    "segment_logsumexp",
    "segment_max",
    "segment_mean",
    "segment_min",
    "segment_softmax",
    "segment_sum",
]
