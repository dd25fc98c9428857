"""Every cell of the tables of docs/formats.md, and any sample at all: what is saved is loaded or was warned about."""

import re
import warnings
from pathlib import Path

import hypothesis.strategies as st
import meshio
import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from torch_geometric.data import Data

from geoattn.data.io import LoadError, load, save
from geoattn.data.io._kept import CLOUD, MESH
from geoattn.data.palette import label_colors, scalar_colors

DOCUMENT = Path(__file__).parents[2] / "docs" / "formats.md"


def table(heading: str) -> dict[tuple[str, str], str]:
    """The cells under a heading, by row and column."""
    lines = DOCUMENT.read_text().split(f"## {heading}\n")[1].split("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    columns = rows[0][1:]
    return {(row, column): cell for row, *cells in rows[2:] for column, cell in zip(columns, cells, strict=True)}


MESH_CELLS, CLOUD_CELLS = table("Meshes"), table("Point clouds")


def sample(row: str, faces: bool, soup: bool) -> Data:
    """A mesh or cloud that has what a row of the tables is about."""
    built = trimesh.creation.icosphere(subdivisions=1)
    data = Data(pos=torch.tensor(built.vertices, dtype=torch.float32))
    if faces:
        data.face = torch.tensor(built.faces.T.copy())
    if soup:
        data.pos, data.face = data.pos[data.face.T].reshape(-1, 3), torch.arange(240).view(80, 3).T
    random = torch.Generator().manual_seed(0)
    n, f = len(data.pos), data.face.shape[1] if faces else 0
    rows = f if faces else n
    if row in ("color", "alpha of color"):
        data.color = torch.randint(0, 256, (n, 3 + row.startswith("alpha")), generator=random) / 255
    elif row == "face_color":
        data.face_color = torch.randint(0, 256, (f, 4), generator=random) / 255
    elif row == "normal":
        data.normal = torch.nn.functional.normalize(data.pos)
    elif row == "uv":
        data.uv = torch.rand(n, 2, generator=random)
    elif row.startswith(("label", "scalar")):
        key, _, on = row.split()
        data[f"{key}_on"] = on
        size = (n if on == "vertex" else f,)
        data[key] = torch.randint(-1, 9, size, generator=random) if key == "label" else torch.randn(size)
    elif row == "intensity":
        data.intensity = torch.randint(0, 65536, (n,), generator=random).float()
    elif row == "score":
        data.score = torch.rand(n, generator=random)
    elif row.startswith("part"):
        data.part = torch.arange(rows) * 3 // rows
        if "order" in row:
            data.part = data.part.flip(0)
        if "name" in row:
            data.part_name = ["left arm", "b#1", "c\nd " if "any" in row else "ü"]
    elif row.startswith("origin"):
        data.origin = torch.tensor([665187.25, 5648349, -240], dtype=torch.float64)
        data.origin *= 1e9 if "beyond" in row else 1
    elif row == "others per vertex or face":
        data.x = torch.randn(n, 5, generator=random, dtype=torch.float64)
        data.file = torch.randint(0, 9, (rows,), generator=random, dtype=torch.int32)
    elif row == "others":
        data.edge_index, data.name, data.y = torch.tensor([[0], [1]]), "ball", torch.tensor([3])
    else:
        assert row in ("pos", "face", "numbering of vertices")
    return data


def kept(row: str, data: Data, loaded: Data, las: bool = False) -> bool:
    """Whether a loaded file has what a row of the tables is about."""
    fields = {
        "alpha of color": ["color"],
        "part in any order": ["part"],
        "part_name of any kind": ["part_name"],
        "others per vertex or face": ["x", "file"],
        "others": ["edge_index", "name", "y"],
    }.get(row, [row.split()[0]])
    if row == "pos":  # las has multiples of a power of ten
        return torch.equal(loaded.pos, data.pos) or (las and torch.allclose(loaded.pos, data.pos, rtol=0, atol=5e-9))
    if row == "face":
        return torch.equal(loaded.pos[loaded.face], data.pos[data.face])
    if row == "numbering of vertices":
        return torch.equal(loaded.face, data.face)
    if row.startswith("origin"):
        if len(loaded.pos) != len(data.pos):
            return False
        size = np.ptp(data.pos.numpy(), axis=0).max().item()
        origin = loaded.get("origin", torch.zeros(3, dtype=torch.float64))
        moved = (loaded.pos + (origin - data.origin)) - data.pos
        rounding = 1e-7 * (data.pos + data.origin).abs().max().item() + 1e-38 if size == 0 else 0
        return moved.abs().max().item() <= 1.1e-5 * size + rounding
    if any(field not in loaded for field in fields):
        return False
    if " per " in row and row.split()[2] != loaded.get(f"{fields[0]}_on", row.split()[2]):
        return False
    if row == "color":
        return torch.allclose(loaded.color[:, :3], data.color[:, :3], atol=1e-6)
    if row in ("normal", "uv", "face_color", "alpha of color"):
        same_shape = loaded[fields[0]].shape == data[fields[0]].shape
        return same_shape and torch.allclose(loaded[fields[0]], data[fields[0]], atol=1e-6)
    return all(
        torch.equal(loaded[field], data[field]) and loaded[field].dtype == data[field].dtype
        if isinstance(data[field], torch.Tensor)
        else loaded[field] == data[field]
        for field in fields
    )


def saved(path: Path, data: Data, **given) -> tuple[Data, str]:
    """What a written file is loaded as, and the warning of the writer."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        save(path, data, **given)
    assert all(warning.category is UserWarning and warning.filename == __file__ for warning in caught)
    assert len(caught) < 2
    return load(path), str(caught[0].message) if caught else ""


@pytest.mark.parametrize(
    ("row", "extension", "cell", "faces"),
    [(*key, cell, True) for key, cell in MESH_CELLS.items()]
    + [(*key, cell, False) for key, cell in CLOUD_CELLS.items()],
)
def test_cell(tmp_path, row, extension, cell, faces):
    data = sample(row, faces, soup=extension == "stl" and row != "numbering of vertices")
    loaded, warning = saved(tmp_path / f"m.{extension}", data)
    assert kept("face" if faces else "pos", data, loaded, extension in ("las", "laz")) or row.startswith("origin")
    assert kept(row, data, loaded) == (cell == "kept")
    if cell == "kept":
        assert not warning
        return
    others = [
        column
        for (name, column), cell in (MESH_CELLS if faces else CLOUD_CELLS).items()
        if name == row and cell == "kept"
    ]
    names = {"others per vertex or face": ["x", "file"], "others": ["edge_index", "name", "y"]}.get(row, [row])
    for name in names:
        assert f"{name} (" in warning
        assert f"kept by {', '.join(others) or 'no format'})" in warning


def test_the_tables_are_those_of_the_code():
    for cells, rows in ((MESH_CELLS, MESH), (CLOUD_CELLS, CLOUD)):
        assert {row for row, _ in cells} == set(rows)
        assert {key for key, cell in cells.items() if cell == "kept"} == {
            (row, extension) for row, extensions in rows.items() for extension in extensions.split()
        }


FLOATS = st.floats(-1e4, 1e4, width=32)


@st.composite
def samples(draw: st.DrawFn) -> Data:
    """A small mesh or cloud with any attributes."""
    n, f = draw(st.integers(1, 5)), draw(st.integers(0, 5))
    random = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    numbers = draw(st.sampled_from([torch.rand, torch.zeros, torch.ones]))
    data = Data(pos=torch.tensor([[draw(FLOATS) for _ in range(3)] for _ in range(n)]))
    if f:
        data.face = torch.randint(0, n, (3, f), generator=random)
    rows = f or n
    on = draw(st.sampled_from(["vertex", "face"] if f else ["vertex"]))
    choices = {
        "color": lambda: (torch.randint(1, 256, (n, 4), generator=random) / 255)[:, : draw(st.integers(3, 4))],
        "face_color": lambda: torch.randint(0, 256, (f, 4), generator=random) / 255,
        "normal": lambda: numbers(n, 3) * 2 - 1,
        "uv": lambda: numbers(n, 2),
        "label": lambda: torch.randint(-(2**23), 2**23, (n if on == "vertex" else f,), generator=random),
        "scalar": lambda: torch.randn(n if on == "vertex" else f, generator=random),
        "intensity": lambda: numbers(n) * draw(st.sampled_from([1, 1000])),
        "score": lambda: numbers(n),
        "part": lambda: torch.randint(0, 3, (rows,), generator=random),
        "origin": lambda: torch.tensor([draw(st.floats(-1e7, 1e7)) for _ in range(3)], dtype=torch.float64),
        "file": lambda: torch.randint(0, 9, (rows, 2), generator=random).to(draw(st.sampled_from(DTYPES))),
        "vertex_line": lambda: torch.rand(rows, generator=random),
        "x_on": lambda: torch.rand(rows),
        "y": lambda: torch.rand(7),
        "name": lambda: "ball",
    }
    for key, value in choices.items():
        if draw(st.booleans()) and (f or key != "face_color"):
            data[key] = value()
            if key in ("label", "scalar"):
                data[f"{key}_on"] = on
            if key == "part":
                data.part = data.part.sort()[0] if draw(st.booleans()) else data.part
                data.part_name = [draw(st.text(st.characters(exclude_characters="\0"))) for _ in range(3)]
    return data


DTYPES = [torch.bool, torch.uint8, torch.int16, torch.int64, torch.float16, torch.float64]


@pytest.mark.parametrize("extension", sorted({extension for _, extension in (*MESH_CELLS, *CLOUD_CELLS)}))
@settings(max_examples=30)
@given(data=samples())
def test_nothing_is_lost_silently(tmp_path_factory, extension, data):
    cells = CLOUD_CELLS if data.face is None else MESH_CELLS
    if (next(iter(cells))[0], extension) not in cells:
        with pytest.raises(ValueError, match=f"{extension} holds no"):
            save(tmp_path_factory.mktemp("m") / f"m.{extension}", data)
        return
    loaded, warning = saved(tmp_path_factory.mktemp("m") / f"m.{extension}", data)
    on = {"label": f"label per {data.get('label_on')}", "scalar": f"scalar per {data.get('scalar_on')}"}
    for key in data.keys():  # noqa: SIM118
        if key in ("pos", "face", "label_on", "scalar_on"):
            continue
        if key in ("file", "vertex_line", "x_on", "y", "name") or (
            data.face is not None and key in ("intensity", "score")
        ):
            same = key in loaded and torch.equal(loaded[key], data[key]) and loaded[key].dtype == data[key].dtype
        else:
            same = kept(
                on.get(key, "alpha of color" if key == "color" and data.color.shape[1] == 4 else key), data, loaded
            )
        assert same or re.search(rf"\b{key}\b.* \(", warning), (key, warning)


def test_a_loaded_file_is_saved_as_it_was(tmp_path):
    data = sample("label per face", faces=True, soup=False)
    label = data.label
    for first in ("npz", "ply", "vtk", "vtu"):
        save(tmp_path / f"a.{first}", data)
        for second in ("npz", "ply", "vtk", "vtu"):
            loaded, warning = saved(tmp_path / f"b.{second}", load(tmp_path / f"a.{first}"))
            assert not warning
            assert torch.equal(loaded.label, label)
            assert loaded.label_on == "face"


def test_loaded_labels_that_are_no_integers_are_warned_about(tmp_path):
    np.savez(tmp_path / "m.npz", pos=np.eye(3), label=[0, 0.5, 1])
    loaded, warning = saved(tmp_path / "n.npz", load(tmp_path / "m.npz"))
    assert "label" not in loaded
    assert "leaves out label (kept by no format)" in warning


def test_given_labels_go_before_those_of_the_sample(tmp_path):
    data = sample("label per face", faces=True, soup=False)
    data.scalar, data.scalar_on = torch.arange(42.0), "vertex"
    label = torch.arange(42)
    loaded, _ = saved(tmp_path / "m.ply", data, label=label, scalar=torch.ones(80), label_on="vertex", scalar_on="face")
    assert (loaded.label_on, loaded.scalar_on) == ("vertex", "face")
    assert torch.equal(loaded.label, label)
    assert torch.equal(loaded.scalar, torch.ones(80))


@pytest.mark.parametrize("extension", ["npz", "ply", "vtu", "glb"])
def test_labels_leave_the_colours_of_a_sample(tmp_path, extension):
    data = sample("color", faces=True, soup=False)
    loaded, warning = saved(tmp_path / f"m.{extension}", data, label=torch.arange(42))
    assert not warning
    assert torch.equal(loaded.label, torch.arange(42))
    assert kept("color", data, loaded)


@pytest.mark.parametrize("extension", ["obj", "off"])
def test_labels_take_the_place_of_colours_where_there_is_no_other(tmp_path, extension):
    data = sample("color", faces=True, soup=False)
    label = torch.arange(42)
    loaded, warning = saved(tmp_path / f"m.{extension}", data, label=label)
    assert "color (the labels take its place" in warning
    assert "label per vertex (shown as colours; kept by glb, npz, ply, vtk, vtu)" in warning
    assert torch.equal((loaded.color[:, :3] * 255).round().byte(), torch.from_numpy(label_colors(label)))
    data.label, data.label_on = label, "vertex"
    loaded, warning = saved(tmp_path / f"m.{extension}", data)
    assert "label per vertex (kept by glb" in warning
    assert kept("color", data, loaded)


@pytest.mark.parametrize("extension", ["npz", "ply", "vtk", "glb"])
def test_colours_of_labels_are_made_anew(tmp_path, extension):
    data = sample("pos", faces=True, soup=False)
    first, _ = saved(tmp_path / f"a.{extension}", data, label=torch.arange(42))
    second, warning = saved(tmp_path / f"b.{extension}", first, label=torch.arange(42).flip(0))
    assert not warning
    expected = label_colors(torch.arange(42).flip(0))
    assert torch.equal((second.color[:, :3] * 255).round().byte(), torch.from_numpy(expected))
    third, _ = saved(tmp_path / f"c.{extension}", data, scalar=torch.arange(42))
    fourth, _ = saved(tmp_path / f"d.{extension}", third, scalar=torch.arange(42) ** 2)
    expected = scalar_colors(torch.arange(42) ** 2)
    assert torch.equal((fourth.color[:, :3] * 255).round().byte(), torch.from_numpy(expected))


def test_as_many_faces_as_vertices_leave_nothing_to_guess(tmp_path):
    tetrahedron = trimesh.creation.icosphere(subdivisions=0)
    pos = torch.tensor(tetrahedron.vertices[:4], dtype=torch.float32)
    data = Data(pos=pos, face=torch.tensor([[0, 0, 0, 1], [1, 2, 3, 2], [2, 3, 1, 3]]))
    label = torch.tensor([0, 1, 2, 2])
    with pytest.raises(ValueError, match=r"as many faces as vertices \(4\).*label_on='face'"):
        save(tmp_path / "m.ply", data, label=label)
    for extension in ("npz", "ply", "vtk", "vtu"):
        for on in ("vertex", "face"):
            loaded, _ = saved(tmp_path / f"m.{extension}", data, label=label, label_on=on)
            again, _ = saved(tmp_path / f"n.{extension}", loaded)
            assert loaded.label_on == again.label_on == on
            assert torch.equal(again.label, label)
    with pytest.raises(ValueError, match=r"label has shape \[4\], expected one number per face"):
        save(tmp_path / "m.ply", Data(pos=pos, face=data.face[:, :3]), label=label, label_on="face")


def test_labels_of_other_npz_files_are_told_by_their_number(tmp_path):
    arrays = {"pos": np.eye(4)[:, :3], "face": np.array([[0, 0, 0], [1, 2, 3], [2, 3, 1]])}
    for count, on in ((4, "vertex"), (3, "face")):
        np.savez(tmp_path / "m.npz", **arrays, label=np.zeros(count, np.int64))
        assert load(tmp_path / "m.npz").label_on == on
    arrays["face"] = np.array([[0, 0, 0, 1], [1, 2, 3, 2], [2, 3, 1, 3]])
    np.savez(tmp_path / "m.npz", **arrays, label=np.zeros(4, np.int64))
    with pytest.raises(LoadError, match=r"m.npz: it has as many faces as vertices \(4\); add label_on"):
        load(tmp_path / "m.npz")
    np.savez(tmp_path / "m.npz", **arrays, label=np.zeros(4, np.int64), label_on="face")
    assert load(tmp_path / "m.npz").label_on == "face"


@pytest.mark.parametrize("extension", ["ply", "obj", "off", "glb", "vtk", "vtu"])
def test_other_libraries_read_what_is_written(tmp_path, extension):
    data = sample("part_name", faces=True, soup=False)
    for row in ("normal", "uv", "color", "label per vertex", "origin"):
        data.update(sample(row, faces=True, soup=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(tmp_path / f"m.{extension}", data)
        if extension in ("vtk", "vtu"):
            mesh = meshio.read(tmp_path / f"m.{extension}")
            pos, face = mesh.points, mesh.cells_dict["triangle"]
        else:
            mesh = trimesh.load_scene(tmp_path / f"m.{extension}", process=False).to_geometry()
            pos, face = mesh.vertices, mesh.faces
    assert np.abs(pos - (data.pos + data.origin).numpy()).max() < 1e-6
    assert np.array_equal(face, data.face.T)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"face": torch.zeros(80, 3, dtype=torch.long)}, r"data.face has shape \[80, 3\], expected \[3, F\]"),
        ({"normal": torch.zeros(80, 3)}, r"data.normal has shape \[80, 3\], expected \[42, 3\]: a row for each vertex"),
        ({"color": torch.zeros(80, 3)}, r"data.color has shape \[80, 3\], .*; the colours of faces are face_color"),
        ({"color": torch.full((42, 3), 255.0)}, r"data.color has values from 255 to 255, expected 0..1"),
        ({"uv": torch.full((42, 2), torch.nan)}, r"data.uv has a value that is not finite"),
        ({"x": torch.full((42, 2), torch.inf)}, r"data.x has a value that is not finite"),
        ({"part": torch.zeros(42, dtype=torch.long)}, r"data.part is int64 \[42\], expected an integer for each face"),
        ({"part": torch.full((80,), -1)}, r"data.part has the numbers -1 to -1"),
        ({"origin": torch.zeros(2)}, r"data.origin has shape \[2\]"),
        ({"label": torch.zeros(42, 1, dtype=torch.long)}, r"label has shape \[42, 1\]"),
        ({"label": torch.full((42,), 2**40)}, r"ply holds labels of 31 bits.*use npz"),
        ({"label": torch.zeros(42, dtype=torch.long), "label_on": "edge"}, r"label_on is 'edge'"),
    ],
)
def test_what_cannot_be_right_is_refused(tmp_path, change, message):
    data = sample("pos", faces=True, soup=False)
    data.update(change)
    with pytest.raises(ValueError, match=message):
        save(tmp_path / "m.ply", data)
    assert not list(tmp_path.iterdir())


def test_integer_colours_are_bytes(tmp_path):
    data = sample("color", faces=True, soup=False)
    bytes_ = data.clone()
    bytes_.color = (data.color * 255).round().long()
    assert torch.allclose(saved(tmp_path / "m.npz", bytes_)[0].color, data.color, atol=1e-6)
