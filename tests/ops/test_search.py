"""`knn` and `radius` against sorting all distances."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geoattn.ops import knn, radius


def rows(rowptr, col):
    return [col[a:b].tolist() for a, b in pairwise(rowptr)]


def sorted_keys(pos, query):
    """All keys of every query by distance, then index, with their distances in float64."""
    distance = (query.double().unsqueeze(1) - pos.double()).square().sum(-1).sqrt()
    return [sorted((d, i) for i, d in enumerate(row)) for row in distance.tolist()]


# Coordinates on a small grid: many ties, many points in one place.
points = st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=25).map(
    lambda p: torch.tensor(p, dtype=torch.float32)
)


@given(points, points, st.integers(1, 8))
def test_knn_equals_sorting(pos, query, k):
    found = rows(*knn(pos, k, query_pos=query))
    assert found == [[i for _, i in row[:k]] for row in sorted_keys(pos, query)]


@given(points, points, st.sampled_from([0.0, 1.0, 2**0.5, 2.0, 10.0]), st.sampled_from([None, 1, 3]))
def test_radius_equals_sorting(pos, query, r, most):
    found = rows(*radius(pos, r, query_pos=query, max_neighbors=most))
    assert found == [[i for d, i in row if d <= r][:most] for row in sorted_keys(pos, query)]


@given(points, points, st.integers(1, 4))
def test_a_batch_is_its_samples_side_by_side(first, second, k):
    pos = torch.cat([first, second])
    batch = torch.tensor([0] * len(first) + [1] * len(second))
    alone = rows(*knn(first, k)) + [[i + len(first) for i in row] for row in rows(*knn(second, k))]
    assert rows(*knn(pos, k, batch)) == alone


def test_a_sample_without_keys_gives_empty_rows():
    rowptr, col = knn(
        torch.zeros(1, 3), 2, torch.tensor([1]), query_pos=torch.zeros(2, 3), query_batch=torch.tensor([0, 1])
    )
    assert rows(rowptr, col) == [[], [0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: knn(torch.zeros(3, 3), 0), "k must be at least 1"),
        (lambda: radius(torch.zeros(3, 3), -1.0), "r must not be negative"),
        (lambda: radius(torch.zeros(3, 3), 1.0, max_neighbors=0), "max_neighbors"),
        (lambda: knn(torch.full((3, 3), torch.nan), 1), "pos has NaN"),
        (lambda: knn(torch.zeros(3), 1), "expected pos"),
        (lambda: knn(torch.zeros(3, 3), 1, torch.tensor([1, 0, 0])), "batch must be ascending"),
        (lambda: knn(torch.zeros(3, 3), 1, torch.tensor([0])), r"expected batch \[3\]"),
        (
            lambda: knn(torch.zeros(3, 3), 1, query_pos=torch.zeros(1, 3), query_batch=torch.tensor([0])),
            "both",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
