"""Attention in runs against torch's fused attention on dense and on padded runs: time, and memory of one long run.

python -m benchmarks.windows
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch_geometric.data import Batch, Data

from benchmarks import graphs
from benchmarks.harness import BOTH, REGIME_TEXT, Bar, Job, Options, Variant, bar_table, main, ratio_table, save, table
from geoattn import Neighbors, Windows, attend
from geoattn.data.transforms import CHANNELS
from geoattn.models.segmentation import SurfaceTransformer, SurfaceTransformerConfig
from geoattn.nn import RelativePositionTable

HEADS, WIDTH = 4, 16
SIZE = 98_304
RUN = 30_000
SHORTEST, LONGEST = 16, 1_024
GRID = 64
TEXT = {
    "equal-128": "Equal runs of 128",
    "equal-1024": "Equal runs of 1,024",
    "borrowing": "Runs of 1,024 in samples of any size, of which the last borrows keys (Point Transformer V3)",
    "ragged": f"Runs of {SHORTEST} to {LONGEST:,}",
    "short": "Runs of 1 to 20",
    "table": "Equal runs of 128 with the bias of Point Transformer V3's table",
    "one-run": f"One run of {RUN:,}: memory",
    "surface": "SurfaceTransformer, a training step",
}
EQUAL_BAR = 1.1  # time over that of dense fused attention
RUN_BAR = 400  # MB above inputs

Factories = dict[str, Callable[[], Variant]]


def inputs(job: Job, size: int) -> tuple[list[Tensor], Tensor]:
    """Queries, keys and values, and a gradient of the output."""
    make = partial(torch.randn, size, HEADS, WIDTH, device=job.device)
    return [make().requires_grad_() for _ in range(3)], make()


def variant(tensors: list[Tensor], grad: Tensor, pattern: Windows | Neighbors, logsumexp: bool = False) -> Variant:
    """`attend`; with the log-sum-exp wanting a gradient, as the engine runs it."""

    def forward() -> Tensor:
        if not logsumexp:
            return attend(*tensors, pattern)
        out, lse = attend(*tensors, pattern, return_lse=True)
        return out + 0 * lse.unsqueeze(-1)

    return Variant(forward, tuple(tensors), grad)


def padded(tensors: list[Tensor], grad: Tensor, query_ptr: Tensor, key_run: Tensor) -> Variant:
    """Torch's fused attention over runs that are padded to the longest."""
    device, runs = query_ptr.device, query_ptr.numel() - 1

    def places(begin: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        """Of the elements of runs, and which are there, ``[B, L]``."""
        place = begin.unsqueeze(1) + torch.arange(int((end - begin).max()), device=device)
        there = place < end.unsqueeze(1)
        return place.where(there, 0), there

    queries, is_query = places(query_ptr[:-1], query_ptr[1:])
    keys, is_key = places(*key_run.unbind(1))
    slot = is_query.flatten().nonzero().squeeze(1)
    mask = is_key.view(runs, 1, 1, -1)

    def forward() -> Tensor:
        query, key, value = (
            x.index_select(0, place.flatten()).view(*place.shape, HEADS, WIDTH).transpose(1, 2)
            for x, place in zip(tensors, (queries, keys, keys), strict=True)
        )
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return out.transpose(1, 2).flatten(0, 1).index_select(0, slot)

    return Variant(forward, tuple(tensors), grad)


def dense(tensors: list[Tensor], grad: Tensor, length: int, bias: Callable[[], Tensor] | None = None) -> Variant:
    """Torch's fused attention over equal runs where they lie."""

    def forward() -> Tensor:
        heads_first = (x.view(-1, length, HEADS, WIDTH).transpose(1, 2) for x in tensors)
        mask = None if bias is None else bias()
        return F.scaled_dot_product_attention(*heads_first, attn_mask=mask).transpose(1, 2).reshape(-1, HEADS, WIDTH)

    return Variant(forward, tuple(tensors), grad)


def equal(job: Job, length: int) -> Factories:
    """Runs of one length."""
    size = job.size - job.size % length
    tensors, grad = inputs(job, size)
    pattern = Windows.along(length, counts=[size]).to(job.device)
    return {
        "dense": lambda: dense(tensors, grad, length),
        "ours": lambda: variant(tensors, grad, pattern),
        "ours with log-sum-exp": lambda: variant(tensors, grad, pattern, logsumexp=True),
    }


def ragged(job: Job, pattern: Windows, pairs: bool = False) -> Factories:
    """Any runs, against runs padded to the longest."""
    tensors, grad = inputs(job, pattern.num_queries)
    found = {
        "padded": lambda: padded(tensors, grad, pattern.query_ptr, pattern.key_run),
        "ours": lambda: variant(tensors, grad, pattern),
        "ours with log-sum-exp": lambda: variant(tensors, grad, pattern, logsumexp=True),
    }
    if pairs:
        found["pairs written out"] = lambda: variant(tensors, grad, pattern.to_neighbors())
    return found


def of_lengths(job: Job, shortest: int, longest: int) -> Windows:
    """Runs of random lengths."""
    lengths = torch.randint(shortest, longest + 1, (max(2 * job.size // (shortest + longest), 1),))
    return Windows(torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(job.device))


def borrowing(job: Job) -> Factories:
    """Eight samples of random sizes."""
    parts = torch.rand(8) + 0.5
    counts = (parts / parts.sum() * job.size).long()
    return ragged(job, Windows.along(1024, counts=counts, borrow=True).to(job.device))


def by_table(job: Job) -> Factories:
    """The relative positional encoding of Point Transformer V3, stored for all pairs and made for some at a time."""
    length = 128
    size = job.size - job.size % length
    tensors, grad = inputs(job, size)
    pattern = Windows.along(length, counts=[size]).to(job.device)
    position = torch.randint(GRID, (size, 3), device=job.device)
    bias = RelativePositionTable(HEADS, length).to(job.device)
    wanted = (*tensors, bias.rpe_table)

    def stored() -> Variant:
        patches = position.view(-1, length, 3)
        return Variant(dense(tensors, grad, length, lambda: bias(patches, patches)).forward, wanted, grad)

    def ours() -> Variant:
        return Variant(lambda: attend(*tensors, pattern, bias, position=position), wanted, grad)

    return {"dense, bias stored": stored, "ours": ours}


def one_run(job: Job) -> Factories:
    """A sample of its own."""
    tensors, grad = inputs(job, job.size)
    pattern = Windows(torch.tensor([0, job.size], device=job.device))
    return {
        "dense": lambda: dense(tensors, grad, job.size),
        "ours": lambda: variant(tensors, grad, pattern),
        "ours with log-sum-exp": lambda: variant(tensors, grad, pattern, logsumexp=True),
    }


def surface(job: Job) -> Factories:
    """Eight meshes as `geoattn.data.MeshElements` makes them, of random numbers."""
    count = job.size // 8
    samples = []
    for _ in range(8):
        pos = graphs.z_ordered_points(count)
        neighbors = Neighbors.knn(pos, 16).to_edge_index()
        samples.append(
            Data(
                x=torch.randn(count, CHANNELS),
                pos=pos,
                normal=F.normalize(torch.randn(count, 3), dim=1),
                spectral=torch.randn(count, 8),
                area=torch.full((count,), 1 / count),
                neighbor_index=neighbors,
                corner_index=torch.arange(count).view(1, -1),
            )
        )
    batch = Batch.from_data_list(samples).to(job.device)
    model = SurfaceTransformer(SurfaceTransformerConfig(names=("one", "other"), dropout=0.0)).to(job.device)
    grad = torch.randn(batch.x.size(0), 2, device=job.device)
    wanted = tuple(model.parameters())
    return {"ours": lambda: Variant(lambda: model(batch), wanted, grad)}


CASES = {
    "equal-128": lambda job: equal(job, 128),
    "equal-1024": lambda job: equal(job, 1024),
    "borrowing": borrowing,
    "ragged": lambda job: ragged(job, of_lengths(job, SHORTEST, LONGEST)),
    "short": lambda job: ragged(job, of_lengths(job, 1, 20), pairs=True),
    "table": by_table,
    "one-run": one_run,
    "surface": surface,
}


def report(options: Options) -> None:
    """Run the sections and write the tables."""
    bars: list[Bar] = []
    text: list[str] = []
    for section in (name for name in TEXT if options.wants(name)):
        text.append(f"## {TEXT[section]}\n")
        if section == "one-run":
            found = long_run_memory(options)
            text.append(table(["", "MB above inputs"], [[name, f"{mb:.0f}"] for name, mb in found.items()]))
            bars += [
                Bar(f"one run, MB above inputs, {n}", [mb], at_most=RUN_BAR) for n, mb in found.items() if n != "dense"
            ]
            continue
        job = Job(section, 4_096 if options.quick else 8_192 if section == "surface" else SIZE, options.regimes[0])
        for done, timings in options.time([job]).items():
            text += [f"{REGIME_TEXT[done.regime]}, {done.size:,} points:\n", ratio_table(timings)]
            if section.startswith("equal"):
                ratios = timings.ratios("ours", "dense", BOTH)
                bars.append(Bar(f"{TEXT[section]}: ours / dense, {BOTH}", ratios, at_most=EQUAL_BAR))
    notes = (
        f"H = {HEADS}, D = {WIDTH}, float32; outputs and gradients were compared before timing. With the log-sum-exp "
        "and its gradient wanted, our own engine runs instead of torch's fused attention.\n"
    )
    summary = bar_table(bars, not options.quick) if options.device == "cpu" else "There are none for GPUs.\n"
    save(options, "windows", "Windows", [notes, "## Bars\n", summary, *text])


def long_run_memory(options: Options) -> dict[str, float]:
    """Of one forward and backward pass, in MB."""
    size = 2_000 if options.quick else RUN
    jobs = [
        Job("one-run", size, options.regimes[0], variants=(name,))
        for name in ("dense", "ours", "ours with log-sum-exp")
    ]
    return {job.variants[0]: memory.above / 1e6 for job, memory in options.peak_memory(jobs).items()}


if __name__ == "__main__":
    main(CASES, report, tuple(TEXT))
