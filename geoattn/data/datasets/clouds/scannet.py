"""ScanNet: scans of rooms, 20 or 200 classes."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch_geometric.data import Data

from geoattn._arguments import warn_once
from geoattn.data.datasets.clouds import scannet_classes
from geoattn.data.datasets.clouds.cloud_set import Array, CloudSet, check_published, read_array, read_json
from geoattn.data.io import LoadError, load
from geoattn.data.labelled import IGNORED, Labelled
from geoattn.data.registry import register_layout
from geoattn.geometry import vertex_normals

_SCANS = {"train": 1201, "valid": 312, "test": 100}
_LABEL_MAP = "scannetv2-labels.combined.tsv"


class ScanNet(CloudSet):
    """Vertices of reconstructed rooms with colors and normals, in metres, z up (Dai et al. 2017; Rozenberszki 2022).

    Two layouts are read:

    - the official one, ``scans/scene0000_00/`` (and ``scans_test``) with ``scene0000_00_vh_clean_2.ply``; normals are
      those of the mesh, weighted by area. Labels come from ``*_vh_clean_2.labels.ply``, or where that is not there,
      and for 200 classes, from ``*_vh_clean_2.0.010000.segs.json`` and ``*.aggregation.json``, whose names
      ``scannetv2-labels.combined.tsv`` in the folder above ``scans`` translates;
    - Pointcept's, ``{train,val,test}/scene0000_00/`` with ``coord.npy``, ``color.npy`` (0 to 255), ``normal.npy``,
      ``segment20.npy`` and ``segment200.npy``.

    The split is the official one by scenes (ScanNet v2): 1,201 scans for training, 312 to validate on and 100 for the
    test, whose labels are not published: they are all -1. What is not one of the classes is -1, too. Scans are read
    when asked for; those that are not there are left out, with a warning. Layouts, classes and scenes are from the
    authors' repository and Pointcept's; the files themselves were not at hand. See `CloudSet` for samples and errors.

    Args:
        path: The folder with ``scans`` or with ``train`` and ``val``.
        split: ``"train"``, ``"valid"`` or ``"test"``.
        transform: Applied to each sample when it is read.
        classes: 20, or 200 for ScanNet200.
    """

    source = (
        f"get the scans' _vh_clean_2.ply, .labels.ply, .segs.json and .aggregation.json and {_LABEL_MAP} with the "
        "script that ScanNet's authors send (scan-net.org, after their terms of use), and give the folder with scans"
    )

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        transform: Callable[[Data], Data] | None = None,
        classes: int = 20,
    ) -> None:
        super().__init__(path, split, transform)
        if classes not in (20, 200):
            raise ValueError(f"classes must be 20 or 200, got {classes!r}")
        self.classes = classes
        self.names = scannet_classes.NAMES_20 if classes == 20 else scannet_classes.NAMES_200
        if (self.folder / "train").is_dir() or (self.folder / "val").is_dir():
            root = self.existing(self.folder / ("val" if split == "valid" else split))
        else:
            root = self.existing(self.folder / ("scans_test" if split == "test" else "scans"))
        self.scans = sorted(scan for scan in root.iterdir() if _split_of(scan.name) == split)
        if not self.scans:
            raise FileNotFoundError(
                f"{root}: none of the scans of the {split} split. {type(self).__name__}: {self.source}"
            )
        if len(self.scans) != _SCANS[split]:
            warn_once(f"{root}: {len(self.scans)} of the {_SCANS[split]} scans of the {split} split")

    def len(self) -> int:
        """How many scans."""
        return len(self.scans)

    def get(self, idx: int) -> Data:
        """Read scan ``idx``."""
        scan = self.scans[idx]
        return self._arrays(scan) if (scan / "coord.npy").is_file() else self._mesh(scan)

    def _arrays(self, scan: Path) -> Data:
        pos, color, normal = (read_array(self.existing(scan / f"{key}.npy")) for key in ("coord", "color", "normal"))
        label = np.full(len(pos), IGNORED)
        if self.split != "test":
            label = read_array(self.existing(scan / f"segment{self.classes}.npy")).reshape(-1)
        return self.sample(scan, scan.name, pos, label, color=color / 255, normal=normal)

    def _mesh(self, scan: Path) -> Data:
        file = self.existing(scan / f"{scan.name}_vh_clean_2.ply")
        mesh = load(file)
        if mesh.face is None:
            raise LoadError(f"{file}: no faces")
        label = np.full(mesh.pos.size(0), IGNORED)
        if self.split != "test":
            label = self._labels(scan, mesh.pos.size(0))
        color = None if mesh.get("color") is None else mesh.color[:, :3].numpy()
        normal = vertex_normals(mesh.pos, mesh.face).numpy()
        return self.sample(file, scan.name, mesh.pos.numpy(), label, color=color, normal=normal)

    def _labels(self, scan: Path, count: int) -> Array:
        painted = scan / f"{scan.name}_vh_clean_2.labels.ply"
        if self.classes == 20 and painted.is_file():
            nyu40 = load(painted).get("label")
            if nyu40 is None or nyu40.size(0) != count or nyu40.is_floating_point():
                raise LoadError(f"{painted}: expected an integer 'label' for each of the {count} vertices of the scan")
            return _classes(nyu40.numpy(), scannet_classes.NYU40_IDS)
        file = self.existing(scan / f"{scan.name}_vh_clean_2.0.010000.segs.json")
        segment = np.array(_field(file, read_json(file), "segIndices", list))
        if segment.shape != (count,) or segment.dtype.kind not in "iu":
            raise LoadError(f"{file}: segIndices {list(segment.shape)} for the {count} vertices of the scan")
        of_name = self._label_map()
        file = self.existing(scan / f"{scan.name}.aggregation.json")
        label = np.zeros(count, np.int64)
        for group in _field(file, read_json(file), "segGroups", list):
            # Names that the map does not have are of no class.
            label[np.isin(segment, _field(file, group, "segments", list))] = of_name.get(
                _field(file, group, "label", str), 0
            )
        return _classes(label, scannet_classes.NYU40_IDS if self.classes == 20 else scannet_classes.IDS_200)

    def _label_map(self) -> dict[str, int]:
        """The id of each name of an object that annotators gave."""
        file = self.existing(self.folder / _LABEL_MAP)
        column = "nyu40id" if self.classes == 20 else "id"
        with file.open(encoding="utf-8", newline="") as text:
            rows = list(csv.DictReader(text, delimiter="\t"))
        try:
            # Pandas, which public code reads this with, takes the first row of a name.
            return {row["raw_category"]: int(row[column]) for row in reversed(rows)}
        except (KeyError, TypeError, ValueError) as error:
            raise LoadError(f"{file}: expected columns raw_category and {column}, with integers: {error}") from error


def _split_of(name: str) -> str | None:
    """The official split of a scan."""
    found = re.fullmatch(r"scene(\d{4})_\d\d", name)
    if not found:
        return None
    scene = int(found[1])
    return "test" if scene > 706 else "valid" if scene in scannet_classes.VALIDATION else "train"


def _classes(raw: Array, ids: tuple[int, ...]) -> Array:
    """Ids as numbers of classes; -1 for those that are no class."""
    table = np.full(max(*ids, int(raw.max(initial=0))) + 1, IGNORED)
    table[list(ids)] = np.arange(len(ids))
    return table[np.maximum(raw, 0)]


def _field(file: Path, values: Any, key: str, kind: type) -> Any:
    if not isinstance(values, dict) or not isinstance(values.get(key), kind):
        raise LoadError(f"{file}: expected a field {key!r}, a {kind.__name__}")
    return values[key]


def _recognises(path: Path) -> bool:
    folders = (path / name for name in ("scans", "scans_test", "train", "val", "test"))
    return any(folder.is_dir() and any(map(_split_of, (scan.name for scan in folder.iterdir()))) for folder in folders)


@register_layout("ScanNet (scans/scene0000_00/*.ply or train/scene0000_00/*.npy)", _recognises, name="scannet")
def _scannet(path: Path, split: str, labelled: Labelled | None) -> ScanNet:
    check_published("ScanNet", path, split)
    return ScanNet(path, split)
