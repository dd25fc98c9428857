"""PyG's layers against ours in their place: time and memory of whole layers, and models before and after accelerate.

    python -m benchmarks.graph_layers

Cora is read from ``$GEOATTN_DATA/graph/planetoid``; without it that section is left out.
"""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch_geometric.datasets import Planetoid

import geoattn
from benchmarks import graphs
from benchmarks.harness import (
    BOTH,
    FORWARD,
    REGIME_TEXT,
    Bar,
    Job,
    Options,
    Timings,
    Variant,
    bar_table,
    main,
    milliseconds,
    save,
    spread,
    table,
)
from benchmarks.ours import fast_backends
from geoattn import Neighbors

K, HEADS, WIDTH = 16, 4, 32
SPACE, PROPAGATED, NEAREST = 4, 22, 40  # of GravNet, as in its paper
NARROW = (32, 64)
FEATURES = 16  # of nodes, such as heat kernel signatures, that the first layer of a network is given
PRODUCTS = "its matrix products alone"
SIZE, MODEL_SIZE = 100_000, 60_000
KINKS = 2e-2  # of layers with ReLU: a unit that is zero but for rounding has its gradient or none, and both are right
LAYERS = ("GATConv", "GATv2Conv", "SuperGATConv", "TransformerConv", "PointTransformerConv")
GRAPHS = {
    "mesh": "mesh, vertices in file order",
    "knn": f"k-NN graph, k = {K}, uniform points in a cube along the Z-order curve",
    "cora": "Cora",
}
WITH_BARS = ("GATv2Conv", "TransformerConv")

Factories = dict[str, Callable[[], Variant]]


def layer(job: Job, name: str, graph: str, channels: int = HEADS * WIDTH, first: bool = False) -> Factories:
    """One layer in the middle of a network, or (on Cora, or if ``first``) its first; PyG's and ours."""
    edge_index, nodes = edges(job, graph)
    if graph == "cora":
        x, width = cora().x.to(job.device), 64
        theirs, ours = make(name, x.size(1), heads=8, width=width // 8)
    else:
        x = torch.randn(nodes, FEATURES if first else channels, device=job.device).requires_grad_(not first)
        width = channels
        theirs, ours = make(name, x.size(1), HEADS, width // HEADS)
    ours.load_state_dict(theirs.state_dict())
    for conv in (theirs, ours):
        conv.to(job.device).eval()  # without dropout, and SuperGAT without its sampled pairs
    more: tuple[Tensor, ...] = (edge_index,)
    if name == "PointTransformerConv":
        more = (torch.rand(nodes, 3, device=job.device), edge_index)
    elif name == "GravNetConv":  # finds its own graph
        more = ()
    grad = torch.randn(nodes, width, device=job.device)  # no layer runs before its memory is measured
    inputs = (*((x,) if x.requires_grad else ()), *theirs.parameters())

    def own(backend: str) -> Variant:
        def forward() -> Tensor:
            with geoattn.backend(backend):
                return ours(x, *more)

        return Variant(forward, (*inputs[: -len(list(ours.parameters()))], *ours.parameters()), grad, tolerance=KINKS)

    def products() -> Variant:
        linears = [module for module in theirs.modules() if isinstance(module, pyg.Linear)]
        used = [p for linear in linears for p in linear.parameters()]
        return Variant(
            lambda: sum(linear(x) for linear in linears), (*inputs[: x.requires_grad], *used), grad, same=False
        )

    found: Factories = {"PyG": lambda: Variant(lambda: theirs(x, *more), inputs, grad, tolerance=KINKS)}
    backends = fast_backends(job.device)[: 1 if first or channels in NARROW else None]
    found |= {backend: lambda backend=backend: own(backend) for backend in backends}
    return found | ({PRODUCTS: products} if name in WITH_BARS and graph != "cora" else {})


def make(name: str, channels: int, heads: int, width: int) -> tuple[nn.Module, nn.Module]:
    """PyG's layer and ours."""
    if name == "GravNetConv":  # PyG's needs pyg-lib; with a hook on messages ours makes them with PyG's code
        arguments: tuple = (SPACE, PROPAGATED, NEAREST)
        theirs, ours = (geoattn.nn.GravNetConv(channels, heads * width, *arguments) for _ in range(2))
        theirs.register_message_forward_hook(lambda *_: None)
        return theirs, ours
    if name == "PointTransformerConv":
        network = pyg.MLP([3, heads * width, heads * width], norm=None)
        theirs, ours = (
            getattr(module, name)(channels, heads * width, copy.deepcopy(network)) for module in (pyg, geoattn.nn)
        )
        return theirs, ours
    theirs, ours = (getattr(module, name)(channels, width, heads) for module in (pyg, geoattn.nn))
    return theirs, ours


def edges(job: Job, graph: str) -> tuple[Tensor, int]:
    """A static ``edge_index``, as a user has it, and the number of nodes."""
    if graph == "cora":
        return cora().edge_index.to(job.device), cora().num_nodes
    mesh = graph == "mesh"
    pattern = graphs.body_meshes(job.size) if mesh else Neighbors.knn(graphs.z_ordered_points(job.size), K)
    return pattern.to_edge_index().to(job.device), pattern.num_queries


def cora():
    """The graph, with rows of features of sum 1; PyG writes what it has read beside what it reads."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(planetoid() / "Cora", Path(folder) / "Cora")
        data = Planetoid(folder, "Cora")[0]
    data.x = data.x / data.x.sum(1, keepdim=True).clamp(min=1)
    return data


def planetoid() -> Path:
    """Where Cora lies, if anywhere."""
    return Path(os.environ.get("GEOATTN_DATA", "nowhere")) / "graph" / "planetoid"


class GPS(nn.Module):
    """A stack of PyG's GPSConv (Rampasek et al. 2022): attention along edges, and linear attention to all nodes."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            pyg.GPSConv(channels, pyg.TransformerConv(channels, channels // HEADS, HEADS), HEADS, attn_type="performer")
            for _ in range(layers)
        )

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        """Features of all nodes."""
        for conv in self.convs:
            x = conv(x, edge_index, batch)
        return x


# Each on features [N, 64], a mesh, features of edges [E, 8] and the graph of each node.
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[..., tuple[Tensor, ...]]]] = {
    "GAT": (lambda: pyg.GAT(64, 64, 3, heads=HEADS), lambda x, edge, *_: (x, edge)),
    "GAT, v2, jumping knowledge": (
        lambda: pyg.GAT(64, 64, 3, heads=HEADS, v2=True, jk="cat"),
        lambda x, edge, *_: (x, edge),
    ),
    "GPS of TransformerConv": (lambda: GPS(64, 3), lambda x, edge, _, batch: (x, edge, batch)),
    "Polynormer": (
        lambda: pyg.Polynormer(64, 16, 64, local_layers=3, global_layers=1, heads=HEADS, local_attn=True),
        lambda x, edge, _, batch: (x, edge, batch),
    ),
    "AttentiveFP": (lambda: pyg.AttentiveFP(64, 64, 64, 8, 3, 2), lambda *inputs: inputs),
}


def model(job: Job, name: str) -> Factories:
    """A ready-made model before and after `geoattn.accelerate`."""
    edge_index, nodes = edges(job, "mesh")
    make_model, arguments = MODELS[name]
    theirs = make_model().to(job.device).eval()  # without dropout
    ours = copy.deepcopy(theirs)
    assert geoattn.accelerate(ours).changed
    x = torch.randn(nodes, 64, device=job.device).requires_grad_()
    features = torch.randn(edge_index.size(1), 8, device=job.device)
    batch = torch.arange(nodes, device=job.device) * 4 // nodes
    inputs = arguments(x, edge_index, features, batch)
    with torch.no_grad():
        expected, found = theirs(*inputs), ours(*inputs)
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    if not error <= 1e-5:
        raise AssertionError(f"outputs differ by {error:.1e} of the largest")
    grad = torch.randn_like(expected)
    parameters = list(theirs.named_parameters())
    reached = torch.autograd.grad(theirs(*inputs), [p for _, p in parameters], grad, allow_unused=True)
    names = [name for (name, _), found in zip(parameters, reached, strict=True) if found is not None]

    def variant(network: nn.Module) -> Variant:
        used = [network.get_parameter(name) for name in names]
        return Variant(lambda: network(*inputs), (x, *used), grad, tolerance=KINKS)

    return {"PyG": lambda: variant(theirs), "accelerated": lambda: variant(ours)}


CASES = {f"{name}-{graph}": partial(layer, name=name, graph=graph) for name in LAYERS for graph in GRAPHS}
CASES |= {"GravNetConv-knn": partial(layer, name="GravNetConv", graph="knn")}
CASES |= {
    f"{name}-{graph}-{channels}": partial(layer, name=name, graph=graph, channels=channels)
    for name in WITH_BARS
    for graph in ("mesh", "knn")
    for channels in NARROW
}
CASES |= {
    f"{name}-{graph}-first": partial(layer, name=name, graph=graph, first=True)
    for name in WITH_BARS
    for graph in ("mesh", "knn")
}
CASES |= {name: partial(model, name=name) for name in MODELS}


def report(options: Options) -> None:
    """Run the sections and write the tables."""
    bars: list[Bar] = []
    text: list[str] = []
    for graph in GRAPHS:
        if options.wants(graph):
            _layers(options, graph, bars, text)
    if options.wants("models"):
        _models(options, text)
    notes = (
        f"Layers of {HEADS} heads of {WIDTH} channels on {HEADS * WIDTH} features unless said, float32, gradients of "
        f"features and of all parameters; first layers of networks are given {FEATURES} features, on Cora its own, "
        "without gradients, and have 8 heads of 8 channels there. PointTransformerConv has one head, and a network of "
        "two layers on positions. Evaluation mode: "
        "without dropout and without SuperGAT's sampled pairs. The graph is static, as users have it: an `edge_index` "
        "that is the same tensor in every pass. The matrix products alone are those of a layer's linear maps as PyG "
        "makes them; ours are made in blocks of rows, and of narrow inputs TransformerConv needs fewer. PyG's "
        "GravNetConv needs pyg-lib, which is not "
        f"on PyPI: PyG's messages over our {NEAREST} neighbors ({SPACE} dimensions, {PROPAGATED} channels), "
        "the search included, stand for it. Outputs and gradients were compared before timing. The stock allocator was "
        "timed in one process.\n"
    )
    summary = bar_table(bars, not options.quick) if options.device == "cpu" else "There are none for GPUs.\n"
    save(options, "graph_layers", "PyG's layers", [notes, "## Bars\n", summary, *text])


def _layers(options: Options, graph: str, bars: list[Bar], text: list[str]) -> None:
    if graph == "cora" and not planetoid().is_dir():
        text.append("## Cora\n\nLeft out: GEOATTN_DATA names no folder with graph/planetoid.\n")
        return
    size = 2_000 if options.quick else SIZE
    cases = [case for case in CASES if case.split("-")[1:2] == [graph]]
    wide = [case for case in cases if case.count("-") == 1]
    own = fast_backends(options.device)
    timings = _time(options, size, cases, wide)
    text.append(f"## {GRAPHS[graph][0].upper()}{GRAPHS[graph][1:]}\n")
    for regime in options.regimes:
        rows = [
            [_title(case), backend, *_cells(timings[case, regime], backend)]
            for case in cases
            for backend in (*own, PRODUCTS)
            if (case, regime) in timings and backend in timings[case, regime]
        ]
        header = ["", "", *(f"{d}: {x}" for d in (FORWARD, BOTH) for x in ("PyG, ms", "this, ms", "PyG ÷ this"))]
        text += [f"{REGIME_TEXT[regime]}:\n", table(header, rows)]
    memory = options.peak_memory(
        Job(case, size, variants=(name,)) for case in cases for name in ("PyG", *(own if case in wide else own[:1]))
    )
    above = {(job.case, job.variants[0]): found.above / 1e6 for job, found in memory.items()}
    rows = [
        [_title(case), *(f"{above[case, name]:.0f}" if (case, name) in above else "-" for name in ("PyG", *own))]
        for case in cases
    ]
    text += [
        "Peak memory above the inputs, forward + backward in a fresh process that also makes the pattern and its "
        "transpose, MB:\n",
        table(["", "PyG", *own], rows),
    ]
    for case in cases if "cpu" in own else ():
        if case.partition("-")[0] not in WITH_BARS:
            continue
        ratios = timings[case, "retained"].ratios("PyG", "cpu", BOTH)
        bars.append(Bar(f"{case}, retained: PyG ÷ cpu, {BOTH}", ratios, at_least=1 if graph == "cora" else 4))
        if graph != "cora" and (case, "PyG") in above and (case, "cpu") in above:
            share = above[case, "cpu"] / above[case, "PyG"]
            bars.append(Bar(f"{case}: memory of cpu ÷ PyG", [share], at_most=0.1))


def _time(options: Options, size: int, cases: list[str], wide: list[str]) -> dict[tuple[str, str], Timings]:
    """By case and regime: all cases in the first, and in the other, to save time, the wide ones in one process."""
    found: dict[tuple[str, str], Timings] = {}
    for regime in options.regimes:
        first = regime == options.regimes[0]
        jobs = [Job(case, size, regime) for case in (cases if first else wide)]
        timings = (options if first else replace(options, processes=1)).time(jobs)
        found |= {(job.case, job.regime): each for job, each in timings.items()}
    return found


def _title(case: str) -> str:
    """The layer, and in what it differs from the others."""
    name, _, *rest = case.split("-")
    if not rest:
        return name
    return f"{name}, first layer" if rest[0] == "first" else f"{name}, {rest[0]} channels"


def _cells(timings: Timings, backend: str) -> list[str]:
    cells = []
    for direction in (FORWARD, BOTH):
        cells += [milliseconds(timings.seconds(name, direction)) for name in ("PyG", backend)]
        cells.append(spread(timings.ratios("PyG", backend, direction)))
    return cells


def _models(options: Options, text: list[str]) -> None:
    names = list(MODELS)
    timings = _time(options, 2_000 if options.quick else MODEL_SIZE, names, names)
    text.append("## Models before and after `geoattn.accelerate`, on a mesh\n")
    text.append(
        "64 features, three layers; what accelerate leaves (products, norms, GRUs, attention to all nodes) is in both. "
        "Outputs are within 1e-5 of the largest, or the model would not be timed.\n"
    )
    for regime in options.regimes:
        rows = [[name, *_cells(timings[name, regime], "accelerated")] for name in MODELS]
        header = ["", *(f"{d}: {x}" for d in (FORWARD, BOTH) for x in ("PyG, ms", "accelerated, ms", "PyG ÷ this"))]
        text += [f"{REGIME_TEXT[regime]}:\n", table(header, rows)]


if __name__ == "__main__":
    main(CASES, report, (*GRAPHS, "models"))
