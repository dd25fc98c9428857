"""500 objects of DALES Objects, cut out of aerial lidar."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch_geometric.data import Data

from geoattn.data.datasets.clouds.cloud_set import Array, CloudSet, check_offset, read_arrays
from geoattn.data.io import LoadError
from geoattn.data.labelled import Labelled
from geoattn.data.registry import register_layout

_FILE = "dales_objects500_max1024.npz"


class DALESObjects(CloudSet):
    """Five hundred objects of DALES Objects (Singer et al. 2021), as TU Delft's course GEO5017 hands them out.

    There are a hundred clouds ``NNN.xyz`` of each of five classes, ``NNN // 100``. Of these a single file was made,
    `dales_objects500_max1024.npz`: points ``xyz`` in metres around each object's mean (at most 1,024 of an object),
    ``offset``, ``label`` and ``object_id``, the NNN. See `CloudSet` for arguments, samples and errors.

    The set has **no official split**. Here, the test are in each class the 20 objects whose three digits NNN have the
    smallest SHA-256 digests; all others are for training. A hundred test objects, and the same for everyone.
    """

    names = ("building", "car", "fence", "pole", "tree")
    labelled: Labelled = "whole"
    splits = ("train", "test")
    source = (
        f"expected {_FILE}: see datasets/README.md for its layout, which is made of the xyz files of "
        "github.com/LarsBoertjes/GEO5017_assignment2"
    )

    def __init__(self, path: str | Path, split: str = "train", transform: Callable[[Data], Data] | None = None) -> None:
        super().__init__(path, split, transform)
        self.file = self.existing(self.folder / _FILE)
        self.xyz, self.offset, self.label, self.object_id = read_arrays(
            self.file, "xyz", "offset", "label", "object_id"
        )
        count = len(self.label)
        check_offset(self.file, self.offset, count, len(self.xyz))
        if self.object_id.shape != (count,) or not np.array_equal(self.object_id // 100, self.label):
            raise LoadError(f"{self.file}: object_id must be [{count}], with object_id // 100 the label")
        test = {number for label in range(5) for number in _test_objects(self.object_id[self.label == label])}
        self.chosen = [i for i in range(count) if (int(self.object_id[i]) in test) == (split == "test")]

    def len(self) -> int:
        """How many samples."""
        return len(self.chosen)

    def get(self, idx: int) -> Data:
        """Sample ``idx``."""
        i = self.chosen[idx]
        name = f"{self.object_id[i]:03d}"
        pos = self.xyz[self.offset[i] : self.offset[i + 1]]
        return self.sample(f"{self.file}: object {name}", name, pos, self.label[i])


def _test_objects(numbers: Array) -> list[int]:
    return sorted(numbers.tolist(), key=lambda number: hashlib.sha256(f"{number:03d}".encode()).digest())[:20]


@register_layout(f"objects of DALES ({_FILE})", lambda path: (path / _FILE).is_file(), name="dales_objects")
def _dales_objects(path: Path, split: str, labelled: Labelled | None) -> DALESObjects:
    return DALESObjects(path, split)
