"""Networks of clouds on rooms that they have not seen: the same rooms and the same number of steps for each.

python -m benchmarks.rooms --output runs/rooms
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch

from geoattn.data import LabelledSamples, Rooms
from geoattn.data.labelled import LabelledSubset
from geoattn.models.segmentation import SegmentationTask
from geoattn.train import TrainConfig, evaluate, fit

# Small, of about the same time for a step, but for PointNet++, which is faster at any size.
NETWORKS = {
    "point_transformer_v3": {
        "channels": (16, 32, 64, 128),
        "depths": (1, 1, 2, 1),
        "heads": (1, 2, 4, 8),
        "strides": (2, 2, 2),
        "decoder_channels": (16, 32, 64),
        "decoder_depths": (1, 1, 1),
        "decoder_heads": (1, 2, 4),
        "patch_size": 256,
        "drop_path": 0.0,
    },
    "point_transformer": {"channels": (16, 32, 64, 128), "blocks": (1, 1, 2, 1), "neighbors": (8, 16, 16, 16)},
    "pointnet2_ssg": {},
}


def main() -> None:
    """Train, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/rooms"), help="checkpoints go here")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rooms", type=int, default=100, help="to train on")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rooms, held_out = kept(Rooms(options.rooms, seed=0, points=12_000)), kept(Rooms(20, seed=2, points=12_000))
    print("| network | parameters | mean IoU | accuracy | minutes |\n|---|---|---|---|---|")
    for name in options.networks:
        found = [run(name, seed, rooms, held_out, options) for seed in options.seeds]
        size, iou, accuracy, minutes = zip(*found, strict=True)
        print(
            f"| {name} | {size[0]:,} | {spread(iou)} | {spread(accuracy)} | {statistics.mean(minutes):.1f} |",
            flush=True,
        )


def kept(samples: Rooms) -> LabelledSamples:
    """The samples, made once."""
    made = [samples[i] for i in range(len(samples))]
    subset = LabelledSubset(samples, range(len(samples)))
    subset.get = made.__getitem__  # type: ignore[method-assign]
    return subset


def run(
    name: str, seed: int, rooms: LabelledSamples, held_out: LabelledSamples, options: argparse.Namespace
) -> tuple[int, float, float, float]:
    """Parameters, mean IoU, accuracy and minutes of a run."""
    torch.manual_seed(seed)
    task = SegmentationTask(copies=1)
    model = task.model(rooms, name, grid_size=0.06, **NETWORKS[name])
    config = TrainConfig(epochs=options.epochs, batch_size=2, lr=4e-3, seed=seed, workers=0)
    result = fit(task, model, rooms, options.output / f"{name}-{seed}", config, resume=True)
    figures = evaluate(task, model, held_out)
    size = sum(p.numel() for p in model.parameters())
    iou, accuracy = float(figures["mean_iou"]), float(figures["accuracy"])
    print(
        f"<!-- {name} {seed}: mean IoU {iou:.1%}, accuracy {accuracy:.1%}, {result.minutes:.1f} minutes -->", flush=True
    )
    return size, iou, accuracy, result.minutes


def spread(values: tuple[float, ...]) -> str:
    """Mean and standard deviation in percent."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * deviation:.1f} %"


if __name__ == "__main__":
    main()
