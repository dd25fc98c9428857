"""PCD (Point Cloud Library), read and written as a numpy table."""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ._check import Array, Arrays
from ._sample import Mesh, to_bytes


@dataclass(frozen=True)
class _Header:
    lines: dict[str, list[str]]
    dtype: np.dtype
    """Of a point; padding is named by its position."""
    points: int
    encoding: str
    start: int
    """Where the data begins."""


def read_pcd(path: Path) -> Arrays:
    """PCD in each of its encodings. Points without coordinates (missing returns of an organized cloud) are left out."""
    raw = path.read_bytes()
    return _arrays(_table(raw, _check_pcd(raw)))


def _arrays(table: Array) -> Arrays:
    names = table.dtype.names or ()
    table = table[returned(table)]
    if not len(table):
        raise ValueError("no point has coordinates")
    arrays: Arrays = {"pos": _stack(table, "xyz")}
    for normal in (("normal_x", "normal_y", "normal_z"), ("nx", "ny", "nz")):
        if set(normal) <= set(names):
            arrays["normal"] = _stack(table, normal)
    for name in ("rgb", "rgba"):
        if name in names and table.dtype[name].itemsize == 4 and table[name].ndim == 1:
            color = _unpacked(table[name])
            arrays["color"] = color if name == "rgba" and color[:, 3].any() else color[:, :3]
    for key in ("label", "scalar", "intensity", "score", "part"):
        if key in names and table[key].ndim == 1:
            arrays[key] = table[key]
    return arrays | {f"{key}_on": "vertex" for key in ("label", "scalar") if key in arrays}


def _stack(table: Array, names: tuple[str, ...] | str) -> Array:
    return np.stack([table[name] for name in names], axis=1)


def _unpacked(packed: Array) -> Array:
    """Red, green, blue and alpha of packed colours."""
    packed = np.ascontiguousarray(packed).view(np.uint32)
    return np.stack([packed >> shift & 255 for shift in (16, 8, 0, 24)], axis=1).astype(np.uint8)


def _packed(color: Array) -> Array:
    """Packed colours, ``[N]``: as a float32 without alpha, which is what most readers know, or as a uint32 with it."""
    channels = [channel.astype(np.uint32) << shift for channel, shift in zip(color.T, (16, 8, 0, 24), strict=False)]
    packed: Array = np.bitwise_or.reduce(channels)
    return packed if len(channels) == 4 else packed.view(np.float32)


def returned(table: Array) -> Array:
    """Which points have coordinates, ``[N]``."""
    missing = [np.isnan(table[axis]) for axis in "xyz" if table.dtype[axis].kind == "f"]
    return ~np.logical_or.reduce([np.zeros(len(table), dtype=bool), *missing])


_TYPES = {("F", 4), ("F", 8), *((kind, size) for kind in "IU" for size in (1, 2, 4, 8))}


def _check_pcd(raw: bytes) -> _Header:
    """The header, after checking that header and data fit."""
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
    if not set(zip(header["TYPE"], sizes, strict=True)) <= _TYPES or min(counts) < 1 or max(counts) > 2**16:
        raise ValueError("a field has an unknown type, size or count")
    if any(counts[fields.index(axis)] != 1 for axis in "xyz"):
        raise ValueError("x, y and z must have one number each")
    if len(set(fields) - {"_"}) != len([f for f in fields if f != "_"]):
        raise ValueError("two fields have the same name")
    if points < 1 or points != width * height:
        raise ValueError(f"{points} points, width {width}, height {height}" if points else "no vertices")
    dtype = np.dtype(
        [
            (f"_{i}" if name == "_" else name, f"<{kind.lower()}{size}", () if count == 1 else (count,))
            for i, (name, kind, size, count) in enumerate(zip(fields, header["TYPE"], sizes, counts, strict=True))
        ]
    )
    row, body = dtype.itemsize, len(raw) - position
    encoding = header["DATA"][0] if header["DATA"] else ""
    if encoding == "binary":
        if body < points * row:
            raise ValueError(f"{points} points need {points * row} bytes, {body} follow the header")
    elif encoding == "binary_compressed":
        if body < 8:
            raise ValueError("the data is cut off")
        packed, unpacked = struct.unpack_from("<II", raw, position)
        # LZF packs at most 264 bytes in 3.
        if packed > body - 8 or unpacked != points * row or unpacked > 88 * packed:
            raise ValueError(f"{points} points need {points * row} bytes, {packed} packed into {unpacked} follow")
    elif encoding == "ascii":
        if body < points:
            raise ValueError(f"{points} points do not fit into {body} bytes")
    else:
        raise ValueError(f"unknown encoding {encoding!r}")
    return _Header(header, dtype, points, encoding, position)


def _table(raw: bytes, header: _Header) -> Array:
    """The points as a structured array, ``[N]``."""
    if header.encoding == "binary":
        return np.frombuffer(raw, header.dtype, header.points, header.start)
    table = np.empty(header.points, header.dtype)
    if header.encoding == "binary_compressed":
        packed = struct.unpack_from("<I", raw, header.start)[0]
        column = _lzf(raw[header.start + 8 : header.start + 8 + packed], table.nbytes)
        start = 0
        for name in header.dtype.names or ():  # the fields lie one after the other
            kind, shape = header.dtype[name].base, header.dtype[name].shape
            values = np.frombuffer(column, kind, header.points * int(np.prod(shape, dtype=int)), start)
            table[name] = values.reshape(header.points, *shape)
            start += values.nbytes
        return table
    rows = np.array(_rows(raw, header), dtype=np.float64)
    start = 0
    for name in header.dtype.names or ():
        shape = header.dtype[name].shape
        columns = rows[:, start : start + int(np.prod(shape, dtype=int))]
        if header.dtype[name].base.kind != "f" and not np.isfinite(columns).all():
            raise ValueError(f"the field {name} has a value that is no integer")
        table[name] = columns.reshape(header.points, *shape)
        start += columns.shape[1]
    return table


def _rows(raw: bytes, header: _Header) -> list[list[str]]:
    rows = [line.split() for line in raw[header.start :].decode("ascii").splitlines() if line.strip()]
    width = sum(int(np.prod(header.dtype[name].shape, dtype=int)) for name in header.dtype.names or ())
    if len(rows) != header.points or any(len(row) != width for row in rows):
        raise ValueError(f"{len(rows)} rows for {header.points} points of {width} numbers")
    return rows


def _lzf(packed: bytes, size: int) -> bytes:
    """Unpack LZF (M. Lehmann): runs of bytes as they are, and copies of what was unpacked before."""
    out, i = bytearray(), 0
    try:
        while i < len(packed):
            control = packed[i]
            i += 1
            if control < 32:
                out += packed[i : i + control + 1]
                i += control + 1
                continue
            length = (control >> 5) + 2
            if length == 9:
                length += packed[i]
                i += 1
            start = len(out) - ((control & 31) << 8) - packed[i] - 1
            i += 1
            if start < 0 or len(out) + length > size:
                break
            run = out[start : start + length]  # shorter than the copy where they overlap: it repeats
            out += (run * (length // len(run) + 1))[:length] if len(run) < length else run
    except IndexError:
        pass
    if len(out) != size or i != len(packed):
        raise ValueError(f"the data is damaged: {len(out)} of {size} bytes could be unpacked")
    return bytes(out)


def write_pcd(path: Path, mesh: Mesh) -> None:
    """PCD 0.7, binary."""
    columns: dict[str, Array] = dict(zip("xyz", mesh.world().T, strict=True))
    for key, values in mesh.vertex.items():
        if key == "color":
            columns["rgba" if values.shape[1] == 4 else "rgb"] = _packed(to_bytes(values))
        elif key == "normal":
            columns |= dict(zip(("normal_x", "normal_y", "normal_z"), values.T, strict=True))
        else:
            columns[key] = _narrow(values)
    table = np.empty(len(mesh.pos), [(name, column.dtype.newbyteorder("<")) for name, column in columns.items()])
    for name, column in columns.items():
        table[name] = column
    _write(path, table, {})


def _narrow(values: Array) -> Array:
    """Integers in 32 bits; without a sign, as the Point Cloud Library has labels, if none is negative."""
    return values if values.dtype.kind == "f" else values.astype(np.int32 if values.min() < 0 else np.uint32)


def _write(path: Path, table: Array, lines: dict[str, list[str]]) -> None:
    """Write a table; ``lines`` of another header give its shape and viewpoint."""
    kinds = [table.dtype[name] for name in table.dtype.names or ()]
    names = ["_" if name[1:].isdigit() and name[0] == "_" else name for name in table.dtype.names or ()]
    header = [
        "VERSION 0.7",
        "FIELDS " + " ".join(names),
        "SIZE " + " ".join(str(kind.base.itemsize) for kind in kinds),
        "TYPE " + " ".join(kind.base.kind.upper() for kind in kinds),
        "COUNT " + " ".join(str(int(np.prod(kind.shape, dtype=int))) for kind in kinds),
        "WIDTH " + " ".join(lines.get("WIDTH", [str(len(table))])),
        "HEIGHT " + " ".join(lines.get("HEIGHT", ["1"])),
        "VIEWPOINT " + " ".join(lines.get("VIEWPOINT", ["0 0 0 1 0 0 0"])),
        f"POINTS {len(table)}",
        "DATA binary\n",
    ]
    with path.open("wb") as file:
        file.write("\n".join(header).encode("ascii"))
        table.tofile(file)


def annotate_pcd(source: Path, target: Path, label: Array, score: Array | None) -> None:
    """Copy a file with other labels and scores, in binary. Points without coordinates get the label -1 and score 0."""
    raw = source.read_bytes()
    header = _check_pcd(raw)
    table = _table(raw, header)
    there = returned(table)
    columns: dict[str, Array] = {"label": np.full(len(table), -1)}
    columns["label"][there] = label
    columns["label"] = _narrow(columns["label"])
    if score is not None:
        columns["score"] = np.zeros(len(table), np.float32)
        columns["score"][there] = score
    _write(target, with_columns(table, columns), header.lines)


def with_columns(table: Array, columns: dict[str, Array]) -> Array:
    """A structured array with columns in place of those of the same name."""
    kept = [name for name in table.dtype.names or () if name not in columns]
    dtype = [(name, table.dtype[name]) for name in kept]
    wider = np.empty(len(table), dtype + [(name, values.dtype) for name, values in columns.items()])
    for name in kept:
        wider[name] = table[name]
    for name, values in columns.items():
        wider[name] = values
    return wider


def left_out_of_pcd(source: Path) -> list[str]:
    """What a file has that `read_pcd` does not read."""
    read = {*"xyz", "normal_x", "normal_y", "normal_z", "nx", "ny", "nz", "rgb", "rgba"}
    read |= {"label", "scalar", "intensity", "score", "part"}
    return [name for name in _check_pcd(source.read_bytes()).dtype.names or () if name not in read and name[0] != "_"]
