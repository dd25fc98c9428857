"""Meshes, spheres, bodies: mathematics without learning."""

from geoattn.geometry.cache import cache_dir, clear_cache
from geoattn.geometry.cloud import point_normals, upright
from geoattn.geometry.curves import Serialization, grid_depth, serialize
from geoattn.geometry.descriptors import heat_descriptors, moment_descriptors
from geoattn.geometry.geodesic import geodesic_distance
from geoattn.geometry.mesh import (
    EdgeFeatures,
    EdgeTopology,
    boundary_edges,
    check_mesh,
    connected_components,
    dihedral_angles,
    edge_adjacency,
    edge_features,
    edges,
    face_adjacency,
    face_areas,
    face_centroids,
    face_normals,
    face_vertex_adjacency,
    nonmanifold_edges,
    normalize,
    sample_surface,
    simplify,
    vertex_adjacency,
    vertex_areas,
    vertex_normals,
)
from geoattn.geometry.report import MeshReport, describe
from geoattn.geometry.rotations import wigner_d
from geoattn.geometry.spectral import (
    biharmonic_embedding,
    eigenbasis,
    eigendecomposition,
    heat_kernel_signature,
    laplacian,
)

__all__ = [
    "EdgeFeatures",
    "EdgeTopology",
    "MeshReport",
    "Serialization",
    "biharmonic_embedding",
    "boundary_edges",
    "cache_dir",
    "check_mesh",
    "clear_cache",
    "connected_components",
    "describe",
    "dihedral_angles",
    "edge_adjacency",
    "edge_features",
    "edges",
    "eigenbasis",
    "eigendecomposition",
    "face_adjacency",
    "face_areas",
    "face_centroids",
    "face_normals",
    "face_vertex_adjacency",
    "geodesic_distance",
    "grid_depth",
    "heat_descriptors",
    "heat_kernel_signature",
    "laplacian",
    "moment_descriptors",
    "nonmanifold_edges",
    "normalize",
    "point_normals",
    "sample_surface",
    "serialize",
    "simplify",
    "upright",
    "vertex_adjacency",
    "vertex_areas",
    "vertex_normals",
    "wigner_d",
]
