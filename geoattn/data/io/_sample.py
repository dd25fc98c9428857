"""A sample as the writers take it: checked, in numpy arrays by what they describe."""

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch_geometric.data import Data

from geoattn._arguments import check_data

from ..palette import label_colors, scalar_colors
from ._check import MAX_INSTANCES, OF_CLOUDS, WIDTHS, Array, check_face, to_float32

On: TypeAlias = Literal["vertex", "face"]

ON: tuple[On, On] = ("vertex", "face")
PAINT = {"label": label_colors, "scalar": scalar_colors}


@dataclass
class Mesh:
    """What is to be written, checked: numpy arrays by what they describe."""

    pos: Array
    """[N, 3] float32."""
    origin: Array | None
    face: Array | None
    """[F, 3] integers."""
    vertex: dict[str, Array] = field(default_factory=dict)
    """Any of ``color`` (float32 in 0..1), ``normal``, ``uv``, ``label``, ``scalar``; ``part``, `OF_CLOUDS`."""
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


def checked(data: Data, given: dict[str, Any], given_on: dict[str, On | None]) -> Mesh:
    """The sample as arrays, with ``given`` labels and scalars instead of its own."""
    check_data(data)
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
    mesh = Mesh(pos, origin, face)
    if origin is not None:
        _finite("pos + origin", mesh.world().astype(np.float32))

    for key in ("label", "scalar"):
        values = data.get(key) if given[key] is None else given[key]
        if key == "label" and given[key] is None and values is not None and _numpy(values).dtype.kind not in "iu":
            mesh.others.append("label")  # ``load`` gives what is no integer as well
            continue
        if values is not None and (given[key] is not None or np.size(_numpy(values))):
            on, numbers = _number_per_row(key, _numpy(values), given_on[key] or data.get(f"{key}_on"), mesh)
            mesh.of(on)[key] = numbers
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

    for key in OF_CLOUDS:
        if face is None and data.get(key) is not None:
            mesh.vertex[key] = _number_per_row(key, _numpy(data[key]), "vertex", mesh)[1]

    _forget_painted(mesh, data)
    known = {"pos", "face", "origin", "label", "scalar", "label_on", "scalar_on", "num_nodes", *WIDTHS}
    known |= {"part", "part_name"} if data.get("part") is not None else set()
    known |= set(OF_CLOUDS) if face is None else set()
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


def _number_per_row(key: str, values: Array, on: On | None, mesh: Mesh) -> tuple[On, Array]:
    """Labels or other numbers, checked, and what they describe."""
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
    if key != "label":
        return on, _float32(key, values)
    if values.dtype.kind not in "iu":
        raise ValueError(f"label holds {values.dtype}, expected integers")
    if values.size and int(values.max()) >= 2**63:
        raise ValueError("label has a value beyond 64 bits")
    return on, values.astype(np.int64)


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


def _forget_painted(mesh: Mesh, data: Data) -> None:
    """Drop colours that only show the labels or scalars with which the sample was loaded: they are made anew."""
    for on in ON:
        for key, paint in PAINT.items():
            color, values = mesh.of(on).get("color"), data.get(key)
            if color is None or values is None or np.shape(values) != (len(color),):
                continue
            values = _numpy(values)
            if (key == "scalar" or values.dtype.kind in "iu") and np.array_equal(to_bytes(color)[:, :3], paint(values)):
                del mesh.of(on)["color"]


def to_bytes(color: Array) -> Array:
    return (color * 255).round().astype(np.uint8)
