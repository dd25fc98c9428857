"""Point Transformer: vector attention among the nearest points, at five resolutions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data

from geoattn.data.point_transforms import check_points
from geoattn.models.points.inputs import PointConfig, PointNetwork, category_of
from geoattn.models.registry import register_model
from geoattn.nn.point_groups import perceptron
from geoattn.nn.point_transformer import PointTransformerBlock, TransitionDown, TransitionUp
from geoattn.ops import knn_query, segment_mean


@dataclass(frozen=True)
class PointTransformerConfig(PointConfig):
    """What a `PointTransformer` is made of.

    Attributes:
        channels: Features of a point at each resolution.
        blocks: Blocks at each resolution. None: 1 2 3 5 2 (the authors' 50 layers), and one less each in a classifier.
        neighbors: Points that each attends to, at each resolution.
        stride: Points of a resolution for which the next one has one.
        share: Channels that have one attention weight.
    """

    channels: tuple[int, ...] = (32, 64, 128, 256, 512)
    blocks: tuple[int, ...] | None = None
    neighbors: tuple[int, ...] = (8, 16, 16, 16, 16)
    stride: int = 4
    share: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks is None:
            one_less = int(self.labelled == "whole")
            object.__setattr__(self, "blocks", tuple(n - one_less for n in (1, 2, 3, 5, 2)[: len(self.channels)]))
        for name in ("channels", "blocks", "neighbors"):  # JSON has lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        assert self.blocks is not None
        if not len(self.channels) == len(self.blocks) == len(self.neighbors) > 0:
            raise ValueError(
                "channels, blocks and neighbors must have a number for each resolution, got "
                f"{self.channels}, {self.blocks} and {self.neighbors}"
            )
        if min(*self.channels, *self.neighbors, self.share, self.stride - 1) < 1 or min(self.blocks) < 0:
            raise ValueError(
                "channels, neighbors and share must be at least 1, stride at least 2 and blocks at least 0, got "
                f"{self.channels}, {self.neighbors}, {self.share}, {self.stride} and {self.blocks}"
            )


# Our names of the authors' modules.
_IN_STEM = {"linear": "0", "bn": "1"}
_IN_DOWN = {"linear": "linear", "bn": "norm"}
_IN_UP = {"linear1": "skip", "linear2": "coarse"}
_IN_WHOLE = {"linear1": "merge", "linear2": "mean", "linear3": "category"}
_IN_BLOCK = {
    "linear1": "before.0",
    "bn1": "before.1",
    "bn2": "between.0",
    "linear3": "after.0",
    "bn3": "after.1",
}
_IN_LAYER = {"linear_q": "query", "linear_k": "key", "linear_v": "value", "linear_p": "pos_nn", "linear_w": "attn_nn"}


class _Level(NamedTuple):
    """The points of a resolution."""

    x: Tensor  # [N, C]
    pos: Tensor  # [N, 3]
    batch: Tensor  # [N]
    neighbors: Tensor  # [N, k]


@register_model("point_transformer", PointTransformerConfig, "segmentation", "classification")
class PointTransformer(PointNetwork):
    """Point Transformer (Zhao et al., ICCV 2021), as the authors' code has it, to label points or whole clouds.

    Down to fewer and fewer points and, where points are labelled, up again; blocks of vector attention at each
    resolution (`geoattn.nn.PointTransformerBlock`). The segmentation network is that of the first author's code, with
    ``parts_of_category`` that of Pointcept's for parts; the classifier is Pointcept's, which follows the paper.

    Args:
        config: What it is made of.

    Shapes:
        Input: a `Data` or `Batch` of ``B`` clouds, made by `geoattn.data.PointInputs`, with ``M`` points. Output:
        logits ``[M, K]``, or ``[B, K]`` where clouds are labelled as a whole.

    Example:
        >>> import torch, geoattn
        >>> from torch_geometric.data import Data
        >>> model = geoattn.models.create_model("point_transformer", names=("chair", "table"))
        >>> cloud = model.input_transform()(Data(pos=torch.rand(2000, 3)))
        >>> model.eval()(cloud).shape
        torch.Size([2000, 2])
    """

    config: PointTransformerConfig

    def __init__(self, config: PointTransformerConfig) -> None:
        super().__init__(config)
        channels, classes = config.channels, len(config.names)
        assert config.blocks is not None

        def blocks(width: int, count: int) -> nn.ModuleList:
            return nn.ModuleList(PointTransformerBlock(width, config.share) for _ in range(count))

        self.stem = perceptron(config.in_channels, channels[0], bias=False)
        self.down = nn.ModuleList(
            TransitionDown(before, after, config.stride, k)
            for before, after, k in zip(channels[:-1], channels[1:], config.neighbors[1:], strict=True)
        )
        self.encoder = nn.ModuleList(blocks(width, n) for width, n in zip(channels, config.blocks, strict=True))
        if config.labelled == "whole":
            self.head = nn.Sequential(
                *perceptron(channels[-1], 256),
                nn.Dropout(),
                *perceptron(256, 128),
                nn.Dropout(),
                nn.Linear(128, classes),
            )
            return
        self.whole = WholeCloud(channels[-1], config.categories)
        self.up = nn.ModuleList(TransitionUp(coarse, fine) for fine, coarse in pairwise(channels))
        self.decoder = nn.ModuleList(blocks(width, 1) for width in channels)
        self.head = nn.Sequential(*perceptron(channels[0], channels[0]), nn.Linear(channels[0], classes))

    def forward(self, data: Data) -> Tensor:
        """Logits of the classes."""
        check_points(data)
        levels = self._encode(data)
        last = levels[-1]
        if self.config.labelled == "whole":
            return self.head(segment_mean(last.x, last.batch))
        category = category_of(data, self.config.categories, int(last.batch[-1]) + 1)
        x = self.whole(last.x, last.batch, category)
        for i, level in reversed(list(enumerate(levels))):
            if i < len(levels) - 1:
                coarse = levels[i + 1]
                x = self.up[i](level.x, level.pos, x, coarse.pos, level.batch, coarse.batch)
            for block in cast("nn.ModuleList", self.decoder[i]):
                x = block(x, level.pos, level.neighbors)
        return self.head(x)

    def _encode(self, data: Data) -> list[_Level]:
        x, pos = self.stem(data.x), data.pos
        batch = data.get("batch")
        batch = torch.zeros(pos.size(0), dtype=torch.int64, device=pos.device) if batch is None else batch
        levels: list[_Level] = []
        for i, (blocks, k) in enumerate(zip(self.encoder, self.config.neighbors, strict=True)):
            if i:
                x, pos, batch = self.down[i - 1](x, pos, batch)
            neighbors = knn_query(pos, k, batch)
            for block in cast("nn.ModuleList", blocks):
                x = block(x, pos, neighbors)
            levels.append(_Level(x, pos, batch, neighbors))
        return levels

    @staticmethod
    def official_key(key: str) -> str | None:
        """Our name of a key of the checkpoints of POSTECH's code and of Pointcept's; None if there is none."""
        part, _, name = key.removeprefix("backbone.").partition(".")
        if part == "cls":
            return f"head.{name}"
        found = re.fullmatch(r"(enc|dec)([1-5])\.(\d+)\.(\w+)\.(.+)", f"{part}.{name}")
        if found is None:
            return None
        way, level, place, module, rest = found[1], int(found[2]) - 1, int(found[3]), found[4], found[5]
        if place > 0:
            if module in ("transformer", "transformer2"):
                layer, _, rest = rest.partition(".")
                return f"{way}oder.{level}.{place - 1}.attention.{_IN_LAYER[layer]}.{rest}"
            return f"{way}oder.{level}.{place - 1}.{_IN_BLOCK[module]}.{rest}"
        if way == "enc":
            return f"stem.{_IN_STEM[module]}.{rest}" if level == 0 else f"down.{level - 1}.{_IN_DOWN[module]}.{rest}"
        return f"whole.{_IN_WHOLE[module]}.{rest}" if level == 4 else f"up.{level}.{_IN_UP[module]}.{rest}"


class WholeCloud(nn.Module):
    """What the mean of a cloud's features, and its category, say to each of its points.

    Args:
        channels: Features of a point.
        categories: Number of object categories; 0: none is given.
    """

    def __init__(self, channels: int, categories: int = 0) -> None:
        super().__init__()
        self.categories = categories
        self.mean = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(inplace=True))
        known = 1024 if categories else 0
        self.category = nn.Sequential(nn.Linear(categories, known), nn.ReLU(inplace=True)) if categories else None
        self.merge = perceptron(2 * channels + known, channels)

    def forward(self, x: Tensor, batch: Tensor, category: Tensor | None = None) -> Tensor:
        """Features ``[N, C]``, of those before, the cloud of each point ``[N]`` and the category of each ``[B]``."""
        parts = [x, self.mean(segment_mean(x, batch))[batch]]
        if self.category is not None and category is not None:
            parts.append(self.category(F.one_hot(category, self.categories).to(x.dtype))[batch])
        return self.merge(torch.cat(parts, 1))
