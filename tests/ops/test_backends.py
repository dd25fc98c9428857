"""Every backend of `attend` against the reference: scores, types, edge cases, derivatives."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import geoattn
from geoattn import Neighbors, attend, native
from geoattn.ops.backends import philox
from geoattn.patterns import visits
from tests.ops.problems import FAST, SCORES, TOLERANCE, assert_same, exact, problem, random_pattern, run


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("name", FAST)
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
    for name in FAST:
        assert_same(run(name, pattern, arguments), expected, dtype)


@pytest.mark.parametrize("name", FAST)
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
@pytest.mark.parametrize("name", [*FAST, "reference"])
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
@pytest.mark.parametrize("name", FAST)
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


@pytest.mark.parametrize("name", FAST)
def test_nan_stays_in_its_rows(name):
    pattern = Neighbors.from_edge_index(torch.tensor([[0, 1, 2, 2], [0, 0, 1, 1]]), 2, 3)
    arguments = {n: x.detach() for n, x in problem(pattern).items()}
    arguments["key"][2] = math.nan
    with geoattn.backend(name):
        out = attend(pattern=pattern, **arguments)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


@pytest.mark.parametrize("name", FAST)
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


@pytest.mark.parametrize("name", FAST)
def test_no_edges_and_no_nodes(name):
    for queries, keys in ((3, 2), (0, 2), (3, 0), (0, 0)):
        pattern = Neighbors(torch.zeros(queries + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), keys)
        for score in SCORES:
            found = run(name, pattern, problem(pattern, score))
            assert found["out"].shape == (queries, 4, 3)
            assert (found["out"] == 0).all()
            assert (found["query"] == 0).all()


@pytest.mark.parametrize("name", FAST)
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


@pytest.mark.skipif("cpu" not in FAST, reason="needs the compiled kernels")
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


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_every_instruction_set(capability):
    """The kernels of each instruction set this machine has, in processes of their own."""
    if native.library() is None:
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
    if native.library() is None:
        pytest.skip("the CPU kernels were not built")
    assert (torch.tensor([1e-40]) * 1).item() != 0


@pytest.mark.parametrize("name", [n for n in FAST if n == "cpu"])
def test_a_key_out_of_range_raises_and_reads_nothing(name):
    pattern = random_pattern(10, 10, 40)
    arguments = problem(pattern)
    for bad in (-1, 10, 2**40):
        broken = random_pattern(10, 10, 40)
        broken.col[17] = bad  # after the checks of Neighbors
        with geoattn.backend(name), pytest.raises(IndexError, match="does not exist"):
            attend(pattern=broken, **{n: x.detach() for n, x in arguments.items()})
    broken = random_pattern(10, 10, 40)
    broken.rowptr[3] = 2**40
    with geoattn.backend(name), pytest.raises(IndexError, match="does not rise"):
        attend(pattern=broken, **{n: x.detach() for n, x in arguments.items()})


def test_choosing_a_backend():
    states = geoattn.backends()
    assert list(states) == ["triton", "cpu", "torch", "reference"]
    assert states["torch"] == states["reference"] == "available"
    with (
        pytest.raises(ValueError, match="must be one of triton, cpu, torch, reference, got 'gpu'"),
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
            assert "_AttendBackward" in type(attend(pattern=pattern, **arguments).grad_fn).__name__
        assert "_AttendBackward" not in type(attend(pattern=pattern, **arguments).grad_fn).__name__
