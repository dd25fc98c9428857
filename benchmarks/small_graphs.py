"""PyG's layers against ours on small graphs, such as molecules, where calling costs more than computing.

python -m benchmarks.small_graphs
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch_geometric.nn
from torch import Tensor

import geoattn
from benchmarks.graph_layers import make
from benchmarks.harness import BOTH, FORWARD, Job, Options, Variant, main, save, spread, table

HEADS, WIDTH, EDGE_WIDTH = 4, 16, 16
MOLECULES, ATOMS = 32, 20
CALLS = 20  # in a row: one takes too short to be timed
LAYERS = ("GATConv", "GATv2Conv", "TransformerConv", "SuperGATConv", "GravNetConv")
WITH_FEATURES = LAYERS[:3]
GRAPHS = {
    "10": "10 nodes, 20 edges",
    "20": "20 nodes, 40 edges",
    "200": "200 nodes, 800 edges",
    "molecules": f"{MOLECULES} molecules, {MOLECULES * ATOMS} nodes, {2 * MOLECULES * ATOMS:,} edges",
}
EVERY = {"kept": "the same `edge_index` in every call", "fresh": "a new `edge_index` in every call"}
OURS, WITHOUT = "geoattn", "geoattn, no compiled kernels"


@dataclass(frozen=True)
class Calls(Variant):
    """The work several times over."""

    def run(self, direction: str) -> list[Tensor]:
        """The output, or the gradients, of the last time."""
        for _ in range(CALLS - 1):
            super().run(direction)
        return super().run(direction)


def graph(kind: str) -> tuple[Tensor, int]:
    """An ``edge_index`` and the number of nodes."""
    if kind == "molecules":
        parts = [torch.randint(0, ATOMS, (2, 2 * ATOMS)) + ATOMS * i for i in range(MOLECULES)]
        return torch.cat(parts, 1), MOLECULES * ATOMS
    nodes = int(kind)
    return torch.randint(0, nodes, (2, nodes * (2 if nodes < 100 else 4))), nodes


def layer(job: Job, name: str, kind: str, every: str, features: bool) -> dict[str, Callable[[], Variant]]:
    """One layer on one graph; PyG's, ours, and ours where nothing was compiled."""
    edge_index, nodes = graph(kind)
    if features:
        theirs = getattr(torch_geometric.nn, name)(HEADS * WIDTH, WIDTH, HEADS, edge_dim=EDGE_WIDTH)
        ours = copy.deepcopy(theirs)
        assert geoattn.accelerate(ours).changed
    else:
        theirs, ours = make(name, HEADS * WIDTH, HEADS, WIDTH)
        ours.load_state_dict(theirs.state_dict())
    theirs.eval(), ours.eval()  # without dropout, and SuperGAT without its sampled pairs
    x = torch.randn(nodes, HEADS * WIDTH)
    more = (torch.randn(edge_index.size(1), EDGE_WIDTH),) if features else ()
    grad = torch.randn(nodes, HEADS * WIDTH)

    def variant(conv: torch.nn.Module, backend: str | None = None) -> Variant:
        def call() -> Tensor:
            if name == "GravNetConv":  # finds its own graph
                return conv(x)
            return conv(x, edge_index if every == "kept" else edge_index.clone(), *more)

        def forward() -> Tensor:
            if backend is None:
                return call()
            with geoattn.backend(backend):
                return call()

        return Calls(forward, tuple(conv.parameters()), grad)

    return {
        "PyG": lambda: variant(theirs),
        OURS: lambda: variant(ours),
        WITHOUT: lambda: variant(ours, "torch"),
    }


def _cases() -> dict[str, Callable]:
    found = {}
    for kind in GRAPHS:
        for name in LAYERS:
            for every in EVERY if name != "GravNetConv" else ("kept",):
                for features in (False, True) if name in WITH_FEATURES else (False,):
                    case = f"{name}-{kind}-{every}{'-features' if features else ''}"
                    found[case] = partial(layer, name=name, kind=kind, every=every, features=features)
    return found


CASES = _cases()


def report(options: Options) -> None:
    """Run the sections and write the tables."""
    text = []
    for kind, title in GRAPHS.items():
        if not options.wants(kind):
            continue
        jobs = [Job(case, 0, options.regimes[-1]) for case in CASES if case.split("-")[1] == kind]
        rows = []
        for case, times in ((job.case, times) for job, times in options.time(jobs).items()):
            name, _, every, *features = case.split("-")
            cells = [f"{name}, edge features" if features else name, "-" if name == "GravNetConv" else every]
            for direction in (FORWARD, BOTH):
                cells += [_microseconds(times.seconds(variant, direction)) for variant in ("PyG", OURS)]
                cells += [spread(times.ratios("PyG", variant, direction)) for variant in (OURS, WITHOUT)]
            rows.append(cells)
        columns = ("PyG, us", "geoattn, us", "PyG ÷ geoattn", "PyG ÷ without compiled kernels")
        header = ["", "`edge_index`", *(f"{d}: {x}" for d in (FORWARD, BOTH) for x in columns)]
        text += [f"## {title[0].upper()}{title[1:]}\n", table(header, rows)]
    notes = (
        f"{HEADS} heads of {WIDTH} channels on {HEADS * WIDTH} features, float32, gradients of all parameters; edges "
        f"have {EDGE_WIDTH} features or none. Fresh: {EVERY['fresh']}, which is sorted, and transposed for the "
        f"backward pass; kept: {EVERY['kept']}. Evaluation mode. Every time is that of a call, of {CALLS} in a row. "
        "Without compiled kernels: `geoattn.backend('torch')`, where calls that it would slow down run PyG's own code. "
        "PyG's GravNetConv needs pyg-lib, which is not on PyPI: PyG's messages over the neighbors that our search "
        "finds stand for it. Outputs and gradients were compared before timing.\n"
    )
    save(options, "small_graphs", "Small graphs", [notes, *text])


def _microseconds(seconds: list[float]) -> str:
    return f"{sorted(seconds)[len(seconds) // 2] / CALLS * 1e6:.0f}" if seconds else "-"


if __name__ == "__main__":
    main(CASES, report, tuple(GRAPHS))
