"""ModelNet40: objects of forty classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch_geometric.data import Data

from geoattn.data.datasets.clouds.cloud_set import Array, CloudSet, read_hdf5, read_table
from geoattn.data.io import LoadError, load
from geoattn.data.labelled import Labelled, read_names
from geoattn.data.registry import register_layout

_NAMES = (
    "airplane bathtub bed bench bookshelf bottle bowl car chair cone cup curtain desk door dresser flower_pot "
    "glass_box guitar keyboard lamp laptop mantel monitor night_stand person piano plant radio range_hood sink sofa "
    "stairs stool table tent toilet tv_stand vase wardrobe xbox"
)


class ModelNet40(CloudSet):
    """CAD models of forty classes (Wu et al. 2015), in any of the three layouts in which they are passed on.

    - ``modelnet40_normal_resampled`` (PointNet++): ``modelnet40_train.txt`` and ``modelnet40_test.txt`` list shapes,
      ``<class>/<shape>.txt`` has 10,000 lines ``x,y,z,nx,ny,nz``. Read when asked for.
    - ``modelnet40_ply_hdf5_2048`` (PointNet): ``train_files.txt`` and ``test_files.txt`` list HDF5 files with ``data``
      ``[M, 2048, 3]``, ``label`` ``[M, 1]`` and ``normal``. Read at once, about half a GB; takes h5py (the extra
      ``points``).
    - the meshes, ``<class>/{train,test}/<shape>.off``. These samples keep their ``face``; the networks for clouds draw
      points on it.

    The official split has 9,843 shapes for training and 2,468 for the test, and none for validation. Layouts are as
    public code reads them; the files themselves were not at hand. See `CloudSet` for arguments, samples and errors.
    """

    names = tuple(_NAMES.split())
    labelled: Labelled = "whole"
    splits = ("train", "test")
    source = (
        "get modelnet40_normal_resampled.zip or modelnet40_ply_hdf5_2048.zip (shapenet.cs.stanford.edu/media) or "
        "ModelNet40.zip (modelnet.cs.princeton.edu), unpack it and give the folder with modelnet40_shape_names.txt, "
        "with shape_names.txt or with the folders airplane to xbox"
    )

    def __init__(self, path: str | Path, split: str = "train", transform: Callable[[Data], Data] | None = None) -> None:
        super().__init__(path, split, transform)
        if (self.folder / "modelnet40_shape_names.txt").is_file():
            self._read_sample = self._texts()
        elif (self.folder / "shape_names.txt").is_file():
            self._read_sample = self._arrays()
        else:
            self._read_sample = self._meshes()

    def len(self) -> int:
        """How many samples."""
        return len(self._read_sample)

    def get(self, idx: int) -> Data:
        """Sample ``idx``."""
        return self._read_sample[idx]()

    def _texts(self) -> list[Callable[[], Data]]:
        listed = self.existing(self.folder / f"modelnet40_{self.split}.txt")
        files = []
        for number, shape in enumerate(listed.read_text("utf-8").split(), 1):
            name = shape.rpartition("_")[0]
            if name not in self.names or not shape[len(name) + 1 :].isdecimal():
                raise LoadError(f"{listed}: shape {number} is {shape!r}; expected a class and a number, as chair_0001")
            files.append(self.folder / name / f"{shape}.txt")
        return [partial(self._text, file) for file in files]

    def _text(self, file: Path) -> Data:
        rows = read_table(self.existing(file), 6, ",")
        return self.sample(file, file.stem, rows[:, :3], self.names.index(file.parent.name), normal=rows[:, 3:])

    def _arrays(self) -> list[Callable[[], Data]]:
        names = read_names(self.folder / "shape_names.txt")
        if names != self.names:
            raise LoadError(f"{self.folder / 'shape_names.txt'}: not the 40 names of ModelNet40, from airplane to xbox")
        clouds: list[Callable[[], Data]] = []
        listed = self.existing(self.folder / f"{self.split}_files.txt")
        for line in listed.read_text("utf-8").split():
            file = self.existing(self.folder / Path(line).name)  # it is listed with folders of its authors
            pos, label, normal = read_hdf5(file, "data", "label", "normal")
            if pos.ndim != 3 or normal.shape != pos.shape or label.size != len(pos):
                raise LoadError(
                    f"{file}: expected data [M, N, 3], normal [M, N, 3] and label [M, 1], got {list(pos.shape)}, "
                    f"{list(normal.shape)} and {list(label.shape)}"
                )
            label = label.reshape(-1)
            clouds += [partial(self._array, file, i, pos[i], normal[i], label[i]) for i in range(len(pos))]
        return clouds

    def _array(self, file: Path, row: int, pos: Array, normal: Array, label: Array) -> Data:
        return self.sample(f"{file}: cloud {row}", f"{file.stem}_{row:04d}", pos, label, normal=normal)

    def _meshes(self) -> list[Callable[[], Data]]:
        files = [file for name in self.names for file in self._mesh_files(name)]
        return [partial(self._mesh, file) for file in files]

    def _mesh_files(self, name: str) -> list[Path]:
        return sorted(self.existing(self.folder / name / self.split).glob("*.off"))

    def _mesh(self, file: Path) -> Data:
        mesh = load(file)
        label = torch.tensor([self.names.index(file.parent.parent.name)])
        return Data(pos=mesh.pos, face=mesh.face, name=file.stem, y=label)


def _recognises(path: Path) -> bool:
    if (path / "modelnet40_shape_names.txt").is_file():
        return True
    if (path / "shape_names.txt").is_file() and any(path.glob("ply_data_*.h5")):
        return True
    return all((path / name / split).is_dir() for name in ModelNet40.names for split in ModelNet40.splits)


@register_layout("ModelNet40 (as text, HDF5 or meshes)", _recognises, name="modelnet40")
def _modelnet40(path: Path, split: str, labelled: Labelled | None) -> ModelNet40:
    return ModelNet40(path, split)
