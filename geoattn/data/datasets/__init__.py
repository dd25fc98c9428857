"""Data sets."""

from geoattn.data.datasets.bodies import Bodies
from geoattn.data.datasets.folder import LabelledFolder
from geoattn.data.datasets.meshcnn import MeshCNNDataset
from geoattn.data.datasets.rooms import Rooms

from . import clouds

__all__ = ["Bodies", "LabelledFolder", "MeshCNNDataset", "Rooms", "clouds"]
