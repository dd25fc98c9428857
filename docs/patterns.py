"""Draws docs/patterns.png, the four kinds of patterns, each as the library makes it.

python docs/patterns.py
"""

import math
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from scipy.spatial import Delaunay
from torch import Tensor

from geoattn import Neighbors, Windows
from geoattn.geometry.curves import hilbert
from geoattn.ops import farthest_point_sample

# Tones that are told apart on white and on black, as README pages are either.
QUERY, KEY, OTHER, TEXT = "#e8590c", "#2f81d6", "#8d96a0", "#767e89"


def disc(count: int) -> Tensor:
    """Evenly spread points of the unit disc ``[count, 2]``, the first one near its center."""
    radius, angle = torch.rand(2, 20_000, generator=torch.Generator().manual_seed(3))
    many = (radius.sqrt() * torch.stack([(2 * math.pi * angle).cos(), (2 * math.pi * angle).sin()])).T
    many = many[many.norm(dim=1).argsort()]
    return many[farthest_point_sample(many, num_samples=count)]


def graph(axes: Axes) -> str:
    """Two rings of a mesh."""
    pos = disc(110)
    face = torch.tensor(Delaunay(pos.numpy()).simplices.T).long()
    pattern = Neighbors.from_mesh(face, num_nodes=len(pos), hops=2)
    edges = Neighbors.from_mesh(face, num_nodes=len(pos)).to_edge_index().T
    axes.add_collection(LineCollection(pos[edges].numpy(), colors=OTHER, linewidths=0.9, alpha=0.55))
    keys = row(pattern, 0)
    inside = torch.isin(edges, torch.cat([keys, torch.tensor([0])])).all(1)
    axes.add_collection(LineCollection(pos[edges[inside]].numpy(), colors=KEY, linewidths=1.8))
    dots(axes, pos, keys)
    return "Neighbors.from_mesh(face, hops=2)"


def neighborhood(axes: Axes) -> str:
    """The nearest points of a cloud that is denser to the left."""
    pos = disc(190) + 0.1 * (torch.rand(190, 2, generator=torch.Generator().manual_seed(1)) - 0.5)
    pos = torch.stack([1.9 * ((pos[:, 0].clamp(-1, 1) + 1) / 2) ** 1.5 - 0.93, pos[:, 1]], 1)
    keys = row(Neighbors.knn(pos, k=16), 0)
    lines = torch.stack([pos[:1].expand(len(keys), 2), pos[keys]], 1)
    axes.add_collection(LineCollection(lines.numpy(), colors=KEY, linewidths=1.2))
    dots(axes, pos, keys)
    return "Neighbors.knn(pos, k=16)"


def spherical(axes: Axes) -> str:
    """A geodesic disc of an even grid of the sphere: all points within a chord of 0.42."""
    index = torch.arange(700)
    height = 1 - 2 * (index + 0.5) / len(index)
    turn = math.pi * (3 - math.sqrt(5)) * index  # Fibonacci's grid
    level = (1 - height**2).sqrt()
    grid = torch.stack([level * turn.cos(), height, level * turn.sin()], 1)
    query = int((grid @ torch.nn.functional.normalize(torch.tensor([0.28, 0.3, 1.0]), dim=0)).argmax())
    keys = row(Neighbors.radius(grid, r=0.42), query)
    front = grid[:, 2] > 0
    axes.add_patch(plt.Circle((0, 0), 1.0, facecolor=OTHER, alpha=0.16, linewidth=0))
    axes.add_patch(plt.Circle((0, 0), 1.0, fill=False, edgecolor=OTHER, alpha=0.6, linewidth=1))
    around = torch.linspace(0, 2 * math.pi, 100)
    center = grid[query]
    side = torch.nn.functional.normalize(torch.linalg.cross(center, torch.tensor([0.0, 1.0, 0.0])), dim=0)
    up = torch.linalg.cross(side, center)
    angle = 2 * math.asin(0.42 / 2)
    rim = math.cos(angle) * center + math.sin(angle) * (around.cos()[:, None] * side + around.sin()[:, None] * up)
    axes.fill(*rim[:, :2].T.numpy(), facecolor=KEY, alpha=0.18, edgecolor="none")
    axes.plot(*rim[:, :2].T.numpy(), color=KEY, linewidth=1.2)
    others = front.nonzero().flatten()
    size = 3 + 15 * grid[others, 2].numpy()
    axes.scatter(*grid[others, :2].T.numpy(), s=size, color=OTHER, alpha=0.75, linewidths=0)
    axes.scatter(*grid[keys, :2].T.numpy(), s=24, color=KEY, linewidths=0, zorder=3)
    axes.scatter(*grid[query, :2].numpy(), s=110, color=QUERY, linewidths=0, zorder=4)
    return "Neighbors.radius(grid, r=0.42)"


def serialized(axes: Axes) -> str:
    """A run of points along Hilbert's curve."""
    cells = torch.cartesian_prod(torch.arange(16), torch.arange(16))
    noise = torch.rand(cells.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    order = hilbert(cells, bits=4).argsort(stable=True)
    pos = ((cells + 0.55 * noise - 7.5) / 8.4)[order]
    windows = Windows.along(32, counts=[len(pos)])
    query = 113
    [run] = [run for run in windows.key_run.tolist() if run[0] <= query < run[1]]
    axes.plot(*pos.T.numpy(), color=OTHER, linewidth=0.9, alpha=0.6)
    axes.plot(*pos[run[0] : run[1]].T.numpy(), color=KEY, linewidth=2.2)
    dots(axes, pos, torch.arange(*run), query)
    return "Windows.along(32, counts)"


def row(pattern: Neighbors, query: int) -> Tensor:
    """What a query attends to."""
    keys = pattern.col[pattern.rowptr[query] : pattern.rowptr[query + 1]]
    return keys[keys != query]


def dots(axes: Axes, pos: Tensor, keys: Tensor, query: int = 0) -> None:
    """All points, a query's keys and the query."""
    axes.scatter(*pos.T.numpy(), s=13, color=OTHER, linewidths=0, zorder=2)
    axes.scatter(*pos[keys].T.numpy(), s=30, color=KEY, linewidths=0, zorder=3)
    axes.scatter(*pos[query].numpy(), s=110, color=QUERY, linewidths=0, zorder=4)


def draw(path: Path) -> None:
    """Draw the four beside each other."""
    kinds: list[Callable[[Axes], str]] = [graph, neighborhood, spherical, serialized]
    figure, all_axes = plt.subplots(1, 4, figsize=(12, 3.7))
    for axes, kind in zip(np.ravel(all_axes), kinds, strict=True):
        call = kind(axes)
        axes.set(xlim=(-1.06, 1.06), ylim=(-1.06, 1.06), aspect="equal")
        axes.axis("off")
        axes.set_title(kind.__name__, fontsize=17, fontweight="bold", color=TEXT, pad=8)
        axes.text(0, -1.2, call, ha="center", va="top", family="monospace", fontsize=10.5, color=TEXT)
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.1, top=0.89, wspace=0.06)
    figure.savefig(path, dpi=150, transparent=True)


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".png"))
