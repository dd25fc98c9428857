"""Neighborhood attention on an image against torch's index operations and masked dense attention: time and memory.

python -m benchmarks.neighborhood
"""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import REGIME_TEXT, Job, Options, Variant, main, ratio_table, save, table
from geoattn.nn import NeighborhoodAttention2d
from geoattn.patterns import grid_neighbors

CHANNELS, HEADS = 128, 4
SIZE = 64 * 64
WINDOWS: dict[str, dict[str, int | bool]] = {
    "7x7": {"kernel_size": 7},
    "7x7-bias": {"kernel_size": 7, "rel_pos_bias": True},
    "8x8-stride-4": {"kernel_size": 8, "stride": 4},
    "13x13": {"kernel_size": 13},
}
OURS, GATHER, DENSE = "geoattn", "gather + einsum", "masked SDPA"


def case(job: Job, **window: int | bool) -> dict[str, Callable[[], Variant]]:
    """The layer, its projections included, on one image."""
    side = isqrt(job.size)
    layer = NeighborhoodAttention2d(CHANNELS, HEADS, **window).to(job.device)
    x = torch.randn(1, side, side, CHANNELS, device=job.device).requires_grad_()
    grad = torch.randn(x.shape, device=job.device)
    count, width, samples = side * side, CHANNELS // HEADS, len(x)
    pattern = grid_neighbors((side, side), layer.kernel_size, layer.stride, device=job.device)
    col = pattern.col.view(count, -1).long()
    position = torch.cartesian_prod(torch.arange(side), torch.arange(side)).to(job.device)

    def bias() -> Tensor | None:
        """Of every key of a window, ``[N, K, H]``."""
        if layer.rpb is None:
            return None
        offset = position[col] - position.unsqueeze(1) + layer.kernel_size[0] - 1
        return layer.rpb.permute(1, 2, 0)[offset[..., 0], offset[..., 1]]

    def heads() -> tuple[Tensor, ...]:
        return layer.qkv(x).view(samples, count, 3, HEADS, width).unbind(2)

    def gathered() -> Tensor:
        query, key, value = heads()
        score = torch.einsum("bnhd,bnkhd->bnkh", query * layer.scale, key[:, col])
        numbers = bias()
        score = score if numbers is None else score + numbers
        out = torch.einsum("bnkh,bnkhd->bnhd", score.softmax(2), value[:, col])
        return layer.proj(out.reshape(x.shape))

    def masked() -> Callable[[], Tensor]:
        row = torch.arange(count, device=job.device).unsqueeze(1)
        mask = torch.zeros(count, count, dtype=torch.bool, device=job.device).index_put(
            (row, col), row.new_ones(()).bool()
        )

        def forward() -> Tensor:
            numbers = bias()
            if numbers is None:
                of_pair = mask
            else:
                everywhere = numbers.new_full((count, count, HEADS), -torch.inf)
                of_pair = everywhere.index_put((row, col), numbers).permute(2, 0, 1)
            out = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in heads()), attn_mask=of_pair)
            return layer.proj(out.transpose(1, 2).reshape(x.shape))

        return forward

    inputs = (x, *layer.parameters())
    return {
        GATHER: lambda: Variant(gathered, inputs, grad),
        OURS: lambda: Variant(lambda: layer(x), inputs, grad),
        DENSE: lambda: Variant(masked(), inputs, grad),
    }


CASES = {name: lambda job, window=window: case(job, **window) for name, window in WINDOWS.items()}


def report(options: Options) -> None:
    """Run the sections and write the tables."""
    notes = (
        f"`NeighborhoodAttention2d` of {CHANNELS} channels and {HEADS} heads on one image in float32, projections "
        "included; outputs and gradients were compared before timing. Patterns and masks were made before; torch's "
        "variants make their biases in every pass.\n"
    )
    text, size = [notes], 16 * 16 if options.quick else SIZE
    for section in (name for name in WINDOWS if options.wants(name)):
        text.append(f"## {section}, {isqrt(size)} x {isqrt(size)} positions\n")
        for job, timings in options.time([Job(section, size, options.regimes[-1])]).items():
            text += [f"{REGIME_TEXT[job.regime]}:\n", ratio_table(timings)]
        jobs = [Job(section, size, options.regimes[-1], variants=(name,)) for name in (GATHER, OURS, DENSE)]
        memory = options.peak_memory(jobs)
        rows = [[job.variants[0], f"{found.above / 1e6:.0f}"] for job, found in memory.items()]
        text.append(table(["forward + backward", "MB above inputs"], rows))
    save(options, "neighborhood", "Neighborhood attention", text)


if __name__ == "__main__":
    main(CASES, report, tuple(WINDOWS))
