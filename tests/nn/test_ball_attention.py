"""Attention in balls: against numbers of the authors' code, the definition pair by pair, and for its gradients."""

import pytest
import torch

from geoattn.nn import BallAttention, BallBlock
from geoattn.patterns import Windows, ball_tree
from tests.patterns.test_ball_tree import points


def test_it_is_the_authors():
    layer = BallAttention(8, heads=2).double()
    for name, p in layer.named_parameters():
        key = f"encoder.0.blocks.0.BMSA.{name.removeprefix('bias.')}"
        k = torch.arange(p.numel(), dtype=torch.float64)
        p.data = (0.2 * (0.37 * k + 0.01 * sum(map(ord, key))).sin() - key.endswith("sigma_att") * 1.0).view(p.shape)
    x = (0.3 * torch.arange(64, dtype=torch.float64)).cos().view(8, 8)
    out = layer(x, points(8), Windows(torch.tensor([0, 4, 8])))
    found = [out.sum().item(), out.abs().sum().item(), *out[0, :3].tolist()]
    expected = [-7.9880084415, 8.5664183859, -0.147439052, -0.152001837, -0.216650237]
    assert found == pytest.approx(expected, rel=1e-8)


def test_it_is_its_definition_on_balls_of_any_size():
    torch.manual_seed(0)
    layer = BallAttention(6, heads=3, axes=2).double()
    x, pos = torch.randn(9, 6, dtype=torch.float64), torch.randn(9, 2, dtype=torch.float64)
    out = layer(x, pos, Windows(torch.tensor([0, 4, 4, 9])))
    for ball in (slice(0, 4), slice(4, 9)):
        p = pos[ball]
        qkv = layer.qkv(x[ball] + layer.pe_proj(p - p.mean(0))).view(len(p), 3, 2, 3)
        score = torch.einsum("ihc,jhc->hij", qkv[..., 0], qkv[..., 1]) / 2**0.5
        score = score + layer.bias.sigma_att[0] * (p[:, None] - p[None]).norm(dim=2)
        expected = torch.einsum("hij,jhc->ihc", score.softmax(2), qkv[..., 2]).flatten(1)
        torch.testing.assert_close(out[ball], layer.proj(expected))


def test_gradients_of_both_orders():
    torch.manual_seed(0)
    block = BallBlock(4, heads=2, expansion=2, axes=2).double()
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    pos = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    balls = Windows(torch.tensor([0, 3, 5]))

    def run(*inputs):
        return block(inputs[0], inputs[1], balls)

    assert torch.autograd.gradcheck(run, (x, pos))
    assert torch.autograd.gradgradcheck(run, (x, pos))


def test_heads_must_divide_channels():
    with pytest.raises(ValueError, match="heads must divide channels, got 3 and 8"):
        BallAttention(8, heads=3)
    with pytest.raises(ValueError, match="heads must divide channels, got 0 and 8"):
        BallAttention(8, heads=0)


def test_what_is_wrong_is_said():
    layer, tree = BallAttention(8, heads=2), ball_tree(torch.rand(8, 3))
    with pytest.raises(TypeError, match=r"expected Windows as balls, got BallTree; make them with .*balls"):
        layer(torch.rand(8, 8), torch.rand(8, 3), tree)
    with pytest.raises(ValueError, match=r"expected x \[S, C\] and pos \[S, P\], got \(5, 8\) and \(8, 3\)"):
        layer(torch.rand(5, 8), torch.rand(8, 3), tree.balls(4))


def test_no_points_are_no_special_case():
    out = BallAttention(8, heads=2)(torch.zeros(0, 8), torch.zeros(0, 3), Windows(torch.tensor([0, 0])))
    assert out.shape == (0, 8)
