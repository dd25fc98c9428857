"""Erwin: a U-Net of attention in the balls of a tree, for clouds of any size (Zhdanov et al. 2025)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from geoattn.data.point_transforms import check_points
from geoattn.models.points.inputs import PointConfig, PointNetwork
from geoattn.models.registry import register_model
from geoattn.nn.ball_attention import BallBlock
from geoattn.ops import segment_mean
from geoattn.patterns import BallTree, Neighbors, Windows, ball_order, ball_tree

AXES = 3


@dataclass(frozen=True)
class ErwinConfig(PointConfig):
    """What an `Erwin` is made of; the defaults are the authors' for cosmology, in the smallest of three sizes.

    Attributes:
        channels: Features of a point on each level, the finest first.
        strides: How many points become one between levels, powers of two from 2 on.
        ball_sizes: Points that attend to each other, on each level, powers of two.
        encoder_depths: Blocks of each level on the way down, the coarsest included.
        encoder_heads: Attention heads of these.
        decoder_depths: Blocks of each level on the way up, the finest first.
        decoder_heads: Attention heads of these.
        rotate: Every second block attends in the balls of coordinates turned by so many degrees about each axis;
            0: all attend in the same balls.
        message_steps: Steps of message passing between neighbors before the first level.
        neighbors: Nearest points, itself included, that a point hears from in these.
        expansion: Width of the perceptrons over ``channels``.
    """

    channels: tuple[int, ...] = (32, 64, 128, 256)
    strides: tuple[int, ...] = (2, 2, 2)
    ball_sizes: tuple[int, ...] = (256, 256, 256, 256)
    encoder_depths: tuple[int, ...] = (2, 2, 6, 2)
    encoder_heads: tuple[int, ...] = (2, 4, 8, 16)
    decoder_depths: tuple[int, ...] = (2, 2, 2)
    decoder_heads: tuple[int, ...] = (2, 4, 8)
    rotate: float = 0.0
    message_steps: int = 3
    neighbors: int = 10
    expansion: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = len(self.channels)
        for name in ("channels", "ball_sizes", "encoder_depths", "encoder_heads"):
            self._check(name, levels, "of each level")
        for name in ("strides", "decoder_depths", "decoder_heads"):
            self._check(name, levels - 1, "of each level but the coarsest")
        for name in ("strides", "ball_sizes"):
            if any(value & (value - 1) or value < 2 for value in getattr(self, name)):
                raise ValueError(f"{name} must be powers of two from 2 on, got {getattr(self, name)}")
        if self.message_steps < 0 or self.neighbors < 1 or self.expansion < 1:
            raise ValueError(
                f"message_steps must be at least 0, neighbors and expansion at least 1, "
                f"got {self.message_steps}, {self.neighbors} and {self.expansion}"
            )

    def _check(self, name: str, count: int, what: str) -> None:
        values = tuple(getattr(self, name))  # JSON has lists
        object.__setattr__(self, name, values)
        if len(values) != count or any(value < 1 for value in values):
            raise ValueError(f"{name} must be {count} numbers from 1 on, one {what}, got {values}")


class Level(NamedTuple):
    """What the blocks of a level need to know of its points."""

    pos: Tensor  # [S, 3] of every slot
    balls: Windows
    turned: Tensor | None  # [S] slots in the order of the balls of turned coordinates
    back: Tensor | None  # [S] its inverse


class MessagePassing(nn.Module):
    r"""A step in which points hear from their neighbors.

    .. math::
        m_{ij} = \operatorname{LN}(\operatorname{GELU}(W [h_j, h_i, p_j - p_i])), \qquad
        h_i \leftarrow h_i + \operatorname{LN}(V [h_i, \operatorname{mean}_j m_{ij}])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.message = nn.Sequential(nn.Linear(2 * channels + AXES, channels), nn.GELU(), nn.LayerNorm(channels))
        self.update = nn.Sequential(nn.Linear(2 * channels, channels), nn.LayerNorm(channels))

    def forward(self, x: Tensor, pos: Tensor, neighbors: Neighbors) -> Tensor:
        """Of features ``[N, C]``, new ones; rows of ``neighbors`` say whom each point hears."""
        to, source = neighbors.row, neighbors.col
        message = self.message(torch.cat([x[source], x[to], pos[source] - pos[to]], 1))
        return x + self.update(torch.cat([x, segment_mean(message, ptr=neighbors.rowptr)], 1))


class Blocks(nn.Module):
    """The blocks of a level, every second one in the turned balls if there are any."""

    def __init__(self, channels: int, heads: int, depth: int, expansion: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([BallBlock(channels, heads, expansion, AXES) for _ in range(depth)])

    def forward(self, x: Tensor, level: Level) -> Tensor:
        """Features ``[S, C]`` of the level's slots, made anew."""
        for i, block in enumerate(self.blocks):
            if i % 2 and level.turned is not None:
                x = block(x[level.turned], level.pos[level.turned], level.balls)[level.back]
            else:
                x = block(x, level.pos, level.balls)
        return x


class Pooling(nn.Module):
    """Every ``stride`` slots become one, which knows where they lie around their mean."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.proj = nn.Linear(stride * (channels + AXES), out_channels)
        self.norm = nn.BatchNorm1d(out_channels)

    def forward(self, x: Tensor, fine: Level, coarse: Level) -> Tensor:
        """From features of the finer level's slots those of the coarser one's."""
        return self.norm(self.proj(torch.cat([x.view(len(coarse.pos), -1), offsets(fine, coarse)], 1)))


class Unpooling(nn.Module):
    """The way back; what the finer level knew before is added."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels + stride * AXES, stride * out_channels)
        self.norm = nn.BatchNorm1d(out_channels)

    def forward(self, x: Tensor, before: Tensor, fine: Level, coarse: Level) -> Tensor:
        """From features of the coarser level's slots those of the finer one's."""
        return self.norm(before + self.proj(torch.cat([x, offsets(fine, coarse)], 1)).view_as(before))


def offsets(fine: Level, coarse: Level) -> Tensor:
    """Where the slots that become one lie around it, ``[S', stride * 3]``."""
    return (fine.pos.view(len(coarse.pos), -1, AXES) - coarse.pos.unsqueeze(1)).flatten(1)


class ErwinBackbone(nn.Module):
    """Features of points by attention in balls that grow from level to level (Zhdanov et al. 2025).

    Points hear from their neighbors, then attend to others in the same ball of a balanced tree; every ``stride`` of
    them become one; on the way back, the finer levels' features are added. The levels are views of one tree, so pooling
    is a reshape.

    The authors' are all formulas and defaults: the computation is that of their code (the variant without flash
    attention), whose outputs and gradients it gives in float64, trees and the order of points in them included. Copies
    fill a tree up to a power of two; they attend and count in means as points do, and are left out of the output. Batch
    normalisation is over all slots of a batch. Ours is what becomes of small clouds: one with fewer slots than a ball
    is one ball, where the authors' code lets it attend to others of the batch; one with fewer points than all strides
    together gets more copies. Strides of 1, with which the authors leave pooling out for two tasks, are not built.

    Args:
        in_channels: Features of a point.
        config: What it is made of.

    Shapes:
        ``x`` ``[N, in_channels]``, ``pos`` ``[N, 3]``, ``batch`` ``[N]``, ascending; output ``[N, channels[0]]``.
    """

    def __init__(self, in_channels: int, config: ErwinConfig) -> None:
        super().__init__()
        self.config = config
        width, last = config.channels, len(config.strides)
        self.embed = nn.Linear(in_channels, width[0])
        self.messages = nn.ModuleList([MessagePassing(width[0]) for _ in range(config.message_steps)])

        def blocks(i: int, heads: tuple[int, ...], depths: tuple[int, ...]) -> Blocks:
            return Blocks(width[i], heads[i], depths[i], config.expansion)

        self.encoder = nn.ModuleList([blocks(i, config.encoder_heads, config.encoder_depths) for i in range(last)])
        self.pooling = nn.ModuleList([Pooling(width[i], width[i + 1], s) for i, s in enumerate(config.strides)])
        self.bottleneck = blocks(last, config.encoder_heads, config.encoder_depths)
        upwards = list(reversed(range(last)))
        self.unpooling = nn.ModuleList([Unpooling(width[i + 1], width[i], config.strides[i]) for i in upwards])
        self.decoder = nn.ModuleList([blocks(i, config.decoder_heads, config.decoder_depths) for i in upwards])
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, pos: Tensor, batch: Tensor | None, neighbors: Neighbors | None = None) -> Tensor:
        """Features of all points; ``neighbors`` are whom each hears, for the steps of message passing."""
        x = self.embed(x)
        for step in self.messages:
            x = step(x, pos, neighbors)
        tree = ball_tree(pos, batch, math.prod(self.config.strides))
        levels = self.levels(pos[tree.index], tree)
        x = x[tree.index]
        steps = list(pairwise(levels))
        before = []
        for (fine, coarse), blocks, pool in zip(steps, self.encoder, self.pooling, strict=True):
            before.append(blocks(x, fine))
            x = pool(before[-1], fine, coarse)
        x = self.bottleneck(x, levels[-1])
        for (fine, coarse), blocks, unpool in zip(reversed(steps), self.decoder, self.unpooling, strict=True):
            x = blocks(unpool(x, before.pop(), fine, coarse), fine)
        return x[tree.slot]

    def levels(self, pos: Tensor, tree: BallTree) -> list[Level]:
        """The levels of a tree, the finest first, from the position ``[S, 3]`` of every slot."""
        levels, stride = [], 1
        turned_pos = pos @ rotation(self.config.rotate).to(pos)
        for size, next_stride in zip(self.config.ball_sizes, (*self.config.strides, 1), strict=True):
            balls, turned, back = tree.balls(size, stride), None, None
            if self.config.rotate:
                turned = ball_order(turned_pos, tree.pooled(stride), size)
                back = torch.empty_like(turned)
                back[turned] = torch.arange(len(turned), device=pos.device)
            levels.append(Level(pos, balls, turned, back))
            pos, turned_pos = (p.view(-1, next_stride, AXES).mean(1) for p in (pos, turned_pos))
            stride *= next_stride
        return levels


def rotation(degrees: float) -> Tensor:
    """Turns row vectors ``[N, 3]`` by the same angle about z, y and x: a matrix ``[3, 3]`` to multiply them with."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    z = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)
    y = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=torch.float64)
    x = torch.tensor([[1, 0, 0], [0, c, -s], [0, s, c]], dtype=torch.float64)
    return z @ y @ x


@register_model("erwin", ErwinConfig, "segmentation", "classification")
class Erwin(PointNetwork):
    """Labels points or clouds by attention in the balls of a tree: `ErwinBackbone` (Zhdanov et al. 2025) and a head.

    The head of two layers is that of the authors' tasks, which predict vectors at points. Ours is that features go
    straight into the backbone, that messages come from the nearest points, and that the class of a cloud is read from
    the mean over its points.

    Args:
        config: What it is made of.

    Example:
        >>> import geoattn
        >>> model = geoattn.models.create_model("erwin", names=("left", "right"))
        >>> logits = model(model.input_transform()(geoattn.load("scan.ply")))
    """

    config: ErwinConfig

    def __init__(self, config: ErwinConfig) -> None:
        super().__init__(config)
        width = config.channels[0]
        self.backbone = ErwinBackbone(config.in_channels, config)
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, len(config.names)))

    def forward(self, data: Data) -> Tensor:
        """Logits of the classes."""
        check_points(data)
        batch = data.batch if "batch" in data else None
        neighbors = Neighbors.knn(data.pos, self.config.neighbors, batch) if self.config.message_steps else None
        x = self.backbone(data.x, data.pos, batch, neighbors)
        if self.config.labelled == "whole":
            batch = torch.zeros(len(x), dtype=torch.int64, device=x.device) if batch is None else batch
            x = segment_mean(x, batch)
        return self.head(x)

    @staticmethod
    def official_key(key: str) -> str:
        """Our name of a parameter of the authors' code (the variant without flash attention)."""
        key = key.replace("embed.embed_fn.", "embed.").replace(".BMSA.sigma_att", ".BMSA.bias.sigma_att")
        key = re.sub(r"^embed\.mpnn\.(message|update)_fns\.(\d+)\.", r"messages.\2.\1.", key)
        key = re.sub(r"^(?:en|de)coder\.(\d+)\.((?:un)?pool)\.", r"\2ing.\1.", key)
        return f"backbone.{key}".replace(".BMSA.", ".attention.")
