"""Submanifold convolution on the voxels of a room against its matrix products alone; finding neighbors; memory.

python -m benchmarks.sparse_conv
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import geoattn
from benchmarks.harness import BOTH, FORWARD, Bar, Job, Options, Variant, bar_table, main, ratio_table, save, table
from geoattn.nn import SubMConv3d
from geoattn.patterns import KernelMap

SIZE = 100_000
KERNELS, CHANNELS = (3, 5), (32, 64, 128, 256)
TORCH_CHANNELS = 64  # wider ones take minutes without kernels
BAR = 1.5  # time over that of the products
TEXT = {
    "neighbors": "Finding the neighbors",
    "memory": "Memory of a forward and backward pass",
    **{f"{k}-{c}": f"Kernel {k}, {c} channels" for k in KERNELS for c in CHANNELS},
}

Factories = dict[str, Callable[[], Variant]]


def room(size: int) -> Tensor:
    """About so many occupied voxels of a room: floor, walls, sides of furniture and balls, with a scanner's noise.

    They are in the order of their coordinates, as `geoattn.ops.grid_sample` leaves them.
    """
    corner = torch.tensor([6.0, 5.0, 2.8])
    parts = []
    for axis in (0, 1, 2):
        wall = torch.rand(size, 3) * corner
        wall[:, axis] = 0
        parts.append(wall)
    for _ in range(20):
        side = torch.rand(3) * corner + torch.rand(size // 10, 3) * (torch.rand(3) + 0.2)
        axis = int(torch.randint(3, ()))
        side[:, axis] = side[0, axis].clone()
        parts.append(side)
    parts += [torch.rand(3) * corner + 0.4 * F.normalize(torch.randn(size // 10, 3), dim=1) for _ in range(10)]
    pos = torch.cat(parts)
    pos += 0.005 * torch.randn_like(pos)
    low, high = 1e-3, 1.0
    for _ in range(20):  # of a side of a voxel, until there are as many as asked for
        middle = (low * high) ** 0.5
        found = torch.unique((pos / middle).floor().long(), dim=0)
        low, high = (middle, high) if len(found) > size else (low, middle)
    return found


class _Products(torch.autograd.Function):
    """The products that a convolution cannot do without, of as many rows as it has pairs, which are not gathered."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, counts: list[int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.counts = counts
        for offset, count in enumerate(counts):
            out = x[:count] @ weight[:, offset].t()
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        grad_weight = torch.empty_like(weight)
        for offset, count in enumerate(ctx.counts):
            grad_x = grad[:count] @ weight[:, offset]
            grad_weight[:, offset] = grad[:count].t() @ x[:count]
        return grad_x, grad_weight, None


def convolution(job: Job, kernel: int, channels: int) -> Factories:
    """A layer, compiled and in plain torch."""
    kernel_map = KernelMap.from_grid(room(job.size).to(job.device), kernel)
    layer = SubMConv3d(channels, channels, kernel, bias=False).to(job.device)
    make = partial(torch.randn, kernel_map.num_voxels, channels, device=job.device)
    x, grad = make().requires_grad_(), make()
    half = torch.tensor(kernel_map.ptr).diff().tolist()
    counts = [*half, *half[::-1], kernel_map.num_voxels]
    kernels = layer.weight.detach().flatten(1, 3).requires_grad_()

    def plain() -> Tensor:
        with geoattn.backend("torch"):
            return layer(x, kernel_map)

    found = {
        "products": lambda: Variant(lambda: _Products.apply(x, kernels, counts), (x, kernels), grad, same=False),
        "SubMConv3d": lambda: Variant(lambda: layer(x, kernel_map), (x, layer.weight), grad),
    }
    if channels <= TORCH_CHANNELS and job.device == "cpu":
        found["SubMConv3d in plain torch"] = lambda: Variant(plain, (x, layer.weight), grad)
    return found


def neighbors(job: Job) -> Factories:
    """`KernelMap.from_grid`, of voxels in the order of their coordinates and in random order."""
    grid = room(job.size).to(job.device)
    mixed = grid[torch.randperm(len(grid), device=job.device)]
    return {
        f"kernel {kernel}, {order}": lambda given=given, kernel=kernel: Variant(
            lambda: KernelMap.from_grid(given, kernel).voxel, same=False
        )
        for kernel in KERNELS
        for order, given in (("sorted", grid), ("in random order", mixed))
    }


CASES = {
    "neighbors": neighbors,
    **{f"{k}-{c}": partial(convolution, kernel=k, channels=c) for k in KERNELS for c in CHANNELS},
}


def report(options: Options) -> None:
    """Run the sections and write the tables."""
    bars: list[Bar] = []
    text: list[str] = []
    size = 2_000 if options.quick else SIZE
    for section in (name for name in TEXT if options.wants(name)):
        text.append(f"## {TEXT[section]}\n")
        if section == "memory":
            cases = [f"{k}-{c}" for k in KERNELS for c in (CHANNELS[0], CHANNELS[-1])]
            jobs = [Job(case, size, options.regimes[0], variants=("SubMConv3d",)) for case in cases]
            rows = [
                [TEXT[job.case], f"{found.inputs / 1e6:.0f}", f"{found.above / 1e6:.0f}"]
                for job, found in options.peak_memory(jobs).items()
            ]
            text.append(table(["", "inputs and neighbors, MB", "at the highest moment above them, MB"], rows))
            continue
        for timings in options.time([Job(section, size, options.regimes[0])]).values():
            text.append(ratio_table(timings))
            if section != "neighbors":
                for direction in (FORWARD, BOTH):
                    ratios = timings.ratios("SubMConv3d", "products", direction)
                    bars.append(Bar(f"{TEXT[section]}: SubMConv3d / products, {direction}", ratios, at_most=BAR))
    notes = (
        f"About {size:,} voxels of a room, float32, no bias. The products are those of every kernel offset, on as many "
        "rows as it has pairs of voxels, which lie together and are neither gathered nor added; in the backward pass "
        "two for each.\n"
    )
    summary = bar_table(bars, not options.quick) if options.device == "cpu" else "There are none for GPUs.\n"
    save(options, "sparse_conv", "Submanifold convolution", [notes, "## Bars\n", summary, *text])


if __name__ == "__main__":
    main(CASES, report, tuple(TEXT))
