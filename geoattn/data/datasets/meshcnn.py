"""The meshes MeshCNN was trained on: human bodies, COSEG, SHREC-11."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data, Dataset
from tqdm import tqdm

from geoattn.data.datasets.bodies import LABELS
from geoattn.data.datasets.folder_splits import split_meant
from geoattn.data.io import LoadError, load
from geoattn.data.labelled import Labelled, classes_file, read_names
from geoattn.data.registry import MissingSplitError, register_layout
from geoattn.data.transforms import Element, element_corners
from geoattn.geometry import edges

AnyPath = TypeVar("AnyPath", Path, zipfile.Path, Path | zipfile.Path)


class MeshCNNDataset(Dataset):
    """A set in MeshCNN's layout (Hanocka et al. 2019), from its folder or its zip file.

    Segmentation sets (``human_seg``, ``coseg_*``) have ``train/*.obj``, ``test/*.obj``, ``seg/*.eseg`` (a label
    per edge, from 1, edges in order of first appearance) and ``sseg/*.seseg`` (a weight per edge and label).
    Classification sets (``shrec_16``) have ``<class>/train/*.obj`` and ``<class>/test/*.obj``.

    Each item is a `Data` with ``pos`` ``[V, 3]``, ``face`` ``[3, F]``, ``name`` and

    - segmentation: ``y``, a label from 0 per labelled thing (faces and vertices: what most of their edges have, the
      smallest where equal), ``edge_y`` ``[E]`` and ``edge_soft`` ``[E, K]``, edges as in `geoattn.geometry.edges`;
    - classification: ``y`` ``[1]``.

    Args:
        path: The folder or the zip file.
        split: ``"train"`` or ``"test"``, the authors' split.
        labelled: What ``y`` labels in a segmentation set: ``"face"``, ``"vertex"`` or ``"edge"``.
        transform: Applied to each item when it is read.

    Attributes:
        names: Names of the classes: of a classification set, its folders; of a segmentation set, the lines of its
            ``classes.txt``, or the body parts if its folder is ``human_seg``, as the authors call it; otherwise numbers
            from 1.
        labelled: What ``y`` labels: ``labelled``, or ``"whole"`` in a classification set.

    Raises:
        FileNotFoundError: If the path does not exist.
        ValueError: If it does not hold such a set, or the split is unknown.
        MissingSplitError: If the split is ``"valid"``, which these sets do not have.
        LoadError: If one of its files is damaged.
    """

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        labelled: Element = "face",
        transform: Callable[[Data], Data] | None = None,
    ) -> None:
        if split == "valid":
            raise MissingSplitError(f"{path}: no valid split; hold some of the training meshes out")
        if split not in ("train", "test"):
            raise ValueError(f'split must be "train" or "test", got {split!r}')
        super().__init__(transform=transform)
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such folder or zip file")
        if path.is_dir():
            self._read(path, split, labelled)
            return
        with tempfile.TemporaryDirectory() as folder:
            unpacked = Path(folder, path.stem)
            _extract(path, unpacked)
            self._read(unpacked, split, labelled)

    def _read(self, path: Path, split: str, labelled: Element) -> None:
        roots = [path, *sorted(folder for folder in path.iterdir() if folder.is_dir())]
        for root in roots:
            if (root / split).is_dir() and (root / "seg").is_dir():
                files = _meshes(root / split)
                self._items = [
                    _segmented(file, root, labelled)
                    for file in tqdm(files, "reading meshes", leave=False, disable=None)
                ]
                self.labelled: Labelled = labelled
                self.names = _names(root, self._items[0].edge_soft.size(1))
                return
        for root in roots:
            # A class may have meshes in one split only; its number is the same in both.
            classes = sorted(folder for folder in root.iterdir() if _split_folders(folder))
            classified = [
                (file, label)
                for label, folder in enumerate(classes)
                if folder / split in _split_folders(folder)
                for file in _meshes(folder / split)
            ]
            if classified:
                self._items = [
                    _classified(*pair) for pair in tqdm(classified, "reading meshes", leave=False, disable=None)
                ]
                self.labelled = "whole"
                self.names = tuple(folder.name for folder in classes)
                return
        raise ValueError(
            f"{path}: expected {split}/*.obj with seg/*.eseg beside it, or <class>/{split}/*.obj; found neither"
        )

    def len(self) -> int:
        """How many samples."""
        return len(self._items)

    def get(self, idx: int) -> Data:
        """Sample ``idx``."""
        return self._items[idx]


def _split_folders(folder: AnyPath) -> list[AnyPath]:
    return [folder / split for split in ("train", "test") if (folder / split).is_dir()]


def _recognises(path: Path) -> bool:
    if not (path.is_dir() or zipfile.is_zipfile(path)):
        return False
    top = path if path.is_dir() else zipfile.Path(path)

    def folders(folder: Path | zipfile.Path) -> list[Path | zipfile.Path]:
        return [inner for inner in folder.iterdir() if inner.is_dir()]

    def has_meshes(folder: Path | zipfile.Path) -> bool:
        return any(file.name.endswith(".obj") for split in _split_folders(folder) for file in split.iterdir())

    def has_other_splits(folder: Path | zipfile.Path) -> bool:
        return any(split_meant(inner.name) and inner.name not in ("train", "test") for inner in folders(folder))

    # A set with a split for validation is not one of MeshCNN's.
    return any(
        ((root / "seg").is_dir() and has_meshes(root))
        or sum(has_meshes(folder) and not has_other_splits(folder) for folder in folders(root)) > 1
        for root in [top, *folders(top)]
    )


@register_layout("MeshCNN's layout: train/*.obj with seg/*.eseg, or <class>/train/*.obj, also zipped", _recognises)
def _meshcnn(path: Path, split: str, labelled: Labelled | None) -> MeshCNNDataset:
    return MeshCNNDataset(path, split, "face" if labelled is None or labelled == "whole" else labelled)


def _names(root: Path, count: int) -> tuple[str, ...]:
    """Names of the ``count`` classes of a segmentation set.

    MeshCNN itself leaves a classes.txt in a set it has read, with numbers only; those are no names.
    """
    file = classes_file(root)
    names = read_names(file) if file else ()
    if names and not all(name.isdecimal() for name in names):
        if len(names) != count:
            raise ValueError(f"{file}: {len(names)} names for {count} classes")
        return names
    if root.name == "human_seg" and count == len(LABELS):
        return LABELS
    return tuple(str(i + 1) for i in range(count))


def _extract(path: Path, folder: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: expected a folder or a zip file")
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if not (folder / name).resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"{path}: {name!r} would be written outside the folder it is extracted to")
        archive.extractall(folder)


def _meshes(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.obj"))
    if not files:
        raise ValueError(f"{folder}: no .obj file")
    return files


def _mesh(file: Path) -> Data:
    data = load(file)
    if data.face is None:
        raise LoadError(f"{file}: no faces")
    return Data(pos=data.pos, face=data.face, name=file.stem)


def _classified(file: Path, label: int) -> Data:
    data = _mesh(file)
    data.y = torch.tensor([label])
    return data


def _segmented(file: Path, root: Path, labelled: Element) -> Data:
    data = _mesh(file)
    topology = edges(data.face)
    count = topology.edge.size(1)
    hard = _numbers(root / "seg" / f"{file.stem}.eseg", count).view(-1)
    data.edge_soft = _numbers(root / "sseg" / f"{file.stem}.seseg", count).float()
    data.edge_y = hard.long() - 1
    classes = data.edge_soft.size(1)
    if int(data.edge_y.min()) < 0 or int(data.edge_y.max()) >= classes:
        raise LoadError(f"{root / 'seg' / file.stem}.eseg: labels must be 1 to {classes}")

    if labelled == "edge":
        data.y = data.edge_y
    elif labelled == "face":
        data.y = _majority(data.edge_y[topology.face_edge], classes)
    else:
        corners = element_corners(data.face, data.pos.size(0), "edge")
        votes = torch.zeros(data.pos.size(0), classes)
        vote = torch.nn.functional.one_hot(data.edge_y, classes).float()
        data.y = votes.index_add(0, corners.flatten(), vote.repeat(2, 1)).argmax(1)
    return data


def _majority(labels: Tensor, classes: int) -> Tensor:
    """The most frequent of each column's labels, the smallest where several are."""
    return torch.nn.functional.one_hot(labels, classes).sum(0).argmax(1)


def _numbers(file: Path, count: int) -> Tensor:
    try:
        values = np.loadtxt(file, ndmin=2)
    except (OSError, ValueError) as error:
        raise LoadError(f"{file}: {error}") from error
    if len(values) != count:
        raise LoadError(f"{file}: {len(values)} lines for the {count} edges of the mesh")
    return torch.from_numpy(values)
