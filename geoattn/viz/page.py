"""An interactive page of a labelled mesh or cloud: one HTML file that opens without a network."""

import html
import os
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch_geometric.data import Data

from geoattn._optional import require
from geoattn.data.io import check_path, write_whole
from geoattn.viz._scene import Names, On, Scene, Up, is_wide, read_scene, thinned

PAGE_FORMATS = {"html": ("plotly", "viz"), "htm": ("plotly", "viz")}
"""What :func:`page` writes, for :func:`geoattn.data.io.check_path`."""

_MAX_POINTS = 200_000

# Above this many faces the corners of faces are shared, which needs a third of the bytes.
_MAX_OWN_CORNERS = 150_000

_COLOR_BAR = {"thickness": 14, "len": 0.6, "outlinewidth": 0}

_DOCUMENT = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>html, body {{ margin: 0; height: 100%; background: white; overflow: hidden; }}</style>
</head>
<body>{body}</body>
</html>
"""


def page(
    data: Data,
    path: str | os.PathLike[str],
    *,
    label: ArrayLike | None = None,
    score: ArrayLike | None = None,
    label_on: On | None = None,
    names: Names | None = None,
    up: Up = "auto",
    title: str | None = None,
) -> None:
    """Write a page to turn, zoom and query a mesh (or, without faces, a point cloud).

    A click on a legend entry hides or shows its label, a double click shows it alone; hovering shows the
    name, the number of the face (or point) and its score. The file holds everything it needs (5 MB of it is
    plotly.js) and loads nothing. Above 150 000 faces, corners are shared between the faces of a label to keep
    the file small, and hovering shows the name only. Of a cloud of more than 200 000 points so many are shown, spread
    evenly, and the page says so.

    Args:
        data: ``pos`` [N, 3] and, for a mesh, ``face`` [3, F]. Without ``label`` and ``score`` the colours are
            ``data.face_color`` [F, 3] or ``data.color`` ([N, 3] or [F, 3]), floats in 0 to 1 or integers in 0 to
            255, if there.
        path: The file to write, with the extension html or htm. Its folder must exist.
        label: Integer per face [F] or vertex [N]. A face takes the majority of its corners, the first corner's if
            all differ. Negative is unlabelled and grey.
        score: Scalar per face [F] or vertex [N], such as the probability of the label. With ``label`` it
            shows on hover; alone it is drawn, with a colour bar.
        label_on: What ``label`` and ``score`` describe, "vertex" or "face". Default: ``data.label_on``; without it
            their number decides.
        names: Names of the labels, a sequence or a mapping from label to name.
        up: Up axis of the file. "auto" takes z of a cloud that is the least tall along it, otherwise the axis of
            largest extent, but y, then z, if within 20 %.
        title: Heading, and name of the browser's tab.

    Raises:
        ImportError: If plotly is not installed (extra ``viz``).
        OSError: If the folder of ``path`` does not exist or cannot be written in.
        ValueError: If lengths or values do not fit, or ``path`` has another extension.

    """
    check_path(path, PAGE_FORMATS)
    whole = read_scene(data, label, score, label_on, names, up)
    scene = thinned(whole, _MAX_POINTS)
    figure = require("plotly.graph_objects", "viz").Figure()
    draw = _add_points if scene.face is None else _add_faces
    everything = np.arange(len(scene.color))
    if scene.label is None:
        draw(figure, scene, everything, None, 0.0)
    else:
        for value, (name, share) in scene.legend.items():
            draw(figure, scene, everything[scene.label == value], name, share)
    figure.update_layout(**_layout(title))
    if is_wide(scene):
        figure.update_layout(scene_camera_eye={"x": 0.5, "y": -1.0, "z": 0.9})
    if len(scene.pos) < len(whole.pos):
        text = f"{len(scene.pos):,} of {len(whole.pos):,} points are shown".replace(",", " ")
        place = {"x": 0, "y": 0, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
        figure.add_annotation(text=text, showarrow=False, font={"size": 12, "color": "#777777"}, **place)
    body = figure.to_html(
        full_html=False,
        include_plotlyjs=True,
        default_width="100%",
        default_height="100vh",
        config={
            "responsive": True,
            "displaylogo": False,
            "scrollZoom": True,
            # Only these: by default there is a button that uploads the figure.
            "modeBarButtons": [["toImage", "resetCameraDefault3d"]],
        },
    )
    document = _DOCUMENT.format(title=html.escape(title or "geoattn"), body=body)
    with write_whole(path) as temporary:
        temporary.write_text(document, encoding="utf-8")


def _add_faces(figure: Any, scene: Scene, member: NDArray[np.int64], name: str | None, share: float) -> None:
    """Add the faces ``member`` as one trace, [M]."""
    assert scene.face is not None
    corner = scene.face[member]
    if len(scene.face) <= _MAX_OWN_CORNERS:
        # Corners of its own for each face, since hovering answers for the nearest corner.
        pos = _unit(scene)[corner.reshape(-1)]
        index = np.arange(corner.size).reshape(-1, 3)
        hover = _hover(scene, "face", member, name, repeat=3)
    else:
        used, index = np.unique(corner, return_inverse=True)
        pos, index = _unit(scene)[used], index.reshape(-1, 3)
        hover = {"hoverinfo": "skip"} if name is None else _hover_name(name)
    index = index.astype(np.int32)
    trace = require("plotly.graph_objects", "viz").Mesh3d(
        x=pos[:, 0],
        y=pos[:, 1],
        z=pos[:, 2],
        i=index[:, 0],
        j=index[:, 1],
        k=index[:, 2],
        **_legend_entry(name, share),
        **hover,
    )
    if name is None and scene.score is not None:
        trace.update(
            intensity=scene.score[member].astype(np.float32),
            intensitymode="cell",
            colorscale="Viridis",
            colorbar=_COLOR_BAR,
            flatshading=True,
            lighting={"ambient": 0.85, "diffuse": 0.25, "specular": 0, "fresnel": 0},
            lightposition=dict(zip("xyz", (1e5 * _light(scene)).tolist(), strict=True)),
        )
    else:
        # plotly's lamp stands still and leaves the far side dark, so the shade is part of the colour.
        trace.lighting = {"ambient": 1, "diffuse": 0, "specular": 0, "fresnel": 0}
        trace.facecolor = _css(scene.color[member] * _shade(scene, member)[:, None])
        if name is not None:
            # The legend's colour, and the hover box's.
            trace.color = _css(scene.color[member[:1]])[0]
            trace.hoverlabel.bgcolor = trace.color
    figure.add_trace(trace)


def _add_points(figure: Any, scene: Scene, member: NDArray[np.int64], name: str | None, share: float) -> None:
    """Add the points ``member`` as one trace, [M]."""
    pos = _unit(scene)[member]
    marker: dict[str, Any] = {
        "size": float(np.clip(400 / len(scene.pos) ** 0.5, 1.5, 6)),
        "line": {"width": 0},
    }
    if name is not None:
        marker["color"] = _css(scene.color[member[:1]])[0]
    elif scene.score is not None:
        marker |= {
            "color": scene.score[member].astype(np.float32),
            "colorscale": "Viridis",
            "colorbar": _COLOR_BAR,
        }
    elif (scene.color == scene.color[0]).all():
        marker["color"] = _css(scene.color[:1])[0]
    else:
        marker["color"] = _css(scene.color[member])
    figure.add_trace(
        require("plotly.graph_objects", "viz").Scatter3d(
            x=pos[:, 0],
            y=pos[:, 1],
            z=pos[:, 2],
            mode="markers",
            marker=marker,
            **_legend_entry(name, share),
            **_hover(scene, "point", member, name, repeat=1),
        )
    )


def _light(scene: Scene) -> NDArray[np.float64]:
    light = 0.5 * scene.right + 0.8 * scene.up + 0.6 * scene.front
    return light / np.linalg.norm(light)


def _shade(scene: Scene, member: NDArray[np.int64]) -> NDArray[np.float64]:
    """Brightness in 0.55 to 1 of the faces ``member``, by their normals; no side is without light."""
    assert scene.face is not None
    a, b, c = (scene.pos[scene.face[member, i]] for i in range(3))
    normal = np.cross(b - a, c - a)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-30)
    return 0.775 + 0.225 * (normal @ _light(scene))


def _unit(scene: Scene) -> NDArray[np.float32]:
    """The positions with z up and the front towards -y, as plotly's turntable wants them, in -1 to 1.

    Far from the origin, single precision would not do otherwise.
    """
    used = scene.pos if scene.face is None else scene.pos[np.unique(scene.face)]
    low, high = used.min(0), used.max(0)
    half = max(float((high - low).max()) / 2, 1e-30)
    turned = (scene.pos - (low + high) / 2) @ np.stack([scene.right, -scene.front, scene.up], 1)
    unit: NDArray[np.float32] = (turned / half).astype(np.float32)
    return unit


def _legend_entry(name: str | None, share: float) -> dict[str, Any]:
    if name is None:
        return {"showlegend": False}
    return {"showlegend": True, "name": f"{_plain(name)}  {100 * share:.1f} %"}


def _hover(scene: Scene, element: str, member: NDArray[np.int64], name: str | None, repeat: int) -> dict[str, Any]:
    """What hovering shows: name, number and score of each element."""
    lines = [] if name is None else ["<b>%{meta}</b>"]
    lines.append(f"{element} %{{customdata[0]}}")
    columns = [scene.number[member].astype(np.float64)]
    if scene.score is not None:
        lines.append("score %{customdata[1]:.3f}")
        columns.append(scene.score[member])
    hover: dict[str, Any] = {
        "hovertemplate": "<br>".join(lines) + "<extra></extra>",
        # float32 is exact up to 16 million elements.
        "customdata": np.repeat(np.stack(columns, axis=1).astype(np.float32), repeat, axis=0),
    }
    return hover if name is None else {**hover, "meta": _plain(name)}


def _hover_name(name: str) -> dict[str, Any]:
    return {"hovertemplate": "<b>%{meta}</b><extra></extra>", "meta": _plain(name)}


def _plain(text: str) -> str:
    """Text that plotly shows as it is: no tags, and no ``%{...}`` to fill in."""
    return html.escape(text, quote=False).replace("%{", "%&#123;")


def _css(color: NDArray[np.float64]) -> list[str]:
    return [f"rgb({r},{g},{b})" for r, g, b in np.round(color * 255).astype(int).tolist()]


def _layout(title: str | None) -> dict[str, Any]:
    # One range for all axes: a cube is true to the data, and hiding a label does not move the view.
    axis = {"visible": False, "range": [-1.05, 1.05], "showspikes": False}
    layout: dict[str, Any] = {
        "scene": {
            "xaxis": axis,
            "yaxis": axis,
            "zaxis": axis,
            "aspectmode": "cube",
            "dragmode": "turntable",
            "camera": {"eye": {"x": 0.6, "y": -1.4, "z": 0.3}, "up": {"x": 0, "y": 0, "z": 1}},
        },
        "margin": {"l": 0, "r": 0, "t": 50 if title else 0, "b": 0},
        "paper_bgcolor": "white",
        "font": {"family": "system-ui, Helvetica, Arial, sans-serif", "size": 14, "color": "#222222"},
        "legend": {"itemsizing": "constant", "y": 0.5, "yanchor": "middle"},
        "hoverlabel": {"align": "left"},
        # Zooming and the hidden labels survive a resize of the window.
        "uirevision": "keep",
    }
    if title:
        layout["title"] = {"text": _plain(" ".join(title.split())), "x": 0.5, "y": 0.97, "font": {"size": 20}}
    return layout
