"""What the networks of point clouds share: what they read, and what they label."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch_geometric.data import Data

from geoattn.data.point_transforms import FEATURES, Feature, PointInputs
from geoattn.models.network import Network
from geoattn.patterns import Windows
from geoattn.train.task import FROM_DATA


@dataclass(frozen=True)
class PointConfig:
    """What a network of point clouds is made of, and what it reads.

    Attributes:
        names: Names of the classes.
        labelled: What has a label: each point ("vertex"), or the cloud as a whole ("whole").
        features: What it knows of each point, of pos, height, color, normal and intensity; what a cloud lacks is zeros.
            None: pos, and what all training samples have of color, normal and intensity.
        grid_size: Side of the voxels of which one point each is read, in the unit of the coordinates.
        max_points: At most so many points of a cloud are read.
        parts_of_category: The classes that are parts of each category of objects, where samples have a ``category``.
        unit_sphere: Clouds are objects, which are moved to 0 and scaled to norm 1, rather than scenes. None: those that
            are labelled as a whole or have parts of categories are.
    """

    names: tuple[str, ...] = field(metadata=FROM_DATA)
    labelled: Literal["vertex", "whole"] = field(default="vertex", metadata=FROM_DATA)
    parts_of_category: tuple[tuple[int, ...], ...] = field(default=(), metadata=FROM_DATA)
    features: tuple[Feature, ...] | None = None
    grid_size: float | None = None
    max_points: int | None = None
    unit_sphere: bool | None = None

    def __post_init__(self) -> None:
        if isinstance(self.names, str) or len(self.names) < 2 or len(set(self.names)) < len(self.names):
            raise ValueError(f"names must be those of at least 2 different classes, got {self.names!r}")
        if self.labelled not in ("vertex", "whole"):
            raise ValueError(f'labelled must be "vertex" (each point) or "whole" (the cloud), got {self.labelled!r}')
        for name in ("names", "features"):  # JSON has lists
            object.__setattr__(self, name, tuple(getattr(self, name) or ("pos",)))
        object.__setattr__(self, "parts_of_category", tuple(map(tuple, self.parts_of_category)))
        if self.unit_sphere is None:
            object.__setattr__(self, "unit_sphere", self.labelled == "whole" or bool(self.parts_of_category))
        self.inputs()

    def inputs(self) -> PointInputs:
        """The transform that makes of a cloud what the network reads."""
        assert self.features is not None
        return PointInputs(self.features, self.grid_size, self.max_points, bool(self.unit_sphere))

    @property
    def categories(self) -> int:
        """Number of categories that objects have; 0 where they have none."""
        return len(self.parts_of_category)

    @property
    def in_channels(self) -> int:
        """Channels of a point's features."""
        assert self.features is not None
        return sum(FEATURES[name] for name in self.features)


class PointNetwork(Network):
    """A network of point clouds.

    Shapes:
        Input: a `Data` or `Batch` of ``B`` clouds with ``M`` points in all, made by `geoattn.data.PointInputs`. Output:
        logits ``[M, K]``, or ``[B, K]`` where clouds are labelled as a whole.
    """

    config: PointConfig

    def __init__(self, config: PointConfig) -> None:
        super().__init__()
        self.config = config

    def input_transform(self) -> PointInputs:  # noqa: D102
        return self.config.inputs()

    @abstractmethod
    def forward(self, data: Data) -> Tensor:
        """Logits of the classes."""


def cloud_windows(data: Data) -> Windows:
    """A run for each cloud of a batch."""
    counts = cloud_counts(data)
    return Windows(torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(data.x.device))


def cloud_counts(data: Data) -> Tensor:
    """How many points each cloud of a batch has, ``[B]`` on the host."""
    if data.get("ptr") is not None:
        return data.ptr.diff().cpu()
    if data.get("batch") is not None:
        return torch.bincount(data.batch).cpu()
    return torch.tensor([data.x.size(0)])


def category_of(data: Data, categories: int, clouds: int) -> Tensor | None:
    """The category of each object of a batch ``[B]``; None for a network that knows no ``categories``.

    Raises:
        ValueError: If one of the ``clouds`` has none, or an unknown one.
    """
    if not categories:
        return None
    category = data.get("category")
    if category is None or category.shape != (clouds,):
        found = "none" if category is None else list(category.shape)
        raise ValueError(
            f"the network knows {categories} categories: give each of {clouds} clouds one, got {found}; in Python, "
            "set data.category = torch.tensor([number of the category]) of a cloud"
        )
    if int(category.min()) < 0 or int(category.max()) >= categories:
        raise ValueError(f"category must be from 0 to {categories - 1}, got {category.tolist()}")
    return category
