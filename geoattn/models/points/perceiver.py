"""Perceiver: what a cloud is, read by a few latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from geoattn.data import check_points
from geoattn.models.points.inputs import PointNetwork, cloud_windows
from geoattn.models.points.set_transformer import WholeCloudConfig
from geoattn.models.registry import register_model
from geoattn.nn import PerceiverBlock
from geoattn.nn.perceiver import fourier_features


@dataclass(frozen=True)
class PerceiverConfig(WholeCloudConfig):
    """What a `Perceiver` is made of. The authors' for images has 512 latents of 1,024 channels, 6 layers, 8 repeats.

    Attributes:
        latents: Number of latents.
        channels: Features of a latent.
        heads: Number of heads of the self-attention; divides ``channels``. Cross attention has one.
        layers: Number of self-attention layers of a block.
        repeats: How often the block is run, with the same weights.
        bands: Number of frequencies of the Fourier features of positions.
        max_frequency: The highest of them.
        dropout: In training.
    """

    max_points: int | None = 2048
    latents: int = 128
    channels: int = 256
    heads: int = 8
    layers: int = 6
    repeats: int = 2
    bands: int = 64
    max_frequency: float = 1120.0
    dropout: float = 0.0


@register_model("perceiver", PerceiverConfig, "classification")
class Perceiver(PointNetwork):
    """Perceiver IO's classifier (Jaegle et al. 2021) on point clouds.

    Latents attend to the points once, which are their features and the Fourier features of their positions; then to
    each other, a block of layers run several times with the same weights; a query of one row attends to the latents,
    and a linear layer makes logits of it. That is the encoder and the classification decoder of the authors' JAX code;
    frequencies and the number of points are those of the first Perceiver on ModelNet40, which read the points more than
    once. It was compared with the formulas only. The size is ours, for CPUs.

    Args:
        config: What it is made of.

    Shapes:
        Input: a `Data` or `Batch` of ``B`` clouds, made by `geoattn.data.PointInputs`. Output: logits ``[B, K]``.
    """

    config: PerceiverConfig

    def __init__(self, config: PerceiverConfig) -> None:
        super().__init__(config)
        width, dropout = config.channels, config.dropout
        self.latents = nn.Parameter(torch.empty(config.latents, width))
        self.query = nn.Parameter(torch.empty(1, width))
        for parameter in (self.latents, self.query):
            nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04)
        self.read = PerceiverBlock(width, config.in_channels + 6 * config.bands, heads=1, dropout=dropout)
        self.process = nn.ModuleList(
            PerceiverBlock(width, heads=config.heads, dropout=dropout) for _ in range(config.layers)
        )
        self.write = PerceiverBlock(width, width, heads=1)
        self.head = nn.Linear(width, len(config.names))

    def forward(self, data: Data) -> Tensor:
        """Logits of the classes."""
        check_points(data)
        x = torch.cat([data.x, fourier_features(data.pos, self.config.bands, self.config.max_frequency)], 1)
        reading = cloud_windows(data).latents(self.config.latents)
        z = self.read(self.latents.repeat(reading.num_runs, 1), reading, x)
        for _ in range(self.config.repeats):
            for layer in self.process:
                z = layer(z, reading.among_queries)
        answer = self.write(self.query.repeat(reading.num_runs, 1), reading.among_queries.latents(1), z)
        return cast("Tensor", self.head(answer))
