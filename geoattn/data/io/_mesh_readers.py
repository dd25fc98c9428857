"""Readers of obj, ply, stl and off. What they raise, ``load`` makes a LoadError."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from geoattn._optional import require

from ._check import OF_CLOUDS, Array, Arrays, LoadError, fan, number_of, per_vertex, unit_color


@dataclass
class _Rows:
    """Rows of a text file: their words and the lines they stand on, in two lists, as pairs cost half as much again."""

    words: list[list[str]] = field(default_factory=list)
    line: list[int] = field(default_factory=list)


# ----------------------------------------------------------------------------- obj


def read_obj(path: Path) -> Arrays:
    """Wavefront OBJ. Materials are not read, so a missing .mtl or texture is no error.

    Read here, because no library keeps the order and number of the ``v`` lines and gets the indices right:
    trimesh 5.2 splits vertices at texture seams, counts relative indices from the last vertex of the file
    instead of the last one above the line, takes the illegal index 0 for vertex 1, and skips faces of two
    corners.
    """
    text = path.read_bytes().decode(errors="replace")
    if "\0" in text:
        raise ValueError("the content is not text")
    rows = {"v": _Rows(), "vt": _Rows(), "vn": _Rows()}
    corners: list[tuple[int, int | None, int | None]] = []
    lengths: list[int] = []
    face_line: list[int] = []
    objects: list[str] = []
    part: list[int] = []
    known = 0

    for number, line in _obj_lines(text):
        key, *words = line.partition("#")[0].split() or [""]
        if key in rows:
            rows[key].words.append(words)
            rows[key].line.append(number)
        elif key == "f":
            try:
                corners += [_obj_corner(word, rows) for word in words]
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            if len(words) < 3:
                raise ValueError(f"line {number}: the face has {len(words)} corners; at least 3 are needed")
            lengths.append(len(words))
            face_line.append(number)
            part.append(len(objects) - 1)
        elif key == "o":
            objects.append(" ".join(line.split()[1:]))  # a "#" may be part of the name
        known += key in _OBJ_KEYS
    if not known:
        raise ValueError("no vertices, and no line that is OBJ")

    arrays: Arrays = {"pos": _columns(rows["v"], 3, "v"), "first vertex": 1}
    arrays["vertex line"] = lambda row: rows["v"].line[row]
    num_vertices = len(arrays["pos"])
    width = min(map(len, rows["v"].words), default=0)
    if width >= 6:
        arrays["color"] = unit_color(_columns(rows["v"], 6, "v")[:, 3:])
    if not corners:
        for key, name, columns in _OBJ_ATTRIBUTES:
            if rows[key].words and len(rows[key].words) == num_vertices:
                arrays[name] = _columns(rows[key], columns, key)
        return arrays

    triangles, polygon = fan(np.array(lengths))
    vertex = np.array([corner[0] for corner in corners])
    _check_obj_indices("vertex", vertex, num_vertices, lengths, face_line)
    arrays["face"] = vertex[triangles]
    for slot, (key, name, columns) in enumerate(_OBJ_ATTRIBUTES, 1):
        listed = [corner[slot] for corner in corners]
        if rows[key].words and None not in listed:
            index = np.array(listed)
            _check_obj_indices(key, index, len(rows[key].words), lengths, face_line)
            arrays[name] = per_vertex(_columns(rows[key], columns, key), index, vertex, num_vertices)
    used = np.unique(part)
    if len(used) > 1:
        arrays["part"] = np.searchsorted(used, np.array(part)[polygon])
        arrays["part_name"] = [objects[i] if i >= 0 else "" for i in used]
    return arrays


_OBJ_KEYS = {"v", "vt", "vn", "f", "o", "g", "s", "l", "p", "usemtl", "mtllib", "vp"}


_OBJ_ATTRIBUTES = (("vt", "uv", 2), ("vn", "normal", 3))


def _obj_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1. One that ends with a backslash goes on in the next."""
    begun, start = "", 0
    for number, line in enumerate(text.split("\n"), 1):
        whole = not line.endswith(("\\", "\\\r"))
        if whole and not start:
            yield number, line
            continue
        start = start or number
        begun += line.rstrip("\r")[: None if whole else -1] + " "
        if whole:
            yield start, begun
            begun, start = "", 0
    if begun:
        yield start, begun


def _check_obj_indices(what: str, index: Array, count: int, lengths: list[int], face_line: list[int]) -> None:
    """Refuse faces that refer to rows below the last; negative numbers are checked where they are read."""
    if index.max() < count:
        return
    corner = int((index >= count).argmax())
    face = int(np.searchsorted(np.cumsum(lengths), corner, side="right"))
    raise ValueError(
        f"line {face_line[face]}: the face refers to {what} {index[corner] + 1}; the file has {count}, counted from 1"
    )


def _obj_corner(word: str, rows: dict[str, _Rows]) -> tuple[int, int | None, int | None]:
    """``vertex/texture/normal`` as indices from 0; negative ones count back from the lines so far."""
    indices: list[int | None] = []
    for key, entry in zip(("v", "vt", "vn"), word.split("/"), strict=False):
        if not entry:
            indices.append(None)
            continue
        try:
            index = int(entry)
        except ValueError:
            raise ValueError(f"{word!r} is no index") from None
        if index == 0:
            raise ValueError(f"index 0 in {word!r}; OBJ counts from 1")
        index = index - 1 if index > 0 else index + len(rows[key].words)
        if index < 0:
            raise ValueError(f"{word!r} counts back beyond the first {key}")
        indices.append(index)
    if indices[0] is None:
        raise ValueError(f"{word!r} names no vertex")
    indices += [None] * (3 - len(indices))
    return indices[0], indices[1], indices[2]


def _columns(rows: _Rows, columns: int, what: str) -> Array:
    """The first numbers of each row."""
    if rows.words and min(map(len, rows.words)) < columns:
        row = next(row for row, words in enumerate(rows.words) if len(words) < columns)
        raise ValueError(f"line {rows.line[row]}: {what} has {len(rows.words[row])} numbers, expected {columns}")
    try:
        return np.array([words[:columns] for words in rows.words], dtype=np.float64).reshape(-1, columns)
    except ValueError:
        for words, line in zip(rows.words, rows.line, strict=True):
            for word in words[:columns]:
                number_of(word, f"line {line}: {what} has")
        raise


# ----------------------------------------------------------------------------- ply

PLY_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "int64": "i8", "uint64": "u8", "float16": "f2", "float32": "f4", "float64": "f8",
}  # fmt: skip


def read_ply(path: Path) -> Arrays:
    """PLY, ASCII and binary of either byte order, through trimesh (meshio for mixed polygons in binary)."""
    raw = path.read_bytes()
    elements, lines = check_ply(raw)
    if "tristrips" in elements:
        raise ValueError("triangle strips are not supported; save it with faces")
    load_ply = require("trimesh.exchange.ply").load_ply

    try:
        loaded = load_ply(BytesIO(raw), fix_texture=False, skip_materials=True)["metadata"]["_ply_raw"]
        vertex, face = (_ply_columns(loaded, name, elements) for name in ("vertex", "face"))
    except _MixedPolygonsError:
        return _read_mixed_ply(raw, elements)
    except ValueError as error:
        for number, line in enumerate(raw.decode("ascii", errors="replace").splitlines() if lines else (), 1):
            for word in line.split() if number >= min(lines.values()) else ():
                number_of(word, f"line {number}: it has")
        if lines or "unexpected length" not in str(error):
            raise
        return _read_mixed_ply(raw, elements)
    return _ply_arrays(vertex, face, lines) | _ply_part_names(raw)


def ply_points(path: Path) -> dict[str, Array]:
    """The properties of a PLY file's first element, ``[N]`` each, whatever they and it are called.

    Raises:
        LoadError: If it is no PLY, cut off, or the element has lists.
    """
    raw = path.read_bytes()
    try:
        elements, lines = check_ply(raw)
        count, properties = next(iter(elements.values()), (0, []))
        if not count or any(len(types) != 1 for _, *types in properties):
            raise ValueError("expected points first: an element of numbers without lists")
        header, _, body = raw.partition(b"\nend_header")
        body = body[body.index(b"\n") + 1 :]
        order = ">" if b"format binary_big_endian" in header else "<"
        dtype = np.dtype([(name, order + PLY_TYPES[kind]) for name, kind in properties])
        if not lines:
            table = np.frombuffer(body, dtype, count)
        else:
            table = np.loadtxt(body.decode().splitlines()[:count], dtype, comments=None, ndmin=1)
    except (ValueError, IndexError) as error:
        raise LoadError(f"{path}: {error}") from error
    return {name: table[name] for name, _ in properties}


def _ply_part_names(raw: bytes) -> Arrays:
    """The names of parts, which ``save`` writes as comments: number and JSON."""
    header = raw.partition(b"\nend_header")[0]
    names = {
        int(i): json.loads(name) for i, name in re.findall(rb'^comment part (\d+) (".*")\r?$', header, re.MULTILINE)
    }
    return {"part_name": [str(names[i]) for i in range(len(names))]} if set(names) == set(range(len(names))) else {}


class _MixedPolygonsError(ValueError):
    pass


def check_ply(raw: bytes) -> tuple[dict[str, tuple[int, list[list[str]]]], dict[str, int]]:
    """Parse the header, and refuse a file that is too short for it, or has rows that do not fit it.

    Returns:
        Number of rows and properties of each element, and the line of its first row if it is text.

    """
    end = re.search(rb"\nend_header[ \t]*\r?\n", raw[: 2**24])
    if not raw.startswith(b"ply") or end is None:
        raise ValueError("no PLY header")
    lines = [line.split() for line in raw[: end.start()].decode("ascii", errors="replace").splitlines()[1:]]
    encoding = next((line[1] for line in lines if line[:1] == ["format"] and len(line) > 1), "")
    if encoding not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise ValueError(f"unknown PLY format {encoding!r}")
    elements: dict[str, tuple[int, list[list[str]]]] = {}
    for line in lines:
        if line[:1] == ["element"]:
            if len(line) != 3 or not line[2].isdigit() or line[1] in elements:
                raise ValueError(f"bad header line {' '.join(line)!r}")
            elements[line[1]] = (int(line[2]), [])
        elif line[:1] == ["property"]:
            types = line[2:-1] if line[1:2] == ["list"] else line[1:-1]
            if not elements or len(types) != (2 if line[1] == "list" else 1) or set(types) - set(PLY_TYPES):
                raise ValueError(f"bad header line {' '.join(line)!r}")
            list(elements.values())[-1][1].append([line[-1], *types])

    body = raw[end.end() :]
    if encoding != "ascii":
        sizes = (n * sum(np.dtype(PLY_TYPES[p[1]]).itemsize for p in props) for n, props in elements.values())
        if sum(sizes) > len(body):
            raise ValueError(f"the header announces more than the {len(body)} bytes that follow it")
        return elements, {}
    rows = body.decode("ascii", errors="replace").splitlines()
    if len(rows) < sum(count for count, _ in elements.values()):
        raise ValueError(f"the header announces more rows than the {len(rows)} that follow it")
    start, header = 0, len(lines) + 2
    first_lines = {}
    for name, (count, properties) in elements.items():
        first_lines[name] = header + start + 1
        for number, row in enumerate(rows[start : start + count], first_lines[name]):
            _check_ply_row(row.split(), properties, f"line {number}: the {name}")
        start += count
    return elements, first_lines


def _check_ply_row(words: list[str], properties: list[list[str]], where: str) -> None:
    position = 0
    for _, *types in properties:
        listed = len(types) == 2 and position < len(words)
        position += 1 + (int(number_of(words[position], f"{where} has")) if listed else 0)
    if position != len(words):
        raise ValueError(f"{where} has {len(words)} numbers, its header asks for {position}")


def _ply_columns(loaded: Any, name: str, elements: dict[str, tuple[int, list[list[str]]]]) -> dict[str, Any]:
    """The properties of one element as trimesh read them: scalars ``[N]``, lists ``[N, K]`` or ragged."""
    count, properties = elements.get(name, (0, []))
    data = loaded.get(name, {}).get("data") if count else None
    if data is None:
        if count and properties:
            raise ValueError(f"no {name} was read")
        return {}
    columns: dict[str, Any] = {}
    for key, *types in properties:
        column = data[key]
        if len(types) == 2 and not isinstance(data, dict):
            lengths, column = column["f0"], column["f1"]
            if (lengths != lengths[0]).any():
                raise _MixedPolygonsError
            column = column.reshape(count, -1)
        if len(column) != count:
            raise ValueError(f"{key} has {len(column)} of {count} rows")
        if len(types) == 1:
            column = np.asarray(column)
            column = np.concatenate([np.ravel(c) for c in column]) if column.dtype == object else column.reshape(-1)
        columns[key] = column
    return columns


def _read_mixed_ply(raw: bytes, elements: dict[str, tuple[int, list[list[str]]]]) -> Arrays:
    """Binary PLY with polygons of several sizes; meshio reads it if its faces have no other property."""
    meshio_ply = require("meshio.ply._ply")

    count, properties = elements.get("face", (0, []))
    names = [p[0] for p in properties]
    if set(elements) - {"vertex", "face"} or len(names) != 1 or names[0] not in _PLY_INDICES:
        raise ValueError("the file is not as long as its header says, or mixes polygon sizes and face attributes")
    # meshio knows one name for the list and two for its types' sizes.
    header, _, body = raw.partition(b"end_header")
    lines = [line for line in header.split(b"\n") if not line.startswith((b"comment", b"obj_info"))]
    header = (
        b"\n".join(lines).replace(b"vertex_index\n", b"vertex_indices\n").replace(b"vertex_index\r", b"vertex_indices")
    )
    read = meshio_ply.read_buffer(BytesIO(header + b"end_header" + body))
    blocks = [np.asarray(block.data) for block in read.cells]
    if sum(len(block) for block in blocks) != count:
        raise ValueError(f"{sum(len(block) for block in blocks)} of {count} faces were read")
    index = [row for block in blocks for row in block]
    vertex = {"x": read.points[:, 0], "y": read.points[:, 1], "z": read.points[:, 2], **read.point_data}
    used = sum(np.dtype(PLY_TYPES[properties[0][1]]).itemsize + row.nbytes for row in index)
    used += elements["vertex"][0] * sum(np.dtype(PLY_TYPES[p[1]]).itemsize for p in elements["vertex"][1])
    if used != len(body.partition(b"\n")[2]):
        raise ValueError("the file is not as long as its header says")
    return _ply_arrays(vertex, {"vertex_indices": index}, {})


_PLY_INDICES = ("vertex_indices", "vertex_index")


def _ply_arrays(vertex: dict[str, Any], face: dict[str, Any], lines: dict[str, int]) -> Arrays:
    """From properties by their customary names to arrays. ``lines``: where the rows of each element start."""
    missing = [key for key in "xyz" if key not in vertex]
    if missing:
        raise ValueError("no vertices" if not vertex else f"vertices have no property {missing[0]!r}")
    arrays: Arrays = {"pos": _stack(vertex, ("x", "y", "z"))}
    num_vertices = len(arrays["pos"])
    if lines:
        arrays["vertex line"] = lambda row: lines["vertex"] + row
    arrays["normal"] = _stack(vertex, ("nx", "ny", "nz"))
    arrays["color"] = _ply_color(vertex)
    for names in (("s", "t"), ("u", "v"), ("texture_u", "texture_v")):
        arrays["uv"] = arrays["uv"] if arrays.get("uv") is not None else _stack(vertex, names)
    for key in ("label", "scalar"):
        if key in vertex:
            arrays[key], arrays[f"{key}_on"] = vertex[key], "vertex"
    if not face:
        arrays |= {key: vertex[key] for key in OF_CLOUDS if key in vertex}
        if "part" in vertex:
            arrays["part"] = vertex["part"]
        return arrays

    index = next((face[key] for key in _PLY_INDICES if key in face), None)
    if index is None:
        raise ValueError("faces have no property 'vertex_indices'")
    lengths = np.array([len(row) for row in index])
    triangles, polygon = fan(lengths)
    corner_vertex = np.concatenate([np.asarray(row) for row in index])
    if corner_vertex.dtype.kind == "f":  # a list of floats, or an int list read as text
        corner_vertex = _integers(corner_vertex, "vertex_indices")
    corner_vertex = corner_vertex.astype(np.int64)
    outside = (corner_vertex < 0) | (corner_vertex >= num_vertices)
    if outside.any():
        corner = int(outside.argmax())
        row = int(np.searchsorted(np.cumsum(lengths), corner, side="right"))
        where = f"line {lines['face'] + row}: the face" if lines else f"face {row}, counted from 0,"
        raise ValueError(
            f"{where} refers to vertex {corner_vertex[corner]}; the file has {num_vertices}, counted from 0"
        )
    arrays["face"] = corner_vertex[triangles]
    color = _ply_color(face)
    arrays["face_color"] = None if color is None else color[polygon]
    for key in ("label", "scalar"):
        if key in face and key not in arrays:
            arrays[key], arrays[f"{key}_on"] = np.asarray(face[key])[polygon], "face"
    if "part" in face:
        arrays["part"] = np.asarray(face["part"])[polygon]
    if "texcoord" in face and arrays["uv"] is None and all(len(row) for row in face["texcoord"]):
        corner_uv = np.concatenate([np.asarray(row) for row in face["texcoord"]]).reshape(-1, 2)
        if len(corner_uv) == len(corner_vertex):
            arrays["uv"] = per_vertex(corner_uv, np.arange(len(corner_uv)), corner_vertex, num_vertices)
    return arrays


def _stack(columns: dict[str, Any], names: tuple[str, ...]) -> Array | None:
    return np.stack([columns[name] for name in names], axis=1) if all(n in columns for n in names) else None


def _ply_color(columns: dict[str, Any]) -> Array | None:
    rgb = _stack(columns, ("red", "green", "blue"))
    if rgb is None:
        return None
    rgba = _stack(columns, ("red", "green", "blue", "alpha"))
    return unit_color(rgb if rgba is None else rgba)


def _integers(values: Array, name: str) -> Array:
    if not np.array_equal(values, np.trunc(values)) or np.abs(values).max(initial=0) > 2**53:
        raise ValueError(f"{name} holds numbers that are not integers")
    return values.astype(np.int64)


# ----------------------------------------------------------------------------- stl, off


def read_stl(path: Path) -> Arrays:
    """STL, binary or ASCII, through trimesh. Every triangle has vertices of its own, as in the file."""
    load_stl = require("trimesh.exchange.stl").load_stl

    raw = path.read_bytes()
    binary = len(raw) >= 84 and len(raw) == 84 + 50 * int.from_bytes(raw[80:84], "little")
    if not binary:
        text = raw.decode(errors="replace").lower()
        if not text.lstrip().startswith("solid"):
            raise ValueError("neither ASCII STL nor binary STL of the length that its header says")
        begun, ended = (len(re.findall(rf"^[ \t]*{word}\b", text, re.MULTILINE)) for word in ("solid", "endsolid"))
        facets, closed, vertices = (
            len(re.findall(rf"^[ \t]*{word}\b", text, re.MULTILINE)) for word in ("facet", "endfacet", "vertex")
        )
        if begun != ended or facets != closed or vertices != 3 * facets:
            raise ValueError(
                f"ASCII STL with {begun} solid, {ended} endsolid, {facets} facet, {closed} endfacet "
                f"and {vertices} vertex lines"
            )
    loaded = load_stl(BytesIO(raw))
    parts = [loaded] if "vertices" in loaded else list(loaded.get("geometry", {}).values())
    arrays: Arrays = (
        {"pos": np.concatenate([part["vertices"] for part in parts])} if parts else {"pos": np.empty((0, 3))}
    )
    if not binary and len(arrays["pos"]) != vertices:
        raise ValueError(f"{len(arrays['pos'])} of {vertices} vertices were read")
    arrays["face"] = np.arange(len(arrays["pos"])).reshape(-1, 3)
    if len(parts) > 1:
        arrays["part"] = np.repeat(np.arange(len(parts)), [len(part["faces"]) for part in parts])
        arrays["part_name"] = list(loaded["geometry"])
    return arrays


def read_off(path: Path) -> Arrays:
    """OFF and COFF (colours in 0..1 or 0..255). Read here: trimesh skips colours, and cannot name a line."""
    lines = enumerate(path.read_bytes().decode(errors="replace").splitlines(), 1)
    rows = [(number, words) for number, line in lines if (words := line.partition("#")[0].split())]
    magic = re.match(r"(C?)OFF(\d*)$", rows[0][1][0] if rows else "", re.IGNORECASE)
    if magic is None:
        raise ValueError("the first word is not OFF or COFF")
    counts = [*([magic[2]] if magic[2] else []), *rows[0][1][1:]]  # "OFF8 6 12" occurs
    rows = rows[1:]
    if not counts and rows:
        counts, rows = rows[0][1], rows[1:]
    if len(counts) < 2 or not all(word.isdigit() for word in counts):
        raise ValueError("the line of counts is missing or malformed")
    num_vertices, num_faces = int(counts[0]), int(counts[1])
    if len(rows) < num_vertices + num_faces:
        raise ValueError(f"{len(rows)} lines follow, the header asks for {num_vertices + num_faces}")
    if not num_vertices:
        raise ValueError("no vertices")
    vertex = _Rows([words for _, words in rows[:num_vertices]], [line for line, _ in rows[:num_vertices]])
    faces = rows[num_vertices : num_vertices + num_faces]
    width = (6, 7)[len(vertex.words[0]) > 6] if magic[1] else 3
    values = _columns(vertex, width, "a vertex")
    arrays: Arrays = {"pos": values[:, :3], "vertex line": lambda row: vertex.line[row]}
    if magic[1]:
        arrays["color"] = unit_color(values[:, 3:])
    if faces:
        corners = [_off_corners(number, words, num_vertices) for number, words in faces]
        arrays["face"] = np.array([vertex for face in corners for vertex in face])[
            fan(np.array([len(face) for face in corners]))[0]
        ]
    return arrays


def _off_corners(number: int, words: list[str], num_vertices: int) -> list[int]:
    """The vertices of a face: how many, and their numbers from 0."""
    if not words[0].isdigit() or not 3 <= int(words[0]) < len(words):
        raise ValueError(f"line {number}: the face is malformed: {' '.join(words[:8])!r}")
    try:
        corners = [int(word) for word in words[1 : 1 + int(words[0])]]
    except ValueError:
        raise ValueError(f"line {number}: the face has a word that is no integer: {' '.join(words[:8])!r}") from None
    for vertex in corners:
        if not 0 <= vertex < num_vertices:
            raise ValueError(
                f"line {number}: the face refers to vertex {vertex}; the file has {num_vertices}, counted from 0"
            )
    return corners
