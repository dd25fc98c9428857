"""Space-filling curves: against interleaving by hand, by their neighbors on full grids, and published vectors."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import geoattn
from geoattn import native
from geoattn.geometry import grid_depth, serialize
from geoattn.geometry.curves import hilbert, z_order

CURVES = pytest.mark.parametrize("curve", [z_order, hilbert])
ORDERS = ("z", "z-trans", "hilbert", "hilbert-trans")
BACKENDS = pytest.mark.parametrize("backend", ["torch", *(["cpu"] if native.library() else [])])


def grid(axes, bits):
    """Every cell, ``[2^(bits * axes), axes]``."""
    return torch.tensor(list(itertools.product(range(2**bits), repeat=axes)))


@st.composite
def cells(draw):
    axes = draw(st.integers(1, 5))
    bits = draw(st.integers(1, min(31, 63 // axes)))
    points = draw(st.lists(st.lists(st.integers(0, 2**bits - 1), min_size=axes, max_size=axes), max_size=8))
    return torch.tensor(points, dtype=torch.int64).view(-1, axes), bits


@given(cells())
def test_z_order_interleaves_bits(case):
    pos, bits = case
    expected = [int("".join(map("".join, zip(*(f"{c:0{bits}b}" for c in p), strict=True))), 2) for p in pos.tolist()]
    assert z_order(pos, bits=bits).tolist() == expected


@pytest.mark.parametrize(("axes", "bits"), [(1, 5), (2, 1), (2, 2), (2, 5), (3, 1), (3, 2), (3, 4), (4, 3)])
def test_hilbert_steps_from_neighbor_to_neighbor_through_every_cell(axes, bits):
    pos = grid(axes, bits)
    code = hilbert(pos, bits=bits)
    assert torch.equal(code.sort().values, torch.arange(len(pos)))
    assert bool((pos[code.argsort()].diff(dim=0).abs().sum(1) == 1).all())
    assert code[0] == 0


@CURVES
@pytest.mark.parametrize(("axes", "bits"), [(2, 4), (3, 3)])
def test_codes_are_nested(curve, axes, bits):
    # Cells of twice the size are runs of 2^axes codes, on every level.
    pos = grid(axes, bits)
    code = curve(pos, bits=bits)
    for level in range(bits + 1):
        runs = torch.stack([code >> axes * level, *(pos >> level).T]).unique(dim=1)
        assert runs.size(1) == 2 ** (axes * (bits - level))


# Computed from the definition used by Point Transformer V3 by an implementation of its own; columns are
# z, z-trans, hilbert, hilbert-trans.
VECTORS = {
    3: {
        (0, 0, 1): (1, 1, 3, 3),
        (0, 1, 0): (2, 4, 7, 1),
        (1, 0, 0): (4, 2, 1, 7),
        (1, 2, 3): (29, 43, 48, 38),
        (3, 2, 1): (53, 51, 20, 22),
        (5, 0, 7): (333, 203, 430, 142),
        (7, 7, 7): (511, 511, 365, 365),
    },
    4: {(0, 1, 0): (2, 4, 3, 7), (1, 2, 3): (29, 43, 36, 20), (5, 0, 7): (333, 203, 270, 440)},
    16: {(12345, 54321, 777): (81778476018183, 159845949072903, 131844176086295, 277683759620375)},
}


@BACKENDS
@pytest.mark.parametrize("bits", VECTORS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_serialization_codes_of_point_transformer_v3(bits, dtype, backend):
    grid = torch.tensor(list(VECTORS[bits]), dtype=dtype)
    with geoattn.backend(backend):
        found = serialize(grid, depth=bits)
        for row, (curve, axes) in enumerate(itertools.product((z_order, hilbert), ([0, 1, 2], [1, 0, 2]))):
            assert torch.equal(curve(grid[:, axes], bits=bits), found.code[row])
    assert found.code.T.tolist() == [list(row) for row in VECTORS[bits].values()]


def bit_by_bit(point, depth, name):
    """The code as the definition is written down: lists of bits of three coordinates, highest first."""
    x, y, z = point
    axes = [[c >> b & 1 for b in reversed(range(depth))] for c in ((y, x, z) if name.endswith("-trans") else (x, y, z))]
    if name.startswith("hilbert"):
        for b in range(depth):
            for k in range(3):
                if axes[k][b]:
                    axes[0][b + 1 :] = [1 - bit for bit in axes[0][b + 1 :]]
                else:
                    axes[0][b + 1 :], axes[k][b + 1 :] = axes[k][b + 1 :], axes[0][b + 1 :]
    digits = [axes[k][b] for b in range(depth) for k in range(3)]
    if name.startswith("hilbert"):
        digits = list(itertools.accumulate(digits, lambda before, digit: before ^ digit))
    return int("0" + "".join(map(str, digits)), 2)


@BACKENDS
@given(seed=st.integers(0, 2**31), depth=st.integers(0, 16), orders=st.lists(st.sampled_from(ORDERS), min_size=1))
def test_serialization_is_the_definition_point_by_point(backend, seed, depth, orders):
    generator = torch.Generator().manual_seed(seed)
    grid = torch.randint(0, 2**depth, (12, 3), generator=generator)
    grid[6:9] = grid[:3]
    batch = torch.randint(0, 4, (12,), generator=generator)
    with geoattn.backend(backend):
        found = serialize(grid, batch, orders, depth)
    assert found.depth == depth
    for name, code, order, inverse in zip(orders, *found[:3], strict=True):
        keys = [(b, bit_by_bit(p, depth, name)) for b, p in zip(batch.tolist(), grid.tolist(), strict=True)]
        assert code.tolist() == [b * 8**depth + c for b, c in keys]
        assert order.tolist() == sorted(range(12), key=keys.__getitem__)  # which is stable, too
        assert inverse[order].tolist() == list(range(12))


@pytest.mark.parametrize("bits", range(1, 22))
@CURVES
def test_compiled_codes_are_those_of_torch(curve, bits):
    pos = torch.randint(0, 2**bits, (500, 3), generator=torch.Generator().manual_seed(bits))
    with geoattn.backend("torch"):
        expected = curve(pos, bits=bits)
    assert torch.equal(curve(pos, bits=bits), expected)


@BACKENDS
@pytest.mark.parametrize("name", ORDERS)
def test_serialization_visits_every_voxel_and_is_nested(backend, name):
    everywhere = grid(3, 3)
    with geoattn.backend(backend):
        code, order, _, depth = serialize(everywhere, orders=[name])
        assert depth == 3
        assert code[0, order[0]].tolist() == list(range(512))
        if name.startswith("hilbert"):
            assert bool((everywhere[order[0]].diff(dim=0).abs().sum(1) == 1).all())
        for t in range(4):
            parents = serialize(everywhere >> t, orders=[name], depth=depth - t)
            assert torch.equal(code >> 3 * t, parents.code)


def test_pooled_voxels_of_a_batch_have_the_codes_of_their_parents():
    generator = torch.Generator().manual_seed(0)
    voxels = torch.randint(0, 50, (300, 3), generator=generator)
    batch = torch.randint(0, 3, (300,), generator=generator)
    fine = serialize(voxels, batch)
    coarse = serialize(voxels >> 2, batch, depth=fine.depth - 2)
    assert torch.equal(fine.code >> 6, coarse.code)
    # Points that are neighbors in the order of the fine voxels stay so.
    assert torch.equal(coarse.code[0, fine.order[0]], coarse.code[0].sort().values)


def test_both_depth_rules():
    for highest, depth, beyond in ((0, 0, 1), (1, 1, 2), (6, 3, 3), (7, 3, 4), (8, 4, 4)):
        voxels = torch.tensor([[0, 0, 0], [highest, 0, 0]])
        assert grid_depth(voxels) == serialize(voxels).depth == depth
        assert grid_depth(voxels, beyond=1) == beyond
    assert grid_depth(torch.zeros(0, 3, dtype=torch.int64)) == 0


@BACKENDS
def test_serialization_of_one_voxel_or_none(backend):
    with geoattn.backend(backend):
        for count in (0, 1, 4):
            voxels = torch.zeros(count, 3, dtype=torch.int64)
            code, order, inverse, depth = serialize(voxels)
            assert depth == 0
            assert code.shape == order.shape == inverse.shape == (4, count)
            assert code.count_nonzero() == 0
            assert order.tolist() == inverse.tolist() == [list(range(count))] * 4
        code, order, inverse, _ = serialize(torch.zeros(3, 3, dtype=torch.int32), torch.tensor([2, 0, 2]), ["hilbert"])
        assert (code.tolist(), order.tolist(), inverse.tolist()) == ([[2, 0, 2]], [[1, 0, 2]], [[1, 0, 2]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": torch.zeros(2, 2, dtype=torch.int64)}, r"expected grid \[N, 3\] of int64, got torch.int64 \[2, 2\]"),
        ({"grid": torch.tensor([[0, -1, 2]])}, "must not be negative, got -1: subtract"),
        ({"grid": torch.tensor([[0, 65536, 2]])}, "grid reaches 65536, beyond 16 bits .* choose larger voxels"),
        ({"depth": 2}, r"depth must be in \[3, 16\] for coordinates up to 5, got 2"),
        ({"depth": 17}, r"depth must be in \[3, 16\], got 17"),
        ({"orders": "z"}, "orders must be a sequence of some of 'z', 'z-trans', 'hilbert', 'hilbert-trans', got 'z'"),
        ({"orders": ["z", "peano"]}, r"got \['z', 'peano'\]"),
        ({"orders": []}, r"got \[\]"),
        ({"batch": torch.tensor([-1])}, "got -1 to -1"),
        ({"batch": torch.tensor([2**15]), "depth": 16}, r"batch must be in \[0, 2\^15\), got 32768 to 32768"),
        ({"batch": torch.tensor([0, 1])}, r"expected batch \[1\] of int64 on cpu, got torch.int64 \[2\] on cpu"),
        ({"batch": torch.zeros(1, dtype=torch.int64, device="meta")}, "on meta"),
    ],
)
def test_what_cannot_be_serialized_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        serialize(**{"grid": torch.tensor([[0, 5, 2]]), **arguments})
    with pytest.raises(ValueError, match="beyond must be 0 or 1, got 2"):
        grid_depth(torch.tensor([[0, 5, 2]]), beyond=2)


@CURVES
def test_batches_are_as_samples_alone_one_after_the_other(curve):
    pos = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 20.0, 0.1])
    batch = torch.arange(60) % 3
    pos[batch == 2] *= 1000
    code = curve(pos, batch)
    assert torch.equal(code >> 48, batch)
    for sample in range(3):
        assert torch.equal(code[batch == sample] - (sample << 48), curve(pos[batch == sample]))


@CURVES
@given(seed=st.integers(0, 2**31), factor=st.sampled_from([2.0**-20, 0.5, 1.0, 1024.0]))
def test_floats_are_cut_into_cells_of_the_bounding_cube(curve, seed, factor):
    generator = torch.Generator().manual_seed(seed)
    cell = torch.randint(0, 16, (30, 3), generator=generator)
    cell[0], cell[1, 0] = 0, 15
    inside = (torch.rand(30, 3, generator=generator, dtype=torch.float64) * 0.9 + 0.05).where(cell > 0, 0.0)
    inside[1, 0] = 1.0  # the rim belongs to the last cell
    pos = (cell + inside).where(cell + inside <= 16, 16.0)
    assert torch.equal(curve(pos * factor + 3 * factor, bits=4), curve(cell, bits=4))


@CURVES
def test_sorting_brings_neighbors_together(curve):
    pos = torch.rand(4096, 3, generator=torch.Generator().manual_seed(0))
    step = pos[curve(pos).argsort(stable=True)].diff(dim=0).norm(dim=1)
    assert step.mean() < 0.15 * pos.diff(dim=0).norm(dim=1).mean()


@CURVES
def test_degenerate_clouds(curve):
    assert curve(torch.zeros(0, 3)).shape == (0,)
    assert curve(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).shape == (0,)
    assert curve(torch.full((4, 3), 7.5)).tolist() == [0, 0, 0, 0]
    assert curve(torch.zeros(3, 3), torch.tensor([0, 5, 5])).tolist() == [0, 5 << 48, 5 << 48]
    assert curve(torch.tensor([[0.0, 0.0, 3.0e38], [0.0, 0.0, -3.0e38]])).max() > 0
    pos = torch.rand(5, 3)
    before = pos.clone()
    curve(pos)
    assert torch.equal(pos, before)
    cell = grid(3, 1)
    curve(cell)
    assert torch.equal(cell, grid(3, 1))


@CURVES
@pytest.mark.parametrize(
    ("pos", "batch", "bits", "message"),
    [
        (torch.zeros(3), None, 16, r"expected pos \[N, D\]"),
        (torch.zeros(3, 3), None, 22, r"bits must be in \[1, 21\] for 3 axes, got 22"),
        (torch.zeros(3, 3), None, 0, "bits must be in"),
        (torch.tensor([[0, 8]]), None, 3, r"cells in \[0, 2\^3\), got 0 to 8"),
        (torch.tensor([[0, -1]]), None, 3, "got -1 to 0"),
        (torch.tensor([[0.0, torch.nan]]), None, 3, "NaN or infinite"),
        (torch.tensor([[0.0, torch.inf], [0.0, 0.0]]), torch.tensor([0, 1]), 3, "NaN or infinite"),
        (torch.zeros(2, 3), torch.tensor([0, 1, 2]), 16, r"expected batch \[2\]"),
        (torch.zeros(2, 3), torch.tensor([0, -1]), 16, r"batch must be in \[0, 2\^15\), got -1 to 0"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), 21, r"3 axes of 21 bits leave it 0"),
    ],
)
def test_bad_input_is_named(curve, pos, batch, bits, message):
    with pytest.raises(ValueError, match=message):
        curve(pos, batch, bits)
