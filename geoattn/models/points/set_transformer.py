"""Set Transformer: what a cloud is, as a set of points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch_geometric.data import Data

from geoattn.data import check_points
from geoattn.models.points.inputs import PointConfig, PointNetwork, cloud_windows
from geoattn.models.registry import register_model
from geoattn.nn import ISAB, PMA


@dataclass(frozen=True)
class WholeCloudConfig(PointConfig):
    """What networks of whole clouds share."""

    max_points: int | None = 1000

    def __post_init__(self) -> None:
        if self.labelled != "whole":
            raise ValueError(
                f'the network gives one label to a whole cloud: labelled must be "whole", got {self.labelled!r}'
            )
        super().__post_init__()


@dataclass(frozen=True)
class SetTransformerConfig(WholeCloudConfig):
    """What a `SetTransformer` is made of.

    Attributes:
        channels: Features of a point.
        heads: Number of heads; divides ``channels``.
        inducing_points: Number of inducing points of each block.
        norm: Whether blocks are normalized by LayerNorms.
        dropout: Before and after pooling, in training.
    """

    channels: int = 256
    heads: int = 4
    inducing_points: int = 16
    norm: bool = False
    dropout: float = 0.5


@register_model("set_transformer", SetTransformerConfig, "classification")
class SetTransformer(PointNetwork):
    """Set Transformer's classifier of point clouds (Lee et al. 2019, section 5.5): ``main_pointcloud.py`` of its code.

    Two induced set attention blocks, pooling by one seed, and a linear layer, with the parameter names and defaults of
    the public code. Clouds are scaled to the unit sphere here; the authors' own subtract and divide by the mean and the
    standard deviation of all coordinates together.

    Args:
        config: What it is made of.

    Shapes:
        Input: a `Data` or `Batch` of ``B`` clouds, made by `geoattn.data.PointInputs`. Output: logits ``[B, K]``.
    """

    config: SetTransformerConfig

    def __init__(self, config: SetTransformerConfig) -> None:
        super().__init__(config)
        width, heads, norm = config.channels, config.heads, config.norm
        self.enc = nn.ModuleList(
            ISAB(channels, width, heads, config.inducing_points, norm) for channels in (config.in_channels, width)
        )
        self.dec = nn.ModuleList(
            [
                nn.Dropout(config.dropout),
                PMA(width, heads, 1, norm),
                nn.Dropout(config.dropout),
                nn.Linear(width, len(config.names)),
            ]
        )

    def forward(self, data: Data) -> Tensor:
        """Logits of the classes."""
        x, sets = check_points(data).x, cloud_windows(data)
        for block in self.enc:
            x = block(x, sets)
        before, pool, after, head = self.dec
        return cast("Tensor", head(after(pool(before(x), sets))))

    @staticmethod
    def official_key(key: str) -> str | None:
        """Our name of a parameter of the authors' code: the same."""
        return key
