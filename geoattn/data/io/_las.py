"""LAS and LAZ, through laspy and lazrs."""

import struct
import subprocess
import sys
from copy import deepcopy
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from geoattn._optional import require

from ._check import Array, Arrays, unpacked_limit
from ._sample import Mesh

NORMAL = ("NormalX", "NormalY", "NormalZ")
"""Extra dimensions of normals, by PDAL's names."""
CHUNK = 500_000
"""So many points are copied at a time."""


def read_las(path: Path) -> Arrays:
    """LAS and LAZ.

    The classification becomes ``label``, unless it is zero everywhere or there is an extra dimension ``label``.
    """
    laspy = require("laspy")
    raw = path.read_bytes()
    points = _check_las(raw)
    compressed = bool(raw[104] & 0xC0)
    header = laspy.LasHeader.read_from(BytesIO(raw))
    dtype = header.point_format.dtype()
    if dtype.itemsize != struct.unpack_from("<H", raw, 105)[0]:
        raise ValueError(f"its points have {struct.unpack_from('<H', raw, 105)[0]} bytes, its format {dtype.itemsize}")
    if not points:
        return {"pos": np.empty((0, 3))}
    if compressed:
        require("lazrs")
        raw, offset = _unpack(path, len(raw)), 0
        if len(raw) != points * dtype.itemsize:
            raise ValueError(f"{len(raw) // dtype.itemsize} of {points} points were read")
    else:
        offset = struct.unpack_from("<I", raw, 96)[0]
    record = laspy.ScaleAwarePointRecord(
        np.frombuffer(raw, dtype, points, offset), header.point_format, header.scales, header.offsets
    )

    extra = set(header.point_format.extra_dimension_names)
    arrays: Arrays = {"pos": np.stack([record.x, record.y, record.z], axis=1)}
    if {"red", "green", "blue"} <= set(header.point_format.dimension_names):
        color = np.stack([record["red"], record["green"], record["blue"]], axis=1)
        # By the standard 16 bits; many writers leave 8-bit values in them.
        arrays["color"] = np.divide(color, 255 if color.max() <= 255 else 65535, dtype=np.float32)
    if extra.issuperset(NORMAL):
        arrays["normal"] = np.stack([record[name] for name in NORMAL], axis=1)
    for key, name in (("label", "classification"), ("intensity", "intensity")):
        values = np.asarray(record[name])
        if values.any():
            arrays[key] = values
    for key, name in _EXTRA.items():
        if name in extra:
            arrays[key] = np.asarray(record[name])
    return arrays | {f"{key}_on": "vertex" for key in ("label", "scalar") if key in arrays}


_EXTRA = {"intensity": "intensity_float", **{key: key for key in ("label", "score", "scalar", "part")}}


def _check_las(raw: bytes) -> int:
    """Number of points, after checking that the file can hold what its header announces."""
    if raw[:4] != b"LASF" or len(raw) < 227:
        raise ValueError("no LAS header")
    minor = raw[25]
    header_size, offset, records = struct.unpack_from("<HII", raw, 94)
    record = struct.unpack_from("<H", raw, 105)[0]
    points: int = struct.unpack_from("<I", raw, 107)[0]
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


_UNPACK = """
import sys, laspy
with laspy.open(sys.argv[1]) as reader:
    for points in reader.chunk_iterator(500_000):
        sys.stdout.buffer.write(points.array.tobytes())
"""


def _unpack(path: Path, size: int) -> bytes:
    """The points of a LAZ file, unpacked in a process of its own, because a damaged file can make lazrs crash.

    Found by fuzzing: lazrs 0.8 aborts on large sizes in its chunk table.
    """
    command = [sys.executable, "-c", _UNPACK, str(path)]
    child = subprocess.run(command, capture_output=True, timeout=60 + size // 10**6, check=False)
    if child.returncode or not child.stdout:
        lines = child.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(f"the data is damaged ({lines[-1] if lines else f'parser died: {child.returncode}'})")
    return child.stdout


def write_las(path: Path, mesh: Mesh) -> None:
    """LAS 1.4 with the point format 6, or 7 for colours; what these have no place for in extra dimensions.

    Coordinates are multiples of a power of ten, the smallest that 32 bits allow: finer than float32.
    """
    laspy = require("laspy")
    color = mesh.vertex.get("color")
    header = laspy.LasHeader(version="1.4", point_format=6 if color is None else 7)
    largest = float(np.abs(mesh.pos).max())
    header.scales = np.full(3, 10.0 ** np.ceil(np.log10(largest / (2**31 - 1))) if largest else 1e-3)
    header.offsets = np.zeros(3) if mesh.origin is None else mesh.origin

    fields: dict[str, Array] = dict(zip("XYZ", np.rint(mesh.pos / header.scales).astype(np.int32).T, strict=True))
    if color is not None:
        channels = (color.astype(np.float64) * 65535).round().astype(np.uint16)
        fields |= dict(zip(("red", "green", "blue"), channels.T, strict=False))
    extra: dict[str, Array] = {}
    if "normal" in mesh.vertex:
        extra |= dict(zip(NORMAL, mesh.vertex["normal"].T, strict=True))
    for key, values in mesh.vertex.items():
        if key == "label" and _fits(values, 255):
            fields["classification"] = values
        elif key == "intensity" and _fits(values, 65535):
            fields["intensity"] = values
        elif key in _EXTRA:
            extra[_EXTRA[key]] = values.astype(np.int32) if values.dtype.kind in "iu" else values
    header.add_extra_dims([laspy.ExtraBytesParams(name, values.dtype) for name, values in extra.items()])
    las = laspy.LasData(header, laspy.ScaleAwarePointRecord.zeros(len(mesh.pos), header=header))
    for name, values in {**fields, **extra}.items():
        las[name] = values
    las.write(str(path))


def _fits(values: Array, most: int) -> bool:
    """Whether a standard dimension holds the values and shows that they are there: it is zero in files without them."""
    whole = (values == np.trunc(values)).all() and values.min() >= 0 and values.max() <= most
    return bool(whole and values.any())


def annotate_las(source: Path, target: Path, label: Array, score: Array | None) -> None:
    """Copy a file, point by point as it is, with other labels and scores."""
    laspy = require("laspy")
    with laspy.open(source) as reader:
        header = deepcopy(reader.header)
        classes = 32 if header.point_format.id <= 5 else 256
        fields: dict[str, Array] = {} if score is None else {"score": score.astype(np.float32)}
        in_classification = label.min() >= 0 and label.max() < classes
        if not in_classification:
            fields["label"] = label.astype(np.int32)
        own = set(header.point_format.extra_dimension_names)
        header.remove_extra_dims([name for name in ("label", *fields) if name in own])
        header.add_extra_dims([laspy.ExtraBytesParams(name, values.dtype) for name, values in fields.items()])
        if in_classification:
            fields["classification"] = label
        compressed = target.suffix.lower() == ".laz"
        with laspy.open(target, mode="w", header=header, do_compress=compressed) as writer:
            start = 0
            for points in reader.chunk_iterator(CHUNK):
                copy = laspy.ScaleAwarePointRecord.zeros(len(points), header=header)
                for name in set(points.array.dtype.names) & set(copy.array.dtype.names):
                    copy.array[name] = points.array[name]
                for name, values in fields.items():
                    copy[name] = values[start : start + len(points)]
                writer.write_points(copy)
                start += len(points)
            if reader.evlrs:
                writer.write_evlrs(reader.evlrs)


def left_out_of_las(source: Path) -> list[str]:
    """What a file has that `read_las` does not read."""
    laspy = require("laspy")
    with laspy.open(source) as reader:
        header: Any = reader.header
        read = {*"XYZ", "red", "green", "blue", "intensity", "classification", *NORMAL, *_EXTRA.values()}
        names = [name for name in header.point_format.dimension_names if name not in read]
        return [*names, *(["coordinate system"] if any("Geo" in v or "Wkt" in v for v in _records(header)) else [])]


def _records(header: Any) -> list[str]:
    return [type(record).__name__ for record in (*header.vlrs, *(header.evlrs or ()))]
