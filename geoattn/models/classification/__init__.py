"""Networks that say what a whole mesh is."""

from geoattn.models.classification.surface_classifier import SurfaceClassifier
from geoattn.models.classification.task import ClassificationTask

__all__ = ["ClassificationTask", "SurfaceClassifier"]
