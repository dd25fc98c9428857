"""Exact published definitions of how good a result is."""

from geoattn.metrics.segmentation import Accuracy, MeanIoU, SoftEdgeAccuracy, edge_labels

__all__ = ["Accuracy", "MeanIoU", "SoftEdgeAccuracy", "edge_labels"]
