"""What is added to a pattern: against dense matrices and walks, one pair at a time."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geoattn import Neighbors
from geoattn.patterns.augment import dilated, global_nodes, random_edges, union

N = 7
edge_lists = st.lists(st.tuples(st.integers(0, N - 1), st.integers(0, N - 1)), max_size=30)
index_types = st.sampled_from([torch.int32, torch.int64])
batches = st.lists(st.sampled_from([0, 1, 4]), min_size=N, max_size=N).map(lambda b: torch.tensor(sorted(b)))
seeds = st.integers(0, 2**31)


def graph(edges, dtype=torch.int64):
    return Neighbors.from_edge_index(torch.tensor(edges, dtype=dtype).view(-1, 2).T, N)


def dense(pattern):
    mask = torch.zeros(pattern.num_queries, pattern.num_keys, dtype=torch.bool)
    mask[pattern.row.long(), pattern.col.long()] = True
    return mask


def assert_is(pattern, mask, dtype):
    """The pattern is the mask, sorted, without duplicates, in the type."""
    row, col = mask.nonzero().T
    assert pattern.row.tolist() == row.tolist()
    assert pattern.col.tolist() == col.tolist()
    assert pattern.rowptr.dtype == pattern.col.dtype == dtype
    Neighbors(pattern.rowptr, pattern.col, pattern.num_keys)  # which checks it


def distances(mask):
    """From column to row by Floyd and Warshall, infinite where there is no path."""
    d = torch.where(mask, 1.0, float("inf")).fill_diagonal_(0)
    for k in range(len(mask)):
        d = torch.minimum(d, d[:, k : k + 1] + d[k])
    return d


def within(edges, batch):
    return [(i, j) for i, j in edges if batch[i] == batch[j]]


def generator(seed):
    return torch.Generator().manual_seed(seed)


@given(edge_lists, edge_lists, index_types, index_types)
def test_union_is_any(first, second, dtype, other):
    a, b = graph(first, dtype), graph(second, other)
    backwards = Neighbors(b.rowptr, torch.cat([r.flip(0) for r in b.col.split(b.degree.tolist())]), N)
    kept = backwards.col.clone()
    assert_is(union(a, backwards), dense(a) | dense(b), torch.promote_types(dtype, other))
    assert torch.equal(backwards.col, kept)
    assert_is(union(a), dense(a), dtype)


def test_union_of_queries_that_are_not_the_keys():
    a = Neighbors.from_edge_index(torch.tensor([[3, 1], [0, 1]]), 2, 5)
    b = Neighbors.from_edge_index(torch.tensor([[3, 4], [0, 0]]), 2, 5)
    assert_is(union(a, b, a), dense(a) | dense(b), torch.int64)


@given(edge_lists, st.integers(1, 4), st.integers(1, 4), index_types)
def test_dilated_rings_are_those_distances(edges, dilation, steps, dtype):
    pattern = graph(edges, dtype)
    d = distances(dense(pattern))
    mask = (d >= dilation) & (d <= dilation * steps) & (d % dilation == 0)
    assert_is(dilated(pattern, dilation, steps), mask, dtype)


@given(edge_lists, st.integers(1, 4))
def test_dilation_of_one_is_k_hop(edges, hops):
    pattern = graph(edges)
    hop = Neighbors.k_hop(pattern.to_edge_index(), hops, N, self_loops=False)
    assert_is(dilated(pattern, 1, hops), dense(hop), torch.int64)


def test_rings_along_a_path():
    path = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6]])
    pattern = Neighbors.from_edge_index(path)
    ring = dilated(pattern, 2, 2)
    assert ring.col[ring.rowptr[5] : ring.rowptr[6]].tolist() == [1, 3]  # along the edges only
    both = dilated(Neighbors.from_edge_index(torch.cat([path, path.flip(0)], 1)), 2, 2)
    assert both.col[both.rowptr[2] : both.rowptr[3]].tolist() == [0, 4, 6]


@given(edge_lists, st.floats(0, 3), batches, seeds, index_types)
def test_random_edges_are_new_and_stay_within_samples(edges, ratio, batch, seed, dtype):
    pattern = graph(within(edges, batch), dtype)
    joined = dense(pattern) | dense(pattern).T
    added = random_edges(pattern, ratio, batch, generator(seed))
    mask = dense(added)
    assert_is(added, mask, dtype)
    assert torch.equal(mask, mask.T)
    assert not (mask & joined).any()
    assert not mask.diagonal().any()
    same_sample = batch.unsqueeze(0) == batch.unsqueeze(1)
    assert not (mask & ~same_sample).any()
    for sample in batch.unique():
        here = batch == sample
        there_are = int(joined[here][:, here].triu(1).sum())
        missing = int((~joined)[here][:, here].triu(1).sum())
        assert mask[here].sum() == 2 * min(round(ratio * there_are), missing)


@given(edge_lists, seeds)
def test_random_edges_are_repeatable(edges, seed):
    pattern = graph(edges)
    again = random_edges(pattern, 0.7, generator=generator(seed))
    torch.manual_seed(seed)
    for other in (random_edges(pattern, 0.7, generator=generator(seed)), random_edges(pattern, 0.7)):
        assert torch.equal(other.col, again.col)
        assert torch.equal(other.rowptr, again.rowptr)


def test_random_edges_move_on_with_their_generator():
    pattern, source = graph([(0, 1), (1, 2), (2, 3)]), generator(0)
    drawn = {tuple(random_edges(pattern, 0.4, generator=source).col.tolist()) for _ in range(50)}
    assert len(drawn) > 5


def test_every_missing_pair_is_as_likely():
    # One new edge in a sample that has four of ten pairs, beside a sample that has two of three and gets none.
    pairs = [(0, 1), (1, 2), (3, 2), (4, 0), (5, 6), (7, 6)]
    pattern = Neighbors.from_edge_index(torch.tensor(pairs).T, 8)
    batch, source = torch.tensor([0] * 5 + [1] * 3), generator(0)
    count = torch.zeros(8, 8)
    for _ in range(600):
        count += dense(random_edges(pattern, 0.25, batch, source)).triu()
    missing = torch.zeros(8, 8, dtype=torch.bool)
    missing[[0, 0, 1, 1, 2, 3], [2, 3, 3, 4, 4, 4]] = True
    assert count[~missing].sum() == 0
    # 100 of each are expected; the squared deviations follow chi^2 of 5 degrees, above 20.5 once in 1000.
    assert ((count[missing] - 100) ** 2 / 100).sum() < 20.5


def test_random_edges_fill_up_what_is_missing():
    assert_is(
        random_edges(graph([(0, 1)]), 1e300), ~(dense(graph([(0, 1), (1, 0)])) | torch.eye(N).bool()), torch.int64
    )


def test_random_edges_of_a_large_graph():
    # So many pairs that 32 bits cannot number them; the graph is a circle with chords.
    count = 100_000
    node = torch.arange(count, dtype=torch.int32)
    ends = torch.cat([(node + 1) % count, (node + 777) % count])
    pattern = Neighbors.from_edge_index(torch.stack([node.repeat(2), ends]), count)
    added = random_edges(pattern, 0.5, generator=generator(0))
    assert added.num_edges == 2 * count
    pair, pair_there = (p.row.long() * count + p.col.long() for p in (added, union(pattern, pattern.transpose)))
    assert pair.unique().numel() == 2 * count
    assert not torch.isin(pair, pair_there).any()
    upper = added.row < added.col
    # The smaller end of a random pair is at a third on average, its deviation 0.24 over the root of 100,000.
    assert abs(added.row[upper].double().mean() / count - 1 / 3) < 0.004
    assert abs(added.col[upper].double().mean() / count - 2 / 3) < 0.004


@given(st.lists(st.integers(0, N - 1), max_size=4), batches, index_types)
def test_global_nodes_see_and_are_seen_by_their_sample(nodes, batch, dtype):
    is_global = torch.zeros(N, dtype=torch.bool)
    is_global[nodes] = True
    same_sample = batch.unsqueeze(0) == batch.unsqueeze(1)
    mask = same_sample & (is_global.unsqueeze(0) | is_global.unsqueeze(1)) & ~torch.eye(N, dtype=torch.bool)
    assert_is(global_nodes(torch.tensor(nodes, dtype=dtype), N, batch), mask, dtype)
    assert_is(global_nodes(is_global, N, batch), mask, torch.int64)


@given(edge_lists, batches, seeds)
def test_nothing_joins_samples(edges, batch, seed):
    pattern = graph(within(edges, batch))
    index = torch.randint(N, (2,), generator=generator(seed))
    more = union(
        pattern,
        Neighbors.k_hop(pattern.to_edge_index(), 2, N, self_loops=False),
        dilated(pattern, 2, 2),
        random_edges(pattern, 0.5, batch, generator(seed)),
        global_nodes(index, N, batch),
    )
    assert torch.equal(batch[more.row], batch[more.col])
    # Whatever is added to a graph of undirected edges is undirected.
    both = union(pattern, pattern.transpose)
    for added in (dilated(both, 2, 2), random_edges(both, 0.5, batch), global_nodes(index, N, batch)):
        assert torch.equal(dense(added), dense(added).T)


def test_graphs_without_edges_or_nodes():
    for count in (0, 1, 3):
        pattern = Neighbors.from_edge_index(torch.zeros(2, 0, dtype=torch.int64), count)
        batch = torch.zeros(count, dtype=torch.int64)
        empty = torch.zeros(0, dtype=torch.int64)
        for added in (
            union(pattern, pattern),
            dilated(pattern, 2, 3),
            random_edges(pattern, 2.0, batch),
            random_edges(pattern, 2.0),
            global_nodes(empty, count, batch),
            global_nodes(empty, count),
        ):
            assert (added.num_queries, added.num_keys, added.num_edges) == (count, count, 0)


SMALL = graph([(0, 1), (1, 2)])
HEADS = Neighbors.per_head([SMALL, SMALL])
BIPARTITE = Neighbors.from_edge_index(torch.tensor([[0], [1]]), 2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: union(), "at least one pattern"),
        (lambda: union(SMALL, BIPARTITE), r"same queries and keys.*queries=7.*queries=2"),
        (lambda: union(SMALL, SMALL.to("meta")), "on one device, got cpu and meta"),
        (lambda: union(HEADS, HEADS), "all heads share.*heads=2"),
        (lambda: dilated(SMALL, 0), "dilation must be at least 1, got 0"),
        (lambda: dilated(SMALL, 1, 0), "steps must be at least 1, got 0"),
        (lambda: dilated(BIPARTITE, 1), "whose queries are its keys"),
        (lambda: dilated(HEADS, 1), "all heads share"),
        (lambda: random_edges(SMALL, -0.1), "ratio must be at least 0 and finite, got -0.1"),
        (lambda: random_edges(SMALL, float("nan")), "ratio must be at least 0 and finite, got nan"),
        (lambda: random_edges(BIPARTITE, 0.1), "whose queries are its keys"),
        (lambda: random_edges(HEADS, 0.1), "all heads share"),
        (lambda: random_edges(SMALL, 0.1, torch.zeros(3)), r"expected batch \[7\], got \(3,\)"),
        (lambda: random_edges(SMALL, 0.1, -torch.arange(N)), "batch must be ascending"),
        (lambda: random_edges(SMALL, 0.1, torch.arange(N) // 2), "within a sample of batch, got one between 1 and 2"),
        (lambda: global_nodes(torch.tensor([0.5]), 3), r"a mask or as indices, got torch.float32 \(1,\)"),
        (lambda: global_nodes(torch.tensor([[1]]), 3), r"got torch.int64 \(1, 1\)"),
        (lambda: global_nodes(torch.tensor([3]), 3), r"nodes must be in \[0, 3\), got values from 3 to 3"),
        (lambda: global_nodes(torch.tensor([True]), 3), "expected a mask of 3 nodes, got 1"),
        (lambda: global_nodes(torch.tensor([1]), 3, torch.zeros(2)), r"expected batch \[3\]"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
