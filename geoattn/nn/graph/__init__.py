"""Attention on graphs: PyG's layers without their messages, and layers of papers that PyG does not have."""

from geoattn.nn.graph.aero_gnn import AEROGNN
from geoattn.nn.graph.coulgat import CoulGATConv, PowerLawGATConv
from geoattn.nn.graph.fdgatii import FDGATII, FDGATIIConv
from geoattn.nn.graph.fisher import (
    FisherInformationConv,
    FisherInformationEmbedding,
    FisherInformationPooling,
    KernelLayer,
)
from geoattn.nn.graph.gat_conv import GATConv
from geoattn.nn.graph.gatv2_conv import GATv2Conv
from geoattn.nn.graph.gravnet_conv import GravNetConv
from geoattn.nn.graph.gravnet_norm import GravNetNorm, GravNetNormConv
from geoattn.nn.graph.gta import GTARepresentation, GTATransforms, GTAttention, gta_attend
from geoattn.nn.graph.largegt import CodebookAttention, EMACodebook, LargeGT, LargeGTLayer, LargeGTLocal
from geoattn.nn.graph.mesh_transformer import MaskedAttention, MeshTransformerBlock, RMSNorm
from geoattn.nn.graph.point_transformer_conv import PointTransformerConv
from geoattn.nn.graph.sinc_gcn import SINCGCNConv, SIRGCNConv
from geoattn.nn.graph.supergat_conv import SuperGATConv
from geoattn.nn.graph.transformer_conv import TransformerConv

__all__ = [
    "AEROGNN",
    "FDGATII",
    "CodebookAttention",
    "CoulGATConv",
    "EMACodebook",
    "FDGATIIConv",
    "FisherInformationConv",
    "FisherInformationEmbedding",
    "FisherInformationPooling",
    "GATConv",
    "GATv2Conv",
    "GTARepresentation",
    "GTATransforms",
    "GTAttention",
    "GravNetConv",
    "GravNetNorm",
    "GravNetNormConv",
    "KernelLayer",
    "LargeGT",
    "LargeGTLayer",
    "LargeGTLocal",
    "MaskedAttention",
    "MeshTransformerBlock",
    "PointTransformerConv",
    "PowerLawGATConv",
    "RMSNorm",
    "SINCGCNConv",
    "SIRGCNConv",
    "SuperGATConv",
    "TransformerConv",
    "gta_attend",
]
