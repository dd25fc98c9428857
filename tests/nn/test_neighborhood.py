"""Neighborhood attention: on grids against dense masked attention, on points against the grid."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from geoattn import Neighbors
from geoattn.nn import (
    NeighborhoodAttention,
    NeighborhoodAttention1d,
    NeighborhoodAttention2d,
    NeighborhoodAttention3d,
    OffsetMLP,
    OffsetTable,
    RelativePositionTable,
    RotaryPositions,
)
from geoattn.patterns import grid_neighbors, grid_offsets

LAYERS = {1: NeighborhoodAttention1d, 2: NeighborhoodAttention2d, 3: NeighborhoodAttention3d}
# Shape, and window.
GRIDS = {
    "a line": ((11,), {"kernel_size": 5}),
    "even": ((12,), {"kernel_size": 4, "stride": 3}),
    "causal": ((13,), {"kernel_size": 4, "stride": 2, "dilation": 3, "is_causal": True}),
    "an image": ((7, 6), {"kernel_size": 3}),
    "dilated": ((8, 9), {"kernel_size": (3, 4), "stride": (2, 1), "dilation": (2, 2)}),
    "blocks": ((6, 6), {"kernel_size": 3, "stride": 3}),
    "video": ((4, 5, 4), {"kernel_size": (2, 3, 2), "dilation": (2, 1, 1), "is_causal": (True, False, False)}),
}
every_grid = pytest.mark.parametrize("name", GRIDS)


def layer_of(name, channels=8, heads=2, **settings):
    torch.manual_seed(0)
    shape, window = GRIDS[name]
    layer = LAYERS[len(shape)](channels, heads, **window, **settings).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.4)
    return layer, torch.randn(2, *shape, channels, dtype=torch.float64, requires_grad=True)


def pattern_of(name):
    shape, window = GRIDS[name]
    return grid_neighbors(shape, **window)


def dense(layer, x, pattern, place):
    """Attention among everything, masked."""
    samples, count = x.size(0), pattern.num_queries
    bias = torch.full((layer.num_heads, count, count), -math.inf, dtype=x.dtype)
    numbers = torch.zeros(layer.num_heads, place.numel()) if layer.rpb is None else layer.rpb.flatten(1)[:, place]
    bias = bias.index_put(
        (torch.arange(layer.num_heads)[:, None], pattern.row.long(), pattern.col.long()), numbers.to(x)
    )
    qkv = layer.qkv(x).view(samples, count, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(*qkv, attn_mask=bias, scale=layer.scale)
    return layer.proj(out.transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize("rel_pos_bias", [False, True])
@every_grid
def test_outputs_and_gradients_are_those_of_dense_attention(name, rel_pos_bias):
    layer, x = layer_of(name, rel_pos_bias=rel_pos_bias)
    shape, window = GRIDS[name]
    found, expected = layer(x), dense(layer, x, pattern_of(name), grid_offsets(shape, **window))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    upstream, inputs = torch.randn_like(found), [x, *layer.parameters()]
    for ours, theirs in zip(*(torch.autograd.grad(out, inputs, upstream) for out in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


def test_gradients_of_gradients():
    layer, _ = layer_of("an image", channels=4, rel_pos_bias=True)
    x = torch.randn(1, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    rpb = layer.rpb.detach().clone().requires_grad_()

    def run(x, rpb):
        return torch.func.functional_call(layer, {"rpb": rpb}, (x,))

    assert torch.autograd.gradcheck(run, (x, rpb))
    assert torch.autograd.gradgradcheck(run, (x, rpb))


def test_a_batch_is_its_samples_side_by_side():
    layer, x = layer_of("dilated", rel_pos_bias=True)
    torch.testing.assert_close(layer(x), torch.cat([layer(x[:1]), layer(x[1:])]), rtol=1e-12, atol=1e-12)
    assert layer(x[:0]).shape == (0, 8, 9, 8)


def test_parameters_have_the_names_of_natten():
    layer = NeighborhoodAttention2d(8, 2, (3, 5), rel_pos_bias=True)
    assert {name: tuple(x.shape) for name, x in layer.state_dict().items()} == {
        "rpb": (2, 5, 9),
        "qkv.weight": (24, 8),
        "qkv.bias": (24,),
        "proj.weight": (8, 8),
        "proj.bias": (8,),
    }
    assert set(NeighborhoodAttention2d(8, 2, 3, qkv_bias=False).state_dict()) == {
        "qkv.weight",
        "proj.weight",
        "proj.bias",
    }


class TableOfWindow(nn.Module):
    """The table of a layer on grids, read at offsets of positions."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, query_position, key_position):
        sizes = torch.tensor(self.layer.kernel_size)
        offset = (key_position - query_position).squeeze(1) / torch.tensor(self.layer.dilation) + sizes - 1
        found = self.layer.rpb[(slice(None), *offset.round().long().unbind(1))]
        return found.t()[:, :, None, None]


@every_grid
def test_points_with_the_windows_of_a_grid_are_a_grid(name):
    layer, x = layer_of(name, rel_pos_bias=True)
    irregular = NeighborhoodAttention(8, 2, position_bias=TableOfWindow(layer)).double()
    irregular.qkv, irregular.proj = layer.qkv, layer.proj
    shape = GRIDS[name][0]
    pos = torch.cartesian_prod(*(torch.arange(length) for length in shape)).view(-1, len(shape)).double()
    found = irregular(x[0].flatten(0, -2), pos, pattern_of(name))
    torch.testing.assert_close(found.view(x[0].shape), layer(x)[0], rtol=1e-10, atol=1e-11)


def test_errors_of_grids():
    layer = NeighborhoodAttention2d(8, 2, 7)
    with pytest.raises(ValueError, match=r"expected x \[B, X, Y, 8\], got \(1, 9, 8\)"):
        layer(torch.randn(1, 9, 8))
    with pytest.raises(ValueError, match=r"got 7 \* 1 and 6 for axis 1 of \(9, 6\)"):
        layer(torch.randn(1, 9, 6, 8))
    with pytest.raises(ValueError, match="num_heads must divide embed_dim, got 0 and 8"):
        NeighborhoodAttention(8, 0, k=2)
    assert NeighborhoodAttention(8, 2, k=2)(torch.zeros(0, 8), torch.zeros(0, 3)).shape == (0, 8)
    with pytest.raises(ValueError, match="num_heads must divide embed_dim, got 3 and 8"):
        NeighborhoodAttention1d(8, 3, 7)
    with pytest.raises(ValueError, match="stride must be at most kernel_size, got 4 and 3"):
        NeighborhoodAttention3d(8, 2, 3, stride=4)


# ---- Points ---------------------------------------------------------------------------------------------------------

BIASES = {
    "mlp": lambda: OffsetMLP(2, hidden=3, unit=0.5),
    "table": lambda: OffsetTable(2, cell=0.2, bound=2),
    "none": lambda: None,
}


def cloud(count=9, channels=12, seed=0):
    make = torch.Generator().manual_seed(seed)
    x, pos = torch.randn(count, channels, generator=make), torch.rand(count, 3, generator=make)
    return x.double().requires_grad_(), pos.double().requires_grad_()


def layer_on_points(bias="none", rotary=False, **settings):
    torch.manual_seed(0)
    turn = RotaryPositions(6, unit=0.3) if rotary else None
    layer = NeighborhoodAttention(12, 2, **settings, position_bias=BIASES[bias](), rotary=turn).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.4)
    return layer


@pytest.mark.parametrize("bias", BIASES)
def test_attention_among_neighbors_equals_its_formula(bias):
    layer, (x, pos) = layer_on_points(bias, k=4), cloud()
    pattern, out = layer.neighbors(pos), layer(x, pos)
    query, key, value = layer.qkv(x).view(9, 3, 2, 6).unbind(1)
    for i in range(9):
        near = (pos - pos[i]).norm(dim=1).argsort()[:4]
        assert pattern.col[pattern.rowptr[i] : pattern.rowptr[i + 1]].tolist() == near.tolist()
        score = torch.einsum("hd,jhd->hj", query[i], key[near]) / 6**0.5
        if bias == "mlp":
            score = score + layer.position_bias.mlp((pos[near] - pos[i]) / 0.5).t()
        if bias == "table":
            cells = ((pos[near] - pos[i]) / 0.2 + 0.5).floor().long().clamp(-2, 2) + 2
            score = score + sum(layer.position_bias.table.view(3, 5, 2)[a, cells[:, a]].t() for a in range(3))
        expected = layer.proj(torch.einsum("hj,jhd->hd", score.softmax(1), value[near]).flatten())
        torch.testing.assert_close(out[i], expected, rtol=1e-10, atol=1e-11)


def test_neighbors_of_every_kind():
    _, pos = cloud(20)
    distance = (pos.unsqueeze(1) - pos).norm(dim=2)
    order = distance.argsort(1)
    dilated = layer_on_points(k=3, dilation=4).neighbors(pos)
    assert torch.equal(dilated.col.view(20, 3), order[:, [0, 4, 8]])
    within = layer_on_points(radius=0.4).neighbors(pos)
    assert torch.equal(within.degree, (distance <= 0.4).sum(1))
    few = layer_on_points(radius=0.4, k=3).neighbors(pos)
    assert torch.equal(few.degree, (distance <= 0.4).sum(1).clamp(max=3))
    small = Neighbors.knn(pos[:7], 3, dilation=4)
    assert torch.equal(small.col.view(7, 2), distance[:7, :7].argsort(1)[:, [0, 4]])


@pytest.mark.parametrize("rotary", [False, True])
def test_clouds_of_a_batch_do_not_see_each_other_and_order_does_not_matter(rotary):
    layer, (x, pos) = layer_on_points("mlp", rotary, k=4), cloud()
    batch = torch.tensor([0] * 5 + [1] * 4)
    parts = [layer(x[batch == i], pos[batch == i]) for i in (0, 1)]
    torch.testing.assert_close(layer(x, pos, batch=batch), torch.cat(parts), rtol=1e-10, atol=1e-11)
    order = torch.tensor([4, 2, 8, 0, 1, 3, 7, 5, 6])
    torch.testing.assert_close(layer(x[order], pos[order]), layer(x, pos)[order], rtol=1e-10, atol=1e-11)


def test_moving_the_cloud_changes_nothing():
    for layer in (layer_on_points("mlp", k=4), layer_on_points("none", True, k=4)):
        x, pos = cloud()
        torch.testing.assert_close(layer(x, pos + 7.0), layer(x, pos), rtol=1e-9, atol=1e-10)


def test_rotary_positions_turn_pairs():
    rotary = RotaryPositions(14, unit=0.5, base=16.0).double()
    x, pos = torch.randn(5, 2, 14).double(), torch.randn(5, 3).double()
    turned = rotary(x, pos)
    for axis in range(3):
        for f in range(2):
            pair = slice(2 * (2 * axis + f), 2 * (2 * axis + f) + 2)
            angle = pos[:, axis] / 0.5 * 16.0 ** (-f / 2)
            expected = (
                torch.view_as_complex(x[..., pair].contiguous()) * torch.polar(torch.ones(5).double(), angle)[:, None]
            )
            torch.testing.assert_close(turned[..., pair], torch.view_as_real(expected))
    assert torch.equal(turned[..., 12:], x[..., 12:])


@pytest.mark.parametrize(("bias", "rotary"), [("mlp", True), ("table", False)])
def test_derivatives_on_points(bias, rotary):
    layer, (x, pos) = layer_on_points(bias, rotary, k=2), cloud(4)
    pattern = layer.neighbors(pos)
    wanted = pos if bias == "mlp" else pos.detach()
    if bias == "mlp":  # which has corners
        layer.position_bias.mlp[1] = nn.Tanh()
    run = lambda x, pos: layer(x, pos, pattern)  # noqa: E731
    assert torch.autograd.gradcheck(run, (x, wanted))
    assert torch.autograd.gradgradcheck(run, (x, wanted))


def test_tables_of_grid_coordinates_serve_points_on_a_grid():
    table = RelativePositionTable(2, 48)
    layer = NeighborhoodAttention(12, 2, position_bias=table)
    cells = torch.randint(10, (9, 3))
    pattern = Neighbors.knn(cells, 4)
    assert layer(torch.randn(9, 12), cells, pattern).shape == (9, 12)


def test_errors_on_points():
    x, pos = torch.randn(9, 12), torch.rand(9, 3)
    with pytest.raises(ValueError, match="give k or radius to NeighborhoodAttention, or edge_index"):
        NeighborhoodAttention(12, 2)(x, pos)
    with pytest.raises(ValueError, match=r"got k=None, radius=0\.1 and dilation=2"):
        NeighborhoodAttention(12, 2, radius=0.1, dilation=2)
    with pytest.raises(ValueError, match=r"expected x \[N, 12\] and pos \[N, P\], got \(9, 12\) and \(8, 3\)"):
        NeighborhoodAttention(12, 2, k=3)(x, pos[1:])
    with pytest.raises(ValueError, match="3 axes need at least 6 channels in a head, got 4"):
        RotaryPositions(4)
    with pytest.raises(ValueError, match=r"expected positions \[N, 3\], got \(9, 2\)"):
        NeighborhoodAttention(12, 2, k=3, rotary=RotaryPositions(6))(x, pos[:, :2])
    for module in (OffsetMLP, OffsetTable):
        with pytest.raises(ValueError, match="must be positive, got 0"):
            module(2, unit=0.0) if module is OffsetMLP else module(2, cell=0.0)
