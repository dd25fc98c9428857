"""`attend` against softmax written out query by query, and the properties it promises."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geoattn import Neighbors, Windows, attend


def by_hand(query, key, value, pattern, bias=None, scale=None, key_weight=None):
    """Softmax attention with loops over queries and heads; the truth for small inputs."""
    if isinstance(pattern, Windows):
        pattern = pattern.to_neighbors()
    scale = query.size(-1) ** -0.5 if scale is None else scale
    heads, per_group = query.size(1), query.size(1) // key.size(1)
    out = query.new_zeros(query.size(0), heads, value.size(2))
    lse = query.new_full((query.size(0), heads), -torch.inf)
    for i in range(query.size(0)):
        span = slice(int(pattern.rowptr[i]), int(pattern.rowptr[i + 1]))
        keys = pattern.col[span].long()
        for h in range(heads):
            score = key[keys, h // per_group] @ query[i, h] * scale
            if bias is not None:
                score = score + bias[span, h if bias.size(1) > 1 else 0]
            if key_weight is not None:
                score = score + (key_weight if key_weight.dim() == 1 else key_weight[:, h])[keys].log()
            if len(keys) and score.max() > -torch.inf:
                out[i, h] = score.softmax(0) @ value[keys, h // per_group]
                lse[i, h] = score.logsumexp(0)
    return out, lse


def inputs(pattern, heads=4, groups=2, dim=3, width=5, dtype=torch.float64, seed=0):
    make = torch.Generator().manual_seed(seed)
    query = torch.randn(pattern.num_queries, heads, dim, generator=make, dtype=dtype)
    key = torch.randn(pattern.num_keys, groups, dim, generator=make, dtype=dtype)
    value = torch.randn(pattern.num_keys, groups, width, generator=make, dtype=dtype)
    return query, key, value


@st.composite
def neighbors(draw):
    """Any pattern: empty rows, duplicate edges, no edges, one node."""
    queries, keys = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    pairs = draw(st.lists(st.tuples(st.integers(0, keys - 1), st.integers(0, queries - 1)), max_size=20))
    index = torch.tensor(pairs, dtype=draw(st.sampled_from([torch.int32, torch.int64]))).view(-1, 2).T
    return Neighbors.from_edge_index(index, queries, keys)


@st.composite
def windows(draw):
    lengths = draw(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=5))
    ptr = torch.tensor([(0, 0), *lengths]).cumsum(0)
    return Windows(ptr[:, 0], ptr[:, 1])


@given(neighbors() | windows(), st.booleans(), st.integers(0, 99))
def test_equals_softmax_written_out(pattern, weighted, seed):
    query, key, value = inputs(pattern, seed=seed)
    bias = None
    if isinstance(pattern, Neighbors):
        bias = torch.randn(pattern.num_edges, 4, dtype=torch.float64)
    key_weight = torch.rand(pattern.num_keys, dtype=torch.float64) if weighted else None
    out, lse = attend(query, key, value, pattern, bias, key_weight=key_weight, return_lse=True)
    expected, expected_lse = by_hand(query, key, value, pattern, bias, key_weight=key_weight)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-10, atol=1e-12)


@given(windows())
def test_windows_equal_their_pairs_written_out(pattern):
    query, key, value = inputs(pattern)
    weight = torch.rand(pattern.num_keys, 4, dtype=torch.float64)
    dense = attend(query, key, value, pattern, key_weight=weight, return_lse=True)
    sparse = attend(query, key, value, pattern.to_neighbors(), key_weight=weight, return_lse=True)
    torch.testing.assert_close(dense, sparse, rtol=1e-10, atol=1e-12)


PATTERNS = {
    "neighbors": Neighbors.from_edge_index(torch.tensor([[0, 1, 2, 2, 1], [0, 0, 0, 2, 2]]), 3, 4),
    "windows": Windows(torch.tensor([0, 2, 2, 3]), torch.tensor([0, 2, 3, 3])),
}


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_derivatives(name, check):
    pattern = PATTERNS[name]
    tensors = [
        *inputs(pattern, heads=2, groups=1, dim=2, width=2),
        torch.rand(pattern.num_keys).double() + 0.1,
    ]
    if name == "neighbors":
        tensors.append(torch.randn(pattern.num_edges, 2).double())

    def run(query, key, value, key_weight, bias=None):
        out, lse = attend(query, key, value, pattern, bias, key_weight=key_weight, return_lse=True)
        return out, lse.where(lse.isfinite(), 0)

    assert check(run, [t.requires_grad_() for t in tensors])


@pytest.mark.parametrize("name", PATTERNS)
def test_empty_rows_give_zeros_and_finite_gradients(name):
    pattern = PATTERNS[name]
    query, key, value = (t.requires_grad_() for t in inputs(pattern))
    weight = torch.zeros(pattern.num_keys, dtype=torch.float64, requires_grad=True)  # hides every key
    out, lse = attend(query, key, value, pattern, key_weight=weight, return_lse=True)
    assert (out == 0).all()
    assert (lse == -torch.inf).all()
    for gradient in torch.autograd.grad(out.sum(), [query, key, value, weight]):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", PATTERNS)
def test_large_scores_neither_overflow_nor_lose_the_winner(name):
    pattern = PATTERNS[name]
    query, key, value = inputs(pattern)
    out = attend(query, key, value, pattern, scale=1e4)
    torch.testing.assert_close(out, by_hand(query, key, value, pattern, scale=1e4)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_accumulate_in_float32(dtype):
    count = 4096
    pattern = Windows(torch.tensor([0, 1]), torch.tensor([0, count]))
    query, key = torch.zeros(1, 1, 8, dtype=dtype), torch.zeros(count, 1, 8, dtype=dtype)
    value = torch.ones(count, 1, 1, dtype=dtype)
    for p in (pattern, pattern.to_neighbors()):
        out, lse = attend(query, key, value, p, return_lse=True)
        assert out.dtype == dtype
        assert lse.dtype == torch.float32
        assert out.item() == 1  # a sum of 4,096 ones in half precision would stop at 256 or 2,048
        assert lse.item() == pytest.approx(torch.tensor(count).log().item(), rel=1e-5)


@given(neighbors(), st.randoms(use_true_random=False))
def test_permuting_nodes_permutes_the_output(pattern, random):
    query, key, value = inputs(pattern)
    of_query = torch.tensor(random.sample(range(pattern.num_queries), pattern.num_queries))
    of_key = torch.tensor(random.sample(range(pattern.num_keys), pattern.num_keys))
    moved = torch.stack([of_key.argsort()[pattern.col.long()], of_query.argsort()[pattern.row.long()]])
    permuted = Neighbors.from_edge_index(moved, pattern.num_queries, pattern.num_keys)
    out = attend(query[of_query], key[of_key], value[of_key], permuted)
    torch.testing.assert_close(out, attend(query, key, value, pattern)[of_query], rtol=1e-10, atol=1e-12)


def test_bias_in_the_callers_edge_order():
    index = torch.tensor([[2, 0, 1], [1, 1, 0]])
    pattern = Neighbors.from_edge_index(index)
    query, key, value = (t[:3] for t in inputs(Neighbors.from_edge_index(torch.tensor([[2], [2]]))))
    pattern = Neighbors.from_edge_index(index, 3)
    hide_first = pattern.reorder_edges(torch.tensor([[-torch.inf], [0.0], [0.0]], dtype=torch.float64))
    out = attend(query, key, value, pattern, hide_first)
    torch.testing.assert_close(out[1], value[0].repeat_interleave(2, 0))


def test_dropout_keeps_the_mean():
    torch.manual_seed(0)
    pattern = Windows(torch.tensor([0, 2000]), torch.tensor([0, 10]))
    query, key, value = torch.zeros(2000, 1, 4), torch.zeros(10, 1, 4), torch.ones(10, 1, 1)
    out = attend(query, key, value, pattern, dropout=0.5)
    assert out.std() > 0.1
    assert out.mean().item() == pytest.approx(1.0, abs=0.02)
    sparse = attend(query, key, value, pattern.to_neighbors(), dropout=0.5)
    assert sparse.std() > 0.1
    assert sparse.mean().item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.zeros(3, 12).double()}, "expected query"),
        ({"key": torch.zeros(4, 2, 2).double()}, "same last dimension"),
        ({"value": torch.zeros(4, 1, 5).double()}, "same first dimensions"),
        ({"key": torch.zeros(4, 3, 3).double(), "value": torch.zeros(4, 3, 5).double()}, "must divide"),
        ({"query": torch.zeros(3, 4, 3)}, "one floating type"),
        ({"query": torch.zeros(2, 4, 3).double()}, "does not fit"),
        ({"bias": torch.zeros(5, 3).double()}, r"expected bias \[5, 4\]"),
        ({"key_weight": torch.ones(3).double()}, r"expected key_weight \[4\]"),
        ({"dropout": 1.0}, "dropout must be"),
    ],
)
def test_bad_input_is_named(change, message):
    pattern = PATTERNS["neighbors"]
    query, key, value = inputs(pattern)
    arguments = {"query": query, "key": key, "value": value, "pattern": pattern, **change}
    with pytest.raises(ValueError, match=message):
        attend(**arguments)
