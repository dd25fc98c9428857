"""Scores against the sums they stand for, and when a layer is a product with its weight and no more."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils import parametrizations
from torch_geometric.nn.dense import Linear

from geoattn.nn.graph._linears import plain, scores, scores_of_edges


@pytest.mark.parametrize("channels", [1, 3])
def test_scores_are_dot_products(channels):
    torch.manual_seed(0)
    heads = torch.randn(7, 2 * channels, dtype=torch.float64, requires_grad=True)
    att = [torch.randn(1, 2, channels, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    expected = [(heads.view(7, 2, channels) * each).sum(-1, keepdim=True) for each in att]
    for found, wanted in zip(scores(heads, *att), expected, strict=True):
        torch.testing.assert_close(found, wanted)

    def run(heads, *att):
        return tuple(y.tanh() for y in scores(heads, *att))

    assert gradcheck(run, (heads, *att))
    assert gradgradcheck(run, (heads, *att))


@pytest.mark.parametrize("called", [False, True])
def test_scores_of_edges_are_those_of_their_heads(called):
    """Made without heads, unless somebody sees the layer being called."""
    torch.manual_seed(0)
    layer, seen = Linear(5, 6, bias=False).double(), []
    if called:
        layer.register_forward_hook(lambda *_: seen.append(1))
    edge_attr = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    att = torch.randn(1, 2, 3, dtype=torch.float64, requires_grad=True)
    expected = ((edge_attr @ layer.weight.t()).view(7, 2, 3) * att).sum(-1, keepdim=True)
    torch.testing.assert_close(scores_of_edges(edge_attr, layer, att), expected)
    assert len(seen) == called

    def run(edge_attr, weight, att):
        return scores_of_edges(edge_attr, layer, att).tanh()

    assert gradcheck(run, (edge_attr, layer.weight, att))
    assert gradgradcheck(run, (edge_attr, layer.weight, att))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_of_half_types_are_as_exact_as_sums(dtype):
    torch.manual_seed(0)
    layer = Linear(64, 128, bias=False).to(dtype)
    x, att = torch.randn(500, 64).to(dtype), torch.randn(1, 4, 32).to(dtype)
    heads = layer(x)
    exact = (heads.double().view(500, 4, 32) * att.double()).sum(-1, keepdim=True)
    sums = (heads.view(500, 4, 32) * att).sum(-1, keepdim=True)
    found = scores(heads, att)[0]
    exact_of_edges = scores_of_edges(x.double(), layer.double(), att.double())
    of_edges = scores_of_edges(x, layer.to(dtype), att)
    bound = (sums - exact).square().mean().sqrt()
    assert (found - exact).square().mean().sqrt() <= 1.2 * bound
    assert (of_edges - exact_of_edges).square().mean().sqrt() <= 1.2 * (sums - exact_of_edges).square().mean().sqrt()


class Subclass(nn.Linear):
    pass


CHANGES = {
    "forward hook": lambda layer: layer.register_forward_hook(lambda *_: None),
    "forward pre-hook": lambda layer: layer.register_forward_pre_hook(lambda *_: None),
    "backward hook": lambda layer: layer.register_full_backward_hook(lambda *_: None),
    "backward pre-hook": lambda layer: layer.register_full_backward_pre_hook(lambda *_: None),
    "forward of the instance": lambda layer: setattr(layer, "forward", lambda x: x),
    "parametrization": parametrizations.weight_norm,
    "weight norm": lambda layer: torch.nn.utils.weight_norm(layer),
    "compiled": lambda layer: layer.compile(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", [Linear, nn.Linear])
def test_layers_that_are_more_than_a_product(change, kind):
    layer = kind(5, 4)
    assert plain(layer)
    CHANGES[change](layer)
    assert not plain(layer)


def test_kinds_that_are_more_than_a_product(monkeypatch):
    assert not plain(nn.Identity())
    assert not plain(Subclass(5, 4))
    assert not plain(Linear(-1, 4))  # its weight is made by a hook
    assert plain(nn.Linear(5, 4), Linear(5, 4))
    monkeypatch.setattr(Linear, "forward", lambda self, x: x)
    assert not plain(Linear(5, 4))


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_hooks_of_all_modules_see_every_call(kind):
    handle = getattr(nn.modules.module, f"register_module_{kind}")(lambda *_: None)
    assert not plain(nn.Linear(5, 4))
    handle.remove()
    assert plain(nn.Linear(5, 4))
