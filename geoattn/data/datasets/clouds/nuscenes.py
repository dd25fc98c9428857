"""nuScenes-lidarseg: sweeps of a lidar on a car, sixteen classes."""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch_geometric.data import Data

from geoattn.data.datasets.clouds.cloud_set import (
    CloudSet,
    check_published,
    number_ranges,
    read_binary,
    read_json,
    remapped,
)
from geoattn.data.io import LoadError
from geoattn.data.labelled import IGNORED, Labelled
from geoattn.data.registry import register_layout

# The numbers of the scenes to validate on.
_VALIDATION = number_ranges(
    "3 12-18 35-36 38-39 92-110 221 268-278 329-332 344-346 519-524 552-565 625-627 629-630 632-638 770-771 775 "
    "777-778 780-784 794-800 802 904-917 919-931 962-963 966-969 971-972 1059-1073"
)
_MINI_VALIDATION = (103, 916)

# The classes of the challenge, with the categories of the data set that each of them is.
_CLASSES = {
    "barrier": ("movable_object.barrier",),
    "bicycle": ("vehicle.bicycle",),
    "bus": ("vehicle.bus.bendy", "vehicle.bus.rigid"),
    "car": ("vehicle.car",),
    "construction_vehicle": ("vehicle.construction",),
    "motorcycle": ("vehicle.motorcycle",),
    "pedestrian": (
        "human.pedestrian.adult",
        "human.pedestrian.child",
        "human.pedestrian.construction_worker",
        "human.pedestrian.police_officer",
    ),
    "traffic_cone": ("movable_object.trafficcone",),
    "trailer": ("vehicle.trailer",),
    "truck": ("vehicle.truck",),
    "driveable_surface": ("flat.driveable_surface",),
    "other_flat": ("flat.other",),
    "sidewalk": ("flat.sidewalk",),
    "terrain": ("flat.terrain",),
    "manmade": ("static.manmade",),
    "vegetation": ("static.vegetation",),
}


class _Sweep(NamedTuple):
    name: str
    points: Path
    labels: Path | None


class NuScenes(CloudSet):
    """The sweeps of nuScenes' lidar at keyframes, with labels (Caesar et al. 2020; Fong et al. 2022).

    In metres, in the sensor's frame. The folder has the tables of a version, ``v1.0-trainval``, ``v1.0-test`` or
    ``v1.0-mini`` (``scene.json``, ``sample.json``, ``sample_data.json``, and those that nuScenes-lidarseg adds:
    ``lidarseg.json``, ``category.json``), and the files that they name: ``samples/LIDAR_TOP/*.bin`` with float32
    ``x y z intensity ring`` for each point and ``lidarseg/<version>/*_lidarseg.bin`` with a category in uint8. The
    32 categories become the 16 classes of the challenge, others -1. Samples have ``intensity`` from 0 to 1: 255 is 1.

    The split is the official one by scenes: of ``v1.0-trainval`` 150 are to validate on; of ``v1.0-mini``, which is
    read where there is no other, 2 of 10. The labels of ``v1.0-test`` are not published: all -1. Sweeps are read when
    asked for, and are called ``scene-0001/<token>``, with the token of the lidar's data. Numbers and names are those of
    nuscenes-devkit; a whole table was not at hand. See `CloudSet` for arguments, samples and errors.

    Attributes:
        categories: The categories of the data set that each class is.
    """

    names = tuple(_CLASSES)
    categories = _CLASSES
    source = (
        "get nuScenes (the metadata and the lidar's keyframes) and nuScenes-lidarseg from nuscenes.org, after their "
        "terms of use, unpack all of it into one folder and give that, with v1.0-trainval (or v1.0-mini), samples and "
        "lidarseg"
    )

    def __init__(self, path: str | Path, split: str = "train", transform: Callable[[Data], Data] | None = None) -> None:
        super().__init__(path, split, transform)
        version = "v1.0-test" if split == "test" else "v1.0-trainval"
        validation = _VALIDATION
        if not (self.folder / version).is_dir() and (self.folder / "v1.0-mini").is_dir() and split != "test":
            version, validation = "v1.0-mini", _MINI_VALIDATION
        tables = self.existing(self.folder / version)
        scene_of_sample = self._scenes(tables, split, validation)
        labels: dict[str, Path | None] = {}
        self._label_of: dict[int, int] = {}
        if split != "test":
            self._label_of = self._categories(tables / "category.json")
            for row in self._table(tables / "lidarseg.json", "sample_data_token", "filename"):
                labels[row["sample_data_token"]] = self.folder / row["filename"]
        self.sweeps: list[_Sweep] = []
        for row in self._lidar_keyframes(tables / "sample_data.json"):
            scene = scene_of_sample.get(row["sample_token"])
            if scene is None:
                continue
            token = row["token"]
            if split != "test" and token not in labels:
                raise LoadError(f"{tables / 'lidarseg.json'}: no labels for the sweep {token} of {scene}")
            self.sweeps.append(_Sweep(f"{scene}/{token}", self.folder / row["filename"], labels.get(token)))
        if not self.sweeps:
            raise LoadError(f"{tables}: no keyframes of the lidar in the scenes of the {split} split")
        self.sweeps.sort(key=lambda sweep: (sweep.name.partition("/")[0], sweep.points.name))  # names end with the time

    def len(self) -> int:
        """How many sweeps."""
        return len(self.sweeps)

    def get(self, idx: int) -> Data:
        """Read sweep ``idx``."""
        sweep = self.sweeps[idx]
        rows = read_binary(self.existing(sweep.points), "<f4", 5)
        label = np.full(len(rows), IGNORED)
        if sweep.labels:
            raw = read_binary(self.existing(sweep.labels), "u1")
            if len(raw) != len(rows):
                raise LoadError(f"{sweep.labels}: {len(raw)} labels for the {len(rows)} points of {sweep.points.name}")
            label = remapped(sweep.labels, raw, self._label_of)
        return self.sample(sweep.points, sweep.name, rows[:, :3], label, intensity=rows[:, 3] / 255)

    def _table(self, file: Path, *fields: str) -> list[dict[str, Any]]:
        rows = read_json(self.existing(file))
        for row in rows if isinstance(rows, list) else [None]:
            missing = next((field for field in fields if not isinstance(row, dict) or field not in row), None)
            if missing:
                raise LoadError(f"{file}: expected a list of rows with {', '.join(fields)}; one has no {missing}")
        return rows

    def _scenes(self, tables: Path, split: str, validation: tuple[int, ...]) -> dict[str, str]:
        """The name of the scene of each sample of the split."""
        scenes = {row["token"]: row["name"] for row in self._table(tables / "scene.json", "token", "name")}
        held = {f"scene-{number:04d}" for number in validation}
        samples = self._table(tables / "sample.json", "token", "scene_token")
        scene_of = {row["token"]: scenes.get(row["scene_token"]) for row in samples}
        if None in scene_of.values():
            raise LoadError(f"{tables / 'sample.json'}: a sample of no scene of scene.json")
        return {
            sample: scene
            for sample, scene in scene_of.items()
            if scene and (split == "test" or (scene in held) == (split == "valid"))
        }

    def _categories(self, file: Path) -> dict[int, int]:
        """The class of each number in the files of labels."""
        class_of = {category: i for i, name in enumerate(_CLASSES) for category in _CLASSES[name]}
        rows = self._table(file, "name", "index")  # only the table of nuScenes-lidarseg has an index
        missing = set(class_of) - {row["name"] for row in rows}
        if missing:
            raise LoadError(f"{file}: no category {min(missing)!r}")
        return {row["index"]: class_of.get(row["name"], IGNORED) for row in rows}

    def _lidar_keyframes(self, file: Path) -> list[dict[str, Any]]:
        """The rows of the table of all sensors' data that are the lidar's at keyframes.

        It has millions of rows, most of them of other sensors, and a gigabyte: it is not parsed as a whole.
        """
        try:
            with self.existing(file).open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as text:
                found = [json.loads(row[0]) for row in re.finditer(rb"\{[^{}]*samples/LIDAR_TOP/[^{}]*\}", text)]
        except ValueError as error:  # no JSON, or an empty file
            raise LoadError(f"{file}: {error}") from error
        rows = [row for row in found if row.get("is_key_frame") is True]
        if not all({"token", "sample_token", "filename"} <= set(row) for row in rows):
            raise LoadError(f"{file}: expected rows with token, sample_token, filename")
        return rows


@register_layout(
    "nuScenes (v1.0-trainval/*.json)",
    lambda path: any((path / f"v1.0-{version}" / "scene.json").is_file() for version in ("trainval", "mini", "test")),
    name="nuscenes",
)
def _nuscenes(path: Path, split: str, labelled: Labelled | None) -> NuScenes:
    check_published("NuScenes", path, split)
    return NuScenes(path, split)
