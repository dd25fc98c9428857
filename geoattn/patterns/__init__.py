"""Who attends to whom."""

from geoattn.patterns.adjacency import Adjacency, as_neighbors
from geoattn.patterns.augment import dilated, global_nodes, random_edges, union
from geoattn.patterns.ball_tree import BallTree, ball_order, ball_tree
from geoattn.patterns.grid import grid_neighbors, grid_offsets
from geoattn.patterns.kernel_map import KernelMap
from geoattn.patterns.neighbors import Neighbors
from geoattn.patterns.visits import Visits
from geoattn.patterns.windows import Windows

__all__ = [
    "Adjacency",
    "BallTree",
    "KernelMap",
    "Neighbors",
    "Visits",
    "Windows",
    "as_neighbors",
    "ball_order",
    "ball_tree",
    "dilated",
    "global_nodes",
    "grid_neighbors",
    "grid_offsets",
    "random_edges",
    "union",
]
