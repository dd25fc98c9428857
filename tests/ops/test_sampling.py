"""Farthest points against the plain loop; voxels against dictionaries."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geoattn import native
from geoattn.geometry.search import compiled, torch_tree
from geoattn.ops import farthest_point_sample, grid_sample, sampling, voxel_pool

IMPLEMENTATIONS = [torch_tree] + ([compiled] if native.library() is not None else [])


@pytest.fixture(params=IMPLEMENTATIONS, ids=lambda module: module.__name__.rsplit(".")[-1], scope="module")
def implementation(request):
    """Each in turn does what `farthest_point_sample` is asked for, on CPU tensors."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("compiled", "torch_tree"):
            patch.setattr(sampling, name, request.param)
        yield request.param


def plain_loop(pos, count, start=0):
    """The definition."""
    pos = pos.double()
    away = torch.full((len(pos),), math.inf, dtype=torch.float64)
    chosen = [start]
    for _ in range(min(count, len(pos)) - 1):
        square = sum((pos[:, d] - pos[chosen[-1], d]) ** 2 for d in range(pos.size(1)))
        away = torch.minimum(away, square)
        away[chosen] = -1
        chosen.append(int((away == away.max()).nonzero()[0]))
    return chosen


def lattice(dim, most=30):
    point = st.tuples(*[st.integers(-1, 3)] * dim)
    return st.lists(point, min_size=1, max_size=most).map(lambda p: torch.tensor(p, dtype=torch.float32))


@given(st.integers(1, 5).flatmap(lattice), st.integers(1, 40), st.data())
def test_farthest_points_equal_the_plain_loop(implementation, pos, count, data):
    start = data.draw(st.integers(0, len(pos) - 1))
    assert farthest_point_sample(pos, count, start=start).tolist() == plain_loop(pos, count, start)


@pytest.mark.parametrize("dim", [1, 2, 3, 6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_farthest_of_many_points(implementation, dim, dtype):
    pos = torch.randn(3000, dim, generator=torch.Generator().manual_seed(dim)).to(dtype).requires_grad_()
    assert farthest_point_sample(pos, 200).tolist() == plain_loop(pos.detach(), 200)


@given(
    st.lists(st.tuples(lattice(3, 12), st.integers(0, 11)), min_size=1, max_size=6), st.sampled_from([0.1, 0.5, 1.0])
)
def test_a_batch_is_its_samples_side_by_side(implementation, parts, ratio):
    pos = torch.cat([p for p, _ in parts])
    batch = torch.tensor([2 * s - 3 for s, (p, _) in enumerate(parts) for _ in p])
    starts, by_number, by_ratio, before = [], [], [], 0
    for p, start in parts:
        start %= len(p)
        starts.append(before + start)
        by_number += [before + i for i in plain_loop(p, 4, start)]
        by_ratio += [before + i for i in plain_loop(p, math.ceil(ratio * len(p)))]
        before += len(p)
    assert farthest_point_sample(pos, 4, batch=batch, start=torch.tensor(starts)).tolist() == by_number
    assert farthest_point_sample(pos, ratio=ratio, batch=batch).tolist() == by_ratio


@pytest.mark.parametrize("name", ["one place", "a lattice", "a far point"])
def test_no_arrangement_is_slow(name):
    n = 20_000
    pos = {
        "one place": torch.full((n, 3), 0.1),
        "a lattice": torch.cartesian_prod(*[torch.arange(27.0)] * 3),
        "a far point": torch.rand(n, 3, generator=torch.Generator().manual_seed(0)).index_fill(
            0, torch.tensor([5]), 1e30
        ),
    }[name]
    chosen = farthest_point_sample(pos, 300)
    assert chosen.tolist() == plain_loop(pos, 300)


def test_all_points_are_a_permutation(implementation):
    pos = torch.randint(0, 5, (500, 3), generator=torch.Generator().manual_seed(0)).float()
    chosen = farthest_point_sample(pos, ratio=1.0)
    assert torch.equal(chosen.sort().values, torch.arange(500))
    assert torch.equal(chosen, farthest_point_sample(pos, 10_000))


@given(lattice(2), st.integers(1, 6), st.randoms(use_true_random=False))
def test_chosen_distances_fall_and_do_not_depend_on_order(pos, count, random):
    """Ties may be broken otherwise, but the distance of the first point chosen after the start is the same."""
    order = list(range(len(pos)))
    random.shuffle(order)

    def first_step(p, start):
        chosen = p[farthest_point_sample(p, 2, start=start)]
        return float((chosen[-1] - chosen[0]).norm())

    assert first_step(pos, 0) == first_step(pos[order], order.index(0))
    chosen = pos[farthest_point_sample(pos, count)]
    away = [float((chosen[:i] - chosen[i]).norm(dim=1).min()) for i in range(1, len(chosen))]
    assert away == sorted(away, reverse=True)


coordinate = st.floats(-4, 4, width=32)
sizes = st.sampled_from([0.5, 1.0, 2.5, [0.5, 1.0, 2.0]])


@given(st.lists(st.tuples(coordinate, coordinate, coordinate), min_size=1, max_size=20), sizes, st.data())
def test_voxels_are_cells(points, size, data):
    pos = torch.tensor(points)
    batch = torch.tensor(sorted(data.draw(st.lists(st.integers(-1, 2), min_size=len(pos), max_size=len(pos)))))
    side = [size] * 3 if isinstance(size, float) else size
    cells = {}
    for i, point in enumerate(points):
        cells.setdefault((int(batch[i]), *(math.floor(x / s) for x, s in zip(point, side, strict=True))), []).append(i)
    groups = [cells[cell] for cell in sorted(cells)]

    index, cluster = grid_sample(pos, size, batch)
    assert index.tolist() == [group[0] for group in groups]
    assert [(cluster == v).nonzero().squeeze(1).tolist() for v in range(len(index))] == groups

    x = torch.randn(len(pos), 2, generator=torch.Generator().manual_seed(0))
    for reduce in ("mean", "max", "min", "sum"):
        pooled = voxel_pool(x, pos, size, batch, reduce)
        expected = torch.stack(
            [getattr(x[group], {"max": "amax", "min": "amin"}.get(reduce, reduce))(0) for group in groups]
        )
        torch.testing.assert_close(pooled.x, expected)
        torch.testing.assert_close(pooled.pos, torch.stack([pos[group].mean(0) for group in groups]))
        assert torch.equal(pooled.batch, batch[index])
        assert torch.equal(pooled.cluster, cluster)


def test_gradients_of_pooling():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    pos = torch.rand(12, 2, dtype=torch.float64, generator=generator)
    pos = ((2 * pos).floor() + 0.25 + pos / 2).requires_grad_()  # away from the walls
    for reduce in ("mean", "max", "min", "sum"):
        torch.autograd.gradcheck(lambda x, pos, reduce=reduce: voxel_pool(x, pos, 1.0, reduce=reduce)[:2], (x, pos))


def test_half_features_are_summed_in_float32():
    x, pos = torch.full((5000, 1), 0.1, dtype=torch.float16), torch.full((5000, 3), 0.5)
    assert abs(float(voxel_pool(x, pos, 1.0).x) - 0.1) < 1e-3


def test_nothing_to_sample():
    empty = torch.zeros(0, 3)
    assert farthest_point_sample(empty, 3).numel() == 0
    assert [part.numel() for part in grid_sample(empty, 1.0)] == [0, 0]
    assert voxel_pool(empty, empty, 1.0).x.shape == (0, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pos: farthest_point_sample(pos), "either num_samples or ratio, got None and None"),
        (lambda pos: farthest_point_sample(pos, 1, 0.5), "got 1 and 0.5"),
        (lambda pos: farthest_point_sample(pos, 0), "num_samples must be at least 1, got 0"),
        (lambda pos: farthest_point_sample(pos, ratio=1.5), r"ratio must be in \(0, 1\], got 1.5"),
        (lambda pos: farthest_point_sample(pos, 1, start=4), "start 4 is not in its sample, points 0 to 3"),
        (lambda pos: farthest_point_sample(pos, 1, start=torch.tensor([0, 1])), r"start as integers \[1\]"),
        (lambda pos: farthest_point_sample(pos / 0, 1), "pos has NaN"),
        (lambda pos: grid_sample(pos, 0.0), "size must be positive"),
        (lambda pos: grid_sample(pos, [1.0, 2.0]), r"one number or \[3\]"),
        (lambda pos: grid_sample(pos, 1e-7), "size 1e-07 is too small"),
        (lambda pos: grid_sample(pos, 1e-300), "too small"),
        (lambda pos: voxel_pool(pos[:2], pos, 1.0), r"expected x \[N, ...\]"),
        (lambda pos: voxel_pool(pos, pos, 1.0, reduce="median"), "reduce must be one of mean, max, min, sum"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.arange(12.0).view(4, 3))
