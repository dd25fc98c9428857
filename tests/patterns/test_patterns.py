"""Patterns say who attends to whom: against sets of pairs, and errors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from geoattn import Neighbors, Windows, attend, native
from geoattn.patterns.visits import MIN_KEYS

COMPILED = pytest.mark.skipif(native.library() is None, reason="needs the compiled kernels")

edge_lists = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=25)

# Two triangles that share the edge 1-2, and one that touches them in vertex 3 only.
FACE = torch.tensor([[0, 1, 2], [2, 1, 3], [3, 4, 5]]).T


def shuffled_grid(side, seed=0):
    """Positions of a grid of ``side^2`` points in random order, and the edges between neighbors in it."""
    pos = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    pos = pos[torch.randperm(side * side, generator=torch.Generator().manual_seed(seed))]
    near = (pos.unsqueeze(0) - pos.unsqueeze(1)).abs().sum(-1) == 1
    return pos.float(), near.nonzero().T.contiguous()


def pairs(pattern):
    """(query, key) of every edge, in order."""
    return list(zip(pattern.row.tolist(), pattern.col.tolist(), strict=True))


@given(edge_lists)
def test_edge_index_there_and_back(edges):
    index = torch.tensor(edges, dtype=torch.int64).view(-1, 2).T
    pattern = Neighbors.from_edge_index(index, 6)
    assert pairs(pattern) == sorted((query, key) for key, query in edges)
    assert torch.equal(pattern.reorder_edges(index.T).T, pattern.to_edge_index())
    assert pattern.degree.sum() == len(edges)


@given(edge_lists)
def test_transposing_twice_gives_the_pattern_back(edges):
    pattern = Neighbors.from_edge_index(torch.tensor(edges, dtype=torch.int32).view(-1, 2).T, 6, 7)
    turned = pattern.transpose
    assert (turned.num_queries, turned.num_keys) == (7, 6)
    assert pairs(turned) == sorted((key, query) for query, key in pairs(pattern))
    assert torch.equal(turned.reorder_edges(pattern.row), turned.col)
    assert pairs(turned.transpose) == pairs(pattern)
    assert pattern.transpose is turned


@given(edge_lists, st.sampled_from([torch.int32, torch.int64]))
def test_building_and_transposing_sort_stably(edges, dtype):
    index = torch.tensor(edges, dtype=dtype).view(-1, 2).T
    pattern = Neighbors.from_edge_index(index, 6, 7)
    order = sorted(range(len(edges)), key=lambda e: (edges[e][1], edges[e][0], e))
    assert pattern.edge_order.tolist() == order
    assert pattern.edge_order.dtype == dtype
    unsorted = Neighbors(pattern.rowptr, pattern.col.flip(0), 7)
    turned = unsorted.transpose
    by_key = sorted(range(len(edges)), key=lambda e: (int(unsorted.col[e]), e))
    assert turned.edge_order.tolist() == by_key
    assert torch.equal(turned.col, unsorted.row[turned.edge_order])
    assert turned.row.tolist() == unsorted.col[turned.edge_order].tolist()
    assert {t.dtype for t in (turned.rowptr, turned.col, turned.edge_order)} == {dtype}


def test_many_edges_as_few():
    # 300,000 edges: where plain and counting sorts part ways, and a narrow type would run over.
    index = torch.randint(0, 500, (2, 300_000), generator=torch.Generator().manual_seed(0))
    pattern = Neighbors.from_edge_index(index, 500)
    order = torch.argsort(index[0], stable=True)
    order = order[torch.argsort(index[1][order], stable=True)]
    assert torch.equal(pattern.edge_order, order)
    assert torch.equal(pattern.transpose.edge_order, torch.argsort(pattern.col, stable=True))
    assert torch.equal(pattern.transpose.degree, torch.bincount(index[0], minlength=500))


@given(edge_lists, st.integers(1, 4))
def test_k_hop_reaches_what_walking_reaches(edges, hops):
    reached = {(i, i) for i in range(6)}
    for _ in range(hops):
        reached |= {(target, start) for end, start in reached for source, target in edges if source == end}
    edge_index = torch.tensor(edges, dtype=torch.int64).view(-1, 2).T
    assert pairs(Neighbors.k_hop(edge_index, hops, 6)) == sorted(reached)
    without_loops = Neighbors.k_hop(edge_index, hops, 6, self_loops=False)
    assert pairs(without_loops) == sorted((i, j) for i, j in reached if i != j)


def test_from_mesh():
    vertex = Neighbors.from_mesh(FACE)
    assert vertex.col[vertex.rowptr[3] : vertex.rowptr[4]].tolist() == [1, 2, 3, 4, 5]
    face = Neighbors.from_mesh(FACE, "face")
    assert pairs(face) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2)]
    assert pairs(Neighbors.from_mesh(FACE, "face", hops=2)) == [(i, j) for i in range(3) for j in range(3)]
    edge = Neighbors.from_mesh(FACE, "edge")
    assert edge.num_queries == 8
    assert edge.degree.tolist() == [3, 5, 3, 3, 3, 3, 3, 3]


def test_knn_and_radius():
    pos = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    assert pairs(Neighbors.knn(pos, 2)) == [(0, 0), (0, 1), (1, 1), (1, 0), (2, 2), (2, 1), (3, 3), (3, 2)]
    assert pairs(Neighbors.radius(pos, 1.0)) == [
        (0, 0),
        (0, 1),
        (1, 1),
        (1, 0),
        (1, 2),
        (2, 2),
        (2, 1),
        (3, 3),
    ]


def test_index_type_and_device_move_together():
    pattern = Neighbors.from_edge_index(torch.tensor([[0, 1], [1, 0]])).to(torch.int32)
    assert pattern.rowptr.dtype == pattern.col.dtype == pattern.row.dtype == torch.int32
    assert pattern.transpose.col.dtype == torch.int32


@given(
    edges=edge_lists,
    by=st.sampled_from(["graph", "pos"]),
    batched=st.booleans(),
    dtype=st.sampled_from([torch.int32, torch.int64]),
    seed=st.integers(0, 2**31),
)
def test_attention_does_not_see_the_numbering(edges, by, batched, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    index = torch.tensor(edges, dtype=dtype).view(-1, 2).T
    pattern = Neighbors.from_edge_index(index, 6)
    pos = torch.rand(6, 3, generator=generator) if by == "pos" else None
    batch = torch.tensor([0, 0, 1, 1, 1, 3]) if batched else None
    moved, order = pattern.reorder(pos, batch)
    assert order.sort().values.tolist() == list(range(6))
    assert moved.col.dtype == dtype
    if batched:
        assert torch.equal(batch[order], batch)
    query, key, value = torch.randn(3, 6, 2, 4, generator=generator)
    bias = torch.randn(len(edges), 2, generator=generator)
    out = attend(query[order], key[order], value[order], moved, moved.reorder_edges(bias))
    back = torch.empty_like(out).index_copy(0, order, out)
    torch.testing.assert_close(back, attend(query, key, value, pattern, pattern.reorder_edges(bias)))
    # Twice is once, by the composed order.
    again, order2 = moved.reorder(None if pos is None else pos[order], batch)
    out = attend(*(x[order][order2] for x in (query, key, value)), again, again.reorder_edges(bias))
    torch.testing.assert_close(torch.empty_like(out).index_copy(0, order[order2], out), back)


@COMPILED
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_rows_are_visited_once_and_whole(dtype):
    pattern = Neighbors.knn(torch.rand(MIN_KEYS, 3), 16).to(dtype)
    for transposed, p in ((False, pattern), (True, pattern.transpose)):
        rowptr, col, edge, row = pattern.visits(transposed=transposed)
        assert torch.equal(row.sort().values, torch.arange(MIN_KEYS, dtype=torch.int32))
        assert torch.equal(rowptr.diff(), p.degree[row].int())
        position = torch.arange(p.num_edges) - rowptr[:-1].repeat_interleave(rowptr.diff())
        position += p.rowptr[:-1][row].repeat_interleave(rowptr.diff())
        assert torch.equal(col.to(dtype), p.col[position])
        assert torch.equal(edge.to(dtype), p.edge_order[position] if transposed else position.to(dtype))


@COMPILED
def test_rows_that_follow_each_other_read_few_keys():
    def keys_read(col):
        return sum(len(part.unique()) for part in col.split(16 * 512)) / MIN_KEYS

    pattern = Neighbors.knn(torch.rand(MIN_KEYS, 3), 16)
    assert keys_read(pattern.visits().col) < 3 < 12 < keys_read(pattern.col)


@COMPILED
def test_rows_are_visited_as_they_are_where_another_order_would_not_pay():
    pos = torch.rand(MIN_KEYS, 3)
    assert Neighbors.knn(pos[:-1], 16).visits() is None  # few
    assert Neighbors.knn(pos, 16).reorder(pos)[0].visits() is None  # near each other as they are
    col = torch.randint(MIN_KEYS, (16 * MIN_KEYS,))
    assert Neighbors(torch.arange(0, len(col) + 1, 16), col, MIN_KEYS).visits() is None  # near nothing
    edge_index = Neighbors.knn(pos, 16).to_edge_index()
    assert Neighbors.from_edge_index(edge_index, MIN_KEYS + 1, MIN_KEYS).visits() is None  # queries are not keys


@COMPILED
@pytest.mark.parametrize(("col", "last"), [(-1, 1), (MIN_KEYS, 1), (0, 2)])
def test_visiting_checks_what_was_not_checked(col, last):
    rowptr = torch.arange(MIN_KEYS + 1)
    pattern = Neighbors(rowptr, torch.arange(MIN_KEYS), MIN_KEYS, check=False)
    pattern.col[7], pattern.rowptr[-1] = col, rowptr[-2] + last
    with pytest.raises(IndexError, match=r"does not exist|does not rise"):
        pattern.visits()


def test_rows_move_whole():
    pos = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    nearest = Neighbors.knn(pos, 9)
    shuffle = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    for moved, order in (nearest.reorder(), nearest.reorder(pos), (nearest.permute(shuffle), shuffle)):
        new = order.argsort()
        for i, old in enumerate(order.tolist()):
            row = nearest.col[nearest.rowptr[old] : nearest.rowptr[old + 1]]
            assert torch.equal(moved.col[moved.rowptr[i] : moved.rowptr[i + 1]], new[row])
        # It was built from no edge_index: edge values are in the order of the pattern's own edges.
        assert torch.equal(moved.reorder_edges(nearest.row), order[moved.row])
        assert torch.equal(moved.reorder_edges(nearest.col), order[moved.col])


@pytest.mark.parametrize("by", ["graph", "pos"])
def test_renumbering_brings_neighbors_together(by):
    pos, index = shuffled_grid(32)
    pattern = Neighbors.from_edge_index(index)
    moved, _ = pattern.reorder(pos if by == "pos" else None)

    def distance(p):
        return (p.row - p.col).abs().float()

    assert distance(moved).mean() < 0.1 * distance(pattern).mean()
    if by == "graph":
        assert distance(moved).max() < 64  # the bandwidth, of 1023


def test_numbering_by_graph_does_not_depend_on_the_direction_of_edges():
    _, index = shuffled_grid(12)
    one_way = index[:, index[0] < index[1]]
    assert torch.equal(
        Neighbors.from_edge_index(one_way, 144).reorder()[1], Neighbors.from_edge_index(index).reorder()[1]
    )


per_head_edges = st.lists(edge_lists, min_size=1, max_size=4)


@given(per_head_edges, st.integers(0, 2**31))
def test_heads_with_their_own_patterns(edges, seed):
    generator = torch.Generator().manual_seed(seed)
    patterns = [Neighbors.from_edge_index(torch.tensor(e, dtype=torch.int64).view(-1, 2).T, 6, 7) for e in edges]
    joined = Neighbors.per_head(patterns)
    heads = len(patterns)
    assert (joined.num_queries, joined.num_keys, joined.heads) == (6 * heads, 7 * heads, heads)
    assert joined.num_edges == sum(map(len, edges))
    assert joined.transpose.heads == joined.to(torch.int32).heads == heads

    query = torch.randn(6, heads, 4, generator=generator)
    key, value = torch.randn(2, 7, heads, 4, generator=generator)
    biases = [torch.randn(len(e), 1, generator=generator) for e in edges]
    out = attend(query, key, value, joined, joined.reorder_edges(torch.cat(biases)))
    for h, (pattern, bias) in enumerate(zip(patterns, biases, strict=True)):
        alone = attend(query[:, h : h + 1], key[:, h : h + 1], value[:, h : h + 1], pattern, bias)
        torch.testing.assert_close(out[:, h : h + 1], alone)
    again = Neighbors(joined.rowptr, joined.col, joined.num_keys, joined.edge_order, heads)
    assert pairs(again) == pairs(joined)


@pytest.mark.parametrize("by", ["graph", "pos"])
def test_renumbering_moves_all_heads_of_an_element(by):
    pos = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    patterns = [Neighbors.knn(pos, k) for k in (3, 8)]
    moved, order = Neighbors.per_head(patterns).reorder(pos if by == "pos" else None)
    assert order.shape == (50,)
    assert moved.heads == 2
    for h, pattern in enumerate(patterns):
        of_head = moved.row % 2 == h
        found = set(zip(order[moved.row[of_head] // 2].tolist(), order[moved.col[of_head] // 2].tolist(), strict=True))
        assert found == set(pairs(pattern))


def reads_everything(x, pattern):
    """Of every index of the pattern."""
    turned = pattern.transpose
    forward = x.new_zeros(pattern.num_queries).index_add(0, pattern.row, x[pattern.col] * pattern.edge_weight)
    backward = x.new_zeros(pattern.num_keys).index_add(0, turned.row, x[turned.col] * pattern.degree[turned.col])
    return forward, backward, turned.edge_order, turned.rowptr, pattern.transpose.degree


def some_pattern(count, edges, dtype):
    generator = torch.Generator().manual_seed(count)
    pattern = Neighbors.from_edge_index(torch.randint(0, count, (2, edges), dtype=dtype, generator=generator), count)
    pattern.edge_weight = torch.rand(edges, generator=generator)
    return torch.randn(count, generator=generator), pattern


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_compiles_as_one_graph_whose_sort_agrees_with_counting(backend, dtype):
    torch.compiler.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(reads_everything, fullgraph=True, backend=counter)
    for count in (20, 30, 31, 40, 41, 50):
        expected = reads_everything(*some_pattern(count, 5 * count + 3, dtype))
        x, pattern = some_pattern(count, 5 * count + 3, dtype)
        for _ in range(2):  # the transpose is made in the first call and kept for the second
            for a, b in zip(compiled(x, pattern), expected, strict=True):
                assert a.dtype == b.dtype
                torch.testing.assert_close(a, b)
        assert pattern.transpose.transpose.num_edges == 5 * count + 3
    assert counter.frame_count <= 4  # with and without transpose, of one size and of any


class FromRows(torch.nn.Module):
    def forward(self, x, rowptr, col):
        pattern = Neighbors(rowptr, col, x.size(0))
        pattern.edge_weight = x[col]
        return reads_everything(x, pattern)


class FromEdges(torch.nn.Module):
    def forward(self, x, edge_index):
        pattern = Neighbors.from_edge_index(edge_index, x.size(0))
        pattern.edge_weight = pattern.reorder_edges(x[edge_index[0]])
        return reads_everything(x, pattern)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("module", [FromRows(), FromEdges()])
def test_exports_with_any_size(module, strict):
    def arguments(count):
        x, pattern = some_pattern(count, 5 * count + 3, torch.int64)
        return (x, pattern.rowptr, pattern.col) if isinstance(module, FromRows) else (x, pattern.to_edge_index())

    any_size = torch.export.Dim.AUTO
    dimensions = [{t.dim() - 1: any_size} for t in arguments(20)]
    program = torch.export.export(module, arguments(20), dynamic_shapes=tuple(dimensions), strict=strict)
    for count in (20, 33):
        for a, b in zip(program.module()(*arguments(count)), module(*arguments(count)), strict=True):
            torch.testing.assert_close(a, b)


def test_checks_can_be_left_out():
    rowptr, col = torch.tensor([0, 1]), torch.tensor([3])
    with pytest.raises(ValueError, match="col must be in"):
        Neighbors(rowptr, col, 2)
    assert Neighbors(rowptr, col, 2, check=False).num_edges == 1
    with pytest.raises(ValueError, match="both be int32"):
        Neighbors(rowptr, col.float(), 2, check=False)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_repeated_pattern_is_that_of_a_batch(dtype):
    index = torch.tensor([[0, 2, 1, 1], [1, 0, 0, 1]], dtype=dtype)
    pattern = Neighbors.from_edge_index(index, 2, 3)
    batch = torch.cat([index, index + torch.tensor([[3], [2]], dtype=dtype)], 1)
    expected = Neighbors.from_edge_index(batch, 4, 6)
    found = pattern.repeat(2)
    for name in ("rowptr", "col", "edge_order"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert (found.num_queries, found.num_keys, found.col.dtype) == (4, 6, dtype)
    assert pattern.repeat(0).num_edges == 0
    assert pairs(Neighbors.per_head([pattern, pattern]).repeat(2)) == pairs(Neighbors.per_head([expected, expected]))


def test_windows_write_out_their_pairs():
    windows = Windows.from_batch(torch.tensor([0, 0, 2]), torch.tensor([0, 1, 1, 2]), 3)
    assert pairs(windows.to_neighbors()) == [(0, 0), (1, 0), (2, 3)]
    overlapping = Windows(torch.tensor([0, 1, 3]), torch.tensor([[1, 3], [0, 2]]), 4)
    assert pairs(overlapping.to_neighbors()) == [(0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert (overlapping.num_pairs, overlapping.num_runs, overlapping.num_keys) == (6, 2, 4)


def test_windows_of_samples():
    batch = torch.tensor([0, 0, 0, 2])
    assert Windows.from_batch(batch).query_ptr.tolist() == [0, 3, 3, 4]
    assert Windows.from_batch(batch, num_samples=4).key_run.tolist() == [[0, 3], [3, 3], [3, 4], [4, 4]]
    crossed = Windows.from_batch(torch.tensor([0, 1]), batch)
    assert crossed.query_ptr.tolist() == [0, 1, 2, 2]
    assert Windows.from_batch(batch[:0]).num_runs == 0


def test_windows_along_a_curve():
    counts = torch.tensor([10, 0, 3, 4])
    batch = torch.arange(4).repeat_interleave(counts)
    for windows in (Windows.along(4, batch), Windows.along(4, counts=counts), Windows.along(4, counts=[10, 0, 3, 4])):
        assert windows.query_ptr.tolist() == [0, 4, 8, 10, 13, 17]
        assert windows.key_run.tolist() == [[0, 4], [4, 8], [8, 10], [10, 13], [13, 17]]
    borrowing = Windows.along(4, batch, borrow=True)
    assert borrowing.query_ptr.tolist() == [0, 4, 8, 10, 13, 17]
    # The last run of the first sample is filled up; a sample of fewer elements is a run of its own.
    assert borrowing.key_run.tolist() == [[0, 4], [4, 8], [6, 10], [10, 13], [13, 17]]
    assert Windows.along(4, counts=[]).num_queries == 0


def test_windows_made_of_others():
    latents = Windows(torch.tensor([0, 2, 4]), torch.tensor([0, 5, 9]))
    assert pairs(latents.transpose.to_neighbors()) == sorted((k, q) for q, k in pairs(latents.to_neighbors()))
    assert pairs(latents.among_queries.to_neighbors()) == pairs(Windows(latents.query_ptr).to_neighbors())
    assert latents.transpose is latents.transpose
    assert (latents.transpose.num_queries, latents.transpose.num_keys) == (9, 4)
    narrow = latents.to(torch.int32)
    assert narrow.query_ptr.dtype == narrow.to_neighbors().col.dtype == torch.int32
    with pytest.raises(ValueError, match="can be transposed"):
        _ = Windows(torch.tensor([0, 2, 4]), torch.tensor([[0, 3], [2, 5]])).transpose
    with pytest.raises(ValueError, match="can be transposed"):
        _ = Windows(torch.tensor([0, 2]), torch.tensor([0, 3]), 4).transpose


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 4)), max_size=8))
def test_a_plan_has_every_pair_once(lengths):
    queries = [q for q, _, _ in lengths]
    run = torch.tensor([sorted(keys) for _, *keys in lengths], dtype=torch.int64).view(-1, 2)
    windows = Windows(torch.tensor([0, *queries]).cumsum(0), run, 4)
    found = {}
    for group in windows.plan.groups:
        for part in group.split(2):
            for some in part.split_queries(2):
                for tile in some.split_keys(3):
                    for begin, key, first in zip(tile.query_begin, tile.key_begin, tile.first_pair, strict=True):
                        for i in range(tile.queries):
                            for j in range(tile.keys):
                                assert found.setdefault(first + i * tile.pairs_per_query + j, (begin + i, key + j))
    assert [found[place] for place in range(windows.num_pairs)] == pairs(windows.to_neighbors())
    assert len(found) == windows.num_pairs


def test_runs_that_follow_each_other_are_processed_where_they_lie():
    equal = Windows(torch.arange(0, 41, 8)).plan
    assert equal.whole
    assert equal.apart
    assert len(equal.groups) == 1
    ragged = Windows(torch.tensor([0, 3, 8, 11, 16])).plan
    assert not ragged.whole
    assert [(group.queries, group.num_runs) for group in ragged.groups] == [(3, 2), (5, 2)]
    borrowing = Windows.along(1024, counts=[10_000, 20_000], borrow=True).plan
    assert not borrowing.apart
    assert [(group.num_runs, group.follow) for group in borrowing.groups if group.queries == 1024] == [
        (9, True),
        (19, True),
    ]
    assert not Windows(torch.tensor([0, 5]), torch.tensor([[0, 5]]), 6).plan.whole


SMALL = Neighbors.from_edge_index(torch.tensor([[0, 1], [1, 0]]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Neighbors(torch.tensor([0, 2]), torch.tensor([0, 5]), 5), r"col must be in \[0, 5\)"),
        (lambda: Neighbors(torch.tensor([0, 1]), torch.tensor([-1]), 5), r"col must be in \[0, 5\)"),
        (lambda: Neighbors(torch.tensor([0, 2, 1]), torch.tensor([0]), 1), "rowptr must rise"),
        (lambda: Neighbors(torch.tensor([0, 1]), torch.tensor([0], dtype=torch.int32), 1), "both be int32"),
        (
            lambda: Neighbors.from_edge_index(torch.zeros(3, 2, dtype=torch.int64)),
            r"expected edge_index \[2, E\]",
        ),
        (
            lambda: Neighbors.from_edge_index(torch.tensor([[0], [7]]), 3),
            r"edge_index\[1\] must be in \[0, 3\)",
        ),
        (lambda: Neighbors.from_mesh(FACE, "corner"), "element must be"),
        (lambda: Neighbors.k_hop(torch.tensor([[0], [1]]), 0), "hops must be"),
        (lambda: Neighbors.k_hop(torch.tensor([[0], [9]]), 1, 3), r"edge_index must be in \[0, 3\)"),
        (
            lambda: Neighbors.from_edge_index(torch.tensor([[7], [0]]), 3),
            r"edge_index\[0\] must be in \[0, 3\)",
        ),
        (
            lambda: Neighbors.from_edge_index(torch.zeros(1, 1, dtype=torch.int32).expand(2, 2**31), 1),
            "int32 cannot count 2147483648 edges",
        ),
        (
            lambda: Neighbors.from_edge_index(torch.zeros(2, 1, dtype=torch.int32), 1, 2**31),
            "int32 cannot count 2147483648 keys",
        ),
        (
            lambda: Neighbors(torch.tensor([0, 1]), torch.tensor([2**31]), 2**32).to(torch.int32),
            "int32 cannot count 4294967296 keys; use int64",
        ),
        (
            lambda: Neighbors(torch.tensor([0, 2**31]), torch.tensor([0]).expand(2**31), 1, check=False).to(
                torch.int32
            ),
            "int32 cannot count 2147483648 edges",
        ),
        (
            lambda: Neighbors.per_head(
                [Neighbors(torch.tensor([0, 0], dtype=torch.int32), torch.zeros(0, dtype=torch.int32), 2**30)] * 2
            ),
            "int32 cannot count 2147483648 keys",
        ),
        (lambda: Neighbors.per_head([]), "one pattern for each head, got none"),
        (lambda: Neighbors.per_head([SMALL, Neighbors.knn(torch.zeros(3, 3), 1)]), "same queries and keys.*for head 1"),
        (lambda: Neighbors.per_head([SMALL, SMALL.to(torch.int32)]), "one index type.*for head 1, torch.int32"),
        (lambda: Neighbors.per_head([Neighbors.per_head([SMALL, SMALL])]), "pattern 0 has heads of its own.*heads=2"),
        (lambda: Neighbors(torch.tensor([0, 0, 1]), torch.tensor([0]), 2, heads=2), "same head of its keys"),
        (lambda: Neighbors(torch.tensor([0, 0, 1]), torch.tensor([0]), 3, heads=2), "heads must divide.*2, 2 and 3"),
        (lambda: Neighbors.knn(torch.zeros(3, 3), 1, None, torch.zeros(2, 3)).reorder(), "whose queries are its keys"),
        (lambda: SMALL.permute(torch.tensor([0])), r"expected order \[2\]"),
        (lambda: SMALL.reorder(torch.zeros(5, 3)), "expected pos of 2 elements"),
        (lambda: SMALL.reorder(batch=torch.zeros(5)), "expected batch of 2 elements"),
        (lambda: Neighbors.knn(torch.zeros(2, 3), 1).reorder_edges(torch.zeros(2)), "no edge_order"),
        (lambda: SMALL.repeat(-1), "samples must be at least 0"),
        (lambda: SMALL.to(torch.int32).repeat(2**31), "int32 cannot count"),
        (lambda: Windows(torch.tensor([0, 1]), torch.tensor([0])), r"expected query_ptr \[B \+ 1\] and key_run"),
        (lambda: Windows(torch.tensor([0, 1]), torch.zeros(1, 3)), r"expected query_ptr \[B \+ 1\] and key_run"),
        (lambda: Windows(torch.tensor([0.0, 1])), "must both be int32 or both int64"),
        (lambda: Windows(torch.tensor([0, 2, 1])), "query_ptr must rise"),
        (lambda: Windows(torch.tensor([1, 2])), "query_ptr must rise from 0"),
        (lambda: Windows(torch.tensor([0, 2]), torch.tensor([1, 3])), "key_run must rise from 0"),
        (lambda: Windows(torch.tensor([0, 2]), torch.tensor([[3, 2]])), r"got \[3, 2\] for run 0"),
        (lambda: Windows(torch.tensor([0, 2]), torch.tensor([[-1, 2]])), r"got \[-1, 2\] for run 0"),
        (lambda: Windows(torch.tensor([0, 2]), torch.tensor([[0, 5]]), 4), r"must lie in \[0, 4\]"),
        (lambda: Windows(torch.tensor([0, 2]), torch.tensor([[0, 5]]), 4, check=False).plan, r"must lie in \[0, 4\]"),
        (lambda: Windows.from_batch(torch.tensor([1, 0])), "samples must ascend"),
        (lambda: Windows.from_batch(torch.tensor([0, 3]), num_samples=2), "below num_samples 2, got 3"),
        (lambda: Windows.along(0, counts=[3]), "size must be at least 1"),
        (lambda: Windows.along(2), "either batch or counts"),
        (lambda: Windows.along(2, counts=[3, -1]), "counts must not be negative"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_plan_knows_whether_runs_lie_as_one_block():
    """Which then needs no copy; in all other cases something is left out or lies elsewhere."""
    for count in (1, 5, 7, 8):
        assert Windows.along(4, counts=[4 * count]).plan.whole
        assert not Windows.along(4, counts=[4 * count + 1]).plan.whole
    ptr = torch.tensor([0, 4, 8, 12])
    assert not Windows(ptr, num_keys=28).plan.whole
    assert not Windows(ptr, torch.tensor([[4, 8], [0, 4], [8, 12]])).plan.whole
