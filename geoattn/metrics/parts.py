"""Intersection over union of the parts of objects, as ShapeNetPart counts it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from geoattn._optional import require
from geoattn.metrics.labels import IGNORED

if TYPE_CHECKING:
    from torchmetrics import Metric
else:
    Metric = require("torchmetrics").Metric


class PartIoU(Metric):
    """Mean IoU of parts of objects whose category is known (Yi et al. 2016; the protocol of PointNet and PointNet++).

    A point's label is the most probable of the parts of its object's category. The IoU of an object is the mean of its
    category's parts, where a part that is neither predicted nor true counts as 1. An object without a labelled point
    is not counted.

    Args:
        parts_of_category: The classes that are the parts of each category.
        average: ``"instance"``: the mean of all objects; ``"class"``: of the means of the categories that occur.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    total: Tensor
    objects: Tensor

    def __init__(
        self, parts_of_category: Sequence[Sequence[int]], average: Literal["instance", "class"] = "instance"
    ) -> None:
        if not parts_of_category or not all(parts_of_category) or min(map(min, parts_of_category)) < 0:
            raise ValueError(f"each category must have parts, integers from 0 on; got {parts_of_category!r}")
        if average not in ("instance", "class"):
            raise ValueError(f'average must be "instance" or "class", got {average!r}')
        super().__init__()
        self.parts_of_category = tuple(map(tuple, parts_of_category))
        self.average = average
        self.add_state("total", torch.zeros(len(parts_of_category), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("objects", torch.zeros(len(parts_of_category), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor, category: Tensor, batch: Tensor | None = None) -> None:
        """Count one object, or a batch of them.

        Args:
            preds: Scores of all parts of all categories, at each point ``[N, K]``.
            target: True part of each point ``[N]``; points with -1 are not counted.
            category: Of each object ``[B]``.
            batch: The object of each point ``[N]``; all in one if not given.

        Raises:
            ValueError: If shapes do not fit, a category is none, or a true part is none of its object's category.
        """
        points, categories = target.size(0), len(self.parts_of_category)
        if batch is None:
            batch = torch.zeros_like(target)
        if preds.dim() != 2 or target.shape != (preds.size(0),) or batch.shape != target.shape or category.dim() != 1:
            raise ValueError(
                f"expected scores [N, K], true labels [N], category [B] and batch [N]; got {list(preds.shape)}, "
                f"{list(target.shape)}, {list(category.shape)} and {list(batch.shape)}"
            )
        size = category.numel()
        if points and not 0 <= int(batch.min()) <= int(batch.max()) < size:
            raise ValueError(
                f"batch goes from {int(batch.min())} to {int(batch.max())}, and category has {size} objects"
            )
        if size and not 0 <= int(category.min()) <= int(category.max()) < categories:
            raise ValueError(
                f"category goes from {int(category.min())} to {int(category.max())}; there are {categories} categories"
            )
        allowed = self._parts(preds.size(1), preds.device)[category]
        counted = target != IGNORED
        preds, target, batch = preds[counted], target[counted], batch[counted]
        wrong = (target < 0) | (target >= preds.size(1))
        wrong |= ~allowed[batch, target.clamp(0, preds.size(1) - 1)]
        if wrong.any():
            label, kind = int(target[wrong][0]), int(category[batch[wrong][0]])
            raise ValueError(f"true part {label} is none of category {kind}, {self.parts_of_category[kind]}")
        found = preds.masked_fill(~allowed[batch], float("-inf")).argmax(1)

        def count(part: Tensor, of: Tensor) -> Tensor:
            flat = of * allowed.size(1) + part
            return torch.bincount(flat, minlength=allowed.numel()).view_as(allowed)

        both = count(target[found == target], batch[found == target])
        union = count(found, batch) + count(target, batch) - both
        iou = torch.where(union > 0, both.double() / union, 1.0)
        iou = (iou * allowed).sum(1) / allowed.sum(1)
        one_hot = F.one_hot(category, categories) * (union.sum(1, keepdim=True) > 0)
        self.total += one_hot.double().T @ iou
        self.objects += one_hot.sum(0)

    def compute(self) -> Tensor:
        """The value so far, in [0, 1], float64; NaN if nothing was counted."""
        if self.average == "instance":
            return self.total.sum() / self.objects.sum()
        occurs = self.objects > 0
        return (self.total[occurs] / self.objects[occurs]).mean()

    def _parts(self, classes: int, device: torch.device) -> Tensor:
        """Which classes are parts of each category ``[C, K]``."""
        largest = max(map(max, self.parts_of_category))
        if largest >= classes:
            raise ValueError(f"expected scores [N, K] of at least {largest + 1} parts, got K = {classes}")
        parts = torch.zeros(len(self.parts_of_category), classes, dtype=torch.bool)
        for category, some in enumerate(self.parts_of_category):
            parts[category, list(some)] = True
        return parts.to(device)
