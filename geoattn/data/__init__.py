"""Loading, saving, data sets and transforms."""

from geoattn.data.datasets import Bodies, MeshCNNDataset
from geoattn.data.io import LoadError, load, save
from geoattn.data.transforms import MeshElements, RandomDeform

__all__ = ["Bodies", "LoadError", "MeshCNNDataset", "MeshElements", "RandomDeform", "load", "save"]
