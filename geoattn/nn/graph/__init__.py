"""Attention on graphs: PyG's layers without their messages, and layers of papers that PyG does not have."""

from geoattn.nn.graph.gat_conv import GATConv
from geoattn.nn.graph.gatv2_conv import GATv2Conv
from geoattn.nn.graph.point_transformer_conv import PointTransformerConv
from geoattn.nn.graph.supergat_conv import SuperGATConv
from geoattn.nn.graph.transformer_conv import TransformerConv

__all__ = ["GATConv", "GATv2Conv", "PointTransformerConv", "SuperGATConv", "TransformerConv"]
