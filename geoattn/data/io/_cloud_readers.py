"""Readers of npz and xyz."""

import re
import zipfile
from collections.abc import Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from ._check import Array, Arrays, check_zip, number_of


def read_npz(path: Path) -> Arrays:
    """Our own arrays: ``pos`` [N, 3], ``face`` [3, F], others per vertex or per face. Never unpickles."""
    raw = path.read_bytes()
    check_zip(raw)
    arrays: Arrays = {}
    with zipfile.ZipFile(BytesIO(raw)) as archive:
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                raise ValueError(f"it holds {member.filename!r}, which is not an array")
            key = member.filename[: -len(".npy")]
            if not key.isidentifier() or key.startswith("_"):
                raise ValueError(f"{key!r} is no name of an attribute")
            with archive.open(member) as file:
                _check_npy(file.read(2**14), member.file_size, key)
        with np.load(BytesIO(raw), allow_pickle=False) as loaded:
            arrays = {key: loaded[key] for key in loaded.files}
    if "pos" not in arrays:
        raise ValueError("it has no array 'pos'")
    for key in [key for key in arrays if key.endswith("_on") or key == "part_name"]:
        text = arrays[key]
        if text.dtype.kind != "U":
            raise ValueError(f"{key} is not text")
        arrays[key] = text.tolist()
    if "face" in arrays:
        if arrays["face"].ndim != 2 or arrays["face"].shape[0] != 3:
            raise ValueError(f"face has shape {list(arrays['face'].shape)}, expected [3, F]")
        arrays["face"] = arrays["face"].T
    for key in {"label", "scalar"} & set(arrays):
        if f"{key}_on" not in arrays:
            arrays[f"{key}_on"] = _labelled(key, arrays)
        if arrays[f"{key}_on"] not in ("vertex", "face"):
            raise ValueError(f"{key}_on is {arrays[f'{key}_on']!r}, expected 'vertex' or 'face'")
    return arrays


def _labelled(key: str, arrays: Arrays) -> str:
    """What labels or scalars describe where the file does not say it."""
    vertices, faces = len(arrays["pos"]), len(arrays.get("face", ()))
    if np.shape(arrays[key])[:1] != (faces,):
        return "vertex"
    if vertices == faces:
        raise ValueError(f"it has as many faces as vertices ({faces}); add {key}_on, the text 'vertex' or 'face'")
    return "face"


def _check_npy(head: bytes, size: int, key: str) -> None:
    """Refuse a header that asks for another size than the member has, before numpy allocates it."""
    file = BytesIO(head)
    version = npy.read_magic(file)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError(f"{key} holds Python objects, which are never unpickled")
    expected = file.tell() + dtype.itemsize * int(np.prod([int(n) for n in shape], dtype=object))
    if expected != size or any(n < 0 for n in shape):
        raise ValueError(f"{key} of shape {list(shape)} needs {expected} bytes, it has {size}")


def read_xyz(path: Path) -> Arrays:
    """Rows of ``x y z``, then nothing, ``r g b`` or ``r g b a`` (0..255), or a normal, or both.

    Columns are separated by blanks or commas. Three columns beyond the position are a colour if they are all
    integers in 0..255 (and, where all are 0 or 1, written without a decimal point), else a normal if they are
    within -1..1. Other columns are left out.
    """
    text = path.read_bytes().decode("utf-8")
    if "\0" in text:
        raise ValueError("the content is not text")
    lines = text.replace(",", " ").splitlines()

    def rows_of_words() -> Iterator[tuple[int, list[str]]]:
        for number, line in enumerate(lines, 1):
            if words := re.split("#|//", line)[0].split():
                yield number, words

    first = next(rows_of_words(), None)
    if first is None:
        raise ValueError("no vertices")
    if len(first[1]) < 3:
        raise ValueError(f"line {first[0]}: {len(first[1])} columns, expected at least x, y, z")
    try:
        rows = np.loadtxt(lines, comments=("#", "//"), dtype=np.float64, ndmin=2)
    except ValueError:
        for number, words in rows_of_words():
            if len(words) != len(first[1]):
                raise ValueError(f"line {number}: {len(words)} columns, line {first[0]} has {len(first[1])}") from None
            for word in words:
                number_of(word, f"line {number}: it has")
        raise
    arrays: Arrays = {"pos": rows[:, :3], "vertex line": lambda row: next(islice(rows_of_words(), row, None))[0]}
    rest = rows[:, 3:]
    pointed = rest.shape[1] >= 3 and rest[:, :3].max() <= 1 and any("." in word for word in first[1][3:6])
    if rest.shape[1] >= 3 and _is_color(rest[:, :3]) and not pointed:
        width = 4 if rest.shape[1] in (4, 7) and _is_color(rest[:, :4]) else 3
        arrays["color"] = rest[:, :width] / 255
        rest = rest[:, width:]
    if rest.shape[1] >= 3 and (np.abs(rest[:, :3]) <= 1).all():
        arrays["normal"] = rest[:, :3]
    return arrays


def _is_color(values: Array) -> bool:
    return bool(((values >= 0) & (values <= 255) & (values == np.trunc(values))).all())
