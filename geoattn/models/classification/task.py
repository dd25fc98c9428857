"""Classification: what is particular to training and measuring networks that say what a whole mesh is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from torch import nn

from geoattn.data import load_dataset
from geoattn.data.labelled import LabelledSamples
from geoattn.metrics import classification_metrics
from geoattn.models.labels import LabelTask, new_network
from geoattn.models.network import Network
from geoattn.models.registry import register_task
from geoattn.train import Samples
from geoattn.train.task import Split

if TYPE_CHECKING:
    from torchmetrics import Metric


@register_task
@dataclass(frozen=True)
class ClassificationTask(LabelTask):
    """Classes of whole meshes and clouds: one label for each.

    Its options are those of `LabelTask`.
    """

    name: ClassVar[str] = "classification"
    network: ClassVar[str] = "surface_classifier"

    def dataset(self, data: str, split: Split, samples: int | None = None) -> LabelledSamples:
        """Meshes or clouds of which each has one label; see `geoattn.data.load_dataset`."""
        return load_dataset(data, split, samples=samples, labelled="whole")

    def model(self, samples: Samples, network: str | None = None, **options: Any) -> Network:
        """A new network for the classes of the samples, by default one for meshes or one for clouds."""
        labelled = cast("LabelledSamples", samples)
        cloud = len(labelled) > 0 and labelled[0].face is None
        return new_network(labelled, network or ("pointnet2_ssg" if cloud else self.network), self.name, options)

    def metrics(self, model: nn.Module) -> dict[str, Metric]:
        """Accuracy and the confusion matrix."""
        return classification_metrics(cast("Network", model).config.names)
