"""Writers: :func:`save`, and a function for each format."""

import json
import warnings
import zipfile
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch_geometric.data import Data

from geoattn._optional import require

from ._check import Array
from ._kept import check_bits, check_holds, fit
from ._las import write_las
from ._output import check_path, write_whole
from ._pcd import write_pcd
from ._sample import ON, Mesh, On, checked, to_bytes


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
    mesh = checked(data, given, {"label": label_on, "scalar": scalar_on})
    asked = [(key, on) for key in given for on in ON if given[key] is not None and key in mesh.of(on)]
    check_holds(extension, mesh.face is not None, asked)
    check_bits(extension, mesh)
    if lost := fit(extension, mesh, asked):
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
    check_holds(extension, has_faces, [("label", label_on)] if label_on else [])


def _write_ply(path: Path, mesh: Mesh) -> None:
    """Binary PLY. Written here, because trimesh has no normals of clouds, no float64 and one kind of colours."""
    names = {"color": ("red", "green", "blue", "alpha"), "normal": ("nx", "ny", "nz"), "uv": ("s", "t")}
    header = [f"comment part {i} {_one_word(name)}" for i, name in enumerate(mesh.part_name)]
    body = []
    for on in ON:
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
                values = to_bytes(values)
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


def _write_stl(path: Path, mesh: Mesh) -> None:
    trimesh = require("trimesh")
    built = trimesh.Trimesh(vertices=mesh.pos, faces=mesh.face, process=False)
    path.write_bytes(require("trimesh.exchange.stl").export_stl(built))


def _write_glb(path: Path, mesh: Mesh) -> None:
    trimesh = require("trimesh")

    color = to_bytes(mesh.vertex["color"]) if "color" in mesh.vertex else None
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


def _write_obj(path: Path, mesh: Mesh) -> None:
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


def _write_off(path: Path, mesh: Mesh) -> None:
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


def _write_xyz(path: Path, mesh: Mesh) -> None:
    pos = mesh.world()
    columns, form = [pos], [_number(pos)] * 3
    if "color" in mesh.vertex:
        columns.append(to_bytes(mesh.vertex["color"]))
        form += ["%d"] * columns[-1].shape[1]
    if "normal" in mesh.vertex:
        columns.append(mesh.vertex["normal"])
        form += ["%#.9g"] * 3  # always with a point, which tells them from colours
    with path.open("w", encoding="ascii") as file:
        np.savetxt(file, np.concatenate(columns, axis=1), fmt=" ".join(form))


def _write_meshio(path: Path, mesh: Mesh) -> None:
    meshio = require("meshio")

    # A cloud is a grid of single-vertex cells, as in ParaView.
    cells = [("vertex", np.arange(len(mesh.pos))[:, None])] if mesh.face is None else [("triangle", mesh.face)]
    data = {
        on: {key: to_bytes(values) if key == "color" else values for key, values in mesh.of(on).items()} for on in ON
    }
    if "uv" in mesh.vertex:  # VTK has vectors of three
        data["vertex"]["uv"] = np.pad(mesh.vertex["uv"], ((0, 0), (0, 1)))
    built = meshio.Mesh(
        mesh.world(), cells, point_data=data["vertex"], cell_data={key: [value] for key, value in data["face"].items()}
    )
    kind = path.suffix[1:]
    meshio.write(path, built, file_format=kind, **({"binary": True} if kind == "vtk" else {}))


def _write_npz(path: Path, mesh: Mesh) -> None:
    arrays = {"pos": mesh.pos, **mesh.rows}
    if mesh.face is not None:
        arrays["face"] = mesh.face.T.astype(np.int64)
    if mesh.origin is not None:
        arrays["origin"] = mesh.origin
    if mesh.part_name:
        arrays["part_name"] = np.array(mesh.part_name, dtype=str)
    for on in ON:
        for key, values in mesh.of(on).items():
            arrays["face_color" if (key, on) == ("color", "face") else key] = values
            if key in ("label", "scalar"):
                arrays[f"{key}_on"] = np.array(on)
    # np.savez cannot name an array "file".
    with zipfile.ZipFile(path, "w") as archive:
        for key, values in arrays.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)


_WRITERS: dict[str, Callable[[Path, Mesh], None]] = {
    "glb": _write_glb,
    "las": write_las,
    "laz": write_las,
    "npz": _write_npz,
    "obj": _write_obj,
    "off": _write_off,
    "pcd": write_pcd,
    "ply": _write_ply,
    "stl": _write_stl,
    "vtk": _write_meshio,
    "vtu": _write_meshio,
    "xyz": _write_xyz,
}

_PACKAGES = {"glb": "trimesh", "las": "laspy", "laz": "lazrs", "stl": "trimesh", "vtk": "meshio", "vtu": "meshio"}
_FORMATS = {extension: (_PACKAGES[extension], None) if extension in _PACKAGES else None for extension in _WRITERS}
