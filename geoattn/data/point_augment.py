"""Random changes of point clouds for training: those of Point Transformer V3's recipe, and two recipes.

They take raw clouds (``pos`` ``[N, 3]`` and what there is of ``color`` in 0..1, ``normal``, ``intensity``, ``y`` and
other rows for each point), before `PointInputs`, and leave the cloud that they are given as it is. All randomness is
drawn from ``generator``, or torch's global one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from geoattn._arguments import check_data

Axis = Literal["x", "y", "z"]


class _Samples(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class CenterShift(BaseTransform):
    """Move a cloud so that its bounding box is centered in x and y and begins at z = 0."""

    def forward(self, data: Data) -> Data:
        """Apply to one cloud."""
        check_data(data)
        low, high = data.pos.amin(0), data.pos.amax(0)
        data.pos = data.pos - torch.cat([((low + high) / 2)[:2], low[2:]])
        return data


@dataclass(frozen=True)
class RandomPointDropout(BaseTransform):
    """Leave out a share of the points. At least one stays, and a mesh is left as it is.

    Args:
        ratio: The share.
        p: How often.
        generator: Source of randomness.
    """

    ratio: float = 0.2
    p: float = 0.2
    generator: torch.Generator | None = None

    def forward(self, data: Data) -> Data:
        """Apply to one cloud."""
        check_data(data)
        if data.get("face") is not None or not _happens(self.p, self.generator):
            return data
        count = data.pos.size(0)
        kept = torch.randperm(count, generator=self.generator)[: max(1, round(count * (1 - self.ratio)))]
        return _take(data, kept.sort().values.to(data.pos.device))


@dataclass(frozen=True)
class RandomRotation(BaseTransform):
    """Turn a cloud, and its normals, about an axis through the center of its bounding box.

    Args:
        degrees: The angle is drawn from -degrees to degrees.
        axis: "x", "y" or "z".
        p: How often.
        generator: Source of randomness.
    """

    degrees: float = 180.0
    axis: Axis = "z"
    p: float = 1.0
    generator: torch.Generator | None = None

    def forward(self, data: Data) -> Data:
        """Apply to one cloud."""
        check_data(data)
        if not _happens(self.p, self.generator):
            return data
        angle = math.radians(self.degrees) * (2 * float(_uniform(1, self.generator)) - 1)
        return rotated(data, angle, self.axis)


@dataclass(frozen=True)
class RandomScaling(BaseTransform):
    """Scale a cloud from the center of its bounding box.

    Args:
        low: The factor is drawn from here ...
        high: ... to here.
        axes: One factor for each axis. Normals are turned accordingly.
        generator: Source of randomness.
    """

    low: float = 0.9
    high: float = 1.1
    axes: bool = False
    generator: torch.Generator | None = None

    def forward(self, data: Data) -> Data:
        """Apply to one cloud."""
        check_data(data)
        factor = self.low + (self.high - self.low) * _uniform(3 if self.axes else 1, self.generator).to(data.pos)
        center = _center(data.pos)
        data.pos = (data.pos - center) * factor + center
        if self.axes and data.get("normal") is not None:
            data.normal = F.normalize(data.normal / factor, dim=1)
        return data


@dataclass(frozen=True)
class RandomMirror(BaseTransform):
    """Mirror a cloud, and its normals, in x and in y.

    Args:
        p: How often, for each of the two.
        generator: Source of randomness.
    """

    p: float = 0.5
    generator: torch.Generator | None = None

    def forward(self, data: Data) -> Data:
        """Apply to one cloud."""
        check_data(data)
        for axis in (0, 1):
            if _happens(self.p, self.generator):
                data = mirrored(data, axis)
        return data


@dataclass(frozen=True)
class RandomPointJitter(BaseTransform):
    """Move each point by a normal distribution.

    Args:
        sigma: Its standard deviation, in the unit of ``pos``.
        clip: No coordinate is moved by more.
        generator: Source of randomness.
    """

    sigma: float = 0.005
    clip: float = 0.02
    generator: torch.Generator | None = None

    def forward(self, data: Data) -> Data:
        """Apply to one cloud."""
        check_data(data)
        noise = torch.randn(data.pos.shape, generator=self.generator).mul_(self.sigma).clamp_(-self.clip, self.clip)
        data.pos = data.pos + noise.to(data.pos)
        return data


@dataclass(frozen=True)
class ElasticDistortion(BaseTransform):
    """Move the points by smooth noise: normal on a grid, blurred twice by boxes of three, and interpolated linearly.

    Args:
        levels: Side of the grid's cells, and the factor of the noise, both in the unit of ``pos``; one after the other.
        p: How often.
        generator: Source of randomness.

    Raises:
        ValueError: If a grid would have more than 2^24 cells.
    """

    levels: Sequence[tuple[float, float]] = ((0.2, 0.4), (0.8, 1.6))
    p: float = 0.95
    generator: torch.Generator | None = None

    def forward(self, data: Data) -> Data:
        """Apply to one cloud."""
        check_data(data)
        if not _happens(self.p, self.generator):
            return data
        for cell, magnitude in self.levels:
            low = data.pos.amin(0)
            size = ((data.pos.amax(0) - low) / cell).floor().long() + 3
            if size.double().prod() > 1 << 24:
                raise ValueError(
                    f"a grid of cells of {cell:g} has {size.tolist()} cells for this cloud; take larger ones, "
                    "and in training larger voxels (grid_size, --grid-size), or smaller scans"
                )
            noise = torch.randn(3, *size.tolist(), generator=self.generator).to(data.pos)
            for _ in range(2):
                noise = F.avg_pool3d(noise, 3, stride=1, padding=1)
            place = (data.pos - low + cell) / (cell * (size - 1)) * 2 - 1  # the corners of the grid are -1 and 1
            field = F.grid_sample(noise[None], place.flip(1)[None, None, None], align_corners=True)
            data.pos = data.pos + magnitude * field.reshape(3, -1).T
        return data


@dataclass(frozen=True)
class ChromaticAutoContrast(BaseTransform):
    """Stretch each channel of the colours to 0..1, by a random part of the way.

    Args:
        p: How often.
        generator: Source of randomness.
    """

    p: float = 0.2
    generator: torch.Generator | None = None

    def forward(self, data: Data) -> Data:
        """Apply to one cloud."""
        check_data(data)
        if data.get("color") is None or not _happens(self.p, self.generator):
            return data
        low, high = data.color.amin(0), data.color.amax(0)
        stretched = (data.color - low) / (high - low).clamp_min(1e-6)
        data.color = torch.lerp(data.color, stretched, float(_uniform(1, self.generator)))
        return data


@dataclass(frozen=True)
class ChromaticTranslation(BaseTransform):
    """Shift each channel of the colours.

    Args:
        ratio: By at most so much.
        p: How often.
        generator: Source of randomness.
    """

    ratio: float = 0.05
    p: float = 0.95
    generator: torch.Generator | None = None

    def forward(self, data: Data) -> Data:
        """Apply to one cloud."""
        check_data(data)
        if data.get("color") is None or not _happens(self.p, self.generator):
            return data
        shift = self.ratio * (2 * _uniform(data.color.size(1), self.generator) - 1)
        data.color = (data.color + shift.to(data.color)).clamp(0, 1)
        return data


@dataclass(frozen=True)
class ChromaticJitter(BaseTransform):
    """Change the colour of each point by a normal distribution.

    Args:
        sigma: Its standard deviation.
        p: How often.
        generator: Source of randomness.
    """

    sigma: float = 0.05
    p: float = 0.95
    generator: torch.Generator | None = None

    def forward(self, data: Data) -> Data:
        """Apply to one cloud."""
        check_data(data)
        if data.get("color") is None or not _happens(self.p, self.generator):
            return data
        noise = self.sigma * torch.randn(data.color.shape, generator=self.generator)
        data.color = (data.color + noise.to(data.color)).clamp(0, 1)
        return data


@dataclass(frozen=True)
class RandomAttributeDropout(BaseTransform):
    """Leave out an attribute of all points, so that a network also runs on clouds that come without it.

    Args:
        names: The attributes.
        p: How often, for each of them.
        generator: Source of randomness.
    """

    names: Sequence[str] = ("color", "normal", "intensity")
    p: float = 0.2
    generator: torch.Generator | None = None

    def forward(self, data: Data) -> Data:
        """Apply to one cloud."""
        check_data(data)
        for name in self.names:
            if _happens(self.p, self.generator) and name in data:
                del data[name]
        return data


@dataclass(frozen=True)
class Mix3D(BaseTransform):
    """Merge a scene with another of the training samples (Nekrasov et al. 2021, arXiv 2110.02210).

    Both are centered at the same place first. Attributes that only one of them has are left out.

    Args:
        samples: The training samples.
        p: How often.
        augment: What happens to the other scene first, such as a `SceneAugment`.
        generator: Source of randomness.
    """

    samples: _Samples
    p: float = 0.8
    augment: Callable[[Data], Data] | None = None
    generator: torch.Generator | None = None

    def forward(self, data: Data) -> Data:
        """Apply to one cloud."""
        check_data(data)
        if not _happens(self.p, self.generator):
            return data
        other = self.samples[int(torch.randint(len(self.samples), (), generator=self.generator))]
        return merged(data, other if self.augment is None else self.augment(other))


@dataclass(frozen=True)
class SceneAugment(BaseTransform):
    """What Point Transformer V3 changes in a scene to train on ScanNet, in this order.

    Center shift, point dropout, rotations (about z by any angle, about x and y by up to 1/64 of pi), scaling,
    mirroring, jitter, elastic distortion, and of the colours contrast, translation and jitter. Its lengths, which are
    those for voxels of 2 cm, are taken in proportion to the voxels. Elastic distortion is for voxels of up to 3 cm: in
    proportion to larger ones, it would bend a room beyond recognition, and the authors have none of it for other data
    than ScanNet. At last attributes are left out, which is not part of the published recipe.

    Args:
        grid_size: Side of the voxels that the network reads.
        attribute_dropout: How often colours, normals and intensities are left out.
        generator: Source of randomness.
    """

    grid_size: float = 0.02
    attribute_dropout: float = 0.0
    generator: torch.Generator | None = None

    def forward(self, data: Data) -> Data:
        """Apply to one cloud."""
        unit, generator = self.grid_size / 0.02, self.generator
        bent = ElasticDistortion(((0.2 * unit, 0.4 * unit), (0.8 * unit, 1.6 * unit)), generator=generator)
        elastic: list[BaseTransform] = [bent] if self.grid_size <= 0.03 else []
        for transform in (
            CenterShift(),
            RandomPointDropout(generator=generator),
            RandomRotation(180, "z", p=0.5, generator=generator),
            RandomRotation(180 / 64, "x", p=0.5, generator=generator),
            RandomRotation(180 / 64, "y", p=0.5, generator=generator),
            RandomScaling(generator=generator),
            RandomMirror(generator=generator),
            RandomPointJitter(0.005 * unit, 0.02 * unit, generator=generator),
            *elastic,
            ChromaticAutoContrast(generator=generator),
            ChromaticTranslation(generator=generator),
            ChromaticJitter(generator=generator),
            RandomAttributeDropout(p=self.attribute_dropout, generator=generator),
        ):
            data = transform(data)
        return data


@dataclass(frozen=True)
class ObjectAugment(BaseTransform):
    """Random changes of a single object, moved to mean 0 and norm 1.

    Point dropout, one scale for each axis (2/3 to 3/2), a rotation about z, and jitter (0.01, at most 0.05). A shift
    would be undone where `PointInputs` centers the object.

    Args:
        rotate: By how many degrees at most; 0 where all objects stand the same way.
        attribute_dropout: How often colours, normals and intensities are left out.
        generator: Source of randomness.
    """

    rotate: float = 180.0
    attribute_dropout: float = 0.0
    generator: torch.Generator | None = None

    def forward(self, data: Data) -> Data:
        """Apply to one cloud."""
        check_data(data)
        pos = data.pos - data.pos.mean(0)
        data.pos = pos / pos.norm(dim=1).max().clamp_min(1e-12)
        for transform in (
            RandomPointDropout(generator=self.generator),
            RandomScaling(2 / 3, 3 / 2, axes=True, generator=self.generator),
            RandomRotation(self.rotate, "z", generator=self.generator),
            RandomPointJitter(0.01, 0.05, generator=self.generator),
            RandomAttributeDropout(p=self.attribute_dropout, generator=self.generator),
        ):
            data = transform(data)
        return data


def rotated(data: Data, angle: float, axis: Axis = "z") -> Data:
    """A cloud turned by an angle in radians about an axis through the center of its bounding box, with its normals."""
    data = data.__copy__()
    first, second = [i for i in range(3) if i != "xyz".index(axis)]
    turn = torch.eye(3, dtype=data.pos.dtype, device=data.pos.device)
    turn[first, first] = turn[second, second] = math.cos(angle)
    turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
    center = _center(data.pos)
    data.pos = (data.pos - center) @ turn.T + center
    if data.get("normal") is not None:
        data.normal = data.normal @ turn.to(data.normal).T
    return data


def mirrored(data: Data, axis: int) -> Data:
    """A cloud mirrored in a coordinate, at the center of its bounding box, with its normals."""
    data = data.__copy__()
    sign = torch.ones(3, dtype=data.pos.dtype, device=data.pos.device)
    sign[axis] = -1
    center = _center(data.pos)
    data.pos = (data.pos - center) * sign + center
    if data.get("normal") is not None:
        data.normal = data.normal * sign.to(data.normal)
    if data.get("face") is not None:  # seen from outside, its corners go round the other way
        data.face = data.face.flip(0)
    return data


def merged(first: Data, second: Data) -> Data:
    """Two scenes as one, both with the center of their bounding boxes in x and y, and their lowest z, at 0.

    What only one of them has is left out; of what is no row for each point, such as the name, the first one's stays.
    """
    first, second = CenterShift()(first), CenterShift()(second)
    rows = [name for name in _rows(first) if name in _rows(second)]
    out = Data(**{name: value for name, value in first.to_dict().items() if name not in _rows(first)})
    for name in rows:
        out[name] = torch.cat([first[name], second[name].to(first[name])])
    return out


def _rows(data: Data) -> list[str]:
    """Names of what has a row for each point."""
    count = data.pos.size(0)
    return [
        name
        for name, value in data.to_dict().items()
        if isinstance(value, Tensor) and value.dim() and value.size(0) == count and name not in _OF_THE_WHOLE
    ]


_OF_THE_WHOLE = ("face", "category", "origin")


def _take(data: Data, index: Tensor) -> Data:
    """Some of the points, with all that has a row for each."""
    rows = _rows(data)
    return Data(**{name: value[index] if name in rows else value for name, value in data.to_dict().items()})


def _center(pos: Tensor) -> Tensor:
    return (pos.amin(0) + pos.amax(0)) / 2


def _uniform(count: int, generator: torch.Generator | None) -> Tensor:
    return torch.rand(count, generator=generator)


def _happens(p: float, generator: torch.Generator | None) -> bool:
    """Whether something that happens with probability ``p`` does. Always draws a number."""
    return bool(_uniform(1, generator) < p)
