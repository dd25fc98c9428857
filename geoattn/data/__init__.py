"""Loading, saving, data sets and transforms."""

from geoattn.data.datasets import Bodies, MeshCNNDataset
from geoattn.data.io import LoadError, load, save
from geoattn.data.transforms import MeshElements, RandomDeform
from geoattn.data.two_hop import HopFeatures, TwoHopLoader, TwoHopSampler

__all__ = [
    "Bodies",
    "HopFeatures",
    "LoadError",
    "MeshCNNDataset",
    "MeshElements",
    "RandomDeform",
    "TwoHopLoader",
    "TwoHopSampler",
    "load",
    "save",
]
