"""Data sets."""

from geoattn.data.datasets.bodies import Bodies
from geoattn.data.datasets.meshcnn import MeshCNNDataset

__all__ = ["Bodies", "MeshCNNDataset"]
