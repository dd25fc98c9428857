"""geoattn's layers inside PyG's models: the same outputs, gradients and weights, there and back."""

import copy

import pytest
import torch
import torch_geometric.nn as pyg
from torch import nn
from torch_geometric.data import Data
from torch_geometric.explain import Explainer, GNNExplainer

import geoattn

NODES, EDGES = 30, 120


class Points(nn.Module):
    """A network of a user's, with layers in containers and names of its own."""

    def __init__(self):
        super().__init__()
        self.enter = nn.ModuleDict({"a": pyg.PointTransformerConv(8, 8), "b": pyg.GATv2Conv(8, 8)})
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x, edge_index):
        pos = x[:, :3].detach()
        return self.norm(self.enter["b"](self.enter["a"](x, pos, edge_index).relu(), edge_index))


class Typed(nn.Module):
    """Of several kinds of edges."""

    def __init__(self):
        super().__init__()
        kinds = {("n", "near", "n"): pyg.TransformerConv(8, 4, 2), ("n", "far", "n"): pyg.SuperGATConv(8, 8)}
        self.conv = pyg.HeteroConv(kinds)

    def forward(self, x, edge_index):
        kinds = {("n", "near", "n"): edge_index, ("n", "far", "n"): edge_index.flip([0])}
        return self.conv({"n": x}, kinds)["n"]


class GPS(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = pyg.GPSConv(8, pyg.GATv2Conv(8, 4, heads=2), heads=2)

    def forward(self, x, edge_index, batch):
        return self.conv(x, edge_index, batch)


def inputs(model):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(NODES, 8, generator=generator)
    edge_index = torch.randint(0, NODES, (2, EDGES), generator=generator)
    batch = torch.arange(NODES) // 10
    if isinstance(model, pyg.AttentiveFP):
        return x, edge_index, torch.randn(EDGES, 5, generator=generator), batch
    return (x, edge_index, batch) if isinstance(model, GPS | pyg.Polynormer) else (x, edge_index)


MODELS = {
    "GAT": (lambda: pyg.GAT(8, 16, 3, 5, heads=2), 3),
    "GAT v2": (lambda: pyg.GAT(8, 16, 3, 5, v2=True, heads=4, jk="cat", norm="BatchNorm"), 3),
    "GPS": (GPS, 1),
    "Polynormer": (lambda: pyg.Polynormer(8, 8, 5, local_layers=2, global_layers=1, heads=2, local_attn=True), 2),
    "AttentiveFP": (lambda: pyg.AttentiveFP(8, 8, 5, 5, 3, 2), 3),
    "DeepGCN": (lambda: pyg.DeepGCNLayer(pyg.TransformerConv(8, 8), nn.LayerNorm(8), nn.ReLU(), "res+"), 1),
    "Sequential": (
        lambda: pyg.Sequential("x, edge_index", [(pyg.GATConv(8, 8), "x, edge_index -> x"), nn.ReLU()]),
        1,
    ),
    "points": (Points, 2),
    "typed": (Typed, 2),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_compute_the_same_and_come_back(name):
    make, layers = MODELS[name]
    torch.manual_seed(0)
    model = make().eval()
    given = inputs(model)
    expected = model(*given)
    grads = torch.autograd.grad(expected.square().sum(), list(model.parameters()), allow_unused=True)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    objects = dict(model.named_modules())

    report = geoattn.accelerate(model)
    assert len(report.changed) == layers
    assert dict(model.named_modules()) == objects  # the same objects
    assert list(model.state_dict()) == list(state)
    out = model(*given)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(out.square().sum(), list(model.parameters()), allow_unused=True)
    for a, b in zip(found, grads, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)

    assert geoattn.restore(model).changed == report.changed
    assert torch.equal(model(*given), expected)


def test_training_goes_on_with_the_same_optimizer():
    torch.manual_seed(0)
    model = pyg.GAT(8, 16, 2, 3, heads=2)
    other = copy.deepcopy(model)
    x, edge_index = inputs(model)
    losses = []
    for network, accelerated in ((model, True), (other, False)):
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        for step in range(6):
            if accelerated and step == 2:
                geoattn.accelerate(network)
            if accelerated and step == 4:
                geoattn.restore(network)
            optimizer.zero_grad()
            loss = network(x, edge_index).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[:6] == pytest.approx(losses[6:], rel=1e-4)


def test_the_report_names_what_changed_and_what_did_not():
    class Mine(pyg.GATConv):
        pass

    model = nn.ModuleDict(
        {"a": pyg.GATConv(8, 8), "b": pyg.GCNConv(8, 8), "c": Mine(8, 8), "d": geoattn.nn.GATConv(8, 8)}
    )
    report = geoattn.accelerate(model)
    assert report.changed == {"a": "GATConv"}
    assert report.left["b"] == "geoattn has no GCNConv"
    assert report.left["c"] == "Mine is a subclass of GATConv, which may compute something else"
    assert report.left["d"] == "is geoattn's already"
    assert type(model["c"]) is Mine
    assert str(report).splitlines()[0] == "1 layers changed, 3 left"
    assert "changed  a: GATConv" in str(report)
    report = geoattn.restore(model)
    assert set(report.changed) == {"a", "d"}
    assert all(not type(layer).__module__.startswith("geoattn") for layer in model.values())


def test_the_report_says_where_compiled_kernels_are_missing(monkeypatch):
    assert "PyG's own code" not in str(geoattn.accelerate(pyg.GATConv(8, 8)))
    monkeypatch.setattr("geoattn.native._LIBRARY", None)
    assert "PyG's own code: the CPU kernels were not built" in str(geoattn.accelerate(pyg.GATConv(8, 8)))


def test_models_without_supported_layers_are_left():
    model = pyg.PMLP(8, 8, 3, 2).eval()
    report = geoattn.accelerate(model)
    assert not report.changed
    assert report.left == {"conv": "geoattn has no SimpleConv"}


def test_a_single_layer():
    layer = pyg.GATv2Conv(8, 8)
    assert geoattn.accelerate(layer).changed == {"": "GATv2Conv"}
    assert type(layer) is geoattn.nn.GATv2Conv


def test_an_explained_model_can_be_accelerated_and_explained_again():
    torch.manual_seed(0)
    model = pyg.GAT(8, 16, 2, 3, heads=2)
    data = Data(*inputs(model))

    def explain():
        torch.manual_seed(0)
        explainer = Explainer(
            model,
            GNNExplainer(epochs=3),
            explanation_type="model",
            node_mask_type="attributes",
            edge_mask_type="object",
            model_config={"mode": "multiclass_classification", "task_level": "node", "return_type": "raw"},
        )
        return explainer(data.x, data.edge_index).edge_mask

    before = explain()
    geoattn.accelerate(model)
    torch.testing.assert_close(explain(), before, rtol=1e-4, atol=1e-5)
    out = model(data.x, data.edge_index)
    geoattn.restore(model)
    torch.testing.assert_close(model(data.x, data.edge_index), out, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(explain(), before, rtol=1e-4, atol=1e-5)
