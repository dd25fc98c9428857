"""What PyG and torch do with layers: hooks, explainers, `to_hetero`, subclasses, copies, TorchScript, compilation."""

import copy
import pickle

import pytest
import torch
import torch_geometric.nn as pyg
from torch_geometric.explain import AttentionExplainer, Explainer, GNNExplainer
from torch_geometric.explain.algorithm.utils import set_masks
from torch_geometric.nn import to_hetero

from geoattn import nn as ours
from tests.nn.graph.drop_ins import (
    EDGES,
    NODES,
    PLAIN,
    WEIGHTED,
    WIDTH,
    call,
    edges,
    features,
    pair,
)


@pytest.mark.parametrize(("name", "arguments"), PLAIN)
@pytest.mark.parametrize(
    "hook", ["message_forward", "message_forward_pre", "propagate_forward_pre", "aggregate_forward"]
)
def test_hooks_get_pygs_messages(name, arguments, hook):
    mine, theirs = pair(name, arguments)
    x, edge_index = features(NODES, WIDTH), edges()
    before = call(mine, x, edge_index)
    seen = []
    handle = getattr(mine, f"register_{hook}_hook")(lambda *a: seen.append(a))
    after = call(mine, x, edge_index)
    assert len(seen) == 1
    assert torch.equal(after, call(theirs, x, edge_index))
    handle.remove()
    assert torch.equal(call(mine, x, edge_index), before)
    assert len(seen) == 1


@pytest.mark.parametrize(("name", "arguments"), [p for p in PLAIN if p[0] != "SuperGATConv"])
def test_explainers_mask_messages(name, arguments):
    mine, theirs = pair(name, arguments)
    x, edge_index = features(NODES, WIDTH), edges()
    unmasked = call(mine, x, edge_index)
    mask = torch.nn.Parameter(features(EDGES, seed=3).detach())
    for layer in (mine, theirs):
        set_masks(layer, mask, edge_index, apply_sigmoid=True)
    out, expected = call(mine, x, edge_index), call(theirs, x, edge_index)
    assert not torch.allclose(out, unmasked)
    torch.testing.assert_close(out, expected)
    mine.explain = False
    assert torch.equal(call(mine, x, edge_index), unmasked)


class Network(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.first = module.GATv2Conv(WIDTH, 4, heads=2)
        self.second = module.GATConv(8, 3)

    def forward(self, x, edge_index):
        return self.second(self.first(x, edge_index).relu(), edge_index)


@pytest.mark.parametrize("algorithm", [GNNExplainer, AttentionExplainer])
def test_explainers_run(algorithm):
    found = []
    for module in (ours, pyg):
        torch.manual_seed(0)
        network = Network(module)
        settings = {"epochs": 5} if algorithm is GNNExplainer else {}
        node = {"node_mask_type": "attributes"} if algorithm is GNNExplainer else {}
        explainer = Explainer(
            network,
            algorithm(**settings),
            explanation_type="model",
            edge_mask_type="object",
            model_config={"mode": "multiclass_classification", "task_level": "node", "return_type": "raw"},
            **node,
        )
        torch.manual_seed(1)
        found.append(
            explainer(torch.linspace(-1, 1, NODES * WIDTH).view(NODES, WIDTH), edges().unique(dim=1).contiguous())
        )
    torch.testing.assert_close(found[0].edge_mask, found[1].edge_mask, rtol=1e-3, atol=1e-4)


class Lazy(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.first = module.GATConv((-1, -1), 4, add_self_loops=False)
        self.second = module.TransformerConv((-1, -1), 3)

    def forward(self, x, edge_index):
        return self.second(self.first(x, edge_index).relu(), edge_index)


def test_to_hetero():
    metadata = (["a", "b"], [("a", "to", "b"), ("b", "to", "a"), ("a", "next", "a")])
    x = {"a": torch.randn(5, WIDTH), "b": torch.randn(7, WIDTH + 1)}
    size = {"a": 5, "b": 7}
    index = {
        kind: torch.stack([torch.randint(0, size[kind[0]], (20,)), torch.randint(0, size[kind[2]], (20,))])
        for kind in metadata[1]
    }
    mine, theirs = (to_hetero(Lazy(module), metadata) for module in (ours, pyg))
    with torch.no_grad():
        mine(x, index), theirs(x, index)
    theirs.load_state_dict(mine.state_dict())
    for kind, out in mine(x, index).items():
        torch.testing.assert_close(out, theirs(x, index)[kind])


def test_subclasses_with_messages_of_their_own():
    class Doubled(ours.GATConv):
        def message(self, x_j, alpha):
            return 2 * super().message(x_j, alpha)

    class Largest(ours.GATConv):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, aggr="max", **kwargs)

    x, edge_index = torch.randn(NODES, WIDTH), edges()
    doubled = Doubled(WIDTH, 4, bias=False)
    single = ours.GATConv(WIDTH, 4, bias=False)
    single.load_state_dict(doubled.state_dict())
    torch.testing.assert_close(doubled(x, edge_index), 2 * single(x, edge_index))
    theirs = pyg.GATConv(WIDTH, 4, aggr="max")
    largest = Largest(WIDTH, 4)
    theirs.load_state_dict(largest.state_dict())
    torch.testing.assert_close(largest(x, edge_index), theirs(x, edge_index))


@pytest.mark.parametrize(("name", "arguments"), PLAIN[::3])
def test_copies_and_pickles(name, arguments):
    mine, _ = pair(name, arguments)
    mine.eval()  # in training, PyG's SuperGATConv keeps a tensor that cannot be copied
    x, edge_index = features(NODES, WIDTH), edges()
    expected = call(mine, x, edge_index)
    for other in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):
        assert type(other) is type(mine)
        assert torch.equal(call(other, x, edge_index), expected)


def test_torch_script_compiles_pygs_layer():
    mine, _ = pair("TransformerConv", {"heads": 2}, dtype=torch.float32)
    x, edge_index = torch.randn(NODES, WIDTH), edges()
    scripted = torch.jit.script(torch.nn.ModuleList([mine]))[0]
    torch.testing.assert_close(scripted(x, edge_index), mine(x, edge_index))
    traced = torch.jit.trace(mine, (x, edge_index))
    other = edges(seed=4)
    torch.testing.assert_close(traced(x, other), mine(x, other))


@pytest.mark.parametrize("name", WEIGHTED)
def test_torch_compile(name):
    mine, _ = pair(name, {"heads": 2}, dtype=torch.float32)
    if hasattr(mine, "add_self_loops"):
        mine.add_self_loops = False
    compiled = torch.compile(mine, fullgraph=True, backend="aot_eager")
    for edge_index in (edges(), edges(seed=2)):
        x = features(NODES, WIDTH).float().detach().requires_grad_()
        out, expected = compiled(x, edge_index), mine(x, edge_index)
        torch.testing.assert_close(out, expected)
        found, wanted = (torch.autograd.grad(y.square().sum(), x)[0] for y in (out, expected))
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", WEIGHTED)
def test_torch_compile_with_loops(name):
    mine, _ = pair(name, {"heads": 2}, dtype=torch.float32)
    compiled = torch.compile(mine, backend="aot_eager")
    x, edge_index = torch.randn(NODES, WIDTH), edges()
    torch.testing.assert_close(compiled(x, edge_index), mine(x, edge_index))
