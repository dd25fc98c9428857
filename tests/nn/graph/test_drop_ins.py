"""The layers that PyG also has, against PyG's: parameters, numbers, gradients."""

import copy
import gc

import pytest
import torch
import torch_geometric.nn as pyg
from torch_geometric import EdgeIndex
from torch_geometric.typing import SparseTensor
from torch_geometric.utils import to_torch_coo_tensor, to_torch_csc_tensor, to_torch_csr_tensor

import geoattn
from geoattn import Neighbors, native
from geoattn.nn.graph import _drop_in, _gathered_inputs
from geoattn.patterns import adjacency
from tests.nn.graph.drop_ins import (
    BIPARTITE,
    EDGE_WIDTH,
    EDGES,
    NODES,
    PLAIN,
    SOURCES,
    WEIGHTED,
    WIDTH,
    WITH_FEATURES,
    WITH_TORCH_SPARSE,
    assert_same_as_pyg,
    call,
    edges,
    features,
    pair,
)


@pytest.mark.parametrize(("name", "arguments"), PLAIN)
def test_constructor_parameters_and_repr_are_pygs(name, arguments):
    mine, theirs = pair(name, arguments)
    assert repr(mine) == repr(theirs)
    assert isinstance(mine, getattr(pyg, name))
    assert list(mine.state_dict()) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        assert torch.equal(mine.state_dict()[key], value), key
    for a, b in ((mine, theirs), (theirs, mine)):
        b.reset_parameters()
        assert a.load_state_dict(b.state_dict()) == torch.nn.modules.module._IncompatibleKeys([], [])
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize(("name", "arguments"), PLAIN)
def test_numbers_and_gradients_are_pygs(name, arguments):
    mine, theirs = pair(name, arguments)
    x, edge_index = features(NODES, WIDTH), edges()
    assert_same_as_pyg(mine, theirs, [x], call(mine, x, edge_index), call(theirs, x, edge_index))


@pytest.mark.parametrize(("name", "arguments"), WITH_FEATURES)
def test_edge_features_and_every_fill_value(name, arguments):
    mine, theirs = pair(name, arguments | {"edge_dim": EDGE_WIDTH, "heads": 2})
    x, edge_attr, edge_index = features(NODES, WIDTH), features(EDGES, EDGE_WIDTH, seed=2), edges()
    out, expected = (layer(x, edge_index, edge_attr) for layer in (mine, theirs))
    assert_same_as_pyg(mine, theirs, [x, edge_attr], out, expected)


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv"])
def test_edge_features_of_one_dimension(name):
    mine, theirs = pair(name, {"edge_dim": 1})
    x, edge_attr, edge_index = features(NODES, WIDTH), features(EDGES, seed=2), edges()
    out, expected = (layer(x, edge_index, edge_attr) for layer in (mine, theirs))
    assert_same_as_pyg(mine, theirs, [x, edge_attr], out, expected)


@pytest.mark.parametrize("name", BIPARTITE)
@pytest.mark.parametrize("channels", [WIDTH, (WIDTH, WIDTH + 1)])
def test_bipartite(name, channels):
    mine, theirs = pair(name, {}, channels)
    x = (features(SOURCES, WIDTH), features(NODES, WIDTH if isinstance(channels, int) else WIDTH + 1, seed=2))
    edge_index = edges(SOURCES)
    assert_same_as_pyg(mine, theirs, x, call(mine, x, edge_index), call(theirs, x, edge_index))


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv"])
@pytest.mark.parametrize("fill_value", ["mean", "max", 0.5])
def test_loops_and_edge_features_where_sources_are_fewer_than_targets(name, fill_value, monkeypatch):
    """The first targets get loops, as without edge features: PyG's numbers where it has any, of as many sources."""
    monkeypatch.setattr(_drop_in, "_FEW_NUMBERS", 1 << 30)
    arguments = {"edge_dim": EDGE_WIDTH, "fill_value": fill_value}
    mine, theirs = pair(name, arguments, (WIDTH, WIDTH))
    x = features(SOURCES, WIDTH), features(NODES, WIDTH, seed=2)
    edge_index, edge_attr = edges(SOURCES), features(EDGES, EDGE_WIDTH, seed=3)
    out = mine(x, edge_index, edge_attr)
    # PyG's layer refuses. Sources without edges but for their loops, which then go away, change nothing else.
    padded = torch.cat([x[0], torch.zeros(NODES - SOURCES, WIDTH, dtype=torch.float64)])
    seen = theirs((padded, x[1]), edge_index, edge_attr)
    torch.testing.assert_close(out[:SOURCES], seen[:SOURCES])
    theirs.add_self_loops = False
    expected = theirs(x, edge_index, edge_attr)
    assert not torch.allclose(out[:SOURCES], expected[:SOURCES])
    torch.testing.assert_close(out[SOURCES:], expected[SOURCES:])
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), [*x, edge_attr]))


def test_gat_without_features_of_targets():
    mine, theirs = pair("GATConv", {"heads": 2, "residual": True}, (WIDTH, WIDTH + 1))
    x, edge_index = features(SOURCES, WIDTH), edges(SOURCES)
    for size in ((SOURCES, NODES), None):
        graph = edge_index if size else edge_index % (SOURCES - 1)
        out, expected = (layer((x, None), graph, size=size) for layer in (mine, theirs))
        torch.testing.assert_close(out, expected)
    for layer in (mine, theirs):
        layer.add_self_loops = False  # PyG fails to add them to such a matrix
    matrix = to_torch_csr_tensor(edge_index.flip([0]), size=(NODES, SOURCES))
    torch.testing.assert_close(mine((x, None), matrix), theirs((x, None), matrix))


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv", "TransformerConv", "SuperGATConv", "PointTransformerConv"])
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_every_kind_of_edge_index(name, backend, monkeypatch):
    """Also where PyG's own path would be the faster one, but does not take it."""
    monkeypatch.setattr(_drop_in, "_FEW_NUMBERS", 1 << 30)
    monkeypatch.setattr("geoattn.native._LIBRARY", native.library() if backend == "cpu" else None)
    mine, theirs = pair(name, {})
    x = features(NODES, WIDTH)
    edge_index = edges().unique(dim=1).contiguous()  # a matrix has no duplicates
    expected = call(theirs.eval(), x, edge_index)
    size = (NODES, NODES)
    index = EdgeIndex(edge_index, sparse_size=size)
    kinds = [edge_index.int(), index, Neighbors.from_edge_index(edge_index, NODES)]
    for by in ("row", "col"):
        kinds += [index.sort_by(by).values, index.sort_by(by).values.fill_cache_()]
    transposed = edge_index.flip([0])
    kinds += [make(transposed, size=size) for make in (to_torch_coo_tensor, to_torch_csr_tensor)]
    if name == "TransformerConv":  # the only one whose loops PyG does not add to such a matrix
        kinds.append(to_torch_csc_tensor(transposed, size=size))
    if WITH_TORCH_SPARSE:
        kinds.append(SparseTensor.from_edge_index(edge_index, sparse_sizes=size).t())
    for kind in kinds:
        out = call(mine.eval(), x, kind)
        assert_same_as_pyg(mine, theirs, [x], out, expected)


def test_a_sparse_matrix_may_hold_the_edge_features():
    mine, theirs = pair("TransformerConv", {"edge_dim": EDGE_WIDTH})
    x, edge_index = features(NODES, WIDTH), edges().unique(dim=1).contiguous()
    edge_attr = torch.randn(edge_index.size(1), EDGE_WIDTH, dtype=torch.float64)
    matrix = torch.sparse_coo_tensor(edge_index.flip([0]), edge_attr, (NODES, NODES, EDGE_WIDTH)).coalesce()
    expected = theirs(x, edge_index, edge_attr)
    torch.testing.assert_close(mine(x, matrix), expected)
    if WITH_TORCH_SPARSE:
        matrix = SparseTensor.from_edge_index(edge_index, edge_attr, (NODES, NODES)).t()
        torch.testing.assert_close(mine(x, matrix), expected)


def test_edge_features_with_a_pattern_are_in_the_order_of_its_edge_index():
    mine, theirs = pair("GATv2Conv", {"edge_dim": EDGE_WIDTH})
    x, edge_attr, edge_index = features(NODES, WIDTH), features(EDGES, EDGE_WIDTH, seed=2), edges()
    expected = theirs(x, edge_index, edge_attr)
    torch.testing.assert_close(mine(x, Neighbors.from_edge_index(edge_index, NODES), edge_attr), expected)
    pattern = Neighbors.from_edge_index(edge_index, NODES)
    bare = Neighbors(pattern.rowptr, pattern.col, NODES)  # of no edge_index: in the order of col
    torch.testing.assert_close(mine(x, bare, pattern.reorder_edges(edge_attr)), expected)


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize("edge_dim", [None, EDGE_WIDTH])
def test_attention_weights(name, edge_dim):
    mine, theirs = pair(name, {"heads": 2, "edge_dim": edge_dim})
    x, edge_index = features(NODES, WIDTH), edges()
    edge_attr = None if edge_dim is None else features(EDGES, edge_dim, seed=2)
    (out, (index, weights)), (expected, (their_index, their_weights)) = (
        layer(x, edge_index, edge_attr, return_attention_weights=True) for layer in (mine, theirs)
    )
    assert torch.equal(index, their_index)
    assert torch.equal(out, mine(x, edge_index, edge_attr))
    assert_same_as_pyg(mine, theirs, [x], out, expected)
    assert_same_as_pyg(mine, theirs, [x], weights, their_weights)
    pattern = Neighbors.from_edge_index(edge_index, NODES)
    _, (index, weights) = mine(x, pattern, edge_attr, return_attention_weights=True)
    assert torch.equal(index, their_index)
    torch.testing.assert_close(weights, their_weights)


@pytest.mark.parametrize("name", WEIGHTED)
def test_attention_weights_of_matrices_and_with_dropout(name):
    mine, theirs = pair(name, {"dropout": 0.5})
    x, edge_index = features(NODES, WIDTH), edges()
    out, expected = (call(layer, x, edge_index, return_attention_weights=True) for layer in (mine, theirs))
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-11)  # PyG's path, its random numbers
    matrix = to_torch_csr_tensor(edge_index.flip([0]).unique(dim=1), size=(NODES, NODES))
    out, expected = (layer.eval()(x, matrix, return_attention_weights=True) for layer in (mine, theirs))
    torch.testing.assert_close(out[0], expected[0])
    torch.testing.assert_close(out[1][1], expected[1][1])


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv", "TransformerConv", "SuperGATConv"])
def test_dropout_is_unbiased_and_only_in_training(name):
    mine, _ = pair(name, {"dropout": 0.3})
    x, edge_index = features(NODES, WIDTH).detach(), edges()
    rest = (edges(seed=3),) if name == "SuperGATConv" else ()  # sampling pairs takes long
    expected = mine.eval()(x, edge_index, *rest)
    assert torch.equal(mine(x, edge_index, *rest), expected)
    mine.train()
    torch.manual_seed(0)
    draws = torch.stack([mine(x, edge_index, *rest) for _ in range(400)])
    assert not torch.equal(draws[0], draws[1])
    error = (draws.mean(0) - expected) / (draws.std(0) / 400**0.5 + 1e-12)
    assert error.abs().max() < 5.0
    torch.manual_seed(0)
    assert torch.equal(mine(x, edge_index, *rest), draws[0])
    mine.dropout = 1.0
    assert torch.isfinite(mine(x, edge_index, *rest)).all()


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv", "TransformerConv", "SuperGATConv", "PointTransformerConv"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(name, dtype):
    exact, _ = pair(name, {})
    mine = copy.deepcopy(exact).to(dtype)
    exact = copy.deepcopy(mine).double()  # of the rounded weights
    x, pos, edge_index = features(NODES, WIDTH).to(dtype), features(NODES, 3, seed=2).to(dtype), edges()
    more = (pos,) if name == "PointTransformerConv" else ()
    out = mine(x, *more, edge_index)
    assert out.dtype == dtype
    expected = exact(x.double(), *(p.double() for p in more), edge_index)
    bound = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), expected, rtol=bound, atol=bound)


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv", "TransformerConv", "SuperGATConv", "PointTransformerConv"])
def test_lazy_channels(name):
    mine, theirs = pair(name, {}, -1, torch.float32)
    x, edge_index = features(NODES, WIDTH).float(), edges()
    torch.testing.assert_close(call_float(mine, x, edge_index), call_float(theirs, x, edge_index), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(p, q) for p, q in zip(mine.parameters(), theirs.parameters(), strict=True))


def call_float(layer, x, edge_index):
    torch.manual_seed(0)
    pos = (torch.zeros(NODES, 3),) if isinstance(layer, pyg.PointTransformerConv) else ()
    return layer(x, *pos, edge_index)


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv", "TransformerConv", "SuperGATConv", "PointTransformerConv"])
def test_no_edges_and_no_nodes(name):
    mine, theirs = pair(name, {}, dtype=torch.float32)
    nothing = torch.empty(2, 0, dtype=torch.int64)
    for nodes in (3, 0):
        x, pos = torch.randn(nodes, WIDTH), (torch.randn(nodes, 3),) * isinstance(mine, pyg.PointTransformerConv)
        if nodes or name != "SuperGATConv":  # PyG cannot sample pairs of no nodes
            torch.testing.assert_close(mine(x, *pos, nothing), theirs(x, *pos, nothing))


def test_supergat_loss_is_pygs():
    for kind in ("MX", "SD"):
        for ratio in (1.0, 0.6):
            mine, theirs = pair("SuperGATConv", {"heads": 2, "attention_type": kind, "edge_sample_ratio": ratio})
            x, edge_index = features(NODES, WIDTH), edges()
            for absent in (None, edges(seed=3)):
                call(mine, x, edge_index, absent), call(theirs, x, edge_index, absent)
                assert torch.equal(mine.att_y, theirs.att_y)
                losses = mine.get_attention_loss(), theirs.get_attention_loss()
                torch.testing.assert_close(*losses)
                found, wanted = (
                    torch.autograd.grad(loss, [x, layer.lin.weight])
                    for loss, layer in zip(losses, (mine, theirs), strict=True)
                )
                torch.testing.assert_close(found, wanted)
            assert mine.eval().get_attention_loss() == 0


@pytest.mark.parametrize("attn_nn", [None, "perceptron"])
def test_point_transformer_with_networks(attn_nn):
    layers = pair("PointTransformerConv", {})
    x, edge_index = features(NODES, WIDTH), edges()
    torch.manual_seed(3)
    networks = [pyg.MLP([3, 8, 4], norm=None), pyg.MLP([4, 8, 4], norm=None) if attn_nn else None]
    for layer in layers:
        layer.pos_nn, layer.attn_nn = copy.deepcopy(networks)
        layer.double()
    mine, theirs = layers
    assert_same_as_pyg(mine, theirs, [x], call(mine, x, edge_index), call(theirs, x, edge_index))


@pytest.mark.parametrize(("name", "arguments"), PLAIN[::2])
def test_second_derivatives(name, arguments):
    mine, theirs = pair(name, arguments)
    edge_index = edges()
    found = []
    for layer in (mine, theirs):
        x = features(NODES, WIDTH)
        (grad,) = torch.autograd.grad(call(layer, x, edge_index).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), [x, *layer.parameters()], allow_unused=True))
    for a, b in zip(*found, strict=True):
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("channels", [2, (2, WIDTH)])
@pytest.mark.parametrize("arguments", [{}, {"heads": 3}, {"heads": 2, "concat": False}, {"heads": 2, "bias": False}])
def test_inputs_narrower_than_heads_are_what_is_gathered(channels, arguments, monkeypatch):
    """TransformerConv: outputs, both derivatives, and when it gathers keys all the same."""
    gathered = []
    attend = _gathered_inputs.attend
    monkeypatch.setattr(_gathered_inputs, "attend", lambda *a, **b: gathered.append(a[1].shape) or attend(*a, **b))
    mine, theirs = pair("TransformerConv", arguments, channels)
    source, target = features(NODES, 2), features(NODES, WIDTH, seed=2)
    x, inputs = (source, [source]) if channels == 2 else ((source, target), [source, target])
    out, expected = (layer(x, edges()) for layer in (mine, theirs))
    assert_same_as_pyg(mine, theirs, inputs, out, expected)
    found = []
    for layer in (mine, theirs):
        grads = torch.autograd.grad(layer(x, edges()).square().sum(), inputs, create_graph=True)
        given = [*inputs, *layer.parameters()]
        found.append(torch.autograd.grad(sum(g.square().sum() for g in grads), given, allow_unused=True))
    for a, b in zip(*found, strict=True):
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
    assert gathered == [(NODES, 1, 2)] * 2

    gathered.clear()
    torch.testing.assert_close(*(layer(x, edges(), return_attention_weights=True)[0] for layer in (mine, theirs)))
    handle = mine.lin_key.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(mine(x, edges()), expected)
    handle.remove()
    mine.dropout = 0.5
    assert not torch.equal(mine(x, edges()), mine(x, edges()))
    mine.eval()
    torch.testing.assert_close(mine(x, edges()), expected)
    assert gathered == [(NODES, 1, 2)]


@pytest.mark.parametrize("name", WEIGHTED)
def test_nothing_of_the_width_of_messages_is_kept(name):
    mine, _ = pair(name, {"heads": 2}, dtype=torch.float32)
    kept = []
    x, edge_index = features(NODES, WIDTH).float(), torch.randint(0, NODES, (2, 500))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        mine(x, edge_index)
    per_edge = [shape for shape in kept if shape and shape[0] >= 400]
    assert per_edge  # the pattern itself
    assert all(len(shape) == 1 for shape in per_edge)


def test_gat_conv_makes_no_heads_of_edges():
    """Of an edge's features it needs a score alone."""
    mine, _ = pair("GATConv", {"heads": 2, "edge_dim": EDGE_WIDTH})
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        mine(features(NODES, WIDTH), edges(), features(EDGES, EDGE_WIDTH, seed=3))
    widths = {shape[1:].numel() for shape in kept if shape and shape[0] >= EDGES - NODES}
    assert max(widths) == EDGE_WIDTH < 2 * 4


@pytest.mark.parametrize(
    ("name", "linear"),
    [("GATConv", "lin"), ("GATv2Conv", "lin_l"), ("TransformerConv", "lin_value"), ("TransformerConv", "lin_skip")],
)
def test_what_others_read_is_not_overwritten(name, linear):
    """Hooks on inner layers keep what they saw, a kept graph gives the same gradients again; so do shared weights."""
    mine, theirs = pair(name, {"share_weights": True} if name == "GATv2Conv" else {})
    x, edge_index = features(NODES, WIDTH), edges()
    seen = []
    for layer in (mine, theirs):
        inner = layer.get_submodule(linear)
        handle = inner.register_forward_hook(lambda module, given, out: seen.append((out, out.detach().clone())))
        layer(x, edge_index).sum().backward()
        handle.remove()
    assert all(torch.equal(out, copy) for out, copy in seen)
    mine, theirs = pair(name, {"heads": 2})
    parameters = list(mine.parameters())
    out = mine(x, edge_index).sum()
    first, second = (torch.autograd.grad(out, parameters, retain_graph=True, allow_unused=True) for _ in range(2))
    third = torch.autograd.grad(out, parameters, allow_unused=True)
    expected = torch.autograd.grad(theirs(x, edge_index).sum(), list(theirs.parameters()), allow_unused=True)
    for grads in (first, second, third):
        for found, wanted in zip(grads, expected, strict=True):
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_static_graph_is_sorted_once(name, monkeypatch):
    made = []
    make = Neighbors.from_edge_index.__func__
    monkeypatch.setattr(Neighbors, "from_edge_index", classmethod(lambda *a, **b: made.append(1) or make(*a, **b)))
    mine, theirs = pair(name, {})
    edge_index = edges()
    for _ in range(3):
        mine(features(NODES, WIDTH), edge_index)
    assert len(made) == 1
    edge_index[0, 5] = (edge_index[0, 5] + 1) % NODES  # in place
    x = features(NODES, WIDTH)
    torch.testing.assert_close(mine(x, edge_index), theirs(x, edge_index))
    assert len(made) == 2
    gc.collect()
    entries = len(adjacency._made)
    del edge_index
    gc.collect()
    assert len(adjacency._made) == entries - 1


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv", "TransformerConv"])
def test_the_other_flow(name):
    mine, theirs = pair(name, {"flow": "target_to_source"})
    x, edge_index = features(NODES, WIDTH), edges()
    assert_same_as_pyg(mine, theirs, [x], mine(x, edge_index), theirs(x, edge_index))


@pytest.mark.parametrize(
    ("name", "arguments", "many", "ours"),
    [
        ("GATConv", {}, True, False),
        ("GATv2Conv", {}, True, False),
        ("TransformerConv", {}, True, True),
        ("TransformerConv", {}, False, False),
        ("TransformerConv", {"dropout": 0.1}, True, False),
        ("TransformerConv", {"edge_dim": EDGE_WIDTH}, True, False),
        ("SuperGATConv", {}, True, True),
        ("SuperGATConv", {}, False, False),
    ],
)
def test_without_compiled_kernels_the_faster_path_runs(name, arguments, many, ours, monkeypatch):
    """The messages' own where torch's sparse products gain nothing; the numbers are the same."""
    monkeypatch.setattr(_drop_in, "_MANY_NUMBERS", 4 * EDGES if many else 4 * EDGES + 1)
    mine, theirs = pair(name, arguments)
    more = (features(EDGES, EDGE_WIDTH, seed=2),) if "edge_dim" in arguments else ()
    x, edge_index, ran = features(NODES, WIDTH), edges(), []
    propagate = type(mine).propagate
    monkeypatch.setattr(type(mine), "propagate", lambda *a, **b: ran.append(1) or propagate(*a, **b))
    for layer in (mine, theirs):
        layer.train("dropout" in arguments)
    with geoattn.backend("torch"):
        out = call(mine, x, edge_index, *more)
    assert bool(ran) is not ours
    expected = call(theirs, x, edge_index, *more)
    assert_same_as_pyg(mine, theirs, [x, *more], out, expected)
    ran.clear()
    with geoattn.backend("reference"):
        call(mine, x, Neighbors.from_edge_index(edge_index, NODES), *more)
    assert not ran


@pytest.mark.parametrize(
    ("name", "arguments", "left"),
    [
        ("SuperGATConv", {}, True),
        ("GATConv", {"edge_dim": EDGE_WIDTH}, True),
        ("GATConv", {"edge_dim": EDGE_WIDTH, "add_self_loops": False}, False),
        ("GATConv", {}, False),
    ],
)
def test_a_few_dozen_edges_may_be_left_to_pyg(name, arguments, left, monkeypatch):
    mine, theirs = pair(name, arguments)
    more = (features(EDGES, EDGE_WIDTH, seed=2),) if "edge_dim" in arguments else ()
    ran, propagate = [], type(mine).propagate
    monkeypatch.setattr(type(mine), "propagate", lambda *a, **b: ran.append(1) or propagate(*a, **b))
    for few, expected in ((4 * EDGES, False), (4 * EDGES + 1, left)):
        monkeypatch.setattr(_drop_in, "_FEW_NUMBERS", few)
        ran.clear()
        out = call(mine, features(NODES, WIDTH), edges(), *more)
        assert bool(ran) is expected
        torch.testing.assert_close(out, call(theirs, features(NODES, WIDTH), edges(), *more))


def test_autocast():
    mine, theirs = pair("GATv2Conv", {"heads": 2}, dtype=torch.float32)
    x, edge_index = torch.randn(NODES, WIDTH), edges()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(mine(x, edge_index).float(), theirs(x, edge_index).float(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", WEIGHTED)
def test_errors_name_what_is_wrong(name):
    mine, _ = pair(name, {}, dtype=torch.float32)
    x, edge_index = torch.randn(NODES, WIDTH), edges()
    with pytest.raises(ValueError, match=r"edge_index\[0\] must be in \[0, 12\)"):
        mine(x, edge_index + 8)
    with pytest.raises(ValueError, match="integers"):
        mine(x, edge_index.float())
    with pytest.raises(ValueError, match=r"expected edge_index \[2, E\]"):
        mine(x, edge_index[:1])
    with pytest.raises(ValueError, match="12 queries and 12 keys"):
        mine(x, Neighbors.from_edge_index(edge_index % 5, 5))
    with pytest.raises(TypeError, match="Neighbors"):
        mine(x, [[0], [1]])


@pytest.mark.parametrize("rows", [EDGES - 1, EDGES + 1])
@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv", "TransformerConv"])
def test_edge_features_of_another_number_of_edges_are_refused(name, loops, rows):
    given = {"edge_dim": EDGE_WIDTH} | ({} if name == "TransformerConv" else {"add_self_loops": loops})
    mine, _ = pair(name, given)
    refused = pytest.raises(ValueError, match=rf"expected edge_attr \[{EDGES}, {EDGE_WIDTH}\]")
    with geoattn.backend("reference"), refused:  # a backend that is forced leaves nothing to PyG
        mine(features(NODES, WIDTH), edges(), features(rows, EDGE_WIDTH, seed=2))
