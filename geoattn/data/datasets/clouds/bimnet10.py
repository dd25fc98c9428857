"""BIMNet10: clouds of building elements, ten classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch_geometric.data import Data

from geoattn.data.datasets.clouds.cloud_set import CloudSet, read_hdf5
from geoattn.data.io import LoadError
from geoattn.data.labelled import Labelled
from geoattn.data.registry import register_layout


class BIMNet10(CloudSet):
    """2,048 points of each of 216 elements of building models (Chen, Cho and Ueda, ICRA 2018).

    ``bimnet10_train.h5`` (165) and ``bimnet10_test.h5`` (51) have ``data`` ``[M, 2048, 3]``, each cloud with mean 0 and
    largest norm 1, and ``label`` ``[M]``. There is no split for validation. The whole set is read when it is opened,
    which takes h5py (the extra ``points``). See `CloudSet` for arguments, samples and errors.
    """

    names = ("balcony", "beam", "column", "door", "fence", "floor", "roof", "stairs", "wall", "window")
    labelled: Labelled = "whole"
    splits = ("train", "test")
    source = "get bimnet10_train.h5 and bimnet10_test.h5 from github.com/jingdao/BIMNet10 and put them into this folder"

    def __init__(self, path: str | Path, split: str = "train", transform: Callable[[Data], Data] | None = None) -> None:
        super().__init__(path, split, transform)
        self.file = self.existing(self.folder / f"bimnet10_{split}.h5")
        self.pos, self.label = read_hdf5(self.file, "data", "label")
        if self.pos.ndim != 3 or self.label.shape != self.pos.shape[:1]:
            shapes = f"data {list(self.pos.shape)} and label {list(self.label.shape)}"
            raise LoadError(f"{self.file}: expected data [M, N, 3] and label [M], got {shapes}")

    def len(self) -> int:
        """How many samples."""
        return len(self.label)

    def get(self, idx: int) -> Data:
        """Sample ``idx``."""
        data = self.sample(f"{self.file}: cloud {idx}", "", self.pos[idx], self.label[idx])
        data.name = f"{self.names[int(data.y)]}_{idx:03d}"
        return data


@register_layout("BIMNet10 (bimnet10_train.h5)", lambda path: (path / "bimnet10_train.h5").is_file(), name="bimnet10")
def _bimnet10(path: Path, split: str, labelled: Labelled | None) -> BIMNet10:
    return BIMNet10(path, split)
