"""Networks that find the parts of a mesh."""

from geoattn.models.segmentation.segment import Segmentation, segment
from geoattn.models.segmentation.surface_transformer import SurfaceTransformer, SurfaceTransformerConfig
from geoattn.models.segmentation.task import SegmentationTask

__all__ = ["Segmentation", "SegmentationTask", "SurfaceTransformer", "SurfaceTransformerConfig", "segment"]
