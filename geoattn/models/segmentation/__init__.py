"""Networks that find the parts of a mesh."""

from geoattn.models.segmentation.segment import Segmentation, segment
from geoattn.models.segmentation.surface_transformer import SurfaceTransformer, SurfaceTransformerConfig
from geoattn.models.segmentation.task import evaluate, train

__all__ = ["Segmentation", "SurfaceTransformer", "SurfaceTransformerConfig", "evaluate", "segment", "train"]
