"""A tiny training run, with shuffling, dropout and augmentation, in a process that a test can kill.

Usage: trainee.py FOLDER JSON, where JSON may have ``config``, ``dropout``, ``augment``, ``slow``, ``state``.
"""

import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import global_mean_pool

from geoattn.train import TrainConfig, fit


@dataclass(frozen=True)
class NetConfig:
    width: int = 16
    dropout: float = 0.3


class Net(nn.Module):
    """Classify clouds by a mean over points; has weights, biases, and the running statistics of a norm."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.config = config
        self.lift = nn.Linear(3, config.width)
        self.norm = nn.BatchNorm1d(config.width) if config.dropout else nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.width, 2)

    def forward(self, batch: Batch) -> Tensor:
        hidden = self.dropout(torch.relu(self.norm(self.lift(batch.pos))))
        return self.head(global_mean_pool(hidden, batch.batch, batch.num_graphs))


class Clouds:
    """Clouds, wide along x or along y. Augmented with all three random generators if asked to."""

    def __init__(self, length: int, seed: int, augment: bool = False, slow: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.y = torch.arange(length) % 2
        axes = torch.eye(3)[self.y][:, None] + 0.5
        self.pos = torch.randn(length, 10, 3, generator=generator) * axes
        self.augment, self.slow, self.epochs = augment, slow, []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> Data:
        pos = self.pos[index]
        if self.augment:
            time.sleep(self.slow)
            pos = pos * (1 + 0.1 * np.random.rand()) + 0.1 * random.random() + 0.1 * torch.rand(3)
        return Data(pos=pos, y=self.y[index : index + 1])


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(model(batch), batch.y)


def accuracy(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    return (model(batch).argmax(1) == batch.y).sum(), batch.num_graphs


def build(dropout: float = 0.3, width: int = 16) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return Net(NetConfig(width, dropout))


def main() -> None:
    folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    model = build(options.get("dropout", 0.3))
    train_set = Clouds(options.get("length", 24), 0, options.get("augment", False), options.get("slow", 0.0))
    result = fit(
        model,
        train_set,
        loss,
        folder,
        TrainConfig(**options["config"]),
        valid_set=Clouds(7, 1),
        metric=accuracy,
        resume=True,
    )
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    torch.save({"model": model.state_dict(), "history": result.history}, folder / f"end-{rank}.pt")


if __name__ == "__main__":
    main()
