"""Networks of point clouds: a label for each point, or for the whole cloud."""

from geoattn.models.points.erwin import Erwin, ErwinBackbone, ErwinConfig
from geoattn.models.points.inputs import PointConfig, PointNetwork
from geoattn.models.points.perceiver import Perceiver, PerceiverConfig
from geoattn.models.points.point_transformer import PointTransformer, PointTransformerConfig
from geoattn.models.points.point_transformer_v3 import PointTransformerV3, PointTransformerV3Config
from geoattn.models.points.pointnet2 import PointNet2, PointNet2Config, PointNet2MSG, PointNet2SSG
from geoattn.models.points.segment_cloud import missing_features, point_probabilities
from geoattn.models.points.set_transformer import SetTransformer, SetTransformerConfig

__all__ = [
    "Erwin",
    "ErwinBackbone",
    "ErwinConfig",
    "Perceiver",
    "PerceiverConfig",
    "PointConfig",
    "PointNet2",
    "PointNet2Config",
    "PointNet2MSG",
    "PointNet2SSG",
    "PointNetwork",
    "PointTransformer",
    "PointTransformerConfig",
    "PointTransformerV3",
    "PointTransformerV3Config",
    "SetTransformer",
    "SetTransformerConfig",
    "missing_features",
    "point_probabilities",
]
