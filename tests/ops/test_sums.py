"""Sums of many float32 numbers, and derivatives of any kind through them."""

import pytest
import torch
from torch.autograd import forward_ad

from geoattn import ops
from geoattn.ops.backends import sums
from geoattn.ops.backends.sums import gather_rows, sum_rows

# Of sums in float64 of what float32 numbers give, rounded once; exponentials themselves are right to about 1e-7.
TOLERANCE = {"rtol": 5e-7, "atol": 0.0}


def long_segments(count=1 << 20):
    """One segment of all but every eighth number, in no order; float32."""
    make = torch.Generator().manual_seed(0)
    src = torch.rand(count, generator=make) + 1
    return src, (torch.arange(count) % 8 == 3).long()


def test_a_sum_does_not_stop_growing():
    count = (1 << 24) + 4096
    ones, index = torch.ones(1).expand(count), torch.zeros(1, dtype=torch.int64).expand(count)
    assert ops.segment_sum(ones, index).item() == count


@pytest.mark.parametrize("name", ["sum", "mean", "softmax", "logsumexp"])
def test_long_segments_are_as_right_as_in_float64(name):
    src, index = long_segments()
    upstream = torch.rand(src.numel() if name == "softmax" else 2, generator=torch.Generator().manual_seed(1))
    function = getattr(ops, f"segment_{name}")

    def with_gradient(x):
        x = x.requires_grad_()
        out = function(x, index)
        return out, *torch.autograd.grad(out, x, upstream.to(out.dtype))

    for found, expected in zip(with_gradient(src), with_gradient(src.double()), strict=True):
        # The gradient of a softmax is a small difference of numbers near the largest weight.
        atol = 2e-7 * expected.abs().max().item() if name == "softmax" else 0.0
        torch.testing.assert_close(found.double(), expected, rtol=5e-7, atol=atol)


def test_the_gradient_of_gathering_is_such_a_sum():
    _, index = long_segments()
    x = torch.ones(2, requires_grad=True)
    upstream = torch.rand(index.numel(), generator=torch.Generator().manual_seed(1))
    (grad,) = torch.autograd.grad(gather_rows(x, index), x, upstream)
    expected = torch.zeros(2, dtype=torch.float64).index_add(0, index, upstream.double())
    torch.testing.assert_close(grad.double(), expected, **TOLERANCE)


def plain_sum(src, row, rows):
    return src.new_zeros(rows, *src.shape[1:]).index_add(0, row, src)


@pytest.mark.parametrize("function", ["sum", "gather"])
def test_every_kind_of_derivative(function, monkeypatch):
    monkeypatch.setattr(sums, "SHORT", 2)
    make = torch.Generator().manual_seed(0)
    row = torch.randint(4, (12,), generator=make)
    x = torch.randn(12 if function == "sum" else 4, 3, generator=make)
    batch = torch.randn(5, *x.shape, generator=make)

    def outputs(x):
        return sum_rows(x.sin(), row, 4) if function == "sum" else gather_rows(x.sin(), row)

    def plain(x):
        return plain_sum(x.sin(), row, 4) if function == "sum" else x.sin()[row]

    def results(outputs):
        def norm(x):
            return outputs(x).square().sum()

        yield torch.func.grad(norm)(x)
        yield torch.func.hessian(norm)(x)
        yield torch.func.jacfwd(torch.func.jacfwd(norm))(x)
        yield torch.func.jacrev(outputs)(x)
        yield torch.func.jvp(norm, (x,), (x,))[1]
        yield torch.vmap(outputs)(batch)
        yield torch.vmap(torch.func.grad(norm))(batch)
        leaf = x.clone().requires_grad_()
        out = outputs(leaf)
        upstream = torch.ones(2, *out.shape)
        yield torch.autograd.grad(out, leaf, upstream, is_grads_batched=True, retain_graph=True)[0]
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(outputs(forward_ad.make_dual(x, x))).tangent
        yield tangent
        yield torch.compile(outputs, backend="aot_eager", fullgraph=True)(x)

    for found, expected in zip(results(outputs), results(plain), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "logsumexp", "softmax"])
@pytest.mark.parametrize("short", [2, 1024])
def test_segment_reductions_under_transforms(name, short, monkeypatch):
    monkeypatch.setattr(sums, "SHORT", short)
    index = torch.tensor([0, 2, 1, 1, 2, 0, 2])
    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def outputs(x):
        return getattr(ops, f"segment_{name}")(x, index, num_segments=3)

    arguments = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(outputs, arguments, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(outputs, arguments)
    torch.testing.assert_close(torch.func.jacfwd(outputs)(x.float()), torch.func.jacrev(outputs)(x.float()))
