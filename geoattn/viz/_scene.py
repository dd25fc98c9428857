"""What a picture and a page share: checked arrays, colours, names and the up axis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch_geometric.data import Data

from geoattn._arguments import check_data
from geoattn.data.palette import label_colors
from geoattn.geometry.curves import z_order

Up = Literal["auto", "x", "y", "z"]
Names = Sequence[str] | Mapping[int, str]
On = Literal["vertex", "face"]

PLAIN = (0.70, 0.74, 0.80)


@dataclass(frozen=True)
class Scene:
    """A mesh or cloud whose elements (faces if it has any, else points) each have one colour.

    Attributes:
        pos: Vertices or points, [N, 3].
        face: Triangles, [F, 3], or None for a cloud.
        label: Label of each element, [E], or None. Negative means unlabelled.
        score: Scalar of each element, [E], or None.
        color: Colour of each element in 0 to 1, [E, 3].
        number: Number of each element in the data, [E].
        legend: The labels that occur, in order: name and share of the elements, by label.
        right: Unit vector to the right of someone looking at the front, [3].
        up: Unit vector up, [3].
        front: Unit vector from the shape towards that viewer, [3].

    """

    pos: NDArray[np.float64]
    face: NDArray[np.int64] | None
    label: NDArray[np.int64] | None
    score: NDArray[np.float64] | None
    color: NDArray[np.float64]
    number: NDArray[np.int64]
    legend: dict[int, tuple[str, float]]
    right: NDArray[np.float64]
    up: NDArray[np.float64]
    front: NDArray[np.float64]


def read_scene(
    data: Data, label: ArrayLike | None, score: ArrayLike | None, on: On | None, names: Names | None, up: Up
) -> Scene:
    """Check the input of :func:`picture` and :func:`page` and bring it onto faces (or points of a cloud).

    ``on`` says what ``label`` and ``score`` describe.

    Raises:
        ValueError: If a shape, a length, an index or a value is not what it must be.

    """
    check_data(data)
    if data.pos is None:
        raise ValueError("data.pos is missing: there is nothing to draw")
    pos = _array(data.pos).astype(np.float64)
    if pos.ndim != 2 or pos.shape[1] != 3 or not len(pos):
        raise ValueError(f"data.pos must be [N, 3] with N > 0, got {list(pos.shape)}")
    if not np.isfinite(pos).all():
        row = int(np.flatnonzero(~np.isfinite(pos).all(1))[0])
        raise ValueError(f"data.pos[{row}] is {pos[row].tolist()}: remove points that are not finite first")

    face = None
    if data.face is not None and data.face.numel():
        face = _array(data.face).T.astype(np.int64)
        if face.ndim != 2 or face.shape[1] != 3:
            raise ValueError(f"data.face must be [3, F], got {list(data.face.shape)}")
        if face.min() < 0 or face.max() >= len(pos):
            raise ValueError(f"data.face has indices {face.min()} to {face.max()}, but there are {len(pos)} vertices")

    on = on or data.get("label_on")
    values = None if label is None else _per_element("label", label, on, len(pos), face)
    labels = None if values is None else _whole_numbers(values)
    scores = None if score is None else _per_element("score", score, on, len(pos), face)
    if scores is not None and not np.isfinite(scores).all():
        raise ValueError(f"score has {np.count_nonzero(~np.isfinite(scores))} values that are not finite")

    used = pos if face is None else pos[np.unique(face)]
    extent = np.ptp(used, axis=0)
    if up == "auto" and face is None and extent[2] < 0.8 * extent[:2].min():
        up = "z"  # scans of rooms, streets and landscapes are wider than tall
    right, upward = _axes(extent, up)
    return Scene(
        pos=pos,
        face=face,
        label=labels,
        score=scores,
        color=_file_color(data, face) if labels is None else label_colors(labels) / 255.0,
        number=np.arange(len(pos) if face is None else len(face)),
        legend={} if labels is None else _legend(labels, names),
        right=right,
        up=upward,
        front=np.cross(right, upward),
    )


def is_wide(scene: Scene) -> bool:
    """Whether a cloud is wider than tall, in both directions, so that it is best seen from above."""
    right, up, front = np.ptp(scene.pos @ np.stack([scene.right, scene.up, scene.front], 1), axis=0)
    return scene.face is None and bool(up < 0.8 * min(right, front))


def thinned(scene: Scene, most: int) -> Scene:
    """A cloud of at most so many points, spread evenly: where they are dense, more are left out. The legend stays."""
    if scene.face is not None or len(scene.pos) <= most:
        return scene
    code = z_order(torch.from_numpy(scene.pos), bits=20).numpy()
    order = np.argsort(code, kind="stable")
    code = code[order]
    chosen = order
    for level in range(20):  # the first point of each cell; cells get larger
        first = order[np.flatnonzero(np.diff(code >> 3 * level, prepend=-1))]
        if len(first) < most:
            break
        chosen = first
    chosen = np.sort(chosen[np.arange(most) * len(chosen) // most])
    return replace(
        scene,
        pos=scene.pos[chosen],
        label=None if scene.label is None else scene.label[chosen],
        score=None if scene.score is None else scene.score[chosen],
        color=scene.color[chosen],
        number=scene.number[chosen],
    )


def _array(values: Any) -> NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _per_element(
    field: str, values: ArrayLike, on: On | None, n: int, face: NDArray[np.int64] | None
) -> NDArray[np.float64]:
    """Values per face or per vertex, brought onto faces: labels by majority of corners, scores by mean."""
    array = _array(values).astype(np.float64)
    if array.ndim != 1:
        raise ValueError(f"{field} must have one value per face or vertex, got the shape {list(array.shape)}")
    if face is None:
        if len(array) != n:
            raise ValueError(f"{field} has {len(array)} values, but the cloud has {n} points")
        return array
    if len(array) == len(face) == n and on is None:
        raise ValueError(
            f"the mesh has as many faces as vertices ({n}): say what {field} describes, by label_on='vertex' or "
            "label_on='face'"
        )
    if len(array) == len(face) and (on == "face" or len(array) != n):
        return array
    if len(array) != n:
        raise ValueError(f"{field} has {len(array)} values, but the mesh has {len(face)} faces and {n} vertices")
    a, b, c = array[face].T
    # Three corners: either the last two agree, or the first is in every majority there can be.
    on_face: NDArray[np.float64] = np.where(b == c, b, a) if field == "label" else (a + b + c) / 3
    return on_face


def _whole_numbers(values: NDArray[np.float64]) -> NDArray[np.int64]:
    wrong = np.flatnonzero(values != np.round(values))
    if len(wrong):
        raise ValueError(f"label[{wrong[0]}] is {values[wrong[0]]}: labels are whole numbers; for scalars use score")
    return values.astype(np.int64)


def _axes(extent: NDArray[np.float64], up: Up) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors to the right and up.

    A file with another up axis is a y-up file rolled or tipped forward, so its front stays its front: y-up
    files look along +z, z-up files along -y, as modelling programs have it.
    """
    if up == "auto":
        # y, then z, also when not quite the largest: a body with spread arms is as wide as it is tall.
        tall = extent >= 0.8 * extent.max()
        up = "y" if tall[1] else "z" if tall[2] else "x"
    right = {"x": (0, -1, 0), "y": (1, 0, 0), "z": (1, 0, 0)}
    if up not in right:
        raise ValueError(f"up is {up!r}, but must be 'auto', 'x', 'y' or 'z'")
    return np.array(right[up], dtype=np.float64), np.eye(3)["xyz".index(up)]


def _file_color(data: Data, face: NDArray[np.int64] | None) -> NDArray[np.float64]:
    """The colours the file came with (``data.face_color``, ``data.color``), or a plain one, per element."""
    n = len(data.pos) if face is None else len(face)
    per_face = face is not None and "face_color" in data
    if "color" not in data and not per_face:
        return np.tile(np.array(PLAIN), (n, 1))
    color = _array(data.face_color if per_face else data.color)
    color = color / 255.0 if color.dtype.kind in "iu" else color.astype(np.float64)
    if color.ndim != 2 or color.shape[1] < 3 or len(color) not in (n, len(data.pos)):
        raise ValueError(
            f"data.color is {list(color.shape)}, but must be [N, 3] or [F, 3] "
            f"with N = {len(data.pos)} vertices and {n} faces"
        )
    color = color[:, :3].clip(0, 1)
    if face is None or per_face or len(color) != len(data.pos):
        return color
    return color[face].mean(1)


def _legend(label: NDArray[np.int64], names: Names | None) -> dict[int, tuple[str, float]]:
    known = names if isinstance(names, Mapping) else dict(enumerate(names or ()))
    values, counts = np.unique(label, return_counts=True)
    return {
        value: (
            " ".join(str(known.get(value, f"label {value}" if value >= 0 else "unlabelled")).split()),
            count / len(label),
        )
        for value, count in zip(values.tolist(), counts.tolist(), strict=True)
    }
