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
from geoattn.train import Samples, TrainConfig, TrainResult, fit


class Prepared:
    """Samples turned into elements once, each in several random deformations that take turns over the epochs.

    Args:
        meshes: Labelled meshes.
        transform: Makes the elements.
        copies: How many of each: the mesh itself and ``copies - 1`` of `geoattn.data.RandomDeform`.
        seed: Of the deformations.
        title: Shown at the progress bar.
    """

    def __init__(
        self, meshes: Samples, transform: MeshElements, copies: int = 1, seed: int = 0, title: str = "preparing"
    ) -> None:
        deform = RandomDeform(torch.Generator().manual_seed(seed))
        self.copies = copies
        self.epoch = 0
        self.samples: list[list[Data]] = []
        with tqdm(total=len(meshes) * copies, desc=title, unit="mesh") as bar:
            for i in range(len(meshes)):
                mesh = Data(pos=meshes[i].pos, face=meshes[i].face, y=meshes[i].y)
                self.samples.append([])
                for copy in range(copies):
                    self.samples[-1].append(transform(mesh if copy == 0 else deform(mesh)))
                    bar.update()

    def set_epoch(self, epoch: int) -> None:
        """Choose the copies of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Data:
        return self.samples[index][(self.epoch + index) % self.copies]


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
    train_set = Prepared(meshes, transform, copies, config.seed, "preparing training meshes")
    valid_set = None if valid_meshes is None else Prepared(valid_meshes, transform, title="preparing validation meshes")
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
