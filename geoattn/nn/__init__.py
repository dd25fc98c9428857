"""Layers."""

from geoattn.nn import graph
from geoattn.nn.accelerate import accelerate, restore
from geoattn.nn.ball_attention import BallAttention, BallBlock
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
from geoattn.nn.linear_attention import (
    CrossWindowFeedForward,
    LinearAttention,
    ScatteredLinearAttention,
    ScatterFormerStage,
    linear_attend,
)
from geoattn.nn.neighborhood import (
    NeighborhoodAttention,
    NeighborhoodAttention1d,
    NeighborhoodAttention2d,
    NeighborhoodAttention3d,
)
from geoattn.nn.perceiver import PerceiverBlock
from geoattn.nn.point_transformer import (
    PointTransformerBlock,
    PointTransformerLayer,
    TransitionDown,
    TransitionUp,
)
from geoattn.nn.pointnet2 import FeaturePropagation, GlobalSetAbstraction, SetAbstraction
from geoattn.nn.position_bias import DistanceBias, OffsetMLP, OffsetTable, RelativePositionTable
from geoattn.nn.rotary import RotaryPositions
from geoattn.nn.serialized import SerializedAttention
from geoattn.nn.set_attention import ISAB, MAB, PMA, SAB
from geoattn.nn.sinkhorn import sinkhorn_attend
from geoattn.nn.slots import SlotAttention
from geoattn.nn.sparse_conv import DepthwiseSubMConv3d, SubMConv3d
from geoattn.nn.surface import SurfaceAttention

__all__ = [
    "ISAB",
    "MAB",
    "PMA",
    "SAB",
    "BallAttention",
    "BallBlock",
    "CrossAttention",
    "CrossWindowFeedForward",
    "DepthwiseSubMConv3d",
    "DistanceBias",
    "FeaturePropagation",
    "GATConv",
    "GATv2Conv",
    "GlobalSetAbstraction",
    "GravNetConv",
    "LatentAttention",
    "LinearAttention",
    "NeighborhoodAttention",
    "NeighborhoodAttention1d",
    "NeighborhoodAttention2d",
    "NeighborhoodAttention3d",
    "OffsetMLP",
    "OffsetTable",
    "PerceiverBlock",
    "PointTransformerBlock",
    "PointTransformerConv",
    "PointTransformerLayer",
    "RelativePositionTable",
    "RotaryPositions",
    "ScatterFormerStage",
    "ScatteredLinearAttention",
    "SerializedAttention",
    "SetAbstraction",
    "SlotAttention",
    "SubMConv3d",
    "SuperGATConv",
    "SurfaceAttention",
    "TransformerConv",
    "TransitionDown",
    "TransitionUp",
    "accelerate",
    "dropout",
    "graph",
    "linear_attend",
    "restore",
    "sinkhorn_attend",
]
