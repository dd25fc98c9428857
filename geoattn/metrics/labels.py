"""How well labels were found: overall accuracy, mean IoU, the confusion matrix.

IoU and confusion are torchmetrics'. Its accuracy is not used, which is 0 where nothing was counted; nor its checks,
which let labels that are no class be counted elsewhere. All counts are int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from geoattn._optional import require

if TYPE_CHECKING:
    from torchmetrics import Metric
    from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex
else:
    Metric = require("torchmetrics").Metric
    MulticlassConfusionMatrix = require("torchmetrics.classification").MulticlassConfusionMatrix
    MulticlassJaccardIndex = require("torchmetrics.classification").MulticlassJaccardIndex

IGNORED = -1  # as geoattn.data.IGNORED


def segmentation_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """The metrics of a task that labels faces, vertices, edges or points; the first is the one to choose a model by.

    Args:
        names: Of the classes, ``K``.

    Returns:
        ``accuracy`` (`Accuracy`), ``mean_iou`` (`MeanIoU`) and ``confusion`` (`ConfusionMatrix`), all of them updated
        with predicted labels ``[M]``, or scores ``[M, K]``, and true labels ``[M]``.
    """
    count = len(names)
    return {"accuracy": Accuracy(count), "mean_iou": MeanIoU(count), "confusion": ConfusionMatrix(count)}


def classification_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """The metrics of a task that gives each sample one label; the first is the one to choose a model by.

    Args:
        names: Of the classes, ``K``.

    Returns:
        ``accuracy`` (`Accuracy`) and ``confusion`` (`ConfusionMatrix`), both of them updated with predicted labels
        ``[B]``, or scores ``[B, K]``, and true labels ``[B]``.
    """
    return {"accuracy": Accuracy(len(names)), "confusion": ConfusionMatrix(len(names))}


class Accuracy(Metric):
    """Share of right labels, all samples pooled: "hard face accuracy" where the labels are faces'.

    As DiffusionNet (Sharp et al. 2022) and PD-MeshNet (Milano et al. 2020) count it; faces are not weighted by area.

    Args:
        num_classes: Number of classes ``K``.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    right: Tensor
    count: Tensor

    def __init__(self, num_classes: int) -> None:
        _check_num_classes(num_classes)
        super().__init__()
        self.num_classes = num_classes
        self.add_state("right", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count predicted labels ``[M]``, or scores ``[M, K]``, against true labels ``[M]`` (-1: not counted).

        Raises:
            ValueError: If the shapes do not fit, or a label is no class.
        """
        preds, target = _counted(preds, target, self.num_classes)
        self.right += (preds == target).sum()
        self.count += target.numel()

    def compute(self) -> Tensor:
        """The value so far, in [0, 1], float64; NaN if nothing was counted."""
        return self.right.double() / self.count


class MeanIoU(MulticlassJaccardIndex):
    """Intersection over union of each class, all samples pooled, averaged over the classes that occur.

    A class occurs if it is predicted or true anywhere. In [0, 1]; NaN if nothing was counted.

    Args:
        num_classes: Number of classes ``K``.
    """

    def __init__(self, num_classes: int) -> None:
        _check_num_classes(num_classes)
        super().__init__(num_classes, ignore_index=IGNORED, validate_args=False)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count predicted labels ``[M]``, or scores ``[M, K]``, against true labels ``[M]`` (-1: not counted).

        Raises:
            ValueError: If the shapes do not fit, or a label is no class.
        """
        super().update(*_counted(preds, target, self.num_classes))


class ConfusionMatrix(MulticlassConfusionMatrix):
    """How often each class was predicted for each true class, all samples pooled.

    Its value are the counts ``[K, K]``, int64: rows are true classes, columns predicted ones.

    Args:
        num_classes: Number of classes ``K``.
    """

    def __init__(self, num_classes: int) -> None:
        _check_num_classes(num_classes)
        super().__init__(num_classes, ignore_index=IGNORED, validate_args=False)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count predicted labels ``[M]``, or scores ``[M, K]``, against true labels ``[M]`` (-1: not counted).

        Raises:
            ValueError: If the shapes do not fit, or a label is no class.
        """
        super().update(*_counted(preds, target, self.num_classes))


def class_iou(confusion: Tensor) -> Tensor:
    """Intersection over union of each class ``[K]`` in float64; NaN for a class neither predicted nor true anywhere.

    Its mean over the classes that occur is `MeanIoU`.

    Args:
        confusion: Counts ``[K, K]``, as `ConfusionMatrix` has them.
    """
    confusion = torch.atleast_2d(confusion)  # torchmetrics makes a scalar of what has one element
    right = confusion.diagonal()
    return right.double() / (confusion.sum(0) + confusion.sum(1) - right)


def _check_num_classes(num_classes: int) -> None:
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")


def _counted(preds: Tensor, target: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Predicted and true labels of what is not ignored, both of them known to be classes."""
    if preds.shape == (*target.shape, num_classes):
        preds = preds.argmax(-1)
    if preds.shape != target.shape:
        raise ValueError(
            f"expected predicted labels {list(target.shape)}, as many as true ones, "
            f"or scores {[*target.shape, num_classes]}; got {list(preds.shape)}"
        )
    kept = target != IGNORED
    preds, target = preds[kept], target[kept]
    for kind, label in (("predicted", preds), ("true", target)):
        if label.is_floating_point():
            raise ValueError(f"{kind} labels must be integers, got {label.dtype}")
        wrong = label[(label < 0) | (label >= num_classes)]
        if wrong.numel():
            raise ValueError(
                f"{kind} label {int(wrong[0])} is none of the {num_classes} classes 0 to {num_classes - 1} "
                f"(a true label of {IGNORED} is not counted)"
            )
    return preds, target
