"""`GravNetConv` against PyG's, whose search is replaced by ours, and against its formula written out."""

import copy
import pickle

import pytest
import torch
import torch_geometric.nn as pyg
import torch_geometric.typing
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks

from geoattn import native
from geoattn.nn.graph.gravnet_conv import GravNetConv
from geoattn.ops import knn
from geoattn.ops.backends.choose import backend

BACKENDS = [
    "reference",
    "torch",
    pytest.param("cpu", marks=pytest.mark.skipif(not native.library(), reason="not built")),
]


@pytest.fixture
def pygs(monkeypatch):
    """PyG's layer as it is with pyg-lib, but that it finds its neighbors with our search."""

    def search(pos, query_pos, ptr, query_ptr, k, cosine, num_workers):
        assert not cosine
        batch, query_batch = (
            None if p is None else torch.arange(p.numel() - 1).repeat_interleave(p.diff()) for p in (ptr, query_ptr)
        )
        rowptr, col = knn(pos, k, batch, query_pos, query_batch)
        return torch.stack([torch.arange(rowptr.numel() - 1).repeat_interleave(rowptr.diff()), col])

    monkeypatch.setattr(torch.ops.pyg, "knn", search, raising=False)
    monkeypatch.setattr(torch_geometric.typing, "WITH_KNN", True)
    return pyg.GravNetConv


def layer(kind=GravNetConv, k=5, dtype=torch.float64, **arguments):
    torch.manual_seed(0)
    return kind(6, 7, space_dimensions=3, propagate_dimensions=9, k=k, **arguments).to(dtype)


def features(count, seed=1, dtype=torch.float64):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


def samples(*sizes):
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


def inputs(kind):
    """Arguments of the layers; samples of fewer elements than there are to be neighbors are among them."""
    if kind == "one sample":
        return (features(40),)
    if kind == "samples":
        return features(40), samples(20, 3, 17)
    if kind == "two tensors":
        return ((features(40), features(11, seed=2)),)
    if kind == "two tensors and samples":
        return (features(40), features(11, seed=2)), (samples(20, 3, 17), samples(4, 5, 2))
    return (features(40), features(40, seed=2)), samples(20, 3, 17)  # "samples of both"


KINDS = ["one sample", "samples", "two tensors", "two tensors and samples", "samples of both"]


def by_hand(conv, x, batch=None):
    """Row by row, with the nearest found by sorting all distances; in float64, but rounded where the layer rounds."""
    source, target = x if isinstance(x, tuple) else (x, x)
    of_source, of_target = batch if isinstance(batch, tuple) else (batch, batch)
    h, s, t = conv.lin_h(source).double(), conv.lin_s(source).double(), conv.lin_s(target).double()
    rows = []
    for i in range(len(t)):
        distance = (s - t[i]).square().sum(1)
        if of_source is not None:
            distance = distance.where(of_source == of_target[i], torch.inf)
        nearest = distance.argsort()[: conv.k]
        nearest = nearest[distance[nearest] < torch.inf]
        weight = torch.exp(-10 * distance[nearest]).to(source.dtype)
        message = weight.double().unsqueeze(1) * h[nearest]
        rows.append(torch.cat([message.mean(0), message.amax(0)]).to(source.dtype))
    return conv.lin_out1(target) + conv.lin_out2(torch.stack(rows))


def with_gradients(conv, out, args):
    tensors = [*(args[0] if isinstance(args[0], tuple) else args[:1]), *conv.parameters()]
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return [out, *torch.autograd.grad(out, tensors, upstream.to(out.dtype))]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_and_gradients_are_those_of_the_formula_and_of_pyg(name, kind, pygs):
    args, mine, theirs = inputs(kind), layer(), layer(pygs)
    with backend(name):
        found = with_gradients(mine, mine(*args), args)
    for expected in (with_gradients(mine, by_hand(mine, *args), args), with_gradients(theirs, theirs(*args), args)):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_constructor_parameters_and_repr_are_pygs(pygs):
    mine, theirs = layer(), layer(pygs)
    assert isinstance(mine, pyg.GravNetConv)
    assert repr(mine) == repr(theirs) == "GravNetConv(6, 7, k=5)"
    assert list(mine.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    mine.reset_parameters()
    theirs.load_state_dict(mine.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    with pytest.warns(UserWarning, match="num_workers"):
        layer(num_workers=2)


def test_works_without_pyg_lib(monkeypatch):
    monkeypatch.setattr(torch_geometric.typing, "WITH_KNN", False)
    with pytest.raises(ImportError, match="pyg-lib"):
        layer(pyg.GravNetConv)
    assert layer()(features(10)).shape == (10, 7)


def test_lazy_channels():
    conv = GravNetConv(-1, 7, 3, 9, k=2)
    assert conv(torch.randn(10, 5)).shape == (10, 7)
    assert conv.lin_h.weight.shape == (9, 5)


@pytest.mark.parametrize("name", BACKENDS)
def test_elements_at_one_place_share_the_gradient(name, pygs):
    x = features(12).detach()[[0, 0, 0, *range(1, 12), 5, 5]].requires_grad_()
    mine, theirs = layer(k=20), layer(pygs, k=20)
    with backend(name):
        found = with_gradients(mine, mine(x), (x,))
    torch.testing.assert_close(found, with_gradients(theirs, theirs(x), (x,)), rtol=1e-10, atol=1e-12)
    # A gradient that went to one of them only would not be the same for all.
    (grad,) = torch.autograd.grad(mine(x).square().sum(), x)
    torch.testing.assert_close(grad[[0, 7]], grad[[1, 15]])


@pytest.mark.parametrize("name", BACKENDS)
def test_far_neighbors_have_no_weight(name):
    x = (100 * features(30).detach()).requires_grad_()
    conv = layer()
    with backend(name):
        found = with_gradients(conv, conv(x), (x,))
    torch.testing.assert_close(found, with_gradients(conv, by_hand(conv, x), (x,)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", BACKENDS)
def test_first_and_second_derivatives(name):
    conv, x = layer(k=3), features(8)
    with backend(name):
        assert torch.autograd.gradcheck(conv, x)
        assert torch.autograd.gradgradcheck(conv, x)


def test_elements_may_be_renumbered_and_samples_joined():
    conv, x, batch = layer(), features(40), samples(20, 3, 17)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(conv(x[order]), conv(x)[order])
    parts = [conv(part) for part in x.split([20, 3, 17])]
    torch.testing.assert_close(conv(x, batch), torch.cat(parts))


def test_no_messages_are_kept():
    conv, x = layer(k=5), features(2001)  # more edges than are computed at once
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        conv(x)
    of_edges = {shape[1:] for shape in kept if 10005 in shape}
    assert of_edges <= {(), (1,), (3,)}
    assert of_edges


def test_whoever_asks_for_messages_gets_them(pygs):
    mine, theirs, x = layer(), layer(pygs), features(40)
    expected = mine(x)
    seen = {}
    for kind, conv in (("mine", mine), ("theirs", theirs)):
        for name in ("propagate", "message", "aggregate"):
            register = getattr(conv, f"register_{name}_forward_hook")
            register(lambda *args, name=name, kind=kind: seen.update({(kind, name): args[-1]}))
        torch.testing.assert_close(conv(x), expected)
    assert seen["mine", "message"].shape == (200, 9)
    for name in ("propagate", "message", "aggregate"):
        torch.testing.assert_close(seen["mine", name], seen["theirs", name])


def test_explainers_mask_messages(pygs):
    mine, theirs, x = layer(), layer(pygs), features(40)
    expected = mine(x)
    mask = torch.linspace(0, 1, 200, dtype=torch.float64).requires_grad_()
    edge_index = torch.stack([torch.zeros(200, dtype=torch.long), torch.ones(200, dtype=torch.long)])
    found = []
    for conv in (mine, theirs):
        set_masks(conv, mask, edge_index, apply_sigmoid=False)
        out = conv(x)
        found.append([out, *torch.autograd.grad(out.square().sum(), mask)])
        clear_masks(conv)
    torch.testing.assert_close(*found)
    assert not torch.allclose(found[0][0], expected)
    assert torch.equal(mine(x), expected)


def test_subclasses_may_have_their_own_messages():
    class Twice(GravNetConv):
        def message(self, x_j, edge_weight):
            return 2 * x_j * edge_weight.unsqueeze(1)

    plain, twice, x = layer(), layer(Twice), features(40)
    expected = plain.lin_out1(x) + 2 * (plain(x) - plain.lin_out1(x) - plain.lin_out2.bias) + plain.lin_out2.bias
    torch.testing.assert_close(twice(x), expected)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02), (torch.float16, 2e-3)])
def test_types(name, dtype, tolerance):
    conv, x = layer(dtype=dtype), features(40, dtype=dtype)
    with backend(name):
        found = with_gradients(conv, conv(x), (x,))
    for a, b in zip(found, with_gradients(conv, by_hand(conv, x), (x,)), strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(1, b.abs().max().item()))


def test_autocast():
    conv, x = layer(k=40, dtype=torch.float32), features(40, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = conv(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), conv(x), rtol=0.05, atol=0.05)


def test_copies_and_compiles():
    conv, x = layer(), features(40)
    expected = conv(x)
    assert torch.equal(copy.deepcopy(conv)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(conv))(x), expected)
    compiled = torch.compile(conv, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    found, wanted = (torch.autograd.grad(f(x).square().sum(), x) for f in (compiled, conv))
    torch.testing.assert_close(found, wanted)


def test_nothing_to_look_at():
    conv = layer()
    assert conv(features(0)).shape == (0, 7)
    out = conv((features(0), features(4)))
    torch.testing.assert_close(out, conv.lin_out1(features(4)) + conv.lin_out2.bias)
    assert conv((features(4), features(0))).shape == (0, 7)


def test_bad_input_is_named():
    conv, x = layer(), features(10)
    for args, message in [
        ((x.unsqueeze(0),), r"expected x \[N, in_channels\], got \(1, 10, 6\)"),
        ((x, samples(5, 4)), r"expected batch \[10\], .* got \[9\]"),
        ((x, samples(5, 5).flip(0)), "must be ascending"),
        (((x, x), (samples(5, 5), None)), "both, or neither"),
        ((x * torch.nan,), "NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            conv(*args)
