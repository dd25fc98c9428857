"""IoU of parts against its definition, counted object by object."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from geoattn.metrics import PartIoU

PARTS = ((0, 1, 2), (3,), (4, 5))


@st.composite
def batches(draw):
    """Scores, true parts (some ignored), categories, and the object of each point; points in any order."""
    category = draw(st.lists(st.integers(0, 2), min_size=1, max_size=4))
    points = draw(st.lists(st.integers(0, len(category) - 1), max_size=12))
    target = [draw(st.sampled_from((*PARTS[category[b]], -1))) for b in points]
    scores = torch.randn(len(points), 7, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    return scores, tensor(target, dtype=torch.int64), tensor(category), tensor(points, dtype=torch.int64)


def iou_of_object(scores, target, parts):
    """The sheet's definition, or None without a labelled point."""
    points = [
        (max(parts, key=lambda k: float(row[k])), int(t)) for row, t in zip(scores, target, strict=True) if t >= 0
    ]
    values = []
    for part in parts:
        union = sum(part in pair for pair in points)
        values.append(points.count((part, part)) / union if union else 1.0)
    return sum(values) / len(values) if points else None


@settings(max_examples=60, deadline=None)
@given(st.lists(batches(), min_size=1, max_size=3))
def test_it_is_what_counting_gives(given_batches):
    instance, by_class = PartIoU(PARTS), PartIoU(PARTS, "class")
    expected = {0: [], 1: [], 2: []}
    for scores, target, category, batch in given_batches:
        for metric in (instance, by_class):
            metric.update(scores, target, category, batch)
        for b, c in enumerate(category.tolist()):
            iou = iou_of_object(scores[batch == b], target[batch == b], PARTS[c])
            if iou is not None:
                expected[c].append(iou)
    objects = [iou for some in expected.values() for iou in some]
    means = [sum(some) / len(some) for some in expected.values() if some]
    if not objects:
        assert math.isnan(instance.compute())
        assert math.isnan(by_class.compute())
        return
    assert float(instance.compute()) == pytest.approx(sum(objects) / len(objects), abs=1e-12)
    assert float(by_class.compute()) == pytest.approx(sum(means) / len(means), abs=1e-12)


@settings(max_examples=15, deadline=None)
@given(batches(), batches())
def test_merged_over_processes_it_is_that_of_one(first, second):
    one, other, both = PartIoU(PARTS, "class"), PartIoU(PARTS, "class"), PartIoU(PARTS, "class")
    one.update(*first)
    other.update(*second)
    both.update(*first)
    both.update(*second)
    one.merge_state(other)
    assert torch.equal(one.compute().nan_to_num(-1), both.compute().nan_to_num(-1))


def test_only_parts_of_the_category_are_found_and_absent_ones_count_as_one():
    scores = torch.zeros(2, 6)
    scores[:, 5] = 9  # of another category
    scores[:, 1] = 1
    metric = PartIoU(PARTS)
    metric.update(scores, tensor([1, 1]), tensor([0]))
    assert metric.compute() == 1  # part 1 is right, 0 and 2 are nowhere
    metric.update(scores, tensor([0, 1]), tensor([0]))
    assert float(metric.compute()) == pytest.approx((1 + (0 + 1 / 2 + 1) / 3) / 2)


def test_mistakes_are_named():
    metric = PartIoU(PARTS)
    scores = torch.zeros(2, 6)
    with pytest.raises(ValueError, match=r"true part 4 is none of category 0, \(0, 1, 2\)"):
        metric.update(scores, tensor([1, 4]), tensor([0]))
    with pytest.raises(ValueError, match="true part 9 is none of category 0"):
        metric.update(scores, tensor([1, 9]), tensor([0]))
    with pytest.raises(ValueError, match="category goes from 3 to 3; there are 3 categories"):
        metric.update(scores, tensor([1, 1]), tensor([3]))
    with pytest.raises(ValueError, match="batch goes from 0 to 1, and category has 1 objects"):
        metric.update(scores, tensor([1, 1]), tensor([0]), tensor([0, 1]))
    with pytest.raises(ValueError, match=r"at least 6 parts, got K = 5"):
        metric.update(scores[:, :5], tensor([1, 1]), tensor([0]))
    with pytest.raises(ValueError, match=r"expected scores \[N, K\].*; got \[2\], \[2\], \[1\] and \[2\]"):
        metric.update(scores[:, 0], tensor([1, 1]), tensor([0]))
    with pytest.raises(ValueError, match="each category must have parts"):
        PartIoU([[0, 1], []])
    with pytest.raises(ValueError, match='average must be "instance" or "class"'):
        PartIoU(PARTS, "mean")
    assert math.isnan(metric.compute())  # nothing wrong was counted
