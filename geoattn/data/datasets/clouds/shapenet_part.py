"""ShapeNetPart: parts of objects of sixteen categories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch_geometric.data import Data

from geoattn.data.datasets.clouds.cloud_set import CloudSet, check_offset, read_arrays, read_json, read_table
from geoattn.data.io import LoadError
from geoattn.data.labelled import Labelled
from geoattn.data.registry import register_layout

# Synset, name, number of parts. Parts are numbered through in this order: 0 to 49.
_CATEGORIES = (
    ("02691156", "Airplane", 4),
    ("02773838", "Bag", 2),
    ("02954340", "Cap", 2),
    ("02958343", "Car", 4),
    ("03001627", "Chair", 4),
    ("03261776", "Earphone", 3),
    ("03467517", "Guitar", 3),
    ("03624134", "Knife", 2),
    ("03636649", "Lamp", 4),
    ("03642806", "Laptop", 2),
    ("03790512", "Motorbike", 6),
    ("03797390", "Mug", 2),
    ("03948459", "Pistol", 3),
    ("04099429", "Rocket", 3),
    ("04225987", "Skateboard", 3),
    ("04379243", "Table", 3),
)
_SYNSETS = {synset: index for index, (synset, _, _) in enumerate(_CATEGORIES)}
_FIRST = np.cumsum([0] + [count for _, _, count in _CATEGORIES]).tolist()


class _Parts(CloudSet):
    """Classes and categories of ShapeNetPart, and samples with both."""

    names = tuple(f"{name} {part}" for _, name, count in _CATEGORIES for part in range(count))
    category_names = tuple(name for _, name, _ in _CATEGORIES)
    parts_of_category = tuple(tuple(range(_FIRST[i], _FIRST[i + 1])) for i in range(len(_CATEGORIES)))

    def with_category(self, where: object, data: Data, category: int) -> Data:
        """The sample with its ``category``, whose parts alone its points may be."""
        parts = self.parts_of_category[category]
        wrong = (data.y < parts[0]) | (data.y > parts[-1])
        if bool(wrong.any()):
            row = int(wrong.int().argmax())
            name = self.category_names[category]
            raise LoadError(
                f"{where}: point {row} has label {int(data.y[row])}; parts of {name} are {parts[0]} to {parts[-1]}"
            )
        data.category = torch.tensor([category])
        return data


class ShapeNetPart(_Parts):
    """Objects of sixteen categories with fifty kinds of parts (Yi et al. 2016), with normals.

    The layout is that of ``shapenetcore_partanno_segmentation_benchmark_v0_normal``: a folder for each category, named
    by its synset, with a text file ``x y z nx ny nz part`` for each object, and the official split in
    ``train_test_split/shuffled_{train,val,test}_file_list.json``. Parts have no names in the files, and are called by
    their category and their number in it. Samples have ``category`` ``[1]``, too. See `CloudSet` for arguments, samples
    and errors. Not read from the official files, which were not at hand: layout and numbering are as public code and
    a few files in this layout have them.

    Attributes:
        category_names: Names of the categories, numbered as everywhere: by the alphabet.
        parts_of_category: The classes that are parts of each category.
    """

    source = (
        "get shapenetcore_partanno_segmentation_benchmark_v0_normal.zip (shapenet.org; the terms of ShapeNet apply), "
        "unpack it and give the folder with train_test_split and the folders 02691156, ..."
    )

    def __init__(self, path: str | Path, split: str = "train", transform: Callable[[Data], Data] | None = None) -> None:
        super().__init__(path, split, transform)
        short = "val" if split == "valid" else split
        self.listed = self.existing(self.folder / "train_test_split" / f"shuffled_{short}_file_list.json")
        shapes = read_json(self.listed)
        if not isinstance(shapes, list) or not shapes:
            raise LoadError(f"{self.listed}: expected a list of shapes")
        self.shapes: list[tuple[str, str]] = []
        for shape in shapes:
            words = shape.split("/") if isinstance(shape, str) else []
            if len(words) != 3 or words[1] not in _SYNSETS or words[2] in ("", ".", ".."):
                raise LoadError(f"{self.listed}: {shape!r} is not of the form shape_data/<synset>/<shape>")
            self.shapes.append((words[1], words[2]))

    def len(self) -> int:
        """How many samples."""
        return len(self.shapes)

    def get(self, idx: int) -> Data:
        """Read sample ``idx``."""
        synset, shape = self.shapes[idx]
        file = self.existing(self.folder / synset / f"{shape}.txt")
        rows = read_table(file, 7)
        data = self.sample(file, f"{synset}/{shape}", rows[:, :3], rows[:, 6], normal=rows[:, 3:6])
        return self.with_category(file, data, _SYNSETS[synset])


class ShapeNetPartCap(_Parts):
    """The caps of ShapeNetPart's splits for validation and test alone: what there is of it without a download.

    ``cap_val.npz`` and ``cap_test.npz`` have ``pos``, ``normal``, ``part_label`` (6 or 7) and ``offset``. The 5 caps of
    the official split for validation are the training split here, as the official training caps are not there: this
    checks that parts of objects can be learned and measured, and is **no benchmark**. Classes and categories are
    `ShapeNetPart`'s. See `CloudSet` for arguments, samples and errors.
    """

    splits = ("train", "test")
    source = "expected cap_val.npz and cap_test.npz in this folder; see datasets/README.md for their layout"

    def __init__(self, path: str | Path, split: str = "train", transform: Callable[[Data], Data] | None = None) -> None:
        super().__init__(path, split, transform)
        self.file = self.existing(self.folder / f"cap_{'val' if split == 'train' else 'test'}.npz")
        self.pos, self.normal, self.part, self.offset = read_arrays(self.file, "pos", "normal", "part_label", "offset")
        check_offset(self.file, self.offset, len(self.offset) - 1, len(self.pos))

    def len(self) -> int:
        """How many samples."""
        return len(self.offset) - 1

    def get(self, idx: int) -> Data:
        """Sample ``idx``."""
        where, rows = f"{self.file}: shape {idx}", slice(self.offset[idx], self.offset[idx + 1])
        data = self.sample(where, f"cap_{idx:02d}", self.pos[rows], self.part[rows], normal=self.normal[rows])
        return self.with_category(where, data, self.category_names.index("Cap"))


@register_layout(
    "ShapeNetPart (train_test_split/shuffled_*_file_list.json)",
    lambda path: any((path / "train_test_split").glob("shuffled_*_file_list.json")),
    name="shapenet_part",
)
def _shapenet_part(path: Path, split: str, labelled: Labelled | None) -> ShapeNetPart:
    return ShapeNetPart(path, split)


@register_layout("its caps (cap_val.npz)", lambda path: (path / "cap_val.npz").is_file())
def _cap(path: Path, split: str, labelled: Labelled | None) -> ShapeNetPartCap:
    return ShapeNetPartCap(path, split)
