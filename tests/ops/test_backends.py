"""Every backend of `attend` against the reference: scores, types, edge cases, derivatives, compilation, memory."""

import math
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import geoattn
from geoattn import Neighbors, attend
from geoattn.ops.backends import cpu, fused, philox
from geoattn.patterns import visits

AVAILABLE = [name for name, state in geoattn.backends().items() if state == "available" and name != "reference"]
# Those with a backward pass of their own.
FAST = [name for name in AVAILABLE if name in fused.OWN_GRADIENTS]
TOLERANCE = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-10},
    torch.float32: {"rtol": 2e-4, "atol": 2e-5},
    torch.bfloat16: {"rtol": 4e-2, "atol": 4e-2},
    torch.float16: {"rtol": 5e-3, "atol": 5e-3},
}
# What a score is made of; every name but "additive" is an argument of `attend`.
SCORES = {
    "dot": {},
    "bias": {"bias"},
    "key_weight": {"key_weight"},
    "transformer_conv": {"edge_key", "edge_value"},
    "everything": {"bias", "key_weight", "edge_key", "edge_value"},
    "gatv2": {"att"},
    "gatv2_edges": {"att", "edge_key", "bias"},
    "gat": {"att", "scalar"},
}


def problem(pattern, score="dot", heads=4, groups=2, dim=5, width=3, dtype=torch.float64, seed=0, shared=True):
    """Arguments of `attend` by name; the tensors that take gradients require them."""
    make = torch.Generator().manual_seed(seed)

    def random(*shape, of=dtype):
        return torch.randn(*shape, generator=make, dtype=torch.float64).to(of).requires_grad_()

    terms = SCORES[score]
    dim = 1 if "scalar" in terms else dim
    arguments = {
        "query": random(pattern.num_queries, heads, dim),
        "key": random(pattern.num_keys, groups, dim),
        "value": random(pattern.num_keys, groups, width),
    }
    edges, edge_heads = pattern.num_edges, 1 if shared else heads
    if "bias" in terms:
        arguments["bias"] = random(edges, edge_heads)
    if "key_weight" in terms:
        weight = torch.rand(pattern.num_keys, heads, generator=make, dtype=torch.float64) + 0.1
        arguments["key_weight"] = (weight[:, 0] if shared else weight).to(dtype).clone().requires_grad_()
    if "edge_key" in terms:
        arguments["edge_key"] = random(edges, edge_heads, dim)
    if "edge_value" in terms:
        arguments["edge_value"] = random(edges, edge_heads, width)
    if "att" in terms:
        arguments["att"] = random(heads, dim)
    return arguments


def random_pattern(queries=30, keys=20, edges=150, dtype=torch.int64, seed=0):
    make = torch.Generator().manual_seed(seed)
    key = torch.randint(keys, (edges,), generator=make)
    query = torch.randint(queries, (edges,), generator=make)
    return Neighbors.from_edge_index(torch.stack([key, query]).to(dtype), queries, keys)


def run(name, pattern, arguments, seed=0, **options):
    """Output, log-sum-exp and the gradients of a random function of both."""
    with geoattn.backend(name):
        torch.manual_seed(seed)
        out, lse = attend(pattern=pattern, return_lse=True, **arguments, **options)
        make = torch.Generator().manual_seed(1)
        of_out = torch.randn(out.shape, generator=make, dtype=torch.float64).to(out.dtype)
        of_lse = torch.randn(lse.shape, generator=make, dtype=torch.float64).to(lse.dtype)
        finite = lse.where(lse.isfinite(), 0)
        grads = torch.autograd.grad([out, finite], list(arguments.values()), [of_out, of_lse], allow_unused=True)
    return {"out": out, "lse": lse, **dict(zip(arguments, grads, strict=True))}


def assert_same(found, expected, dtype):
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        # Gradients are sums: what a term loses to rounding is measured by the largest sum.
        largest = value.abs().where(value.isfinite(), 0).max().item() if value.numel() else 0
        tolerance = {"rtol": TOLERANCE[dtype]["rtol"], "atol": TOLERANCE[dtype]["atol"] * max(1, largest)}
        torch.testing.assert_close(found[name], value, **tolerance, msg=lambda m, name=name: f"{name}: {m}")


def exact(arguments):
    """The same arguments in float64."""
    return {name: x.detach().double().requires_grad_() for name, x in arguments.items()}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("name", AVAILABLE)
def test_equals_the_reference(name, score, dtype):
    for index, heads, groups, dim, width, shared in (
        (torch.int64, 4, 4, 16, 32, True),
        (torch.int32, 4, 2, 5, 3, False),
        (torch.int64, 4, 1, 33, 64, False),
        (torch.int64, 4, 4, 4, 8, False),
        (torch.int32, 8, 8, 8, 4, True),
    ):
        pattern = random_pattern(dtype=index)
        arguments = problem(pattern, score, heads, groups, dim, width, dtype, shared=shared)
        expected = run("reference", pattern, exact(arguments))
        expected = {
            n: x.to(torch.promote_types(dtype, torch.float32) if n == "lse" else dtype) for n, x in expected.items()
        }
        assert_same(run(name, pattern, arguments), expected, dtype)


@st.composite
def patterns(draw):
    """Empty rows, duplicate edges, no edges, one node, rows longer than a tile of 16 edges."""
    queries, keys = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    count = draw(st.sampled_from([0, 1, 5, 20, 90]))
    return random_pattern(
        queries, keys, count, draw(st.sampled_from([torch.int32, torch.int64])), draw(st.integers(0, 99))
    )


# Those in the second half have code of their own where they are a multiple of a vector.
WIDTHS = st.one_of(st.integers(1, 40), st.sampled_from([4, 8, 16, 32, 64]))


@settings(max_examples=80)
@given(
    patterns(), st.sampled_from(sorted(SCORES)), st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from([1, 2, 3, 4, 8]), st.sampled_from([1, 2, 3, 4, 6]), WIDTHS, WIDTHS,
)  # fmt: skip
def test_any_pattern_and_width(pattern, score, dtype, groups, share, dim, width):
    arguments = problem(pattern, score, groups * share, groups, dim, width, dtype)
    expected = run("reference", pattern, arguments)
    for name in AVAILABLE:
        assert_same(run(name, pattern, arguments), expected, dtype)


@pytest.mark.parametrize("name", AVAILABLE)
def test_dropout_drops_the_same_edges_everywhere(name):
    pattern = random_pattern(50, 40, 2000)
    for score in ("dot", "everything", "gatv2_edges"):
        arguments = problem(pattern, score, heads=6)
        expected = run("reference", pattern, arguments, dropout=0.4)
        assert_same(run(name, pattern, arguments, dropout=0.4), expected, torch.float64)
        other = run(name, pattern, arguments, seed=1, dropout=0.4)
        assert not torch.equal(other["out"], expected["out"])


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_share_it_should_in_every_head(rate):
    kept = philox.keep(torch.arange(40_000), 6, rate, 1234567890123456789)
    torch.testing.assert_close(kept.double().mean(0), torch.full((6,), 1 - rate).double(), atol=0.01, rtol=0)
    pairs = torch.corrcoef(kept.double().T) - torch.eye(6)
    assert pairs.abs().max() < 0.03
    far = philox.keep(torch.tensor([5, 5 + 2**32]), 4, 0.5, 3)  # beyond 32 bits there are other bits
    assert philox.keep(torch.tensor([5]), 4, 0.5, 3).equal(far[:1])


def test_philox_gives_the_published_words():
    """The known answers of Random123's kat_vectors for philox4x32-10, at counter 0 and key 0."""
    words = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    for word, expected in enumerate(words):
        for rate, kept in ((expected / 2**32, True), ((expected + 1) / 2**32, False)):
            assert philox.keep(torch.tensor([0]), 4, rate, 0)[0, word].item() is kept


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("name", [*AVAILABLE, "reference"])
def test_first_and_second_derivatives(name, score):
    pattern = random_pattern(3, 4, 7)
    arguments = problem(pattern, score, heads=2, groups=1, dim=2, width=2)

    def function(*tensors):
        out, lse = attend(pattern=pattern, return_lse=True, **dict(zip(arguments, tensors, strict=True)))
        return out, lse.where(lse.isfinite(), 0)

    with geoattn.backend(name):
        assert torch.autograd.gradcheck(function, tuple(arguments.values()))
        assert torch.autograd.gradgradcheck(function, tuple(arguments.values()))


@pytest.mark.parametrize("name", FAST)
def test_third_derivatives(name):
    pattern = random_pattern(3, 3, 6)
    arguments = problem(pattern, heads=1, groups=1, dim=2, width=1)

    def third(backend):
        with geoattn.backend(backend):
            x = attend(pattern=pattern, **arguments).square().sum()
            for _ in range(3):
                (x,) = torch.autograd.grad(x, arguments["key"], create_graph=True)
                x = x.square().sum()
            return x

    torch.testing.assert_close(third(name), third("reference"))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", AVAILABLE)
def test_extreme_scores(name, dtype):
    pattern = random_pattern(20, 20, 100)
    arguments = problem(pattern, "bias", dtype=dtype)
    big = 1e4 * arguments["bias"].detach().sign()
    found = run(name, pattern, {**arguments, "bias": big.requires_grad_()})
    expected = run("reference", pattern, exact({**arguments, "bias": big}))
    rounding = 1e4 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps  # of a score of that size
    tolerance = {"rtol": TOLERANCE[dtype]["rtol"] + rounding, "atol": TOLERANCE[dtype]["atol"] + rounding}
    torch.testing.assert_close(found["out"].double(), expected["out"], **tolerance)
    hidden = torch.full_like(big, -math.inf).requires_grad_()
    found = run(name, pattern, {**arguments, "bias": hidden})
    assert (found["out"] == 0).all()
    assert (found["lse"] == -math.inf).all()
    for argument in arguments:
        assert (found[argument] == 0).all()
    half = torch.where(torch.arange(pattern.num_edges).unsqueeze(1) % 2 == 0, -math.inf, arguments["bias"].detach())
    half = half.to(dtype).requires_grad_()
    expected = run("reference", pattern, exact({**arguments, "bias": half}))
    found = run(name, pattern, {**arguments, "bias": half})
    for argument, value in expected.items():
        torch.testing.assert_close(found[argument].double(), value, **TOLERANCE[dtype])


@pytest.mark.parametrize("name", AVAILABLE)
def test_nan_stays_in_its_rows(name):
    pattern = Neighbors.from_edge_index(torch.tensor([[0, 1, 2, 2], [0, 0, 1, 1]]), 2, 3)
    arguments = {n: x.detach() for n, x in problem(pattern).items()}
    arguments["key"][2] = math.nan
    with geoattn.backend(name):
        out = attend(pattern=pattern, **arguments)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


@pytest.mark.parametrize("name", AVAILABLE)
def test_a_row_of_a_million_keys(name):
    count = 1_000_000
    pattern = Neighbors(torch.tensor([0, 0, count]), torch.arange(count) % 100, 100)
    query, key, value = (torch.randn(n, 1, 4, dtype=torch.float64) for n in (2, 100, 100))
    once = attend(query, key, value, Neighbors(torch.tensor([0, 0, 100]), torch.arange(100), 100))
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-3)):  # one by one, a million sums in float32
        with geoattn.backend(name):
            out = attend(query.to(dtype), key.to(dtype), value.to(dtype), pattern)
        torch.testing.assert_close(out.double(), once, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "heads", "width"), [(torch.float32, 4, 32), (torch.bfloat16, 7, 40)])
@pytest.mark.parametrize("name", [n for n in FAST if n == "cpu"])
def test_results_too_large_for_the_cache(name, dtype, heads, width):
    """They are written around it; rows of 560 bytes are not aligned to vectors."""
    count = 40_000
    pattern = random_pattern(count, count, 2 * count)
    a = {n: torch.randn(count, heads, width, dtype=dtype, requires_grad=True) for n in ("query", "key", "value")}
    assert a["query"].nbytes > 1 << 24
    assert_same(run(name, pattern, a), run("torch", pattern, a), dtype)


@pytest.mark.parametrize("name", AVAILABLE)
def test_no_edges_and_no_nodes(name):
    for queries, keys in ((3, 2), (0, 2), (3, 0), (0, 0)):
        pattern = Neighbors(torch.zeros(queries + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), keys)
        for score in SCORES:
            found = run(name, pattern, problem(pattern, score))
            assert found["out"].shape == (queries, 4, 3)
            assert (found["out"] == 0).all()
            assert (found["query"] == 0).all()


@pytest.mark.parametrize("name", AVAILABLE)
def test_strides_do_not_matter(name):
    pattern = random_pattern(25, 25)
    whole = torch.randn(25, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    interleaved = torch.randn(6, 4, 3, 25, dtype=torch.float64, requires_grad=True)
    for x in (whole, interleaved):
        views = (x if x is whole else x.permute(3, 2, 1, 0)).unbind(1)
        with geoattn.backend(name):
            out = attend(*views, pattern)
            (grad,) = torch.autograd.grad(out.square().sum(), x)
        copies = [view.detach().contiguous().requires_grad_() for view in views]
        with geoattn.backend("reference"):
            expected = attend(*copies, pattern)
            grads = torch.stack(torch.autograd.grad(expected.square().sum(), copies), 1)
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(grad, grads if x is whole else grads.permute(3, 2, 1, 0))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("score", ["everything", "gatv2_edges"])
@pytest.mark.parametrize("name", FAST)
def test_rows_of_every_length(name, score, dropout):
    """Below and above a tile of 16 edges and a batch of 128, which the kernels for CPUs treat differently."""
    lengths = [0, 300, 1, 15, 16, 17, 128, 129, 2, 100, 64, 0, 40]
    rowptr = torch.tensor([0, *lengths]).cumsum(0)
    pattern = Neighbors(rowptr, torch.randint(50, (sum(lengths),), generator=torch.Generator().manual_seed(0)), 50)
    arguments = problem(pattern, score, heads=6, groups=3, dim=8, width=8)
    options = {"dropout": dropout} if dropout else {}
    assert_same(
        run(name, pattern, arguments, **options), run("reference", pattern, arguments, **options), torch.float64
    )


@pytest.mark.parametrize("score", ["dot", "everything", "gatv2_edges", "gat"])
@pytest.mark.parametrize(("heads", "groups", "dim"), [(4, 4, 8), (8, 8, 4), (3, 3, 16), (4, 2, 16), (2, 1, 5)])
@pytest.mark.parametrize("name", FAST)
def test_one_gradient_of_keys_that_are_the_values(name, heads, groups, dim, score):
    pattern = random_pattern(30, 20, 900)  # rows of more than a tile
    pattern = Neighbors(pattern.rowptr, pattern.col.where(pattern.col != 3, 4), 20)  # a key without queries
    arguments = problem(pattern, score, heads, groups, dim, 1 if score == "gat" else dim)
    del arguments["value"]

    def found(backend, key_of, value_of):
        with geoattn.backend(backend):
            both = {"key": key_of(arguments["key"]), "value": value_of(arguments["key"])}
            out = attend(pattern=pattern, **{**arguments, **both})
            return torch.autograd.grad(out.square().sum(), list(arguments.values()))

    for one, two in zip(
        found(name, lambda x: x, lambda x: x), found("reference", torch.clone, torch.clone), strict=True
    ):
        torch.testing.assert_close(one, two, **TOLERANCE[torch.float64])
    # Views are tensors of their own, as are their gradients.
    key, value = arguments["key"].detach(), arguments["key"].detach()
    key.requires_grad_(), value.requires_grad_()
    with geoattn.backend(name):
        out = attend(pattern=pattern, **{**arguments, "key": key, "value": value})
    of_key, of_value = torch.autograd.grad(out.square().sum(), [key, value])
    with geoattn.backend(name):
        whole = torch.autograd.grad(
            attend(pattern=pattern, **{**arguments, "value": arguments["key"]}).square().sum(), arguments["key"]
        )
    torch.testing.assert_close(of_key + of_value, *whole, **TOLERANCE[torch.float64])


@pytest.mark.parametrize("score", ["dot", "gatv2_edges"])
@pytest.mark.parametrize("name", FAST)
def test_keys_that_are_the_values_in_second_derivatives_autocast_and_compiled(name, score):
    pattern = random_pattern(6, 5, 20)
    a = problem(pattern, score, 4, 4, 3, 3)
    del a["value"]

    def function(*tensors):
        named = dict(zip(a, tensors, strict=True))
        return attend(pattern=pattern, value=named["key"], **named)

    with geoattn.backend(name):
        assert torch.autograd.gradcheck(function, tuple(a.values()))
        assert torch.autograd.gradgradcheck(function, tuple(a.values()))
        expected = torch.autograd.grad(function(*a.values()).sum(), list(a.values()))
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(torch.autograd.grad(compiled(*a.values()).sum(), list(a.values())), expected)
        single = {n: x.detach().float().requires_grad_() for n, x in a.items()}
        with torch.autocast("cpu", torch.bfloat16):
            out = function(*single.values())
        assert out.dtype == torch.bfloat16
        for half, full in zip(torch.autograd.grad(out.sum(), list(single.values())), expected, strict=True):
            torch.testing.assert_close(half.double(), full, rtol=0.1, atol=0.05 * full.abs().max().item())


@pytest.mark.skipif("cpu" not in FAST, reason="the kernels for CPUs were not built")
def test_on_a_cpu_the_output_is_not_kept_and_may_be_changed():
    pattern = random_pattern(50, 40, 900)
    a = problem(pattern, "dot")
    expected = run("reference", pattern, a)["query"]
    make = torch.Generator().manual_seed(1)
    with geoattn.backend("cpu"):
        out, lse = attend(pattern=pattern, return_lse=True, **a)
        of_out, of_lse = (torch.randn(x.shape, generator=make, dtype=x.dtype) for x in (out, lse))
        out.add_(1)
        (found,) = torch.autograd.grad([out, lse], [a["query"]], [of_out, of_lse])
    torch.testing.assert_close(found, expected, **TOLERANCE[torch.float64])


@pytest.mark.parametrize("edges", [10, 100, 1000])
@pytest.mark.skipif("cpu" not in FAST, reason="the kernels for CPUs were not built")
def test_gradients_that_cancel_do_so_in_half_types(edges):
    """All edges of the query lead to one key: its scores do not matter, whatever the output is rounded to."""
    pattern = Neighbors(torch.tensor([0, edges]), torch.zeros(edges, dtype=torch.int64), 1)
    a = problem(pattern, "dot", 4, 4, 16, 16, torch.bfloat16)
    with geoattn.backend("cpu"):
        of_query, of_key, of_value = torch.autograd.grad(attend(pattern=pattern, **a).square().sum(), list(a.values()))
    largest = of_value.abs().max()
    assert of_query.abs().max() < 1e-4 * largest
    assert of_key.abs().max() < 1e-4 * largest


@pytest.mark.parametrize("name", FAST)
def test_keys_may_be_the_values_and_gradients_only_where_asked(name):
    pattern = random_pattern(25, 25)
    x = torch.randn(25, 2, 8, dtype=torch.float64, requires_grad=True)
    with geoattn.backend(name):
        (grad,) = torch.autograd.grad(attend(x, x, x, pattern).square().sum(), x)
        (of_value,) = torch.autograd.grad(attend(x.detach(), x.detach(), x, pattern).square().sum(), x)
    with geoattn.backend("reference"):
        (expected,) = torch.autograd.grad(attend(x, x, x, pattern).square().sum(), x)
        (expected_value,) = torch.autograd.grad(attend(x.detach(), x.detach(), x, pattern).square().sum(), x)
    torch.testing.assert_close(grad, expected)
    torch.testing.assert_close(of_value, expected_value)


@pytest.mark.parametrize("name", FAST)
def test_heads_with_patterns_of_their_own(name):
    parts = [random_pattern(12, 9, 40, seed=seed) for seed in range(4)]
    pattern = Neighbors.per_head(parts)
    arguments = problem(random_pattern(12, 9), "key_weight", groups=2, shared=False)
    with geoattn.backend(name):
        out, lse = attend(pattern=pattern, return_lse=True, **arguments)
    for h, part in enumerate(parts):
        alone = attend(
            arguments["query"][:, h : h + 1],
            arguments["key"][:, h // 2 : h // 2 + 1],
            arguments["value"][:, h // 2 : h // 2 + 1],
            part,
            key_weight=arguments["key_weight"][:, h : h + 1],
            return_lse=True,
        )
        torch.testing.assert_close((out[:, h : h + 1], lse[:, h : h + 1]), alone)
    with pytest.raises(ValueError, match="pattern that all heads share"):
        attend(pattern=pattern, att=torch.zeros(4, 5).double(), **arguments)


@pytest.mark.parametrize("score", ["dot", "everything", "gatv2_edges"])
@pytest.mark.parametrize("name", FAST)
def test_the_same_bits_for_any_number_of_threads(name, score):
    pattern = random_pattern(3000, 2500, 40_000)
    arguments = problem(pattern, score, dim=16, width=16, dtype=torch.float32)
    first = run(name, pattern, arguments, dropout=0.1 if score == "everything" else 0.0)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            again = run(name, pattern, arguments, dropout=0.1 if score == "everything" else 0.0)
            for argument, value in first.items():
                assert torch.equal(again[argument], value), argument
    finally:
        torch.set_num_threads(1)


@pytest.mark.skipif("cpu" not in AVAILABLE, reason="needs the compiled kernels")
@pytest.mark.parametrize("score", ["dot", "everything", "gatv2_edges"])
def test_the_same_bits_in_whatever_order_rows_are_visited(score):
    make = torch.Generator().manual_seed(0)
    degree = torch.randint(0, 7, (visits.MIN_KEYS,), generator=make)
    degree[5] = 40  # several tiles
    query = torch.arange(len(degree)).repeat_interleave(degree)
    key = (query + torch.randint(-9, 10, query.shape, generator=make)) % len(degree)
    shuffled = torch.randperm(len(degree), generator=make)
    pattern = Neighbors.from_edge_index(shuffled[torch.stack([key, query])], len(degree))
    assert pattern.visits() is not None
    assert pattern.visits(transposed=True) is not None
    arguments = problem(pattern, score, dim=3, width=2, dtype=torch.float32)
    dropout = 0.5 if score == "dot" else 0.0
    found = run("cpu", pattern, arguments, dropout=dropout)
    assert pattern._visits[False].edge is not None
    pattern._visits = {False: None, True: None}
    for name, value in run("cpu", pattern, arguments, dropout=dropout).items():
        if name == "att":  # one sum over all rows, in another order
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4 * value.abs().max().item())
        else:
            assert torch.equal(found[name], value), name


@pytest.mark.skipif("cpu" not in AVAILABLE, reason="needs the compiled kernels")
def test_where_rows_are_visited_nothing_else_is_made_of_the_pattern():
    pattern = Neighbors.knn(torch.rand(visits.MIN_KEYS, 3, generator=torch.Generator().manual_seed(0)), 5)
    run("cpu", pattern, problem(pattern, "dot", heads=1, groups=1, dtype=torch.float32))
    assert pattern._transpose is None
    assert all(found.edge is None for found in pattern._visits.values())
    assert len(pattern._visits) == 2


OVERWRITTEN = [("dot", False), ("everything", False), ("dot", True), ("gatv2_edges", False), ("gatv2_edges", True)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize(("score", "value_is_key"), OVERWRITTEN)
@pytest.mark.parametrize("name", [None, *FAST])
def test_gradients_are_the_same_where_keys_and_values_are_overwritten(name, score, value_is_key, groups, dtype):
    pattern = random_pattern(60, 20, 900)  # rows of several tiles, and by key of several batches
    arguments = problem(pattern, score, groups=groups, dim=8, width=8, dtype=dtype)
    if value_is_key:
        del arguments["value"]
    leaves = list(arguments.values())

    def gradients(overwrite, **options):
        inner = {name: x * 1 for name, x in arguments.items()}
        kept = {name: inner[name].detach().clone() for name in ("key", "value") if name in inner}
        if value_is_key:
            inner["value"] = inner["key"]
        with geoattn.backend(name) if name else nullcontext():
            out = attend(pattern=pattern, overwrite=overwrite, **inner)
            grads = torch.autograd.grad(out, leaves, torch.ones_like(out) / 3, **options)
        return grads, all(torch.equal(inner[name], value) for name, value in kept.items())

    expected, as_it_was = gradients(False)
    assert as_it_was
    found, as_it_was = gradients(True)
    one_of_both = value_is_key and score == "dot"  # made as two that are added
    assert as_it_was == (name in ("torch", "triton") or one_of_both or "cpu" not in AVAILABLE)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
    for options in ({"retain_graph": True}, {"create_graph": True}):
        found, as_it_was = gradients(True, **options)
        assert as_it_was
        tolerance = {"rtol": TOLERANCE[dtype]["rtol"], "atol": 10 * TOLERANCE[dtype]["atol"]}
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y, **tolerance)


@pytest.mark.parametrize("name", [None, *FAST])
def test_keys_that_are_queries_and_leaves_are_not_overwritten(name):
    pattern = random_pattern(20, 20, 300)
    leaf = torch.randn(20, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    with geoattn.backend(name) if name else nullcontext():
        found, expected = (
            torch.autograd.grad(attend(x, x, leaf, pattern, overwrite=o).sum(), leaf)
            for x, o in ((leaf * 1, True), (leaf * 1, False))
        )
    torch.testing.assert_close(*found, *expected)


@pytest.mark.skipif("cpu" not in AVAILABLE, reason="needs the compiled kernels")
def test_who_needs_what_was_overwritten_is_told():
    pattern = random_pattern()
    arguments = {name: x * 1 for name, x in problem(pattern).items()}
    key = arguments["key"]
    other = key.square().sum()  # needs the key in its own backward pass
    attend(pattern=pattern, overwrite=True, **arguments).sum().backward(inputs=[key])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        other.backward(inputs=[key])


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_every_instruction_set(capability):
    """The kernels of each instruction set this machine has, in processes of their own."""
    if cpu.library() is None:
        pytest.skip("the CPU kernels were not built")
    known = torch.backends.cpu.get_cpu_capability().lower()
    if ["default", "avx2", "avx512"].index(capability) > ["default", "avx2", "avx512"].index(
        known if known in ("avx2", "avx512") else "default"
    ):
        pytest.skip(f"this machine has no {capability}")
    code = (
        "import torch; from tests.ops import test_backends as t; from geoattn.ops.backends import cpu\n"
        "torch.set_num_threads(1)\n"
        f"assert torch.backends.cpu.get_cpu_capability().lower() == {capability!r}\n"
        "for dtype in t.TOLERANCE:\n"
        "    for score in t.SCORES: t.test_equals_the_reference('cpu', score, dtype)\n"
    )
    env = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, cwd=Path(__file__).parents[2])


def test_loading_the_kernels_leaves_denormals_alone():
    if cpu.library() is None:
        pytest.skip("the CPU kernels were not built")
    assert (torch.tensor([1e-40]) * 1).item() != 0


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("score", ["dot", "everything", "gatv2_edges"])
def test_nothing_per_edge_is_kept_for_the_backward_pass(name, score):
    pattern = random_pattern(50, 40, 900)
    arguments = problem(pattern, score, dtype=torch.float32)
    known = {x.untyped_storage().data_ptr() for x in arguments.values()}
    known |= {x.untyped_storage().data_ptr() for x in (pattern.rowptr, pattern.col)}
    columns = pattern.transpose
    known |= {x.untyped_storage().data_ptr() for x in (columns.rowptr, columns.col, columns.edge_order)}
    kept = []
    with geoattn.backend(name), torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        attend(pattern=pattern, dropout=0.2, **arguments)
    new = [x for x in kept if x.untyped_storage().data_ptr() not in known]
    assert kept
    assert not [tuple(x.shape) for x in new if pattern.num_edges in x.shape]


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("score", ["dot", "everything", "gatv2_edges"])
def test_opcheck(name, score):
    pattern = random_pattern(6, 5, 20)
    a = problem(pattern, score, dtype=torch.float64)
    columns = pattern.transpose
    weight = a["key_weight"].log().unsqueeze(1).detach().requires_grad_() if "key_weight" in a else None
    arguments = (
        *(a[n] for n in ("query", "key", "value")), pattern.rowptr, pattern.col, a.get("bias"), weight,
        a.get("edge_key"), a.get("edge_value"), a.get("att"), 0.5, 0.2, 0.0, None,
        [], [columns.rowptr, columns.col, columns.edge_order, None], name, False,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.geoattn.attend.default, arguments)


@pytest.mark.parametrize("name", [*FAST, "reference"])
@pytest.mark.parametrize("score", ["dot", "everything", "gatv2_edges"])
def test_compiles_into_one_graph(name, score):
    torch.compiler.reset()

    def function(pattern, arguments):
        return attend(pattern=pattern, **arguments).sin()

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    with geoattn.backend(name):
        for queries, edges in ((30, 150), (25, 120), (7, 0)):
            pattern = random_pattern(queries, 20, edges)
            arguments = problem(pattern, score)
            found, expected = compiled(pattern, arguments), function(pattern, arguments)
            torch.testing.assert_close(found, expected)
            of_found = torch.autograd.grad(found.sum(), list(arguments.values()))
            of_expected = torch.autograd.grad(expected.sum(), list(arguments.values()))
            torch.testing.assert_close(of_found, of_expected)


def test_compiles_with_inductor():
    torch.compiler.reset()
    pattern = random_pattern(30, 30)
    linear = torch.nn.Linear(8, 24)

    def function(x):
        query, key, value = linear(x).view(-1, 3, 2, 4).unbind(1)
        return attend(query, key, value, pattern, dropout=0.0).flatten(1).relu()

    x = torch.randn(30, 8, requires_grad=True)
    found = torch.compile(function, fullgraph=True)(x)
    torch.testing.assert_close(found, function(x))
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), x, retain_graph=True), torch.autograd.grad(function(x).sum(), x)
    )


def test_exports():
    class Layer(torch.nn.Module):
        def forward(self, query, key, value, rowptr, col):
            return attend(query, key, value, Neighbors(rowptr, col, key.size(0)))

    pattern = random_pattern(30, 20)
    a = [x.detach() for x in problem(pattern).values()]
    queries, keys, edges = (torch.export.Dim(name) for name in ("queries", "keys", "edges"))
    exported = torch.export.export(
        Layer(),
        (*a, pattern.rowptr, pattern.col),
        dynamic_shapes=({0: queries}, {0: keys}, {0: keys}, {0: queries + 1}, {0: edges}),
    )
    other = random_pattern(11, 20, 60, seed=3)
    b = [x.detach() for x in problem(other).values()]
    torch.testing.assert_close(exported.module()(*b, other.rowptr, other.col), attend(*b, other))


@pytest.mark.parametrize("name", [*AVAILABLE, "reference"])
def test_autocast(name):
    pattern = random_pattern(30, 30)
    linear = torch.nn.Linear(8, 12)
    x = torch.randn(30, 8)
    bias = torch.randn(pattern.num_edges, 2, requires_grad=True)
    with geoattn.backend(name), torch.autocast("cpu", torch.bfloat16):
        query, key, value = linear(x).view(30, 3, 2, 2).unbind(1)
        out = attend(query, key, value.float(), pattern, bias)  # one of another type, as a parameter would be
        direct, _ = torch.ops.geoattn.attend(
            query, key, value.float(), pattern.rowptr, pattern.col, bias, None, None, None, None, 2**-0.5, 0.2, 0.0,
            None, [], [], None, False,
        )  # fmt: skip
    assert out.dtype == direct.dtype == torch.bfloat16
    expected = attend(*(t.double() for t in (query, key, value)), pattern, bias.double())
    torch.testing.assert_close(out.double(), expected, **TOLERANCE[torch.bfloat16])
    (grad,) = torch.autograd.grad(out.float().sum(), bias)
    assert grad.dtype == torch.float32


@pytest.mark.parametrize("name", [n for n in FAST if n == "cpu"])
def test_a_key_out_of_range_raises_and_reads_nothing(name):
    pattern = random_pattern(10, 10, 40)
    arguments = problem(pattern)
    for bad in (-1, 10, 2**40):
        broken = random_pattern(10, 10, 40)
        broken.col[17] = bad  # after the checks of Neighbors
        with geoattn.backend(name), pytest.raises(IndexError, match="names a key outside"):
            attend(pattern=broken, **{n: x.detach() for n, x in arguments.items()})
    broken = random_pattern(10, 10, 40)
    broken.rowptr[3] = 2**40
    with geoattn.backend(name), pytest.raises(IndexError, match="does not rise"):
        attend(pattern=broken, **{n: x.detach() for n, x in arguments.items()})


def test_choosing_a_backend():
    states = geoattn.backends()
    assert list(states) == ["triton", "cpu", "torch", "torch_scatter", "reference"]
    assert states["torch"] == states["reference"] == "available"
    with (
        pytest.raises(ValueError, match="must be one of triton, cpu, torch, torch_scatter, reference, got 'gpu'"),
        geoattn.backend("gpu"),
    ):
        pass
    pattern = random_pattern()
    arguments = problem(pattern)
    for name, state in states.items():
        if state != "available":
            with geoattn.backend(name), pytest.raises(RuntimeError, match=f"'{name}' was asked for, but"):
                attend(pattern=pattern, **arguments)
    with geoattn.backend("reference"):
        with geoattn.backend("torch"):
            assert "GeneratedBackwardFor_geoattn_attend" in type(attend(pattern=pattern, **arguments).grad_fn).__name__
        assert "geoattn" not in type(attend(pattern=pattern, **arguments).grad_fn).__name__
