"""The blocks of Perceiver against their formulas written out."""

import math

import pytest
import torch
from torch.nn import functional as F

from geoattn import Windows
from geoattn.nn import PerceiverBlock
from geoattn.nn.perceiver import fourier_features


@pytest.mark.parametrize("cross", [False, True])
def test_a_block_is_its_formula(cross):
    torch.manual_seed(0)
    block = PerceiverBlock(8, 6 if cross else None, heads=2, expansion=3).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    z, source = torch.randn(5, 8).double(), torch.randn(7, 6).double() if cross else None
    pattern = Windows(torch.tensor([0, 2, 5]), torch.tensor([0, 3, 7] if cross else [0, 2, 5]))
    expected = []
    for i in range(2):
        latents = z[pattern.query_ptr[i] : pattern.query_ptr[i + 1]]
        x = F.layer_norm(latents, (8,), block.norm.weight, block.norm.bias)
        seen = x
        if cross:
            seen = source[pattern.key_run[i, 0] : pattern.key_run[i, 1]]
            seen = F.layer_norm(seen, (6,), block.norm_source.weight, block.norm_source.bias)
        attention, width = block.attention, 6 if cross else 8  # queries are as wide as the source
        query = attention.query(x).view(-1, 2, width // 2)
        key, value = attention.key_value(seen).view(-1, 2, 2, width // 2).unbind(1)
        weight = (torch.einsum("ihd,jhd->hij", query, key) / math.sqrt(width // 2)).softmax(-1)
        latents = latents + attention.out(torch.einsum("hij,jhd->ihd", weight, value).flatten(1))
        norm, first, _, _, second = block.perceptron
        x = first(F.layer_norm(latents, (8,), norm.weight, norm.bias))
        gelu = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        expected.append(latents + second(gelu))
    found = block(z, pattern, source) if cross else block(z, pattern)
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-10, atol=1e-11)


def test_weights_begin_with_the_variance_of_the_width():
    torch.manual_seed(0)
    weight = PerceiverBlock(256, heads=1).attention.query.weight.detach()
    assert float(weight.var()) == pytest.approx(1 / 256, rel=0.02)
    assert weight.abs().max() <= 2 / 16 / 0.8796


def test_fourier_features():
    pos = torch.tensor([[0.5, -0.25]], dtype=torch.float64)
    found = fourier_features(pos, bands=3, max_frequency=5.0)
    angles = [math.pi * f * p for p in (0.5, -0.25) for f in (1.0, 3.0, 5.0)]
    expected = torch.tensor([[*map(math.sin, angles), *map(math.cos, angles)]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)


def test_a_source_belongs_to_cross_attention():
    z, pattern = torch.randn(2, 8), Windows(torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="give a source if, and only if"):
        PerceiverBlock(8, 8)(z, pattern)
    with pytest.raises(ValueError, match="give a source if, and only if"):
        PerceiverBlock(8)(z, pattern, z)
