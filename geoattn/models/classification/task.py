"""Classification: what is particular to training and measuring networks that say what a whole mesh is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from torch import nn

from geoattn.data import load_dataset
from geoattn.data.labelled import LabelledSamples
from geoattn.metrics import classification_metrics
from geoattn.models.labels import LabelTask
from geoattn.models.network import Network
from geoattn.models.registry import create_model, register_task
from geoattn.train import Samples
from geoattn.train.task import Split

if TYPE_CHECKING:
    from torchmetrics import Metric


@register_task
@dataclass(frozen=True)
class ClassificationTask(LabelTask):
    """Classes of whole meshes: one label for each.

    Its options are those of `LabelTask`.
    """

    name: ClassVar[str] = "classification"
    network: ClassVar[str] = "surface_classifier"

    def dataset(self, data: str, split: Split, samples: int | None = None) -> LabelledSamples:
        """Meshes of which each has one label; see `geoattn.data.load_dataset`."""
        return load_dataset(data, split, samples=samples, labelled="whole")

    def model(self, samples: Samples, network: str | None = None, **options: Any) -> Network:
        """A new network for the classes of the samples."""
        return create_model(network or self.network, names=cast("LabelledSamples", samples).names, **options)

    def metrics(self, model: nn.Module) -> dict[str, Metric]:
        """Accuracy and the confusion matrix."""
        return classification_metrics(cast("Network", model).config.names)
