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


def layer(job: Job, name: str, graph: str) -> Factories:
    """One layer in the middle of a network, or on Cora in its beginning; PyG's and ours with its parameters."""
    edge_index, nodes = edges(job, graph)
    if graph == "cora":
        x = cora().x.to(job.device)
        theirs, ours = make(name, x.size(1), heads=8, width=8)
        theirs, inputs = theirs.to(job.device), ()
    else:
        x = torch.randn(nodes, HEADS * WIDTH, device=job.device).requires_grad_()
        theirs, ours = make(name, HEADS * WIDTH, HEADS, WIDTH)
        theirs, inputs = theirs.to(job.device), (x,)
    ours = ours.to(job.device)
    ours.load_state_dict(theirs.state_dict())
    more = (torch.rand(nodes, 3, device=job.device),) if name == "PointTransformerConv" else ()
    for conv in (theirs, ours):
        conv.eval()  # without dropout, and SuperGAT without its sampled pairs
    grad = torch.randn_like(theirs(x.detach(), *more, edge_index))

    def variant(conv: nn.Module, backend: str | None) -> Variant:
        def forward() -> Tensor:
            if backend is None:
                return conv(x, *more, edge_index)
            with geoattn.backend(backend):
                return conv(x, *more, edge_index)

        return Variant(forward, (*inputs, *conv.parameters()), grad, tolerance=KINKS)

    return {"PyG": lambda: variant(theirs, None)} | {
        backend: lambda backend=backend: variant(ours, backend) for backend in fast_backends(job.device)
    }


def make(name: str, channels: int, heads: int, width: int) -> tuple[nn.Module, ...]:
    """PyG's layer and ours."""
    if name == "PointTransformerConv":
        wide = heads * width
        network = pyg.MLP([3, wide, wide], norm=None)
        return tuple(getattr(module, name)(channels, wide, copy.deepcopy(network)) for module in (pyg, geoattn.nn))
    return tuple(getattr(module, name)(channels, width, heads) for module in (pyg, geoattn.nn))


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

    def variant(network: nn.Module) -> Variant:
        used = [p for p in network.parameters() if p.requires_grad]
        return Variant(lambda: network(*inputs), (x, *used), grad, tolerance=KINKS)

    return {"PyG": lambda: variant(theirs), "accelerated": lambda: variant(ours)}


CASES = {f"{name}-{graph}": partial(layer, name=name, graph=graph) for name in LAYERS for graph in GRAPHS} | {
    name: partial(model, name=name) for name in MODELS
}


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
        f"Layers of {HEADS} heads of {WIDTH} channels on {HEADS * WIDTH} features, float32, gradients of the features "
        "and of all parameters; on Cora the first layer of a network: 8 heads of 8 channels, gradients of parameters. "
        "PointTransformerConv has as many channels in one head, and a network of two layers on positions. Evaluation "
        "mode, that is without dropout and without SuperGAT's sampled pairs. The graph is static, as users have it: an "
        "`edge_index` that is the same tensor in every pass. Outputs and gradients were compared before timing.\n"
    )
    summary = bar_table(bars, not options.quick) if options.device == "cpu" else "There are none for GPUs.\n"
    save(options, "graph_layers", "PyG's layers", [notes, "## Bars\n", summary, *text])


def _layers(options: Options, graph: str, bars: list[Bar], text: list[str]) -> None:
    if graph == "cora" and not planetoid().is_dir():
        text.append("## Cora\n\nLeft out: GEOATTN_DATA names no folder with graph/planetoid.\n")
        return
    size = 2_000 if options.quick else SIZE
    jobs = [Job(f"{name}-{graph}", size, regime) for regime in options.regimes for name in LAYERS]
    timings = {(job.case, job.regime): found for job, found in options.time(jobs).items()}
    own = fast_backends(options.device)
    text.append(f"## {GRAPHS[graph][0].upper()}{GRAPHS[graph][1:]}\n")
    for regime in options.regimes:
        rows = [
            [name, backend, *_cells(timings[f"{name}-{graph}", regime], backend)] for name in LAYERS for backend in own
        ]
        header = ["", "backend"]
        header += [f"{d}: {x}" for d in (FORWARD, BOTH) for x in ("PyG, ms", "ours, ms", "PyG ÷ ours")]
        text += [f"{REGIME_TEXT[regime]}:\n", table(header, rows)]
    memory = options.peak_memory(
        [Job(f"{name}-{graph}", size, variants=(variant,)) for name in LAYERS for variant in ("PyG", *own)]
    )
    above = {(job.case, job.variants[0]): found.above / 1e6 for job, found in memory.items()}
    rows = []
    for name in LAYERS:
        case = f"{name}-{graph}"
        cells = [f"{above[case, v]:.0f}" if (case, v) in above else "-" for v in ("PyG", *own)]
        rows.append([name, *cells])
    text += [
        "Peak memory above the inputs, forward + backward in a fresh process that also makes the pattern and its "
        "transpose, MB:\n",
        table(["", "PyG", *own], rows),
    ]
    for name in WITH_BARS if "cpu" in own else ():
        case = f"{name}-{graph}"
        ratios = timings[case, "retained"].ratios("PyG", "cpu", BOTH)
        bars.append(Bar(f"{case}, retained: PyG ÷ cpu, {BOTH}", ratios, at_least=1 if graph == "cora" else 4))
        if graph != "cora" and (case, "PyG") in above and (case, "cpu") in above:
            share = above[case, "cpu"] / above[case, "PyG"]
            bars.append(Bar(f"{case}: memory of cpu ÷ PyG", [share], at_most=0.1))


def _cells(timings: Timings, backend: str) -> list[str]:
    cells = []
    for direction in (FORWARD, BOTH):
        cells += [milliseconds(timings.seconds(name, direction)) for name in ("PyG", backend)]
        cells.append(spread(timings.ratios("PyG", backend, direction)))
    return cells


def _models(options: Options, text: list[str]) -> None:
    jobs = [Job(name, 2_000 if options.quick else MODEL_SIZE, regime) for regime in options.regimes for name in MODELS]
    timings = {(job.case, job.regime): found for job, found in options.time(jobs).items()}
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
