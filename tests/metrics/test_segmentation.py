"""Metrics against their definitions, counted by hand."""

import math

import pytest
import torch
from torch import tensor

from geoattn.metrics import Accuracy, MeanIoU, SoftEdgeAccuracy, edge_labels

# A square of two triangles with areas 2 and 1, folded out: edges 01 12 20 | 23 30 in order of appearance.
POS = tensor([[0.0, 0, 0], [2, 0, 0], [0, 2, 0], [-1, 0, 0]])
FACE = tensor([[0, 1, 2], [0, 2, 3]]).T


def test_accuracy_pools_all_meshes():
    metric = Accuracy()
    metric.update(tensor([1, 1, 0, 2]), tensor([1, 0, 0, 2]))
    metric.update(tensor([0]), tensor([1]))
    assert metric.compute() == pytest.approx(3 / 5)


def test_mean_iou_averages_over_the_classes_that_occur():
    metric = MeanIoU(4)
    metric.update(tensor([0, 0, 1]), tensor([0, 1, 1]))
    metric.update(tensor([2]), tensor([0]))
    assert metric.compute() == pytest.approx((1 / 3 + 1 / 2 + 0) / 3)


def test_soft_edge_accuracy_weighs_edges_by_area_and_forgives_borders():
    edge_soft = tensor([[1.0, 0], [1, 0], [0.5, 0.5], [0, 1], [0, 1]])
    # Thirds of areas 2 and 1: edges weigh 2 2 3 1 1 of 9.
    metric = SoftEdgeAccuracy()
    metric.update(tensor([0, 1, 1, 1, 0]), edge_soft, POS, FACE)
    assert metric.compute() == pytest.approx((2 + 3 + 1) / 9)
    metric.update(tensor([0, 0, 0, 1, 1]), edge_soft, POS * 10, FACE)
    assert metric.compute() == pytest.approx((6 / 9 + 1) / 2)


def test_an_edge_takes_what_its_faces_together_find_most_probable():
    probability = tensor([[0.6, 0.4], [0.1, 0.9]])
    assert edge_labels(probability, FACE).tolist() == [0, 0, 1, 1, 1]


def test_bad_lengths_are_named():
    with pytest.raises(ValueError, match="as many labels"):
        Accuracy().update(tensor([1]), tensor([1, 2]))
    with pytest.raises(ValueError, match="each of 5 edges"):
        SoftEdgeAccuracy().update(tensor([1]), torch.zeros(5, 2), POS, FACE)


@pytest.mark.parametrize("metric", [Accuracy(), MeanIoU(3), SoftEdgeAccuracy()])
def test_nothing_measured_is_nan(metric):
    assert math.isnan(metric.compute())
