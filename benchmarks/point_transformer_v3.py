"""A training step of Point Transformer V3 against the same network on padded patches and indexing; where time goes.

The other network has the same weights, the same orders of the voxels and the same pairs of neighbors. It computes as
one would without a library for it, in plain torch: patches are padded with indices and given to torch's fused
attention, with the relative positions of all pairs stored; convolutions gather, multiply and add for each offset.

python -m benchmarks.point_transformer_v3
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F
from torch_geometric.data import Data

from benchmarks.harness import FORWARD, Job, Options, Variant, main, ratio_table, save, spread, table
from benchmarks.sparse_conv import room
from geoattn.models.points import PointTransformerV3, PointTransformerV3Config
from geoattn.models.points.point_transformer_v3 import Voxels
from geoattn.nn import SerializedAttention, SubMConv3d, serialized, sparse_conv
from geoattn.patterns import KernelMap
from geoattn.patterns.kernel_map import offsets

SIZE = 100_000
OURS, PADDED = "geoattn", "padded patches, indexing"
# Widths over those of the paper, and points of a patch.
KINDS = {"half-1024": (2, 1024), "half-128": (2, 128), "full-1024": (1, 1024), "full-128": (1, 128)}
TEXT = {"half": "Half the width", "full": "The paper's width", "1024": "patches of 1,024", "128": "of 128"}


class PaddedAttention(SerializedAttention):
    """Attention of one cloud whose last patch is padded with points of the one before, as in the authors' code."""

    def forward(
        self, x: Tensor, order: Tensor, inverse: Tensor, windows: Any, grid_coord: Tensor | None = None
    ) -> Tensor:
        """Attend."""
        count = x.size(0)
        size = min(self.patch_size, count)
        place = torch.arange(-(-count // size) * size, device=x.device)
        index = order[place.where(place < count, place - size)]
        qkv = self.qkv(x).index_select(0, index).view(-1, size, 3, self.heads, x.size(1) // self.heads)
        bias = None
        if self.rpe is not None and grid_coord is not None:
            position = grid_coord[index].view(-1, size, 3)
            bias = self.rpe(position, position)
        out = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0), attn_mask=bias)
        return self.proj(out.transpose(1, 2).reshape(-1, x.size(1)).index_select(0, inverse))


class IndexedConv(SubMConv3d):
    """Gather, multiply and add for each offset of the kernel."""

    def forward(self, x: Tensor, kernel_map: KernelMap) -> Tensor:
        """Convolve."""
        weight = self.weight.flatten(1, 3)
        out = x @ weight[:, kernel_map.num_offsets // 2].t()
        if kernel_map not in PAIRS:
            row = kernel_map.row.long()
            found = offsets(kernel_map.voxel, kernel_map.neighbor, kernel_map.ptr)
            PAIRS[kernel_map] = [(offset, row[voxel], row[neighbor]) for offset, voxel, neighbor in found]
        for offset, voxel, neighbor in PAIRS[kernel_map]:
            out = out.index_add_(0, voxel, x.index_select(0, neighbor) @ weight[:, offset].t())
        return out if self.bias is None else out + self.bias


PAIRS: WeakKeyDictionary[KernelMap, list[tuple[int, Tensor, Tensor]]] = WeakKeyDictionary()


def problem(job: Job, narrower: int, patch_size: int) -> tuple[PointTransformerV3, Data]:
    """The network, with relative positions where patches are small, and the voxels of a room."""
    widths = {
        name: tuple(value // narrower for value in getattr(PointTransformerV3Config, name))
        for name in ("channels", "heads", "decoder_channels", "decoder_heads")
    }
    config = PointTransformerV3Config(
        names=tuple(f"class {i}" for i in range(13)),
        features=("color", "normal"),
        patch_size=patch_size,
        relative_positions=patch_size < 1024,
        drop_path=0.0,
        shuffle_orders="never",
        **widths,
    )
    grid = room(max(job.size, 2_000))  # of fewer, one is left in the last stage, which has no variance
    grid = grid - grid.amin(0)
    data = Data(pos=grid.float(), x=torch.randn(len(grid), 6), grid_coord=grid)
    return PointTransformerV3(config).to(job.device).train(), data.to(job.device)


def step(job: Job, narrower: int, patch_size: int) -> dict[str, Callable[[], Variant]]:
    """Forward and backward through all of the network."""
    model, data = problem(job, narrower, patch_size)
    grad = torch.randn(len(data.x), 13, device=job.device) / len(data.x)

    def padded() -> Variant:
        peer = copy.deepcopy(model)
        for module in peer.modules():
            if isinstance(module, SerializedAttention):
                module.__class__ = PaddedAttention
            elif isinstance(module, SubMConv3d):
                module.__class__ = IndexedConv
        return Variant(lambda: peer(data), tuple(peer.parameters()), grad)

    return {PADDED: padded, OURS: lambda: Variant(lambda: model(data), tuple(model.parameters()), grad)}


def parts(job: Job, narrower: int, patch_size: int) -> dict[str, Callable[[], Variant]]:
    """The step, and by themselves those parts of it that are not dense layers, each forward and backward."""
    model, data = problem(job, narrower, patch_size)
    parameters = list(model.parameters())
    with (
        recorded(serialized, "attend") as attends,
        recorded(sparse_conv, "submanifold_conv") as convolutions,
        recorded(KernelMap, "from_grid") as maps,
        torch.no_grad(),
    ):
        model(data)

    def whole() -> None:
        torch.autograd.grad(model(data).square().mean(), parameters)

    def sort() -> None:
        voxels = Voxels.of_clouds(data.grid_coord, torch.tensor([len(data.x)]))
        for stride in (*model.config.strides, 1):
            voxels.order, voxels.inverse, voxels.windows(patch_size)  # made when first asked for
            voxels = voxels.coarser(stride)[0]

    runs = {
        "step": whole,
        "attention": lambda: replay(attends),
        "convolution": lambda: replay(convolutions),
        "neighbors of voxels": lambda: replay(maps),
        "sorting, coarser voxels, patches": sort,
    }
    return {name: lambda run=run: Variant(partial(passed, run), same=False) for name, run in runs.items()}


def passed(run: Callable[[], None]) -> Tensor:
    """What the harness times as a forward pass, which has a backward pass in it."""
    with torch.enable_grad():
        run()
    return torch.empty(0)


Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


@contextmanager
def recorded(place: Any, name: str) -> Iterator[list[Call]]:
    """The calls of a function."""
    function, calls = getattr(place, name), []

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append((function, args, kwargs))
        return function(*args, **kwargs)

    with mock.patch.object(place, name, call):
        yield calls


def replay(calls: list[Call]) -> None:
    """Once more, with gradients of whatever has one."""
    for function, args, kwargs in calls:
        given = [x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args]
        out = function(*given, **kwargs)
        wanted = [x for x in given if isinstance(x, Tensor) and x.requires_grad]
        wanted += [p for x in given if isinstance(x, torch.nn.Module) for p in x.parameters()]
        if wanted:
            torch.autograd.grad(out, wanted, out.detach())


CASES = {
    **{f"step-{name}": partial(step, narrower=n, patch_size=k) for name, (n, k) in KINDS.items()},
    **{f"parts-{name}": partial(parts, narrower=n, patch_size=k) for name, (n, k) in KINDS.items()},
}


def title(name: str) -> str:
    """Of a kind."""
    width, patch = name.split("-")
    return f"{TEXT[width]}, {TEXT[patch]}{' with relative positions' if patch == '128' else ''}"


def report(options: Options) -> None:
    """Run the sections and write the tables."""
    size = 1_000 if options.quick else SIZE
    text = []
    for name in (name for name in KINDS if options.wants(name)):
        # At full width a process takes many minutes.
        run = replace(options, processes=1) if name.startswith("full") else options
        steps = Job(f"step-{name}", size, options.regimes[0])
        text.append(f"## {title(name)}\n")
        text += [ratio_table(timings) for timings in run.time([steps]).values()]
        memory = run.peak_memory([replace(steps, variants=(variant,)) for variant in (PADDED, OURS)])
        rows = [[job.variants[0], f"{found.above / 1e9:.2f}"] for job, found in memory.items()]
        text.append(table(["", "forward + backward, GB at the highest moment above network and input"], rows))
        for timings in run.time([Job(f"parts-{name}", size, options.regimes[0])]).values():
            text.append(shares(timings))
    note = (
        f"About {size:,} voxels of a room, 6 features, 13 classes, float32, one cloud, batch statistics, no "
        "points that skip branches. Outputs and gradients of all parameters were compared before timing. At half the "
        "width there are half the channels and heads, so that heads have 16 channels still. Where time goes: "
        "the calls of each part are run by themselves, forward and backward; the rest is the step less these: linear "
        "layers, normalizations, gathering along the curves, pooling.\n"
    )
    save(options, "point_transformer_v3", "A training step of Point Transformer V3", [note, *text])


def shares(timings: Any) -> str:
    """Where the time of a step goes."""
    whole = timings.seconds("step", FORWARD)
    if not whole:
        return "No process came to its end.\n"
    found = {name: timings.seconds(name, FORWARD) for name in timings.variants() if name != "step"}
    found["the rest"] = [total - sum(part[i] for part in found.values()) for i, total in enumerate(whole)]
    rows = [
        [name, f"{statistics.median(seconds):.2f}", spread([100 * s / t for s, t in zip(seconds, whole, strict=True)])]
        for name, seconds in {"step": whole, **found}.items()
    ]
    return table([f"{OURS}, forward + backward", "s", "% of the step"], rows)


if __name__ == "__main__":
    main(CASES, report, tuple(KINDS))
