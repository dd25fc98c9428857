"""Ball trees: against those of the authors' package, written down, and a slow construction node by node."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geoattn.geometry.nth_element import nth_element
from geoattn.ops import attend
from geoattn.patterns import ball_order, ball_tree


def points(count, axes=3):
    i = torch.arange(count, dtype=torch.float64)
    return torch.stack([(1.7 * i).sin(), (2.3 * i + 0.3).sin(), (3.1 * i + 0.6).sin()][:axes], 1)


def leaves(tree):
    return "|".join(f"{a} {b}" for a, b in tree.index.view(-1, 2).tolist())


# Of balltree-erwin 0.1.0.
TREES = {
    3: "2 2|0 1",
    5: "2 2|3 3|1 1|4 0",
    8: "2 7|4 5|6 3|0 1",
    11: "7 7|10 10|2 2|5 8|3 3|6 0|1 1|9 4",
    16: "10 7|2 13|5 15|8 4|3 14|6 11|9 1|12 0",
}


@pytest.mark.parametrize("count", TREES)
def test_trees_are_those_of_the_authors(count):
    assert leaves(ball_tree(points(count))) == TREES[count]


def test_trees_with_ties_and_of_a_batch_are_those_of_the_authors():
    assert leaves(ball_tree(points(16, 2))) == "10 7|2 13|5 15|8 4|3 14|6 11|0 9|1 12"
    assert leaves(ball_tree(torch.zeros(5, 3))) == "2 2|4 4|3 3|0 1"
    grid = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    assert leaves(ball_tree(grid)) == "0 1|5 4|3 2|7 6|8 9|13 12|10 11|15 14"
    tree = ball_tree(points(16), (torch.arange(16) > 4).long())
    assert leaves(tree) == "2 2|3 3|1 1|4 0|7 7|10 10|14 14|6 11|13 13|15 5|8 8|12 9"
    assert tree.counts.tolist() == [8, 16]


# The balls of coordinates turned by 45 degrees: on the slots, and on the pairs that they are pooled to.
TURNED = {
    "16": ([{0, 1, 2, 3}, {7, 9, 10, 15}, {5, 8, 11, 12}, {4, 6, 13, 14}], [{0, 1, 4, 5}, {2, 3, 6, 7}]),
    "5 and 11": (
        [{0, 1, 6, 7}, {2, 3, 4, 5}, {10, 11, 16, 17}, {8, 9, 18, 19}, {12, 13, 14, 15}, {20, 21, 22, 23}],
        [{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9, 10, 11}],
    ),
}


@pytest.mark.parametrize("name", TURNED)
def test_balls_of_turned_coordinates_are_those_of_the_authors(name):
    c = s = 0.5**0.5
    turn = torch.tensor(
        [[c * c, s * c * (s - 1), s * (s + c * c)], [s * c, s**3 + c * c, s * c * (s - 1)], [-s, s * c, c * c]]
    )
    tree = ball_tree(points(16), None if name == "16" else (torch.arange(16) > 4).long())
    pos = points(16)[tree.index] @ turn.double()
    for stride, expected in zip((1, 2), TURNED[name], strict=True):
        order = ball_order(pos.view(-1, stride, 3).mean(1), tree.pooled(stride), 4)
        assert [set(ball) for ball in order.view(-1, 4).tolist()] == expected


def halved(pos, index, levels):
    """Node by node, by sorting: leaves as sets."""
    if levels == 0:
        return [set(index)]
    axis = int((pos[index].amax(0) - pos[index].amin(0)).argmax())
    index = sorted(index, key=lambda i: float(pos[i, axis]))
    half = len(index) // 2
    return halved(pos, index[:half], levels - 1) + halved(pos, index[half:], levels - 1)


@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=4), axes=st.integers(1, 4), seed=st.integers(0, 999))
def test_leaves_are_those_of_sorting_node_by_node(counts, axes, seed):
    pos = torch.rand(sum(counts), axes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    tree = ball_tree(pos, torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)))
    begin, expected = 0, []
    for count in counts:
        levels = max((count - 1).bit_length() - 1, 0)
        expected += halved(pos, list(range(begin, begin + count)), levels)
        begin += count
    assert [set(leaf) for leaf in tree.index.view(-1, 2).tolist()] == expected
    assert torch.equal(tree.index[tree.slot], torch.arange(len(pos)))
    assert tree.counts.tolist() == [max(2, 1 << (count - 1).bit_length()) for count in counts]


def nth_element_of_libstdcxx(key, order, first, last, nth):
    """One range, step by step, as the C++ library does it."""
    while last - first > 3:
        a, b, c = first + 1, first + (last - first) // 2, last - 1
        middle = sorted((a, b, c), key=lambda i: key[i])[1]
        if len({key[a], key[b], key[c]}) < 3:  # which of equal numbers decides the exchanges that follow
            if key[a] < key[b]:
                middle = b if key[b] < key[c] else c if key[a] < key[c] else a
            else:
                middle = a if key[a] < key[c] else c if key[b] < key[c] else b
        key[first], key[middle], order[first], order[middle] = key[middle], key[first], order[middle], order[first]
        left, right, pivot = first + 1, last, key[first]
        while True:
            while key[left] < pivot:
                left += 1
            right -= 1
            while pivot < key[right]:
                right -= 1
            if left >= right:
                break
            key[left], key[right], order[left], order[right] = key[right], key[left], order[right], order[left]
            left += 1
        first, last = (left, last) if left <= nth else (first, left)
    order[first:last] = [order[i] for i in sorted(range(first, last), key=lambda i: key[i])]


@given(st.lists(st.lists(st.integers(0, 12), max_size=40), max_size=4), st.floats(0, 0.99))
def test_ranges_are_parted_as_by_the_cxx_library(ranges, where):
    numbers = [x for part in ranges for x in part]
    key = torch.tensor(numbers, dtype=torch.float64)
    begin = [sum(map(len, ranges[:i])) for i in range(len(ranges))]
    kept = [(b, b + len(part), b + int(where * len(part))) for b, part in zip(begin, ranges, strict=True) if part]
    order, again = list(range(len(numbers))), list(numbers)
    for b, e, nth in kept:
        nth_element_of_libstdcxx(again, order, b, e, nth)
    found = nth_element(key, *torch.tensor(kept, dtype=torch.int64).view(-1, 3).T)
    for b, e, nth in kept:
        part = key[found[b:e]]
        assert bool((part[: nth - b] <= part[nth - b]).all())
        assert bool((part[nth - b :] >= part[nth - b]).all())
    if all(len(part) < 16 for part in ranges):  # longer ones may reach the bound on divisions
        assert found.tolist() == order


def test_attention_in_balls_is_that_among_their_points():
    generator = torch.Generator().manual_seed(0)
    pos, batch = points(24), (torch.arange(24) > 15).long()
    tree = ball_tree(pos, batch)
    x = torch.randn(24, 2, 4, generator=generator)
    slots = x[tree.index]
    out = attend(slots, slots, slots, tree.balls(8))[tree.slot]
    for ball in tree.index.view(-1, 8):
        expected = torch.nn.functional.scaled_dot_product_attention(*[x[ball].transpose(0, 1)] * 3).transpose(0, 1)
        torch.testing.assert_close(out[ball], expected)


def test_small_clouds_get_copies():
    assert ball_tree(points(3), least=16).index.tolist() == [2] * 8 + [0] * 4 + [1] * 4
    assert ball_tree(points(1), least=4).index.tolist() == [0] * 4
    assert ball_tree(points(1), least=1).index.tolist() == [0]
    tree = ball_tree(points(0))
    assert (tree.index.tolist(), tree.slot.tolist(), tree.counts.tolist()) == ([], [], [])
    assert ball_order(points(0), tree.counts, 4).tolist() == []
    tree = ball_tree(points(10), (torch.arange(10) > 7).long())
    assert tree.balls(4).query_ptr.tolist() == [0, 4, 8, 10]  # one that has fewer slots is one ball
    assert tree.balls(4, stride=2).query_ptr.tolist() == [0, 4, 5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ball_tree(torch.tensor([[0.0, torch.nan]])), "NaN or infinite"),
        (lambda: ball_tree(points(4), torch.tensor([0, 1, 0, 1])), "batch must be ascending"),
        (lambda: ball_tree(points(4), least=3), "least must be a power of two, got 3"),
        (lambda: ball_tree(points(4)).balls(6), "size must be a power of two, got 6"),
        (lambda: ball_tree(points(4)).balls(2, stride=8), "8 is more than the 4 slots of a cloud: .* least=8"),
        (lambda: ball_order(points(4), torch.tensor([8]), 2), r"powers of two whose sum is 4, .* got \[8\]"),
        (lambda: ball_order(points(6), torch.tensor([6]), 2), r"powers of two whose sum is 6"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
