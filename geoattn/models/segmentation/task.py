"""Training and evaluation of a `SurfaceTransformer`: what is particular to it, around `geoattn.train`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data
from tqdm import tqdm

from geoattn.data.transforms import MeshElements, RandomDeform
from geoattn.metrics import Accuracy, MeanIoU, SoftEdgeAccuracy, edge_labels
from geoattn.models.segmentation.surface_transformer import SurfaceTransformer
from geoattn.train import Prepared, Samples, TrainConfig, TrainResult, fit


def loss(model: nn.Module, batch: Data) -> Tensor:
    """Cross-entropy with labels smoothed by 0.1."""
    return F.cross_entropy(model(batch), batch.y, label_smoothing=0.1)


def accuracy(model: nn.Module, batch: Data) -> dict[str, tuple[Tensor, int]]:
    """Right labels and their number."""
    return {"accuracy": ((model(batch).argmax(-1) == batch.y).sum(), batch.y.numel())}


def train(
    model: SurfaceTransformer,
    meshes: Samples,
    folder: str | Path,
    config: TrainConfig,
    *,
    valid_meshes: Samples | None = None,
    copies: int = 4,
    resume: bool = False,
) -> TrainResult:
    """Train ``model`` on labelled meshes; see `geoattn.train.fit`.

    Args:
        model: Its config says what attends and what is labelled.
        meshes: Samples with ``pos``, ``face`` and ``y``, one label for each labelled thing or one in all.
        folder: Where checkpoints, history and curves go.
        config: How to train.
        valid_meshes: To measure accuracy on after each epoch.
        copies: How many deformations of each mesh to train on, itself included.
        resume: Go on where a run in ``folder`` was stopped.
    """
    transform = MeshElements(model.config.element, model.config.labelled)

    def prepare(mesh: Data, generator: torch.Generator | None) -> Data:
        mesh = Data(pos=mesh.pos, face=mesh.face, y=mesh.y)
        return transform(mesh if generator is None else RandomDeform(generator)(mesh))

    train_set = Prepared(meshes, prepare, copies, config.seed, title="preparing training meshes")
    valid_set = None if valid_meshes is None else Prepared(valid_meshes, prepare, title="preparing validation meshes")
    return fit(model, train_set, loss, folder, config, valid_set=valid_set, metric=accuracy, resume=resume)


@torch.no_grad()
def evaluate(model: SurfaceTransformer, meshes: Samples) -> dict[str, float]:
    """Measure on labelled meshes.

    Returns:
        ``accuracy`` and ``mean_iou`` (of the labelled things; ``accuracy`` alone where a whole mesh has one label); for
        meshes with ``edge_soft``, also MeshCNN's ``soft_edge_accuracy``, where the network labels faces or edges.
    """
    config = model.config
    transform = MeshElements(config.element, config.labelled)
    right, iou, soft = Accuracy(len(config.names)), MeanIoU(len(config.names)), SoftEdgeAccuracy()
    device = next(model.parameters()).device
    model.eval()
    for i in tqdm(range(len(meshes)), "evaluating", unit="mesh"):
        mesh = meshes[i]
        logits = model(transform(Data(pos=mesh.pos, face=mesh.face)).to(device)).to(mesh.face.device)
        prediction = logits.argmax(-1)
        for metric in (right, iou, soft):
            metric.to(mesh.face.device)
        right.update(prediction, mesh.y)
        iou.update(prediction, mesh.y)
        if "edge_soft" in mesh and config.labelled != "vertex":
            on_edges = prediction if config.labelled == "edge" else edge_labels(logits.softmax(-1), mesh.face)
            soft.update(on_edges, mesh.edge_soft, mesh.pos, mesh.face)
    found = {"accuracy": float(right.compute())}
    if not config.whole:
        found["mean_iou"] = float(iou.compute())
    if soft.meshes:
        found["soft_edge_accuracy"] = float(soft.compute())
    return found
