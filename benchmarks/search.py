"""Neighbor search and farthest points against scipy, pykdtree, open3d, fpsample and torch-cluster.

Every variant gets the same float32 points in memory and builds its own tree. Peers that are not installed are left out.

python -m benchmarks.search
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import FORWARD, Bar, Job, Options, Variant, bar_table, main, ratio_table, save
from geoattn import backend
from geoattn.geometry import search
from geoattn.geometry.search import scipy_tree
from geoattn.ops import farthest_point_sample, knn, radius

NEIGHBORS, BAR = 16, 1.1
WIDE_NEIGHBORS, WIDE_BAR, WIDE_DIMENSIONS, WIDE_SIZES = 20, 1.0, (3, 8, 16, 32, 64, 128), (4_000, 10_000)
OURS = "geoattn"
# Slow, or for where nothing is compiled: no yardsticks.
NOT_PEERS = (OURS, "geoattn, nothing compiled")


def sphere(count: int) -> Tensor:
    """Points on a sphere."""
    return F.normalize(torch.randn(count, 3), dim=1)


def cube(count: int) -> Tensor:
    """Points in a cube."""
    return torch.rand(count, 3)


Variants = dict[str, Callable[[], Variant]]


def lazily(module: str, run: Callable[[Any], Any], same: bool = True) -> Callable[[], Variant] | None:
    """A variant that needs ``module``, if that is installed; ``run`` gets it and gives indices."""
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return None

    def variant() -> Variant:
        found = importlib.import_module(module)
        return Variant(lambda: torch.as_tensor(np.asarray(run(found)).astype(np.int64)).double(), same=same)

    return variant


def own(run: Callable[[], Tensor]) -> Callable[[], Variant]:
    """A variant of ours."""
    return lambda: Variant(lambda: run().double())


def knn_case(job: Job, cloud: Callable[[int], Tensor]) -> dict[str, Callable[[], Variant] | None]:
    """Each gives ``[N, 16]`` indices."""
    pos = cloud(job.size)
    array, points = pos.numpy(), search._points(pos, None, None, None)

    def by_open3d(open3d: Any) -> Any:
        cloud = open3d.core.Tensor.from_numpy(array)
        index = open3d.core.nns.NearestNeighborSearch(cloud, open3d.core.Dtype.Int32)
        index.knn_index()
        return index.knn_search(cloud, NEIGHBORS)[0].numpy()

    return {
        OURS: own(lambda: knn(pos, NEIGHBORS)[1].view(-1, NEIGHBORS)),
        "geoattn, nothing compiled": own(lambda: scipy_tree.knn(points, NEIGHBORS, np.inf)[1].view(-1, NEIGHBORS)),
        "pykdtree": lazily("pykdtree.kdtree", lambda m: m.KDTree(array).query(array, NEIGHBORS)[1]),
        "scipy": lazily("scipy.spatial", lambda m: m.cKDTree(array).query(array, NEIGHBORS, workers=job.threads)[1]),
        "open3d": lazily("open3d", by_open3d),
        "torch-cluster": lazily("torch_cluster", lambda m: m.knn(pos, pos, NEIGHBORS)[1].view(-1, NEIGHBORS)),
    }


def radius_case(job: Job, cloud: Callable[[int], Tensor]) -> dict[str, Callable[[], Variant] | None]:
    """About sixteen neighbors each, which not all variants sort; each gives how many pairs it found."""
    pos = cloud(job.size)
    array, points = pos.numpy(), search._points(pos, None, None, None)
    _, col = knn(pos, NEIGHBORS)
    r = float((pos[col.view(len(pos), -1)[:, -1]] - pos).norm(dim=1).median())
    limit = search._largest_square(r)

    def by_scipy(scipy: Any) -> int:
        found = scipy.cKDTree(array).query_ball_point(array, r, workers=job.threads, return_sorted=False)
        return sum(map(len, found))

    def by_open3d(open3d: Any) -> int:
        cloud = open3d.core.Tensor.from_numpy(array)
        index = open3d.core.nns.NearestNeighborSearch(cloud, open3d.core.Dtype.Int32)
        index.fixed_radius_index(r)
        return len(index.fixed_radius_search(cloud, r, sort=True)[0])

    def by_cluster(cluster: Any) -> int:
        return cluster.radius(pos, pos, r, max_num_neighbors=1000, num_workers=job.threads).size(1)

    return {
        OURS: own(lambda: torch.tensor(len(radius(pos, r)[1]))),
        "geoattn, nothing compiled": own(lambda: torch.tensor(len(scipy_tree.radius(points, limit)[1]))),
        "scipy": lazily("scipy.spatial", by_scipy),
        "open3d": lazily("open3d", by_open3d),
        "torch-cluster": lazily("torch_cluster", by_cluster),
    }


def farthest_case(job: Job, cloud: Callable[[int], Tensor]) -> dict[str, Callable[[], Variant] | None]:
    """4,096 points of 100,000, the same share of others; each gives their indices. fpsample starts where it likes.

    open3d and torch-cluster, which take the better part of a minute, are left out.
    """
    pos = cloud(job.size)
    array, count = pos.numpy(), max(1, len(pos) * 4096 // 100_000)

    def kdline(height: int) -> Callable[[], Variant] | None:
        return lazily("fpsample", lambda m: m.bucket_fps_kdline_sampling(array, count, h=height), same=False)

    return {
        OURS: own(lambda: farthest_point_sample(pos, count)),
        **{f"fpsample, h={height}": kdline(height) for height in (5, 6, 7, 8)},  # fastest for sizes around 100,000
    }


def wide_case(job: Job, dim: int) -> dict[str, Callable[[], Variant] | None]:
    """Twenty neighbors among features, as layers search in feature space; each gives ``[N, 20]`` indices.

    ``cdist`` rounds in float32, so that it may swap keys that are as good as equally far.
    """
    x = torch.randn(job.size, dim)

    def nothing_compiled() -> Tensor:
        with backend("torch"):
            return knn(x, WIDE_NEIGHBORS)[1].view(-1, WIDE_NEIGHBORS)

    def distances() -> Variant:
        return Variant(lambda: torch.cdist(x, x).topk(WIDE_NEIGHBORS, largest=False).indices.double(), same=False)

    return {
        OURS: own(lambda: knn(x, WIDE_NEIGHBORS)[1].view(-1, WIDE_NEIGHBORS)),
        "geoattn, nothing compiled": own(nothing_compiled),
        "cdist + topk": distances,
        "torch-cluster": lazily(
            "torch_cluster", lambda m: m.knn(x, x, WIDE_NEIGHBORS)[1].view(-1, WIDE_NEIGHBORS), False
        ),
    }


def present(variants: dict[str, Callable[[], Variant] | None]) -> Variants:
    """Those whose module is installed."""
    return {name: variant for name, variant in variants.items() if variant is not None}


CASES = {
    f"{task}, {name}": lambda job, make=make, cloud=cloud: present(make(job, cloud))
    for task, make in (("knn", knn_case), ("radius", radius_case), ("farthest", farthest_case))
    for name, cloud in (("sphere", sphere), ("cube", cube))
} | {f"wide, {dim} dimensions": lambda job, dim=dim: present(wide_case(job, dim)) for dim in WIDE_DIMENSIONS}


def report(options: Options) -> None:
    """Run the sections and write the tables."""
    text, bars = [], []
    jobs = []
    for case in CASES:
        section = case.split(", ")[0]
        sizes = WIDE_SIZES if section == "wide" else (100_000,)
        if options.wants(section):
            jobs += [Job(case, size) for size in ((2_000,) if options.quick else sizes)]
    for job, timings in options.time(jobs).items():
        text += [f"## {job.case}, {job.size:,} points\n", ratio_table(timings)]
        peers = [name for name in timings.variants() if name not in NOT_PEERS]
        if peers and not job.case.startswith("radius"):
            times = [timings.seconds(name, FORWARD) for name in (OURS, *peers)]
            ratios = [ours / min(others) for ours, *others in zip(*times, strict=True)]
            wide = job.case.startswith("wide")
            name = f"{job.case}, {job.size:,} points" if wide else job.case
            bars.append(Bar(f"{name}: geoattn ÷ the fastest other", ratios, at_most=WIDE_BAR if wide else BAR))
    save(options, "search", "Neighbor search and sampling", ["## Bars\n", bar_table(bars, not options.quick), *text])


if __name__ == "__main__":
    main(CASES, report, ("knn", "radius", "wide", "farthest"))
