"""Layers."""

from geoattn.nn import graph
from geoattn.nn.accelerate import accelerate, restore
from geoattn.nn.dropout import dropout
from geoattn.nn.graph import (
    GATConv,
    GATv2Conv,
    GravNetConv,
    PointTransformerConv,
    SuperGATConv,
    TransformerConv,
)
from geoattn.nn.latents import CrossAttention, LatentAttention
from geoattn.nn.position_bias import DistanceBias, RelativePositionTable
from geoattn.nn.sparse_conv import SubMConv3d
from geoattn.nn.surface import SurfaceAttention

__all__ = [
    "CrossAttention",
    "DistanceBias",
    "GATConv",
    "GATv2Conv",
    "GravNetConv",
    "LatentAttention",
    "PointTransformerConv",
    "RelativePositionTable",
    "SubMConv3d",
    "SuperGATConv",
    "SurfaceAttention",
    "TransformerConv",
    "accelerate",
    "dropout",
    "graph",
    "restore",
]
