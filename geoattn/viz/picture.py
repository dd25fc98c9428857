"""A PNG of a labelled mesh or cloud, drawn without a display, a GPU or a GL library."""

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch_geometric.data import Data

from geoattn._optional import require
from geoattn.data.io import check_path, write_whole
from geoattn.data.palette import label_colors
from geoattn.viz._scene import Names, On, Scene, Up, is_wide, read_scene, thinned

Array = NDArray[np.float64]

PICTURE_FORMATS = {"png": ("matplotlib", "viz")}
"""What :func:`picture` writes, for :func:`geoattn.data.io.check_path`."""

# Where the camera stands, as multiples of (right, up, front), and which way is up in its picture.
_VIEWS = {
    "front": ((0, 0, 1), (0, 1, 0)),
    "oblique": ((0.6, 0.35, 0.75), (0, 1, 0)),
    "above": ((0.5, 0.8, 0.7), (0, 1, 0)),
    "side": ((1, 0, 0), (0, 1, 0)),
    "left": ((-1, 0, 0), (0, 1, 0)),
    "back": ((0, 0, -1), (0, 1, 0)),
    "top": ((0, 1, 0), (0, 0, -1)),
    "bottom": ((0, -1, 0), (0, 0, 1)),
}
_MAX_POINTS = 500_000
_SAMPLES = 3  # per pixel and direction, averaged for smooth outlines
_DPI = 100


def picture(
    data: Data,
    path: str | os.PathLike[str],
    *,
    label: ArrayLike | None = None,
    score: ArrayLike | None = None,
    label_on: On | None = None,
    names: Names | None = None,
    views: Sequence[str] | None = None,
    up: Up = "auto",
    title: str | None = None,
    size: tuple[int, int] = (1600, 900),
) -> None:
    """Draw a mesh (or, without faces, a point cloud) into a PNG: some views side by side, to one scale.

    The projection is parallel, the light comes from over the viewer's shoulder and falls on both sides of a
    face, and every pixel shows the nearest face (a depth buffer), so large and intersecting triangles come
    out right. A face narrower than a third of a pixel may be skipped. Points are drawn as balls, or if they are small
    as discs, darker where others beside them are nearer (eye-dome lighting, Boucheny 2009); of clouds of more than
    500 000 points, so many are drawn, spread evenly. Names are set in DejaVu Sans, which has no East Asian characters.

    Args:
        data: ``pos`` [N, 3] and, for a mesh, ``face`` [3, F]. Without ``label`` and ``score`` the colours are
            ``data.face_color`` [F, 3] or ``data.color`` ([N, 3] or [F, 3]), floats in 0 to 1 or integers in 0 to
            255, if there.
        path: The file to write, with the extension png. Its folder must exist.
        label: Integer per face [F] or vertex [N]. A face takes the majority of its corners, the first corner's if
            all differ. Negative is unlabelled and grey.
        score: Scalar per face [F] or vertex [N], drawn with a colour bar; not together with ``label``.
        label_on: What ``label`` and ``score`` describe, "vertex" or "face". Default: ``data.label_on``; without it
            their number decides.
        names: Names of the labels, a sequence or a mapping from label to name.
        views: Any of front, oblique, above, side, left, back, top, bottom. "side" looks
            from the right of "front"; captions name the axis the camera stands on. Default: front, side and back; above
            and top of a cloud that is wider than tall.
        up: Up axis of the file. "auto" takes z of a cloud that is the least tall along it, otherwise the axis of
            largest extent, but y, then z, if within 20 %.
        title: A line above.
        size: Width and height in pixels.

    Raises:
        ImportError: If matplotlib is not installed (extra ``viz``).
        OSError: If the folder of ``path`` does not exist or cannot be written in.
        ValueError: If lengths or values do not fit, both ``label`` and ``score`` are given, a view is unknown, or
            ``path`` has another extension.

    """
    check_path(path, PICTURE_FORMATS)
    if label is not None and score is not None:
        raise ValueError("picture draws either label or score; page shows both")
    for view in views or ():
        if view not in _VIEWS:
            raise ValueError(f"there is no view {view!r}; views are {', '.join(_VIEWS)}")
    if views is not None and not views:
        raise ValueError(f"views is empty; views are {', '.join(_VIEWS)}")
    if min(size) < 64:
        raise ValueError(f"size is {size}, but must be at least 64 pixels each way")
    scene = thinned(read_scene(data, label, score, label_on, names, up), _MAX_POINTS)
    if views is None:
        views = ("above", "top") if is_wide(scene) else ("front", "side", "back")
    color = scene.color if scene.score is None else _score_color(scene.score)

    sheet = _Sheet(*size)
    if title:
        sheet.title(title)
    if scene.legend:
        sheet.legend(scene.legend)
    if scene.score is not None:
        sheet.color_bar(scene.score)
    sheet.views(scene, color, views)
    with write_whole(path) as temporary:
        temporary.write_bytes(sheet.png())


def _score_color(score: Array) -> Array:
    viridis = require("matplotlib.cm", "viz").ScalarMappable(cmap="viridis")
    color: Array = viridis.to_rgba(score)[:, :3]
    return color


class _Sheet:
    """A white figure in pixels, filled from its edges: title, legend, and the views in what is left."""

    def __init__(self, width: int, height: int) -> None:
        figure = require("matplotlib.figure", "viz").Figure(
            figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white"
        )
        self.canvas = require("matplotlib.backends.backend_agg", "viz").FigureCanvasAgg(figure)
        self.figure = figure
        self.width, self.height = width, height
        self.em = float(np.clip(height / 50, 8, 24))
        self.left = self.bottom = self.em
        self.right, self.top = width - self.em, height - self.em

    def text(self, x: float, y: float, text: str, em: float, **style: Any) -> Any:
        # Names are shown as they are: a dollar sign does not start a formula.
        return self.figure.text(
            x / self.width,
            y / self.height,
            text,
            fontsize=em * 72 / _DPI,
            family="DejaVu Sans",
            parse_math=False,
            **{"color": "#222222", **style},
        )

    def title(self, title: str) -> None:
        title = " ".join(title.split())
        em = 1.4 * self.em
        line = self.text(self.width / 2, self.top, title, em, ha="center", va="top")
        wide = line.get_window_extent(self.canvas.get_renderer()).width
        if wide > self.right - self.left:
            line.set_fontsize(line.get_fontsize() * (self.right - self.left) / wide)
        self.top -= 2.2 * self.em

    def legend(self, entries: dict[int, tuple[str, float]]) -> None:
        """A column (or some) at the right: colour, name, share of the faces or points."""
        rectangle = require("matplotlib.patches", "viz").Rectangle
        renderer = self.canvas.get_renderer()
        for em in self.em * 0.9 ** np.arange(12):
            rows = max(int((self.top - self.bottom) // (1.7 * em)), 1)
            columns = -(-len(entries) // rows)
            rows = -(-len(entries) // columns)
            items = [
                (label, name if len(name) <= 32 else name[:31] + "…", f"{100 * share:.1f} %")
                for label, (name, share) in entries.items()
            ]
            texts = [(self.text(0, 0, name, em), self.text(0, 0, share, em)) for _, name, share in items]
            name_wide = max(text.get_window_extent(renderer).width for text, _ in texts)
            share_wide = max(text.get_window_extent(renderer).width for _, text in texts)
            column = 1.5 * em + name_wide + 1.2 * em + share_wide + 1.5 * em
            if column * columns <= 0.45 * self.width:
                break
            for text in sum(texts, ()):
                text.remove()
        left = self.right - column * columns + 1.5 * em
        top = (self.top + self.bottom) / 2 + rows * 1.7 * em / 2
        for place, ((label, _, _), (name_text, share_text)) in enumerate(zip(items, texts, strict=True)):
            x = left + place // rows * column
            y = top - (place % rows + 0.5) * 1.7 * em
            self.figure.add_artist(
                rectangle(
                    (x, y - em / 2),
                    em,
                    em,
                    color=label_colors([label])[0] / 255.0,
                    transform=None,
                    linewidth=0,
                )
            )
            name_text.set(x=(x + 1.5 * em) / self.width, y=y / self.height, va="center_baseline")
            share_text.set(
                x=(x + 1.5 * em + name_wide + 1.2 * em + share_wide) / self.width,
                y=y / self.height,
                ha="right",
                va="center_baseline",
                color="#777777",
            )
        self.right = left - 1.5 * em

    def color_bar(self, score: Array) -> None:
        mappable = require("matplotlib.cm", "viz").ScalarMappable(cmap="viridis")
        mappable.set_clim(float(score.min()), float(score.max()))
        high = self.top - self.bottom
        left = self.right - 6 * self.em
        box = (left / self.width, (self.bottom + 0.15 * high) / self.height)
        axes = self.figure.add_axes((*box, self.em / self.width, 0.7 * high / self.height))
        bar = self.figure.colorbar(mappable, cax=axes)
        bar.outline.set_visible(False)
        axes.tick_params(labelsize=self.em * 72 / _DPI, color="#999999", labelcolor="#222222")
        self.right = left - 1.5 * self.em

    def views(self, scene: Scene, color: Array, views: Sequence[str]) -> None:
        """Arrange the views in the rows and columns that let them be largest, all to one scale."""
        gap, caption = 1.5 * self.em, 2.0 * self.em
        cameras = [_camera(scene, view) for view in views]
        used = scene.pos if scene.face is None else scene.pos[np.unique(scene.face)]
        extent = np.stack([np.ptp(used @ camera.T, axis=0)[:2] for camera in cameras])
        # A single point, or a plane seen edge-on, has no extent to divide by.
        extent = np.maximum(extent, 1e-9 + 1e-3 * extent.max())

        best: tuple[float, list[range]] = (0.0, [])
        for columns in range(1, len(views) + 1):
            rows = [range(i, min(i + columns, len(views))) for i in range(0, len(views), columns)]
            wide = min((self.right - self.left - gap * (len(row) - 1)) / extent[row, 0].sum() for row in rows)
            tall = sum(extent[row, 1].max() for row in rows)
            high = (self.top - self.bottom - (caption + gap) * len(rows) + gap) / tall
            best = max(best, (min(wide, high), rows), key=lambda option: option[0])
        scale, rows = best
        if scale <= 0:
            raise ValueError(f"size {(self.width, self.height)} has no room for {len(views)} views; make it larger")

        paper = np.ones((self.height, self.width, 3))
        tall = sum(scale * extent[row, 1].max() + caption + gap for row in rows) - gap
        y = (self.top + self.bottom + tall) / 2
        for row in rows:
            high, wide = scale * extent[row, 1].max(), scale * extent[row, 0].sum()
            between = min(max((self.right - self.left - wide) / (len(row) + 1), gap), 3 * gap)
            x = (self.left + self.right - wide - between * (len(row) - 1)) / 2
            for i in row:
                center = x + scale * extent[i, 0] / 2, y - high / 2
                _draw(paper, scene, color, cameras[i], scale, (center[0], self.height - center[1]))
                self.text(
                    center[0],
                    y - high - 0.6 * self.em,
                    _caption(views[i], cameras[i]),
                    self.em,
                    ha="center",
                    va="top",
                    color="#777777",
                )
                x += scale * extent[i, 0] + between
            y -= high + caption + gap
        self.figure.figimage(paper, origin="upper", zorder=-1)

    def png(self) -> bytes:
        buffer = io.BytesIO()
        self.canvas.print_png(buffer)
        return buffer.getvalue()


def _camera(scene: Scene, view: str) -> Array:
    """Rows: right, up and towards the viewer, [3, 3]."""
    frame = np.stack([scene.right, scene.up, scene.front])
    towards, up = (np.array(part, dtype=np.float64) @ frame for part in _VIEWS[view])
    towards /= np.linalg.norm(towards)
    right = np.cross(up, towards)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(towards, right), towards])


def _caption(view: str, camera: Array) -> str:
    """Where the camera stands, by axis: a file does not say which side of the shape is its front."""
    if view in ("oblique", "above"):
        return view
    axis = int(np.abs(camera[2]).argmax())
    return f"from {'-+'[int(camera[2, axis] > 0)]}{'xyz'[axis]}"


def _draw(paper: Array, scene: Scene, color: Array, camera: Array, scale: float, center: tuple[float, float]) -> None:
    """Draw one view onto ``paper`` [H, W, 3], its middle at ``center`` (x right, y down, in pixels)."""
    space = scene.pos @ camera.T
    used = space if scene.face is None else space[np.unique(scene.face)]
    low, high = used.min(0), used.max(0)
    smallest = 2.5 if len(scene.pos) < 20_000 else 1.4
    radius = max(_point_radius(scene.pos) * scale, smallest) if scene.face is None else 0.0
    # The block of pixels around the shape, and the shape in its samples: x right, y down, z nearness 0 to 1.
    half = (high[:2] - low[:2]) * scale / 2 + radius + 1
    x0, y0 = (max(int(np.floor(center[i] - half[i])), 0) for i in (0, 1))
    x1, y1 = (min(int(np.ceil(center[i] + half[i])), paper.shape[1 - i]) for i in (0, 1))
    middle = (low + high) / 2
    point = np.empty_like(space)
    point[:, 0] = (center[0] - x0 + (space[:, 0] - middle[0]) * scale) * _SAMPLES
    point[:, 1] = (center[1] - y0 - (space[:, 1] - middle[1]) * scale) * _SAMPLES
    point[:, 2] = (space[:, 2] - low[2]) / max(high[2] - low[2], 1e-30)

    nearest = np.zeros(((y1 - y0) * _SAMPLES, (x1 - x0) * _SAMPLES), dtype=np.uint64)
    if scene.face is None:
        _fill_discs(nearest, point, radius * _SAMPLES)
    else:
        _fill_triangles(nearest, point[scene.face])
    row, column = np.nonzero(nearest)
    element = (nearest[row, column] & np.uint64(0xFFFFFFFF)).astype(np.int64)
    if scene.face is None and radius < 2.5:
        shade = _eye_dome(nearest, (high[2] - low[2]) * scale)[row, column]
    elif scene.face is None:
        # Each disc is shaded as the ball it stands for.
        normal = np.empty((len(element), 3))
        normal[:, 0] = (column + 0.5 - point[element, 0]) / (radius * _SAMPLES)
        normal[:, 1] = -(row + 0.5 - point[element, 1]) / (radius * _SAMPLES)
        normal[:, 2] = np.sqrt((1 - normal[:, 0] ** 2 - normal[:, 1] ** 2).clip(0))
        shade = _shade(normal)
    else:
        a, b, c = (space[scene.face[:, i]] for i in range(3))
        cross = np.cross(b - a, c - a)
        cross /= np.maximum(np.linalg.norm(cross, axis=1, keepdims=True), 1e-30)
        shade = _shade(cross[element])
    image = np.ones((*nearest.shape, 3))
    image[row, column] = color[element] * shade[:, None]
    image = image.reshape(y1 - y0, _SAMPLES, x1 - x0, _SAMPLES, 3).mean((1, 3))
    paper[y0:y1, x0:x1] = np.minimum(paper[y0:y1, x0:x1], image)


def _eye_dome(nearest: NDArray[np.uint64], depth: float) -> Array:
    """Brightness of each sample: the darker, the more it lies behind others. ``depth``: of the view, in pixels."""
    height, width = nearest.shape
    # Nearness in pixels; what is empty is farthest.
    near = (nearest >> np.uint64(32)).astype(np.float32) * np.float32(depth / 0xFFFFFFFF)
    behind = np.zeros_like(near)
    for pixels in (1, 2, 4):
        reach = pixels * _SAMPLES
        around = np.pad(near, reach)

        def beside(x: float, y: float, around: Array = around, reach: int = reach) -> Array:
            i, j = reach + round(y * reach), reach + round(x * reach)
            return around[i : i + height, j : j + width]

        for x, y in ((1, 0), (0, 1), (0.7, 0.7), (0.7, -0.7)):
            # Between opposite sides, so that a plane is bright however it is tilted.
            behind += ((beside(x, y) + beside(-x, -y)) / 2 - near).clip(0, 3 * pixels) / np.float32(pixels)
    shade: Array = 0.35 + 0.65 * np.exp(-behind.astype(np.float64) / 6)
    return shade


def _shade(normal: Array) -> Array:
    """Brightness in 0 to 1, [E], of surfaces with these normals [E, 3] (right, up, towards the viewer)."""
    normal = np.where(normal[:, 2:] < 0, -normal, normal)
    light = np.array([-0.35, 0.45, 1.0])
    diffuse = (normal @ (light / np.linalg.norm(light))).clip(0)
    # Darker where the surface turns away, so that one limb stands out before another.
    rim = 0.8 + 0.2 * np.minimum(2.5 * normal[:, 2], 1)
    shade: Array = (0.52 + 0.48 * diffuse) * rim
    return shade


def _point_radius(pos: Array) -> float:
    """Radius at which balls on points strewn over a surface just about close it."""
    from scipy.spatial import cKDTree

    if len(pos) < 2:
        return 0.0
    asked = pos[:: max(len(pos) // 20000, 1)]
    distance = np.asarray(cKDTree(pos).query(asked, k=min(6, len(pos)))[0])
    return 0.8 * float(np.median(distance[:, -1]))


def _fill_triangles(nearest: NDArray[np.uint64], corner: Array) -> None:
    """Put triangles [F, 3, 3] (x, y in samples, nearness) into the depth buffer, row by row."""
    for start in range(0, len(corner), 100_000):
        x, y, z = np.moveaxis(corner[start : start + 100_000], 2, 0)
        element, row = _rows(y.min(1), y.max(1))
        low, high = np.full(len(row), np.inf), np.full(len(row), -np.inf)
        z_low, z_high = np.zeros(len(row)), np.zeros(len(row))
        for a, b in ((0, 1), (1, 2), (2, 0)):
            with np.errstate(divide="ignore", invalid="ignore"):  # level edges cross no row
                along = (row + 0.5 - y[element, a]) / (y[element, b] - y[element, a])
            along[~np.isfinite(along)] = -1
            cross = (along >= 0) & (along <= 1)
            x_cross = x[element, a] + along * (x[element, b] - x[element, a])
            z_cross = z[element, a] + along * (z[element, b] - z[element, a])
            first, last = cross & (x_cross < low), cross & (x_cross > high)
            low[first], z_low[first] = x_cross[first], z_cross[first]
            high[last], z_high[last] = x_cross[last], z_cross[last]
        slope = (z_high - z_low) / np.maximum(high - low, 1e-12)
        _fill_runs(nearest, element + start, row, low, high, z_low, slope)


def _fill_discs(nearest: NDArray[np.uint64], center: Array, radius: float) -> None:
    """Put discs that face the viewer, at [N, 3] (x, y in samples, nearness), into the depth buffer."""
    for start in range(0, len(center), 100_000):
        x, y, z = center[start : start + 100_000].T
        element, row = _rows(y - radius, y + radius)
        half = np.sqrt((radius**2 - (row + 0.5 - y[element]) ** 2).clip(0))
        flat = np.zeros(len(row))
        _fill_runs(nearest, element + start, row, x[element] - half, x[element] + half, z[element], flat)


def _rows(low: Array, high: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every row whose middle lies between ``low`` and ``high``, with the element it belongs to."""
    first = np.ceil(low - 0.5).astype(np.int64)
    count = (np.floor(high - 0.5).astype(np.int64) - first + 1).clip(0)
    element = np.repeat(np.arange(len(first)), count)
    return element, first[element] + _counting(count)


def _fill_runs(
    nearest: NDArray[np.uint64],
    element: NDArray[np.int64],
    row: NDArray[np.int64],
    low: Array,
    high: Array,
    z: Array,
    slope: Array,
) -> None:
    """Fill samples from x = ``low`` to ``high``; nearness starts at ``z`` and grows by ``slope``."""
    inside = (row >= 0) & (row < nearest.shape[0]) & (low <= high)
    element, row, low, high, z, slope = (part[inside] for part in (element, row, low, high, z, slope))
    first = np.ceil(low - 0.5).clip(0).astype(np.int64)
    last = np.floor(high - 0.5).clip(-1, nearest.shape[1] - 1).astype(np.int64)
    count = (last - first + 1).clip(0)
    flat = nearest.reshape(-1)
    # In parts of some million samples, to bound the memory.
    total = np.cumsum(count)
    ends = np.searchsorted(total, np.arange(2_000_000, int(total[-1]) if len(total) else 0, 2_000_000)) + 1
    for part in np.split(np.arange(len(count)), ends):
        run = np.repeat(part, count[part])
        x = first[run] + _counting(count[part])
        near = (z[run] + slope[run] * (x + 0.5 - low[run])).clip(0, 1)
        # Nearness above, element below: the larger number is the nearer element, ties go to the later.
        key = ((near * 0xFFFFFFFE).astype(np.uint64) + np.uint64(1)) << np.uint64(32)
        np.maximum.at(flat, row[run] * nearest.shape[1] + x, key | element[run].astype(np.uint64))


def _counting(count: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ..., count - 1 for each count, in one row."""
    return np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
