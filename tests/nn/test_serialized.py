"""Attention along a curve, against the padded patches of the paper written plainly."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from geoattn.geometry import serialize
from geoattn.nn import SerializedAttention

pytestmark = pytest.mark.filterwarnings("ignore:geoattn is several times slower")


def padded(layer, x, order, counts, grid):
    """Every cloud padded to whole patches, the last one with points of the patch before, as in the authors' code."""
    K, H = layer.patch_size, layer.heads
    query, key, value = layer.qkv(x).view(len(x), 3, H, -1).unbind(1)
    out = torch.zeros_like(query)
    begin = 0
    for n in counts:
        mine = order[begin : begin + n]
        begin += n
        size = min(K, n)
        for start in range(0, n, size):
            real = mine[start : start + size]
            seen = mine[max(min(start + size, n) - size, 0) : min(start + size, n)]
            score = torch.einsum("qhd,khd->hqk", query[real], key[seen]) * query.size(-1) ** -0.5
            if layer.rpe is not None:
                bound = layer.rpe.bound
                offset = (grid[real][:, None] - grid[seen][None]).clamp(-bound, bound) + bound
                table = layer.rpe.rpe_table.view(3, 2 * bound + 1, H)
                score = score + sum(table[a][offset[..., a]] for a in range(3)).permute(2, 0, 1)
            out = out.index_put((real,), torch.einsum("hqk,khd->qhd", score.softmax(-1), value[seen]))
    return layer.proj(out.flatten(1))


def problem(counts, dtype=torch.float64):
    torch.manual_seed(0)
    grid = torch.stack([torch.randint(0, 40, (sum(counts),)) for _ in range(3)], 1)
    batch = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return torch.randn(sum(counts), 8, dtype=dtype), grid, serialize(grid, batch)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("counts", [[5], [16], [17], [40, 3, 16, 1], [100]])
def test_it_is_the_padded_patches_of_the_paper(relative, counts):
    x, grid, found = problem(counts)
    layer = SerializedAttention(8, 2, 16, relative).double()
    x.requires_grad_()
    for curve in range(4):
        out = layer(x, found.order[curve], found.inverse[curve], layer.windows(counts), grid)
        expected = padded(layer, x, found.order[curve], counts, grid)
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
        inputs = [x, *layer.parameters()]
        grads = torch.autograd.grad(out.square().sum(), inputs)
        for a, b in zip(grads, torch.autograd.grad(expected.square().sum(), inputs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_derivatives():
    x, grid, found = problem([7, 2])
    layer = SerializedAttention(8, 2, 4, relative_positions=True).double()

    def run(x):
        return layer(x, found.order[2], found.inverse[2], layer.windows([7, 2]), grid)

    assert gradcheck(run, x.requires_grad_())
    assert gradgradcheck(run, x)


def test_points_may_come_in_any_order():
    x, grid, found = problem([50])
    layer = SerializedAttention(8, 2, 16).double()
    order = torch.randperm(50)
    again = serialize(grid[order])
    out = layer(x, found.order[0], found.inverse[0], layer.windows([50]))
    permuted = layer(x[order], again.order[0], again.inverse[0], layer.windows([50]))
    torch.testing.assert_close(permuted, out[order])


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match="heads must divide channels, got 8 channels and 3 heads"):
        SerializedAttention(8, 3)
    with pytest.raises(ValueError, match="heads must divide channels, got 8 channels and 0 heads"):
        SerializedAttention(8, 0)
    with pytest.raises(ValueError, match="patch_size must be at least 1, got 0"):
        SerializedAttention(8, 2, patch_size=0)
    x, _, found = problem([5])
    layer = SerializedAttention(8, 2, 4, relative_positions=True).double()
    with pytest.raises(ValueError, match="relative positions need grid_coord"):
        layer(x, found.order[0], found.inverse[0], layer.windows([5]))
    with pytest.raises(ValueError, match=r"expected x \[N, C\] and one row .* got \(5, 8\), \(4, 5\) and \(4, 5\)"):
        layer(x, found.order, found.inverse, layer.windows([5]))
    with pytest.raises(ValueError, match=r"got \(4, 8\), \(5,\) and \(5,\)"):
        layer(x[:4], found.order[0], found.inverse[0], layer.windows([4]))


def test_no_points_are_no_special_case():
    layer, none = SerializedAttention(8, 2, 4), torch.zeros(0, dtype=torch.long)
    assert layer(torch.zeros(0, 8), none, none, layer.windows([0])).shape == (0, 8)
