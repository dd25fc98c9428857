"""`edge_dot`, `weighted_sum` and `weighted_max` against loops and the plain formulas, and what they promise."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geoattn import Neighbors, native
from geoattn.ops import edge_dot, weighted_max, weighted_sum
from geoattn.ops.backends import chunked, edges_fused, recompute
from geoattn.ops.backends.choose import backend
from tests.ops.problems import random_pattern

FAST = ["torch", pytest.param("cpu", marks=pytest.mark.skipif(not native.library(), reason="not built"))]
BACKENDS = ["reference", *FAST]

# For sums of at most 300 products of standard normal numbers, or of those and numbers up to 8. Half types are summed in
# float32: what is left of the error is the rounding of the result.
TOLERANCE = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.float32: {"rtol": 1e-5, "atol": 2e-4},
    torch.bfloat16: {"rtol": 2**-7, "atol": 3e-4},
    torch.float16: {"rtol": 2**-10, "atol": 3e-4},
}


def inputs(pattern, heads, width, dtype=torch.float64, seed=0):
    make = torch.Generator().manual_seed(seed)
    keys, edges = (pattern.num_keys, heads, width), (pattern.num_edges, heads)
    sizes = [(pattern.num_queries, heads, width), keys, edges, keys]
    return [torch.randn(size, generator=make, dtype=torch.float64).to(dtype).requires_grad_() for size in sizes]


@st.composite
def neighbors(draw):
    """Any pattern: empty rows, duplicate edges, no edges, no queries."""
    queries, keys = draw(st.integers(0, 6)), draw(st.integers(1, 6))
    pair = st.tuples(st.integers(0, keys - 1), st.integers(0, max(queries - 1, 0)))
    pairs = draw(st.lists(pair, max_size=40 if queries else 0))
    index = torch.tensor(pairs, dtype=draw(st.sampled_from([torch.int32, torch.int64]))).view(-1, 2).T
    return Neighbors.from_edge_index(index, queries, keys)


def results(query, key, weight, value, pattern):
    """Of both: no input has a gradient from two of them."""
    return edge_dot(query, key, pattern), weighted_sum(weight, value, pattern)


def with_gradients(args, pattern):
    """The results, and the gradients of all inputs."""
    make = torch.Generator().manual_seed(0)
    found = results(*args, pattern)
    upstream = [torch.randint(-8, 9, x.shape, generator=make).to(x.dtype) for x in found]
    return [*found, *torch.autograd.grad(found, args, upstream)]


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=40)
@given(neighbors(), st.integers(1, 9), st.integers(1, 20), st.integers(0, 99))
def test_equals_loops_over_edges(name, pattern, heads, width, seed):
    args = inputs(pattern, heads, width, seed=seed)
    query, key, weight, value = args
    dots = torch.zeros_like(weight)
    out = torch.zeros_like(query)
    for e, (i, j) in enumerate(zip(pattern.row.tolist(), pattern.col.tolist(), strict=True)):
        for h in range(heads):
            dots[e, h] = query[i, h] @ key[j, h]
            out[i, h] += weight[e, h] * value[j, h]
    with backend(name):
        torch.testing.assert_close(results(*args, pattern), (dots, out))


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("heads", range(1, 9))
def test_equals_the_reference(name, dtype, index, heads):
    pattern = random_pattern(40, 30, 900, index)
    for width in (1, 3, 8, 16, 31, 32, 64, 100):
        args = inputs(pattern, heads, width, dtype, seed=width)
        with backend("reference"):
            exact = with_gradients([x.detach().double().requires_grad_() for x in args], pattern)
        with backend(name):
            found = with_gradients(args, pattern)
        for a, b in zip(found, exact, strict=True):
            assert a.dtype == dtype
            torch.testing.assert_close(a.double(), b, **TOLERANCE[dtype])


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("edges", [1, 7, 40])
def test_rows_are_cut_anywhere(name, edges, monkeypatch):
    monkeypatch.setitem(chunked._CHUNK, "cpu", edges * 6)
    pattern = random_pattern(40, 30, 900)
    args = inputs(pattern, 2, 3)
    with backend("reference"):
        exact = with_gradients(args, pattern)
    with backend(name):
        torch.testing.assert_close(with_gradients(args, pattern), exact)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_strides(name, dtype):
    pattern = random_pattern(40, 30, 900)
    plain = [x.detach() for x in inputs(pattern, 4, 32, dtype)]
    wide = [torch.full((*x.shape[:-1], 2 * x.size(-1) + 1), torch.nan, dtype=dtype) for x in plain]
    for stride in ("heads apart", "every second", "heads last"):
        args = []
        for x, room in zip(plain, wide, strict=True):
            part = room[..., 1 : 1 + x.size(-1)] if stride == "heads apart" else room[..., 1::2]
            part = x.transpose(0, -1).contiguous().transpose(0, -1) if stride == "heads last" else part.copy_(x)
            args.append(part.requires_grad_())
        with backend(name):
            expected = with_gradients([x.clone().requires_grad_() for x in plain], pattern)
            found = with_gradients(args, pattern)
            # An upstream gradient of one number.
            (grad,) = torch.autograd.grad(weighted_sum(*args[2:4], pattern).sum(), args[2])
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        torch.testing.assert_close(grad.float(), args[3].float().sum(-1)[pattern.col], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", BACKENDS)
def test_first_and_second_derivatives(name):
    pattern = random_pattern(9, 6, 14)
    args = inputs(pattern, 2, 3)
    with backend(name):
        for call, some in [(edge_dot, args[:2]), (weighted_sum, args[2:])]:
            assert torch.autograd.gradcheck(lambda *x, call=call: call(*x, pattern), some)
            assert torch.autograd.gradgradcheck(lambda *x, call=call: call(*x, pattern), some)


@pytest.mark.parametrize("name", FAST)
def test_third_derivatives_with_frozen_inputs(name):
    """Whichever inputs ask for gradients, the columns that those need are there."""
    pattern = random_pattern(9, 6, 14)

    def third(args):
        needed = [x for x in args if x.requires_grad]
        total = sum(x.sin().sum() for x in results(*args, pattern))
        for _ in range(3):
            grads = torch.autograd.grad(total, needed, create_graph=True, allow_unused=True)
            total = sum((g.sin().sum() for g in grads if g is not None), total.new_zeros(()))
        return total.detach()

    for frozen in [(), (0,), (1,), (2,), (3,), (0, 2), (1, 3)]:
        args = [x.detach().requires_grad_(n not in frozen) for n, x in enumerate(inputs(pattern, 2, 3))]
        with backend("reference"):
            expected = third(args)
        with backend(name):
            torch.testing.assert_close(third(args), expected)


@pytest.mark.skipif(not native.library(), reason="not built")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(3, 16), (4, 33), (5, 64)])
def test_the_number_of_threads_does_not_change_a_bit(dtype, shape):
    pattern = random_pattern(700, 500, 6000)
    args = inputs(pattern, *shape, dtype)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        try:
            results.append(with_gradients(args, pattern))
        finally:
            torch.set_num_threads(1)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.skipif(not native.library(), reason="not built")
def test_rows_visited_in_another_order(monkeypatch):
    monkeypatch.setattr("geoattn.patterns.visits.MIN_KEYS", 1000)
    monkeypatch.setattr(edges_fused, "VISIT_BYTES", 1000)
    make = torch.Generator().manual_seed(0)
    place = torch.randperm(4000, generator=make)  # a ring, its nodes in random order
    index = torch.stack([place, place.roll(1)])
    index = torch.cat([index, index.flip(0), torch.stack([place, place.roll(2)])], 1)
    pattern = Neighbors.from_edge_index(index, 4000)
    assert pattern.visits() is not None
    assert pattern.visits(transposed=True) is not None
    args = inputs(pattern, 3, 5)
    with backend("reference"):
        exact = with_gradients(args, pattern)
    torch.testing.assert_close(with_gradients(args, pattern), exact)


@pytest.mark.parametrize("name", FAST)
def test_only_weights_are_kept_per_edge(name):
    pattern = random_pattern(40, 30, 701)
    args = inputs(pattern, 2, 3)
    kept = []
    pack = torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x)
    with pack, backend(name):
        results(*args, pattern)
    assert kept
    assert all(x.shape in [(701,), (701, 2)] for x in kept if 701 in x.shape)


def test_autocast_casts_to_the_wider_type():
    pattern = random_pattern(40, 30, 900)
    args = inputs(pattern, 2, 3, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = results(args[0].bfloat16(), args[1], args[2], args[3].bfloat16(), pattern)
    exact = results(args[0].bfloat16().float(), args[1], args[2], args[3].bfloat16().float(), pattern)
    torch.testing.assert_close(found, exact)


def test_compiles_without_breaks_and_exports():
    pattern = random_pattern(40, 30, 900)
    args = inputs(pattern, 2, 3, torch.float32)

    class Layer(torch.nn.Module):
        def forward(self, query, key, weight, *others):
            return results(query, key, weight.exp(), *others, pattern)

    expected = with_gradients_of(Layer(), args)
    compiled = torch.compile(Layer(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(with_gradients_of(compiled, args), expected)
    exported = torch.export.export(Layer(), tuple(x.detach() for x in args)).module()
    torch.testing.assert_close(exported(*args), Layer()(*args))


def with_gradients_of(layer, args):
    found = layer(*args)
    return [*found, *torch.autograd.grad(sum(x.square().sum() for x in found), args)]


def test_operators_are_well_behaved():
    pattern = random_pattern(9, 6, 14)
    query, key, weight, *_ = inputs(pattern, 2, 3)
    given = edges_fused.arguments(pattern, key, None)
    torch.library.opcheck(torch.ops.geoattn.edge_dot.default, (query, key, given, None))
    torch.library.opcheck(torch.ops.geoattn.weighted_sum.default, (weight, key, given, False, None))
    torch.library.opcheck(torch.ops.geoattn.weighted_sum.default, (weight, query, given, True, None))


def test_bad_input_is_named():
    pattern = random_pattern(9, 6, 14)
    query, key, weight, *_ = inputs(pattern, 2, 3)
    heads = Neighbors.per_head([pattern, pattern])
    for call, args, message in [
        (edge_dot, (query[:8], key, pattern), r"expected query \[9, H, D\] and key \[6, H, D\], got \(8, 2, 3\)"),
        (edge_dot, (query[:, :1], key, pattern), r"got \(9, 1, 3\) and \(6, 2, 3\)"),
        (edge_dot, (query[0], key, pattern), r"expected query \[9, H, D\]"),
        (edge_dot, (query, key[:5], pattern), r"expected key \[6, H, D\], got \(5, 2, 3\)"),
        (edge_dot, (query.float(), key, pattern), "one floating type, got torch.float32 and torch.float64"),
        (edge_dot, (query.long(), key.long(), pattern), "one floating type"),
        (edge_dot, (query, torch.randn(12, 1, 3, dtype=torch.float64), heads), "all heads share"),
        (weighted_sum, (weight[:13], key, pattern), r"expected weight \[14, 2\], got \(13, 2\)"),
        (weighted_sum, (weight[:, :1], key, pattern), r"expected weight \[14, 2\], got \(14, 1\)"),
        (weighted_sum, (weight, key[:, 0], pattern), r"expected value \[6, H, D\]"),
        (weighted_sum, (weight[:13], key, pattern), r"expected weight \[14, 2\], got \(13, 2\)"),
        (weighted_sum, (weight.to("meta"), key, pattern), "one device, got meta, cpu and cpu"),
    ]:
        with pytest.raises(ValueError, match=message):
            call(*args)
    with backend("triton"), pytest.raises(RuntimeError, match="force one of cpu, torch, reference"):
        edge_dot(query, key, pattern)


@pytest.mark.skipif(not native.library(), reason="not built")
def test_a_pattern_that_lies_is_found_out():
    key = torch.randn(5, 2, 8)
    for rowptr, col in [
        ([0, 2, 3], [0, 5, 1]),
        ([0, 2, 3], [0, -1, 1]),
        ([0, 3, 2], [0, 1, 2]),
        ([0, 1, 9], [0, 1, 2]),
    ]:
        pattern = Neighbors(torch.tensor(rowptr), torch.tensor(col), 5, check=False)
        with pytest.raises(IndexError):
            edge_dot(key[:2], key, pattern)
        with pytest.raises(IndexError):
            weighted_sum(torch.randn(3, 2), key, pattern)


@pytest.mark.parametrize("chunk", [1 << 13, 20])
def test_maxima_equal_loops_and_share_gradients_evenly(chunk, monkeypatch):
    monkeypatch.setitem(recompute.EDGES_PER_CHUNK, "cpu", chunk)
    pattern = random_pattern()
    make = torch.Generator().manual_seed(0)
    weight = torch.randint(-2, 3, (pattern.num_edges, 2), generator=make).double().requires_grad_()
    value = torch.randint(-2, 3, (pattern.num_keys, 2, 3), generator=make).double().requires_grad_()
    expected = torch.zeros(pattern.num_queries, 2, 3, dtype=torch.float64)
    message = weight.unsqueeze(-1) * value[pattern.col]
    rows = [row for row in message.split(pattern.degree.tolist())]
    expected = torch.stack([row.amax(0) if len(row) else row.sum(0) for row in rows])
    found = weighted_max(weight, value, pattern)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn(found.shape, generator=make, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(found, [weight, value], upstream), torch.autograd.grad(expected, [weight, value], upstream)
    )
    half = weighted_max(weight.bfloat16(), value.bfloat16(), pattern)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), expected)
    with pytest.raises(ValueError, match="expected weight"):
        weighted_max(weight[:-1], value, pattern)
