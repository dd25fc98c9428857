"""Metrics of labels against their definitions, counted one by one."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from geoattn.metrics import (
    Accuracy,
    ConfusionMatrix,
    MeanIoU,
    class_iou,
    classification_metrics,
    segmentation_metrics,
)

NAMES = ("head", "body", "legs", "tail")
TOLERANCE = 1e-6  # torchmetrics divides in float32


@st.composite
def labellings(draw):
    """Some samples of a task: classes K, and for each sample predicted and true labels, some of them ignored."""
    classes = draw(st.integers(1, 5))
    pair = st.tuples(st.integers(0, classes - 1), st.integers(-1, classes - 1))
    samples = draw(st.lists(st.lists(pair, max_size=8), min_size=1, max_size=3))
    return classes, [tensor(sample, dtype=torch.int64).view(-1, 2).T for sample in samples]


def equal(value, expected):
    return math.isnan(expected) if math.isnan(value) else value == pytest.approx(expected, abs=TOLERANCE)


@settings(max_examples=80, deadline=None)
@given(labellings())
def test_metrics_are_what_counting_gives(labelling):
    classes, samples = labelling
    metrics = segmentation_metrics("abcde"[:classes])
    assert list(metrics) == ["accuracy", "mean_iou", "confusion"]
    for predicted, true in samples:
        for metric in metrics.values():
            metric.update(predicted, true)
    pairs = [(p, t) for sample in samples for p, t in sample.T.tolist() if t >= 0]
    right = sum(p == t for p, t in pairs)
    assert equal(float(metrics["accuracy"].compute()), right / len(pairs) if pairs else math.nan)

    confusion = metrics["confusion"].compute()
    assert torch.atleast_2d(confusion).tolist() == [
        [pairs.count((p, t)) for p in range(classes)] for t in range(classes)
    ]

    iou = []
    for c in range(classes):
        union = sum(c in pair for pair in pairs)
        iou.append(pairs.count((c, c)) / union if union else math.nan)
    assert all(map(equal, class_iou(confusion).tolist(), iou))
    present = [value for value in iou if not math.isnan(value)]
    assert equal(float(metrics["mean_iou"].compute()), sum(present) / len(present) if present else math.nan)


@settings(max_examples=20, deadline=None)
@given(labellings())
def test_merged_over_processes_they_are_those_of_one(labelling):
    classes, samples = labelling
    for make in (Accuracy, MeanIoU, ConfusionMatrix):
        one, every = make(classes), [make(classes) for _ in samples]
        for metric, (predicted, true) in zip(every, samples, strict=True):
            one.update(predicted, true)
            metric.update(predicted, true)
        for other in every[1:]:
            every[0].merge_state(other)
        assert torch.equal(every[0].compute().nan_to_num(-1), one.compute().nan_to_num(-1))


def test_scores_count_as_the_label_of_the_highest():
    scores, target = torch.eye(4)[[0, 1, 3]], tensor([0, 1, 2])
    for metrics in (segmentation_metrics(NAMES), classification_metrics(NAMES)):
        for metric in metrics.values():
            metric.update(scores, target)
        assert float(metrics["accuracy"].compute()) == pytest.approx(2 / 3)
        assert metrics["confusion"].compute()[2, 3] == 1


def test_no_count_is_lost_in_a_large_set():
    """Counts that float32 would round."""
    metric, large = ConfusionMatrix(2), 2**40
    metric.update(tensor([0]), tensor([1]))
    metric.confmat += tensor([[large, 0], [0, large]])
    assert metric.compute().tolist() == [[large, 0], [1, large]]
    assert class_iou(metric.compute())[0] == large / (large + 1)
    accuracy = Accuracy(2)
    accuracy.right += large
    accuracy.count += large
    accuracy.update(tensor([0, 1]), tensor([0, 0]))
    assert accuracy.compute() == (large + 1) / (large + 2)


@pytest.mark.parametrize("make", [Accuracy, MeanIoU])
def test_the_better_is_higher_and_in_per_cent(make):
    metric = make(4)
    assert (metric.higher_is_better, metric.plot_lower_bound, metric.plot_upper_bound) == (True, 0, 1)
    assert (metric.is_differentiable, metric.full_state_update) == (False, False)


@pytest.mark.parametrize("make", [Accuracy, MeanIoU, ConfusionMatrix])
def test_bad_labels_are_named(make):
    metric = make(4)
    for predicted, true, message in (
        (tensor([1]), tensor([1, 2]), r"expected predicted labels \[2\].* got \[1\]"),
        (torch.rand(2, 3), tensor([1, 2]), r"or scores \[2, 4\]; got \[2, 3\]"),
        (tensor([4]), tensor([0]), "predicted label 4 is none of the 4 classes 0 to 3"),
        (tensor([-1]), tensor([0]), "predicted label -1 is none"),
        (tensor([0, 0]), tensor([0, 7]), "true label 7 is none of the 4 classes"),
        (tensor([0]), tensor([-2]), r"true label -2 is none .*-1 is not counted"),
        (tensor([0]), tensor([0.0]), "true labels must be integers, got torch.float32"),
        (tensor([0.5]), tensor([0]), "predicted labels must be integers, got torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            metric.update(predicted, true)
    # What was refused was not counted in part.
    metric.update(tensor([2, 0]), tensor([2, -1]))
    assert float(metric.compute().double().sum()) == 1
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        make(0)


@pytest.mark.parametrize("make", [Accuracy, MeanIoU])
def test_nothing_counted_is_nan(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torchmetrics': not updated yet
        assert math.isnan(make(3).compute())
    metric = make(3)
    metric.update(tensor([], dtype=torch.int64), tensor([], dtype=torch.int64))
    metric.update(tensor([1]), tensor([-1]))
    assert math.isnan(metric.compute())
