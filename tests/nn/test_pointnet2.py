"""PointNet++'s layers: their formulas, and what must not matter."""

import pytest
import torch
from torch.testing import assert_close

from geoattn.nn import FeaturePropagation, GlobalSetAbstraction, SetAbstraction
from geoattn.ops import ball_query, farthest_point_sample

SIZES = (40, 3, 1, 21)
BATCH = torch.arange(4).repeat_interleave(torch.tensor(SIZES))
SCALES = {
    "one": lambda channels=4: SetAbstraction(channels, 10, [0.8], [6], [[8, 5]]),
    "several": lambda channels=4: SetAbstraction(channels, 10, [0.5, 1.0], [4, 7], [[8, 5], [3]]),
}
scales = pytest.mark.parametrize("scale", SCALES)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(layer):
    generator = torch.Generator().manual_seed(0)
    for tensor in (*layer.parameters(), *layer.buffers()):
        if tensor.is_floating_point():
            tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator) - 0.3 * (tensor.dim() > 1)
    return layer.double()


@scales
@pytest.mark.parametrize("channels", [0, 4])
def test_set_abstraction_is_its_formula(scale, channels):
    layer, pos = made(SCALES[scale](channels)).eval(), random(61, 3, seed=1)[:40]
    x = random(40, channels) if channels else None
    center = pos[farthest_point_sample(pos, 10)]
    expected = []
    for s, (radius, k) in enumerate(zip(layer.radii, layer.neighbors, strict=True)):
        index = ball_query(pos, radius, k, query_pos=center)
        parts = [pos[index] - center.unsqueeze(1), *([] if x is None else [x[index]])]
        pairs = torch.cat(parts if scale == "one" else parts[::-1], 2)
        first = pairs @ layer.first[s].weight.T + layer.first[s].bias
        expected.append(layer.rest[s](first.flatten(0, 1)).view(10, k, -1).amax(1))
    found, found_pos, batch = layer(x, pos)
    assert_close(found, torch.cat(expected, 1), rtol=1e-12, atol=1e-12)
    assert torch.equal(found_pos, center)
    assert batch is None
    assert found.size(1) == layer.out_channels


@scales
def test_a_batch_is_its_clouds_side_by_side(scale):
    layer, x, pos = made(SCALES[scale]()).eval(), random(65, 4), random(65, 3, seed=1)
    whole = made(GlobalSetAbstraction(4, 6)).eval()
    back = made(FeaturePropagation(4 + layer.out_channels, 6)).eval()
    few, few_pos, few_batch = layer(x, pos, BATCH)
    assert torch.bincount(few_batch).tolist() == [10, 3, 1, 10]
    each = [(a, b, *layer(a, b)[:2]) for a, b in zip(x.split(SIZES), pos.split(SIZES), strict=True)]
    assert_close(few, torch.cat([found for _, _, found, _ in each]))
    assert_close(whole(x, pos, BATCH), torch.cat([whole(a, b) for a, b, _, _ in each]))
    together = back(x, pos, few, few_pos, BATCH, few_batch)
    assert_close(together, torch.cat([back(a, b, found, center) for a, b, found, center in each]))


def test_the_order_of_points_does_not_matter_where_balls_have_room():
    """Which points a full ball has depends on their order: the paper's rule."""
    layer, x, pos = made(SetAbstraction(4, 10, [0.8], [40], [[8, 5]])).eval(), random(40, 4), random(40, 3, seed=1)
    order = torch.cat([torch.zeros(1).long(), 1 + torch.randperm(39, generator=torch.Generator().manual_seed(2))])
    assert_close(layer(x[order], pos[order])[0], layer(x, pos)[0])


@scales
def test_moving_clouds_changes_nothing(scale):
    layer, x, pos = made(SCALES[scale]()).train(), random(65, 4), random(65, 3, seed=1)
    assert_close(layer(x, pos + 2.0, BATCH)[0], layer(x, pos, BATCH)[0])


@scales
@pytest.mark.parametrize("train", [False, True])
def test_gradients(scale, train):
    layer, whole = made(SCALES[scale]()).train(train), made(GlobalSetAbstraction(4, 6)).train(train)
    back = made(FeaturePropagation(4 + layer.out_channels, 6)).train(train)
    pos, batch = random(15, 3, seed=1).requires_grad_(), torch.arange(15) // 12

    chosen = farthest_point_sample(pos, 10, batch=batch)
    fixed = pos.detach().clone()  # the weights of interpolation are not differentiated

    def run(x, pos):
        few, _, few_batch = layer(x, pos, batch)
        return few, whole(x, pos, batch), back(x, fixed, few, fixed[chosen], batch, few_batch)

    assert torch.autograd.gradcheck(run, (random(15, 4).requires_grad_(), pos))


def test_the_first_center_is_random_in_training_if_asked():
    layer, pos = SetAbstraction(0, 1, [5.0], [4], [[4]], random_start=True), random(65, 3).float()
    assert torch.equal(layer.eval()(None, pos, BATCH)[1], pos[torch.tensor([0, 40, 43, 44])])
    torch.manual_seed(0)
    found = [layer.train()(None, pos, BATCH)[1] for _ in range(5)]
    assert len({tuple(centers[0].tolist()) for centers in found}) > 1
    assert all(torch.equal(centers[2], pos[43]) for centers in found)


@pytest.mark.parametrize("train", [False, True])
def test_a_cloud_of_one_point_is_no_special_case(train):
    layer, pos = SCALES["several"]().train(train), torch.rand(1, 3)
    few, center, _ = layer(torch.rand(1, 4), pos)
    back = FeaturePropagation(layer.out_channels, 6).train(train)
    assert back(None, pos, few, center).isfinite().all()


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match=r"widths of layers for each scale, got \[0\.1\], \[4\] and \[\[8\], \[8\]\]"):
        SetAbstraction(4, 10, [0.1], [4], [[8], [8]])
    for x in (None, torch.rand(4, 4), torch.rand(5, 3)):
        with pytest.raises(ValueError, match=r"expected x \[N, 4\] for pos \(5, 3\)"):
            SetAbstraction(4, 10, [0.1], [4], [[8]])(x, torch.rand(5, 3))
    with pytest.raises(ValueError, match=r"expected x \[N, C\] and pos \[N, 3\], got \(4, 4\) and \(5, 3\)"):
        GlobalSetAbstraction(4, 8)(torch.rand(4, 4), torch.rand(5, 3))
