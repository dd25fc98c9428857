"""ScanObjectNN: objects out of scans of rooms, fifteen classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch_geometric.data import Data

from geoattn.data.datasets.clouds.cloud_set import CloudSet, read_hdf5
from geoattn.data.io import LoadError
from geoattn.data.labelled import Labelled
from geoattn.data.registry import register_layout

VARIANTS = {
    "PB_T50_RS": "_augmentedrot_scale75",
    "PB_T50_R": "_augmentedrot",
    "PB_T25_R": "_augmented25rot",
    "PB_T25": "_augmented25_norot",
    "OBJ": "",
}
"""Variants from the hardest on, with how the names of their files end."""

_BEGINS = {"train": "training_objectdataset", "test": "test_objectdataset"}

_NAMES = "bag bin box cabinet chair desk display door shelf table bed pillow sink sofa toilet"


class ScanObjectNN(CloudSet):
    """2,048 points of each of 2,902 real objects, partly occluded and with background (Uy et al., ICCV 2019).

    HDF5 files ``{training,test}_objectdataset*.h5`` have ``data`` ``[M, 2048, 3]`` and ``label`` ``[M]``. The set has
    no split for validation. A variant is read at once, which takes h5py (the extra ``points``). See `CloudSet` for
    other arguments, samples and errors. Layout and classes are the authors', the files themselves were not at hand.

    Args:
        path: The folder of the HDF5 files, such as ``main_split`` (the benchmark), ``main_split_nobg`` (without
            background) or ``split1``; or the folder above, of which ``main_split`` is read.
        split: ``"train"`` or ``"test"``.
        transform: Applied to each sample when it is read.
        variant: One of ``VARIANTS``: moved, rotated and scaled (PB_T50_RS, the benchmark) to as they are (``"OBJ"``,
            which is OBJ_BG in ``main_split`` and OBJ_ONLY in ``main_split_nobg``). Default: the first that is there.
    """

    names = tuple(_NAMES.split())
    labelled: Labelled = "whole"
    splits = ("train", "test")
    source = (
        "get h5_files.zip (hkust-vgd.github.io/scanobjectnn, after their terms of use), unpack it and give the folder "
        "with main_split"
    )

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        transform: Callable[[Data], Data] | None = None,
        variant: str | None = None,
    ) -> None:
        super().__init__(path, split, transform)
        if variant not in (None, *VARIANTS):
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}; got {variant!r}")
        folder = _split_folder(self.folder)
        there = [name for name, end in VARIANTS.items() if (folder / f"{_BEGINS[split]}{end}.h5").is_file()]
        self.variant = variant or next(iter(there), "PB_T50_RS")
        self.file = self.existing(folder / f"{_BEGINS[split]}{VARIANTS[self.variant]}.h5")
        self.pos, self.label = read_hdf5(self.file, "data", "label")
        if self.pos.ndim != 3 or self.label.shape != self.pos.shape[:1]:
            shapes = f"data {list(self.pos.shape)} and label {list(self.label.shape)}"
            raise LoadError(f"{self.file}: expected data [M, N, 3] and label [M], got {shapes}")

    def len(self) -> int:
        """How many samples."""
        return len(self.label)

    def get(self, idx: int) -> Data:
        """Sample ``idx``."""
        return self.sample(f"{self.file}: cloud {idx}", f"{idx:05d}", self.pos[idx], self.label[idx])


def _split_folder(path: Path) -> Path:
    return path / "main_split" if (path / "main_split").is_dir() else path


@register_layout(
    "ScanObjectNN (main_split/training_objectdataset*.h5)",
    lambda path: any(_split_folder(path).glob("training_objectdataset*.h5")),
    name="scanobjectnn",
)
def _scanobjectnn(path: Path, split: str, labelled: Labelled | None) -> ScanObjectNN:
    return ScanObjectNN(path, split)
