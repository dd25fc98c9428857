"""What readers of published sets of point clouds share: files as checked arrays, and samples of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch_geometric.data import Data, Dataset

from geoattn._arguments import warn_once
from geoattn._optional import require
from geoattn.data.io import LoadError
from geoattn.data.io._check import check_zip, unpacked_limit
from geoattn.data.labelled import IGNORED, Labelled
from geoattn.data.registry import SPLITS, MissingSplitError

Array = NDArray[Any]


class CloudSet(Dataset):
    """A published set of labelled point clouds in a folder; each of the sets is a subclass.

    Its samples are `Data` with ``pos`` ``[N, 3]`` float32, what the set has of ``color`` ``[N, 3]`` (0 to 1),
    ``normal`` ``[N, 3]`` and ``intensity`` ``[N]``, all float32, and ``y``: ``[N]`` int64, where -1 is for what is not
    labelled, or ``[1]``, and ``name``. Clouds are read when they are asked for.

    Args:
        path: The folder.
        split: ``"train"``, ``"valid"`` or ``"test"``.
        transform: Applied to each sample when it is read.

    Attributes:
        names: Names of the classes.
        labelled: ``"vertex"``, or ``"whole"`` where each cloud has one label.

    Raises:
        FileNotFoundError: If the folder, or something in it, is not there; says where to get it and where it belongs.
        ValueError: If the split is unknown.
        MissingSplitError: If the set does not have the split.
        LoadError: If a file is not what the set's layout says.
    """

    names: tuple[str, ...]
    labelled: Labelled = "vertex"
    splits: ClassVar[Collection[str]] = SPLITS
    source: ClassVar[str]
    """What to get, and where to put it: the end of an error."""

    def __init__(self, path: str | Path, split: str = "train", transform: Callable[[Data], Data] | None = None) -> None:
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
        if split not in self.splits:
            raise MissingSplitError(f"{path}: no {split} split; hold some of the training clouds out")
        super().__init__(transform=transform)
        self.folder, self.split = Path(path), split
        self.existing(self.folder)

    def existing(self, path: Path) -> Path:
        """The path, which is known to exist.

        Raises:
            FileNotFoundError: If it does not.
        """
        if path.exists():
            return path
        raise FileNotFoundError(f"{path}: no such file or folder. {type(self).__name__}: {self.source}")

    def sample(self, where: object, name: str, pos: Array, y: Array | int, **attributes: Array | None) -> Data:
        """A sample of what was read, after checks.

        Args:
            where: The file, for errors.
            name: Of the sample.
            pos: ``[N, 3]``.
            y: Labels ``[N]``, or one for the whole cloud.
            attributes: Others, with a row for each point; None: there is none.

        Raises:
            LoadError: If shapes do not fit, a coordinate is not finite, or a label is no class.
        """
        if pos.ndim != 2 or pos.shape[1] != 3 or not len(pos):
            raise LoadError(f"{where}: expected points [N, 3], got {list(pos.shape)}")
        with np.errstate(over="ignore"):
            pos = pos.astype(np.float32)
        if not np.isfinite(pos).all():
            row = int((~np.isfinite(pos)).any(1).argmax())
            raise LoadError(f"{where}: point {row} has the coordinates {pos[row].tolist()}, which are not finite")
        data = Data(pos=torch.from_numpy(pos), name=name)
        for key, values in attributes.items():
            if values is None:
                continue
            if len(values) != len(pos):
                raise LoadError(f"{where}: {key} has {len(values)} rows for {len(pos)} points")
            values = values.astype(np.float32)
            finite = np.isfinite(values)
            if not finite.all():
                warn_once(f"{where}: {key} is not finite at {int((~finite).sum())} places, which are set to 0")
                values = np.where(finite, values, np.float32(0))
            if key == "color" and not 0 <= values.min() <= values.max() <= 1:
                raise LoadError(
                    f"{where}: colors go from {255 * values.min():g} to {255 * values.max():g}, not 0 to 255"
                )
            data[key] = torch.from_numpy(values)
        data.y = torch.from_numpy(self.labels(where, y, 1 if self.labelled == "whole" else len(pos)))
        return data

    def labels(self, where: object, y: Array | int, count: int) -> Array:
        """Labels ``[count]`` int64, known to be classes or -1."""
        values = np.atleast_1d(np.asarray(y))
        if values.shape != (count,):
            raise LoadError(f"{where}: labels {list(values.shape)} for {count} points")
        wrong = (values != np.trunc(values)) | (values < IGNORED) | (values >= len(self.names))
        if wrong.any():
            row = int(wrong.argmax())
            raise LoadError(
                f"{where}: point {row} has label {values[row]:g}; expected 0 to {len(self.names) - 1}, or {IGNORED}"
            )
        return values.astype(np.int64)


def check_published(name: str, path: Path, split: str) -> None:
    """That the labels of a split are published; those of the test of ScanNet, SemanticKITTI and nuScenes are not.

    Raises:
        MissingSplitError: If they are not.
    """
    if split == "test":
        raise MissingSplitError(
            f'{path}: the labels of the test split are not published; measure on valid. {name}(path, "test") reads its '
            "clouds without labels"
        )


def remapped(where: object, raw: Array, table: dict[int, int]) -> Array:
    """Raw labels as those that ``table`` gives them.

    Raises:
        LoadError: If it has no entry for one.
    """
    values, inverse = np.unique(raw, return_inverse=True)
    for value in values.tolist():
        if value not in table:
            row = int((raw == value).argmax())
            raise LoadError(f"{where}: point {row} has label {value}, which is none of the set's")
    return np.array([table[value] for value in values.tolist()], np.int64)[inverse.reshape(-1)]


def check_offset(file: Path, offset: Array, clouds: int, points: int) -> None:
    """That clouds lie one after the other in a file.

    Raises:
        LoadError: If ``offset`` does not say where each of them begins and ends.
    """
    if (
        offset.shape != (clouds + 1,)
        or offset.dtype.kind not in "iu"
        or offset[0] != 0
        or offset[-1] != points
        or (np.diff(offset.astype(np.int64)) < 1).any()
    ):
        raise LoadError(f"{file}: offset {list(offset.shape)} must increase from 0 to {points}, for {clouds} clouds")


def read_table(path: Path, columns: int, delimiter: str | None = None, repair: bytes = bytes(range(256))) -> Array:
    """A text file of numbers ``[N, columns]`` float32, a point a line.

    Args:
        path: The file.
        columns: Numbers in a line.
        delimiter: What is between them; default: blanks.
        repair: What each of the 256 bytes is read as.

    Raises:
        LoadError: If a line has another number of columns, or something that is no number.
    """
    raw = path.read_bytes().translate(repair)
    if not raw.strip():
        raise LoadError(f"{path}: no points")
    try:
        rows = np.loadtxt(BytesIO(raw), np.float32, comments=None, delimiter=delimiter, ndmin=2)
    except ValueError as error:
        raise LoadError(f"{path}{_wrong_line(raw, columns, delimiter) or f': {error}'}") from error
    if rows.shape[1] != columns:
        raise LoadError(f"{path}{_wrong_line(raw, columns, delimiter)}")
    return rows


def _wrong_line(raw: bytes, columns: int, delimiter: str | None) -> str | None:
    """The number of the first line that cannot be read, and why."""
    for number, line in enumerate(raw.decode("ascii", errors="replace").split("\n"), 1):
        words = line.split(delimiter) if line.strip() else []
        if words and len(words) != columns:
            return f":{number}: {len(words)} columns, expected {columns}"
        for word in words:
            if not _NUMBER.fullmatch(word.strip()):
                return f":{number}: {word!r} is no number"
    return None


_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?(nan|inf)", re.IGNORECASE)


def read_binary(path: Path, dtype: str, columns: int = 1) -> Array:
    """A file of numbers and nothing else, ``[N, columns]``, or ``[N]``.

    Raises:
        LoadError: If its size is not that of whole rows.
    """
    size, row = path.stat().st_size, np.dtype(dtype).itemsize * columns
    if not size or size % row:
        raise LoadError(f"{path}: {size} bytes, expected a multiple of {row}: {columns} {dtype} for each point")
    values = np.fromfile(path, dtype)
    return values.reshape(-1, columns) if columns > 1 else values


def read_array(path: Path) -> Array:
    """An array from a ``.npy`` file; nothing is unpickled.

    Raises:
        LoadError: If it is none, cut off, or not of numbers.
    """
    try:  # a map is refused where the file is shorter than its header says
        values = np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except Exception as error:  # of a damaged header: also of Python's tokenizer
        raise LoadError(f"{path}: {error}") from error
    return _numbers(path, values)


def read_arrays(path: Path, *names: str) -> list[Array]:
    """Arrays of a ``.npz`` file by their names; nothing is unpickled.

    Raises:
        LoadError: If one is missing or not of numbers, or the file is damaged or unpacks to far more than its size.
    """
    raw = path.read_bytes()
    try:
        check_zip(raw)
        with np.load(BytesIO(raw), allow_pickle=False) as arrays:
            missing = [name for name in names if name not in arrays]
            if missing:
                raise LoadError(f"{path}: no array {missing[0]!r}; it has {', '.join(arrays)}")
            return [_numbers(f"{path}: {name}", arrays[name]) for name in names]
    except LoadError:
        raise
    except Exception as error:  # zip, zlib and numpy each have errors of their own
        raise LoadError(f"{path}: {error}") from error


def read_hdf5(path: Path, *names: str) -> list[Array]:
    """Arrays of an HDF5 file by their names.

    Raises:
        LoadError: If one is missing, not of numbers or announces more than the file can hold, or the file is damaged.
        ImportError: If h5py is not installed.
    """
    h5py = require("h5py", "points")
    try:
        with h5py.File(path, "r") as file:
            for name in names:
                if not isinstance(file.get(name), h5py.Dataset):
                    raise LoadError(f"{path}: no data set {name!r}; it has {', '.join(file)}")
                if file[name].nbytes > unpacked_limit(path.stat().st_size):
                    raise LoadError(f"{path}: {name} announces {file[name].nbytes} bytes, more than the file can hold")
            return [_numbers(f"{path}: {name}", np.asarray(file[name])) for name in names]
    except LoadError:
        raise
    except Exception as error:  # h5py has no error of its own
        raise LoadError(f"{path}: {error}") from error


def _numbers(where: object, values: Array) -> Array:
    if values.dtype.kind not in "biuf":
        raise LoadError(f"{where}: expected numbers, got {values.dtype}")
    return values


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        LoadError: If it is none.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path}: {error}") from error


def number_ranges(text: str) -> tuple[int, ...]:
    """Numbers of a list such as ``"1-3 7"``: 1, 2, 3, 7."""
    ranges = [part.partition("-") for part in text.split()]
    return tuple(i for first, _, last in ranges for i in range(int(first), int(last or first) + 1))


def natural(path: Path) -> list[str | int]:
    """A key that sorts file names as people do: room_2 before room_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]
