"""Segmentation: what is particular to training and measuring networks that find the parts of a mesh."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from torch import nn
from torch_geometric.data import Batch

from geoattn.data import load_dataset
from geoattn.data.labelled import Labelled, LabelledSamples
from geoattn.metrics import SoftEdgeAccuracy, edge_labels, segmentation_metrics
from geoattn.models.labels import LabelTask
from geoattn.models.network import Network
from geoattn.models.registry import create_model, model_config, register_task
from geoattn.train import Samples
from geoattn.train.task import Split

if TYPE_CHECKING:
    from torchmetrics import Metric


@register_task
@dataclass(frozen=True)
class SegmentationTask(LabelTask):
    """Parts of meshes: a label for each face, vertex or edge.

    It also has the options of `LabelTask`.

    Attributes:
        labelled: What is labelled: "face", "vertex" or "edge"; "data": what the data set has labels for.
    """

    name: ClassVar[str] = "segmentation"
    network: ClassVar[str] = "surface_transformer"

    labelled: Literal["data", "face", "vertex", "edge"] = "data"

    def dataset(self, data: str, split: Split, samples: int | None = None) -> LabelledSamples:
        """Meshes of which each face, vertex or edge has a label; see `geoattn.data.load_dataset`."""
        wanted = None if self.labelled == "data" else cast("Labelled", self.labelled)
        found = load_dataset(data, split, samples=samples, labelled=wanted)
        if found.labelled == "whole":
            raise ValueError(f"{data} has one label for each whole sample: that is the task classification")
        return found

    def model(self, samples: Samples, network: str | None = None, **options: Any) -> Network:
        """A new network for the classes of the samples and for what they label."""
        meshes = cast("LabelledSamples", samples)
        some = [meshes[i] for i in range(min(len(meshes), 20))]
        if any(mesh.face is None for mesh in some):
            raise ValueError("the samples are point clouds, and there is no network yet that segments those")
        facts = {
            "names": meshes.names,
            "labelled": meshes.labelled,
            "faces": max(mesh.face.size(1) for mesh in some),
        }
        name = network or self.network
        known = {field.name for field in fields(model_config(name))}
        return create_model(name, **{key: fact for key, fact in facts.items() if key in known}, **options)

    def metrics(self, model: nn.Module) -> dict[str, Metric]:
        """Accuracy, mean IoU, the confusion matrix and MeshCNN's soft edge accuracy, for samples with ``edge_soft``."""
        return {**segmentation_metrics(cast("Network", model).config.names), "soft_edge_accuracy": SoftEdgeAccuracy()}

    def measure(self, metrics: Mapping[str, Metric], model: nn.Module, batch: Batch) -> None:
        """Update the metrics."""
        logits = model(batch)
        prediction = logits.argmax(-1)
        of_labels = {name: metric for name, metric in metrics.items() if name != "soft_edge_accuracy"}
        for metric in of_labels.values():
            metric.update(prediction, batch.y)
        labelled = cast("Network", model).config.labelled
        if "edge_soft" not in batch or labelled == "vertex":
            return
        meshes = batch.to_data_list()
        of_mesh = logits.softmax(-1).split([mesh.corner_index.size(1) for mesh in meshes])
        for mesh, mine in zip(meshes, of_mesh, strict=True):
            on_edges = mine.argmax(-1) if labelled == "edge" else edge_labels(mine, mesh.face)
            metrics["soft_edge_accuracy"].update(on_edges, mesh.edge_soft, mesh.vertex, mesh.face)
