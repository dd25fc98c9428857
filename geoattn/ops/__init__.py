"""Functions on tensors: attention, segment reductions, neighbor search and sampling."""

from geoattn.geometry.search import knn, radius
from geoattn.ops.attend import attend, attention_weights
from geoattn.ops.edges import edge_dot, weighted_max, weighted_sum
from geoattn.ops.grouping import ball_query, knn_interpolate, knn_query
from geoattn.ops.permute import permute_rows
from geoattn.ops.sampling import VoxelPool, farthest_point_sample, grid_sample, voxel_pool
from geoattn.ops.segment import (
    segment_logsumexp,
    segment_max,
    segment_mean,
    segment_min,
    segment_softmax,
    segment_sum,
)
from geoattn.ops.sparse_conv import submanifold_conv
from geoattn.ops.vector import vector_attend

__all__ = [
    "VoxelPool",
    "attend",
    "attention_weights",
    "ball_query",
    "edge_dot",
    "farthest_point_sample",
    "grid_sample",
    "knn",
    "knn_interpolate",
    "knn_query",
    "permute_rows",
    "radius",
    "segment_logsumexp",
    "segment_max",
    "segment_mean",
    "segment_min",
    "segment_softmax",
    "segment_sum",
    "submanifold_conv",
    "vector_attend",
    "voxel_pool",
    "weighted_max",
    "weighted_sum",
]
