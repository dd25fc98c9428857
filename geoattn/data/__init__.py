"""Loading, saving, data sets and transforms."""

from geoattn.data.datasets import Bodies, LabelledFolder, MeshCNNDataset, Rooms
from geoattn.data.io import LoadError, load, save
from geoattn.data.labelled import IGNORED, Labelled, LabelledSamples, check_labels, class_weights, hold_out
from geoattn.data.point_augment import (
    CenterShift,
    ChromaticAutoContrast,
    ChromaticJitter,
    ChromaticTranslation,
    ElasticDistortion,
    Mix3D,
    ObjectAugment,
    RandomAttributeDropout,
    RandomMirror,
    RandomPointDropout,
    RandomPointJitter,
    RandomRotation,
    RandomScaling,
    SceneAugment,
)
from geoattn.data.point_transforms import FEATURES, PointInputs, check_points, crop_to_sphere
from geoattn.data.registry import MissingSplitError, list_datasets, load_dataset
from geoattn.data.transforms import MeshElements, RandomDeform, check_elements
from geoattn.data.two_hop import HopFeatures, TwoHopLoader, TwoHopSampler

__all__ = [
    "FEATURES",
    "IGNORED",
    "Bodies",
    "CenterShift",
    "ChromaticAutoContrast",
    "ChromaticJitter",
    "ChromaticTranslation",
    "ElasticDistortion",
    "HopFeatures",
    "Labelled",
    "LabelledFolder",
    "LabelledSamples",
    "LoadError",
    "MeshCNNDataset",
    "MeshElements",
    "MissingSplitError",
    "Mix3D",
    "ObjectAugment",
    "PointInputs",
    "RandomAttributeDropout",
    "RandomDeform",
    "RandomMirror",
    "RandomPointDropout",
    "RandomPointJitter",
    "RandomRotation",
    "RandomScaling",
    "Rooms",
    "SceneAugment",
    "TwoHopLoader",
    "TwoHopSampler",
    "check_elements",
    "check_labels",
    "check_points",
    "class_weights",
    "crop_to_sphere",
    "hold_out",
    "list_datasets",
    "load",
    "load_dataset",
    "save",
]
