"""Neighbor search and farthest points against scipy, pykdtree, open3d, fpsample and torch-cluster.

All variants run in one process, in random order, round after round; a ratio is that of the medians. Every variant gets
the same float32 points in memory and builds its own tree. Peers that are not installed are left out.

    python -m benchmarks.search --points 100000 --threads 2
"""

from __future__ import annotations

import argparse
import importlib
import random
import statistics
import time
from collections.abc import Callable
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import table
from geoattn.ops import farthest_point_sample, knn, radius, search
from geoattn.ops.backends import search_scipy, search_torch

NEIGHBORS = 16
Variants = dict[str, Callable[[], object]]


def clouds(count: int) -> dict[str, Tensor]:
    """Points on a sphere and in a cube."""
    generator = torch.Generator().manual_seed(0)
    return {
        "sphere": F.normalize(torch.randn(count, 3, generator=generator), dim=1),
        "cube": torch.rand(count, 3, generator=generator),
    }


def installed(name: str) -> ModuleType | None:
    """The module, or None."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"left out: {error}")
        return None


def knn_variants(pos: Tensor, threads: int, fallbacks: bool) -> Variants:
    """Each gives ``[N, 16]`` indices."""
    array, count = pos.numpy(), len(pos)
    variants: Variants = {"geoattn": lambda: knn(pos, NEIGHBORS)[1].view(count, -1)}
    if fallbacks:
        points = search._points(pos, None, None, None)
        for name, module in (("scipy, nothing compiled", search_scipy), ("torch, as on CUDA", search_torch)):
            variants[f"geoattn ({name})"] = lambda module=module: module.knn(points, NEIGHBORS, np.inf)[1].view(
                count, -1
            )
    if pykdtree := installed("pykdtree.kdtree"):
        variants["pykdtree"] = lambda: pykdtree.KDTree(array).query(array, NEIGHBORS)[1]
    if scipy := installed("scipy.spatial"):
        variants["scipy"] = lambda: scipy.cKDTree(array).query(array, NEIGHBORS, workers=threads)[1]
    if open3d := installed("open3d"):

        def by_open3d() -> Tensor:
            points = open3d.core.Tensor.from_numpy(array)
            index = open3d.core.nns.NearestNeighborSearch(points, open3d.core.Dtype.Int32)
            index.knn_index()
            return index.knn_search(points, NEIGHBORS)[0].numpy()

        variants["open3d"] = by_open3d
    if cluster := installed("torch_cluster"):
        variants["torch-cluster"] = lambda: cluster.knn(pos, pos, NEIGHBORS, num_workers=threads)[1].view(count, -1)
    return variants


def radius_variants(pos: Tensor, threads: int, fallbacks: bool) -> Variants:
    """About sixteen neighbors each, not all variants sort them; each gives how many pairs it found."""
    array = pos.numpy()
    _, col = knn(pos, NEIGHBORS)
    r = float((pos[col.view(len(pos), -1)[:, -1]] - pos).norm(dim=1).median())
    variants: Variants = {"geoattn": lambda: len(radius(pos, r)[1])}
    if fallbacks:
        points = search._points(pos, None, None, None)
        limit = search._largest_square(r)
        for name, module in (("scipy, nothing compiled", search_scipy), ("torch, as on CUDA", search_torch)):
            variants[f"geoattn ({name})"] = lambda module=module: len(module.radius(points, limit)[1])
    if scipy := installed("scipy.spatial"):
        variants["scipy"] = lambda: sum(
            map(len, scipy.cKDTree(array).query_ball_point(array, r, workers=threads, return_sorted=False))
        )
    if open3d := installed("open3d"):

        def by_open3d() -> int:
            points = open3d.core.Tensor.from_numpy(array)
            index = open3d.core.nns.NearestNeighborSearch(points, open3d.core.Dtype.Int32)
            index.fixed_radius_index(r)
            return len(index.fixed_radius_search(points, r, sort=True)[0])

        variants["open3d"] = by_open3d
    if cluster := installed("torch_cluster"):
        variants["torch-cluster"] = lambda: cluster.radius(
            pos, pos, r, max_num_neighbors=1000, num_workers=threads
        ).size(1)
    return variants


def farthest_variants(pos: Tensor, threads: int, fallbacks: bool) -> Variants:
    """4,096 points of 100,000, the same share of others; each gives their indices."""
    array, count = pos.numpy(), max(1, len(pos) * 4096 // 100_000)
    variants: Variants = {"geoattn": lambda: farthest_point_sample(pos, count)}
    if fallbacks:
        points = search._points(pos, None, None, None)
        start, number = torch.tensor([0]), torch.tensor([count])
        variants["geoattn (torch, as on CUDA)"] = lambda: search_torch.farthest(points, start, number)
    if fpsample := installed("fpsample"):
        for height in (5, 6, 7, 8):  # fastest for sizes around 100,000
            variants[f"fpsample, h={height}"] = lambda height=height: fpsample.bucket_fps_kdline_sampling(
                array, count, h=height, start_idx=0
            )
    if fallbacks and (open3d := installed("open3d")):
        cloud = open3d.t.geometry.PointCloud(array)
        variants["open3d"] = lambda: cloud.farthest_point_down_sample(count)
    if fallbacks and (cluster := installed("torch_cluster")):
        variants["torch-cluster"] = lambda: cluster.fps(pos, ratio=count / len(pos), random_start=False)
    return variants


def agreement(result: object, ours: object) -> str:
    """The share of equal entries."""
    if isinstance(ours, int):
        return f"{result / ours:.4%}" if isinstance(result, int) else "-"
    try:
        return f"{(np.asarray(result).astype(np.int64) == np.asarray(ours)).mean():.4%}"
    except (TypeError, ValueError):  # no indices, or another number of them
        return "-"


def measure(variants: Variants, seconds: float) -> list[list[str]]:
    """Rows of the table: name, median, how many times longer than the first, agreement with it."""
    results = {name: run() for name, run in variants.items()}
    times: dict[str, list[float]] = {name: [] for name in variants}
    begin, order = time.perf_counter(), list(variants)
    while time.perf_counter() - begin < seconds or len(times["geoattn"]) < 3:
        random.shuffle(order)
        for name in order:
            start = time.perf_counter()
            result = variants[name]()
            times[name].append(time.perf_counter() - start)
            del result
    median = {name: statistics.median(t) for name, t in times.items()}
    return [
        [
            name,
            f"{1000 * median[name]:.1f}",
            f"{median['geoattn'] / median[name]:.2f}",
            agreement(results[name], results["geoattn"]),
        ]
        for name in variants
    ]


def main() -> None:
    """The command line."""
    tasks = {"knn": knn_variants, "radius": radius_variants, "farthest": farthest_variants}
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch and of scipy")
    parser.add_argument("--seconds", type=float, default=8.0, help="about how long each table takes")
    parser.add_argument("--only", nargs="+", choices=tasks, default=list(tasks))
    parser.add_argument("--fallbacks", action="store_true", help="time what runs elsewhere, and the slow peers, too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for task in args.only:
        for name, pos in clouds(args.points).items():
            rows = measure(tasks[task](pos, args.threads, args.fallbacks), args.seconds)
            print(f"\n{task}, {args.points:,} points, {name}, {args.threads} threads\n")
            print(table(["variant", "ms", "geoattn / it", "equal to geoattn's"], rows))


if __name__ == "__main__":
    main()
