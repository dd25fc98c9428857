"""Layers."""

from geoattn.nn.latents import CrossAttention, LatentAttention
from geoattn.nn.surface import SurfaceAttention

__all__ = ["CrossAttention", "LatentAttention", "SurfaceAttention"]
