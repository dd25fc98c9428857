"""Segment reductions against a loop over the segments, and the properties they promise."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geoattn import ops

REDUCTIONS = {
    "sum": ops.segment_sum,
    "mean": ops.segment_mean,
    "max": ops.segment_max,
    "min": ops.segment_min,
    "logsumexp": ops.segment_logsumexp,
}
ALL = {**REDUCTIONS, "softmax": ops.segment_softmax}
EMPTY = {"sum": 0.0, "mean": 0.0, "max": 0.0, "min": 0.0, "logsumexp": -torch.inf}
ON_ONE = {
    "sum": lambda x: x.sum(0),
    "mean": lambda x: x.mean(0),
    "max": lambda x: x.amax(0),
    "min": lambda x: x.amin(0),
    "logsumexp": lambda x: x.logsumexp(0),
    "softmax": lambda x: x.softmax(0),
}

index_types = st.sampled_from([torch.int32, torch.int64])


@st.composite
def segments(draw, trailing=((), (3,), (2, 3), (0,), (1,))):
    """``src, index, N``: any order, empty segments, no edges, no segments, any trailing dimensions."""
    n = draw(st.integers(0, 6))
    index = draw(st.lists(st.integers(0, n - 1), max_size=15)) if n else []
    shape = draw(st.sampled_from(trailing))
    make = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    src = torch.randn(len(index), *shape, generator=make, dtype=torch.float64)
    return src, torch.tensor(index, dtype=draw(index_types)), n


def by_hand(name, src, index, n):
    """One segment at a time."""
    if name == "softmax":
        out = torch.empty_like(src)
        for i in range(n):
            out[index == i] = ON_ONE[name](src[index == i])
        return out
    out = src.new_full((n, *src.shape[1:]), EMPTY[name])
    for i in range(n):
        if (index == i).any():
            out[i] = ON_ONE[name](src[index == i])
    return out


def sorted_with_ptr(index, n):
    order = index.argsort(stable=True)
    ptr = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(index, minlength=n).cumsum(0)])
    return order, ptr.to(index.dtype)


@pytest.mark.parametrize("name", ALL)
@given(problem=segments())
def test_equals_a_loop_over_segments(name, problem):
    src, index, n = problem
    out = ALL[name](src, index, num_segments=n)
    torch.testing.assert_close(out, by_hand(name, src, index, n), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
@given(problem=segments())
def test_ptr_equals_sorted_index_to_the_bit(name, problem):
    src, index, n = problem
    order, ptr = sorted_with_ptr(index, n)
    src = src[order].requires_grad_()
    by_index, by_ptr = ALL[name](src, index[order], num_segments=n), ALL[name](src, ptr=ptr)
    assert torch.equal(by_index, by_ptr)
    weight = torch.randn_like(by_index)
    gradients = [torch.autograd.grad(out, src, weight)[0] for out in (by_index, by_ptr)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("name", ALL)
@given(problem=segments(), random=st.randoms(use_true_random=False))
def test_the_order_of_edges_does_not_matter(name, problem, random):
    src, index, n = problem
    src = src.round()  # with ties, so that it is also tested how these share a gradient
    src.requires_grad_()
    order = torch.tensor(random.sample(range(len(index)), len(index)), dtype=torch.int64)
    out = ALL[name](src, index, num_segments=n)
    permuted = ALL[name](src[order], index[order], num_segments=n)
    torch.testing.assert_close(permuted, out[order] if name == "softmax" else out, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(out)
    (gradient,) = torch.autograd.grad(out, src, weight)
    (expected,) = torch.autograd.grad(permuted, src, weight[order] if name == "softmax" else weight)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
@given(first=segments([(4,)]), second=segments([(4,)]))
def test_a_batch_gives_what_its_parts_give(name, first, second):
    (a, index_a, n_a), (b, index_b, n_b) = first, second
    together = ALL[name](torch.cat([a, b]), torch.cat([index_a, index_b + n_a]), num_segments=n_a + n_b)
    apart = torch.cat([ALL[name](a, index_a, num_segments=n_a), ALL[name](b, index_b, num_segments=n_b)])
    assert torch.equal(together, apart)


@given(segments(), st.floats(-50, 50))
def test_shifting(problem, shift):
    src, index, n = problem
    softmax, moved = (ops.segment_softmax(x, index, num_segments=n) for x in (src, src + shift))
    torch.testing.assert_close(moved, softmax, rtol=1e-10, atol=1e-12)
    for name in ("max", "min", "mean", "logsumexp"):
        expected = REDUCTIONS[name](src, index, num_segments=n) + shift
        empty = torch.bincount(index, minlength=n) == 0
        expected[empty] = EMPTY[name]
        out = REDUCTIONS[name](src + shift, index, num_segments=n)
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["sum", "mean", "max", "min"])
@given(problem=segments(), factor=st.floats(0, 50))
def test_scaling(name, problem, factor):
    src, index, n = problem
    scaled = REDUCTIONS[name](factor * src, index, num_segments=n)
    torch.testing.assert_close(scaled, factor * REDUCTIONS[name](src, index, num_segments=n), rtol=1e-12, atol=1e-12)


@given(segments())
def test_softmax_sums_to_one(problem):
    src, index, n = problem
    total = ops.segment_sum(ops.segment_softmax(src, index, num_segments=n), index, num_segments=n)
    occupied = torch.bincount(index, minlength=n).clamp(max=1).to(src.dtype)
    expected = occupied.view(-1, *[1] * (src.dim() - 1)).expand_as(total)
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)


INDEX = torch.tensor([3, 0, 3, 3, 0, 1])  # segments 2 and 4 are empty
SRC = torch.tensor([0.3, -1.2, 2.1, 0.9, 1.7, -0.4], dtype=torch.float64).unsqueeze(1) * torch.tensor([1.0, -0.7])


@pytest.mark.parametrize("form", ["index", "ptr"])
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_derivatives(name, check, form):
    order, ptr = sorted_with_ptr(INDEX, 5)

    def run(src):
        out = ALL[name](src, INDEX, num_segments=5) if form == "index" else ALL[name](src[order], ptr=ptr)
        out = out.where(out.isfinite(), 0)
        return out * out  # curved, so that the second derivatives of linear reductions are not all 0

    assert check(run, SRC.clone().requires_grad_())


def test_third_derivative_of_logsumexp():
    x = torch.tensor([0.2, -0.5, 1.0], dtype=torch.float64, requires_grad=True)

    def thrice(function):
        value = function(x)
        for _ in range(3):
            (gradient,) = torch.autograd.grad(value, x, create_graph=True)
            value = (gradient * torch.tensor([1.0, 2.0, -1.0])).sum()
        return gradient

    mine = thrice(lambda x: ops.segment_logsumexp(x, torch.zeros(3, dtype=torch.int64), num_segments=1).sum())
    torch.testing.assert_close(mine, thrice(lambda x: x.logsumexp(0)))


@pytest.mark.parametrize("value", [0.0, -2.0, 3.0])
@pytest.mark.parametrize("name", ["max", "min"])
def test_equal_extremes_share_the_gradient(name, value):
    src = torch.tensor([value, value, 5.0, value, -5.0], requires_grad=True)
    index = torch.tensor([0, 0, 1, 0, 1])
    out = REDUCTIONS[name](src, index, num_segments=3)
    (gradient,) = torch.autograd.grad(out, src, torch.tensor([3.0, 1.0, 1.0]))
    assert gradient.tolist() == [1, 1, name == "max", 1, name == "min"]


def test_empty_segments():
    src = torch.ones(2, 3, requires_grad=True)
    for name, reduce in REDUCTIONS.items():
        out = reduce(src, torch.tensor([1, 1]), num_segments=3)
        assert (out[[0, 2]] == EMPTY[name]).all()
        (gradient,) = torch.autograd.grad(out.sum(), src)
        assert gradient.isfinite().all()


def test_only_hidden_values():
    src = torch.tensor([-torch.inf, -torch.inf, 0.0, -torch.inf], requires_grad=True)
    index = torch.tensor([0, 0, 1, 1])
    softmax = ops.segment_softmax(src, index, num_segments=2)
    lse = ops.segment_logsumexp(src, index, num_segments=2)
    assert softmax.tolist() == [0, 0, 1, 0]
    assert lse.tolist() == [-torch.inf, 0]
    assert torch.autograd.grad(softmax.square().sum(), src)[0].tolist() == [0, 0, 0, 0]
    (gradient,) = torch.autograd.grad(lse.sum(), src, create_graph=True)
    assert gradient.tolist() == [0, 0, 1, 0]
    assert torch.autograd.grad(gradient.square().sum(), src)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_large_logits(dtype):
    src = torch.tensor([1e4, -1e4, 1e4, -1e4, -1e4], dtype=dtype)
    index = torch.tensor([0, 0, 0, 1, 1])
    assert ops.segment_softmax(src, index).tolist() == [0.5, 0, 0.5, 0.5, 0.5]
    expected = torch.tensor([1e4, -1e4]).double() + torch.tensor(2.0).double().log()
    torch.testing.assert_close(ops.segment_logsumexp(src, index), expected.to(dtype))


@pytest.mark.parametrize("name", ALL)
def test_nan_is_passed_on_within_its_segment(name):
    src = torch.tensor([1.0, torch.nan, 2.0])
    out = ALL[name](src, torch.tensor([0, 0, 1]))
    assert out.isnan().tolist() == ([True, True, False] if name == "softmax" else [True, False])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_accumulate_in_float32(dtype):
    count = 4096
    ones = torch.ones(count, dtype=dtype)
    index = torch.zeros(count, dtype=torch.int64)
    for name, expected in {"sum": count, "mean": 1.0, "max": 1.0, "softmax": 1 / count}.items():
        out = ALL[name](ones, index)
        assert out.dtype == dtype
        assert (out == expected).all()  # a sum of 4,096 ones in half precision would stop at 256 or 2,048
    ones.requires_grad_()
    (gradient,) = torch.autograd.grad(ops.segment_max(ones, index).sum(), ones)
    assert (gradient == 1 / count).all()


def test_integers():
    src, index = torch.tensor([2, 5, -1]), torch.tensor([0, 0, 2])
    assert ops.segment_sum(src, index).tolist() == [7, 0, -1]
    assert ops.segment_max(src, index).tolist() == [5, 0, -1]
    assert ops.segment_min(src, index).tolist() == [2, 0, -1]


@pytest.mark.parametrize("name", ALL)
def test_strides_do_not_matter(name):
    src = torch.randn(3, 4, 10).transpose(0, 2)
    index = torch.arange(20).remainder(3)[::2]
    assert torch.equal(ALL[name](src, index), ALL[name](src.contiguous(), index.contiguous()))


@pytest.mark.parametrize("channels", [(), (5,), (3, 7)])
@pytest.mark.parametrize("name", ALL)
def test_the_same_bits_on_any_number_of_threads(name, channels):
    make = torch.Generator().manual_seed(0)
    edges = 100_003 if not channels else 30_011
    src = torch.randn(edges, *channels, generator=make).requires_grad_()
    index = torch.randint(1000, (edges,), generator=make)

    def run():
        out = ALL[name](src, index, num_segments=1000)
        (gradient,) = torch.autograd.grad(out.square().sum(), src, create_graph=True)
        return out, gradient, *torch.autograd.grad(gradient.square().sum(), src)

    try:
        one = run()
        torch.set_num_threads(2)
        two, again = run(), run()
    finally:
        torch.set_num_threads(1)
    for a, b, c in zip(one, two, again, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_forward_mode_and_functional_transforms():
    def energy(src):
        return ops.segment_logsumexp(src, INDEX, num_segments=5)[[0, 1, 3]].square().sum()

    hessian = torch.func.hessian(energy)(SRC)
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(energy, SRC))
    stacked = torch.stack([SRC, 2 * SRC])
    for function in ALL.values():
        mapped = torch.func.vmap(lambda x, f=function: f(x, INDEX, num_segments=5))(stacked)
        expected = torch.stack([function(x, INDEX, num_segments=5) for x in stacked])
        torch.testing.assert_close(mapped, expected)


class Everything(torch.nn.Module):
    """All reductions by index, and all by ptr."""

    def forward(self, src, index, ptr):
        n = ptr.numel() - 1
        by_index = [function(src, index, num_segments=n) for function in ALL.values()]
        return by_index, [function(src, ptr=ptr) for function in ALL.values()]


def problem_of_size(edges, n):
    src = torch.randn(edges, 3, requires_grad=True)
    index = torch.randint(n, (edges,)).sort().values
    return src, index, sorted_with_ptr(index, n)[1]


def test_compiles_in_one_graph_of_any_size():
    torch._dynamo.reset()
    graphs = []

    def count(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    count_graphs = torch.compile(Everything(), fullgraph=True, dynamic=True, backend=count)
    compiled = torch.compile(Everything(), fullgraph=True, dynamic=True, backend="aot_eager")
    for edges, n in ((20, 4), (33, 9), (57, 3)):
        src, index, ptr = problem_of_size(edges, n)
        expected = Everything()(src, index, ptr)
        out = compiled(src, index, ptr)
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(count_graphs(src, index, ptr), expected)
        gradients = []
        for by_index, by_ptr in (out, expected):
            total = sum(x.where(x.isfinite(), 0).square().sum() for x in by_index + by_ptr)
            gradients.append(torch.autograd.grad(total, src))
        torch.testing.assert_close(*gradients)
    assert len(graphs) == 1


def test_exports():
    edges, nodes = torch.export.Dim("edges", min=2), torch.export.Dim("nodes", min=3)
    shapes = {"src": {0: edges}, "index": {0: edges}, "ptr": {0: nodes}}
    program = torch.export.export(Everything(), problem_of_size(20, 4), dynamic_shapes=shapes)
    inputs = problem_of_size(33, 9)
    torch.testing.assert_close(program.module()(*inputs), Everything()(*inputs))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"index": torch.tensor([0, 3, 1]), "num_segments": 3}, r"index must be in \[0, 3\), got 3"),
        ({"index": torch.tensor([0, -2, 1])}, r"index must be in \[0, 2\), got -2"),
        ({"index": torch.tensor([0, 1])}, r"expected index \[3\]"),
        ({"index": torch.tensor([0.0, 1.0, 1.0])}, "index must be int32 or int64"),
        ({"ptr": torch.tensor([0, 2])}, "ptr must go from 0 to 3, got 0 to 2"),
        ({"ptr": torch.tensor([0, 2, 1, 3])}, "ptr must not fall, got a step of -1"),
        ({"ptr": torch.empty(0, dtype=torch.int64)}, r"expected ptr \[N \+ 1\]"),
        ({"ptr": torch.tensor([0, 3]), "num_segments": 1}, "num_segments goes with index"),
        ({}, "got neither"),
        ({"index": torch.tensor([0, 1, 1]), "ptr": torch.tensor([0, 3])}, "got both"),
        ({"index": torch.zeros(3, dtype=torch.int64, device="meta"), "num_segments": 1}, "one device"),
    ],
)
def test_bad_input_is_named(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        ALL[name](torch.zeros(3), **arguments)


@pytest.mark.parametrize("name", ["mean", "logsumexp", "softmax"])
def test_integers_have_no_mean(name):
    with pytest.raises(ValueError, match="floating type"):
        ALL[name](torch.arange(3), torch.zeros(3, dtype=torch.int64))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", ALL)
def test_cuda_equals_cpu_and_repeats_to_the_bit(name):
    src = torch.randn(50_000, 4, dtype=torch.float64)
    index = torch.randint(100, (50_000,))

    def run(device):
        x = src.to(device).requires_grad_()
        out = ALL[name](x, index.to(device), num_segments=100)
        (gradient,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        return out, gradient, *torch.autograd.grad(gradient.square().sum(), x)

    here, first, second = run("cpu"), run("cuda"), run("cuda")
    for a, b, c in zip(here, first, second, strict=True):
        torch.testing.assert_close(a, b.cpu())
        assert torch.equal(b, c)
