"""What PyG and torch do with layers: hooks, explainers, `to_hetero`, subclasses, copies, TorchScript, compilation."""

import copy
import pickle

import pytest
import torch
import torch_geometric.nn as pyg
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules import module as module_hooks
from torch.nn.utils import parametrize
from torch_geometric.explain import AttentionExplainer, Explainer, GNNExplainer
from torch_geometric.explain.algorithm.utils import set_masks
from torch_geometric.nn import to_hetero

from geoattn import nn as ours
from tests.nn.graph.drop_ins import (
    EDGE_WIDTH,
    EDGES,
    NODES,
    PLAIN,
    SOURCES,
    WEIGHTED,
    WIDTH,
    assert_same_as_pyg,
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


def linears(layer):
    return [name for name, module in layer.named_modules() if isinstance(module, pyg.Linear | torch.nn.Linear)]


CHANGES = {
    "forward of the instance": lambda inner: setattr(inner, "forward", lambda x, before=inner.forward: before(x).sin()),
    "hook": lambda inner: inner.register_forward_hook(lambda module, given, out: out.sin()),
    "parametrization": lambda inner: parametrize.register_parametrization(inner, "weight", torch.nn.Tanh()),
}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("GATConv", {"heads": 2, "edge_dim": EDGE_WIDTH, "residual": True}),
        ("GATv2Conv", {"heads": 2, "edge_dim": EDGE_WIDTH, "residual": True}),
        ("TransformerConv", {"heads": 2, "edge_dim": EDGE_WIDTH, "beta": True}),
        ("TransformerConv", {"heads": 1}),  # as wide as it would gather inputs with
        ("SuperGATConv", {"heads": 2}),
    ],
)
@pytest.mark.parametrize("change", CHANGES)
def test_what_inner_layers_were_changed_to_runs(name, arguments, change):
    """Adapters replace ``forward`` on the instance, others hook or parametrize: all linear layers, one at a time."""
    edge_attr = (features(EDGES, EDGE_WIDTH, seed=2),) if "edge_dim" in arguments else ()
    width = 2 if arguments == {"heads": 1} else WIDTH
    x, edge_index = features(NODES, width), edges()
    mine, _ = pair(name, arguments, width)
    before = call(mine, x, edge_index, *edge_attr)
    for inner in linears(mine):
        mine, theirs = pair(name, arguments, width)
        for layer in (mine, theirs):
            CHANGES[change](layer.get_submodule(inner))
        out, expected = (call(layer, x, edge_index, *edge_attr) for layer in (mine, theirs))
        assert not torch.allclose(out, before)
        assert_same_as_pyg(mine, theirs, [x, *edge_attr], out, expected)


@pytest.mark.parametrize(("name", "arguments"), PLAIN)
def test_hooks_of_all_modules_see_the_same_modules(name, arguments):
    seen = []
    for layer in pair(name, arguments):
        handle = module_hooks.register_module_forward_hook(lambda module, *_: seen[-1].append(type(module).__name__))
        seen.append([])
        call(layer, features(NODES, WIDTH), edges())
        handle.remove()
    assert seen[0] == seen[1]


@pytest.mark.parametrize(("name", "arguments"), PLAIN[::3])
def test_methods_for_messages_may_be_replaced(name, arguments, monkeypatch):
    """On the layer itself, on PyG's class, and by another module for the aggregation."""
    x, edge_index = features(NODES, WIDTH), edges()
    before = call(pair(name, arguments)[0], x, edge_index)

    def check(change):
        mine, theirs = pair(name, arguments)
        for layer in (mine, theirs):
            change(layer)
        out = call(mine, x, edge_index)
        assert not torch.allclose(out, before)
        assert torch.equal(out, call(theirs, x, edge_index))

    check(lambda layer: setattr(layer, "message", lambda *a, f=layer.message, **b: 2 * f(*a, **b)))
    check(lambda layer: setattr(layer, "update", lambda out: 2 * out))
    check(lambda layer: setattr(layer, "propagate", lambda *a, f=layer.propagate, **b: 2 * f(*a, **b)))
    check(lambda layer: setattr(layer, "aggr_module", pyg.MeanAggregation()))
    check(lambda layer: layer.aggr_module.register_forward_hook(lambda module, given, out: 2 * out))
    update = getattr(pyg, name).update
    check(lambda layer: monkeypatch.setattr(getattr(pyg, name), "update", lambda *a, **b: 2 * update(*a, **b)))


def test_subclasses_may_have_their_own_loop_over_edges():
    class Doubled(ours.GATConv):
        def propagate(self, *args, **kwargs):
            return 2 * super().propagate(*args, **kwargs)

    x, edge_index = torch.randn(NODES, WIDTH), edges()
    doubled, single = Doubled(WIDTH, 4, bias=False), ours.GATConv(WIDTH, 4, bias=False)
    single.load_state_dict(doubled.state_dict())
    torch.testing.assert_close(doubled(x, edge_index), 2 * single(x, edge_index))


@pytest.mark.parametrize(("name", "arguments"), PLAIN)
def test_nothing_that_is_saved_is_changed(name, arguments):
    mine, _ = pair(name, arguments)
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append((t, t.detach().clone())) or t, lambda t: t):
        out = call(mine, features(NODES, WIDTH), edges())
    out.square().sum().backward()
    assert all(torch.equal(saved, copy) for saved, copy in seen)


TRANSFORMS = {
    "grad of parameters": lambda layer, f, x: torch.func.grad(
        lambda parameters: torch.func.functional_call(layer, parameters, f.args(x)).square().sum()
    )(dict(layer.named_parameters())),
    "vmap": lambda layer, f, x: torch.vmap(f)(torch.stack([x, 2 * x])),
    "jvp": lambda layer, f, x: torch.func.jvp(f, (x,), (x.sin(),)),
    "jacrev": lambda layer, f, x: torch.func.jacrev(f)(x),
    "hessian": lambda layer, f, x: torch.func.hessian(lambda t: f(t).square().sum())(x),
    "forward mode": lambda layer, f, x: forward_mode(f, x),
    "batched gradients": lambda layer, f, x: batched_gradients(f, x),
    "second derivatives": lambda layer, f, x: torch.autograd.functional.hessian(lambda t: f(t).square().sum(), x),
}


def forward_mode(f, x):
    with torch.autograd.forward_ad.dual_level():
        return torch.autograd.forward_ad.unpack_dual(f(torch.autograd.forward_ad.make_dual(x, x.sin()))).tangent


def batched_gradients(f, x):
    x = x.clone().requires_grad_()
    out = f(x)
    upstream = torch.eye(out.numel(), dtype=x.dtype).view(-1, *out.shape)
    return torch.autograd.grad(out, x, upstream, is_grads_batched=True)[0]


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("GATConv", {"heads": 2}), ("GATv2Conv", {"heads": 2}), ("TransformerConv", {"heads": 2}), ("SuperGATConv", {})],
)
@pytest.mark.parametrize("with_features", [False, True])
def test_transforms_and_batched_gradients(name, arguments, transform, with_features):
    if with_features and name == "SuperGATConv":
        return
    edge_index = edges()[:, :20] % 6
    x = features(6, 3).detach()
    more = (features(20, EDGE_WIDTH, seed=2).detach(),) if with_features else ()
    found = []
    for layer in pair(name, arguments | ({"edge_dim": EDGE_WIDTH} if with_features else {}), 3):
        layer.eval()

        def f(t, layer=layer):
            return layer(t, edge_index, *more)

        f.args = lambda t: (t, edge_index, *more)
        found.append(TRANSFORMS[transform](layer, f, x))
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-10)
    out = layer(x.requires_grad_(), edge_index, *more)  # what was kept meanwhile is fit for training
    out.sum().backward()


@pytest.mark.parametrize("name", [*WEIGHTED, "SuperGATConv"])
def test_evaluation_in_inference_mode_before_training(name):
    mine, theirs = pair(name, {"heads": 2})
    x, edge_index = features(NODES, WIDTH), edges()
    with torch.inference_mode():
        call(mine.eval(), x, edge_index)
    assert_same_as_pyg(mine.train(), theirs, [x], call(mine, x, edge_index), call(theirs, x, edge_index))


@pytest.mark.parametrize("name", WEIGHTED)
def test_fake_tensors(name):
    """Estimators of memory and operations give shapes, and leave nothing behind."""
    mine, theirs = pair(name, {"heads": 2}, dtype=torch.float32)
    x, edge_index = torch.randn(NODES, WIDTH), edges()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = mode.from_tensor(x).requires_grad_()
        out = mine(fake, edge_index)
        out.sum().backward()
        assert fake.grad.shape == x.shape
        for parameter in mine.parameters():
            parameter.grad = None
    assert out.shape == (NODES, 8)
    torch.testing.assert_close(mine(x, edge_index), theirs(x, edge_index))


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


PROGRAMS = [
    ("GATConv", {"add_self_loops": False}, False),
    ("GATConv", {"edge_dim": EDGE_WIDTH}, False),
    ("GATConv", {"edge_dim": EDGE_WIDTH, "fill_value": "max"}, True),
    ("GATv2Conv", {"edge_dim": EDGE_WIDTH}, True),
    ("TransformerConv", {"edge_dim": EDGE_WIDTH}, True),
]


def program_inputs(arguments, bipartite, nodes=NODES, sources=SOURCES, seed=0):
    """One graph and features, of any size."""
    sources = sources if bipartite else nodes
    source = torch.randint(0, sources, (5 * nodes,), generator=torch.Generator().manual_seed(seed))
    target = torch.arange(5 * nodes) % nodes
    x = features(nodes, WIDTH, seed=seed).float().detach()
    x = (features(sources, WIDTH, seed=9).float().detach(), x) if bipartite else x
    more = (features(5 * nodes, EDGE_WIDTH, seed=2).float().detach(),) if "edge_dim" in arguments else ()
    return x, torch.stack([source, target]), *more


@pytest.mark.parametrize(("name", "arguments", "bipartite"), PROGRAMS)
def test_torch_compile(name, arguments, bipartite):
    """As one graph, for every size: outputs and all gradients."""
    torch._dynamo.reset()
    channels = (WIDTH, WIDTH) if bipartite and name != "TransformerConv" else WIDTH
    mine, _ = pair(name, {"heads": 2} | arguments, channels, dtype=torch.float32)
    compiled = torch.compile(mine, fullgraph=True, backend="aot_eager", dynamic=True)
    for nodes, sources in ((NODES, SOURCES), (20, 15)):
        x, *more = program_inputs(arguments, bipartite, nodes, sources, seed=nodes)
        found = []
        for layer in (compiled, mine):
            leaves = [t.clone().requires_grad_() for t in (x if bipartite else (x,))]
            out = layer(tuple(leaves) if bipartite else leaves[0], *more)
            found.append([out, *torch.autograd.grad(out.square().sum(), [*leaves, *mine.parameters()])])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "arguments", "bipartite"), PROGRAMS)
def test_torch_export(name, arguments, bipartite):
    channels = (WIDTH, WIDTH) if bipartite and name != "TransformerConv" else WIDTH
    mine, _ = pair(name, {"heads": 2} | arguments, channels, dtype=torch.float32)
    mine.eval()
    given = program_inputs(arguments, bipartite)
    program = torch.export.export(mine, given).module()
    torch.testing.assert_close(program(*given), mine(*given))
    other = program_inputs(arguments, bipartite, seed=4)
    torch.testing.assert_close(program(*other), mine(*other))
