"""The torch-scatter backend against the reference: values, gradients and second gradients over all features."""

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geoattn.ops.backends import reference, torch_scatter
from geoattn.ops.backends.problem import Problem

pytestmark = pytest.mark.skipif(torch_scatter.unavailable() is not None, reason=str(torch_scatter.unavailable()))

LINEAR = {"scale": 0.7, "negative_slope": 0.2, "dropout": 0.0, "seed": None}
FEATURES = {
    "plain": {},
    "bias": {"bias": 4},
    "bias shared by heads": {"bias": 1},
    "log_weight": {"log_weight": 4},
    "log_weight shared by heads": {"log_weight": 1},
    "edge_key": {"edge_key": 2},
    "edge_value": {"edge_value": 4},
    "att": {"att": True},
    "dropout": {"dropout": 0.4},
    "all": {"bias": 4, "log_weight": 1, "edge_key": 1, "edge_value": 2, "att": True, "dropout": 0.25},
}


def make(rowptr, col, keys, features, *, key_heads=2, dtype=torch.float64, seed=0):
    """A problem of 4 heads, queries and keys 3 wide and values 5 wide; optional terms with the heads given."""
    generator = torch.Generator().manual_seed(seed)
    sum_dtype = torch.promote_types(dtype, torch.float32)

    def random(*shape, dtype=dtype):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    queries, edges = len(rowptr) - 1, len(col)
    return Problem(
        query=random(queries, 4, 3),
        key=random(keys, key_heads, 3),
        value=random(keys, key_heads, 5),
        rowptr=rowptr,
        col=col,
        bias=random(edges, features["bias"], dtype=sum_dtype) if "bias" in features else None,
        log_weight=random(keys, features["log_weight"], dtype=sum_dtype) if "log_weight" in features else None,
        edge_key=random(edges, features["edge_key"], 3) if "edge_key" in features else None,
        edge_value=random(edges, features["edge_value"], 5) if "edge_value" in features else None,
        att=random(4, 3, dtype=sum_dtype) if "att" in features else None,
        **{**LINEAR, "dropout": features.get("dropout", 0.0), "seed": 2**40 + 17 if "dropout" in features else None},
    )


def small(name, **options):
    """An empty row, a key named twice, a key of nobody."""
    return make(torch.tensor([0, 2, 2, 6]), torch.tensor([0, 2, 1, 1, 2, 0]), 4, FEATURES[name], **options)


def differentiable(problem):
    tensors = problem._asdict()
    return {name: x for name, x in tensors.items() if isinstance(x, torch.Tensor) and x.is_floating_point()}


def derivatives(forward, problem):
    """Both outputs, the gradients of a curved function of them, and the gradients of their norm."""
    out, lse = forward(problem)
    inputs = list(differentiable(problem).values())
    curved = out.sin().sum() + lse.where(lse.isfinite(), 0).square().sum()
    first = torch.autograd.grad(curved, inputs, create_graph=True, materialize_grads=True)
    norm = sum(gradient.square().sum() for gradient in first)
    return out, lse, first, torch.autograd.grad(norm, inputs, materialize_grads=True)


@pytest.mark.parametrize("key_heads", [1, 4])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("name", FEATURES)
def test_equals_the_reference_to_the_second_derivative(name, index, key_heads):
    problem = small(name, key_heads=key_heads)
    problem = problem._replace(rowptr=problem.rowptr.to(index), col=problem.col.to(index))
    mine, expected = (derivatives(f, problem) for f in (torch_scatter.forward, reference.forward))
    torch.testing.assert_close(mine, expected, rtol=1e-11, atol=1e-11)
    assert any(gradient.abs().max() > 0.01 for gradient in expected[3])


@pytest.mark.parametrize("name", ["plain", "all"])
@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_derivatives_equal_differences(name, check):
    problem = small(name)
    inputs = differentiable(problem)

    def run(*tensors):
        out, lse = torch_scatter.forward(problem._replace(**dict(zip(inputs, tensors, strict=True))))
        return out, lse.where(lse.isfinite(), 0)

    assert check(run, list(inputs.values()))


@st.composite
def patterns(draw):
    """Any rows: empty ones, duplicate edges, no edges, no queries."""
    keys = draw(st.integers(1, 5))
    rows = draw(st.lists(st.lists(st.integers(0, keys - 1), max_size=5), max_size=5))
    rowptr = torch.tensor([0, *map(len, rows)]).cumsum(0)
    return rowptr, torch.tensor([j for row in rows for j in row], dtype=torch.int64), keys


@given(patterns(), st.sampled_from(list(FEATURES)), st.integers(0, 99))
def test_equals_the_reference_on_any_rows(pattern, name, seed):
    problem = make(*pattern, FEATURES[name], seed=seed)
    mine, expected = (derivatives(f, problem) for f in (torch_scatter.forward, reference.forward))
    torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types(dtype):
    problem = small("all", dtype=dtype)
    out, lse = torch_scatter.forward(problem)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    torch.testing.assert_close((out, lse), reference.forward(problem))


def test_hidden_rows_give_zeros_and_finite_derivatives():
    problem = small("bias")
    problem = problem._replace(bias=torch.full_like(problem.bias, -torch.inf).requires_grad_())
    out, lse, first, second = derivatives(torch_scatter.forward, problem)
    assert (out == 0).all()
    assert (lse == -torch.inf).all()
    assert all(gradient.isfinite().all() for gradient in (*first, *second))


def test_large_scores():
    problem = small("plain")._replace(scale=1e4)
    torch.testing.assert_close(torch_scatter.forward(problem), reference.forward(problem))


def test_says_why_it_cannot_run(monkeypatch):
    assert torch_scatter.unavailable(small("plain")) is None
    elsewhere = small("plain")._replace(query=torch.empty(3, 4, 3, device="meta"))
    assert "meta" in torch_scatter.unavailable(elsewhere)
    torch_scatter._import_failure.cache_clear()
    monkeypatch.setitem(sys.modules, "torch_scatter", None)
    assert "pip install 'geoattn[scatter]'" in torch_scatter.unavailable()
    torch_scatter._import_failure.cache_clear()


def test_stands_aside_under_compile():
    compiled = torch.compile(lambda x: x + (torch_scatter.unavailable() is not None), backend="eager", fullgraph=True)
    assert compiled(torch.zeros(1)) == 1
