"""The checkpoint of scenes on scans that nobody here made: things on tables, and ground seen from the air.

The Object Segmentation Database (Richtsfeld et al. 2012, in PCL's data repository) and laspy's autzen_trim.laz are in
``--data``, as osd/*/*.pcd and las/autzen_trim.laz.

python -m benchmarks.scene_transfer --data ../shared/data/points
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

import geoattn
from geoattn.data.point_augment import rotated
from geoattn.geometry import point_normals, upright
from geoattn.models import load_model
from geoattn.models.points import PointNetwork
from geoattn.models.segmentation import SegmentationTask, segment
from geoattn.train import TrainConfig, fit

SUPPORT = ("wall", "floor", "ceiling", "table")
"""What the network calls what things stand on; all else is a thing."""


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default=str(Path(geoattn.__file__).parent / "models/segmentation/assets/scene"))
    parser.add_argument("--output", type=Path, default=Path("runs/autzen"), help="of what is trained on autzen")
    parser.add_argument("--epochs", type=int, default=4, help="on autzen")
    parser.add_argument("--votes", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(options.model)
    assert isinstance(model, PointNetwork)
    tables(sorted((options.data / "osd").glob("*/*.pcd")), model, options.votes)
    ground(options.data / "las" / "autzen_trim.laz", model, options)


def tables(paths: list[Path], model: PointNetwork, votes: int) -> None:
    """Table against things: every fourth point is labelled and counted."""
    print("| scene | method | accuracy | IoU of the table | IoU of things |\n|---|---|---|---|---|")
    for path in paths:
        scan = geoattn.load(path)
        pos, thing = scan.pos[::4], scan.label[::4] >= 20
        normal = point_normals(pos, 32, viewpoint=[0, 0, 0])
        turn = upright(normal)
        found = segment(Data(pos=pos @ turn.T, normal=normal @ turn.T), model, votes=votes, fragments=None).label
        support = torch.tensor([name in SUPPORT for name in model.config.names])
        table = torch.tensor([name == "table" for name in model.config.names])
        for method, other in (
            ("network, all surfaces are support", ~support[found]),
            ("network, only tables are support", ~table[found]),
            ("largest plane, 1 cm", off_plane(pos)),
            ("all is table", torch.zeros_like(thing)),
        ):
            right, *iou = scores(other, thing)
            print(f"| {path.stem} | {method} | {right:.1%} | {iou[0]:.1%} | {iou[1]:.1%} |", flush=True)


def off_plane(pos: Tensor, distance: float = 0.01) -> Tensor:
    """Whether points are farther than ``distance`` from the plane that most of them are near (RANSAC)."""
    rng = np.random.default_rng(0)
    few = pos[rng.choice(len(pos), 2000, replace=False)].double()
    best, near = 0, torch.zeros(len(pos), dtype=torch.bool)
    for _ in range(500):
        a, b, c = few[rng.choice(len(few), 3, replace=False)]
        normal = torch.linalg.cross(b - a, c - a)
        normal = normal / normal.norm().clamp_min(1e-12)
        count = int((((few - a) @ normal).abs() < distance).sum())
        if count > best:
            best, near = count, ((pos.double() - a) @ normal).abs() < distance
    middle = pos[near].double().mean(0)
    normal = torch.linalg.svd(pos[near].double() - middle, full_matrices=False)[2][2]
    return ((pos.double() - middle) @ normal).abs() >= distance


def scores(found: Tensor, true: Tensor) -> tuple[float, float, float]:
    """Accuracy, and IoU of False and of True."""
    iou = [float(((found == k) & (true == k)).sum() / ((found == k) | (true == k)).sum()) for k in (False, True)]
    return float((found == true).float().mean()), iou[0], iou[1]


class Tiles(list[Data]):
    """Squares of a scan."""

    names = ("other", "ground")
    labelled = "vertex"


def cut(scan: Data, side: float, shift: float = 0.0) -> Tiles:
    """The squares of a scan that have at least 100 points, each with the numbers of its points as ``index``."""
    cell = ((scan.pos[:, :2] - scan.pos[:, :2].amin(0)) / side + shift).long()
    square = cell[:, 0] * 1000 + cell[:, 1]
    found = Tiles()
    for number in square.unique():
        index = (square == number).nonzero()[:, 0]
        if len(index) >= 100 or shift == 0:
            found.append(Data(pos=scan.pos[index], normal=scan.normal[index], y=scan.y[index], index=index))
    return found


def ground(path: Path, model: PointNetwork, options: argparse.Namespace) -> None:
    """Ground against the rest: trained on the west half, measured on the east, in squares of 200 feet."""
    scan = geoattn.load(path)
    y = (scan.label == 2).long()
    # A voxel of the network, 2 cm, for 2.5 feet, the distance of the points.
    scale = model.config.grid_size / 2.5
    pos = (scan.pos - scan.pos.amin(0)) * scale
    west = scan.pos[:, 0] < (scan.pos[:, 0].amin() + scan.pos[:, 0].amax()) / 2
    halves = [Data(pos=pos[half], y=y[half], normal=point_normals(pos[half])) for half in (west, ~west)]
    truth = y[~west].bool()

    print("| method | balanced accuracy | IoU of ground |\n|---|---|---|")

    def row(method: str, found: Tensor) -> None:
        both = ((found & truth).sum() / truth.sum() + (~found & ~truth).sum() / (~truth).sum()) / 2
        print(f"| {method} | {float(both):.1%} | {scores(found, truth)[2]:.1%} |", flush=True)

    row("height above the lowest point around", low_points(scan.pos, y.bool(), west)[~west])
    training = Tiles()
    for angle in (0.0, 0.8, 1.6, 2.4):
        turned = rotated(halves[0], angle)
        training += cut(turned, 200 * scale) + cut(turned, 200 * scale, 0.5)
    testing = cut(halves[1], 200 * scale)
    for start in ("the checkpoint", "random weights"):
        torch.manual_seed(0)
        task = SegmentationTask(copies=1, class_weights="balanced")
        facts = {field.name for field in fields(model.config) if field.metadata.get("from_data")}
        config = {key: value for key, value in asdict(model.config).items() if key not in facts}
        network = task.model(training, model.name, **config)
        if start == "the checkpoint":
            own = network.state_dict()
            fits = {key: value for key, value in model.state_dict().items() if value.shape == own[key].shape}
            network.load_state_dict({**own, **fits})
        how = TrainConfig(epochs=options.epochs, batch_size=2, lr=2e-3, workers=0)
        fit(task, network, training, options.output / start.replace(" ", "-"), how, resume=True)
        found = torch.zeros_like(truth)
        for tile in testing:
            found[tile.index] = segment(tile, network, votes=options.votes, fragments=None).label == 1
        row(f"network, from {start}", found)


def low_points(pos: Tensor, ground: Tensor, west: Tensor) -> Tensor:
    """Points less than so much above the lowest one in their square; both numbers are the best ones for the west."""
    best, answer = 0.0, ground
    for side in (10, 20, 30, 50, 80):
        cell = ((pos[:, :2] - pos[:, :2].amin(0)) / side).long()
        square = (cell[:, 0] * 100_000 + cell[:, 1]).unique(return_inverse=True)[1]
        low = torch.full((int(square.max()) + 1,), torch.inf).scatter_reduce_(0, square, pos[:, 2], "amin")
        above = pos[:, 2] - low[square]
        for height in (0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0):
            found = above < height
            mine, true = found[west], ground[west]
            both = float((mine & true).sum() / true.sum() + (~mine & ~true).sum() / (~true).sum()) / 2
            if both > best:
                best, answer = both, found
    return answer


if __name__ == "__main__":
    main()
