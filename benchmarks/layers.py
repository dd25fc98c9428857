"""Vector attention against PyG's, and a layer between matrix products: threads that wait for each other.

python -m benchmarks.layers
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch_geometric.nn import MLP, PointTransformerConv

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
    spread,
    table,
)
from benchmarks.ours import attend_on, fast_backends, vector_attend_on
from geoattn import Neighbors

K, HEADS, WIDTH, CHANNELS = 16, 4, 32, 64
# Of layers with ReLU: a unit that is zero but for rounding has its gradient or none, and both are right.
KINKS = 2e-2
SIZE = 100_000
TEXT = {
    "vector": f"Vector attention, C = {CHANNELS}, a two-layer network on positions",
    "vector-scores": f"Vector attention, C = {CHANNELS}, two-layer networks on positions and on scores",
    "between-products": f"Linear, attention, Linear: {HEADS * WIDTH} channels, H = {HEADS}",
}
VECTOR_BARS = {"cpu": (1.8, 1.3), "torch": (1.5, 1.2)}
ALONE = ", attention alone"

Factories = dict[str, Callable[[], Variant]]


def vector(job: Job, score_network: bool) -> Factories:
    """Point Transformer's layer, and the same with `geoattn.ops.vector_attend` and its parameters."""
    pos = graphs.z_ordered_points(job.size).to(job.device)
    pattern = Neighbors.knn(pos.cpu(), K).to(job.device)
    conv = PointTransformerConv(
        CHANNELS,
        CHANNELS,
        pos_nn=MLP([3, CHANNELS, CHANNELS], norm=None),
        attn_nn=MLP([CHANNELS, CHANNELS, CHANNELS], norm=None) if score_network else None,
        add_self_loops=False,
    ).to(job.device)
    x, grad = _features(job, CHANNELS)
    inputs = (x, *conv.parameters())

    def ours(name: str) -> Variant:
        attend = vector_attend_on(name, pattern)

        def forward() -> Tensor:
            networks = {"pos_nn": conv.pos_nn, "attn_nn": conv.attn_nn}
            return attend(conv.lin_dst(x), conv.lin_src(x), conv.lin(x), pos, **networks)

        return Variant(forward, inputs, grad, tolerance=KINKS)

    def peer() -> Variant:
        edge_index = pattern.to_edge_index()
        return Variant(lambda: conv(x, pos, edge_index), inputs, grad)

    return {"PyG PointTransformerConv": peer, **{n: lambda n=n: ours(n) for n in fast_backends(job.device)}}


def between_products(job: Job) -> Factories:
    """A layer between two matrix products, the attention alone and the products alone.

    Two pools of threads that spin while they wait for work would make the whole slower than its parts.
    """
    pattern = _pattern(job)
    channels = HEADS * WIDTH
    into, out_of = nn.Linear(channels, 3 * channels).to(job.device), nn.Linear(channels, channels).to(job.device)
    x, grad = _features(job, channels)
    parameters = (x, *into.parameters(), *out_of.parameters())
    qkv = tuple(torch.randn(x.size(0), HEADS, WIDTH, device=job.device).requires_grad_() for _ in range(3))

    def inside(attend: Callable[..., Tensor]) -> Variant:
        def forward() -> Tensor:
            query, key, value = into(x).view(-1, 3, HEADS, WIDTH).unbind(1)
            return out_of(attend(query, key, value).flatten(1))

        return Variant(forward, parameters, grad)

    def alone(attend: Callable[..., Tensor]) -> Variant:
        return Variant(lambda: attend(*qkv), qkv, grad.view(-1, HEADS, WIDTH), same=False)

    def products() -> Variant:
        def forward() -> Tensor:
            query, key, value = into(x).view(-1, 3, HEADS, WIDTH).unbind(1)
            return out_of((query + key + value).flatten(1))

        return Variant(forward, parameters, grad, same=False)

    def pyg() -> Callable[..., Tensor]:
        row, col = pattern.row, pattern.col
        return lambda q, k, v: peers.pyg(q, k, v, row, col)

    attends = {"PyG": pyg, **{n: lambda n=n: attend_on(n, pattern) for n in fast_backends(job.device)}}
    found: Factories = {name: lambda make=make: inside(make()) for name, make in attends.items()}
    found["matrix products alone"] = products
    found |= {f"{name}{ALONE}": lambda make=make: alone(make()) for name, make in attends.items()}
    return found


def _pattern(job: Job) -> Neighbors:
    return Neighbors.knn(graphs.z_ordered_points(job.size), K).to(job.device)


def _features(job: Job, channels: int) -> tuple[Tensor, Tensor]:
    """Inputs that want a gradient, and a gradient of the output."""
    x = torch.randn(job.size, channels, device=job.device)
    return x.requires_grad_(), torch.randn_like(x)


CASES = {
    "vector": lambda job: vector(job, score_network=False),
    "vector-scores": lambda job: vector(job, score_network=True),
    "between-products": between_products,
}


def report(options: Options) -> None:
    """Run the sections and write the tables."""
    bars: list[Bar] = []
    text: list[str] = []
    for section in (name for name in TEXT if options.wants(name)):
        regimes = options.regimes if section == "vector" else options.regimes[:1]  # the others would take long
        jobs = [Job(section, 2_000 if options.quick else SIZE, regime) for regime in regimes]
        text.append(f"## {TEXT[section]}\n")
        for job, timings in options.time(jobs).items():
            text += [f"{REGIME_TEXT[job.regime]}, {job.size:,} points:\n", ratio_table(timings)]
            if section.startswith("vector") and job.regime == "retained":
                bars += _vector_bars(section, timings)
            if section == "between-products" and timings.processes:
                text.append(_inside(timings, fast_backends(options.device)))
    summary = bar_table(bars, not options.quick) if options.device == "cpu" else "There are none for GPUs.\n"
    notes = (
        f"k-NN graph, k = {K}, uniform points in a cube along the Z-order curve, float32. Ours has the parameters of "
        "PyG's layer; outputs and the gradients of the features and of all parameters were compared before timing.\n"
    )
    save(options, "layers", "Layers", [notes, "## Bars\n", summary, *text])


def _vector_bars(section: str, timings: Timings) -> list[Bar]:
    return [
        Bar(
            f"{section}, retained: PyG ÷ {name}, {direction}",
            timings.ratios("PyG PointTransformerConv", name, direction),
            at_least=bound,
        )
        for name, bounds in VECTOR_BARS.items()
        for direction, bound in zip((FORWARD, BOTH), bounds, strict=True)
    ]


def _inside(timings: Timings, own: list[str]) -> str:
    """What attention costs inside the layer, over what it costs alone."""
    rows = []
    for name in ("PyG", *own):
        cells = [name]
        for direction in (FORWARD, BOTH):
            alone = timings.seconds(f"{name}{ALONE}", direction)
            products = timings.seconds("matrix products alone", direction)
            whole = timings.seconds(name, direction)
            cells += [
                milliseconds(alone),
                spread([w / (a + p) for w, a, p in zip(whole, alone, products, strict=True)]),
            ]
        rows.append(cells)
    header = ["", *(f"{d}: {x}" for d in (FORWARD, BOTH) for x in ("attention alone, ms", "layer ÷ its parts"))]
    return f"The layer against the sum of its parts, timed alone:\n\n{table(header, rows)}"


if __name__ == "__main__":
    main(CASES, report, tuple(TEXT))
