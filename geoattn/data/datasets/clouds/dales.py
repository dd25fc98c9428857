"""DALES: tiles of aerial lidar, eight classes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch_geometric.data import Data

from geoattn._arguments import warn_once
from geoattn.data.datasets.clouds.cloud_set import Array, CloudSet
from geoattn.data.io import LoadError, load, ply_points
from geoattn.data.labelled import Labelled
from geoattn.data.registry import register_layout

_TILES = {"train": 29, "test": 11}


class DALES(CloudSet):
    """Tiles of half a kilometre of aerial lidar (Varney et al. 2020), in metres, twelve million points each.

    ``train/`` and ``test/``, the official split (29 and 11 tiles), have the tiles ``5080_54435.*`` in any of the
    published forms: LAS (``dales_las``, labels in the classification), PLY (``dales_ply``, vertices with the property
    ``class``), or PLY of DALES Objects (points with ``sem_class`` and ``intensity``). Classes 1 to 8 of the files are
    0 to 7 here; 0, unknown, is -1. Samples have ``intensity`` from 0 to 1, if the file has it: 65,535 is 1; and
    ``origin`` where coordinates are far from 0 (see `geoattn.load`). There is no split for validation. Tiles are read
    when asked for. Layouts are as public code reads them; the files themselves were not at hand. See `CloudSet` for
    arguments, samples and errors.
    """

    names = ("ground", "vegetation", "cars", "trucks", "power lines", "fences", "poles", "buildings")
    splits = ("train", "test")
    source = (
        "get dales_semantic_segmentation_las.tar.gz or _ply.tar.gz, or DALESObjects.tar.gz (University of Dayton, "
        "search for DALES, after their form), unpack it and give the folder with train and test"
    )

    def __init__(self, path: str | Path, split: str = "train", transform: Callable[[Data], Data] | None = None) -> None:
        super().__init__(path, split, transform)
        self.tiles = _tiles(self.existing(self.folder / split))
        if not self.tiles:
            raise FileNotFoundError(f"{self.folder / split}: no tiles. {type(self).__name__}: {self.source}")
        if len(self.tiles) != _TILES[split]:
            warn_once(f"{self.folder / split}: {len(self.tiles)} of the {_TILES[split]} tiles of the {split} split")

    def len(self) -> int:
        """How many tiles."""
        return len(self.tiles)

    def get(self, idx: int) -> Data:
        """Read tile ``idx``."""
        file = self.tiles[idx]
        origin = None
        if file.suffix.lower() == ".ply":
            columns = ply_points(file)
            pos = np.stack([columns[axis] for axis in "xyz"], 1)
            label = next((columns[key] for key in ("sem_class", "class") if key in columns), None)
            intensity = columns.get("intensity")
        else:
            tile = load(file)
            pos, origin = tile.pos.numpy(), tile.get("origin")
            label, intensity = (None if key not in tile else tile[key].numpy() for key in ("label", "intensity"))
        if label is None:
            raise LoadError(f"{file}: no labels: expected the property sem_class or class (PLY), or a classification")
        scaled = None if intensity is None else intensity / 65535
        data = self.sample(file, file.stem, pos, _classes(file, label), intensity=scaled)
        if origin is not None:
            data.origin = origin
        return data


def _classes(file: Path, raw: Array) -> Array:
    outside = (raw < 0) | (raw > len(DALES.names))
    if outside.any():
        row = int(outside.argmax())
        raise LoadError(f"{file}: point {row} has label {raw[row]}; expected 0 (unknown) to {len(DALES.names)}")
    return raw.astype(np.int64) - 1


def _tiles(folder: Path) -> list[Path]:
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(file for file in files if re.fullmatch(r"\d{4}_\d{5}(_new)?\.(las|ply)", file.name, re.IGNORECASE))


@register_layout(
    "DALES (train/5080_54435.las or .ply)", lambda path: any(_tiles(path / split) for split in _TILES), name="dales"
)
def _dales(path: Path, split: str, labelled: Labelled | None) -> DALES:
    return DALES(path, split)
