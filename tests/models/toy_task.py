"""A fourth task, whole: which way a cloud of points leans. Nothing else has to change for it."""

from dataclasses import dataclass

import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.nn import global_mean_pool

from geoattn.metrics import Accuracy
from geoattn.models import Network, create_model, register_model, register_task
from geoattn.train import Task


@dataclass(frozen=True)
class LeaningNetworkConfig:
    """What a `LeaningNetwork` is made of.

    Attributes:
        channels: Features of a point.
    """

    channels: int = 8


@register_model("leaning_network", LeaningNetworkConfig, "leaning")
class LeaningNetwork(Network):
    """A perceptron on points, averaged over each cloud."""

    def __init__(self, config: LeaningNetworkConfig):
        super().__init__()
        self.config = config
        self.layers = nn.Sequential(nn.Linear(3, config.channels), nn.ReLU(), nn.Linear(config.channels, 2))

    def forward(self, batch):
        return global_mean_pool(self.layers(batch.pos), batch.batch)


@register_task
@dataclass(frozen=True)
class LeaningTask(Task):
    """Which way a cloud of points leans.

    Attributes:
        axis: Along which axis: 0, 1 or 2.
    """

    name = "leaning"
    network = "leaning_network"
    axis: int = 0

    def dataset(self, data, split, samples=None):
        # What --data says would choose the data; these are random, whatever it says.
        clouds = torch.randn(samples or 64, 20, 3, generator=torch.Generator().manual_seed(len(split)))
        return [Data(pos=pos, y=(pos[:, self.axis].mean() > 0).long()) for pos in clouds]

    def model(self, samples, network=None, **options):
        return create_model(network or self.network, **options)

    def loss(self, model, batch):
        return nn.functional.cross_entropy(model(batch), batch.y)

    def metrics(self, model):
        return {"accuracy": Accuracy(2)}

    def measure(self, metrics, model, batch):
        metrics["accuracy"].update(model(batch), batch.y)
