"""A tiny training run that a test can import, or start as a process of its own and kill.

Usage: trainee.py FOLDER JSON, where JSON is {name: options of ``train``}; the run goes to FOLDER/name.
"""

import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import global_mean_pool
from torchmetrics import Metric

from geoattn.train import Task, TrainConfig, fit


@dataclass(frozen=True)
class NetConfig:
    width: int = 16
    dropout: float = 0.3
    batch_norm: bool = True


class Net(nn.Module):
    """Classify clouds by a mean over points, with dropout and a norm with or without running statistics."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.config = config
        self.lift = nn.Linear(3, config.width)
        self.norm = nn.BatchNorm1d(config.width) if config.batch_norm else nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.width, 2)

    def forward(self, batch: Batch) -> Tensor:
        hidden = self.dropout(torch.relu(self.norm(self.lift(batch.pos))))
        return self.head(global_mean_pool(hidden, batch.batch, batch.num_graphs))


class Clouds:
    """Clouds that are long along x or along y; ``augment`` draws from all three global generators."""

    def __init__(self, length: int, seed: int, augment: bool = False, slow: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.y = torch.arange(length) % 2
        scale = 0.3 + 2 * torch.eye(3)[self.y][:, None]
        self.pos = torch.randn(length, 10, 3, generator=generator) * scale
        self.augment, self.slow = augment, slow

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> Data:
        time.sleep(self.slow)
        pos = self.pos[index]
        if self.augment:
            noise = np.random.rand()  # noqa: NPY002  # as augmentations in the wild do
            pos = pos * (1 + 0.1 * noise) + 0.1 * random.random() + 0.1 * torch.rand(3)
        return Data(pos=pos, y=self.y[index : index + 1])


class Mean(Metric):
    """The mean of what it is updated with."""

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, total: Tensor | float, count: int) -> None:
        self.total += total
        self.count += count

    def compute(self) -> Tensor:
        return self.total / self.count


@dataclass(frozen=True)
class LongAlong(Task):
    """Along which axis a cloud is long. Clouds are read anew in each epoch, and may be augmented then."""

    name = "long_along"
    network = ""
    copies: int | None = None

    def dataset(self, data: str, split: str, samples: int | None = None) -> Clouds:
        return Clouds(samples or 24, ("train", "valid", "test").index(split), augment=split == "train")

    def model(self, samples: Clouds, network: str | None = None, **options: object) -> Net:
        return build(**options)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(model(batch), batch.y)

    def metrics(self, model: nn.Module) -> dict[str, Metric]:
        return {"accuracy": Mean()}

    def measure(self, metrics: dict[str, Metric], model: nn.Module, batch: Batch) -> None:
        metrics["accuracy"].update((model(batch).argmax(1) == batch.y).sum(), batch.num_graphs)


def build(**config: object) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return Net(NetConfig(**config))


def cpu() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def train(folder: Path, config: dict, model: dict, length: int, slow: float, augment: bool) -> dict:
    """Train, and say how it ended."""
    net = build(**model)
    train_set, valid_set = Clouds(length, 0, augment, slow), Clouds(7, 1)
    fit(LongAlong(), net, train_set, folder, TrainConfig(**config), valid_samples=valid_set, resume=True)
    history = json.loads((folder / "history.json").read_text())
    return {"model": net.state_dict(), "history": history}


if __name__ == "__main__":
    for name, options in json.loads(sys.argv[2]).items():
        end = train(Path(sys.argv[1]) / name, **options)
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        torch.save(end, Path(sys.argv[1]) / f"{name}-{rank}.pt")
