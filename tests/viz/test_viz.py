import io
import json
import re
import sys

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from torch_geometric.data import Data

from geoattn.data.palette import LABEL_COLORS
from geoattn.viz import _scene, page, picture
from geoattn.viz.picture import _eye_dome

pytest.importorskip("matplotlib")
pytest.importorskip("plotly")

SIZE = (400, 300)


def mesh(shape: trimesh.Trimesh) -> Data:
    return Data(
        pos=torch.tensor(np.asarray(shape.vertices), dtype=torch.float32),
        face=torch.tensor(np.asarray(shape.faces).T.copy()),
    )


def pixels(path) -> np.ndarray:
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def drawn(image: np.ndarray, color, near: float = 0.03) -> int:
    """Pixels that have this colour at some brightness."""
    color = np.asarray(color, dtype=float)
    length = np.linalg.norm(image, axis=2)
    direction = image / np.maximum(length, 1)[..., None]
    white = (image > 250).all(2)
    return int(((np.linalg.norm(direction - color / np.linalg.norm(color), axis=2) < near) & ~white).sum())


def plate(z: float, half: float) -> trimesh.Trimesh:
    corners = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * half + [0, 0, z]
    return trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], process=False)


@pytest.fixture
def ball() -> Data:
    return mesh(trimesh.creation.icosphere(subdivisions=3))


def statue() -> tuple[Data, np.ndarray]:
    """A y-up shape without symmetry: a tall box, and smaller ones towards +x and +z."""
    parts = [
        trimesh.creation.box(extents, trimesh.transformations.translation_matrix(at))
        for extents, at in (((1, 4, 1), (0, 0, 0)), ((1, 1, 0.5), (1, 1, 0)), ((0.5, 0.5, 1), (0, -1, 1)))
    ]
    return mesh(trimesh.util.concatenate(parts)), np.repeat([0, 1, 2], 12)


@pytest.mark.parametrize("size", [(400, 300), (120, 640), (1000, 200)])
def test_picture_has_the_size_and_a_white_background(tmp_path, ball, size):
    picture(ball, tmp_path / "a.png", label=np.zeros(len(ball.pos)), title="A title", size=size)
    image = pixels(tmp_path / "a.png")
    assert image.shape == (size[1], size[0], 3)
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert (border == 255).all()
    assert drawn(image, LABEL_COLORS[0]) > 100


def test_every_label_is_drawn_in_its_colour(tmp_path, ball):
    label = np.arange(ball.face.shape[1]) * 6 // ball.face.shape[1]
    picture(ball, tmp_path / "a.png", label=label, size=SIZE)
    body = pixels(tmp_path / "a.png")[:, : SIZE[0] // 2]  # without the legend
    for color in LABEL_COLORS[:6]:
        assert drawn(body, color) > 20


def test_labels_of_vertices_draw_as_those_of_faces(tmp_path, ball):
    of_vertex = (ball.pos[:, 1] > 0).long()
    of_face = of_vertex[ball.face].sum(0) >= 2
    picture(ball, tmp_path / "vertex.png", label=of_vertex, size=SIZE)
    picture(ball, tmp_path / "face.png", label=of_face, size=SIZE)
    assert (tmp_path / "vertex.png").read_bytes() == (tmp_path / "face.png").read_bytes()


def test_hidden_faces_are_not_drawn(tmp_path):
    data = mesh(trimesh.util.concatenate([plate(0.0, 1.0), plate(-1.0, 0.5)]))
    for label in ([0, 0, 1, 1], [1, 1, 0, 0]):
        picture(data, tmp_path / "a.png", label=label, views=["front"], size=SIZE)
        body = pixels(tmp_path / "a.png")[:, : SIZE[0] // 2]
        assert drawn(body, LABEL_COLORS[label[0]]) > 1000
        assert drawn(body, LABEL_COLORS[label[2]]) == 0
        picture(data, tmp_path / "a.png", label=label, views=["back"], size=SIZE)
        assert drawn(pixels(tmp_path / "a.png")[:, : SIZE[0] // 2], LABEL_COLORS[label[2]]) > 300


def test_crossing_triangles_hide_each_other_in_part(tmp_path):
    # Two plates through one vertical line: from the front, each is the nearer one on one side of it.
    pos = [[-1, -1, -1], [1, -1, 1], [1, 1, 1], [-1, 1, -1], [-1, -1, 1], [1, -1, -1], [1, 1, -1], [-1, 1, 1]]
    face = [[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]]
    data = Data(pos=torch.tensor(pos, dtype=torch.float32), face=torch.tensor(face).T)
    picture(data, tmp_path / "a.png", label=[0, 0, 1, 1], views=["front"], size=SIZE)
    image = pixels(tmp_path / "a.png")
    columns = np.flatnonzero((image[: SIZE[1] // 3] < 240).any((0, 2)))
    columns = columns[columns < 0.75 * SIZE[0]]
    middle = (columns[0] + columns[-1]) // 2
    left, right = image[:, columns[0] : middle - 3], image[:, middle + 3 : columns[-1] + 1]
    assert drawn(left, LABEL_COLORS[1]) > 1000
    assert drawn(left, LABEL_COLORS[0]) == 0
    assert drawn(right, LABEL_COLORS[0]) > 1000
    assert drawn(right, LABEL_COLORS[1]) == 0


@pytest.mark.parametrize(
    ("up", "turn"),
    [
        ("z", [[1, 0, 0], [0, 0, -1], [0, 1, 0]]),  # tipped: y goes to z, z to -y
        ("x", [[0, 1, 0], [-1, 0, 0], [0, 0, 1]]),  # rolled: y goes to x, x to -y
    ],
)
@pytest.mark.parametrize("auto", [True, False])
def test_the_up_axis_does_not_change_the_picture(tmp_path, up, turn, auto):
    data, label = statue()
    turned = data.clone()
    turned.pos = data.pos @ torch.tensor(turn, dtype=torch.float32).T
    options = {"label": label, "size": SIZE, "views": ["front", "oblique", "side"]}
    picture(data, tmp_path / "y.png", up="y", **options)
    picture(turned, tmp_path / "turned.png", up="auto" if auto else up, **options)
    bodies = [pixels(tmp_path / name)[: int(0.9 * SIZE[1])] for name in ("y.png", "turned.png")]
    assert np.abs(bodies[0] - bodies[1]).mean() < 0.5


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_units_and_origin_do_not_change_the_picture(tmp_path, factor):
    data, label = statue()
    moved = Data(pos=(data.pos.double() + 10) * factor, face=data.face)
    picture(data, tmp_path / "a.png", label=label, size=SIZE)
    picture(moved, tmp_path / "b.png", label=label, size=SIZE)
    assert np.abs(pixels(tmp_path / "a.png") - pixels(tmp_path / "b.png")).mean() < 0.5


def test_the_same_input_gives_the_same_bytes(tmp_path, ball):
    for name in ("a.png", "b.png"):
        picture(ball, tmp_path / name, score=ball.pos[:, 0], size=SIZE)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_score_is_drawn_from_dark_to_bright_with_a_bar(tmp_path, ball):
    picture(ball, tmp_path / "a.png", score=ball.pos[:, 1], views=["front"], size=SIZE)
    image = pixels(tmp_path / "a.png")
    body = image[:, : SIZE[0] * 3 // 4]
    rows = np.flatnonzero((body < 250).any((1, 2)))[5:-60]
    middle = body.shape[1] // 2
    low, high = (
        body[rows[-1], middle - 20 : middle + 20].mean(),
        body[rows[10], middle - 20 : middle + 20].mean(),
    )
    assert high > low
    assert (image[:, SIZE[0] * 3 // 4 :] < 200).any()


@pytest.mark.parametrize("dtype", ["float", "uint8"])
def test_without_labels_the_colours_of_the_file_are_drawn(tmp_path, ball, dtype):
    color = torch.tensor([1.0, 0.2, 0.0]).expand(len(ball.pos), 3)
    ball.color = color if dtype == "float" else (color * 255).to(torch.uint8)
    picture(ball, tmp_path / "a.png", size=SIZE)
    assert drawn(pixels(tmp_path / "a.png"), [255, 51, 0]) > 1000


def test_colours_of_faces_go_before_those_of_vertices(tmp_path, ball):
    ball.color = torch.zeros(len(ball.pos), 3)
    ball.face_color = torch.tensor([1.0, 0.2, 0.0]).expand(ball.face.shape[1], 3)
    picture(ball, tmp_path / "a.png", size=SIZE)
    assert drawn(pixels(tmp_path / "a.png"), [255, 51, 0]) > 1000


def test_as_many_faces_as_vertices_leave_nothing_to_guess(tmp_path):
    tetrahedron = Data(pos=torch.eye(4)[:, :3], face=torch.tensor([[0, 0, 0, 1], [1, 2, 3, 2], [2, 3, 1, 3]]))
    label = np.array([0, 0, 0, 1])
    for draw, name in ((picture, "a.png"), (page, "a.html")):
        with pytest.raises(
            ValueError, match=r"as many faces as vertices \(4\): say what label describes, by label_on="
        ):
            draw(tetrahedron, tmp_path / name, label=label)
    contents = {}
    for on in ("vertex", "face"):
        picture(tetrahedron, tmp_path / "a.png", label=label, label_on=on, size=SIZE)
        tetrahedron.label_on = on
        picture(tetrahedron, tmp_path / "b.png", label=label, size=SIZE)
        contents[on] = (tmp_path / "a.png").read_bytes()
        assert (tmp_path / "b.png").read_bytes() == contents[on]
    assert contents["vertex"] != contents["face"]


@pytest.mark.parametrize("n", [1, 2, 500])
def test_clouds(tmp_path, n):
    generator = torch.Generator().manual_seed(0)
    cloud = Data(pos=torch.rand(n, 3, generator=generator))
    label = np.arange(n) % 2
    picture(cloud, tmp_path / "a.png", label=label, size=SIZE)
    body = pixels(tmp_path / "a.png")[:, : SIZE[0] // 2]
    assert drawn(body, LABEL_COLORS[0]) + drawn(body, LABEL_COLORS[1]) > 3
    page(cloud, tmp_path / "a.html", label=label, score=np.ones(n))
    traces = figure_of(tmp_path / "a.html")["data"]
    assert [trace["type"] for trace in traces] == ["scatter3d"] * min(n, 2)


def test_names_are_text_and_not_formulas(tmp_path, ball):
    names = ["$\\frac{", "_hidden", "a" * 200, "two\nlines", "", "<b>"]
    picture(ball, tmp_path / "a.png", label=np.arange(len(ball.pos)) % 6, names=names, title="$x", size=SIZE)
    assert pixels(tmp_path / "a.png").shape == (SIZE[1], SIZE[0], 3)


def figure_of(path) -> dict:
    """The arguments of the page's ``Plotly.newPlot(id, data, layout, config)``, decoded."""
    text = path.read_text(encoding="utf-8")
    start = text.rindex("Plotly.newPlot(")
    rest = text[start + len("Plotly.newPlot(") :]
    decoder, found = json.JSONDecoder(), []
    for _ in range(4):
        rest = rest.lstrip(" \n,")
        value, end = decoder.raw_decode(rest)
        found.append(value)
        rest = rest[end:]
    return {"data": found[1], "layout": found[2], "config": found[3]}


def array(packed) -> np.ndarray:
    """An array of a figure: a list, or base64 with a type and a shape, as newer plotly writes it."""
    if isinstance(packed, list):
        return np.array(packed)
    import base64

    flat = np.frombuffer(base64.b64decode(packed["bdata"]), dtype=packed["dtype"])
    return flat.reshape([int(n) for n in str(packed["shape"]).split(",")]) if "shape" in packed else flat


def test_page_hover_belongs_to_the_face(tmp_path, ball):
    n = ball.face.shape[1]
    label, score = np.arange(n) % 3, np.linspace(0, 1, n)
    page(ball, tmp_path / "a.html", label=label, score=score, names={0: "head", 2: "foot"})
    traces = figure_of(tmp_path / "a.html")["data"]
    assert [trace["meta"] for trace in traces] == ["head", "label 1", "foot"]
    seen = []
    for value, trace in enumerate(traces):
        assert trace["showlegend"]
        assert "%{meta}" in trace["hovertemplate"]
        number, shown = array(trace["customdata"]).reshape(-1, 3, 2).transpose(2, 0, 1)
        corner = np.stack([array(trace[axis]) for axis in "ijk"], axis=1)
        assert (corner.reshape(-1) == np.arange(corner.size)).all()
        assert (number == number[:, :1]).all()
        faces = number[:, 0].astype(int)
        assert (label[faces] == value).all()
        np.testing.assert_allclose(shown, np.repeat(score[faces, None], 3, axis=1), atol=1e-6)
        drawn_at = np.stack([array(trace[axis]) for axis in "xyz"], axis=1)[corner]
        # The ball is y up; on the page z is up, and what looked along z looks along -y.
        expected = ball.pos.numpy()[ball.face.numpy().T[faces]][..., [0, 2, 1]] * [1, -1, 1]
        np.testing.assert_allclose(drawn_at, expected, atol=1e-5)
        seen.extend(faces)
    assert sorted(seen) == list(range(n))


def test_page_is_alone_and_names_cannot_run(tmp_path, ball):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    names = [evil, "<a href='http://example.com'>%{x}</a>"]
    page(ball, tmp_path / "a.html", label=np.arange(len(ball.pos)) % 2, names=names, title=evil)
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert evil not in text
    assert "<img src=x" not in text
    assert not re.search(r"<(script|link|img|iframe)\b[^>]*\b(src|href)\s*=\s*[\"']?(https?:)?//", text)
    assert not re.search(r"<script[^>]+\bsrc\b", text[:3000] + text[text.rindex("Plotly.newPlot(") :])
    figure = figure_of(tmp_path / "a.html")
    for trace in figure["data"]:
        assert "<" not in trace["meta"] + trace["name"]
        assert "%{x}" not in trace["meta"]
    assert "<" not in figure["layout"]["title"]["text"]
    # No button that uploads.
    assert figure["config"]["modeBarButtons"] == [["toImage", "resetCameraDefault3d"]]


def test_page_looks_from_the_front_with_up_upwards(tmp_path):
    """Plotly's turntable turns about z only: whatever is up in the file is z up on the page."""
    data, label = statue()
    for up in "xyz":
        page(data, tmp_path / "a.html", label=label, up=up)
        figure = figure_of(tmp_path / "a.html")
        scene = figure["layout"]["scene"]
        assert scene["camera"]["up"] == {"x": 0, "y": 0, "z": 1}
        assert scene["xaxis"]["range"] == scene["yaxis"]["range"] == scene["zaxis"]["range"]
        shown = np.concatenate([array(trace["z"]) for trace in figure["data"]])
        height = data.pos.numpy()[:, "xyz".index(up)]
        assert np.ptp(shown) / np.ptp(height) == pytest.approx(2 / np.ptp(data.pos.numpy(), axis=0).max(), rel=1e-5)


def test_page_of_a_large_mesh_shares_corners(tmp_path):
    ball = mesh(trimesh.creation.icosphere(subdivisions=7))  # 327 680 faces
    page(ball, tmp_path / "a.html", score=ball.pos[:, 0])
    (trace,) = figure_of(tmp_path / "a.html")["data"]
    assert len(array(trace["x"])) == len(ball.pos)
    assert len(array(trace["i"])) == ball.face.shape[1]


@pytest.mark.parametrize(("draw", "name"), [(picture, "a.png"), (page, "a.html")])
def test_errors_name_the_numbers(tmp_path, ball, draw, name):
    n, f = len(ball.pos), ball.face.shape[1]
    for field in ("label", "score"):
        with pytest.raises(ValueError, match=f"{field} has 7 values.*{f} faces.*{n} vertices"):
            draw(ball, tmp_path / name, **{field: np.zeros(7)})
        with pytest.raises(ValueError, match=f"{field} has 7 values.*{n} points"):
            draw(Data(pos=ball.pos), tmp_path / name, **{field: np.zeros(7)})
    with pytest.raises(ValueError, match=r"label\[0\] is 0.5"):
        draw(ball, tmp_path / name, label=np.full(n, 0.5))
    with pytest.raises(ValueError, match="up is 'w'"):
        draw(ball, tmp_path / name, up="w")
    with pytest.raises(ValueError, match="pos"):
        draw(Data(pos=torch.full((3, 3), float("nan"))), tmp_path / name)
    with pytest.raises(ValueError, match=f"there are {n} vertices"):
        draw(Data(pos=ball.pos, face=ball.face + 1), tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        draw(ball, tmp_path / "nowhere" / name)
    with pytest.raises(ValueError, match=r"a.jpg: cannot write '.jpg' files; supported are ."):
        draw(ball, tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())


def test_picture_refuses_what_it_cannot_draw(tmp_path, ball):
    label = np.zeros(len(ball.pos))
    with pytest.raises(ValueError, match="either label or score"):
        picture(ball, tmp_path / "a.png", label=label, score=label)
    with pytest.raises(ValueError, match="no view 'within'"):
        picture(ball, tmp_path / "a.png", views=["within"])


def test_a_failed_write_leaves_the_old_file(tmp_path, ball, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        picture(ball, path, size=SIZE)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_large_clouds_are_thinned_evenly(tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    pos = torch.rand(5000, 3, generator=generator) * torch.tensor([4.0, 4, 1])
    pos[:4000] = pos[:4000] / 100 + 2  # most of them in one spot
    cloud = Data(pos=pos)
    label = (pos[:, 0] > 2).long()
    scene = _scene.read_scene(cloud, label, pos[:, 1], None, None, "auto")
    small = _scene.thinned(scene, 600)
    assert np.array_equal(small.pos, scene.pos[small.number])
    assert np.array_equal(small.label, scene.label[small.number])
    assert np.array_equal(small.score, scene.score[small.number])
    assert len(small.pos) == 600
    assert small.legend == scene.legend  # shares are those of all points
    assert (small.number >= 4000).mean() > 0.6
    monkeypatch.setattr(sys.modules["geoattn.viz.page"], "_MAX_POINTS", 600)
    page(cloud, tmp_path / "a.html", label=label)
    text = (tmp_path / "a.html").read_text()
    assert "600 of 5 000 points are shown" in text
    shown = np.concatenate([array(trace["customdata"]).ravel() for trace in figure_of(tmp_path / "a.html")["data"]])
    assert sorted(shown.astype(int)) == small.number.tolist()  # hovering shows the number in the file


def test_a_wide_cloud_is_seen_from_above_with_z_up(tmp_path):
    wide = Data(pos=torch.rand(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 8, 1]))
    picture(wide, tmp_path / "a.png", size=SIZE)
    picture(wide, tmp_path / "b.png", size=SIZE, up="z", views=("above", "top"))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    tall = Data(pos=wide.pos[:, [2, 1, 0]])
    picture(tall, tmp_path / "a.png", size=SIZE)
    picture(tall, tmp_path / "b.png", size=SIZE, up="y", views=("front", "side", "back"))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_what_lies_behind_is_darker_at_the_edge_of_what_is_before_it():
    step = np.full((180, 180), 0.2)
    step[:, 90:] = 0.8
    shade = _eye_dome((step * 0xFFFFFFFF).astype(np.uint64) << np.uint64(32), 60)
    assert shade[90, 88] < shade[90, 60]
    assert shade[90, 91] == shade[90, 120]
    plane = np.tile(np.linspace(0.1, 0.9, 180), (180, 1))
    shade = _eye_dome((plane * 0xFFFFFFFF).astype(np.uint64) << np.uint64(32), 60)[20:-20, 20:-20]
    assert shade.min() > 0.99
