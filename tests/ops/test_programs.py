"""The operator of `attend` where torch rewrites programs: compiled, exported, under autocast."""

import pytest
import torch

import geoattn
from geoattn import Neighbors, attend
from geoattn.ops import edge_dot, weighted_sum
from tests.ops.problems import FAST, TOLERANCE, problem, random_pattern


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
        [], [columns.rowptr, columns.col, columns.edge_order, None], name,
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


@pytest.mark.parametrize("name", [*FAST, "reference"])
def test_autocast(name):
    pattern = random_pattern(30, 30)
    linear = torch.nn.Linear(8, 12)
    x = torch.randn(30, 8)
    bias = torch.randn(pattern.num_edges, 2, requires_grad=True)
    with geoattn.backend(name), torch.autocast("cpu", torch.bfloat16):
        query, key, value = linear(x).view(30, 3, 2, 2).unbind(1)
        out = attend(query, key, value.float(), pattern, bias)  # one of another type, as a parameter would be
    assert out.dtype == torch.bfloat16
    expected = attend(*(t.double() for t in (query, key, value)), pattern, bias.double())
    torch.testing.assert_close(out.double(), expected, **TOLERANCE[torch.bfloat16])
    (grad,) = torch.autograd.grad(out.float().sum(), bias)
    assert grad.dtype == torch.float32


@pytest.mark.parametrize("name", [*FAST, "reference"])
def test_traces_of_torchscript_hold_for_other_inputs(name):
    pattern = random_pattern(30, 30)
    given, other = torch.randn(2, 3, 30, 2, 4, generator=torch.Generator().manual_seed(0))

    def function(query, key, value):
        dots = edge_dot(query, key, pattern)
        return attend(query, key, value, pattern, dots) + weighted_sum(dots, value, pattern)

    with geoattn.backend(name):
        traced = torch.jit.trace(function, tuple(given))
        torch.testing.assert_close(traced(*other), function(*other))
        leaves = [x.clone().requires_grad_() for x in other]
        found = torch.autograd.grad(traced(*leaves).sum(), leaves)
        torch.testing.assert_close(found, torch.autograd.grad(function(*leaves).sum(), leaves))
