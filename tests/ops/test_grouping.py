"""Groups of points and interpolation, against plain loops."""

import pytest
import torch
from torch.testing import assert_close

from geoattn.ops import ball_query, farthest_point_sample, knn_interpolate, knn_query

SIZES = (30, 1, 12)
BATCH = torch.arange(3).repeat_interleave(torch.tensor(SIZES))


def cloud(seed=0):
    return torch.rand(sum(SIZES), 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distances(query, key, query_batch=None, key_batch=None):
    found = torch.cdist(query, key, compute_mode="donot_use_mm_for_euclid_dist")
    return found if key_batch is None else found.where(query_batch[:, None] == key_batch, torch.inf)


def test_a_ball_has_the_first_points_within_the_radius():
    pos, query = cloud(), cloud()[::2]
    found = ball_query(pos, 0.4, 5, BATCH, query, BATCH[::2])
    for row, away in zip(found.tolist(), distances(query, pos, BATCH[::2], BATCH), strict=True):
        inside = (away <= 0.4).nonzero().squeeze(1).tolist()[:5]
        assert row == inside + inside[:1] * (5 - len(inside))


def test_a_point_at_the_radius_is_inside():
    pos = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    assert ball_query(pos, 2.0, 3).tolist() == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [3, 3, 3]]
    assert ball_query(pos, 1.999, 2).tolist() == [[0, 1], [0, 1], [1, 2], [3, 3]]


def test_nearest_points_and_the_first_of_the_cloud_for_those_missing():
    pos = cloud()
    found = knn_query(pos, 15, BATCH)
    away = distances(pos, pos, BATCH, BATCH)
    starts = torch.tensor(SIZES).cumsum(0) - torch.tensor(SIZES)
    for i, row in enumerate(found.tolist()):
        nearest = away[i].argsort()[: min(15, SIZES[BATCH[i]])].tolist()
        assert row == nearest + [int(starts[BATCH[i]])] * (15 - len(nearest))
    assert torch.equal(knn_query(pos[:4], 6)[:, 4:], torch.zeros(4, 2, dtype=torch.int64))


def test_every_query_needs_a_key():
    with pytest.raises(ValueError, match=r"query 1 has no key: none is within r = 0\.5"):
        ball_query(torch.zeros(3, 2), 0.5, 2, query_pos=torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    with pytest.raises(ValueError, match="query 0 has no key: its sample has none"):
        knn_query(torch.zeros(3, 2), 2, torch.zeros(3).long(), torch.zeros(1, 2), torch.ones(1).long())


@pytest.mark.parametrize(("power", "eps"), [(2, 1e-16), (1, 1e-8)])
def test_interpolation_is_its_formula(power, eps):
    pos, query = cloud(), cloud(1)
    x = torch.randn(len(pos), 4, dtype=torch.float64, requires_grad=True)
    away = distances(query, pos, BATCH, BATCH)
    near, index = away.topk(3, largest=False)
    weight = 1 / (near**power + eps)
    expected = (x[index] * (weight / weight.sum(1, keepdim=True)).unsqueeze(2)).sum(1)
    found = knn_interpolate(x, pos, query, BATCH, BATCH, power=power, eps=eps)
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert_close(found[30], x[30])  # of a cloud of one point
    assert torch.autograd.gradcheck(
        lambda x: knn_interpolate(x, pos, query[:4], BATCH, BATCH[:4], power=power, eps=eps), x
    )
    at_points = knn_interpolate(x, pos, pos, BATCH, BATCH)
    assert_close(at_points, x, rtol=1e-6, atol=1e-6)


def test_interpolation_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"expected x \[M, C\] and pos_x \[M, D\], got \(2, 1\) and \(3, 3\)"):
        knn_interpolate(torch.ones(2, 1), torch.rand(3, 3), torch.rand(3, 3))
    with pytest.raises(ValueError, match="power must be 1"):
        knn_interpolate(torch.ones(3, 1), torch.rand(3, 3), torch.rand(3, 3), power=3)


def test_farthest_points_of_a_number_for_each_cloud():
    pos, counts = cloud(), torch.tensor([7, 1, 40])
    found = farthest_point_sample(pos, counts, batch=BATCH)
    parts = pos.split(SIZES)
    each = [farthest_point_sample(p, int(n)) for p, n in zip(parts, counts, strict=True)]
    assert found.tolist() == [int(i) + start for part, start in zip(each, (0, 30, 31), strict=True) for i in part]
    with pytest.raises(ValueError, match=r"num_samples as one integer, or as integers \[3\], one per sample"):
        farthest_point_sample(pos, counts[:2], batch=BATCH)
    with pytest.raises(ValueError, match="num_samples must be at least 1 for every sample, got 0"):
        farthest_point_sample(pos, counts * 0, batch=BATCH)
