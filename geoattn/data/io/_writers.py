"""Writers: one table of extension to writer, and what each format can hold."""

from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch_geometric.data import Data

from geoattn._optional import require

from ..palette import label_colors, scalar_colors
from ._check import Array, check_face
from ._output import check_path, write_whole


@dataclass
class _Mesh:
    """What is to be written, checked: numpy arrays, attributes by what they describe."""

    data: Data
    pos: Array
    face: Array | None
    vertex: dict[str, Array] = field(default_factory=dict)
    """``label``, ``scalar`` per vertex as asked for, and ``color`` [N, 3 or 4] uint8."""
    faces: dict[str, Array] = field(default_factory=dict)
    """The same per face."""


def save(
    path: str | PathLike[str],
    data: Data,
    *,
    label: torch.Tensor | npt.ArrayLike | None = None,
    scalar: torch.Tensor | npt.ArrayLike | None = None,
) -> None:
    """Write a mesh or a point cloud.

    Labels and scalars are written as attributes ``label`` and ``scalar`` where the format has attributes, and
    as colours where it has colours: labels in :data:`geoattn.data.palette.LABEL_COLORS`, scalars along
    viridis from their smallest to their largest value. With both, the colours show the labels. Without
    either, ``data.color`` (or ``data.face_color``) is written where the format has colours.

    | extension | attributes | colours |
    |---|---|---|
    | ply, npz, vtk, vtu | per vertex, per face | per vertex, per face |
    | glb | per vertex of a mesh | per vertex |
    | obj, xyz | - | per vertex |
    | off, stl | - | - |

    npz holds every other attribute of ``data`` too, if it has one row per vertex or face. ``data.normal``
    goes into ply, glb and npz. Labels are 32 bit, in glb 24 bit.

    Args:
        path: Where to write; the extension is the format. The file is replaced in one step, or not at all.
        data: Sample with ``pos`` [N, 3] and, for a mesh, ``face`` [3, F].
        label: Integers, ``[N]`` per vertex or ``[F]`` per face. If N = F they are per vertex, unless
            ``data.label_on`` is "face".
        scalar: Numbers, likewise (``data.scalar_on``).

    Raises:
        ValueError: If the format cannot hold what is asked for (the message names those that can), if
            the data is inconsistent or not finite, or if the extension is unknown.

    """
    extension = check_path(path, _FORMATS)
    mesh = _checked(data, label, scalar)
    _check_format(extension, mesh)
    with write_whole(path) as temporary:
        _WRITERS[extension](temporary, mesh)


def check_output(
    path: str | PathLike[str], data: Data | None = None, *, label_on: Literal["vertex", "face"] | None = None
) -> None:
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
    asked = {f"a label per {label_on}"} if label_on else set()
    _check_asked(extension, asked)
    if data is not None:
        _check_faces(extension, data.get("face") is not None and data.face.numel() > 0)


def _checked(data: Data, label: Any, scalar: Any) -> _Mesh:
    if data.get("pos") is None or data.pos.ndim != 2 or data.pos.shape[1] != 3 or not len(data.pos):
        raise ValueError("data.pos must be [N, 3] with at least one vertex")
    pos = _numpy(data.pos).astype(np.float32)
    if not np.isfinite(pos).all():
        raise ValueError("data.pos has a coordinate that is not finite")
    face = None
    if data.get("face") is not None and data.face.numel():
        face = _numpy(data.face).T
        check_face(face, len(pos))
    mesh = _Mesh(data, pos, face)
    lengths = {"vertex": len(pos), "face": 0 if face is None else len(face)}
    for key, values in (("scalar", scalar), ("label", label)):
        if values is None:
            continue
        values = _numpy(values)
        on = "face" if len(values) == lengths["face"] else "vertex"
        if lengths["vertex"] == lengths["face"]:
            on = data.get(f"{key}_on", "vertex")
        if values.shape != (lengths[on],):
            raise ValueError(
                f"{key} has shape {list(values.shape)}, expected one number per vertex or face ({lengths})"
            )
        if key == "label" and values.dtype.kind not in "iu":
            raise ValueError(f"label holds {values.dtype}, expected integers")
        if not np.isfinite(values).all():
            raise ValueError(f"{key} has a value that is not finite")
        if key == "label" and np.abs(values.astype(np.int64)).max(initial=0) > 2**31 - 1:
            raise ValueError("label has a value beyond 32 bits")
        attributes = mesh.faces if on == "face" else mesh.vertex
        attributes[key] = values.astype(np.int32 if key == "label" else np.float32)
        mesh.vertex.pop("color", None)
        mesh.faces.pop("color", None)
        attributes["color"] = label_colors(values) if key == "label" else scalar_colors(values)
    if label is None and scalar is None:
        for key, attributes in (("color", mesh.vertex), ("face_color", mesh.faces)):
            if data.get(key) is not None:
                attributes["color"] = (_numpy(data[key]).clip(0, 1) * 255).round().astype(np.uint8)
    return mesh


def _numpy(values: Any) -> Array:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _check_format(extension: str, mesh: _Mesh) -> None:
    asked = {
        f"a {key} per {on}" for on, a in (("vertex", mesh.vertex), ("face", mesh.faces)) for key in a if key != "color"
    }
    _check_asked(extension, asked)
    _check_faces(extension, mesh.face is not None)


def _check_asked(extension: str, asked: set[str]) -> None:
    holds_vertex = extension not in ("off", "stl")
    holds_face = extension in _WITH_FACE_ATTRIBUTES
    if any("vertex" in what for what in asked) and not holds_vertex:
        raise ValueError(f"{extension} holds no label or scalar; use {', '.join(_WITH_VERTEX_COLORS)}")
    if any("face" in what for what in asked) and not holds_face:
        raise ValueError(f"{extension} holds no label or scalar per face; use {', '.join(_WITH_FACE_ATTRIBUTES)}")
    if extension in ("obj", "xyz") and len(asked) > 1:
        raise ValueError(f"{extension} holds one colour, not label and scalar; use {', '.join(_WITH_FACE_ATTRIBUTES)}")


def _check_faces(extension: str, has_faces: bool) -> None:
    if has_faces and extension == "xyz":
        raise ValueError(f"xyz holds no faces; use {', '.join(e for e in _WRITERS if e != 'xyz')}")
    if not has_faces and extension == "stl":
        raise ValueError(f"stl holds no point cloud; use {', '.join(e for e in _WRITERS if e != 'stl')}")


def _trimesh(mesh: _Mesh) -> Any:
    """The mesh as trimesh's object, with colours but without attributes. A cloud is a mesh without faces."""
    trimesh = require("trimesh")

    face = np.empty((0, 3), dtype=np.int64) if mesh.face is None else mesh.face
    normal = mesh.data.get("normal")
    return trimesh.Trimesh(
        vertices=mesh.pos,
        faces=face,
        vertex_normals=None if normal is None or mesh.face is None else _numpy(normal),
        vertex_colors=mesh.vertex.get("color"),
        face_colors=mesh.faces.get("color") if "color" not in mesh.vertex else None,
        process=False,
    )


def _attributes(values: dict[str, Array]) -> dict[str, Array]:
    return {key: value for key, value in values.items() if key != "color"}


def _write_ply(path: Path, mesh: _Mesh) -> None:
    export_ply = require("trimesh.exchange.ply").export_ply

    built = _trimesh(mesh)
    built.vertex_attributes.update(_attributes(mesh.vertex))
    built.face_attributes.update(_attributes(mesh.faces))
    path.write_bytes(export_ply(built, vertex_normal=mesh.data.get("normal") is not None and mesh.face is not None))


def _write_stl(path: Path, mesh: _Mesh) -> None:
    export_stl = require("trimesh.exchange.stl").export_stl

    path.write_bytes(export_stl(_trimesh(mesh)))


def _write_glb(path: Path, mesh: _Mesh) -> None:
    trimesh = require("trimesh")

    if mesh.face is None:
        built = trimesh.PointCloud(mesh.pos, colors=mesh.vertex.get("color"))
    else:
        built = _trimesh(mesh)
        for key, value in _attributes(mesh.vertex).items():
            if key == "label" and np.abs(value).max() >= 2**24:
                raise ValueError("glb holds labels up to 24 bit; use npz, ply, vtk or vtu")
            # glTF has no 32-bit integers here, and asks custom names to begin with an underscore
            built.vertex_attributes[f"_{key.upper()}"] = value.astype(np.float32)
    path.write_bytes(trimesh.Scene(built).export(file_type="glb"))


# Own lines for the two simplest text formats: trimesh writes a fixed number of decimals, which loses small
# coordinates; nine significant digits give every float32 back.


def _write_obj(path: Path, mesh: _Mesh) -> None:
    rows = mesh.pos
    if "color" in mesh.vertex:
        rows = np.concatenate([rows, mesh.vertex["color"][:, :3] / 255], axis=1)
    with path.open("w", encoding="ascii") as file:
        np.savetxt(file, rows, fmt="v" + " %.9g" * rows.shape[1])
        if mesh.face is not None:
            np.savetxt(file, mesh.face + 1, fmt="f %d %d %d")


def _write_off(path: Path, mesh: _Mesh) -> None:
    face = np.empty((0, 3), dtype=np.int64) if mesh.face is None else mesh.face
    with path.open("w", encoding="ascii") as file:
        file.write(f"OFF\n{len(mesh.pos)} {len(face)} 0\n")
        np.savetxt(file, mesh.pos, fmt="%.9g")
        np.savetxt(file, face, fmt="3 %d %d %d")


def _write_xyz(path: Path, mesh: _Mesh) -> None:
    color = mesh.vertex.get("color", np.empty((len(mesh.pos), 0)))
    with path.open("w", encoding="ascii") as file:
        rows = np.concatenate([mesh.pos, color[:, :3]], axis=1)
        np.savetxt(file, rows, fmt=" ".join(["%.9g"] * 3 + ["%d"] * (rows.shape[1] - 3)))


def _write_meshio(path: Path, mesh: _Mesh) -> None:
    meshio = require("meshio")

    # A cloud is a grid of single-vertex cells, as in ParaView.
    cells = [("vertex", np.arange(len(mesh.pos))[:, None])] if mesh.face is None else [("triangle", mesh.face)]
    built = meshio.Mesh(
        mesh.pos,
        cells,
        point_data=dict(mesh.vertex),
        cell_data={key: [value] for key, value in mesh.faces.items()},
    )
    kind = path.suffix[1:].lower()
    meshio.write(path, built, file_format=kind, **({"binary": True} if kind == "vtk" else {}))


def _write_npz(path: Path, mesh: _Mesh) -> None:
    arrays: dict[str, Array] = {"pos": mesh.pos}
    rows = {len(mesh.pos)}
    if mesh.face is not None:
        arrays["face"] = mesh.face.T.astype(np.int64)
        rows.add(len(mesh.face))
    for key, value in mesh.data.items():
        if isinstance(value, torch.Tensor) and value.ndim and len(value) in rows and key not in (*arrays, "edge_index"):
            arrays[key] = _numpy(value)
    if mesh.data.get("origin") is not None:
        arrays["origin"] = _numpy(mesh.data.origin)
    if mesh.data.get("part_name") is not None:
        arrays["part_name"] = np.array(mesh.data.part_name)
    for on, attributes in (("vertex", mesh.vertex), ("face", mesh.faces)):
        for key, value in attributes.items():
            if key != "color":
                arrays |= {key: value, f"{key}_on": np.array(on)}
            elif _attributes(attributes):
                arrays["color" if on == "vertex" else "face_color"] = value
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


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
_WITH_FACE_ATTRIBUTES = ("npz", "ply", "vtk", "vtu")
_WITH_VERTEX_COLORS = (*_WITH_FACE_ATTRIBUTES, "glb", "obj", "xyz")

_TRIMESH, _MESHIO = ("trimesh", None), ("meshio", None)
_FORMATS: dict[str, tuple[str, str | None] | None] = {
    "glb": _TRIMESH,
    "npz": None,
    "obj": None,
    "off": None,
    "ply": _TRIMESH,
    "stl": _TRIMESH,
    "vtk": _MESHIO,
    "vtu": _MESHIO,
    "xyz": None,
}
