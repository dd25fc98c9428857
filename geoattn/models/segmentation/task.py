"""Segmentation: what is particular to training and measuring networks that find the parts of a mesh."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from torch import nn
from torch_geometric.data import Batch

from geoattn.data import load_dataset
from geoattn.data.labelled import Labelled, LabelledSamples
from geoattn.metrics import PartIoU, SoftEdgeAccuracy, edge_labels, segmentation_metrics
from geoattn.models.labels import LabelTask, new_network
from geoattn.models.network import Network
from geoattn.models.points.inputs import PointNetwork
from geoattn.models.registry import register_task
from geoattn.train import Samples
from geoattn.train.task import Split

if TYPE_CHECKING:
    from torchmetrics import Metric


@register_task
@dataclass(frozen=True)
class SegmentationTask(LabelTask):
    """Parts of meshes and clouds: a label for each face, vertex (or point) or edge.

    It also has the options of `LabelTask`.

    Attributes:
        labelled: What is labelled: "face", "vertex" or "edge"; "data": what the data set has labels for.
    """

    name: ClassVar[str] = "segmentation"
    network: ClassVar[str] = "surface_transformer"

    labelled: Literal["data", "face", "vertex", "edge"] = "data"

    def dataset(self, data: str, split: Split, samples: int | None = None) -> LabelledSamples:
        """Meshes or clouds of which each face, vertex or edge has a label; see `geoattn.data.load_dataset`."""
        wanted = None if self.labelled == "data" else cast("Labelled", self.labelled)
        found = load_dataset(data, split, samples=samples, labelled=wanted)
        if found.labelled == "whole":
            raise ValueError(f"{data} has one label for each whole sample: that is the task classification")
        return found

    def model(self, samples: Samples, network: str | None = None, **options: Any) -> Network:
        """A new network for the classes of the samples and for what they label, by default one for meshes or clouds."""
        labelled = cast("LabelledSamples", samples)
        cloud = len(labelled) > 0 and labelled[0].face is None
        return new_network(labelled, network or ("point_transformer_v3" if cloud else self.network), self.name, options)

    def metrics(self, model: nn.Module) -> dict[str, Metric]:
        """Accuracy, mean IoU and the confusion matrix; of parts of categories `PartIoU`, of meshes MeshCNN's metric."""
        config = cast("Network", model).config
        found = segmentation_metrics(config.names)
        if not isinstance(model, PointNetwork):
            return {**found, "soft_edge_accuracy": SoftEdgeAccuracy()}
        if parts := config.parts_of_category:
            return {**found, "instance_iou": PartIoU(parts), "class_iou": PartIoU(parts, "class")}
        return found

    def measure(self, metrics: Mapping[str, Metric], model: nn.Module, batch: Batch) -> None:
        """Update the metrics."""
        logits = model(batch)
        self.update({name: m for name, m in metrics.items() if name != "soft_edge_accuracy"}, logits, batch)
        labelled = cast("Network", model).config.labelled
        if "edge_soft" not in batch or labelled == "vertex":
            return
        meshes = batch.to_data_list()
        of_mesh = logits.softmax(-1).split([mesh.corner_index.size(1) for mesh in meshes])
        for mesh, mine in zip(meshes, of_mesh, strict=True):
            on_edges = mine.argmax(-1) if labelled == "edge" else edge_labels(mine, mesh.face)
            metrics["soft_edge_accuracy"].update(on_edges, mesh.edge_soft, mesh.vertex, mesh.face)
