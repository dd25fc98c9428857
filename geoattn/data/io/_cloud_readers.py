"""Readers of npz, xyz, las, laz and pcd."""

import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from geoattn._optional import require

from ._check import Array, Arrays, check_zip, number_of, unpacked_limit


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


def read_las(path: Path) -> Arrays:
    """LAS and LAZ through laspy and lazrs.

    The classification becomes ``label``, the intensity ``scalar``, unless they are zero everywhere.
    """
    laspy = require("laspy")
    raw = path.read_bytes()
    points = _check_las(raw)
    if raw[104] & 0xC0:
        require("lazrs")
        raw = _in_child(_UNPACK_LAZ, raw)
    las = laspy.read(BytesIO(raw))
    if len(las.points) != points:
        raise ValueError(f"{len(las.points)} of {points} points were read")
    xyz = np.asarray(las.xyz, dtype=np.float64)
    arrays: Arrays = {"pos": xyz}
    if not points:
        return arrays
    dimensions = set(las.point_format.dimension_names)
    if {"red", "green", "blue"} <= dimensions:
        color = np.stack([las.red, las.green, las.blue], axis=1)
        # By the standard 16 bits; many writers leave 8-bit values in them.
        arrays["color"] = color / (255 if color.max() <= 255 else 65535)
    for key, name in (("label", "classification"), ("scalar", "intensity")):
        values = np.asarray(las[name])
        if values.any():
            arrays[key], arrays[f"{key}_on"] = values, "vertex"
    return arrays


def _check_las(raw: bytes) -> int:
    """Number of points, after checking that the file can hold what its header announces."""
    if raw[:4] != b"LASF" or len(raw) < 227:
        raise ValueError("no LAS header")
    minor = raw[25]
    header_size, offset, records = struct.unpack_from("<HII", raw, 94)
    record = struct.unpack_from("<H", raw, 105)[0]
    points = struct.unpack_from("<I", raw, 107)[0]
    if minor >= 4:
        if len(raw) < 375:
            raise ValueError("the header is cut off")
        extended_start, extended = struct.unpack_from("<QI", raw, 235)
        points = struct.unpack_from("<Q", raw, 247)[0]
        if extended and extended_start + 60 * extended > len(raw):
            raise ValueError("it announces more extended records than it holds")
    if not header_size + 54 * records <= offset <= len(raw):
        raise ValueError("it announces more records than it holds")
    compressed = bool(raw[104] & 0xC0)
    available = unpacked_limit(len(raw)) if compressed else len(raw) - offset
    if points * record > available or (points and not record):
        raise ValueError(f"it announces {points} points of {record} bytes, {len(raw) - offset} bytes follow")
    return points


_UNPACK_LAZ = """
import io, sys, laspy
las = laspy.read(io.BytesIO(sys.stdin.buffer.read()))
unpacked = io.BytesIO()
las.write(unpacked, do_compress=False)
sys.stdout.buffer.write(unpacked.getvalue())
"""

_READ_PCD = """
import io, os, sys, numpy, open3d
result = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)  # open3d logs to the standard output
cloud = open3d.io.read_point_cloud(sys.argv[1], format="pcd")
arrays = {key: numpy.asarray(getattr(cloud, key)) for key in ("points", "colors", "normals")}
packed = io.BytesIO()
numpy.savez(packed, **arrays)
result.write(packed.getvalue())
result.close()
"""


def _in_child(script: str, raw: bytes, *arguments: str) -> bytes:
    """Run a native parser in a process of its own, because a damaged file can make it crash.

    Found by fuzzing: lazrs 0.8 aborts on large sizes in its chunk table, open3d 0.20 reads beyond its arrays.
    """
    command = [sys.executable, "-c", script, *arguments]
    seconds = 60 + len(raw) // 10**6
    child = subprocess.run(command, input=raw, capture_output=True, timeout=seconds, check=False)
    if child.returncode or not child.stdout:
        lines = child.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(f"the data is damaged ({lines[-1] if lines else f'parser died: {child.returncode}'})")
    return child.stdout


_PCD_TYPES = {
    ("F", 4),
    ("F", 8),
    ("I", 1),
    ("I", 2),
    ("I", 4),
    ("I", 8),
    ("U", 1),
    ("U", 2),
    ("U", 4),
    ("U", 8),
}


def read_pcd(path: Path) -> Arrays:
    """PCD through open3d (the extra ``open3d``)."""
    raw = path.read_bytes()
    points = _check_pcd(raw)
    require("open3d", "open3d")
    with np.load(BytesIO(_in_child(_READ_PCD, b"", str(path))), allow_pickle=False) as cloud:
        arrays: Arrays = {"pos": cloud["points"], "color": cloud["colors"], "normal": cloud["normals"]}
    if len(arrays["pos"]) != points:
        raise ValueError(f"{len(arrays['pos'])} of {points} points were read")
    return {key: value for key, value in arrays.items() if len(value)}


def _check_pcd(raw: bytes) -> int:
    """Number of points, after checking that header and data fit: open3d's parser trusts the header."""
    header: dict[str, list[str]] = {}
    position = 0
    while "DATA" not in header:
        end = raw.find(b"\n", position, position + 2**16)
        if end < 0:
            raise ValueError("no PCD header")
        key, *words = raw[position:end].decode("ascii").partition("#")[0].split() or [""]
        if key in header:
            raise ValueError(f"{key} occurs twice in the header")
        header[key] = words
        position = end + 1
    header.pop("", None)
    missing = {"FIELDS", "SIZE", "TYPE", "WIDTH", "HEIGHT", "POINTS"} - set(header)
    if missing:
        raise ValueError(f"the header has no {sorted(missing)[0]}")
    sizes = [int(word) for word in header["SIZE"]]
    counts = [int(word) for word in header.get("COUNT", ["1"] * len(sizes))]
    points, width, height = (int(header[key][0]) for key in ("POINTS", "WIDTH", "HEIGHT"))
    fields = header["FIELDS"]
    if not len(fields) == len(sizes) == len(counts) == len(header["TYPE"]) or not {"x", "y", "z"} <= set(fields):
        raise ValueError("its fields are inconsistent or have no x, y, z")
    if not set(zip(header["TYPE"], sizes, strict=True)) <= _PCD_TYPES or min(counts) < 1 or max(counts) > 2**16:
        raise ValueError("a field has an unknown type, size or count")
    if len(set(fields) - {"_"}) != len([f for f in fields if f != "_"]):
        raise ValueError("two fields have the same name")
    if points < 1 or points != width * height:
        raise ValueError(f"{points} points, width {width}, height {height}" if points else "no vertices")
    row = sum(size * count for size, count in zip(sizes, counts, strict=True))
    body = raw[position:]
    encoding = header["DATA"][0] if header["DATA"] else ""
    if encoding == "ascii":
        rows = [line.split() for line in body.decode("ascii").splitlines() if line.strip()]
        if len(rows) != points or any(len(line) != sum(counts) for line in rows):
            raise ValueError(f"{len(rows)} rows for {points} points of {sum(counts)} numbers")
        np.array(rows, dtype=np.float64)  # open3d reads words that are no numbers as zero
    elif encoding == "binary":
        if len(body) < points * row:
            raise ValueError(f"{points} points need {points * row} bytes, {len(body)} follow the header")
    elif encoding == "binary_compressed":
        if len(body) < 8:
            raise ValueError("the data is cut off")
        packed, unpacked = struct.unpack_from("<II", body)
        # LZF packs at most 264 bytes in 3.
        if packed > len(body) - 8 or unpacked != points * row or unpacked > 88 * packed:
            raise ValueError(f"{points} points need {points * row} bytes, {packed} packed into {unpacked} follow")
    else:
        raise ValueError(f"unknown encoding {encoding!r}")
    return points
