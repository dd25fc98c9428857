"""Several linear layers at once, against each by itself."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch_geometric.nn.dense import Linear

from geoattn.nn.graph import _linears
from geoattn.nn.graph._linears import linears, projected, scores


@pytest.fixture(params=[1, 6])  # in the second, inputs are narrow
def layers(request):
    torch.manual_seed(0)
    out = [request.param * width for width in (4, 3, 2)]
    return [nn.Linear(5, out[0]).double(), Linear(5, out[1], bias=False).double(), nn.Linear(5, out[2]).double()]


def test_outputs_and_gradients(layers):
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    for used in ([0, 1, 2], [1], [0, 2]):  # of the others nothing is used
        parameters = [p for i in used for p in layers[i].parameters()]
        found, expected = linears(x, *layers), [layer(x) for layer in layers]
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)
        grads = [
            torch.autograd.grad(sum(out[i].square().sum() for i in used), [x, *parameters]) for out in (found, expected)
        ]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b)
            assert a.stride() == b.stride()


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_rows_are_worked_on_in_blocks(layers, rows, monkeypatch):
    """The same outputs and gradients, whether all are needed and used or not."""
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    layers[0].weight.requires_grad_(False)
    layers[2].bias.requires_grad_(False)
    needed = [p for p in (x, *layers[0].parameters(), *layers[2].parameters()) if p.requires_grad]

    def run():
        outs = linears(x, *layers)
        loss = outs[0].square().sum() + outs[2].sum()  # the latter's gradient is one number, expanded
        return [*outs, *torch.autograd.grad(loss, needed)]

    expected = run()
    monkeypatch.setattr(_linears, "_ROWS", rows)
    for found, wanted in zip(run(), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    assert [y.shape for y in linears(x[:0], *layers)] == [y[:0].shape for y in expected[:3]]


@pytest.mark.parametrize("rows", [2, 4096])
def test_derivatives(layers, rows, monkeypatch):
    monkeypatch.setattr(_linears, "_ROWS", rows)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    parameters = [p for layer in layers for p in layer.parameters()]

    def run(x, *_):
        return tuple(y.tanh() for y in linears(x, *layers))

    assert gradcheck(run, (x, *parameters))
    assert gradgradcheck(run, (x, *parameters))


def test_one_gradient_of_the_input_is_made(layers):
    made = []
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    x.register_hook(lambda grad: made.append(grad))
    sum(y.sum() for y in linears(x, *layers)).backward()
    assert len(made) == 1
    assert torch.equal(x.grad, made[0])


def test_layers_that_are_more_than_products_are_called(layers):
    called = []
    layers[0].register_forward_hook(lambda *_: called.append(0))
    x = torch.randn(7, 5, dtype=torch.float64)
    linears(x, *layers)
    assert called == [0]
    layers[1] = nn.Sequential(layers[1], nn.Tanh())
    assert torch.equal(linears(x, *layers)[1], layers[1](x))
    with torch.autocast("cpu", torch.bfloat16):
        assert all(y.dtype == torch.bfloat16 for y in linears(x.float(), *[layer.float() for layer in layers]))


def test_sparse_inputs(layers):
    dense = torch.eye(7, 5, dtype=torch.float64)
    parameters = [p for layer in layers for p in layer.parameters()]
    grads = []
    for x in (dense, dense.to_sparse_csr()):
        outs = linears(x, *layers)
        grads.append(torch.autograd.grad(sum(y.square().sum() for y in outs), parameters))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("channels", [1, 3])  # heads narrower and wider than the inputs
@pytest.mark.parametrize("plain", [True, False])
def test_scores_need_no_heads(channels, plain):
    """They are the products they stand for, with both derivatives, and whoever hooks a layer sees its heads."""
    torch.manual_seed(0)
    layer, seen = Linear(5, 2 * channels, bias=False).double(), []
    if not plain:
        layer.register_forward_hook(lambda *_: seen.append(1))
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    att = [torch.randn(1, 2, channels, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    heads = (x @ layer.weight.t()).view(7, 2, channels)
    expected = [heads, *((heads * each).sum(-1, keepdim=True) for each in att)]
    for found, wanted in zip(
        [*projected(x, layer, *att), scores(x, layer, att[1])], [*expected, expected[2]], strict=True
    ):
        torch.testing.assert_close(found, wanted)
    assert len(seen) == (0 if plain else 2)

    def run(x, weight, *att):
        return tuple(y.tanh() for y in (*projected(x, layer, *att), scores(x, layer, att[1])))

    assert gradcheck(run, (x, layer.weight, *att))
    assert gradgradcheck(run, (x, layer.weight, *att))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_of_half_types_are_as_exact_as_from_heads(dtype):
    torch.manual_seed(0)
    layer = Linear(64, 128, bias=False)
    x, att = torch.randn(500, 64), torch.randn(1, 4, 32)
    exact = scores(x.double(), layer.double(), att.double())
    layer, x, att = layer.to(dtype), x.to(dtype), att.to(dtype)
    from_heads = (layer(x).view(500, 4, 32) * att).sum(-1, keepdim=True)
    errors = [(found.double() - exact).square().mean().sqrt() for found in (scores(x, layer, att), from_heads)]
    assert errors[0] <= 1.2 * errors[1]
