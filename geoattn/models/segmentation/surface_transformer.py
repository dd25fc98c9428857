"""SurfaceTransformer: labels for the parts of a mesh."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from geoattn.data.transforms import Element
from geoattn.nn.latents import LatentAttention, feed_forward
from geoattn.nn.surface import SurfaceAttention
from geoattn.patterns import Neighbors


@dataclass(frozen=True)
class SurfaceTransformerConfig:
    """What a `SurfaceTransformer` is made of."""

    num_classes: int
    names: tuple[str, ...] = ()
    element: Element = "face"
    whole: bool = False
    hops: int = 1
    in_channels: int = 132
    channels: int = 96
    heads: int = 4
    blocks: int = 4
    latents: int = 32
    expansion: int = 2
    dropout: float = 0.1


class Block(nn.Module):
    def __init__(self, config: SurfaceTransformerConfig) -> None:
        super().__init__()
        c = config.channels
        self.norm = nn.LayerNorm(c)
        self.local = SurfaceAttention(c, config.heads)
        self.exchange = LatentAttention(c, config.heads, config.expansion, config.dropout)
        self.perceptron = feed_forward(c, config.expansion, config.dropout)

    def forward(self, x, latents, data, pattern):
        x = x + self.local(self.norm(x), data.pos, data.normal, data.spectral, pattern)
        x, latents = self.exchange(x, latents, data.area, data.batch)
        return x + self.perceptron(x), latents


class SurfaceTransformer(nn.Module):
    def __init__(self, config: SurfaceTransformerConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.standardize = nn.BatchNorm1d(config.in_channels, affine=False)
        self.stem = nn.Sequential(
            nn.Dropout(config.dropout), nn.Linear(config.in_channels, c), nn.GELU(), nn.Linear(c, c)
        )
        self.latents = nn.Parameter(torch.randn(config.latents, c) * 0.02)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.blocks)])
        self.head = nn.Sequential(nn.LayerNorm(c), nn.Dropout(config.dropout), nn.Linear(c, config.num_classes))

    def forward(self, data: Data) -> Tensor:
        batch = data.batch
        x = self.stem(self.standardize(data.x))
        samples = int(batch[-1]) + 1
        latents = self.latents.repeat(samples, 1)
        pattern = Neighbors.from_edge_index(data.neighbor_index, data.num_nodes)
        for block in self.blocks:
            x, latents = block(x, latents, data, pattern)
        return self.head(x[data.corner_index].mean(0))
