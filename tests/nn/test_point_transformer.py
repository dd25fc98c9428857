"""Point Transformer's layers: their formulas, and what must not matter."""

import pytest
import torch
from torch.testing import assert_close

from geoattn import Neighbors
from geoattn.nn import PointTransformerBlock, PointTransformerLayer, TransitionDown, TransitionUp
from geoattn.nn import point_transformer as module
from geoattn.ops import knn_query

SIZES = (50, 3, 1, 21)  # with fewer points than neighbors, and fewer than the stride
BATCH = torch.arange(4).repeat_interleave(torch.tensor(SIZES))
STARTS = (0, 50, 53, 54)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(layer):
    """In float64, with statistics and gains that are not those of the beginning."""
    generator = torch.Generator().manual_seed(0)
    for tensor in (*layer.parameters(), *layer.buffers()):
        if tensor.is_floating_point():
            tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator) - 0.3 * (tensor.dim() > 1)
    return layer.double()


def by_loops(layer, x, pos, neighbors):
    """The sheet's formulas, pair by pair."""
    out = torch.empty_like(x)
    query, key, value = layer.query(x), layer.key(x), layer.value(x)
    weights = x.size(1) // layer.share
    for i in range(len(x)):
        delta = layer.pos_nn(torch.stack([pos[j] - pos[i] for j in neighbors[i]]))
        score = layer.attn_nn(torch.stack([key[j] - query[i] for j in neighbors[i]]) + delta).softmax(0)
        for c in range(x.size(1)):
            out[i, c] = sum(score[n, c % weights] * (value[j, c] + delta[n, c]) for n, j in enumerate(neighbors[i]))
    return out


def test_the_layer_is_its_formula():
    layer, x, pos = made(PointTransformerLayer(8, share=4)).eval(), random(12, 8), random(12, 3, seed=1)
    neighbors = knn_query(pos, 4)
    assert_close(layer(x, pos, neighbors), by_loops(layer, x, pos, neighbors), rtol=1e-10, atol=1e-10)


def test_some_pairs_at_a_time_are_all_of_them(monkeypatch):
    layer, x, pos = made(PointTransformerLayer(8)).eval(), random(75, 8), random(75, 3, seed=1)
    neighbors = knn_query(pos, 5, BATCH)
    expected = layer(x, pos, neighbors)
    monkeypatch.setattr(module, "edges_per_chunk", lambda device: 37)
    assert_close(layer(x, pos, neighbors), expected)


def run(name, x, pos, batch, train=False):
    """Features that a layer makes of clouds."""
    layer = LAYERS[name]()
    made(layer).train(train)
    if name == "down":
        return layer(x, pos, batch)[0]
    if name == "up":
        coarse = torch.cat([torch.arange(s, s + n, 3) for s, n in zip(STARTS, SIZES, strict=True)])
        coarse = coarse[coarse < len(x)]
        return layer(x, pos, x[coarse], pos[coarse], batch, batch[coarse])
    return layer(x, pos, knn_query(pos, 5, batch))


LAYERS = {
    "layer": lambda: PointTransformerLayer(8, share=4),
    "block": lambda: PointTransformerBlock(8, share=4),
    "down": lambda: TransitionDown(8, 12, stride=4, k=5),
    "up": lambda: TransitionUp(8, 8),
}
every_layer = pytest.mark.parametrize("name", LAYERS)
# The coarse points of "up" are chosen by their place in the batch; the networks cover it.
layers_but_up = pytest.mark.parametrize("name", [name for name in LAYERS if name != "up"])


@every_layer
@pytest.mark.parametrize("train", [False, True])
def test_moving_clouds_changes_nothing(name, train):
    x, pos = random(75, 8), random(75, 3, seed=1)
    assert_close(run(name, x, pos + torch.tensor([3.0, -2.0, 0.5]), BATCH, train), run(name, x, pos, BATCH, train))


@layers_but_up
def test_a_batch_is_its_clouds_side_by_side(name):
    x, pos = random(75, 8), random(75, 3, seed=1)
    alone = [run(name, a, b, None) for a, b in zip(x.split(SIZES), pos.split(SIZES), strict=True)]
    assert_close(run(name, x, pos, BATCH), torch.cat(alone))


@layers_but_up
def test_the_order_of_points_does_not_matter_behind_the_first(name):
    x, pos = random(50, 8), random(50, 3, seed=1)
    order = torch.cat([torch.zeros(1).long(), 1 + torch.randperm(49, generator=torch.Generator().manual_seed(2))])
    expected = run(name, x, pos, None)
    expected = expected if name == "down" else expected[order]
    assert_close(run(name, x[order], pos[order], None), expected)


@every_layer
@pytest.mark.parametrize("train", [False, True])
def test_gradients(name, train):
    x, pos = random(9, 8).requires_grad_(), random(9, 3, seed=1).requires_grad_(name != "up")
    batch = torch.zeros(9, dtype=torch.int64)
    assert torch.autograd.gradcheck(lambda x, pos: run(name, x, pos, batch, train), (x, pos))


def test_gradients_of_gradients():
    x, pos = random(6, 4).requires_grad_(), random(6, 3, seed=1).requires_grad_()
    layer, neighbors = made(PointTransformerLayer(4, share=2)).eval(), knn_query(pos, 3)
    layer.attn_nn[1] = layer.attn_nn[4] = layer.pos_nn[2] = torch.nn.Tanh()  # ReLU has none
    assert torch.autograd.gradgradcheck(lambda x, pos: layer(x, pos, neighbors), (x, pos))


def test_a_share_of_each_cloud_is_kept_but_at_least_its_first_point():
    x, pos = random(75, 8), random(75, 3, seed=1)
    _, kept, batch = made(TransitionDown(8, 12, 4, 5)).eval()(x, pos, BATCH)
    assert torch.bincount(batch).tolist() == [12, 1, 1, 5]
    first = [int((batch == b).nonzero()[0]) for b in range(4)]
    assert torch.equal(kept[first], pos[list(STARTS)])


@pytest.mark.parametrize("train", [False, True])
def test_a_cloud_of_one_point_is_no_special_case(train):
    x, pos = random(1, 8), random(1, 3)
    for name in LAYERS:
        assert run(name, x, pos, torch.zeros(1).long(), train).isfinite().all()


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match="share must divide channels, got 8 and 12"):
        PointTransformerLayer(12)
    with pytest.raises(ValueError, match=r"expected neighbors \[5, k\], as geoattn.ops.knn_query"):
        PointTransformerLayer(8)(torch.rand(5, 8), torch.rand(5, 3), torch.zeros(2, 20).long())
    with pytest.raises(TypeError, match="neighbors must be a tensor, got Neighbors"):
        PointTransformerLayer(8)(torch.rand(5, 8), torch.rand(5, 3), Neighbors.knn(torch.rand(5, 3), 2))
    with pytest.raises(ValueError, match=r"expected x \[N, 8\] and pos \[N, 3\], got \(5, 8\) and \(4, 3\)"):
        PointTransformerLayer(8)(torch.rand(5, 8), torch.rand(4, 3), torch.zeros(5, 2).long())
    with pytest.raises(ValueError, match=r"expected x \[N, 8\] for pos \(5, 3\), got \(4, 8\)"):
        TransitionDown(8, 16)(torch.rand(4, 8), torch.rand(5, 3))
