"""A cloud of five million points through ``geoattn segment``: time, and the most memory that it ever holds.

    python -m benchmarks.segment_cloud [--points 5000000] [--grid-size 0.6] [--threads 2]

The cloud is a town without noise, the ground and the walls and roofs of houses over 400 m, as LAZ with colours. The
network is Point Transformer V3 as it was published, with 46 million random weights and 20 classes.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import laspy
import numpy as np
import torch

from geoattn.models import create_model


def town(points: int, side: float = 400.0) -> np.ndarray:
    """Points ``[N, 3]`` evenly on the ground and on the houses of a town, in metres."""
    random = np.random.default_rng(0)
    corner = np.stack(np.meshgrid(np.arange(10, side - 20, 25), np.arange(10, side - 20, 25)), -1).reshape(-1, 2)
    size = random.uniform([8, 8, 4], [14, 14, 12], (len(corner), 3))
    # Each rectangle: a corner and two edges.
    x, y, z = (size * axis for axis in np.eye(3))
    foot = np.pad(corner, ((0, 0), (0, 1)))
    sides = [(foot, x, z), (foot, y, z), (foot + y, x, z), (foot + x, y, z), (foot + z, x, y)]
    ground = np.array([[0, 0, 0]]), np.array([[side, 0, 0]]), np.array([[0, side, 0]])
    start, first, second = (np.concatenate(parts) for parts in zip(ground, *sides, strict=True))
    area = np.linalg.norm(np.cross(first, second), axis=1)
    of = random.choice(len(area), points, p=area / area.sum())
    a, b = random.random((2, points, 1))
    return start[of] + a * first[of] + b * second[of]


def main() -> None:
    """Make the cloud and the network, run the command, print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=5_000_000)
    parser.add_argument("--grid-size", type=float, default=0.6)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pos = town(arguments.points)
        las = laspy.LasData(laspy.LasHeader(version="1.4", point_format=7))
        las.header.scales, las.header.offsets = [0.001] * 3, [500_000, 5_600_000, 0]
        las.x, las.y, las.z = (pos + [500_000, 5_600_000, 200]).T
        las.red, las.green, las.blue = (pos * 100).astype(np.uint16).T
        las.write(folder / "town.laz")
        del las, pos
        torch.manual_seed(0)
        create_model(
            "point_transformer_v3",
            names=tuple(f"class {i}" for i in range(20)),
            features=("pos", "color"),
            grid_size=arguments.grid_size,
        ).save_pretrained(folder / "model")
        command = ["segment", folder / "town.laz", "-o", folder / "labelled.laz", "--model", folder / "model"]
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "geoattn", *command, "--threads", str(arguments.threads)], check=True)
        seconds = time.perf_counter() - start
        with laspy.open(folder / "labelled.laz") as reader:
            assert reader.header.point_count == arguments.points
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(f"{arguments.points} points: {seconds:.0f} s, peak memory {peak:.2f} GB")


if __name__ == "__main__":
    main()
