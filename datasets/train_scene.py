"""Train the checkpoint `geoattn/models/segmentation/assets/scene` on rooms made at random.

python datasets/train_scene.py --output runs/scene
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch_geometric.data import Data

from geoattn.data import (
    PointInputs,
    RandomAttributeDropout,
    RandomMirror,
    RandomPointDropout,
    RandomPointJitter,
    RandomRotation,
    RandomScaling,
    Rooms,
    crop_to_sphere,
)
from geoattn.data.labelled import LabelledSubset
from geoattn.models.segmentation import SegmentationTask
from geoattn.train import TrainConfig, evaluate, fit
from geoattn.train.progress import progress_bar

NETWORK = {
    "features": ("height", "normal"),
    "grid_size": 0.02,
    "channels": (16, 32, 48, 64, 96),
    "depths": (1, 1, 1, 2, 1),
    "heads": (1, 2, 3, 4, 6),
    "strides": (2, 2, 2, 2),
    "decoder_channels": (32, 32, 48, 64),
    "decoder_depths": (1, 1, 1, 1),
    "decoder_heads": (2, 2, 3, 4),
    "patch_size": 256,
    "drop_path": 0.05,
    "stale_skip": False,
}


@dataclass(frozen=True)
class Vary:
    """A random part of a scene: turned, mirrored, scaled and thinned a little, sometimes without normals."""

    transform: PointInputs
    crop: int

    def __call__(self, sample: Data, generator: torch.Generator | None, /) -> Data:
        """The sample itself without a generator."""
        cloud = sample.clone()
        if generator is None:
            return self.transform(cloud)
        if torch.rand((), generator=generator) < 0.5:  # as of a scan of which nobody knows from where it was made
            cloud.normal = torch.where(cloud.normal[:, 2:] < 0, -cloud.normal, cloud.normal)
        for change in (
            RandomPointDropout(generator=generator),
            RandomRotation(180, "z", p=1.0, generator=generator),
            RandomRotation(4, "x", p=0.5, generator=generator),
            RandomRotation(4, "y", p=0.5, generator=generator),
            RandomScaling(generator=generator),
            RandomMirror(generator=generator),
            RandomPointJitter(0.001, 0.004, generator=generator),
            RandomAttributeDropout(("normal",), p=0.1, generator=generator),
        ):
            cloud = change(cloud)
        inputs = PointInputs(self.transform.features, self.transform.grid_size, generator=generator)
        return crop_to_sphere(inputs(cloud), self.crop, generator)


@dataclass(frozen=True)
class SceneTask(SegmentationTask):
    """Segmentation without waves in tables, which the published recipe makes."""

    def prepare(self, model: nn.Module) -> Callable[..., Data]:
        """Random changes, and the network's own transform."""
        return Vary(model.input_transform(), self.crop)  # type: ignore[operator]


def kept(samples: Rooms) -> LabelledSubset:
    """The samples, made once."""
    subset = LabelledSubset(samples, range(len(samples)))
    made = []
    for i in progress_bar(iterable=range(len(samples)), desc="making rooms"):
        room = samples[i]
        made.append(Data(pos=room.pos, normal=room.normal, y=room.y, name=room.name))
    subset.get = made.__getitem__  # type: ignore[method-assign]
    return subset


def main() -> None:
    """Train and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/scene"), help="checkpoints go here")
    parser.add_argument("--rooms", type=int, default=200)
    parser.add_argument("--held-out", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=25.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rooms, held_out = kept(Rooms(options.rooms, points=50_000)), kept(Rooms(options.held_out, seed=1, points=50_000))
    task = SceneTask(crop=8000)
    model = task.model(rooms, "point_transformer_v3", **NETWORK)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    config = TrainConfig(epochs=50, minutes=options.minutes, batch_size=2, lr=3e-3, workers=0)
    fit(task, model, rooms, options.output, config, resume=True)
    for name, value in evaluate(task, model, held_out).items():
        if value.ndim == 0:
            print(f"{name} {float(value):.3f}")


if __name__ == "__main__":
    main()
