"""Attention over graphs of points and meshes against the peers: time, memory, growth.

python -m benchmarks.attention
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch_geometric.typing
from torch import Tensor
from torch_geometric.nn import GATv2Conv, TransformerConv

from benchmarks import graphs, peers
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
    ratio_table,
    save,
    table,
)
from benchmarks.ours import attend_on, fast_backends
from benchmarks.plot import draw
from geoattn import Neighbors

K, HEADS, WIDTH = 16, 4, 32
SIZE, MILLION = 100_000, 1_000_000
SIZES = (10_000, 31_623, 100_000, 316_228, 1_000_000)
PYG_LIMIT = 100_000  # points; the plain formulas take 4.9 GB here, ten times as much at a million
COPIED = 1 << 28  # bytes

TEXT = {
    "knn-random": f"k-NN graph, k = {K}, uniform points in a cube, in random order",
    "knn-zorder": f"k-NN graph, k = {K}, the same points along the Z-order curve",
    "mesh": "mesh graph, one ring and the vertex itself: bodies of the package, subdivided, in file order",
    "gatv2-knn": "GATv2 scores, k-NN graph in Z-order; projected features and `att` are given to both",
    "gatv2-mesh": "GATv2 scores, mesh graph in file order; projected features and `att` are given to both",
}
# PyG's time over ours: (forward, forward + backward); None: no bar.
BARS: dict[tuple[str, str], dict[str, tuple[float | None, float]]] = {
    ("knn-random", "retained"): {"cpu": (5, 4), "torch": (1.4, 1.2)},
    ("knn-random", "stock"): {"cpu": (None, 15), "torch": (None, 6)},
    ("knn-zorder", "retained"): {"cpu": (10, 7), "torch": (1.9, 1.8)},
    ("mesh", "retained"): {"cpu": (10, 7), "torch": (1.5, 1.5)},
    ("gatv2-knn", "retained"): {"cpu": (10, 6)},
    ("gatv2-mesh", "retained"): {"cpu": (10, 6)},
}
MEMORY_BARS = {"cpu": 260, "torch": 280}  # MB above inputs
MILLION_BARS = {"cpu": 3.0, "torch": 3.5}  # all that is held, over query, key and value
GATHER_BAR, GROWTH_BAR = 1.6, 1.1

# The first one is what all others are compared with; those up to the fourth run on one graph only.
DOT_PEERS = (
    "PyG",
    "PyG, shuffled edges",
    "PyG by rows, torch-scatter",
    "PyG by rows, no torch-scatter",
    "PyG TransformerConv",
    "torch-scatter formulas",
    "DGL",
    "padded k-NN",
    "FlexAttention",
)

Factories = dict[str, Callable[[], Variant]]


# What is timed


def dot_product(pattern: Neighbors, pos: Tensor | None, job: Job, heads: int = HEADS) -> Factories:
    """Every way to attend with dot products; padded, FlexAttention need the ``pos`` of a k-NN graph."""
    pattern = pattern.to(job.device)
    nodes = pattern.num_queries
    query, key, value = (torch.randn(nodes, heads, WIDTH, device=job.device).requires_grad_() for _ in range(3))
    grad = torch.randn_like(query)
    qkv = (query, key, value)

    def compared(run: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Variant:
        return Variant(lambda: run(*qkv), qkv, grad)

    def formulas() -> Variant:
        row, col = pattern.row, pattern.col
        return compared(lambda q, k, v: peers.pyg(q, k, v, row, col))

    def shuffled() -> Variant:
        order = torch.randperm(pattern.num_edges, device=job.device)
        row, col = pattern.row[order], pattern.col[order]
        return compared(lambda q, k, v: peers.pyg(q, k, v, row, col))

    def layer() -> Variant:
        conv = TransformerConv(heads * WIDTH, WIDTH, heads, root_weight=False)
        conv.lin_query, conv.lin_key, conv.lin_value = (peers.Given(x.flatten(1)) for x in qkv)
        edge_index = pattern.to_edge_index()
        return compared(lambda q, k, v: conv(q.flatten(1), edge_index).view(nodes, heads, WIDTH))

    def rows(torch_scatter: bool) -> Variant:
        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if torch_scatter:
                return peers.pyg_rows(q, k, v, pattern)
            with peers.without_torch_scatter():
                return peers.pyg_rows(q, k, v, pattern)

        return compared(run)

    def dgl() -> Variant:
        import dgl as library

        graph = library.graph((pattern.col, pattern.row), num_nodes=nodes)
        return compared(lambda q, k, v: peers.dgl(q, k, v, graph))

    def half(name: str) -> Variant:
        run = attend_on(name, pattern)
        low = tuple(x.detach().bfloat16().requires_grad_() for x in qkv)
        return Variant(lambda: run(*low), low, grad.bfloat16(), tolerance=5e-2)

    def copy() -> Variant:
        source = torch.zeros(COPIED // 4, device=job.device)
        target = torch.zeros_like(source)
        return Variant(lambda: target.copy_(source), same=False)

    found: Factories = {"PyG": formulas, "PyG, shuffled edges": shuffled, "PyG TransformerConv": layer}
    if torch_geometric.typing.WITH_TORCH_SCATTER:
        found["PyG by rows, torch-scatter"] = functools.partial(rows, True)
        found["torch-scatter formulas"] = lambda: compared(functools.partial(peers.torch_scatter_rows, pattern=pattern))
    found["PyG by rows, no torch-scatter"] = functools.partial(rows, False)
    if peers.dgl_error() is None:
        found["DGL"] = dgl
    if pos is not None:
        found["padded k-NN"] = lambda: compared(lambda q, k, v: peers.padded(q, k, v, pattern.col.view(nodes, -1)))
    if pos is not None and job.device == "cuda":
        found["FlexAttention"] = lambda: compared(peers.flex_knn(pos.to(job.device), pattern))
    for name in fast_backends(job.device):
        found[name] = lambda name=name: compared(attend_on(name, pattern))
        found[f"{name}, bfloat16"] = lambda name=name: half(name)
    for name in peers.GATHERS:
        if (gather := peers.gather(name, key, value, pattern)) is not None:
            found[name] = lambda gather=gather: Variant(gather(), same=False)
    found["copy"] = copy
    return found


def knn_case(points: Callable[[int], Tensor], job: Job, heads: int = HEADS) -> Factories:
    """Attention to the nearest points."""
    pos = points(job.size)
    return dot_product(Neighbors.knn(pos, K), pos, job, heads)


def gatv2(pattern: Neighbors, job: Job) -> Factories:
    """Additive scores against PyG's layer, whose projections are replaced by what they would give."""
    pattern = pattern.to(job.device)
    nodes, shape = pattern.num_queries, (HEADS, WIDTH)
    conv = GATv2Conv(HEADS * WIDTH, WIDTH, HEADS, add_self_loops=False, bias=False).to(job.device)
    source, target = (torch.randn(nodes, *shape, device=job.device).requires_grad_() for _ in range(2))
    conv.lin_l, conv.lin_r = peers.Given(source.flatten(1)), peers.Given(target.flatten(1))
    inputs, grad = (source, target, conv.att), torch.randn_like(source)

    def layer() -> Variant:
        edge_index, x = pattern.to_edge_index(), source.detach().flatten(1)
        return Variant(lambda: conv(x, edge_index).view(nodes, *shape), inputs, grad)

    def ours(name: str) -> Variant:
        run = attend_on(name, pattern, negative_slope=conv.negative_slope)
        return Variant(lambda: run(target, source, source, att=conv.att[0]), inputs, grad)

    return {"PyG GATv2Conv": layer, **{n: functools.partial(ours, n) for n in fast_backends(job.device)}}


def _knn_zorder(size: int) -> Neighbors:
    return Neighbors.knn(graphs.z_ordered_points(size), K)


CASES = {
    "knn-random": functools.partial(knn_case, graphs.random_points),
    "knn-zorder": functools.partial(knn_case, graphs.z_ordered_points),
    "knn-zorder-8": functools.partial(knn_case, graphs.z_ordered_points, heads=8),
    "mesh": lambda job: dot_product(graphs.body_meshes(job.size), None, job),
    "gatv2-knn": lambda job: gatv2(_knn_zorder(job.size), job),
    "gatv2-mesh": lambda job: gatv2(graphs.body_meshes(job.size), job),
}
SECTIONS = (*TEXT, "memory", "million", "scaling")


# What is written


@dataclass
class Findings:
    """What the sections hand to the summary and the plot."""

    bars: list[Bar]
    text: list[str]
    speedups: dict[str, dict[str, list[float]]]  # case: backend: forward, forward + backward
    growth: dict[str, dict[int, list[float]]]  # variant: size: seconds of every process


def report(options: Options) -> None:
    """Run the sections and write the tables."""
    found = Findings([], [], {}, {})
    for section in TEXT:
        if options.wants(section):
            _case(options, section, found)
    if options.wants("memory"):
        _memory(options, found)
    if options.wants("million"):
        _million(options, found)
    if options.wants("scaling"):
        _scaling(options, found)
    judged = not options.quick and options.device == "cpu"
    summary = ["## Bars\n\nSet for two CPU cores; ratios are medians over medians of one process.\n"]
    summary.append(bar_table(found.bars, judged) if options.device == "cpu" else "There are none for GPUs.\n")
    path = save(options, "attention", "Attention over neighbors", [*summary, *found.text, _notes()])
    if found.growth or found.speedups:
        draw(found.growth, found.speedups, path.with_suffix(".png"))


def _case(options: Options, section: str, found: Findings) -> None:
    size = 3_000 if options.quick else SIZE
    jobs = [Job(section, size, regime, variants=_chosen(section, regime, options)) for regime in options.regimes]
    found.text.append(f"## {TEXT[section][0].upper()}{TEXT[section][1:]}\n")
    for job, timings in options.time(jobs).items():
        found.text.append(f"{REGIME_TEXT[job.regime]}, about {job.size:,} vertices:\n")
        found.text.append(ratio_table(timings, leave_out=(*peers.GATHERS, "copy")))
        _judge(job, timings, found)
        if "copy" in timings:
            found.text.append(_floor(job, timings))


def _chosen(section: str, regime: str, options: Options) -> tuple[str, ...]:
    """The variants worth their time: all of them once, on the random order."""
    own = fast_backends(options.device)
    if section.startswith("gatv2"):
        return ("PyG GATv2Conv", *own)
    if regime == "stock":
        return ("PyG", *own)
    names = DOT_PEERS if section == "knn-random" else DOT_PEERS[:1] + DOT_PEERS[4:]
    half = [f"{name}, bfloat16" for name in own] if section == "knn-zorder" else []
    return (*names, *own, *half, *peers.GATHERS, "copy")


def _judge(job: Job, timings: Timings, found: Findings) -> None:
    """Add the bars of this case, also those of a variant that did not run."""
    base = "PyG GATv2Conv" if job.case.startswith("gatv2") else "PyG"
    where = f"{job.case}, {job.regime}"
    for name, bounds in BARS.get((job.case, job.regime), {}).items():
        for direction, bound in zip((FORWARD, BOTH), bounds, strict=True):
            if bound is not None:
                ratio = timings.ratios(base, name, direction)
                found.bars.append(Bar(f"{where}: {base} ÷ {name}, {direction}", ratio, at_least=bound))
    if job.regime == "retained" and job.case == "knn-zorder":
        for direction in (FORWARD, BOTH):
            ratio = timings.ratios("cpu", "cpu, bfloat16", direction)
            found.bars.append(Bar(f"{where}: cpu float32 ÷ bfloat16, {direction}", ratio, at_least=1.0))
    if job.regime == "retained" and job.case.startswith("knn"):
        best = _best_gather(timings)
        ratio = [ours / gather for ours, gather in zip(timings.seconds("cpu", FORWARD), best, strict=False)]
        found.bars.append(Bar(f"{where}: cpu ÷ best gather, forward", ratio, at_most=GATHER_BAR))
    if job.regime in ("retained", "device"):
        for name in (n for n in ("cpu", "torch", "triton") if n in timings):
            ratios = [statistics.median(timings.ratios(base, name, direction)) for direction in (FORWARD, BOTH)]
            found.speedups.setdefault(job.case, {})[name] = ratios


def _best_gather(timings: Timings) -> list[float]:
    per_process = zip(*(timings.seconds(n, FORWARD) for n in peers.GATHERS if n in timings), strict=True)
    return [min(times) for times in per_process]


def _floor(job: Job, timings: Timings) -> str:
    rows = [[n, milliseconds(timings.seconds(n, FORWARD))] for n in peers.GATHERS if n in timings]
    bandwidth = 2 * COPIED / statistics.median(timings.seconds("copy", FORWARD))
    return (
        "Reading the same key and value rows once for every edge:\n\n"
        + table(["", "ms"], rows)
        + f"\nThe best: {milliseconds(_best_gather(timings))} ms. A copy of {COPIED >> 20} MiB moves "
        f"{bandwidth / 1e9:.0f} GB/s.{_edge_traffic(job, timings, bandwidth)}\n"
    )


def _edge_traffic(job: Job, timings: Timings, bandwidth: float) -> str:
    if not job.case.startswith("knn"):
        return ""
    row = HEADS * WIDTH * 4
    index, ends = job.size * K * 8, 2 * job.size * row
    once, every = ends + 2 * job.size * row + index, ends + 2 * job.size * K * row + index
    fastest = min((timings.seconds(n, FORWARD) for n in ("cpu", "triton", "torch") if n in timings), default=[])
    took = f"; ours takes {milliseconds(fastest)} ms" if fastest else ""
    return (
        f" At that rate the forward pass needs {once / bandwidth * 1000:.3g} ms if every row comes from memory once "
        f"({once / 1e6:.0f} MB), {every / bandwidth * 1000:.3g} ms if it comes once for every edge "
        f"({every / 1e6:.0f} MB){took}."
    )


def _memory(options: Options, found: Findings) -> None:
    size = 3_000 if options.quick else SIZE
    names = ["PyG", "torch", "cpu", "triton"]
    if not options.quick:
        names[1:1] = ["PyG TransformerConv", "torch-scatter formulas", "padded k-NN"]
    can = {*DOT_PEERS, *fast_backends(options.device)}
    if not torch_geometric.typing.WITH_TORCH_SCATTER:
        can.discard("torch-scatter formulas")
    jobs = [Job("knn-random", size, variants=(name,)) for name in names if name in can]
    measured = {job.variants[0]: memory.above / 1e6 for job, memory in options.peak_memory(jobs).items()}
    for name, bound in MEMORY_BARS.items():
        label = f"memory, knn-random, stock: {name}, MB above inputs, {BOTH}"
        found.bars.append(Bar(label, [measured[name]] if name in measured else [], at_most=bound))
    rows = [[name, f"{megabytes:.0f}"] for name, megabytes in measured.items()]
    found.text += [
        "## Peak memory above the inputs\n",
        f"{TEXT['knn-random']}, {size:,} points, stock allocator, one forward and backward pass in a process of its "
        "own.\nThe gradient of the output, the pattern and its transpose are inputs; the gradients returned are not.\n",
        table(["", "MB"], rows),
    ]


def _million(options: Options, found: Findings) -> None:
    size, heads = 5_000 if options.quick else MILLION, 8
    nodes = 3 * size * heads * WIDTH * 4
    jobs = [Job("knn-zorder-8", size, variants=(name,)) for name in fast_backends(options.device)]
    measured = {job.variants[0]: memory for job, memory in options.peak_memory(jobs).items()}
    share = {name: (memory.inputs + memory.above) / nodes for name, memory in measured.items()}
    for name, bound in MILLION_BARS.items():
        label = f"memory, {size:,} points, H = {heads}: {name}, everything held ÷ (query, key, value)"
        found.bars.append(Bar(label, [share[name]] if name in share else [], at_most=bound))
    rows = [
        [name, f"{memory.inputs / 1e9:.2f}", f"{memory.above / 1e9:.2f}", f"{share[name]:.2f}"]
        for name, memory in measured.items()
    ]
    found.text += [
        f"## A call on {size:,} points, H = {heads}, D = {WIDTH}, k = {K}\n",
        f"Query, key and value take {nodes / 1e9:.2f} GB. Inputs are these, the gradient of the output, the "
        "pattern and its transpose; above them are the output, the three gradients and whatever the call needs.\n",
        table(["", "inputs, GB", "above them at the peak, GB", "both ÷ (query, key, value)"], rows),
    ]


def _scaling(options: Options, found: Findings) -> None:
    sizes = (1_000, 3_000) if options.quick else SIZES
    own = fast_backends(options.device)
    regime = options.regimes[0]
    jobs = [Job("knn-zorder", n, regime, variants=(*(["PyG"] if n <= PYG_LIMIT else []), *own)) for n in sizes]
    pooled = {job.size: timings for job, timings in options.time(jobs).items()}
    names = ["PyG", *own]
    rows = []
    for size, timings in pooled.items():
        cells = [f"{size:,}"]
        for name in names:
            for direction in (FORWARD, BOTH):
                seconds = timings.seconds(name, direction)
                cells.append(f"{statistics.median(seconds) / (size * K) * 1e9:.1f}" if seconds else "-")
                if direction == BOTH and seconds:
                    found.growth.setdefault(name, {})[size] = seconds
        rows.append(cells)
    for name in ("cpu", "torch"):
        for direction in (FORWARD, BOTH):
            label = f"growth, Z-order, {sizes[0]:,} to {sizes[-1]:,} points: exponent of {name}, {direction}"
            found.bars.append(Bar(label, _exponents(pooled, name, direction), at_most=GROWTH_BAR))
    found.text += [
        f"## Time for an edge, ns, {TEXT['knn-zorder']}\n",
        table(["points", *(f"{name}, {d}" for name in names for d in (FORWARD, BOTH))], rows),
    ]


def _exponents(pooled: Mapping[int, Timings], name: str, direction: str) -> list[float]:
    """Slope of log time over log size, least squares, for every process."""
    sizes = [size for size, timings in pooled.items() if timings.seconds(name, direction)]
    if len(sizes) < 2:
        return []
    per_process = zip(*(pooled[size].seconds(name, direction) for size in sizes), strict=False)
    x = [math.log(size) for size in sizes]
    return [statistics.linear_regression(x, [math.log(t) for t in times]).slope for times in per_process]


def _notes() -> str:
    error = peers.dgl_error()
    lines = [
        "## How to read this\n",
        f"- H = {HEADS}, D = {WIDTH}, float32 unless said otherwise. Every variant was checked against the first one, "
        "outputs and gradients, before it was timed.",
        "- Forward is without gradients (`no_grad`); forward + backward is one forward pass with them and "
        "`torch.autograd.grad`.",
        "- PyG: `index_select`, product and sum, `utils.softmax`, `utils.scatter`; its edges come grouped by query, as "
        "PyG's `knn_graph` gives them, which is faster than shuffled. By rows: the same with `softmax(ptr=...)` and "
        "`utils.segment`. TransformerConv and GATv2Conv: the layers themselves, with projected features put in "
        "place of their linear maps.",
        "- Ranges are from the lowest to the highest process.",
        f"- DGL: {'in the tables' if error is None else f'cannot be imported here ({error})'}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(CASES, report, SECTIONS)
