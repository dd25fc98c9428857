"""Voxels along the four curves of Point Transformer V3, against a loop over bits in torch.

The loop sets one bit after the other, as the curves are defined; its codes are sorted by torch. Both get the same
integer voxels. That they give the same is checked first.

python -m benchmarks.serialization
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.harness import FORWARD, Bar, Job, Options, Variant, bar_table, main, ratio_table, save
from geoattn import backend
from geoattn.geometry import serialize
from geoattn.geometry.curves import _codes

ORDERS = ("z", "z-trans", "hilbert", "hilbert-trans")
DEPTH, SIZE, BAR = 16, 1_000_000, 5.0
OURS, WITHOUT, LOOP = "geoattn", "geoattn, nothing compiled", "loop over bits"


def bit_loop(grid: Tensor, orders: tuple[str, ...]) -> Tensor:
    """Codes ``[O, N]`` by the definition (Skilling 2004), one bit of one axis at a time."""
    codes = []
    for name in orders:
        x, y, z = grid.unbind(1)
        axes = [y.clone(), x.clone(), z.clone()] if name.endswith("-trans") else [x.clone(), y.clone(), z.clone()]
        if name.startswith("hilbert"):
            for bit in reversed(range(1, DEPTH)):
                lower = (1 << bit) - 1
                for axis in axes:
                    high = (axis >> bit & 1).bool()
                    swapped = ((axes[0] ^ axis) & lower).masked_fill_(high, 0)
                    axis ^= swapped
                    if axis is not axes[0]:
                        axes[0] ^= swapped
                    axes[0] ^= high * lower
        code, parity = torch.zeros_like(x), torch.zeros_like(x)
        for bit in reversed(range(DEPTH)):
            for axis in axes:
                digit = axis >> bit & 1
                if name.startswith("hilbert"):
                    digit = parity = parity ^ digit
                code = code << 1 | digit
        codes.append(code)
    return torch.stack(codes)


def loop_and_sort(grid: Tensor, orders: tuple[str, ...]) -> Tensor:
    """Code, order and inverse ``[3, O, N]``."""
    code = bit_loop(grid, orders)
    order = code.argsort(dim=1, stable=True)
    inverse = torch.empty_like(order).scatter_(1, order, torch.arange(len(grid)).expand_as(order))
    return torch.stack([code, order, inverse])


def torch_only(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The same with the compiled kernels left out."""

    def forward() -> Tensor:
        with backend("torch"):
            return run()

    return forward


def case(job: Job, orders: tuple[str, ...], sort: bool) -> dict[str, Callable[[], Variant]]:
    """Random voxels."""
    grid = torch.randint(0, 1 << DEPTH, (job.size, 3))

    def ours() -> Tensor:
        if not sort:
            return _codes(grid, None, DEPTH, orders)
        return torch.stack(serialize(grid, None, orders, DEPTH)[:3])

    def loop() -> Tensor:
        return (loop_and_sort if sort else bit_loop)(grid, orders)

    runs = {LOOP: loop, OURS: ours, WITHOUT: torch_only(ours)}
    results = [run() for run in runs.values()]
    assert all(torch.equal(result, results[0]) for result in results)
    return {name: lambda run=run: Variant(run, same=False) for name, run in runs.items()}


CASES = {
    f"{what}, {which}": lambda job, orders=orders, sort=what == "sorted": case(job, orders, sort)
    for what in ("codes", "sorted")
    for which, orders in (("four orders", ORDERS), ("Z-order", ("z",)), ("Hilbert", ("hilbert",)))
}


def report(options: Options) -> None:
    """Run the sections and write the tables."""
    size = 2_000 if options.quick else SIZE
    jobs = [Job(name, size) for name in CASES if options.wants(name.partition(",")[0])]
    text, bars = [], []
    for job, timings in options.time(jobs).items():
        text += [f"## {job.case}, {job.size:,} points\n", ratio_table(timings)]
        if job.case.endswith("four orders"):
            bars.append(Bar(f"{job.case}: {LOOP} ÷ {OURS}", timings.ratios(LOOP, OURS, FORWARD), at_least=BAR))
    note = f"Depth {DEPTH}, random voxels. Sorted: codes, orders and their inverses, as `geoattn.geometry.serialize`.\n"
    save(options, "serialization", "Serialization", [note, "## Bars\n", bar_table(bars, not options.quick), *text])


if __name__ == "__main__":
    main(CASES, report, ("codes", "sorted"))
