"""Readers of msh, vtk and vtu, through meshio. What they raise, ``load`` makes a LoadError."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geoattn._optional import require

from ._check import OF_CLOUDS, Array, Arrays, check_xml, fan, unit_color, unpacked_limit

_POLYGONS = {"triangle": 3, "triangle6": 3, "triangle7": 3, "quad": 4, "quad8": 4, "quad9": 4}
"""Surface cells by their number of corners; the nodes after the corners lie on edges and inside."""

_NO_SURFACE = {"vertex", "line", "line3", "line4"}


def read_msh(path: Path) -> Arrays:
    """Gmsh MSH 2.2, 4.0 and 4.1 through meshio."""
    gmsh = require("meshio.gmsh")
    raw = path.read_bytes()
    for section in (b"MeshFormat", b"Nodes", b"Elements"):
        if not re.search(rb"^\$End%s\s*$" % section, raw, re.MULTILINE):
            raise ValueError(f"section ${section.decode()} is missing or cut off")
    declared = (_check_msh_section(raw, b"Nodes"), _check_msh_section(raw, b"Elements"))
    mesh = gmsh.read(str(path))
    found = (len(mesh.points), sum(len(block.data) for block in mesh.cells))
    if found != declared:
        raise ValueError(f"{found} of {declared} nodes and elements were read")
    return _from_meshio(mesh)


def _check_msh_section(raw: bytes, section: bytes) -> int:
    """The number of nodes or elements that a section announces, after checking it.

    meshio 5.3 leaves nodes that are announced but not there uninitialised, and makes a table as long as the
    largest node tag.
    """
    form = re.search(rb"^\$MeshFormat\s+(\d\S*)\s+([01])\s", raw, re.MULTILINE)
    start = re.search(rb"^\$%s[ \t\r]*\n" % section, raw, re.MULTILINE)
    if form is None or start is None:
        raise ValueError(f"no $MeshFormat or no ${section.decode()}")
    version, is_ascii = float(form[1]), form[2] == b"0"
    position = start.end()
    if version < 4:  # the count is text in binary files too
        announced = int(raw[position : raw.index(b"\n", position)])
        position = raw.index(b"\n", position) + 1
    words = raw[position : raw.index(b"\n$End", position) + 1].split() if is_ascii else []
    position = 0 if is_ascii else position

    def take(dtype: npt.DTypeLike, count: int) -> Array:
        nonlocal position
        if count < 0 or count > len(raw):
            raise ValueError(f"${section.decode()} announces more than the file holds")
        if is_ascii:
            values = np.array(words[position : position + count]).astype(np.float64)
            position += count
        else:
            values = np.frombuffer(raw, dtype, count, position)
            position += values.nbytes
        if len(values) != count:
            raise ValueError(f"${section.decode()} is cut off")
        return values

    if version < 4:
        if announced < 0 or announced > len(raw):
            raise ValueError(f"${section.decode()} announces more than the file holds")
        tags = [take("f8", 4 * announced)[::4]] if is_ascii and section == b"Nodes" else []
    else:
        blocks, announced = (int(n) for n in take("u8", 4 if version >= 4.1 else 2)[:2])
        tags = []
        for _ in range(blocks if section == b"Nodes" else 0):
            take("i4", 3)
            count = int(take("u8", 1)[0])
            if version >= 4.1:
                tags.append(take("u8", count))
                take("f8", 3 * count)
            else:
                node = np.dtype([("tag", "i4"), ("pos", "f8", 3)])
                tags.append(take("f8", 4 * count)[::4] if is_ascii else take(node, count)["tag"])
    if section == b"Nodes" and (is_ascii or version >= 4):
        number = sum(map(len, tags))
        if number != announced:
            raise ValueError(f"$Nodes announces {announced} nodes and has {number}")
        largest = max((int(tag.max()) for tag in tags if len(tag)), default=0)
        if largest > unpacked_limit(len(raw)) // 8 or any((tag < 1).any() for tag in tags):
            raise ValueError(f"a node has the tag {largest}, of {number} nodes, or a tag below 1")
    return announced


def read_vtk(path: Path) -> Arrays:
    """Legacy VTK with an unstructured grid, through meshio."""
    vtk = require("meshio.vtk")
    raw = path.read_bytes()
    dataset = re.search(rb"^DATASET[ \t]+(\S+)", raw, re.MULTILINE | re.IGNORECASE)
    if not raw.startswith(b"# vtk DataFile Version") or dataset is None:
        raise ValueError("no VTK header")
    if dataset[1].upper() != b"UNSTRUCTURED_GRID":
        raise ValueError(f"a {dataset[1].decode(errors='replace')} dataset; only UNSTRUCTURED_GRID is supported")
    sizes: dict[bytes, list[int]] = {}
    for line in re.finditer(rb"^([A-Za-z_]\S*)((?:[ \t]+\S+){1,4})[ \t]*\r?$", raw, re.MULTILINE):
        numbers = [int(word) for word in line[2].split() if word.isdigit()]
        if numbers and max(numbers) > len(raw):
            raise ValueError(f"{line[0].decode(errors='replace').strip()!r} announces more than the file holds")
        sizes.setdefault(line[1].upper(), numbers)
    mesh = vtk.read(str(path))
    num_cells = sum(len(block.data) for block in mesh.cells)
    declared_cells = (sizes.get(b"CELL_TYPES") or [0])[0]
    if len(mesh.points) != sizes[b"POINTS"][0] or num_cells != declared_cells:
        raise ValueError(f"{len(mesh.points)} of {sizes[b'POINTS'][0]} points, {num_cells} of {declared_cells} cells")
    fields = re.findall(rb"^FIELD[ \t]+\S+[ \t]*(\d*)", raw, re.MULTILINE)
    num_read = len(mesh.point_data) + len(mesh.cell_data) + len(mesh.field_data)
    if b"" in fields or num_read < sum(map(int, fields)):
        raise ValueError(f"{num_read} of the arrays that its fields announce were read")
    return _from_meshio(mesh)


def read_vtu(path: Path) -> Arrays:
    """VTK XML unstructured grid through meshio."""
    vtu = require("meshio.vtu")
    raw = path.read_bytes()
    check_xml(raw)
    announced = [int(n) for n in re.findall(rb"NumberOf(?:Points|Cells)\s*=\s*[\"'](\d+)", raw)]
    if max(announced, default=0) > unpacked_limit(len(raw)):
        raise ValueError("it announces more than the file can hold")
    with _bounded_decompression(unpacked_limit(len(raw))):
        mesh = vtu.read(str(path))
    cells = [int(n) for n in re.findall(rb"NumberOfCells\s*=\s*[\"'](\d+)", raw)]
    if sum(len(block.data) for block in mesh.cells) != sum(cells):
        raise ValueError(f"{sum(len(block.data) for block in mesh.cells)} of {sum(cells)} cells were read")
    return _from_meshio(mesh)


class _Bounded:
    """Stands in for ``zlib`` or ``lzma`` in meshio, which would unpack a bomb."""

    def __init__(self, new_decompressor: Any, limit: list[int]) -> None:
        self.new_decompressor, self.limit = new_decompressor, limit

    def decompress(self, packed: bytes) -> bytes:
        unpacked: bytes = self.new_decompressor().decompress(packed, self.limit[0] + 1)
        self.limit[0] -= len(unpacked)
        if self.limit[0] < 0:
            raise ValueError("refused as a decompression bomb")
        return unpacked


@contextmanager
def _bounded_decompression(limit: int) -> Iterator[None]:
    import lzma
    import zlib
    from unittest.mock import patch

    vtu = require("meshio.vtu._vtu")
    left = [limit]
    bounded_zlib, bounded_lzma = _Bounded(zlib.decompressobj, left), _Bounded(lzma.LZMADecompressor, left)
    with patch.object(vtu, "zlib", bounded_zlib), patch.object(vtu, "lzma", bounded_lzma):
        yield


def _from_meshio(mesh: Any) -> Arrays:
    """The surface cells of a mesh and its attributes by name. Lines and single vertices are left out."""
    pos = np.asarray(mesh.points, dtype=np.float64)
    if pos.ndim == 2 and pos.shape[1] == 2:
        pos = np.pad(pos, ((0, 0), (0, 1)))
    arrays: Arrays = {"pos": pos}
    surface = [i for i, b in enumerate(mesh.cells) if b.type in _POLYGONS or b.type.startswith("polygon")]
    if not surface and any(block.type not in _NO_SURFACE for block in mesh.cells):
        types = sorted({block.type for block in mesh.cells})
        raise ValueError(f"no surface: its cells are {', '.join(types)}; extract their surface first")

    triangles = []
    cell_of_triangle = []
    for i in surface:
        cells = np.asarray(mesh.cells[i].data)
        cells = cells[:, : _POLYGONS.get(mesh.cells[i].type, cells.shape[1])]
        corners, polygon = fan(np.full(len(cells), cells.shape[1]))
        triangles.append(cells.reshape(-1)[corners])
        cell_of_triangle.append(polygon)
    if surface:
        arrays["face"] = np.concatenate(triangles)
    point_data = {key: np.asarray(values) for key, values in (mesh.point_data or {}).items()}
    cell_data = {
        key: np.concatenate([np.asarray(blocks[i])[cell] for i, cell in zip(surface, cell_of_triangle, strict=True)])
        for key, blocks in (mesh.cell_data or {}).items()
        if surface and key in ("color", "label", "scalar", "part")
    }
    for stored, name in (("normal", "normal"), ("Normals", "normal"), ("uv", "uv")):
        if stored in point_data:
            arrays[name] = point_data[stored]
    if "uv" in arrays and arrays["uv"].ndim == 2:  # VTK has vectors of three
        arrays["uv"] = arrays["uv"][:, :2]
    for data, color in ((point_data, "color"), (cell_data, "face_color")):
        if "color" in data:
            arrays[color] = unit_color(data["color"])
    if "part" in (cell_data if surface else point_data):
        arrays["part"] = (cell_data if surface else point_data)["part"]
    for key in ("label", "scalar"):
        if key in point_data:
            arrays[key], arrays[f"{key}_on"] = point_data[key], "vertex"
        elif key in cell_data:
            arrays[key], arrays[f"{key}_on"] = cell_data[key], "face"
    if not surface:
        arrays |= {key: point_data[key] for key in OF_CLOUDS if key in point_data}
    return arrays
