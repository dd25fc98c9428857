"""When the order of elements pays: attention in different orders of memory, and what it takes to make them.

    python -m benchmarks.reorder

Attention of 4 heads of 32 channels over the 16 nearest neighbors of random points, and over the vertices of meshes in
the order of a file. On a CPU, rows of a pattern in a poor order are visited in clusters (`geoattn.Neighbors.visits`,
made once per pattern), which leaves the elements where they are; `geoattn.Neighbors.reorder` numbers them anew. An
order pays after as many layers as it takes to save the time of making it: of the visits; or of the new numbers and the
new pattern, and of moving 128 channels into the new order and back. The transpose of the pattern is made beforehand.
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
from benchmarks.harness import (
    BOTH,
    FORWARD,
    REGIME_TEXT,
    Job,
    Options,
    Timings,
    Variant,
    main,
    milliseconds,
    save,
    spread,
    table,
)
from geoattn import Neighbors, attend
from geoattn.geometry.body import BodyModel
from geoattn.geometry.curves import hilbert
from geoattn.ops.backends.choose import backend

HEADS, CHANNELS = 4, 32
GIVEN, VISITED, SHUFFLED = "as given, rows in turn", "as given, rows in clusters", "shuffled, rows in clusters"
RENUMBERED = BY_Z, BY_HILBERT, BY_GRAPH = "along the Z-order curve", "along the Hilbert curve", "by graph"


def making(order: str) -> str:
    """The variant that makes an order."""
    return f"making: {order}"


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
        VISITED: lambda: permuted(torch.arange(count, device=job.device)),
        SHUFFLED: lambda: permuted(torch.randperm(count, device=job.device)),
        BY_Z: lambda: pattern.reorder(pos),
        BY_HILBERT: lambda: permuted(hilbert(pos).argsort(stable=True)),
        BY_GRAPH: pattern.reorder,
    }

    def attention(order: str) -> Variant:
        moved, _ = orders[order]()
        _ = moved.row, moved.transpose
        if order == GIVEN:
            moved._visits = {False: None, True: None}
        inputs = torch.randn(3, count, HEADS, CHANNELS, device=job.device).unbind()
        query, key, value = (x.requires_grad_() for x in inputs)

        def forward() -> Tensor:
            with backend(name):
                return attend(query, key, value, moved)

        return Variant(forward, (query, key, value), torch.randn(count, HEADS, CHANNELS, device=job.device), same=False)

    def visiting() -> Variant:
        columns = pattern.transpose

        def forward() -> Tensor:
            new = Neighbors(pattern.rowptr, pattern.col, pattern.num_keys, check=False)
            new._transpose = columns
            new.visits()
            new.visits(transposed=True)
            return new.rowptr

        return Variant(forward, same=False)

    def renumbering(order: str) -> Variant:
        x = torch.randn(count, HEADS * CHANNELS, device=job.device)

        def forward() -> Tensor:
            _, made = orders[order]()
            return torch.empty_like(x).index_copy(0, made, x[made])

        return Variant(forward, same=False)

    return {
        **{order: partial(attention, order) for order in orders},
        making(VISITED): visiting,
        **{making(order): partial(renumbering, order) for order in RENUMBERED},
    }


GRAPHS = {"k-NN 16": cloud, "mesh": mesh}
BACKENDS = {"cpu": "cpu", "cuda": "triton"}
CASES = {
    f"{graph}, {name}": partial(case, build, name) for graph, build in GRAPHS.items() for name in BACKENDS.values()
}


def rows(title: list[str], timings: Timings) -> list[list[str]]:
    """Of the table: one per order."""
    lines = []
    for order in (GIVEN, VISITED, SHUFFLED, *RENUMBERED):
        cost = timings.seconds(making(order), FORWARD)
        line = [*title, order]
        for direction in (FORWARD, BOTH):
            line.append(milliseconds(timings.seconds(order, direction)))
            line.append(spread(timings.ratios(GIVEN, order, direction)) if order != GIVEN else "")
        line.append(milliseconds(cost) if cost else "")
        line += [pays_after(timings, order, direction) if cost else "" for direction in (FORWARD, BOTH)]
        lines.append(line)
    return lines


def pays_after(timings: Timings, order: str, direction: str) -> str:
    """How many layers it takes to make up for making an order."""
    given, moved = timings.seconds(GIVEN, direction), timings.seconds(order, direction)
    if len(given) != len(moved):
        return "-"  # some did not run
    saved = statistics.median(a - b for a, b in zip(given, moved, strict=True))
    cost = statistics.median(timings.seconds(making(order), FORWARD))
    return str(math.ceil(cost / saved)) if saved > 0 else "never"


def report(options: Options) -> None:
    """Measure and write the table."""
    sizes = (1_000,) if options.quick else (20_000, 100_000)
    name, regime = BACKENDS[options.device], options.regimes[0]
    header = ["graph", "N (at most)", "order", FORWARD, "gain", BOTH, "gain", "making it"]
    header += ["pays after (forward)", "pays after (both)"]
    jobs = [Job(f"{graph}, {name}", size, regime) for graph in GRAPHS if options.wants(graph) for size in sizes]
    lines = []
    for job, timings in options.time(jobs).items():
        if timings.processes:
            lines += rows([job.case.removesuffix(f", {name}"), f"{job.size:,}"], timings)
    intro = f"Backend {name}, {REGIME_TEXT[regime].lower()}. Milliseconds; gains over rows in turn; layers.\n"
    save(options, "reorder", "When the order of elements pays", [intro, table(header, lines)])


if __name__ == "__main__":
    main(CASES, report, tuple(GRAPHS))
