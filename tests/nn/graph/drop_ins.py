"""Our layers beside PyG's of the same seed, and what both are given."""

import random

import torch
import torch_geometric.nn as pyg
import torch_geometric.typing

from geoattn import nn as ours
from tests.ops.problems import assert_same

NODES, SOURCES, EDGES, WIDTH, EDGE_WIDTH = 12, 9, 60, 6, 3
WITH_TORCH_SPARSE = torch_geometric.typing.WITH_TORCH_SPARSE

# Layer and arguments, without edge features.
PLAIN = [
    ("GATConv", {"heads": 3}),
    ("GATConv", {"heads": 2, "concat": False, "residual": True, "bias": False, "negative_slope": 0.5}),
    ("GATConv", {"add_self_loops": False}),
    ("GATv2Conv", {"heads": 3}),
    ("GATv2Conv", {"heads": 2, "concat": False, "residual": True, "bias": False, "negative_slope": 0.5}),
    ("GATv2Conv", {"heads": 2, "share_weights": True, "add_self_loops": False}),
    ("TransformerConv", {"heads": 3}),
    ("TransformerConv", {"heads": 2, "concat": False, "beta": True}),
    ("TransformerConv", {"heads": 2, "root_weight": False, "bias": False}),
    ("SuperGATConv", {"heads": 3}),
    ("SuperGATConv", {"heads": 2, "attention_type": "SD", "concat": False, "bias": False}),
    ("PointTransformerConv", {}),
    ("PointTransformerConv", {"add_self_loops": False}),
]
WITH_FEATURES = [
    ("GATConv", {"fill_value": value}) for value in ("mean", "add", "min", "max", "mul", 0.5, torch.tensor([1.0, 2, 3]))
]
WITH_FEATURES += [("GATv2Conv", arguments) for _, arguments in WITH_FEATURES]
WITH_FEATURES += [
    ("GATv2Conv", {"add_self_loops": False}),
    ("TransformerConv", {}),
    ("TransformerConv", {"beta": True}),
]
BIPARTITE = ("GATConv", "GATv2Conv", "TransformerConv", "PointTransformerConv")
WEIGHTED = ("GATConv", "GATv2Conv", "TransformerConv")


def pair(name, arguments, channels=WIDTH, dtype=torch.float64):
    """Our layer and PyG's from the same seed."""
    layers = []
    for module in (ours, pyg):
        torch.manual_seed(0)
        layers.append(getattr(module, name)(channels, 4, **arguments).to(dtype))
    return layers


def edges(sources=NODES, seed=0):
    """Duplicates and loops are among them; the last two targets have no edges."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(0, sources, (EDGES,), generator=generator)
    target = torch.randint(0, NODES - 2, (EDGES,), generator=generator)
    edge_index = torch.stack([source, target])
    edge_index[:, 1] = edge_index[:, 0]
    edge_index[:, 2] = 4
    return edge_index


def features(*shape, seed=1):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.requires_grad_()


def call(layer, x, edge_index, *rest, **settings):
    """The layer's output; positions where it needs them. What is random is the same for all layers."""
    random.seed(0)
    torch.manual_seed(0)
    if isinstance(layer, pyg.PointTransformerConv):
        pos = features(NODES, 3, seed=2)
        pos = pos if isinstance(x, torch.Tensor) else (features(SOURCES, 3, seed=3), pos)
        return layer(x, pos, edge_index, *rest, **settings)
    return layer(x, edge_index, *rest, **settings)


def assert_same_as_pyg(mine, theirs, inputs, out, expected):
    """Outputs and all gradients, to rounding."""
    grad = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def with_gradients(layer, y):
        wanted = {f"input {n}": x for n, x in enumerate(inputs)} | dict(layer.named_parameters())
        grads = torch.autograd.grad(y, list(wanted.values()), grad, allow_unused=True, retain_graph=True)
        return {"out": y, **dict(zip(wanted, grads, strict=True))}

    assert_same(with_gradients(mine, out), with_gradients(theirs, expected))
