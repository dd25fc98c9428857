"""Point Transformer V3: attention within patches along space-filling curves, and convolutions for positions."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from geoattn._arguments import checked_integer
from geoattn.data.point_transforms import check_points
from geoattn.geometry import serialize
from geoattn.models.points.inputs import PointConfig, PointNetwork, cloud_counts
from geoattn.models.registry import register_model
from geoattn.nn.point_groups import BatchNorm
from geoattn.nn.serialized import SerializedAttention
from geoattn.nn.sparse_conv import SubMConv3d
from geoattn.ops import segment_max, segment_mean
from geoattn.patterns import KernelMap, Windows


@dataclass(frozen=True)
class PointTransformerV3Config(PointConfig):
    """What a `PointTransformerV3` is made of; the defaults are the authors', of 46 million parameters.

    They are made for GPUs. For a CPU, ``channels=(32, 64, 128)``, ``depths=(1, 1, 1)``, ``heads=(2, 4, 8)``,
    ``strides=(2, 2)``, ``decoder_channels=(32, 64)``, ``decoder_depths=(1, 1)``, ``decoder_heads=(2, 4)`` and
    ``patch_size=128`` are a network of 1.1 million parameters.

    Attributes:
        channels: Features of a point in each stage of the encoder.
        depths: Blocks of each stage.
        heads: Attention heads of each stage.
        strides: How much larger the voxels of a stage are than those of the one before, powers of 2.
        decoder_channels: Of each stage of the decoder, the finest first. There is one where points are labelled.
        decoder_depths: Likewise.
        decoder_heads: Likewise.
        patch_size: Points of a patch, within which they attend to each other.
        relative_positions: Scores have a learned term for how far apart two voxels are; the authors then have patches
            of 128.
        expansion: Width of the perceptrons over that of the stage.
        drop_path: Largest share of points that skip a branch of a block in training (Huang et al. 2016).
        shuffle_orders: When the four orders of the points take random turns over the blocks.
        stale_skip: Whether the first convolution of each stage of the decoder sees the skip connection alone, and not
            its sum with the coarser stage, as in the authors' code, with which their checkpoints were trained.
    """

    grid_size: float | None = 0.02
    channels: tuple[int, ...] = (32, 64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 2, 6, 2)
    heads: tuple[int, ...] = (2, 4, 8, 16, 32)
    strides: tuple[int, ...] = (2, 2, 2, 2)
    decoder_channels: tuple[int, ...] = (64, 64, 128, 256)
    decoder_depths: tuple[int, ...] = (2, 2, 2, 2)
    decoder_heads: tuple[int, ...] = (4, 4, 8, 16)
    patch_size: int = 1024
    relative_positions: bool = False
    expansion: int = 4
    drop_path: float = 0.3
    shuffle_orders: Literal["training", "always", "never"] = "training"
    stale_skip: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in fields(self):
            if isinstance(value := getattr(self, field.name), list):  # JSON has no tuples
                object.__setattr__(self, field.name, tuple(value))
        if self.grid_size is None:
            raise ValueError("point_transformer_v3 works on voxels: grid_size must be a number")
        checked_integer("patch_size", self.patch_size, least=1)
        stages = len(self.channels)
        for name in ("depths", "heads"):
            if len(getattr(self, name)) != stages:
                raise ValueError(f"{name} must have as many numbers as channels, {stages}; got {getattr(self, name)}")
        decoder = ["decoder_channels", "decoder_depths", "decoder_heads"] if self.labelled == "vertex" else []
        for name in ("strides", *decoder):
            if len(getattr(self, name)) != stages - 1:
                raise ValueError(
                    f"{name} must have one number less than channels, {stages - 1}; got {getattr(self, name)}"
                )
        if any(stride < 1 or stride & (stride - 1) for stride in self.strides):
            raise ValueError(f"strides must be powers of 2, got {self.strides}")
        if self.shuffle_orders not in ("training", "always", "never"):
            raise ValueError(f'shuffle_orders must be "training", "always" or "never", got {self.shuffle_orders!r}')
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must be in [0, 1), got {self.drop_path}")


class Voxels:
    """The voxels of one stage, and what its layers share: the four orders, the patches and the pairs of neighbors.

    Args:
        grid: Coordinates ``[N, 3]``, cloud after cloud.
        code: Places on the curves of each cloud, ``[4, N]``.
        batch: Cloud of every voxel ``[N]``.
        counts: Voxels of every cloud ``[B]``, on the host.
        depths: Bits of the coordinates of every cloud.
    """

    def __init__(self, grid: Tensor, code: Tensor, batch: Tensor, counts: Tensor, depths: list[int]) -> None:
        self.grid, self.code, self.batch, self.counts, self.depths = grid, code, batch, counts, depths
        self._windows: dict[int, Windows] = {}

    @classmethod
    def of_clouds(cls, grid: Tensor, counts: Tensor) -> Voxels:
        """The finest voxels. Each cloud has the depth of its curves for itself, so that batches change nothing.

        Raises:
            ValueError: If codes and number of clouds need more than 63 bits.
        """
        found = [serialize(part) for part in grid.split(counts.tolist())]
        depths = [cloud.depth for cloud in found]
        bits = 3 * max(depths, default=0)
        if bits + (len(found) - 1).bit_length() > 63:
            raise ValueError(f"{len(found)} clouds of {bits} bits are too many for 63 bits; make the batch smaller")
        batch = torch.arange(len(found), device=grid.device).repeat_interleave(counts.to(grid.device))
        return cls(grid, torch.cat([cloud.code for cloud in found], 1), batch, counts, depths)

    def coarser(self, stride: int) -> tuple[Voxels, Tensor]:
        """The voxels of ``stride`` times the size, along the first curve, and in which of them each voxel lies.

        As in the authors' code, voxels of a cloud that is not so large stay as they are.
        """
        steps = stride.bit_length() - 1
        of_cloud = [steps if depth >= steps else 0 for depth in self.depths]
        shift = torch.tensor(of_cloud, device=self.grid.device)[self.batch]
        code, grid = self.code >> 3 * shift, self.grid >> shift.unsqueeze(1)
        cells, cluster = self._by_cloud(code[0]).unique(return_inverse=True)
        head = torch.empty_like(cells).scatter_(0, cluster, torch.arange(len(cluster), device=cells.device))
        batch = self.batch[head]
        counts = torch.bincount(batch, minlength=len(self.counts)).cpu()
        depths = [depth - less for depth, less in zip(self.depths, of_cloud, strict=True)]
        return Voxels(grid[head], code[:, head], batch, counts, depths), cluster

    def shuffled(self) -> Voxels:
        """The same with the four orders in a random order."""
        code = self.code[torch.randperm(len(self.code)).to(self.code.device)]
        return Voxels(self.grid, code, self.batch, self.counts, self.depths)

    def _by_cloud(self, code: Tensor) -> Tensor:
        """Places on the curve of a cloud as places among all clouds."""
        return code + (self.batch << 3 * max(self.depths, default=0))

    @cached_property
    def order(self) -> Tensor:
        """The voxels along each of the four curves, cloud after cloud, ``[4, N]``."""
        return torch.stack([row.argsort(stable=True) for row in self._by_cloud(self.code)])

    @cached_property
    def inverse(self) -> Tensor:
        """Where each voxel stands in each order, ``[4, N]``."""
        place = torch.arange(len(self.grid), device=self.grid.device).expand_as(self.order)
        return torch.empty_like(self.order).scatter_(1, self.order, place)

    def windows(self, patch_size: int) -> Windows:
        """The patches along any of the curves."""
        if patch_size not in self._windows:
            counts = self.counts.to(self.grid.device)
            self._windows[patch_size] = Windows.along(patch_size, counts=counts, borrow=True)
        return self._windows[patch_size]

    @cached_property
    def kernel_map(self) -> KernelMap:
        """Neighbors for convolutions with kernels of 3 voxels."""
        return KernelMap.from_grid(self.grid, 3, self.batch)


class Block(nn.Module):
    """A convolution, attention within patches and a perceptron, each added to its input (Figure 5 of the paper)."""

    def __init__(self, config: PointTransformerV3Config, channels: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.cpe = nn.ModuleList(
            [SubMConv3d(channels, channels, 3), nn.Linear(channels, channels), nn.LayerNorm(channels)]
        )
        self.norm1 = nn.LayerNorm(channels)
        self.attn = SerializedAttention(channels, heads, config.patch_size, config.relative_positions)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Perceptron(channels, config.expansion * channels)

    def forward(self, x: Tensor, voxels: Voxels, curve: int, seen: Tensor) -> Tensor:
        """Features ``[N, C]`` made anew; the convolution sees ``seen`` ``[N, C]``."""
        conv, linear, norm = self.cpe
        x = x + norm(linear(conv(seen, voxels.kernel_map)))
        windows = voxels.windows(self.attn.patch_size)
        attended = self.attn(self.norm1(x), voxels.order[curve], voxels.inverse[curve], windows, voxels.grid)
        x = x + self._dropped(attended)
        return x + self._dropped(self.mlp(self.norm2(x)))

    def _dropped(self, x: Tensor) -> Tensor:
        """Zeros for a random share of the points, in training."""
        if not self.training or self.drop_path == 0:
            return x
        kept = 1 - self.drop_path
        return x * (x.new_empty(x.size(0), 1).bernoulli_(kept) / kept)


class Perceptron(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``[N, C]`` to features ``[N, C]``."""
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Embedding(nn.Module):
    """The stem: a convolution over 5 voxels."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = SubMConv3d(in_channels, channels, 5, bias=False)
        self.norm = batch_norm(channels)

    def forward(self, x: Tensor, voxels: Voxels) -> Tensor:
        """Features ``[N, in_channels]`` to features ``[N, C]``."""
        kernel_map = KernelMap.from_grid(voxels.grid, 5, voxels.batch)
        return nn.functional.gelu(self.norm(self.conv(x, kernel_map)))


class Pooling(nn.Module):
    """Features of coarser voxels: the largest among their finer ones (serialized pooling)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_channels, channels)
        self.norm = batch_norm(channels)

    def forward(self, x: Tensor, cluster: Tensor, count: int) -> Tensor:
        """Features ``[N, in_channels]`` of voxels in ``cluster`` ``[N]`` to ``[count, C]``."""
        return nn.functional.gelu(self.norm(segment_max(self.proj(x), cluster, num_segments=count)))


class Unpooling(nn.Module):
    """Features of finer voxels: those they had in the encoder, and those of the coarser voxels they lie in."""

    def __init__(self, in_channels: int, skip_channels: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Linear(in_channels, channels), batch_norm(channels), nn.GELU())
        self.proj_skip = nn.Sequential(nn.Linear(skip_channels, channels), batch_norm(channels), nn.GELU())

    def forward(self, x: Tensor, skip: Tensor, cluster: Tensor) -> tuple[Tensor, Tensor]:
        """The sum ``[N, C]``, and what the skip connection contributes to it."""
        skip = self.proj_skip(skip)
        return skip + self.proj(x)[cluster], skip


class Stage(nn.Module):
    """Blocks on the voxels of one size, and how features come there."""

    def __init__(self, config: PointTransformerV3Config, channels: int, heads: int, rates: list[float]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(config, channels, heads, rate) for rate in rates])
        self.down: Pooling | None = None
        self.up: Unpooling | None = None

    def forward(self, x: Tensor, voxels: Voxels, seen: Tensor | None = None) -> Tensor:
        """Features ``[N, C]`` made anew; the first convolution sees ``seen``, if it is given."""
        for i, block in enumerate(self.blocks):
            x = block(x, voxels, i % len(voxels.code), x if i or seen is None else seen)
        return x


@register_model("point_transformer_v3", PointTransformerV3Config, "segmentation", "classification")
class PointTransformerV3(PointNetwork):
    """Point Transformer V3 (Wu et al., CVPR 2024, arXiv 2312.10035), the mode m1 of its authors' code.

    Voxels are sorted along four space-filling curves. In each block a convolution on voxels tells them where they are,
    they attend to the voxels of their patch along one of the curves, and blocks take turns over the curves. Five stages
    of ever larger voxels, and four back to the finest where points are labelled; a linear head. Whole clouds get the
    mean of the coarsest stage and the classifier of the authors' code (Pointcept).

    In evaluation, a batch gives what its clouds give alone: unlike in the authors' code, patches do not shrink to the
    smallest cloud, and the depth of the Hilbert curve is that of each cloud. On single clouds the numbers are theirs,
    from their weights (`geoattn.models.load_official`), for voxels from 0 on and the depth rule of their repository
    PointTransformerV3. ``shuffle_orders="always"`` is what their code does in evaluation too; told not to,
    it still shuffles the orders of all stages but the first.

    Args:
        config: What it is made of.

    Shapes:
        Input: a `Data` or `Batch` of ``B`` clouds, made by `geoattn.data.PointInputs`, with ``M`` voxels. Output:
        logits ``[M, K]``, or ``[B, K]`` for whole clouds.

    Example:
        >>> model = create_model("point_transformer_v3", names=("ground", "other"))
        >>> logits = model(model.input_transform()(geoattn.load("scan.laz")))
    """

    config: PointTransformerV3Config

    def __init__(self, config: PointTransformerV3Config) -> None:
        super().__init__(config)
        self.embedding = Embedding(config.in_channels, config.channels[0])
        rates = drop_rates(config.drop_path, sum(config.depths))
        self.enc = nn.ModuleList()
        for s, (begin, end) in enumerate(pairwise(accumulate(config.depths, initial=0))):
            stage = Stage(config, config.channels[s], config.heads[s], rates[begin:end])
            if s:
                stage.down = Pooling(config.channels[s - 1], config.channels[s])
            self.enc.append(stage)
        self.dec = nn.ModuleList()
        width, classes = config.channels[-1], len(config.names)
        if config.labelled == "whole":
            self.head: nn.Module = classifier(width, classes)
            return
        widths = [*config.decoder_channels, width]
        rates = drop_rates(config.drop_path, sum(config.decoder_depths))
        for s, (begin, end) in enumerate(pairwise(accumulate(config.decoder_depths, initial=0))):
            stage = Stage(config, widths[s], config.decoder_heads[s], rates[begin:end][::-1])
            stage.up = Unpooling(widths[s + 1], config.channels[s], widths[s])
            self.dec.append(stage)
        self.head = nn.Linear(widths[0], classes)

    def forward(self, data: Data) -> Tensor:
        """Logits of the classes."""
        check_points(data, grid=True)
        shuffle = {"training": self.training, "always": True, "never": False}[self.config.shuffle_orders]
        voxels = Voxels.of_clouds(data.grid_coord, cloud_counts(data))
        voxels = voxels.shuffled() if shuffle else voxels
        x = self.embedding(data.x, voxels)
        finer: list[tuple[Tensor, Voxels, Tensor]] = []
        for s, stage in enumerate(self.enc):
            assert isinstance(stage, Stage)
            if stage.down is not None:
                fine, (voxels, cluster) = voxels, voxels.coarser(self.config.strides[s - 1])
                finer.append((x, fine, cluster))
                x = stage.down(x, cluster, len(voxels.grid))
                voxels = voxels.shuffled() if shuffle else voxels
            x = stage(x, voxels)
        if self.config.labelled == "whole":
            return self.head(segment_mean(x, voxels.batch, num_segments=len(voxels.counts)))
        for stage, (skip, fine, cluster) in zip(reversed(self.dec), reversed(finer), strict=True):
            assert isinstance(stage, Stage)
            assert stage.up is not None
            x, of_skip = stage.up(x, skip, cluster)
            x = stage(x, fine, of_skip if self.config.stale_skip else None)
        return self.head(x)

    @staticmethod
    def official_key(key: str) -> str | None:
        """Our name of a parameter of the authors' code: of the repository PointTransformerV3, or of Pointcept."""
        key = key.removeprefix("backbone.").replace("embedding.stem.", "embedding.")
        key = re.sub(r"^(enc|dec)\.\1(\d+)\.", r"\1.\2.", key)
        key = re.sub(r"\.block(\d+)\.", r".blocks.\1.", key)
        key = re.sub(r"\.(norm1|norm2|mlp|down\.norm)\.0\.", r".\1.", key)
        return re.sub(r"^(seg|cls)_head\.", "head.", key)


def drop_rates(largest: float, blocks: int) -> list[float]:
    """From 0 in the first block evenly to ``largest`` in the last."""
    return [largest * i / max(blocks - 1, 1) for i in range(blocks)]


def batch_norm(channels: int) -> nn.BatchNorm1d:
    """Batch normalization over all voxels of a batch, with the authors' constants."""
    return BatchNorm(channels, eps=1e-3, momentum=0.01)


def classifier(channels: int, classes: int) -> nn.Sequential:
    """The classifier of Pointcept."""
    layers: list[nn.Module] = []
    for before, after in pairwise([channels, 256, 128]):
        layers += [nn.Linear(before, after), BatchNorm(after), nn.ReLU(inplace=True), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(128, classes))
