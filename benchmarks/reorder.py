"""When it pays to number the elements anew (`geoattn.Neighbors.reorder`): attention in different orders of memory.

    python -m benchmarks.reorder

Attention of 4 heads of 32 channels over the 16 nearest neighbors of random points, and over the vertices of meshes in
the order of a file. An order pays after as many layers as it takes to save the time of renumbering: of making the order
and the new pattern, and of moving 128 channels into the new order and back. The transpose of the pattern is made
beforehand; whoever renumbers needs one of the new pattern in place of one of the old.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from functools import partial

import torch
import trimesh
from torch import Tensor

from benchmarks.graphs import random_points
from benchmarks.harness import BOTH, FORWARD, Job, Options, Timings, Variant, main, milliseconds, save, spread, table
from geoattn import Neighbors, attend
from geoattn.geometry.body import BodyModel
from geoattn.geometry.curves import hilbert
from geoattn.ops.backends.choose import backend

HEADS, CHANNELS = 4, 32
GIVEN, SHUFFLED = "as given", "shuffled"
RENUMBERING = {"Z-order": "renumber by Z-order", "Hilbert": "renumber by Hilbert", "graph": "renumber by graph"}


def cloud(size: int) -> tuple[Tensor, Neighbors]:
    """Random points, in random order."""
    pos = random_points(size)
    return pos, Neighbors.knn(pos, 16)


def mesh(size: int) -> tuple[Tensor, Neighbors]:
    """Vertices of a body, at most ``size`` but not fewer than the template has, each with its ring and itself.

    The order is an artist's and a modeller's: the vertices of the template, and then what each round of subdivision
    added to them.
    """
    body = BodyModel.load()
    pos, face = body.template.numpy(), body.face.T.numpy()
    while len(pos) * 4 <= size:
        pos, face = trimesh.remesh.subdivide(pos, face)
    return torch.from_numpy(pos), Neighbors.from_mesh(torch.from_numpy(face).T.long(), num_nodes=len(pos))


def case(build: Callable[[int], tuple[Tensor, Neighbors]], name: str, job: Job) -> Mapping[str, Callable[[], Variant]]:
    """Attention in every order, and renumbering itself."""
    pos, pattern = build(job.size)
    pos, pattern = pos.to(job.device), pattern.to(job.device)
    count = pos.size(0)

    def permuted(order: Tensor) -> tuple[Neighbors, Tensor]:
        return pattern.permute(order), order

    orders: dict[str, Callable[[], tuple[Neighbors, Tensor]]] = {
        GIVEN: lambda: permuted(torch.arange(count, device=job.device)),
        SHUFFLED: lambda: permuted(torch.randperm(count, device=job.device)),
        "Z-order": lambda: pattern.reorder(pos),
        "Hilbert": lambda: permuted(hilbert(pos).argsort(stable=True)),
        "graph": pattern.reorder,
    }

    def attention(order: str) -> Variant:
        moved, _ = orders[order]()
        _ = moved.row, moved.transpose
        inputs = torch.randn(3, count, HEADS, CHANNELS, device=job.device).unbind()
        query, key, value = (x.requires_grad_() for x in inputs)

        def forward() -> Tensor:
            with backend(name):
                return attend(query, key, value, moved)

        return Variant(forward, (query, key, value), torch.randn(count, HEADS, CHANNELS, device=job.device), same=False)

    def renumbering(order: str) -> Variant:
        x = torch.randn(count, HEADS * CHANNELS, device=job.device)

        def forward() -> Tensor:
            _, made = orders[order]()
            return torch.empty_like(x).index_copy(0, made, x[made])

        return Variant(forward, same=False)

    return {
        **{order: partial(attention, order) for order in orders},
        **{title: partial(renumbering, order) for order, title in RENUMBERING.items()},
    }


GRAPHS = {"k-NN 16": cloud, "mesh": mesh}
BACKENDS = {"cpu": ("cpu", "reference"), "cuda": ("triton", "reference")}
CASES = {
    f"{graph}, {name}": partial(case, build, name)
    for graph, build in GRAPHS.items()
    for name in ("cpu", "triton", "reference")
}


def rows(title: list[str], timings: Timings) -> list[list[str]]:
    """Of the table: one per order."""
    lines = []
    for order in (GIVEN, SHUFFLED, *RENUMBERING):
        cost = timings.seconds(RENUMBERING.get(order, ""), FORWARD)
        line = [*title, order]
        for direction in (FORWARD, BOTH):
            line.append(milliseconds(timings.seconds(order, direction)))
            line.append(spread(timings.ratios(GIVEN, order, direction)) if order != GIVEN else "")
        line.append(milliseconds(cost) if cost else "")
        line += [pays_after(timings, order, direction) if cost else "" for direction in (FORWARD, BOTH)]
        lines.append(line)
    return lines


def pays_after(timings: Timings, order: str, direction: str) -> str:
    """How many layers it takes to make up for the renumbering."""
    given, moved = timings.seconds(GIVEN, direction), timings.seconds(order, direction)
    if len(given) != len(moved):
        return "-"  # some did not run
    saved = statistics.median(a - b for a, b in zip(given, moved, strict=True))
    cost = statistics.median(timings.seconds(RENUMBERING[order], FORWARD))
    return str(math.ceil(cost / saved)) if saved > 0 else "never"


def report(options: Options) -> None:
    """Measure and write the table."""
    sizes = (1_000,) if options.quick else (1_000, 15_000, 100_000)
    header = ["graph", "N (at most)", "backend", "order", FORWARD, "gain", BOTH, "gain", "renumbering"]
    header += ["pays after (forward)", "pays after (both)"]
    sections = []
    for regime in options.regimes:
        jobs = [
            Job(f"{graph}, {name}", size, regime)
            for graph in GRAPHS
            if options.wants(graph)
            for size in sizes
            for name in BACKENDS[options.device]
        ]
        lines = []
        for job, timings in options.time(jobs).items():
            if timings.processes:
                graph, name = job.case.split(", ")
                lines += rows([graph, f"{job.size:,}", name], timings)
        sections.append(f"\n## Allocator: {regime}\n\nMilliseconds; gains over the order as given.\n")
        sections.append(table(header, lines))
    print("\n".join(sections))
    save(options, "reorder", "When renumbering pays", sections)


if __name__ == "__main__":
    main(CASES, report, tuple(GRAPHS))
