"""Every form of a graph is the same pattern; what is used again is made once."""

import gc

import pytest
import torch
import torch_geometric.typing
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch_geometric import EdgeIndex
from torch_geometric.typing import SparseTensor
from torch_geometric.utils import add_self_loops, remove_self_loops

from geoattn import Neighbors, attend, native
from geoattn.patterns import adjacency, as_neighbors
from geoattn.patterns.rows import compress

QUERIES, KEYS = 7, 5
edge_lists = st.lists(st.tuples(st.integers(0, KEYS - 1), st.integers(0, QUERIES - 1)), max_size=25)


def index(edges, dtype=torch.int64):
    return torch.tensor(edges, dtype=dtype).view(-1, 2).T.contiguous()


def assert_is(pattern, edge_index):
    """That it has these edges, and knows where each of them comes from."""
    assert (pattern.num_queries, pattern.num_keys) == (QUERIES, KEYS)
    assert torch.equal(edge_index[:, pattern.edge_order], pattern.to_edge_index().long())
    assert torch.equal(pattern.edge_order.sort().values, torch.arange(edge_index.size(1)))
    turned = pattern.transpose
    assert torch.equal(pattern.row[turned.edge_order.long()], turned.col)
    assert torch.equal(pattern.col[turned.edge_order.long()], turned.row)


@given(edge_lists)
def test_edge_indices(edges):
    edge_index = index(edges)
    for kind in (edge_index, edge_index.int()):
        assert_is(as_neighbors(kind, QUERIES, KEYS), edge_index)
    unsorted = EdgeIndex(edge_index, sparse_size=(KEYS, QUERIES))
    assert_is(as_neighbors(unsorted, QUERIES, KEYS), edge_index)
    for by in ("row", "col"):
        for size in ((KEYS, QUERIES), (None, None)):
            for filled in (False, True):
                kind = EdgeIndex(edge_index, sparse_size=size).sort_by(by).values
                kind = kind.fill_cache_() if filled else kind
                assert_is(as_neighbors(kind, QUERIES, KEYS), kind.as_tensor())


@given(edge_lists)
def test_matrices(edges):
    edge_index = index(sorted(set(edges), key=lambda e: (e[1], e[0])))  # as the values of a matrix are sorted
    key, query = edge_index
    matrix = torch.sparse_coo_tensor(edge_index.flip([0]), torch.ones(len(key)), (QUERIES, KEYS), is_coalesced=True)
    assert_is(as_neighbors(matrix, QUERIES, KEYS), edge_index)
    assert_is(as_neighbors(matrix.to_sparse_csr(), QUERIES, KEYS), edge_index)
    by_key = edge_index[:, (key * QUERIES + query).argsort()]
    assert_is(as_neighbors(matrix.to_sparse_csc(), QUERIES, KEYS), by_key)
    if torch_geometric.typing.WITH_TORCH_SPARSE:
        assert_is(
            as_neighbors(SparseTensor(row=query, col=key, sparse_sizes=(QUERIES, KEYS)), QUERIES, KEYS), edge_index
        )


@given(edge_lists)
def test_self_loops_are_pygs(edges):
    edge_index = index(edges)
    looped, _ = add_self_loops(remove_self_loops(edge_index)[0], num_nodes=min(QUERIES, KEYS))
    given = as_neighbors(edge_index, QUERIES, KEYS, self_loops=True)
    assert_is(given, looped)
    bare = as_neighbors(edge_index, QUERIES, KEYS)
    built = Neighbors(bare.rowptr, bare.col, KEYS).with_self_loops()  # of no edge_index
    assert torch.equal(built.to_edge_index(), given.to_edge_index())
    assert_is(built, add_self_loops(remove_self_loops(bare.to_edge_index().long())[0], num_nodes=KEYS)[0])
    assert torch.equal(bare.with_self_loops().edge_order, given.edge_order)
    assert torch.equal(given.with_self_loops().to_edge_index(), given.to_edge_index())


@given(edge_lists, st.booleans(), st.sampled_from([torch.int32, torch.int64, torch.int16]), st.booleans())
def test_counting_is_sorting(edges, self_loops, dtype, wide):
    """The compiled kernels against torch's sort."""
    settings = {"self_loops": self_loops, "dtype": torch.int64 if wide else torch.int32}
    found = Neighbors.from_edge_index(index(edges, dtype), QUERIES, KEYS, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("geoattn.patterns.rows._counts", lambda x: False)
        expected = Neighbors.from_edge_index(index(edges, dtype), QUERIES, KEYS, **settings)
        turned = expected.transpose
    for a, b in ((found, expected), (found.transpose, turned)):
        for x, y in ((a.rowptr, b.rowptr), (a.col, b.col), (a.edge_order, b.edge_order)):
            assert x.dtype == settings["dtype"]
            assert torch.equal(x, y)


@pytest.mark.skipif(native.library() is None, reason="needs the compiled kernels")
def test_counting_checks_what_was_not_checked():
    key, query = index([(0, 1), (5, 0)])
    with pytest.raises(ValueError, match=r"edge_index\[0\] must be in \[0, 5\)"):
        compress(key, query, 2, 5, False, torch.int64)
    with pytest.raises(ValueError, match=r"edge_index\[1\] must be in \[0, 5\)"):
        compress(query, key, 5, 2, True, torch.int32)
    for rowptr, col in (([0, 2, 1, 3], [0, 1, 2]), ([0, 1, 1, 2], [0, 1, 2]), ([0, 1, 2, 3], [0, 1, -1])):
        pattern = Neighbors(torch.tensor(rowptr), torch.tensor(col), 3, check=False)
        with pytest.raises(IndexError, match=r"does not rise|does not exist"):
            _ = pattern.transpose


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_an_edge_index_is_of_integers(dtype):
    with pytest.raises(ValueError, match="int32 or int64"):
        Neighbors.from_edge_index(index([(0, 1)]).to(dtype), 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="int32 or int64"):
        Neighbors.from_edge_index(index([(0, 1)]), 2, dtype=torch.int16)


def test_heads_of_their_own_take_no_loops():
    pattern = Neighbors.from_edge_index(index([(0, 1)]), 2)
    with pytest.raises(ValueError, match="before joining"):
        Neighbors.per_head([pattern, pattern]).with_self_loops()


def test_a_pattern_is_made_once_for_each_size_and_version():
    edge_index = index([(0, 1), (1, 0)])
    pattern = as_neighbors(edge_index, QUERIES, KEYS)
    assert as_neighbors(edge_index, QUERIES, KEYS) is pattern
    assert as_neighbors(edge_index.clone(), QUERIES, KEYS) is not pattern
    wider = as_neighbors(edge_index, QUERIES + 1, KEYS)
    assert wider.num_queries == QUERIES + 1
    assert as_neighbors(edge_index, QUERIES, KEYS) is pattern
    edge_index[0, 0] = 4
    changed = as_neighbors(edge_index, QUERIES, KEYS)
    assert changed is not pattern
    assert_is(changed, edge_index)


def test_a_pattern_lives_as_long_as_its_tensor():
    gc.collect()
    before = len(adjacency._made)
    edge_index = index([(0, 1), (1, 0)])
    as_neighbors(edge_index, QUERIES, KEYS)
    assert len(adjacency._made) == before + 1
    del edge_index
    gc.collect()
    assert len(adjacency._made) == before


def test_nothing_is_kept_of_tensors_without_versions():
    with torch.inference_mode():
        edge_index = index([(0, 1), (1, 0)])
    gc.collect()
    before = len(adjacency._made)
    assert_is(as_neighbors(edge_index, QUERIES, KEYS), edge_index)
    assert len(adjacency._made) == before


def test_indices_are_as_narrow_as_they_can_be(monkeypatch):
    edge_index = index([(0, 1)])
    assert as_neighbors(edge_index, QUERIES, KEYS).col.dtype == torch.int32
    monkeypatch.setattr(adjacency, "INT32_MAX", 2 * QUERIES)  # as if there were 2^30 queries
    assert as_neighbors(edge_index.clone(), QUERIES, KEYS).col.dtype == torch.int64


def test_patterns_stay_what_they_are():
    pattern = Neighbors.from_edge_index(index([(0, 1)]), QUERIES, KEYS)
    assert as_neighbors(pattern, QUERIES, KEYS) is pattern


def test_errors():
    edge_index = index([(0, 1), (4, 6)])
    with pytest.raises(ValueError, match=r"edge_index\[1\] must be in \[0, 6\)"):
        as_neighbors(edge_index, 6, KEYS)
    with pytest.raises(ValueError, match=r"edge_index\[0\] must be in \[0, 4\)"):
        as_neighbors(edge_index, QUERIES, 4)
    with pytest.raises(ValueError, match=r"edge_index \[2, E\], got \(3, 2\)"):
        as_neighbors(torch.zeros(3, 2, dtype=torch.long), QUERIES, KEYS)
    with pytest.raises(ValueError, match=r"integers, got torch\.float32"):
        as_neighbors(edge_index.float(), QUERIES, KEYS)
    with pytest.raises(ValueError, match=r"7 rows \(queries\) and 5 columns \(keys\), got 5 and 7"):
        as_neighbors(torch.eye(KEYS, QUERIES).to_sparse_csr(), QUERIES, KEYS)
    with pytest.raises(ValueError, match="7 queries and 5 keys, got Neighbors"):
        as_neighbors(Neighbors.from_edge_index(edge_index), QUERIES, KEYS)
    with pytest.raises(ValueError, match="7 queries and 5 keys, got Neighbors"):
        as_neighbors(EdgeIndex(edge_index, sparse_size=(9, 9)).sort_by("col").values, QUERIES, KEYS)
    with pytest.raises(TypeError, match="sparse matrix or Neighbors as edge_index, got a list"):
        as_neighbors([[0], [1]], QUERIES, KEYS)


def under_inference_mode(make):
    with torch.inference_mode():
        return make()


def under_fake_tensors(make):
    with FakeTensorMode(allow_non_fake_inputs=True):
        return make()


def under_vmap(make):
    found = []
    torch.vmap(lambda x: found.append(make()) or x)(torch.zeros(2))
    return found[0]


def under_grad(make):
    found = []
    torch.func.grad(lambda x: found.append(make()) or x)(torch.tensor(1.0))
    return found[0]


@pytest.mark.parametrize("under", [under_inference_mode, under_fake_tensors, under_vmap, under_grad])
def test_what_is_kept_belongs_to_no_mode(under):
    """A pattern made, or first asked for its parts, inside a mode serves training outside of it."""
    edge_index = index([(0, 1), (4, 2), (1, 1), (0, 6)])
    expected = as_neighbors(edge_index.clone(), QUERIES, KEYS, self_loops=True)
    made = under(lambda: as_neighbors(edge_index, QUERIES, KEYS, self_loops=True))
    assert as_neighbors(edge_index, QUERIES, KEYS, self_loops=True) is made
    under(lambda: (made.row, made.transpose, made.visits(), made.visits(transposed=True)))
    built = Neighbors.from_edge_index(edge_index, QUERIES, KEYS)
    under(lambda: (built.row, built.transpose.row, built.with_self_loops().transpose))
    for pattern in (made, built.with_self_loops()):
        kept = [pattern.rowptr, pattern.col, pattern.edge_order, pattern.row, pattern.transpose.col]
        wanted = [expected.rowptr, expected.col, expected.edge_order, expected.row, expected.transpose.col]
        for a, b in zip(kept, wanted, strict=True):
            assert type(a) is torch.Tensor
            assert not a.is_inference()
            assert torch._C._has_storage(a)
            assert torch.equal(a, b)


def test_a_pattern_made_in_inference_mode_serves_training():
    with torch.inference_mode():
        pattern = Neighbors.knn(torch.rand(20, 3), 4)
    x = torch.randn(20, 2, 4, requires_grad=True)
    attend(x, x, x, pattern).sum().backward()
    assert x.grad is not None


def test_an_edge_index_of_pyg_may_be_given_to_the_constructor():
    edge_index = index([(0, 1), (4, 2), (1, 1)])
    given = Neighbors.from_edge_index(EdgeIndex(edge_index, sparse_size=(KEYS, QUERIES)), QUERIES, KEYS)
    assert type(given.col) is torch.Tensor
    assert_is(given, edge_index)
