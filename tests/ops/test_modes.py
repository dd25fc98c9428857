"""Operators where torch differentiates or rewrites them in other ways than a first-order backward pass."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import geoattn
from geoattn import Neighbors, attend
from geoattn.ops import edge_dot, weighted_max, weighted_sum
from tests.ops.problems import FAST, problem, random_pattern

BACKENDS = [*FAST, "reference"]
OPERATORS = ["attend", "gatv2", "lse", "edge_dot", "weighted_sum", "weighted_max"]


def call(operator, seed=0):
    """A function of float64 tensors, and those."""
    pattern = random_pattern(5, 4, 12, seed=seed)
    make = torch.Generator().manual_seed(seed)
    arguments = problem(pattern, "gatv2_edges" if operator == "gatv2" else "everything", 2, 1, 3, 2)
    if operator == "edge_dot":
        shapes = {"query": (5, 2, 3), "key": (4, 2, 3)}
    elif operator.startswith("weighted"):
        shapes = {"weight": (pattern.num_edges, 2), "value": (4, 2, 3)}
    else:
        shapes = {}
    if shapes:
        arguments = {n: torch.randn(shape, generator=make, dtype=torch.float64) for n, shape in shapes.items()}

    def function(*tensors):
        given = dict(zip(arguments, tensors, strict=True))
        if operator == "edge_dot":
            return edge_dot(**given, pattern=pattern)
        if operator == "weighted_sum":
            return weighted_sum(**given, pattern=pattern)
        if operator == "weighted_max":
            return weighted_max(**given, pattern=pattern)
        out, lse = attend(pattern=pattern, return_lse=True, **given)
        return lse.where(lse.isfinite(), 0) if operator == "lse" else out

    return function, [x.detach() for x in arguments.values()]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_forward_mode_and_batched_gradients(operator, name):
    function, tensors = call(operator)
    tensors = [x.requires_grad_() for x in tensors]
    with geoattn.backend(name):
        assert torch.autograd.gradcheck(function, tensors, check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(function, tensors, check_batched_grad=True)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_function_transforms_equal_autograd(operator, name):
    function, tensors = call(operator)
    every = tuple(range(len(tensors)))
    with geoattn.backend("reference"):
        leaves = [x.clone().requires_grad_() for x in tensors]
        out = function(*leaves)
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=out.dtype)
        expected = torch.autograd.grad(out, leaves, upstream, allow_unused=True)
        expected = [x if g is None else g for g, x in zip(expected, [torch.zeros_like(x) for x in leaves], strict=True)]
    with geoattn.backend(name):
        torch.testing.assert_close(vjp(function, *tensors)[1](upstream), tuple(expected))
        torch.testing.assert_close(grad(lambda *t: (function(*t) * upstream).sum(), every)(*tensors), tuple(expected))
        for jacobian in (jacrev, jacfwd):
            for found, direct in zip(jacobian(function, every)(*tensors), expected, strict=True):
                torch.testing.assert_close(torch.tensordot(upstream, found, upstream.dim()), direct)
        _, tangent = jvp(function, tuple(tensors), tuple(tensors))
        product = sum((g * x).sum() for g, x in zip(expected, tensors, strict=True))
        torch.testing.assert_close((tangent * upstream).sum(), product)
        torch.autograd.functional.hessian(lambda x: function(x, *tensors[1:]).sum(), tensors[0], vectorize=True)
        found = hessian(lambda x: function(x, *tensors[1:]).square().sum())(tensors[0])
        direct = torch.autograd.functional.hessian(lambda x: function(x, *tensors[1:]).square().sum(), tensors[0])
        torch.testing.assert_close(found, direct)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_vmap_is_a_loop(operator, name):
    function, tensors = call(operator)
    batch = [torch.stack([x, 2 * x, x.flip(0)]) for x in tensors]
    with geoattn.backend(name):
        expected = torch.stack([function(*each) for each in zip(*batch, strict=True)])
        torch.testing.assert_close(vmap(function)(*batch), expected)
        one = torch.stack([function(x, *tensors[1:]) for x in batch[0]])
        torch.testing.assert_close(vmap(lambda x: function(x, *tensors[1:]))(batch[0]), one)


def test_per_sample_gradients_of_a_network():
    pattern = random_pattern(6, 6, 20)
    linear = torch.nn.Linear(4, 12, dtype=torch.float64)
    x = torch.randn(3, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(parameters, sample):
        q, k, v = functional_call(linear, parameters, sample).view(6, 3, 2, 2).unbind(1)
        return attend(q, k, v, pattern).square().sum()

    found = vmap(grad(loss), (None, 0))(dict(linear.named_parameters()), x)
    for i, sample in enumerate(x):
        direct = torch.autograd.grad(loss(dict(linear.named_parameters()), sample), list(linear.parameters()))
        torch.testing.assert_close([g[i] for g in found.values()], list(direct))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("wanted", ["value", "edge_value", "query", "bias", "key_weight"])
def test_second_derivatives_of_one_argument(name, wanted):
    pattern = random_pattern(4, 4, 9)
    arguments = {n: x.detach() for n, x in problem(pattern, "everything", 2, 1, 2, 2).items()}
    with geoattn.backend(name):
        function = lambda x: attend(pattern=pattern, **{**arguments, wanted: x})  # noqa: E731
        assert torch.autograd.gradgradcheck(function, arguments[wanted].requires_grad_())


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", BACKENDS)
def test_gradients_of_halves_are_summed_in_float32(name, dtype, create_graph):
    """One key seen by 2,000 queries: its gradient is a sum of as many ones, which halves stop counting at 256."""
    count = 2000
    pattern = Neighbors(torch.arange(count + 1).int(), torch.zeros(count, dtype=torch.int32), 1)
    make = {"dtype": dtype, "requires_grad": True}
    query, key, value = torch.zeros(count, 2, 16, **make), torch.zeros(1, 1, 16, **make), torch.zeros(1, 1, 16, **make)
    weight = torch.ones(count, 1, **make)
    with geoattn.backend(name):
        (found,) = torch.autograd.grad(attend(query, key, value, pattern).sum(), value, create_graph=create_graph)
        (of_sum,) = torch.autograd.grad(weighted_sum(weight, value, pattern).sum(), value, create_graph=create_graph)
        dots = edge_dot(torch.ones_like(query[:, :1]), key, pattern)
        (of_dot,) = torch.autograd.grad(dots.sum(), key, create_graph=create_graph)
    for x, expected in ((found, 2 * count), (of_sum, count), (of_dot, count)):
        assert x.dtype == dtype
        torch.testing.assert_close(x.float(), torch.full_like(x, expected).float(), rtol=2**-8, atol=0)


@pytest.mark.parametrize("operator", OPERATORS)
def test_fake_tensors_have_shapes_and_leave_the_pattern_as_it_was(operator):
    function, tensors = call(operator)
    expected = function(*tensors)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        fake = [torch.empty(x.shape, dtype=x.dtype, requires_grad=True) for x in tensors]
        out = function(*fake)
        out.sum().backward()
    assert out.shape == expected.shape
    assert [x.grad.shape for x in fake if x.grad is not None] == [x.shape for x in fake if x.grad is not None]
    assert type(fake[0]) is not torch.Tensor
    assert function(*fake).shape == expected.shape  # outside the mode, too
    leaves = [x.requires_grad_() for x in tensors]
    found = torch.autograd.grad(function(*leaves).sum(), leaves, allow_unused=True)
    assert all(g is None or type(g) is torch.Tensor for g in found)


@pytest.mark.parametrize("wrong", [torch.nan, -1.0])
def test_weights_of_keys_that_are_none_are_refused_or_seen(wrong):
    pattern = Neighbors(torch.tensor([0, 2, 3]), torch.tensor([0, 1, 2]), 3)
    query, key, value = torch.randn(2, 1, 4), torch.randn(3, 1, 4), torch.randn(3, 1, 4)
    weight = torch.tensor([1.0, wrong, 1.0])
    with pytest.raises(ValueError, match="key_weight must not be negative or NaN"):
        attend(query, key, value, pattern, key_weight=weight)
    # Where values cannot be looked at, they go on.
    out = vmap(lambda w: attend(query, key, value, pattern, key_weight=w))(weight.unsqueeze(0))[0]
    assert out[0].isnan().all()
    torch.testing.assert_close(out[1, 0], value[2, 0])
