"""Windows on grids against their definition, index by index."""

import itertools
import random

import pytest
import torch

from geoattn.patterns import grid_neighbors, grid_offsets


def keys_of(position, length, kernel_size, stride, dilation, is_causal):
    """The window of one position of one axis, written as the definition is."""
    group, i = position % dilation, position // dilation
    n = len(range(group, length, dilation))
    if is_causal:
        leader = min(i // stride * stride + stride - 1, n - 1)
        window = range(max(0, leader - kernel_size + 1), i + 1)
    else:
        before = kernel_size // 2
        after = kernel_size - 1 - before
        center = min(i // stride * stride + stride // 2, n - 1)
        center = min(max(center, before), n - 1 - after)
        window = range(center - before, center + after + 1)
    return [group + dilation * j for j in window]


def rows(shape, kernel_size, stride, dilation, is_causal):
    """Of every position its keys, and where they are seen from it."""
    for position in itertools.product(*map(range, shape)):
        axes = list(zip(position, shape, kernel_size, stride, dilation, is_causal, strict=True))
        keys = list(itertools.product(*(keys_of(*axis) for axis in axes)))
        yield (
            [number(key, shape) for key in keys],
            [
                number(
                    [(j - p) // d + k - 1 for j, p, k, d in zip(key, position, kernel_size, dilation, strict=True)],
                    [2 * k - 1 for k in kernel_size],
                )
                for key in keys
            ],
        )


def number(index, shape):
    """Of a position, the last axis fastest."""
    found = 0
    for i, length in zip(index, shape, strict=True):
        assert 0 <= i < length
        found = found * length + i
    return found


def random_window(seed):
    """Shape, kernel size, stride, dilation and causality."""
    draw = random.Random(seed)
    axes = []
    for _ in range(draw.choice([1, 1, 2, 2, 3])):
        length = draw.randint(1, 40 if not axes else 7)
        kernel_size = draw.randint(1, min(length, 7))
        stride, dilation = draw.randint(1, kernel_size), draw.randint(1, length // kernel_size)
        axes.append((length, kernel_size, stride, dilation, draw.random() < 0.3))
    return tuple(zip(*axes, strict=True))


@pytest.mark.parametrize("part", range(4))
def test_windows_are_those_of_the_definition(part):
    """200 random windows, of one to three axes."""
    for seed in range(50 * part, 50 * (part + 1)):
        window = random_window(seed)
        pattern, offset = grid_neighbors(*window), grid_offsets(*window)
        expected = list(rows(*window))
        assert pattern.num_queries == pattern.num_keys == len(expected)
        ends = pattern.rowptr.tolist()
        col, offset = pattern.col.tolist(), offset.tolist()
        for i, (keys, offsets) in enumerate(expected):
            assert (col[ends[i] : ends[i + 1]], offset[ends[i] : ends[i + 1]]) == (keys, offsets), (window, i)


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_window_as_large_as_the_grid_is_everything(is_causal):
    pattern = grid_neighbors([4, 3], [4, 3], is_causal=[False, is_causal])
    expected = torch.ones(12, 12, dtype=torch.bool)
    if is_causal:
        column = torch.arange(12) % 3
        expected = column.unsqueeze(0) <= column.unsqueeze(1)
    found = torch.zeros(12, 12, dtype=torch.bool)
    found[pattern.row, pattern.col] = True
    assert torch.equal(found, expected)


def test_a_stride_of_the_window_gives_blocks():
    pattern = grid_neighbors([12], 4, stride=4)
    assert torch.equal(pattern.col.view(12, 4) // 4, (torch.arange(12) // 4).unsqueeze(1).expand(12, 4).int())


def test_patterns_of_one_shape_are_made_once():
    first = grid_neighbors([6, 5], 3)
    with torch.inference_mode():
        assert grid_neighbors(torch.Size([6, 5]), [3, 3], (1, 1)) is first
        made = grid_neighbors([6, 5], 3, 2)
    assert not made.col.is_inference()
    assert grid_neighbors([6, 5], 3, dilation=1, is_causal=(False, True)) is not first
    assert first.col.dtype == torch.int32


WRONG = {
    "grid_neighbors([6], 7)": (
        ValueError,
        r"kernel_size \* dilation must be .*, got 7 \* 1 and 6 for axis 0 of \(6,\)",
    ),
    "grid_neighbors([9, 6], 3, dilation=[1, 3])": (ValueError, r"got 3 \* 3 and 6 for axis 1 of \(9, 6\)"),
    "grid_neighbors([6], 3, stride=4)": (ValueError, "stride must be at most kernel_size, got 4 and 3"),
    "grid_neighbors([6], 3, stride=0)": (ValueError, "stride must be at least 1, got 0"),
    "grid_neighbors([6], 0)": (ValueError, "kernel_size must be at least 1, got 0"),
    "grid_neighbors([6], 3.0)": (TypeError, "kernel_size must be an integer"),
    "grid_neighbors([6, 6], [3, 3, 3])": (ValueError, r"one kernel_size for all axes or one for each of 2, got \[3, 3"),
    "grid_neighbors([6], 3, is_causal=1)": (TypeError, "is_causal must be True or False"),
    "grid_neighbors([], 3)": (ValueError, "at least one axis"),
    "grid_neighbors([0], 1)": (ValueError, "shape must be at least 1, got 0"),
}


@pytest.mark.parametrize("call", WRONG)
def test_what_is_wrong_is_said(call):
    error, message = WRONG[call]
    with pytest.raises(error, match=message):
        eval(call, {"grid_neighbors": grid_neighbors})
