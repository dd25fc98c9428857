"""What every loaded file passes through: limits before a parser runs, and one validation after it."""

import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch_geometric.data import Data

Array: TypeAlias = npt.NDArray[Any]
Arrays: TypeAlias = dict[str, Any]
"""What a reader returns: ``pos`` and any of ``face``, ``color``, ... by their name in the result."""

WIDTHS = {"color": (3, 4), "face_color": (3, 4), "normal": (3,), "uv": (2,)}
"""Numbers in a row of each attribute of more than one."""

OF_CLOUDS = ("intensity", "score")
"""Numbers of the points of clouds: what a laser scanner measured of the echo; how sure a label is."""

MAX_INSTANCES = 100_000
MAX_SCENE_VERTICES = 2**24


class LoadError(ValueError):
    """A file that cannot be loaded. The message names the file and the reason."""


def unpacked_limit(packed_size: int) -> int:
    """The most bytes that ``packed_size`` bytes of a compressed file may unpack to."""
    return 2**26 + 100 * packed_size


def check_zip(raw: bytes) -> None:
    """Refuse an archive whose members are together too large to be honest.

    ``zipfile`` never reads more of a member than its declared size, so the declared sizes are a bound.
    """
    with zipfile.ZipFile(BytesIO(raw)) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > unpacked_limit(len(raw)):
        raise ValueError(f"{len(raw)} bytes unpack to {unpacked}; refused as a decompression bomb")


def check_xml(raw: bytes) -> None:
    """Refuse entity definitions ("billion laughs"), and encodings that could hide them."""
    head = raw.lstrip(b"\xef\xbb\xbf \t\r\n")[:200]
    if not head.startswith(b"<"):
        raise ValueError("the content is not XML")
    encoding = re.match(rb"<\?xml[^>]*encoding\s*=\s*[\"']([^\"']*)", head)
    if encoding and encoding[1].lower() not in (b"utf-8", b"us-ascii", b"ascii", b"iso-8859-1"):
        raise ValueError(f"XML in encoding {encoding[1].decode(errors='replace')}; use UTF-8")
    if b"<!DOCTYPE" in raw or b"<!ENTITY" in raw:
        raise ValueError("XML with a document type or entity definitions is refused")


def check_instances(children: Mapping[str, Sequence[str]], roots: Sequence[str]) -> int:
    """Count the leaves reached from ``roots``, refusing cycles and explosions of nested references."""
    count: dict[str, int] = {}
    entered: set[str] = set()
    stack = list(roots)
    while stack:
        node = stack[-1]
        if node in count:
            stack.pop()
        elif node in entered:
            # All children of this node have been counted, unless it is its own descendant.
            if any(child not in count for child in children.get(node, ())):
                raise ValueError(f"the scene contains itself (at {node!r})")
            count[node] = sum(count[child] for child in children.get(node, ())) or 1
            stack.pop()
        else:
            entered.add(node)
            for child in children.get(node, ()):
                if child in entered and child not in count:
                    raise ValueError(f"the scene contains itself (at {child!r})")
                stack.append(child)
    total = sum(count[root] for root in roots)
    if total > MAX_INSTANCES:
        raise ValueError(f"the scene has {total} instances; the limit is {MAX_INSTANCES}")
    return total


def number_of(word: str, where: str) -> float:
    """A word of a text file as a number; ``where`` begins the sentence that refuses it."""
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"{where} {word!r}, which is no number") from None


def fan(lengths: Array) -> tuple[Array, Array]:
    """Triangulate polygons by fans from their first corner.

    Args:
        lengths: Number of corners of each polygon, ``[P]``, all at least 3. Corners lie in their order.

    Returns:
        Corner numbers of the triangles, ``[F, 3]``, and the polygon of each triangle, ``[F]``.

    """
    if lengths.size and lengths.min() < 3:
        raise ValueError(f"face {int(lengths.argmin())} has {int(lengths.min())} corners; at least 3 are needed")
    polygon = np.repeat(np.arange(len(lengths)), lengths - 2)
    first = np.cumsum(lengths) - lengths
    step = np.arange(len(polygon)) - np.repeat(np.cumsum(lengths - 2) - (lengths - 2), lengths - 2)
    corner = first[polygon]
    return np.stack([corner, corner + step + 1, corner + step + 2], axis=1), polygon


def per_vertex(values: Array, corner_value: Array, corner_vertex: Array, num_vertices: int) -> Array | None:
    """Move values indexed per corner to the vertices; None if corners of one vertex disagree.

    Vertices of no face get zero, unless vertices and values have the same numbers.
    """
    if len(values) == num_vertices and np.array_equal(corner_value, corner_vertex):
        return values
    for name, index, size in (("value", corner_value, len(values)), ("vertex", corner_vertex, num_vertices)):
        if index.size and (index.min() < 0 or index.max() >= size):
            raise ValueError(f"a face refers to {name} {int(index.max())} of {size}")
    result = np.zeros((num_vertices, values.shape[1]))
    result[corner_vertex] = values[corner_value]
    return result if np.array_equal(result[corner_vertex], values[corner_value], equal_nan=True) else None


def unit_color(color: Array) -> Array:
    """Colours as float32 in 0..1: integers are divided by their type's maximum, floats above 1 by 255."""
    if color.dtype.kind in "iu":
        return (color / np.iinfo(color.dtype).max).astype(np.float32)
    color = color.astype(np.float32)
    finite = color[np.isfinite(color)]
    return color / np.float32(255) if finite.size and finite.max() > 1 else color


def concatenate(parts: Sequence[Arrays], names: Sequence[str]) -> Arrays:
    """Join the geometries of a scene. An attribute stays if every geometry has it, with the same width."""
    if not parts:
        raise ValueError("no vertices")
    meshes = [i for i, part in enumerate(parts) if part.get("face") is not None and len(part["face"])]
    if meshes:  # loose points beside a mesh (empties, helpers) are no part of its surface
        parts, names = [parts[i] for i in meshes], [names[i] for i in meshes]
    start = np.cumsum([0] + [len(part["pos"]) for part in parts])
    joined: Arrays = {"pos": np.concatenate([part["pos"] for part in parts])}
    for key in ("color", "normal", "uv", "label", "scalar"):
        values: list[Array] = [part[key] for part in parts if part.get(key) is not None]
        if len(values) == len(parts) and len({value.shape[1:] for value in values}) == 1:
            joined[key] = np.concatenate(values)
            if key in ("label", "scalar"):
                joined[f"{key}_on"] = "vertex"
    if meshes:
        # Checked here, because an index out of its own part could fall into another.
        for part, name in zip(parts, names, strict=True):
            check_face(part["face"], len(part["pos"]), f" of part {name!r}")
        joined["face"] = np.concatenate([part["face"] + first for part, first in zip(parts, start, strict=False)])
    if len(parts) > 1:
        size = [len(part["face"] if meshes else part["pos"]) for part in parts]
        joined["part"] = np.repeat(np.arange(len(parts)), size)
        joined["part_name"] = [str(name) for name in names]
    return joined


def check_face(face: Array, num_vertices: int, where: str = "") -> None:
    """Refuse faces that are not ``[F, 3]`` indices of vertices."""
    if face.ndim != 2 or face.shape[1] != 3 or face.dtype.kind not in "iu":
        raise ValueError(f"faces{where} are {face.dtype} {list(face.shape)}, expected integers [F, 3]")
    outside = (face < 0) | (face >= num_vertices)
    if outside.any():
        row = int(outside.any(axis=1).argmax())
        vertex = int(face[row][outside[row]][0])
        raise ValueError(f"face {row}{where} refers to vertex {vertex}; there are {num_vertices}, counted from 0")


def to_data(arrays: Arrays) -> Data:
    """Check what a reader found and make it a sample.

    Positions must be finite, faces in range and attributes as long as what they describe. An attribute with
    numbers that are not finite is left out, with a warning: the geometry is whole without it.

    Args:
        arrays: What was read. "vertex line" is a function from a vertex to its line in a text file,
            "first vertex" the number that the file gives its first vertex (default 0).

    Raises:
        ValueError: If a check fails; the message says which.

    """
    line, first = arrays.pop("vertex line", None), arrays.pop("first vertex", 0)
    pos = np.asarray(arrays["pos"])
    if pos.ndim != 2 or pos.shape[1] != 3:
        raise ValueError("no vertices" if not pos.size else f"positions have shape {list(pos.shape)}")
    if not len(pos):
        raise ValueError("no vertices")
    pos, origin = to_float32(pos, arrays.pop("origin", None))
    if not np.isfinite(pos).all():
        row = int((~np.isfinite(pos)).any(axis=1).argmax())
        where = "" if line is None else f"line {line(row)}: "
        raise ValueError(f"{where}vertex {row + first} has a coordinate that is not a finite float32")
    data = Data(pos=torch.from_numpy(np.ascontiguousarray(pos)))
    if origin is not None:
        data.origin = torch.from_numpy(origin)
    lengths = {"vertex": len(pos)}

    face = arrays.get("face")
    if face is not None and len(face):
        face = np.asarray(face)
        check_face(face, len(pos))
        data.face = torch.from_numpy(np.ascontiguousarray(face.T.astype(np.int64)))
        lengths["face"] = len(face)

    wanted = {"color": "vertex", "normal": "vertex", "uv": "vertex", "face_color": "face"}
    wanted["part"] = "face" if "face" in lengths else "vertex"
    if "face" not in lengths:
        wanted |= dict.fromkeys(OF_CLOUDS, "vertex")
    for key in ("label", "scalar"):
        wanted[key] = arrays.get(f"{key}_on", "vertex")
    for key, value in arrays.items():
        if key in ("pos", "face", "part_name") or key.endswith("_on") or value is None:
            continue
        value = np.asarray(value)
        on = wanted.get(key)
        if on is None:
            on = "face" if len(value) == lengths.get("face") != len(pos) else "vertex"
        if len(value) != lengths.get(on, 0):
            raise ValueError(f"{key} has {len(value)} rows for {lengths.get(on, 0)} {on} rows")
        tensor = _attribute(key, value, of_cloud=key in OF_CLOUDS and "face" not in lengths)
        if tensor is None:
            allowed = f"integers in 0..{MAX_INSTANCES}" if key == "part" else "finite"
            warnings.warn(f"{key} is left out: it has values that are not {allowed}", stacklevel=4)
            continue
        data[key] = tensor
        if f"{key}_on" in arrays:
            data[f"{key}_on"] = on
    if "part" in data:
        names = arrays.get("part_name") or [str(i) for i in range(int(data.part.max()) + 1)]
        data.part_name = names
    return data


def to_float32(pos: Array, origin: Array | None) -> tuple[Array, Array | None]:
    """Round positions, after moving those that rounding would blur (georeferenced scans) near zero."""
    if origin is not None and (origin.shape != (3,) or not np.isfinite(origin).all()):
        raise ValueError(f"origin has shape {list(origin.shape)}, expected three finite numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = pos.astype(np.float32)
        if np.isfinite(rounded).all():
            extent = np.ptp(pos.astype(np.float64), axis=0).max()
            if 0 < 1e-5 * extent < np.abs(pos - rounded).max():
                step = min(1, 10 ** np.floor(np.log10(extent)))  # a round number, but no larger than the shape
                shift = (np.floor(pos.min(axis=0) / step) * step).astype(np.float64)
                if np.isfinite(shift).all():
                    return (pos - shift).astype(np.float32), shift if origin is None else shift + origin
    return rounded, origin


def _attribute(key: str, value: Array, of_cloud: bool) -> torch.Tensor | None:
    """The attribute in its type, or None if it is not finite, or no numbers of parts."""
    if key in WIDTHS and (value.ndim != 2 or value.shape[1] not in WIDTHS[key]):
        raise ValueError(f"{key} has shape {list(value.shape)}")
    if (key in ("label", "scalar", "part") or of_cloud) and value.ndim != 1:
        raise ValueError(f"{key} has shape {list(value.shape)}, expected one number per row")
    if value.dtype.kind not in "biuf":
        raise ValueError(f"{key} holds {value.dtype}, expected numbers")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        return None
    if key in ("color", "face_color"):
        value = np.clip(unit_color(value), 0, 1)
    elif key == "part":
        if (value != np.trunc(value)).any() or not ((value >= 0) & (value <= MAX_INSTANCES)).all():
            return None
        value = value.astype(np.int64)
    elif key == "label" and (value == np.trunc(value)).all() and np.abs(value).max(initial=0) < 2**63:
        value = value.astype(np.int64)
    elif key in ("normal", "uv", "scalar", "label") or of_cloud:
        with np.errstate(over="ignore"):
            value = value.astype(np.float32)
        if not np.isfinite(value).all():
            return None
    return torch.from_numpy(np.array(value, value.dtype.newbyteorder("="), order="C"))


def merge_vertices(data: Data) -> Data:
    """Merge the vertices of a mesh at exactly the same position, keeping the first of each and the order."""
    if data.face is None:
        return data
    pos = data.pos.numpy()
    _, first, inverse = np.unique(pos, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    keep = torch.from_numpy(np.sort(first))
    num_faces = data.face.shape[1]
    for key, value in list(data.items()):
        if key in ("face", "face_color") or not isinstance(value, torch.Tensor) or len(value) != len(pos):
            continue
        if len(pos) == num_faces and (key == "part" or data.get(f"{key}_on") == "face"):
            continue
        data[key] = value[keep]
    data.face = torch.from_numpy(rank[inverse.reshape(-1)])[data.face]
    return data
