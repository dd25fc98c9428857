"""S3DIS: rooms of six areas of buildings, thirteen classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch_geometric.data import Data

from geoattn.data.datasets.clouds.cloud_set import CloudSet, natural, read_array, read_table
from geoattn.data.io import LoadError
from geoattn.data.labelled import Labelled
from geoattn.data.registry import register_layout

# A few bytes of the official files lost the bit 0x20: blanks became 0x00, digits 0x10 to 0x19. So users report
# '185\x00187' (Area_5/hallway_6), '103.0\x100000' (Area_5/office_19) and '-9.1\x160' (Area_3/hallway_2). Only
# tabs and ends of lines are as they should be.
_REPAIRED = bytes(byte | 0x20 if byte < 0x20 and byte not in b"\t\r\n" else byte for byte in range(256))

_NAMES = "ceiling floor wall beam column window door table chair sofa bookcase board clutter"


class S3DIS(CloudSet):
    """Rooms with colors (Armeni et al. 2016), one sample each, in metres.

    Two layouts are read:

    - the official ``Stanford3dDataset_v1.2_Aligned_Version``: ``Area_<i>/<room>/Annotations/<class>_<j>.txt``, a line
      ``x y z r g b`` for each point. Points are in the order of the files' names. ``stairs`` count as ``clutter``, as
      in the benchmark. Some bytes of the official files are damaged, always in the same way, which is undone. A million
      points take half a second;
    - Pointcept's: ``Area_<i>/<room>/`` with ``coord.npy``, ``color.npy`` (0 to 255), ``segment.npy`` and, if it was
      made, ``normal.npy``.

    The split is by areas: the usual test is Area 5; the six-fold validation takes each in turn. There is no split for
    validation. Rooms are read when asked for, and are called ``Area_1/office_1``. Layouts are as public code and
    reports of users have them; the files themselves were not at hand. See `CloudSet` for samples and errors.

    Args:
        path: The folder with ``Area_1`` to ``Area_6``.
        split: ``"train"`` or ``"test"``.
        transform: Applied to each sample when it is read.
        test_area: The area to test on, 1 to 6.
    """

    names = tuple(_NAMES.split())
    splits = ("train", "test")
    source = (
        "get Stanford3dDataset_v1.2_Aligned_Version.zip (buildingparser.stanford.edu, after its form), unpack it and "
        "give the folder with Area_1 to Area_6"
    )

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        transform: Callable[[Data], Data] | None = None,
        test_area: int = 5,
    ) -> None:
        super().__init__(path, split, transform)
        if test_area not in range(1, 7):
            raise ValueError(f"test_area must be 1 to 6, got {test_area!r}")
        areas = [area for area in range(1, 7) if (area == test_area) == (split == "test")]
        folders = [self.existing(self.folder / f"Area_{area}") for area in areas]
        self.rooms = [room for area in folders for room in sorted(area.iterdir(), key=natural) if _is_room(room)]
        for area in folders:
            if not any(room.parent == area for room in self.rooms):
                raise LoadError(f"{area}: no rooms: expected <room>/Annotations/*.txt or <room>/coord.npy")

    def len(self) -> int:
        """How many rooms."""
        return len(self.rooms)

    def get(self, idx: int) -> Data:
        """Read room ``idx``."""
        room = self.rooms[idx]
        name = f"{room.parent.name}/{room.name}"
        if (room / "coord.npy").is_file():
            pos, color = (read_array(self.existing(room / f"{key}.npy")) for key in ("coord", "color"))
            label = read_array(self.existing(room / "segment.npy")).reshape(-1)
            normal = read_array(room / "normal.npy") if (room / "normal.npy").is_file() else None
            return self.sample(room, name, pos, label, color=color / 255, normal=normal)
        objects = sorted((room / "Annotations").glob("*.txt"), key=natural)
        if not objects:
            raise LoadError(f"{room / 'Annotations'}: no .txt files")
        labels = [self._label(file) for file in objects]
        rows = [read_table(file, 6, repair=_REPAIRED) for file in objects]
        label = np.repeat(labels, [len(points) for points in rows])
        points = np.concatenate(rows)
        return self.sample(room, name, points[:, :3], label, color=points[:, 3:] / 255)

    def _label(self, file: Path) -> int:
        name = file.name.partition("_")[0]
        if name not in (*self.names, "stairs"):
            raise LoadError(f"{file}: {name!r} is none of the classes {', '.join(self.names)}, stairs")
        return self.names.index("clutter" if name == "stairs" else name)


def _is_room(path: Path) -> bool:
    return (path / "Annotations").is_dir() or (path / "coord.npy").is_file()


def _recognises(path: Path) -> bool:
    return any(area.is_dir() and any(map(_is_room, area.iterdir())) for area in path.glob("Area_[1-6]"))


@register_layout("S3DIS (Area_1/<room>/Annotations/*.txt or Area_1/<room>/*.npy)", _recognises, name="s3dis")
def _s3dis(path: Path, split: str, labelled: Labelled | None) -> S3DIS:
    return S3DIS(path, split)
