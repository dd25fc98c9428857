"""Writers. What a sample holds is checked; what the format cannot keep is left out, with a warning."""

import json
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch_geometric.data import Data

from geoattn._optional import require

from ..palette import label_colors, scalar_colors
from ._check import MAX_INSTANCES, WIDTHS, Array, check_face, to_float32
from ._kept import CLOUD, MESH
from ._output import check_path, write_whole

On: TypeAlias = Literal["vertex", "face"]


@dataclass
class _Mesh:
    """What is to be written, checked: numpy arrays by what they describe."""

    pos: Array
    """[N, 3] float32."""
    origin: Array | None
    face: Array | None
    """[F, 3] integers."""
    vertex: dict[str, Array] = field(default_factory=dict)
    """Any of ``color`` (float32 in 0..1), ``normal``, ``uv``, ``label``, ``scalar``, and ``part`` of a cloud."""
    faces: dict[str, Array] = field(default_factory=dict)
    """Any of ``color``, ``label``, ``scalar`` and ``part``."""
    part_name: list[str] = field(default_factory=list)
    rows: dict[str, Array] = field(default_factory=dict)
    """Other attributes with a row per vertex or face."""
    others: list[str] = field(default_factory=list)
    """Names of what no format keeps."""

    def count(self, on: On) -> int:
        return len(self.pos) if on == "vertex" else 0 if self.face is None else len(self.face)

    def of(self, on: On) -> dict[str, Array]:
        return self.vertex if on == "vertex" else self.faces

    def world(self) -> Array:
        """The vertices where they are: float64 if they have an origin."""
        return self.pos if self.origin is None else self.pos + self.origin


def save(
    path: str | PathLike[str],
    data: Data,
    *,
    label: torch.Tensor | npt.ArrayLike | None = None,
    scalar: torch.Tensor | npt.ArrayLike | None = None,
    label_on: On | None = None,
    scalar_on: On | None = None,
) -> None:
    """Write a mesh or a point cloud, with what it holds by the names that :func:`load` gives.

    What each format keeps is in ``docs/formats.md``. The rest is left out, with one warning that names it and the
    formats that keep it.

    The colours are those of ``data``. If it has none that the format holds, or if they are those that an earlier
    call made of its labels, they show the labels (in :data:`geoattn.data.palette.LABEL_COLORS`) or the scalars
    (along viridis, from their smallest to their largest value). Where a format has colours only (obj, off, xyz),
    ``label`` and ``scalar`` take the place of the colours of ``data``, with a warning.

    Args:
        path: Where to write; the extension is the format. The file is replaced in one step, or not at all.
        data: Sample with ``pos`` [N, 3] and, for a mesh, ``face`` [3, F].
        label: Integers, ``[N]`` per vertex or ``[F]`` per face, instead of ``data.label``.
        scalar: Numbers, likewise, instead of ``data.scalar``.
        label_on: What labels describe, "vertex" or "face". Default: ``data.label_on``; without it their number
            decides.
        scalar_on: What scalars describe, likewise (``data.scalar_on``).

    Raises:
        ValueError: If the format cannot hold ``label`` or ``scalar`` even as colours, or such a mesh at all (the
            message names those that can); if the data is inconsistent, not finite, or has as many faces as
            vertices and nothing says which of them is labelled; or if the extension is unknown.
        OSError: If the folder does not exist or cannot be written in, or ``path`` is a folder.
        ImportError: If the package that writes the format is not installed; the message has the pip line.

    """
    extension = check_path(path, _FORMATS)
    given = {"label": label, "scalar": scalar}
    mesh = _checked(data, given, {"label": label_on, "scalar": scalar_on})
    asked = [(key, on) for key in given for on in _ON if given[key] is not None and key in mesh.of(on)]
    _check_holds(extension, mesh.face is not None, asked)
    _check_bits(extension, mesh)
    if lost := _fit(extension, mesh, asked):
        warnings.warn(f"{path}: {extension} leaves out {'; '.join(lost)}", stacklevel=2)
    with write_whole(path) as temporary:
        _WRITERS[extension](temporary, mesh)


def check_output(path: str | PathLike[str], data: Data | None = None, *, label_on: On | None = None) -> None:
    """Refuse what :func:`save` would refuse, before the work that makes what is to be saved.

    Args:
        path: Where :func:`save` shall write.
        data: The mesh or cloud that shall be saved, if it is known.
        label_on: What labels shall be saved of, if they shall.

    Raises:
        ValueError: If the extension is unknown, or the format cannot hold such data or labels.
        OSError: If the folder does not exist or cannot be written in, or ``path`` is a folder.
        ImportError: If the package that writes the format is not installed; the message has the pip line.

    """
    extension = check_path(path, _FORMATS)
    has_faces = None if data is None else data.get("face") is not None and data.face.numel() > 0
    _check_holds(extension, has_faces, [("label", label_on)] if label_on else [])


# ------------------------------------------------------------------------------------------------ checking


def _checked(data: Data, given: dict[str, Any], given_on: dict[str, On | None]) -> _Mesh:
    """The sample as arrays, with ``given`` labels and scalars instead of its own."""
    if data.get("pos") is None or np.ndim(data.pos) != 2 or data.pos.shape[1] != 3 or not len(data.pos):
        raise ValueError("data.pos must be [N, 3] with at least one vertex")
    origin = None if data.get("origin") is None else _finite("origin", _numpy(data.origin).astype(np.float64))
    pos, origin = to_float32(_finite("pos", _numpy(data.pos)), origin)
    _finite("pos", pos)
    face = None
    if data.get("face") is not None and np.size(_numpy(data.face)):
        face = _numpy(data.face).T
        if face.ndim != 2 or face.shape[1] != 3:
            raise ValueError(f"data.face has shape {list(data.face.shape)}, expected [3, F]")
        check_face(face, len(pos))
    mesh = _Mesh(pos, origin, face)
    if origin is not None:
        _finite("pos + origin", mesh.world().astype(np.float32))

    for key in ("label", "scalar"):
        values = data.get(key) if given[key] is None else given[key]
        if key == "label" and given[key] is None and values is not None and _numpy(values).dtype.kind not in "iu":
            mesh.others.append("label")  # ``load`` gives what is no integer as well
            continue
        if values is not None and (given[key] is not None or np.size(_numpy(values))):
            on, checked = _number_per_row(key, _numpy(values), given_on[key] or data.get(f"{key}_on"), mesh)
            mesh.of(on)[key] = checked
    for key, on in (("color", "vertex"), ("normal", "vertex"), ("uv", "vertex"), ("face_color", "face")):
        if data.get(key) is not None and (on == "vertex" or face is not None):
            values, widths = _numpy(data[key]), WIDTHS[key]
            if values.ndim != 2 or values.shape[1] not in widths or len(values) != mesh.count(on):
                hint = "; the colours of faces are face_color" if key == "color" and face is not None else ""
                raise ValueError(
                    f"data.{key} has shape {list(values.shape)}, expected [{mesh.count(on)}, "
                    f"{' or '.join(map(str, widths))}]: a row for each {on}{hint}"
                )
            color = key.endswith("color")
            mesh.of(on)["color" if color else key] = _unit(key, values) if color else _float32(key, values)
    if data.get("part") is not None:
        on = "vertex" if face is None else "face"
        part = _numpy(data.part)
        if part.shape != (mesh.count(on),) or part.dtype.kind not in "iu":
            raise ValueError(f"data.part is {part.dtype} {list(part.shape)}, expected an integer for each {on}")
        if not 0 <= part.min() <= part.max() <= MAX_INSTANCES:
            raise ValueError(f"data.part has the numbers {part.min()} to {part.max()}, expected 0..{MAX_INSTANCES}")
        mesh.of(on)["part"] = part.astype(np.int64)
        mesh.part_name = [str(name) for name in data.get("part_name") or ()]

    _forget_painted(mesh, data)
    known = {"pos", "face", "origin", "label", "scalar", "label_on", "scalar_on", "num_nodes", *WIDTHS}
    known |= {"part", "part_name"} if data.get("part") is not None else set()
    for key, value in data.items():
        if key in known or value is None:
            continue
        if _is_row_attribute(key, value) and len(value) in (len(pos), mesh.count("face")):
            mesh.rows[key] = _finite(key, _numpy(value))
        else:
            mesh.others.append(key)
    return mesh


def _numpy(values: Any) -> Array:
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def _finite(name: str, values: Array) -> Array:
    if name == "origin" and values.shape != (3,):
        raise ValueError(f"data.origin has shape {list(values.shape)}, expected three numbers")
    if values.dtype.kind not in "biuf" or (values.dtype.kind == "f" and not np.isfinite(values).all()):
        raise ValueError(f"data.{name} has a value that is not finite")
    return values


def _float32(name: str, values: Array) -> Array:
    with np.errstate(over="ignore"):
        return _finite(name, _finite(name, values).astype(np.float32))


def _unit(name: str, color: Array) -> Array:
    """Colours as float32 in 0..1, of floats in 0..1 or integers in 0..255."""
    color = _finite(name, color) / 255 if color.dtype.kind in "iu" else _finite(name, color)
    if color.min(initial=0) < -1e-3 or color.max(initial=0) > 1 + 1e-3:
        raise ValueError(f"data.{name} has values from {color.min():g} to {color.max():g}, expected 0..1")
    clipped: Array = color.clip(0, 1).astype(np.float32)
    return clipped


def _number_per_row(key: str, values: Array, on: On | None, mesh: _Mesh) -> tuple[On, Array]:
    """Labels or scalars, checked, and what they describe."""
    vertices, faces = mesh.count("vertex"), mesh.count("face")
    if on not in ("vertex", "face", None):
        raise ValueError(f"{key}_on is {on!r}, expected 'vertex' or 'face'")
    if on is None and vertices == faces and values.shape == (vertices,):
        raise ValueError(
            f"the mesh has as many faces as vertices ({faces}): say what the {key}s describe, by {key}_on='vertex' or "
            f"{key}_on='face'"
        )
    on = on or ("face" if len(values) == faces and values.ndim else "vertex")
    if values.shape != (mesh.count(on),):
        raise ValueError(
            f"{key} has shape {list(values.shape)}, expected one number per {on}; the mesh has {vertices} vertices "
            f"and {faces} faces"
        )
    if key == "scalar":
        return on, _float32("scalar", values)
    if values.dtype.kind not in "iu":
        raise ValueError(f"label holds {values.dtype}, expected integers")
    if values.size and int(values.max()) >= 2**63:
        raise ValueError("label has a value beyond 64 bits")
    return on, values.astype(np.int64)


def _check_bits(extension: str, mesh: _Mesh) -> None:
    bits = _LABEL_BITS.get(extension, 63)
    for on in _ON:
        label = mesh.of(on).get("label")
        if label is not None and label.size and not -(2**bits) < int(label.min()) <= int(label.max()) < 2**bits:
            raise ValueError(
                f"{extension} holds labels of {bits} bits, the largest here are {label.min()} and {label.max()}; "
                f"use npz, vtk or vtu"
            )


def _is_row_attribute(key: str, value: Any) -> bool:
    """Whether npz can hold it, if it has a row per vertex or face."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and not value.is_complex()
        and value.ndim > 0
        and key.isidentifier()
        and not key.startswith("_")
        and not key.endswith("_on")
        and key not in ("edge_index", "part", "part_name")
    )


# ------------------------------------------------------------------------------------- what a format keeps


def _row(key: str, on: On) -> str:
    """The row of the tables of what is kept."""
    if key == "color":
        return "color" if on == "vertex" else "face_color"
    return f"{key} per {on}" if key in ("label", "scalar") else key


def _check_holds(extension: str, has_faces: bool | None, asked: list[tuple[str, On]]) -> None:
    """Refuse what would lose the mesh itself, or labels and scalars that were asked for.

    Args:
        extension: The format.
        has_faces: Whether it is a mesh or a cloud; None if that is not known.
        asked: Labels and scalars, and what they describe.

    """
    if has_faces is not None:
        row, kept = ("face", MESH) if has_faces else ("pos", CLOUD)
        if extension not in kept[row].split():
            raise ValueError(
                f"{extension} holds no {'faces' if has_faces else 'point cloud'}; use {_listed(kept[row])}"
            )
    kept = {None: MESH | CLOUD, True: MESH, False: CLOUD}[has_faces]
    as_colors = []
    for key, on in asked:
        row = _row(key, on)
        if row not in kept:
            raise ValueError(f"a point cloud has no faces, so no {row}" if on == "face" else f"no format holds a {row}")
        if extension not in kept[row].split():
            as_colors.append(row)
            if extension not in kept[_row("color", on)].split():
                raise ValueError(f"{extension} holds no {row}; use {_listed(kept[row])}")
    if len(as_colors) > 1:
        raise ValueError(f"{extension} holds one colour, not {' and '.join(as_colors)}; use {_listed(kept[row])}")


def _listed(extensions: str) -> str:
    return extensions.replace(" ", ", ") or "no format"


def _fit(extension: str, mesh: _Mesh, asked: list[tuple[str, On]]) -> list[str]:
    """Paint labels where there is room for colours, and leave out what the format does not keep. Returns the latter."""
    kept = CLOUD if mesh.face is None else MESH
    lost = []

    def keeps(row: str) -> bool:
        return extension in kept[row].split()

    own_colors = any("color" in mesh.of(on) and keeps(_row("color", on)) for on in _ON)
    labels = [(key, on) for key in ("label", "scalar") for on in _ON if key in mesh.of(on)]
    painted = None
    for key, on in sorted(labels, key=lambda label: label not in asked):
        only_as_color = (key, on) in asked and not keeps(_row(key, on))
        if keeps(_row("color", on)) and (only_as_color or not own_colors):
            if "color" in mesh.of(on):
                lost.append(f"color (the {key}s take its place; both are kept by {_listed(kept[_row(key, on)])})")
            mesh.of(on)["color"] = _PAINT[key](mesh.of(on)[key]) / np.float32(255)
            painted = _row(key, on)
            break

    for row, names in _found(mesh).items():
        if not keeps(row):
            shown = "shown as colours; " if row == painted else ""
            lost += [f"{name} ({shown}kept by {_listed(kept[row])})" for name in names]
            _leave_out(mesh, row)
    return lost


def _found(mesh: _Mesh) -> dict[str, list[str]]:
    """The rows of the table that concern a mesh, and what to call what was found."""
    found = [_row(key, on) for on in _ON for key in mesh.of(on)]
    color = mesh.vertex.get("color")
    if color is not None and color.shape[1] == 4 and color[:, 3].min() < 1:
        found.append("alpha of color")
    if mesh.origin is not None:
        found.append("origin")
        if np.abs(mesh.world() - mesh.origin - mesh.pos).max() > 1e-5 * np.ptp(mesh.pos, axis=0).max():
            found.append("origin beyond float64")
    if mesh.face is not None and not np.array_equal(mesh.face.reshape(-1), np.arange(len(mesh.pos))):
        found.append("numbering of vertices")
    in_order = True
    if "part" in mesh.faces:
        part = mesh.faces["part"]
        number = len(mesh.part_name) or part.max() + 1
        in_order = bool(
            number > 1 and (np.diff(part) >= 0).all() and np.array_equal(np.unique(part), np.arange(number))
        )
        if not in_order:
            found.append("part in any order")
    if mesh.part_name:
        found.append("part_name")
        plain = all(
            name == " ".join(name.split()) and name.isprintable() and name[-1:] not in "\\" for name in mesh.part_name
        )
        if mesh.face is not None and not (in_order and plain):
            found.append("part_name of any kind")
    named = {row: [row] for row in found}
    return named | {"others per vertex or face": list(mesh.rows), "others": mesh.others}


def _leave_out(mesh: _Mesh, row: str) -> None:
    for on in _ON:
        for key in [key for key in mesh.of(on) if row in (_row(key, on), f"{key} in any order")]:
            del mesh.of(on)[key]
    if row == "alpha of color" and "color" in mesh.vertex:
        mesh.vertex["color"] = mesh.vertex["color"][:, :3]
    if row.startswith("origin"):
        mesh.origin = None
    if row.startswith("part"):
        mesh.part_name = []
    if row == "others per vertex or face":
        mesh.rows = {}


def _forget_painted(mesh: _Mesh, data: Data) -> None:
    """Drop colours that only show the labels or scalars with which the sample was loaded: they are made anew."""
    for on in _ON:
        for key, paint in _PAINT.items():
            color, values = mesh.of(on).get("color"), data.get(key)
            if color is None or values is None or np.shape(values) != (len(color),):
                continue
            values = _numpy(values)
            if (key == "scalar" or values.dtype.kind in "iu") and np.array_equal(_bytes(color)[:, :3], paint(values)):
                del mesh.of(on)["color"]


_ON: tuple[On, On] = ("vertex", "face")
_PAINT = {"label": label_colors, "scalar": scalar_colors}


# ------------------------------------------------------------------------------------------------- writing


def _bytes(color: Array) -> Array:
    return (color * 255).round().astype(np.uint8)


def _write_ply(path: Path, mesh: _Mesh) -> None:
    """Binary PLY. Written here, because trimesh has no normals of clouds, no float64 and one kind of colours."""
    names = {"color": ("red", "green", "blue", "alpha"), "normal": ("nx", "ny", "nz"), "uv": ("s", "t")}
    header = [f"comment part {i} {_one_word(name)}" for i, name in enumerate(mesh.part_name)]
    body = []
    for on in _ON:
        if on == "face" and mesh.face is None:
            continue
        header.append(f"element {on} {mesh.count(on)}")
        columns: list[tuple[str, Array]] = []
        if on == "vertex":
            columns += zip("xyz", mesh.world().T, strict=True)
        elif mesh.face is not None:
            header.append("property list uchar int vertex_indices")
            columns += [("count", np.full(len(mesh.face), 3, np.uint8)), ("index", mesh.face.astype(np.int32))]
        properties = len(columns) if on == "face" else 0
        for key, values in mesh.of(on).items():
            if key == "color":
                values = _bytes(values)
            elif values.dtype.kind in "iu":
                values = values.astype(np.int32)
            columns += [(key, values)] if values.ndim == 1 else zip(names[key], values.T, strict=False)
        header += [f"property {_PLY_TYPES[column.dtype.name]} {name}" for name, column in columns[properties:]]
        table = np.zeros(
            mesh.count(on), [(name, column.dtype.newbyteorder("<"), column.shape[1:]) for name, column in columns]
        )
        for name, column in columns:
            table[name] = column
        body.append(table.tobytes())
    lines = ["ply", "format binary_little_endian 1.0", *header, "end_header", ""]
    path.write_bytes("\n".join(lines).encode("ascii") + b"".join(body))


_PLY_TYPES = {"float32": "float", "float64": "double", "int32": "int", "uint8": "uchar"}


def _one_word(name: str) -> str:
    """JSON without blanks: whoever reads a header by words finds none of its keywords in a name."""
    return json.dumps(name).replace(" ", "\\u0020")


def _write_stl(path: Path, mesh: _Mesh) -> None:
    trimesh = require("trimesh")
    built = trimesh.Trimesh(vertices=mesh.pos, faces=mesh.face, process=False)
    path.write_bytes(require("trimesh.exchange.stl").export_stl(built))


def _write_glb(path: Path, mesh: _Mesh) -> None:
    trimesh = require("trimesh")

    color = _bytes(mesh.vertex["color"]) if "color" in mesh.vertex else None
    if mesh.face is None:
        built = trimesh.PointCloud(mesh.pos, colors=color)
    else:
        built = trimesh.Trimesh(vertices=mesh.pos, faces=mesh.face, vertex_colors=color, process=False)
        if "uv" in mesh.vertex:
            material = trimesh.visual.material.PBRMaterial()
            built.visual = trimesh.visual.TextureVisuals(uv=mesh.vertex["uv"], material=material)
            if color is not None:
                alpha = np.full((len(color), 4 - color.shape[1]), 255, np.uint8)
                built.visual.vertex_attributes["color"] = np.concatenate([color, alpha], axis=1)
        if "normal" in mesh.vertex:  # the property drops normals whose components are all the same
            built._cache["vertex_normals"] = mesh.vertex["normal"]
        for key in ("label", "scalar"):
            if key in mesh.vertex:
                # glTF has no 32-bit integers here, and asks custom names to begin with an underscore
                built.vertex_attributes[f"_{key.upper()}"] = mesh.vertex[key].astype(np.float32)

    def place(tree: dict[str, Any]) -> None:  # trimesh leaves out what is near zero
        if mesh.origin is not None:
            tree["nodes"][0]["translation"] = mesh.origin.tolist()

    scene = trimesh.Scene(built)
    path.write_bytes(scene.export(file_type="glb", unitize_normals=False, tree_postprocessor=place))


# Own lines for the text formats: trimesh writes a fixed number of decimals, which loses small coordinates; nine
# significant digits give every float32 back, and seventeen every float64.


def _number(values: Array) -> str:
    return "%.17g" if values.dtype == np.float64 else "%.9g"


def _write_obj(path: Path, mesh: _Mesh) -> None:
    pos = mesh.world()
    color = mesh.vertex.get("color", np.empty((len(pos), 0)))
    with path.open("w", encoding="utf-8") as file:
        form = " ".join(["v", *[_number(pos)] * 3, *["%.9g"] * color.shape[1]])
        np.savetxt(file, np.concatenate([pos.astype(np.float64), color], axis=1), fmt=form)
        for key, word in (("uv", "vt"), ("normal", "vn")):
            if key in mesh.vertex:
                np.savetxt(file, mesh.vertex[key], fmt=word + " %.9g" * mesh.vertex[key].shape[1])
        if mesh.face is None:
            return
        # vertex, texture and normal have one number
        corner = "%d" + ("/%d" if "uv" in mesh.vertex else "/" * ("normal" in mesh.vertex))
        corner += "/%d" * ("normal" in mesh.vertex)
        form = " ".join(["f", *[corner] * 3])
        corners = (mesh.face + 1).repeat(corner.count("%"), axis=1)
        part = mesh.faces.get("part", np.zeros(len(corners), np.int64))
        for i in np.unique(part):
            if "part" in mesh.faces:
                file.write(f"o {mesh.part_name[i] if mesh.part_name else i}\n")
            np.savetxt(file, corners[part == i], fmt=form)


def _write_off(path: Path, mesh: _Mesh) -> None:
    pos = mesh.world()
    face = np.empty((0, 3), dtype=np.int64) if mesh.face is None else mesh.face
    color = mesh.vertex.get("color", np.empty((len(pos), 0)))
    if color.shape[1] == 3:  # COFF has four
        color = np.pad(color, ((0, 0), (0, 1)), constant_values=1)
    with path.open("w", encoding="ascii") as file:
        file.write(f"{'COFF' if color.size else 'OFF'}\n{len(pos)} {len(face)} 0\n")
        rows = np.concatenate([pos.astype(np.float64), color], axis=1)
        np.savetxt(file, rows, fmt=" ".join([_number(pos)] * 3 + ["%#.9g"] * color.shape[1]))
        np.savetxt(file, face, fmt="3 %d %d %d")


def _write_xyz(path: Path, mesh: _Mesh) -> None:
    pos = mesh.world()
    columns, form = [pos], [_number(pos)] * 3
    if "color" in mesh.vertex:
        columns.append(_bytes(mesh.vertex["color"]))
        form += ["%d"] * columns[-1].shape[1]
    if "normal" in mesh.vertex:
        columns.append(mesh.vertex["normal"])
        form += ["%#.9g"] * 3  # always with a point, which tells them from colours
    with path.open("w", encoding="ascii") as file:
        np.savetxt(file, np.concatenate(columns, axis=1), fmt=" ".join(form))


def _write_meshio(path: Path, mesh: _Mesh) -> None:
    meshio = require("meshio")

    # A cloud is a grid of single-vertex cells, as in ParaView.
    cells = [("vertex", np.arange(len(mesh.pos))[:, None])] if mesh.face is None else [("triangle", mesh.face)]
    data = {
        on: {key: _bytes(values) if key == "color" else values for key, values in mesh.of(on).items()} for on in _ON
    }
    if "uv" in mesh.vertex:  # VTK has vectors of three
        data["vertex"]["uv"] = np.pad(mesh.vertex["uv"], ((0, 0), (0, 1)))
    built = meshio.Mesh(
        mesh.world(), cells, point_data=data["vertex"], cell_data={key: [value] for key, value in data["face"].items()}
    )
    kind = path.suffix[1:]
    meshio.write(path, built, file_format=kind, **({"binary": True} if kind == "vtk" else {}))


def _write_npz(path: Path, mesh: _Mesh) -> None:
    arrays = {"pos": mesh.pos, **mesh.rows}
    if mesh.face is not None:
        arrays["face"] = mesh.face.T.astype(np.int64)
    if mesh.origin is not None:
        arrays["origin"] = mesh.origin
    if mesh.part_name:
        arrays["part_name"] = np.array(mesh.part_name, dtype=str)
    for on in _ON:
        for key, values in mesh.of(on).items():
            arrays["face_color" if (key, on) == ("color", "face") else key] = values
            if key in ("label", "scalar"):
                arrays[f"{key}_on"] = np.array(on)
    # np.savez cannot name an array "file".
    with zipfile.ZipFile(path, "w") as archive:
        for key, values in arrays.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)


_WRITERS: dict[str, Callable[[Path, _Mesh], None]] = {
    "glb": _write_glb,
    "npz": _write_npz,
    "obj": _write_obj,
    "off": _write_off,
    "ply": _write_ply,
    "stl": _write_stl,
    "vtk": _write_meshio,
    "vtu": _write_meshio,
    "xyz": _write_xyz,
}

_PACKAGES = {"glb": "trimesh", "stl": "trimesh", "vtk": "meshio", "vtu": "meshio"}
_FORMATS = {extension: (_PACKAGES[extension], None) if extension in _PACKAGES else None for extension in _WRITERS}

_LABEL_BITS = {"glb": 24, "ply": 31}
"""Where labels are not integers of 64 bits."""
