"""A user's own data: a folder of labelled meshes or point clouds."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch_geometric.data import Data, Dataset
from tqdm import tqdm

from geoattn._arguments import warn_once
from geoattn.data.datasets.folder_splits import File, divide, mesh_and_cloud_files, missing
from geoattn.data.io import LoadError, load
from geoattn.data.labelled import IGNORED, Labelled, classes_file, read_lines, read_names
from geoattn.data.palette import label_colors
from geoattn.data.registry import SPLITS, register_layout

MAX_CLASSES = 1000
"""The most classes there may be without a file of their names: a larger label is rather one that means "none"."""


class LabelledFolder(Dataset):
    """A folder of labelled meshes and point clouds, in any format `geoattn.load` reads; see ``docs/your_own_data.md``.

    The **labels** of a file's vertices (or points) or faces are, whichever is there first,

    - the lines of a text file of the same name (``chair.txt`` beside ``chair.obj``), one class a line, for each vertex
      or for each face;
    - the attribute ``label``, as `geoattn.save` writes it.

    A class is its number, from 0, or in a text file its name, if that is not the number of another; -1 (`IGNORED`) is
    for what has none. Files in folders, of which the first has no labels, are classified by these:
    ``train/<class>/*.off``, or ``<class>/*.off``.

    The **split** of a file is given by

    - lists, ``splits/train.txt``, ``splits/valid.txt``, ``splits/test.txt``, with a relative path a line, or else
    - the folder ``train``, ``valid`` or ``test`` that it is in (``Train``, ``val`` and the like are refused), or else
    - a hash of its path without the extension: for a fifth of the files, the test. Files keep their split when others
      are added.

    The **names** of the classes are the lines of ``classes.txt``; without that file the names of the class folders,
    or the numbers up to the largest label, for which the files of all splits are read first. Numbers below it that no
    label has are warned of, and so is a split in which every label is -1.

    The labels are checked when the folder is opened; meshes and clouds are read when they are asked for. Slices and
    lists of indices give parts, as of all of PyG's data sets. Each sample is a `Data` with ``pos`` ``[N, 3]``,
    ``face`` ``[3, F]`` if it is a mesh, ``color`` and ``normal`` if the file has them (but not the colors in which
    `geoattn.save` draws labels), ``y`` ``[N]``, ``[F]`` or ``[1]`` int64, and ``name``, its path inside its split
    without the extension.

    Args:
        path: The folder.
        split: ``"train"``, ``"valid"`` or ``"test"``.
        labelled: What has labels: ``"vertex"``, ``"face"`` or ``"whole"``. Default: as found in the files.
        transform: Applied to each sample when it is read.

    Attributes:
        names: Names of the classes.
        labelled: What has labels.

    Raises:
        ValueError: If there is no such folder, a file is in two lists, or in no split's or class's folder, or a
            folder or a list means a split and is called something else.
        MissingSplitError: If the split has no files.
        LoadError: If a file cannot be read, or its labels are missing, too many or too few, no integers, out of range,
            or for faces where those of another file are for vertices.
    """

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        labelled: Labelled | None = None,
        transform: Callable[[Data], Data] | None = None,
    ) -> None:
        super().__init__(transform=transform)
        self.folder = Path(path)
        self.split = split
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
        if labelled not in (None, "vertex", "face", "whole"):
            raise ValueError(f"labelled must be 'vertex', 'face' or 'whole', got {labelled!r}")
        if not self.folder.is_dir():
            raise ValueError(f"{path}: no such folder")
        splits = divide(self.folder)
        if not splits.get(split):
            raise missing(self.folder, split, splits)
        self.files = splits[split]
        every = [file for name in SPLITS for file in splits.get(name, [])]
        self._listed = classes_file(self.folder)
        self.names: tuple[str, ...] = read_names(self._listed) if self._listed else ()
        if labelled is None and all(file.folder for file in every) and not self._has_labels(every[0]):
            labelled = "whole"
        if labelled == "whole":
            self.labelled: Labelled = "whole"
            self._check_folders(every)
        else:
            # The first file is of the same split whichever is asked for, so all splits have labels for the same.
            checked = dict.fromkeys([every[0], *self.files]) if self.names else every
            self.labelled = self._check_labels(checked, labelled)

    def len(self) -> int:
        """How many samples."""
        return len(self.files)

    def get(self, idx: int) -> Data:
        """Read sample ``idx``."""
        file = self.files[idx]
        loaded = load(file.path)
        data = Data(pos=loaded.pos, name=file.name)
        for key in ("face", "color", "normal"):
            if loaded.get(key) is not None and not (key == "color" and _shows_labels(loaded)):
                data[key] = loaded[key]
        if self.labelled == "whole":
            data.y = torch.tensor([self.names.index(str(file.folder))])
        else:
            data.y = torch.from_numpy(self._labels(file, loaded, self.labelled)[0])
        return data

    def _check_folders(self, every: list[File]) -> None:
        """See that each file is in the folder of a class, and name the classes."""
        names = self.names or tuple(sorted({file.folder for file in every if file.folder}))
        for file in every:
            if file.folder not in names:
                where = f"the folder {file.folder} is not in classes.txt" if file.folder else "not in a class's folder"
                raise ValueError(f"{file.path}: {where}")
        if len(names) < 2:
            raise ValueError(
                f"{self.folder}: expected labels, or folders of 2 classes or more; found {', '.join(names)}"
            )
        self.names = names

    def _check_labels(self, files: Collection[File], labelled: Labelled | None) -> Labelled:
        """See that every file has labels for the same kind of thing, which is returned; name the classes."""
        in_order = tuple(map(str, range(len(self.names))))
        if self.names != in_order and sorted(self.names) == sorted(in_order):
            raise LoadError(
                f"{self._listed}: the numbers 0 to {len(self.names) - 1} in another order; line 1 is the name of class "
                "0, and so on: write names that are no numbers, or delete the file"
            )
        fits: set[Labelled] = {labelled} if labelled else {"vertex", "face"}
        because = "as asked for" if labelled else ""
        found: dict[File, set[int]] = {}
        for file in tqdm(files, "checking labels", unit="file", leave=False, delay=1, disable=None):
            values, on = self._labels(file, load(file.path))
            if not fits & on:
                raise LoadError(f"{file.path}: its labels are for each {min(on)}, not for each {min(fits)} {because}")
            if len(fits & on) < len(fits):
                fits, because = fits & on, f"as those of {file.path}"
            found[file] = set(np.unique(values).tolist())
        if len(fits) > 1:
            raise ValueError(
                f"{self.folder}: files have as many faces as vertices; say which ones the labels are for: "
                'labelled="face" or "vertex", on the command line --labelled'
            )
        kind = fits.pop()
        if not set[int]().union(*(found[file] for file in self.files)) - {IGNORED}:
            warn_once(f"{self.folder}: nothing is labelled in the {self.split} split: each label is {IGNORED}, ignored")
        if not self.names:
            self._number_classes(set[int]().union(*found.values()), kind)
        return kind

    def _number_classes(self, labels: set[int], kind: Labelled) -> None:
        """Call the classes by their numbers, up to the largest label."""
        largest = max(labels, default=IGNORED)
        self.names = tuple(map(str, range(max(largest, 1) + 1)))
        unused = sorted(set(range(largest)) - labels)
        if unused:
            some = ", ".join(map(str, unused[:3])) + (", ..." if len(unused) > 3 else "")
            warn_once(
                f"{self.folder}: labels go up to {largest}, and no {kind} has label {some}. Labels count from 0; "
                f"what is not labelled has {IGNORED}. If all is as it should be, name the classes in classes.txt"
            )

    def _labels(self, file: File, loaded: Data, labelled: Labelled | None = None) -> tuple[NDArray[Any], set[Labelled]]:
        """The labels of a file, checked, and what they can be for."""
        counts: dict[Labelled, int] = {"vertex": loaded.pos.size(0)}
        if loaded.face is not None:
            counts["face"] = loaded.face.size(1)
        text = self._text(file)
        if text:
            values = self._read_text(text)
            on: set[Labelled] = {kind for kind, count in counts.items() if count == len(values)}
            if not on:
                sizes = " or ".join(f"{count} for its {_PLURAL[kind]}" for kind, count in counts.items())
                raise LoadError(f"{text}: {len(values)} labels; {file.path.name} needs {sizes}")
        elif loaded.get("label") is not None:
            values, on = loaded.label.numpy(), {loaded.label_on}
            if values.dtype.kind == "f":
                row = int((values != np.trunc(values)).argmax())
                raise LoadError(f"{file.path}: {loaded.label_on} {row}: label {values[row]:g} is not an integer")
        else:
            raise LoadError(f"{file.path}: no labels: no attribute 'label', and no {file.path.stem}.txt beside it")
        outside = (values < IGNORED) | (values >= (len(self.names) or MAX_CLASSES))
        if outside.any():
            row = int(outside.argmax())
            where = f"{text}:{row + 1}" if text else f"{file.path}: {loaded.label_on} {row}"
            raise LoadError(f"{where}: label {values[row]}; {self._expected()}")
        if labelled and labelled not in on:
            raise LoadError(f"{file.path}: its labels are for each {min(on)}, not for each {labelled}")
        return values.astype(np.int64), on

    def _expected(self) -> str:
        if not self.names:
            return f"there may be {MAX_CLASSES} classes without classes.txt; give what is not labelled {IGNORED}"
        return f"classes.txt has 0 ({self.names[0]}) to {len(self.names) - 1} ({self.names[-1]}); {IGNORED} is ignored"

    def _text(self, file: File) -> Path | None:
        texts = (file.path.with_suffix(extension) for extension in (".txt", ".TXT", ".Txt"))
        return next((text for text in texts if text.is_file() and text != self._listed), None)

    def _has_labels(self, file: File) -> bool:
        return self._text(file) is not None or load(file.path).get("label") is not None

    def _read_text(self, text: Path) -> NDArray[Any]:
        """One class a line, by number or by name."""
        lines = read_lines(text)
        number = {name: i for i, name in enumerate(self.names)}
        misleading = {name for name, i in number.items() if _is_integer(name) and float(name) != i}
        if misleading:
            for row, word in enumerate(lines, 1):
                if word in misleading:
                    raise LoadError(
                        f"{text}:{row}: {word!r} is class {number[word]} by its name in classes.txt, and another by "
                        "its number; write names that are no numbers into classes.txt"
                    )
        try:
            return np.array(lines, dtype=np.int64)
        except (ValueError, OverflowError):
            return np.array([self._class(f"{text}:{row}", word, number) for row, word in enumerate(lines, 1)], np.int64)

    def _class(self, where: str, word: str, number: dict[str, int]) -> int:
        """The class that a line names, by its name or its number."""
        if word in number:
            return number[word]
        try:
            value = float(word)
        except ValueError:
            if not word:
                raise LoadError(f"{where}: an empty line; write {IGNORED} for what is not labelled") from None
            known = f"a name in classes.txt ({', '.join(self.names)})" if self.names else "the name of a class"
            hint = "" if self.names else ": write the names into a file classes.txt, a line each, first that of class 0"
            raise LoadError(f"{where}: {word[:50]!r} is neither an integer nor {known}{hint}") from None
        if not value.is_integer():
            raise LoadError(f"{where}: label {word[:50]} is not an integer")
        if abs(value) >= 2**53:
            raise LoadError(f"{where}: label {word[:50]}; {self._expected()}")
        return int(value)


def _is_integer(word: str) -> bool:
    try:
        return float(word).is_integer()
    except ValueError:
        return False


def _shows_labels(loaded: Data) -> bool:
    """Whether the colors are the label's: a network that reads them would read the answer."""
    label, color = loaded.get("label"), loaded.color
    if label is None or label.is_floating_point() or label.size(0) != color.size(0):
        return False
    return np.array_equal((255 * color[:, :3]).round().numpy(), label_colors(label.numpy()))


_PLURAL = {"vertex": "vertices", "face": "faces"}


def _recognises(path: Path) -> bool:
    return path.is_dir() and ((path / "splits").is_dir() or bool(mesh_and_cloud_files(path)))


@register_layout("a folder of labelled meshes or clouds (docs/your_own_data.md)", _recognises, general=True)
def _folder(path: Path, split: str, labelled: Labelled | None) -> LabelledFolder:
    return LabelledFolder(path, split, None if labelled == "edge" else labelled)
