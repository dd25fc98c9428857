"""PointNet++: perceptrons over balls around fewer and fewer centers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data

from geoattn.data.point_transforms import FEATURES, check_points
from geoattn.models.points.inputs import PointConfig, PointNetwork, category_of
from geoattn.models.registry import register_model
from geoattn.nn.point_groups import perceptron
from geoattn.nn.pointnet2 import FeaturePropagation, GlobalSetAbstraction, SetAbstraction


@dataclass(frozen=True)
class PointNet2Config(PointConfig):
    """What a PointNet++ is made of.

    Its layers are those of the authors for what it labels: whole clouds, the points of objects (``unit_sphere``), or
    the points of scenes.

    Attributes:
        centers: Number of centers at each resolution. None: 512 128 for objects, 1024 256 64 16 for scenes.
        radius: Radii of the balls, relative to the paper's: 0.1 to 0.8 in the unit of the coordinates.
        neighbors: Number of points in a ball, relative to the paper's: 16 to 128.
        width: Features, relative to the paper's.
        random_start: Whether the first center of a cloud is drawn at random in training, and not its first point.
    """

    centers: tuple[int, ...] | None = None
    radius: float = 1.0
    neighbors: float = 1.0
    width: float = 1.0
    random_start: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.centers is None:
            scene = self.labelled == "vertex" and not self.unit_sphere
            object.__setattr__(self, "centers", (1024, 256, 64, 16) if scene else (512, 128))
        object.__setattr__(self, "centers", tuple(self.centers or ()))  # JSON has lists
        for name in ("radius", "neighbors", "width"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not self.centers or min(self.centers) < 1:
            raise ValueError(f"centers must be at least 1, got {self.centers}")


class _Level(NamedTuple):
    """A set abstraction: for each scale its radius, its number of neighbors and the widths of its perceptron."""

    radii: tuple[float, ...]
    neighbors: tuple[int, ...]
    channels: tuple[tuple[int, ...], ...]


class _Layers(NamedTuple):
    """The layers of a network."""

    levels: tuple[_Level, ...]
    whole: tuple[int, ...] = (256, 512, 1024)  # perceptron over the cloud; none in scenes
    up: tuple[tuple[int, ...], ...] = ()  # perceptrons back, from the finest level on
    dropout: tuple[float, ...] = (0.5,)


_UP_SCENE = ((128, 128, 128), (256, 128), (256, 256), (256, 256))


class PointNet2(PointNetwork):
    """PointNet++ (Qi et al., NeurIPS 2017), to label points or whole clouds, with the layers of Yan's code.

    Set abstractions down to fewer centers, and feature propagation back to all points where those are labelled. There
    are six networks: to classify clouds, to find the parts of objects (``unit_sphere``) and to label scenes, each with
    balls of one radius (`PointNet2SSG`) or of several (`PointNet2MSG`) around a center. Beside positions, classifiers
    have the features that are no positions; the others have all. Centers begin at the first point of a cloud, as in the
    authors' code, unless ``random_start``.

    Args:
        config: What it is made of.

    Shapes:
        Input: a `Data` or `Batch` of ``B`` clouds, made by `geoattn.data.PointInputs`, with ``M`` points. Output:
        logits ``[M, K]``, or ``[B, K]`` where clouds are labelled as a whole.
    """

    classifier: ClassVar[_Layers]
    of_parts: ClassVar[_Layers]
    of_scenes: ClassVar[_Layers]

    config: PointNet2Config

    def __init__(self, config: PointNet2Config) -> None:
        super().__init__(config)
        layers = self._layers()
        assert config.centers is not None
        assert config.features is not None
        if len(config.centers) != len(layers.levels):
            raise ValueError(f"centers must be {len(layers.levels)} numbers, one for each level, got {config.centers}")

        def scaled(widths: tuple[int, ...]) -> list[int]:
            return [max(round(config.width * width), 1) for width in widths]

        known = [name for name in config.features for _ in range(FEATURES[name])]
        self.columns = [i for i, name in enumerate(known) if layers.up or name != "pos"]
        self.levels = nn.ModuleList()
        channels = [len(self.columns)]
        for centers, level in zip(config.centers, layers.levels, strict=True):
            neighbors = [max(round(config.neighbors * k), 1) for k in level.neighbors]
            radii = [config.radius * radius for radius in level.radii]
            widths = [scaled(one) for one in level.channels]
            abstraction = SetAbstraction(channels[-1], centers, radii, neighbors, widths, config.random_start)
            self.levels.append(abstraction)
            channels.append(abstraction.out_channels)
        if layers.whole:
            self.whole = GlobalSetAbstraction(channels[-1], *scaled(layers.whole))
            channels.append(scaled(layers.whole)[-1])
        if not layers.up:
            self.head = nn.Sequential()
            widths_of_head, last = scaled((512, 256)), channels[-1]
            for width, dropout in zip(widths_of_head, layers.dropout, strict=True):
                self.head.extend([*perceptron(last, width), nn.Dropout(dropout)])
                last = width
            self.head.append(nn.Linear(last, len(config.names)))
            return
        channels[0] = config.categories + 3 + channels[0] if layers.whole else 0
        self.up = nn.ModuleList()
        coarse = channels[-1]
        for fine, widths_up in zip(reversed(channels[:-1]), reversed(layers.up), strict=True):
            self.up.insert(0, FeaturePropagation(fine + coarse, *scaled(widths_up)))
            coarse = scaled(widths_up)[-1]
        [dropout] = layers.dropout
        self.head = nn.Sequential(
            *perceptron(coarse, coarse), nn.Dropout(dropout), nn.Linear(coarse, len(config.names))
        )

    def _layers(self) -> _Layers:
        if self.config.labelled == "whole":
            return self.classifier
        return self.of_parts if self.config.unit_sphere else self.of_scenes

    def forward(self, data: Data) -> Tensor:
        """Logits of the classes."""
        check_points(data)
        pos, batch = data.pos, data.get("batch")
        batch = torch.zeros(pos.size(0), dtype=torch.int64, device=pos.device) if batch is None else batch
        x = data.x[:, self.columns] if self.columns else None
        passed = [(x, pos, batch)]
        for level in self.levels:
            passed.append(level(*passed[-1]))
        layers = self._layers()
        if layers.whole:
            x = self.whole(*passed[-1])
            passed.append((x, pos.new_zeros(x.size(0), 3), torch.arange(x.size(0), device=x.device)))
        if not layers.up:
            return self.head(x)
        passed[0] = (self._known(data, batch) if layers.whole else None, pos, batch)
        x, coarse_pos, coarse_batch = passed[-1]
        for up, (fine, pos, batch) in zip(reversed(self.up), reversed(passed[:-1]), strict=True):
            x = up(fine, pos, x, coarse_pos, batch, coarse_batch)
            coarse_pos, coarse_batch = pos, batch
        return self.head(x)

    def _known(self, data: Data, batch: Tensor) -> Tensor:
        """What the network of parts knows of each point at the end: the category, the position and the features."""
        parts = [data.pos.to(data.x.dtype), data.x]
        category = category_of(data, self.config.categories, int(batch[-1]) + 1)
        if category is not None:
            parts.insert(0, F.one_hot(category, self.config.categories).to(data.x.dtype)[batch])
        return torch.cat(parts, 1)

    def official_key(self, key: str) -> str | None:
        """Our name of a key of the checkpoints of Yan's code; None if there is none."""
        found = re.fullmatch(r"(sa|fp)(\d)\.(mlp|conv|bn)_(convs|bns|blocks)\.(?:(\d)\.)?(\d)\.(\w+)", key)
        if found is not None:
            norm = "bn" in found[3] + found[4]
            i, scale, layer, name = int(found[2]) - 1, found[5] or "0", int(found[6]), found[7]
            if found[1] == "fp":
                return f"up.{i}.perceptron.{3 * layer + norm}.{name}"
            if i == len(self.levels):
                return f"whole.perceptron.{3 * layer + norm}.{name}"
            if layer == 0 and not norm:
                return f"levels.{i}.first.{scale}.{name}"
            return f"levels.{i}.rest.{scale}.{3 * layer - (0 if norm else 1)}.{name}"
        module, _, name = key.partition(".")
        place = {"fc1": 0, "conv1": 0, "bn1": 1, "fc2": 4, "conv2": 4, "bn2": 5, "fc3": 8}.get(module)
        return None if place is None else f"head.{place}.{name}"


@register_model("pointnet2_ssg", PointNet2Config, "segmentation", "classification")
class PointNet2SSG(PointNet2):
    """`PointNet2` with one ball around each center (single-scale grouping)."""

    classifier = _Layers(
        (_Level((0.2,), (32,), ((64, 64, 128),)), _Level((0.4,), (64,), ((128, 128, 256),))), dropout=(0.4, 0.4)
    )
    of_parts = classifier._replace(up=((128, 128, 128), (256, 128), (256, 256)), dropout=(0.5,))
    of_scenes = _Layers(
        (
            _Level((0.1,), (32,), ((32, 32, 64),)),
            _Level((0.2,), (32,), ((64, 64, 128),)),
            _Level((0.4,), (32,), ((128, 128, 256),)),
            _Level((0.8,), (32,), ((256, 256, 512),)),
        ),
        whole=(),
        up=_UP_SCENE,
    )


@register_model("pointnet2_msg", PointNet2Config, "segmentation", "classification")
class PointNet2MSG(PointNet2):
    """`PointNet2` with several balls around each center (multi-scale grouping)."""

    classifier = _Layers(
        (
            _Level((0.1, 0.2, 0.4), (16, 32, 128), ((32, 32, 64), (64, 64, 128), (64, 96, 128))),
            _Level((0.2, 0.4, 0.8), (32, 64, 128), ((64, 64, 128), (128, 128, 256), (128, 128, 256))),
        ),
        dropout=(0.4, 0.5),
    )
    of_parts = _Layers(
        (
            _Level((0.1, 0.2, 0.4), (32, 64, 128), ((32, 32, 64), (64, 64, 128), (64, 96, 128))),
            _Level((0.4, 0.8), (64, 128), ((128, 128, 256), (128, 196, 256))),
        ),
        up=((128, 128), (256, 128), (256, 256)),
    )
    of_scenes = _Layers(
        (
            _Level((0.05, 0.1), (16, 32), ((16, 16, 32), (32, 32, 64))),
            _Level((0.1, 0.2), (16, 32), ((64, 64, 128), (64, 96, 128))),
            _Level((0.2, 0.4), (16, 32), ((128, 196, 256), (128, 196, 256))),
            _Level((0.4, 0.8), (16, 32), ((256, 256, 512), (256, 384, 512))),
        ),
        whole=(),
        up=_UP_SCENE,
    )
