"""The layers against their formulas written out, and what they do not depend on."""

import pytest
import torch
from scipy.spatial.transform import Rotation

from geoattn import Neighbors, Windows
from geoattn.nn import CrossAttention, LatentAttention, SurfaceAttention


def surface(count=12, channels=8, seed=0):
    make = torch.Generator().manual_seed(seed)
    x, pos, normal, spectral = (torch.randn(count, n, generator=make).double() for n in (channels, 3, 3, 4))
    pattern = Neighbors.knn(pos, 5)
    return x, pos * 0.2, torch.nn.functional.normalize(normal, dim=1), spectral, pattern


def random_layer(layer):
    """With parameters that are all away from their start, in float64."""
    torch.manual_seed(0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer.double().eval()


def test_surface_attention_equals_its_formula():
    x, pos, normal, spectral, pattern = surface()
    layer = random_layer(SurfaceAttention(8, heads=2, reach=0.3))
    out = layer(x, pos, normal, spectral, pattern)
    q, k, v = layer.qkv(x).view(12, 3, 2, 4).unbind(1)
    alpha, beta, gamma, delta = layer.geometry(x).view(12, 4, 2).unbind(1)
    alpha, beta = (torch.nn.functional.softplus(t) / 0.3**2 for t in (alpha, beta))
    for i in range(12):
        keys = pattern.col[pattern.rowptr[i] : pattern.rowptr[i + 1]]
        parts, directions = [], []
        for h in range(2):
            offset, ahead = pos[keys] - pos[i], spectral[keys] - spectral[i]
            score = k[keys, h] @ q[i, h] / 2
            score = score - alpha[i, h] * offset.square().sum(1) - beta[i, h] * ahead.square().sum(1)
            score = score + gamma[i, h] / 0.3 * (offset @ normal[i]) + delta[i, h] * (normal[keys] @ normal[i])
            weight = score.softmax(0)
            parts.append(weight @ v[keys, h])
            mean_offset, mean_normal = weight @ offset / 0.3, weight @ normal[keys]
            for mean in (mean_offset, mean_normal):
                directions += [(mean.square().sum() + 1e-8).sqrt(), mean @ normal[i]]
        expected = layer.out(torch.cat([*parts, torch.stack(directions)]))
        torch.testing.assert_close(out[i], expected, rtol=1e-10, atol=1e-10)


def test_surface_attention_ignores_how_the_surface_lies():
    x, pos, normal, spectral, pattern = surface()
    layer = random_layer(SurfaceAttention(8, heads=2))
    turn = torch.from_numpy(Rotation.random(rng=0).as_matrix())
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0])).double()
    for q in (turn, mirror @ turn):
        moved = layer(x, pos @ q.T + 3.0, normal @ q.T, spectral, pattern)
        torch.testing.assert_close(moved, layer(x, pos, normal, spectral, pattern), rtol=1e-8, atol=1e-8)


def test_surface_attention_keeps_distances_under_autocast():
    """They are differences of squares: in bfloat16, far from the origin, nothing would be left of them."""
    x, pos, normal, spectral, pattern = (t.float() if isinstance(t, torch.Tensor) else t for t in surface())
    layer = random_layer(SurfaceAttention(8, heads=2)).float()
    expected = layer(x, pos + 50.0, normal, spectral, pattern)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x, pos + 50.0, normal, spectral, pattern)
    assert (out - expected).norm() < 0.03 * expected.norm()


def test_surface_attention_derivatives():
    x, pos, normal, spectral, pattern = surface(count=4, channels=4)
    layer = random_layer(SurfaceAttention(4, heads=2))
    pattern = Neighbors.knn(pos, 2)
    inputs = [t.requires_grad_() for t in (x, pos, normal, spectral)]
    run = lambda x, p, n, s: layer(x, p, n, s, pattern)  # noqa: E731
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_latents_keep_samples_apart_and_weigh_by_area():
    layer = random_layer(LatentAttention(8, heads=2))
    torch.manual_seed(1)
    first, second, latents = torch.randn(5, 8).double(), torch.randn(7, 8).double(), torch.randn(3, 8).double()
    weight = torch.rand(12).double()

    def run(x, weight, lengths):
        reading = Windows(torch.arange(len(lengths) + 1) * 3, torch.tensor([0, *lengths]).cumsum(0))
        return layer(x, latents.repeat(len(lengths), 1), weight, reading)

    together = run(torch.cat([first, second]), weight, [5, 7])
    alone = [run(first, weight[:5], [5]), run(second, weight[5:], [7])]
    for both, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(both, torch.cat(parts), rtol=1e-10, atol=1e-10)

    # An element cut into two halves of its area is still the same surface.
    halves = run(torch.cat([first, first[:1]]), torch.cat([weight[:1] / 2, weight[1:5], weight[:1] / 2]), [6])
    for cut, whole in zip(halves, alone[0], strict=True):
        torch.testing.assert_close(cut[:5], whole[:5], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layer", [SurfaceAttention, CrossAttention])
def test_heads_must_divide_channels(layer):
    with pytest.raises(ValueError, match="heads must divide channels, got 3 and 8"):
        layer(8, heads=3)
    with pytest.raises(ValueError, match="heads must divide channels, got 0 and 8"):
        layer(8, heads=0)
