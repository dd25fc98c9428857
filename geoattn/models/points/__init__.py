"""Networks of point clouds: a label for each point, or for the whole cloud."""

from geoattn.models.points.erwin import Erwin, ErwinBackbone, ErwinConfig
from geoattn.models.points.inputs import PointConfig, PointNetwork
from geoattn.models.points.point_transformer_v3 import PointTransformerV3, PointTransformerV3Config
from geoattn.models.points.segment_cloud import missing_features, point_probabilities

__all__ = [
    "Erwin",
    "ErwinBackbone",
    "ErwinConfig",
    "PointConfig",
    "PointNetwork",
    "PointTransformerV3",
    "PointTransformerV3Config",
    "missing_features",
    "point_probabilities",
]
