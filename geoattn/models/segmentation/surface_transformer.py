"""SurfaceTransformer: which part of a mesh each of its faces, vertices or edges belongs to."""

from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from geoattn.data.transforms import CHANNELS, ELEMENTS, Element, MeshElements, check_elements
from geoattn.models.network import Network
from geoattn.models.registry import register_model
from geoattn.nn.latents import LatentAttention, feed_forward
from geoattn.nn.surface import SurfaceAttention
from geoattn.patterns import Neighbors, Windows
from geoattn.train.task import FROM_DATA


@dataclass(frozen=True)
class SurfaceConfig:
    """What a network on the surface of meshes is made of.

    Attributes:
        names: Names of the classes.
        in_channels: Features of an element.
        element: What attends, as in `geoattn.data.MeshElements`.
        channels: Features of an element inside the network.
        heads: Attention heads.
        blocks: Number of blocks.
        latents: Latents of the global attention.
        expansion: Width of the perceptrons over ``channels``.
        dropout: In perceptrons, before the first layer and before the last, in training.
    """

    names: tuple[str, ...] = field(metadata=FROM_DATA)
    in_channels: int = field(default=CHANNELS, metadata=FROM_DATA)
    element: Element = "vertex"
    channels: int = 96
    heads: int = 4
    blocks: int = 4
    latents: int = 32
    expansion: int = 2
    dropout: float = 0.2

    def __post_init__(self) -> None:
        if isinstance(self.names, str) or len(self.names) < 2 or len(set(self.names)) < len(self.names):
            raise ValueError(f"names must be those of at least 2 different classes, got {self.names!r}")
        object.__setattr__(self, "names", tuple(self.names))  # JSON has lists
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        for name in ("in_channels", "channels", "heads", "blocks", "latents", "expansion"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.element not in ELEMENTS:
            raise ValueError(f"element must be one of {ELEMENTS}, got {self.element!r}")


@dataclass(frozen=True)
class SurfaceTransformerConfig(SurfaceConfig):
    """What a `SurfaceTransformer` is made of.

    Attributes:
        labelled: What is labelled, as in `geoattn.data.MeshElements`.
        faces: Number of faces of the meshes it was trained on: finer ones are simplified to it first.
    """

    labelled: Element = field(default="face", metadata=FROM_DATA)
    faces: int = field(default=1500, metadata=FROM_DATA)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labelled not in ELEMENTS:
            raise ValueError(f"labelled must be one of {ELEMENTS}, got {self.labelled!r}")


class Block(nn.Module):
    """Attention to the neighbors on the surface, to all through the latents, and a perceptron."""

    def __init__(self, config: SurfaceConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.channels)
        self.local = SurfaceAttention(config.channels, config.heads)
        self.exchange = LatentAttention(config.channels, config.heads, config.expansion, config.dropout)
        self.perceptron = feed_forward(config.channels, config.expansion, config.dropout)

    def forward(
        self, x: Tensor, latents: Tensor, data: Data, neighbors: Neighbors, reading: Windows
    ) -> tuple[Tensor, Tensor]:
        """Features ``[N, C]`` of the elements and ``[B * L, C]`` of the latents, made anew."""
        x = x + self.local(self.norm(x), data.pos, data.normal, data.spectral, neighbors)
        x, latents = self.exchange(x, latents, data.area, reading)
        return x + self.perceptron(x), latents


class SurfaceNetwork(Network):
    """What the networks on the surface of meshes share: from descriptors to features of every element.

    The elements of a mesh carry descriptors of their surroundings at many scales; each block lets them attend to
    their neighbors on the surface, scoring where those lie (`geoattn.nn.SurfaceAttention`), and to the whole mesh
    through a few latents (`geoattn.nn.LatentAttention`). Positions and normals enter only through distances and
    angles, so moving, turning, mirroring or scaling a mesh changes nothing, and listing its vertices or faces in
    another order only reorders the output. The network is ours.
    """

    def __init__(self, config: SurfaceConfig) -> None:
        super().__init__()
        self.config = config
        width = config.channels
        self.standardize = nn.BatchNorm1d(config.in_channels, affine=False)
        self.stem = nn.Sequential(
            nn.Dropout(config.dropout), nn.Linear(config.in_channels, width), nn.GELU(), nn.Linear(width, width)
        )
        self.latents = nn.Parameter(torch.randn(config.latents, width) * 0.02)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.blocks)])
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Dropout(config.dropout), nn.Linear(width, len(config.names)))

    @abstractmethod
    def input_transform(self) -> BaseTransform:
        """The `geoattn.data.MeshElements` that makes what the network reads."""

    def features(self, data: Data, ptr: Tensor) -> Tensor:
        """Features ``[N, C]`` of the elements; ``ptr`` ``[B + 1]`` says where each mesh begins."""
        neighbors = Neighbors.from_edge_index(data.neighbor_index, data.x.size(0))
        reading = Windows(ptr).latents(self.config.latents)
        x = self.stem(self.standardize(data.x))
        latents = self.latents.repeat(ptr.numel() - 1, 1)
        for block in self.blocks:
            x, latents = block(x, latents, data, neighbors, reading)
        return x


@register_model("surface_transformer", SurfaceTransformerConfig, "segmentation")
class SurfaceTransformer(SurfaceNetwork):
    """A transformer that labels the faces, vertices or edges of any triangle mesh, made of `geoattn.attend`.

    See `SurfaceNetwork` for its blocks.

    Args:
        config: What it is made of.

    Shapes:
        Input: a `Data` or `Batch` of them, made by `geoattn.data.MeshElements`, with ``N`` elements and ``M`` labelled
        things. Output: logits ``[M, K]``.

    Example:
        >>> import geoattn
        >>> model = geoattn.models.create_model("surface_transformer", names=("left", "right"))
        >>> logits = model(geoattn.data.MeshElements()(geoattn.load("mesh.obj")))
    """

    def __init__(self, config: SurfaceTransformerConfig) -> None:
        super().__init__(config)
        self.config = config

    def input_transform(self) -> BaseTransform:  # noqa: D102
        return MeshElements(self.config.element, self.config.labelled)

    def forward(self, data: Data) -> Tensor:
        """Logits of the classes."""
        return self.head(self.features(data, mesh_ptr(data))[data.corner_index].mean(0))


def mesh_ptr(data: Data) -> Tensor:
    """Where each mesh of a batch begins, ``[B + 1]``; the first thing a network asks of what it is given.

    Raises:
        TypeError: If that is no `Data`.
        ValueError: If it was not made by `geoattn.data.MeshElements`.
    """
    check_elements(data)
    return data.ptr if "ptr" in data else torch.tensor([0, data.x.size(0)], device=data.x.device)
