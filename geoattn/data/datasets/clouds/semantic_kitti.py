"""SemanticKITTI: sweeps of a lidar on a car."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch_geometric.data import Data

from geoattn._arguments import warn_once
from geoattn.data.datasets.clouds.cloud_set import CloudSet, check_published, number_ranges, read_binary, remapped
from geoattn.data.io import LoadError
from geoattn.data.labelled import IGNORED, Labelled
from geoattn.data.registry import register_layout

_SEQUENCES = {"train": number_ranges("0-7 9-10"), "valid": (8,), "test": number_ranges("11-21")}

# What points of the 19 classes are, and what they are where they move.
_CLASSES = {
    "car": (10,),
    "bicycle": (11,),
    "motorcycle": (15,),
    "truck": (18,),
    "other-vehicle": (20, 13, 16),  # buses, on rails
    "person": (30,),
    "bicyclist": (31,),
    "motorcyclist": (32,),
    "road": (40, 60),  # lane markings
    "parking": (44,),
    "sidewalk": (48,),
    "other-ground": (49,),
    "building": (50,),
    "fence": (51,),
    "vegetation": (70,),
    "trunk": (71,),
    "terrain": (72,),
    "pole": (80,),
    "traffic-sign": (81,),
}
_MOVING = {
    "car": (252,),
    "bicyclist": (253,),
    "person": (254,),
    "motorcyclist": (255,),
    "other-vehicle": (259, 256, 257),
    "truck": (258,),
}
_NO_CLASS = (0, 1, 52, 99)  # unlabeled, outlier, other structure, other object


class SemanticKITTI(CloudSet):
    """Sweeps of KITTI's odometry benchmark with labels (Behley et al., ICCV 2019), in metres, in the sensor's frame.

    ``sequences/00/velodyne/000000.bin`` has float32 ``x y z remission`` for each point, and
    ``sequences/00/labels/000000.label`` uint32: the label in the lower 16 bits, which the authors' ``learning_map``
    makes one of 19 classes, and an instance in the upper ones. With ``moving``, what moves has classes of its own, as
    in the benchmark of several sweeps: 25. What is unlabeled, an outlier, another structure or object is -1.

    The split is by sequences: 8 to validate on, 11 to 21 for the test, whose labels are not published (all -1). Sweeps
    are read when asked for, and are called ``00/000000``; sequences that are not there are left out, with a warning.
    Samples have ``intensity``, the remission. Numbers are those of the authors' semantic-kitti.yaml and
    semantic-kitti-all.yaml. See `CloudSet` for samples and errors.

    Args:
        path: The folder with ``sequences``, or with ``dataset/sequences``.
        split: ``"train"``, ``"valid"`` or ``"test"``.
        transform: Applied to each sample when it is read.
        moving: Whether what moves has classes of its own.
    """

    source = (
        "get data_odometry_velodyne.zip (cvlibs.net/datasets/kitti, odometry) and data_odometry_labels.zip "
        "(semantic-kitti.org), unpack both into the same folder and give the one with sequences"
    )

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        transform: Callable[[Data], Data] | None = None,
        moving: bool = False,
    ) -> None:
        super().__init__(path, split, transform)
        self.names = (*_CLASSES, *(f"moving-{name}" for name in _MOVING if moving))
        self._label_of = dict.fromkeys(_NO_CLASS, IGNORED)
        for name, raw in _CLASSES.items():
            self._label_of |= dict.fromkeys(raw, self.names.index(name))
        for name, raw in _MOVING.items():
            self._label_of |= dict.fromkeys(raw, self.names.index(f"moving-{name}" if moving else name))
        root = self.existing(_sequences(self.folder))
        wanted = [root / f"{sequence:02d}" for sequence in _SEQUENCES[split]]
        there = [folder for folder in wanted if (folder / "velodyne").is_dir()] or [
            self.existing(wanted[0] / "velodyne")
        ]
        if len(there) != len(wanted):
            warn_once(f"{root}: {len(there)} of the {len(wanted)} sequences of the {split} split")
        self.sweeps = [sweep for folder in there for sweep in sorted((folder / "velodyne").glob("*.bin"))]

    def len(self) -> int:
        """How many sweeps."""
        return len(self.sweeps)

    def get(self, idx: int) -> Data:
        """Read sweep ``idx``."""
        file = self.sweeps[idx]
        sequence = file.parent.parent
        rows = read_binary(file, "<f4", 4)
        label = np.full(len(rows), IGNORED)
        if self.split != "test":
            labels = self.existing(sequence / "labels" / f"{file.stem}.label")
            raw = read_binary(labels, "<u4")
            if len(raw) != len(rows):
                raise LoadError(f"{labels}: {len(raw)} labels for the {len(rows)} points of {file.name}")
            label = remapped(labels, raw & 0xFFFF, self._label_of)
        return self.sample(file, f"{sequence.name}/{file.stem}", rows[:, :3], label, intensity=rows[:, 3])


def _sequences(path: Path) -> Path:
    return path / ("sequences" if (path / "sequences").is_dir() else "dataset/sequences")


@register_layout(
    "SemanticKITTI (sequences/00/velodyne/*.bin)",
    lambda path: any(_sequences(path).glob("[0-9][0-9]/velodyne")),
    name="semantic_kitti",
)
def _semantic_kitti(path: Path, split: str, labelled: Labelled | None) -> SemanticKITTI:
    check_published("SemanticKITTI", path, split)
    return SemanticKITTI(path, split)
