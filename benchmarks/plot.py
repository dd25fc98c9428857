"""One picture of the results."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.harness import BOTH, FORWARD

EDGES_PER_POINT = 16
COLOR = {"PyG": "#888888", "torch": "#4477aa", "cpu": "#cc3311", "triton": "#cc3311"}


def draw(
    growth: Mapping[str, Mapping[int, Sequence[float]]],
    speedups: Mapping[str, Mapping[str, Sequence[float]]],
    path: Path,
) -> None:
    """Time for an edge over the number of points, and how many times faster than PyG, as a PNG.

    Args:
        growth: Seconds of every process by variant and number of points.
        speedups: PyG's time over ours, forward and forward + backward, by case and backend.
        path: Where to write it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))

    for name, by_size in growth.items():
        sizes = sorted(by_size)
        per_edge = [[t / (n * EDGES_PER_POINT) * 1e9 for t in by_size[n]] for n in sizes]
        middle = [statistics.median(t) for t in per_edge]
        left.plot(sizes, middle, marker="o", color=COLOR[name])
        label = name if name == "PyG" else f"geoattn, {name}"
        left.annotate(label, (sizes[0], max(per_edge[0])), (0, 9), textcoords="offset points", color=COLOR[name])
        left.fill_between(sizes, [min(t) for t in per_edge], [max(t) for t in per_edge], color=COLOR[name], alpha=0.2)
    left.set(
        xscale="log", yscale="log", xlabel="points, in Z-order", ylabel=f"{BOTH}, ns per edge", title="Growth, k-NN"
    )
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("{x:g}")
    left.margins(y=0.1)
    left.grid(alpha=0.3, which="both")

    bars = [(case, name, i) for case, own in speedups.items() for name in own for i in (0, 1)]
    for y, (case, name, i) in enumerate(bars):
        ratio = speedups[case][name][i]
        right.barh(y, ratio, color=COLOR[name], alpha=0.55 if i == 0 else 1.0)
        right.text(ratio, y, f" {ratio:.1f}", va="center", fontsize=8)
    right.set_yticks(range(len(bars)), [f"{case}, {name}, {(FORWARD, BOTH)[i]}" for case, name, i in bars], fontsize=8)
    right.invert_yaxis()
    right.axvline(1, color="black", linewidth=0.8)
    right.set(xlabel="times faster than PyG", title="Heap retained")
    right.margins(x=0.12)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)

    temporary = path.with_suffix(".tmp")
    figure.savefig(temporary, format="png", dpi=150)
    os.replace(temporary, path)
