"""SurfaceTransformer: which part of a mesh each of its faces, vertices or edges belongs to."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from geoattn._optional import require
from geoattn.data.transforms import CHANNELS, ELEMENTS, Element
from geoattn.nn.latents import LatentAttention, feed_forward
from geoattn.nn.surface import SurfaceAttention
from geoattn.patterns import Neighbors, Windows

if TYPE_CHECKING:
    from huggingface_hub import PyTorchModelHubMixin
else:
    PyTorchModelHubMixin = require("huggingface_hub").PyTorchModelHubMixin


@dataclass(frozen=True)
class SurfaceTransformerConfig:
    """What a `SurfaceTransformer` is made of.

    Attributes:
        names: Names of the classes.
        element: What attends, and
        labelled: what is labelled, as in `geoattn.data.MeshElements`.
        whole: Whether one label is for a whole mesh (classification) rather than for each labelled thing.
        faces: Number of faces of the meshes it was trained on: finer ones are simplified to it first.
        channels: Features of an element.
        heads: Attention heads.
        blocks: Number of blocks.
        latents: Latents of the global attention.
        expansion: Width of the perceptrons over ``channels``.
        dropout: In perceptrons, before the first layer and before the last, in training.
    """

    names: tuple[str, ...]
    element: Element = "vertex"
    labelled: Element = "face"
    whole: bool = False
    faces: int = 1500
    channels: int = 96
    heads: int = 4
    blocks: int = 4
    latents: int = 32
    expansion: int = 2
    dropout: float = 0.2

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))  # JSON has lists
        if len(self.names) < 2:
            raise ValueError(f"expected the names of at least 2 classes, got {self.names}")
        for name in ("element", "labelled"):
            if getattr(self, name) not in ELEMENTS:
                raise ValueError(f"{name} must be one of {ELEMENTS}, got {getattr(self, name)!r}")


class Block(nn.Module):
    """Attention to the neighbors on the surface, to all through the latents, and a perceptron."""

    def __init__(self, config: SurfaceTransformerConfig) -> None:
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


class SurfaceTransformer(nn.Module, PyTorchModelHubMixin):
    """A transformer on the surface of any triangle mesh, made of `geoattn.attend`.

    The elements of a mesh carry descriptors of their surroundings at many scales; each block lets them attend to
    their neighbors on the surface, scoring where those lie (`geoattn.nn.SurfaceAttention`), and to the whole mesh
    through a few latents (`geoattn.nn.LatentAttention`). Positions and normals enter only through distances and
    angles, so moving, turning, mirroring or scaling a mesh changes nothing, and listing its vertices or faces in
    another order only reorders the output. The network is ours.

    Args:
        config: What it is made of.

    Shapes:
        Input: a `Data` or `Batch` of them, made by `geoattn.data.MeshElements`, with ``N`` elements, ``M`` labelled
        things and ``B`` meshes. Output: logits ``[M, K]``, or ``[B, K]`` where a whole mesh has one label.

    Example:
        >>> import geoattn
        >>> from geoattn.models.segmentation import SurfaceTransformer, SurfaceTransformerConfig
        >>> model = SurfaceTransformer(SurfaceTransformerConfig(names=("left", "right")))
        >>> logits = model(geoattn.data.MeshElements()(geoattn.load("mesh.obj")))
    """

    def __init__(self, config: SurfaceTransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.channels
        self.standardize = nn.BatchNorm1d(CHANNELS, affine=False)
        self.stem = nn.Sequential(
            nn.Dropout(config.dropout), nn.Linear(CHANNELS, width), nn.GELU(), nn.Linear(width, width)
        )
        self.latents = nn.Parameter(torch.randn(config.latents, width) * 0.02)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.blocks)])
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Dropout(config.dropout), nn.Linear(width, len(config.names)))

    def forward(self, data: Data) -> Tensor:
        """Logits of the classes."""
        count = data.x.size(0)
        ptr = data.ptr if "ptr" in data else torch.tensor([0, count], device=data.x.device)
        samples = ptr.numel() - 1
        neighbors = Neighbors.from_edge_index(data.neighbor_index, count)
        of_latent = torch.arange(samples + 1, device=ptr.device) * self.config.latents
        reading = Windows(of_latent, ptr)

        x = self.stem(self.standardize(data.x))
        latents = self.latents.repeat(samples, 1)
        for block in self.blocks:
            x, latents = block(x, latents, data, neighbors, reading)
        if self.config.whole:
            batch = torch.arange(samples, device=ptr.device).repeat_interleave(ptr.diff())
            weighted = x * data.area.unsqueeze(1)
            return self.head(x.new_zeros(samples, x.size(1)).index_add(0, batch, weighted))
        return self.head(x[data.corner_index].mean(0))
