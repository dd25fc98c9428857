"""The neighbors of voxels: against a dictionary of voxels, one offset after the other."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geoattn.patterns import KernelMap
from geoattn.patterns.kernel_map import offsets

sizes = st.one_of(st.sampled_from([1, 3, 5]), st.tuples(*[st.sampled_from([1, 3, 7])] * 3))
voxels = st.lists(
    st.tuples(st.sampled_from([-7, 0, 3]), *[st.integers(-3, 2)] * 3), max_size=30, unique=True
)  # sample, x, y, z


def looked_up(rows, size):
    """All (offset, voxel, neighbor), the centre left out."""
    size = (size,) * 3 if isinstance(size, int) else size
    row = {voxel: i for i, voxel in enumerate(rows)}
    reach = [range(-(s // 2), s // 2 + 1) for s in size]
    return {
        (number, i, row[near])
        for number, (dx, dy, dz) in enumerate(itertools.product(*reach))
        for (b, x, y, z), i in row.items()
        if (dx, dy, dz) != (0, 0, 0) and (near := (b, x + dx, y + dy, z + dz)) in row
    }


def written_out(kernel_map):
    """The same, of rows of features."""
    row = kernel_map.row.tolist()
    assert kernel_map.place[kernel_map.row.long()].tolist() == list(range(len(row)))
    found = set()
    for number, voxel, neighbor in offsets(kernel_map.voxel, kernel_map.neighbor, kernel_map.ptr):
        assert (voxel.diff() > 0).all()
        assert (neighbor.diff() > 0).all()
        found |= {(number, row[i], row[j]) for i, j in zip(voxel.tolist(), neighbor.tolist(), strict=True)}
    return found


@given(voxels, sizes, st.sampled_from([torch.int16, torch.int32, torch.int64]))
def test_pairs_are_those_of_a_dictionary(rows, size, dtype):
    rows = rows or [(0, 0, 0, 0)]
    place = torch.tensor(rows, dtype=dtype)
    kernel_map = KernelMap.from_grid(place[:, 1:], size, place[:, 0])
    expected = looked_up(rows, size)
    assert written_out(kernel_map) == expected
    assert kernel_map.num_pairs == len(expected) + len(rows)
    one = sorted({row[1:] for row in rows})
    assert written_out(KernelMap.from_grid(torch.tensor(one), size)) == looked_up([(0, *row) for row in one], size)


def test_voxels_far_apart_are_counted():
    """Wider than the numbers of one axis in codes along curves, and with a gap as long as a kernel."""
    grid = torch.tensor([[-(2**19), 0, 0], [2**19, 5, 0], [2**19, 5, 1], [2**19, 2**20, 1], [0, -(2**20), 2**19]])
    assert written_out(KernelMap.from_grid(grid, 3)) == {(14, 1, 2), (12, 2, 1)}


def test_a_voxel_at_the_end_of_a_row_is_no_neighbor_of_the_next_row():
    grid = torch.cartesian_prod(*[torch.arange(2)] * 3)
    for size in (3, 5, 7, (1, 1, 13)):
        rows = [(0, *row) for row in grid.tolist()]
        assert written_out(KernelMap.from_grid(grid, size)) == looked_up(rows, size)


def test_no_voxels():
    empty = KernelMap.from_grid(torch.zeros(0, 3, dtype=torch.int64), 3, torch.zeros(0, dtype=torch.int64))
    assert empty.num_pairs == 0
    assert len(empty.ptr) == 14
    assert str(empty) == "KernelMap(voxels=0, kernel=3x3x3, pairs=0)"


GRID = torch.tensor([[0, 0, 0], [1, -2, 3], [0, 0, 0], [1, -2, 3]])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: KernelMap.from_grid(GRID, 3), ValueError, r"got \[0, 0, 0\] in rows 0 and 2; .*ops\.grid_sample"),
        (
            lambda: KernelMap.from_grid(GRID, 3, torch.tensor([0, 7, 1, 7])),
            ValueError,
            r"got \[1, -2, 3\] of sample 7 in rows 1 and 3",
        ),
        (lambda: KernelMap.from_grid(GRID, 4), ValueError, "kernel_size must be odd, .* got 4"),
        (lambda: KernelMap.from_grid(GRID, (3, 2, 1)), ValueError, r"kernel_size must be odd, .* got \(3, 2, 1\)"),
        (lambda: KernelMap.from_grid(GRID, 0), ValueError, "kernel_size must be at least 1"),
        (lambda: KernelMap.from_grid(GRID, (3, 3)), ValueError, "one integer or three"),
        (lambda: KernelMap.from_grid(GRID, 3.0), TypeError, "kernel_size must be an integer"),
        (lambda: KernelMap.from_grid(GRID.float(), 3), ValueError, r"grid as integers \[N, 3\], got torch.float32"),
        (lambda: KernelMap.from_grid(GRID[:, :2], 3), ValueError, r"grid as integers \[N, 3\]"),
        (lambda: KernelMap.from_grid(GRID.numpy(), 3), TypeError, r"torch\.from_numpy\(grid\)"),
        (lambda: KernelMap.from_grid(GRID, 3, GRID), ValueError, r"batch as integers \[4\]"),
        (lambda: KernelMap.from_grid(GRID[:2] * 2**40, 3), ValueError, "too far apart: a box of 1099511627777 x"),
    ],
)
def test_what_is_wrong_is_said(make, error, message):
    with pytest.raises(error, match=message):
        make()
