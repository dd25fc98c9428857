"""How well parts were found, exactly as the benchmarks count it. Each metric is updated mesh by mesh."""

from __future__ import annotations

import torch
from torch import Tensor

from geoattn.geometry import edges, face_areas


class Accuracy:
    """Share of right labels, all meshes pooled: "hard face accuracy" where the labels are faces'.

    As DiffusionNet (Sharp et al. 2022) and PD-MeshNet (Milano et al. 2020) count it; faces are not weighted by area.
    """

    def __init__(self) -> None:
        self.right = 0
        self.count = 0

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count one mesh: predicted and true labels ``[M]``."""
        _check_labels(prediction, target)
        self.right += int((prediction == target).sum())
        self.count += target.numel()

    def compute(self) -> float:
        """The value so far, in [0, 1]; NaN before any update."""
        return self.right / self.count if self.count else float("nan")


class MeanIoU:
    """Intersection over union of each class, all meshes pooled, averaged over the classes that occur.

    A class occurs if it is predicted or true anywhere.

    Args:
        num_classes: Number of classes ``K``.
    """

    def __init__(self, num_classes: int) -> None:
        self.intersection = torch.zeros(num_classes, dtype=torch.int64)
        self.union = torch.zeros(num_classes, dtype=torch.int64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count one mesh: predicted and true labels ``[M]``."""
        _check_labels(prediction, target)
        right, predicted, true = (
            torch.bincount(labels, minlength=len(self.union)).cpu()
            for labels in (target[prediction == target], prediction, target)
        )
        self.intersection += right
        self.union += predicted + true - right

    def compute(self) -> float:
        """The value so far, in [0, 1]; NaN before any update."""
        occurs = self.union > 0
        return float((self.intersection[occurs] / self.union[occurs]).mean())


class SoftEdgeAccuracy:
    """MeshCNN's segmentation accuracy (Hanocka et al. 2019): generous at the borders of parts.

    An edge counts as right if the predicted label is one of its admissible ones. It is weighted by its area, a third of
    that of each of its faces, over the mesh's; the sums are averaged over meshes.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self.meshes = 0

    def update(self, prediction: Tensor, edge_soft: Tensor, pos: Tensor, face: Tensor) -> None:
        """Count one mesh.

        Args:
            prediction: Predicted label of each edge ``[E]``, edges numbered as in `geoattn.geometry.edges`.
            edge_soft: Weight of each label on each edge ``[E, K]``; labels with a weight above 0 are admissible.
            pos: ``[V, 3]``.
            face: ``[3, F]``.
        """
        if prediction.numel() != edge_soft.size(0):
            raise ValueError(f"expected one label for each of {edge_soft.size(0)} edges, got {prediction.numel()}")
        right = edge_soft.gather(1, prediction.unsqueeze(1)).squeeze(1) > 0
        area = face_areas(pos.double(), face)
        share = area.new_zeros(len(right)).index_add(0, edges(face).face_edge.flatten(), (area / 3).repeat(3))
        self.total += float(share[right].sum() / share.sum())
        self.meshes += 1

    def compute(self) -> float:
        """The value so far, in [0, 1]; NaN before any update."""
        return self.total / self.meshes if self.meshes else float("nan")


def edge_labels(probability: Tensor, face: Tensor) -> Tensor:
    """Label each edge with what its faces together find most probable.

    Args:
        probability: Of each class at each face ``[F, K]``.
        face: ``[3, F]``.

    Returns:
        ``[E]``, edges numbered as in `geoattn.geometry.edges`.
    """
    topology = edges(face)
    summed = probability.new_zeros(topology.edge.size(1), probability.size(1))
    return summed.index_add(0, topology.face_edge.flatten(), probability.repeat(3, 1)).argmax(1)


def _check_labels(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape:
        raise ValueError(f"expected as many labels as {tuple(target.shape)}, got {tuple(prediction.shape)}")
