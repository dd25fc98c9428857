"""MeshCNN's accuracy against its definition, counted by hand."""

import math

import pytest
import torch
from torch import tensor

from geoattn.metrics import SoftEdgeAccuracy, edge_labels

# A square of two triangles with areas 2 and 1, folded out: edges 01 12 20 | 23 30 in order of appearance.
POS = tensor([[0.0, 0, 0], [2, 0, 0], [0, 2, 0], [-1, 0, 0]])
FACE = tensor([[0, 1, 2], [0, 2, 3]]).T
# Thirds of areas 2 and 1: edges weigh 2 2 3 1 1 of 9.
EDGE_SOFT = tensor([[1.0, 0], [1, 0], [0.5, 0.5], [0, 1], [0, 1]])


def test_soft_edge_accuracy_weighs_edges_by_area_and_forgives_borders():
    metric = SoftEdgeAccuracy()
    metric.update(tensor([0, 1, 1, 1, 0]), EDGE_SOFT, POS, FACE)
    assert float(metric.compute()) == pytest.approx((2 + 3 + 1) / 9)
    metric.update(tensor([0, 0, 0, 1, 1]), EDGE_SOFT, POS * 10, FACE)
    assert float(metric.compute()) == pytest.approx(((2 + 3 + 1) / 9 + 1) / 2)


def test_a_batch_is_its_meshes_and_merged_processes_are_one():
    first, second = tensor([0, 1, 1, 1, 0]), tensor([1, 1, 1, 1, 0])
    one, batched, other = SoftEdgeAccuracy(), SoftEdgeAccuracy(), SoftEdgeAccuracy()
    one.update(first, EDGE_SOFT, POS, FACE)
    one.update(second, EDGE_SOFT, POS * 10, FACE)
    batched.update(
        torch.cat([first, second]),
        torch.cat([EDGE_SOFT, EDGE_SOFT]),
        torch.cat([POS, POS * 10]),
        torch.cat([FACE, FACE + 4], 1),
        batch=tensor([0] * 4 + [1] * 4),
    )
    assert float(batched.compute()) == pytest.approx(float(one.compute()))
    merged = SoftEdgeAccuracy()
    merged.update(first, EDGE_SOFT, POS, FACE)
    other.update(second, EDGE_SOFT, POS * 10, FACE)
    merged.merge_state(other)
    assert merged.compute() == one.compute()


def test_edges_without_a_label_are_not_counted():
    metric, unlabelled = SoftEdgeAccuracy(), EDGE_SOFT.clone()
    unlabelled[1] = 0
    metric.update(tensor([0, 1, 1, 1, 0]), unlabelled, POS, FACE)
    assert float(metric.compute()) == pytest.approx((2 + 3 + 1) / 7)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_counted_is_nan_and_a_mesh_without_area_spoils_nothing():
    metric = SoftEdgeAccuracy()
    assert math.isnan(metric.compute())
    metric.update(tensor([0, 1, 1, 1, 0]), EDGE_SOFT, POS * 0, FACE)
    metric.update(tensor([], dtype=torch.int64), torch.zeros(0, 2), POS, FACE[:, :0])
    assert math.isnan(metric.compute())
    metric.update(tensor([0, 0, 0, 1, 1]), EDGE_SOFT, POS, FACE)
    assert metric.compute() == 1


def test_it_is_summed_in_float64_and_the_better_is_higher():
    metric = SoftEdgeAccuracy()
    assert (metric.total.dtype, metric.meshes.dtype) == (torch.float64, torch.int64)
    assert (metric.higher_is_better, metric.plot_lower_bound, metric.plot_upper_bound) == (True, 0, 1)
    assert (metric.is_differentiable, metric.full_state_update) == (False, False)


def test_an_edge_takes_what_its_faces_together_find_most_probable():
    probability = tensor([[0.6, 0.4], [0.1, 0.9]])
    assert edge_labels(probability, FACE).tolist() == [0, 0, 1, 1, 1]


def test_bad_input_is_named():
    for predicted, edge_soft, message in (
        (tensor([1]), EDGE_SOFT, r"predicted labels \[5\] .* got \[1\]"),
        (tensor([0] * 5), EDGE_SOFT[:4], r"edge_soft \[5, K\], .* \[4, 2\]"),
        (tensor([0, 0, 0, 0, 2]), EDGE_SOFT, "label 2 is none of the 2 classes"),
        (tensor([0, 0, 0, 0, -1]), EDGE_SOFT, "label -1 is none"),
    ):
        with pytest.raises(ValueError, match=message):
            SoftEdgeAccuracy().update(predicted, edge_soft, POS, FACE)
