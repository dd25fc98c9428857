"""Classify point clouds: networks trained with several seeds on BIMNet10, or on any clouds that have one label each.

python examples/points/classification.py --data bimnet10 --networks pointnet2_ssg point_transformer --seeds 5

Prints the accuracy on the test split of every run, and the mean and standard deviation over seeds. With --hold-out 0.2,
networks are measured on that share of the training clouds instead, and the test split is not touched: so the settings
below were chosen. Runs that are in the output folder already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from geoattn.data import RandomPointDropout, RandomPointJitter, RandomRotation, RandomScaling, hold_out
from geoattn.models import load_model
from geoattn.models.classification import ClassificationTask
from geoattn.train import TrainConfig, evaluate, fit

# Small enough for one core: fewer centers, neighbors and features than the authors' networks have.
NETWORKS: dict[str, dict[str, Any]] = {
    "pointnet2_ssg": {"centers": (128, 32), "neighbors": 0.5, "width": 0.5},
    "pointnet2_msg": {"centers": (128, 32), "neighbors": 0.25, "width": 0.5},
    "point_transformer": {"channels": (32, 64, 128, 256), "neighbors": (8, 16, 16, 16)},
    "point_transformer_v3": {
        "grid_size": 0.02,
        "channels": (32, 64, 128),
        "depths": (1, 1, 1),
        "heads": (2, 4, 8),
        "strides": (2, 2),
        "patch_size": 128,
    },
}


@dataclass(frozen=True)
class Augment(BaseTransform):
    """Small changes of an object, whose proportions tell what it is, and any heading where it does not matter."""

    rotate: float = 0.0
    generator: torch.Generator | None = None

    def forward(self, data: Data) -> Data:
        """Apply to one cloud."""
        pos = data.pos - data.pos.mean(0)
        data.pos = pos / pos.norm(dim=1).max()
        data = RandomPointDropout(generator=self.generator)(data)
        data = RandomScaling(0.9, 1.1, axes=True, generator=self.generator)(data)
        data = RandomRotation(self.rotate, "z", generator=self.generator)(data)
        return RandomPointJitter(0.01, 0.05, generator=self.generator)(data)


@dataclass(frozen=True)
class ObjectTask(ClassificationTask):
    """Classification with these changes.

    Attributes:
        rotate: By how many degrees objects are turned about z, at most.
    """

    rotate: float = 0.0

    def prepare(self, model: nn.Module) -> Any:
        """The network's own transform, after random changes in training."""
        return replace(super().prepare(model), augment=Augment(self.rotate))


def main() -> None:
    """Train, measure, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="bimnet10", help="a data set or a folder, as geoattn train takes them")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="what to train")
    parser.add_argument("--seeds", type=int, default=5, help="seeds are 0, 1, ...")
    parser.add_argument("--epochs", type=int, default=40, help="how often to go through the training clouds")
    parser.add_argument("--points", type=int, default=512, help="points that are read of a cloud")
    parser.add_argument("--lr", type=float, default=3e-3, help="learning rate")
    parser.add_argument("--rotate", type=float, default=0.0, help="turn training clouds by so many degrees at most")
    parser.add_argument("--hold-out", help="measure on this share of the training clouds")
    parser.add_argument("--output", type=Path, default=Path("runs/point_classification"), help="folder of the runs")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    task = ObjectTask(rotate=arguments.rotate)
    found: dict[str, list[float]] = {network: [] for network in arguments.networks}
    for seed in range(arguments.seeds):
        for network in arguments.networks:
            found[network].append(accuracy(task, network, seed, arguments))
    for network, values in found.items():
        spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
        print(f"{network}: {100 * statistics.mean(values):.1f}{spread}", flush=True)


def accuracy(task: ClassificationTask, network: str, seed: int, arguments: argparse.Namespace) -> float:
    """Of one run, which is trained if it is not there."""
    folder = arguments.output / f"{network}-{seed}"
    report = folder / "report.json"
    if not report.exists():
        samples, test = task.dataset(arguments.data, "train"), None
        if arguments.hold_out is None:
            test = task.dataset(arguments.data, "test")
        else:
            samples, test = hold_out(samples, arguments.hold_out, seed)
        torch.manual_seed(seed)
        model = task.model(samples, network, max_points=arguments.points, **NETWORKS[network])
        config = TrainConfig(
            epochs=arguments.epochs, batch_size=16, lr=arguments.lr, seed=seed, workers=0, save_every=arguments.epochs
        )
        result = fit(task, model, samples, folder, config, resume=True)
        figures = evaluate(task, load_model(result.checkpoint), test)
        report.write_text(json.dumps({"accuracy": float(figures["accuracy"]), "minutes": result.minutes}))
    content = json.loads(report.read_text())
    print(f"  {network}, seed {seed}: {content['accuracy']:.1%} in {content['minutes']:.1f} minutes", flush=True)
    return float(content["accuracy"])


if __name__ == "__main__":
    main()
