"""Exact published definitions of how good a result is, each a `torchmetrics.Metric` that merges over processes."""

from geoattn.metrics.labels import (
    Accuracy,
    ConfusionMatrix,
    MeanIoU,
    class_iou,
    classification_metrics,
    segmentation_metrics,
)
from geoattn.metrics.parts import PartIoU
from geoattn.metrics.segmentation import SoftEdgeAccuracy, edge_labels

__all__ = [
    "Accuracy",
    "ConfusionMatrix",
    "MeanIoU",
    "PartIoU",
    "SoftEdgeAccuracy",
    "class_iou",
    "classification_metrics",
    "edge_labels",
    "segmentation_metrics",
]
