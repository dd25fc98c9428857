import base64
import io
import json
import struct
import sys
import threading
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path

import hypothesis.strategies as st
import laspy
import meshio
import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given
from hypothesis.extra import numpy as hnp
from torch_geometric.data import Data

from geoattn.data.io import READERS, LoadError, check_output, check_path, load, save
from geoattn.data.palette import LABEL_COLORS, label_colors

pytestmark = pytest.mark.filterwarnings("ignore:.* leaves out:UserWarning")  # see test_formats.py

FACE_LABELS = ("npz", "ply", "vtk", "vtu")
VERTEX_LABELS = (*FACE_LABELS, "glb")
MESH = ("glb", "npz", "obj", "off", "ply", "vtk", "vtu")
CLOUD = (*MESH, "pcd", "xyz")


def sphere() -> Data:
    built = trimesh.creation.icosphere(subdivisions=1)
    pos = torch.tensor(built.vertices, dtype=torch.float32)
    return Data(pos=pos, face=torch.tensor(built.faces.T.copy()))


def write(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@st.composite
def meshes(draw: st.DrawFn) -> Data:
    """Any float32 positions of a sane size, any faces: degenerate and non-manifold ones too."""
    n = draw(st.integers(1, 12))
    sizes = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
    pos = torch.from_numpy(draw(hnp.arrays(np.float32, (n, 3), elements=sizes)))
    f = draw(st.integers(1, 12))
    face = torch.from_numpy(draw(hnp.arrays(np.int64, (3, f), elements=st.integers(0, n - 1))))
    return Data(pos=pos, face=face)


# ------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("extension", MESH)
@given(data=meshes())
def test_mesh_round_trip(tmp_path_factory, extension, data):
    path = tmp_path_factory.mktemp("mesh") / f"m.{extension}"
    save(path, data)
    loaded = load(path)
    assert torch.equal(loaded.pos, data.pos)
    assert torch.equal(loaded.face, data.face)


@given(data=meshes())
def test_stl_round_trip(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("stl") / "m.stl"
    save(path, data)
    loaded = load(path)
    assert torch.equal(loaded.pos[loaded.face], data.pos[data.face])


@pytest.mark.parametrize("extension", CLOUD)
@given(data=meshes())
def test_cloud_round_trip(tmp_path_factory, extension, data):
    path = tmp_path_factory.mktemp("cloud") / f"c.{extension}"
    save(path, Data(pos=data.pos))
    loaded = load(path)
    assert torch.equal(loaded.pos, data.pos)
    assert loaded.face is None


@pytest.mark.parametrize("extension", VERTEX_LABELS)
@given(data=meshes(), seed=st.integers(0, 99))
def test_vertex_label_and_scalar_round_trip(tmp_path_factory, extension, data, seed):
    random = torch.Generator().manual_seed(seed)
    label = torch.randint(-1, 2**20, (len(data.pos),), generator=random)
    scalar = torch.randn(len(data.pos), generator=random)
    path = tmp_path_factory.mktemp("label") / f"m.{extension}"
    save(path, data, label=label, scalar=scalar, label_on="vertex", scalar_on="vertex")
    loaded = load(path)
    assert torch.equal(loaded.pos, data.pos)
    assert torch.equal(loaded.label, label)
    assert loaded.label_on == loaded.scalar_on == "vertex"
    assert torch.equal(loaded.scalar, scalar)
    assert torch.equal((loaded.color[:, :3] * 255).round().byte(), torch.from_numpy(label_colors(label)))


@pytest.mark.parametrize("extension", FACE_LABELS)
@given(data=meshes(), seed=st.integers(0, 99))
def test_face_label_and_scalar_round_trip(tmp_path_factory, extension, data, seed):
    random = torch.Generator().manual_seed(seed)
    data.label_on = data.scalar_on = "face"  # decides where N = F
    label = torch.randint(-1, 2**31 - 1, (data.face.shape[1],), generator=random)
    scalar = torch.randn(data.face.shape[1], generator=random)
    path = tmp_path_factory.mktemp("label") / f"m.{extension}"
    save(path, data, label=label, scalar=scalar)
    loaded = load(path)
    assert torch.equal(loaded.face, data.face)
    assert torch.equal(loaded.label, label)
    assert loaded.label_on == loaded.scalar_on == "face"
    assert torch.equal(loaded.scalar, scalar)
    assert torch.equal((loaded.face_color[:, :3] * 255).round().byte(), torch.from_numpy(label_colors(label)))


@pytest.mark.parametrize("extension", ["obj", "xyz"])
def test_labels_as_colors_where_there_are_no_attributes(tmp_path, extension):
    pos = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    label = torch.arange(30)
    with pytest.warns(UserWarning, match="label per vertex .shown as colours"):
        save(tmp_path / f"c.{extension}", Data(pos=pos), label=label)
    color = (load(tmp_path / f"c.{extension}").color * 255).round().byte()
    assert torch.equal(color, torch.from_numpy(LABEL_COLORS[label.numpy() % len(LABEL_COLORS)]))


@pytest.mark.parametrize("extension", ["glb", "npz", "ply"])
def test_normals_and_colors_round_trip(tmp_path, extension):
    data = sphere()
    data.normal = torch.nn.functional.normalize(data.pos)
    data.color = torch.randint(0, 256, (len(data.pos), 3)) / 255
    save(tmp_path / f"m.{extension}", data)
    loaded = load(tmp_path / f"m.{extension}")
    assert torch.allclose(loaded.normal, data.normal, atol=1e-6)
    assert torch.allclose(loaded.color[:, :3], data.color, atol=1e-6)


def test_npz_keeps_other_attributes(tmp_path):
    data = sphere()
    data.x = torch.randn(len(data.pos), 5)
    data.area = torch.rand(data.face.shape[1])
    save(tmp_path / "m.npz", data)
    loaded = load(tmp_path / "m.npz")
    assert torch.equal(loaded.x, data.x)
    assert torch.equal(loaded.area, data.area)


# ------------------------------------------------------------------------------------------------- saving


@pytest.mark.parametrize(
    ("extension", "per", "use"),
    [("stl", "vertex", "ply"), ("off", "face", "vtu"), ("obj", "face", "npz"), ("glb", "face", "vtk")],
)
def test_save_names_the_formats_that_can(tmp_path, extension, per, use):
    data = sphere()
    label = torch.zeros(len(data.pos) if per == "vertex" else data.face.shape[1], dtype=torch.long)
    with pytest.raises(ValueError, match=use):
        save(tmp_path / f"m.{extension}", data, label=label)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos": torch.full((3, 3), torch.nan)}, "not finite"),
        ({"face": torch.tensor([[0], [1], [99]])}, "vertex 99"),
        ({"pos": torch.empty(0, 3)}, "at least one vertex"),
    ],
)
def test_save_refuses_bad_data_and_leaves_the_old_file(tmp_path, change, message):
    path = write(tmp_path, "m.ply", "old")
    data = sphere()
    data.update(change)
    with pytest.raises(ValueError, match=message):
        save(path, data)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("label", [torch.zeros(5, dtype=torch.long), torch.zeros(42), np.array([[1]])])
def test_save_refuses_bad_labels(tmp_path, label):
    with pytest.raises(ValueError, match="label"):
        save(tmp_path / "m.ply", sphere(), label=label)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("m.blend", ValueError, r"m.blend: cannot write '.blend' files; supported are .glb, .*.ply"),
        ("m", ValueError, r"m: cannot write a file without extension; supported are .glb, .*.ply"),
        ("nowhere/m.ply", FileNotFoundError, r"m.ply: the folder .*nowhere does not exist; create it first"),
        ("folder.ply", IsADirectoryError, r"folder.ply: is a folder; give the name of a file"),
        ("locked/m.ply", PermissionError, r"m.ply: nothing can be written in the folder .*locked"),
        ("m.vtu", ImportError, r"meshio is not installed; install it with: pip install meshio"),
        ("m.obj", ValueError, r"obj holds no label.* per face; use .*npz"),
    ],
)
def test_output_is_refused_before_the_work_as_by_save(tmp_path, monkeypatch, name, error, message):
    (tmp_path / "folder.ply").mkdir()
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "locked")  # root may write anywhere
    monkeypatch.setitem(sys.modules, "meshio", None)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=message) as asked:
        check_output(tmp_path / name, sphere(), label_on="face")
    with pytest.raises(error) as saved:
        save(tmp_path / name, sphere(), label=torch.zeros(80, dtype=torch.long))
    assert str(asked.value) == str(saved.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_output_that_can_be_written(tmp_path):
    check_output(tmp_path / "m.PLY", sphere(), label_on="face")
    check_output(tmp_path / "m.xyz", label_on="vertex")
    assert check_path(tmp_path / "m.PNG", {"png": None}) == "png"
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    from geoattn.data.io import _writers

    def fail(path, mesh):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setitem(_writers._WRITERS, "ply", fail)
    path = write(tmp_path, "m.ply", "old")
    with pytest.raises(OSError, match="disk full"):
        save(path, sphere())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_colors_stay_apart_for_every_eye():
    # Machado et al. 2009, severity 1: protanopia, deuteranopia, tritanopia, on linear RGB
    kinds = np.array(
        [
            np.eye(3),
            [
                [0.152286, 1.052583, -0.204868],
                [0.114503, 0.786281, 0.099216],
                [-0.003882, -0.048116, 1.051998],
            ],
            [
                [0.367322, 0.860646, -0.227968],
                [0.280085, 0.672501, 0.047413],
                [-0.011820, 0.042940, 0.968881],
            ],
            [
                [1.255528, -0.076749, -0.178779],
                [-0.078411, 0.930809, 0.147602],
                [0.004733, 0.691367, 0.303900],
            ],
        ]
    )
    xyz = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.072175],
            [0.0193339, 0.119192, 0.9503041],
        ]
    )
    srgb = LABEL_COLORS / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    for kind in kinds:
        t = np.clip(linear @ kind.T, 0, 1) @ xyz.T / [0.95047, 1, 1.08883]
        f = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
        lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)
        distance = np.linalg.norm(lab[:, None] - lab, axis=-1) + 1e9 * np.eye(len(lab))
        assert distance.min() > 14.5
    assert len(LABEL_COLORS) >= 20


# ------------------------------------------------------------------------------------------- what is kept


def test_obj_keeps_vertices_parts_and_relative_indices(tmp_path):
    path = write(
        tmp_path,
        "m.obj",
        "mtllib missing.mtl\no left\nv 0 0 0 1 0 0\nv 1 0 0 0 1 0\nv 0 1 0 0 0 1\n"
        "vt 0 0\nvt 1 1\nf 1/1 2/2 3/1\no right\nf -1/1 -2/2 -3/1\n"
        "v 5 5 5 1 1 1\nv 9 9 9 0 0 0\nf 1/1 2/2 \\\n4/1 3/1\n",
    )
    data = load(path)
    assert data.pos.shape == (5, 3)
    assert data.face.T.tolist() == [[0, 1, 2], [2, 1, 0], [0, 1, 3], [0, 3, 2]]
    assert data.part.tolist() == [0, 1, 1, 1]
    assert data.part_name == ["left", "right"]
    assert data.color[3].tolist() == [1, 1, 1]
    assert data.uv[1].tolist() == [1, 1]


def test_obj_drops_uv_at_seams_and_keeps_the_vertices(tmp_path):
    path = write(tmp_path, "m.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 1\nf 1/1 2/2 3/1\nf 1/2 3/1 2/2\n")
    data = load(path)
    assert data.pos.shape == (3, 3)
    assert "uv" not in data


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("polygons", [[[0, 1, 2]], [[0, 1, 2, 3]], [[0, 1, 2], [3, 2, 1, 0], [0, 1, 2, 3, 4]]])
def test_ply_polygons_of_either_byte_order(tmp_path, order, polygons):
    pos = np.arange(15, dtype=np.float32).reshape(5, 3)
    endian = "little" if order == "<" else "big"
    header = (
        f"ply\nformat binary_{endian}_endian 1.0\nelement vertex 5\nproperty float x\nproperty float y\n"
        f"property float z\nelement face {len(polygons)}\nproperty list uchar int vertex_index\nend_header\n"
    )
    rows = [struct.pack(f"{order}B{len(row)}i", len(row), *row) for row in polygons]
    path = write(tmp_path, "m.ply", header.encode() + pos.astype(f"{order}f4").tobytes() + b"".join(rows))
    data = load(path)
    assert torch.equal(data.pos, torch.from_numpy(pos))
    assert data.face.T.tolist() == [[r[0], r[i], r[i + 1]] for r in polygons for i in range(1, len(r) - 1)]


def test_ascii_ply_with_mixed_polygons_and_face_attributes(tmp_path):
    header = (
        "ply\nformat ascii 1.0\ncomment hello\nelement vertex 4\nproperty double x\nproperty double y\n"
        "property double z\n"
        "element face 2\nproperty list uchar int vertex_indices\nproperty int label\nend_header\n"
    )
    path = write(tmp_path, "m.ply", header + "0 0 0\n1 0 0\n1 1 0\n0 1 0\n3 0 1 2 7\n4 0 1 2 3 5\n")
    data = load(path)
    assert data.face.T.tolist() == [[0, 1, 2], [0, 1, 2], [0, 2, 3]]
    assert data.label.tolist() == [7, 5, 5]
    assert data.label_on == "face"


def test_scene_is_placed_and_numbered(tmp_path):
    box = trimesh.creation.box()
    mirror = np.diag([-1.0, 1, 1, 1])
    mirror[:3, 3] = (5, 0, 0)
    scene = trimesh.Scene()
    scene.add_geometry(box, node_name="a")
    scene.add_geometry(box, node_name="b", transform=mirror)
    for extension in ("glb", "3mf"):
        path = tmp_path / f"s.{extension}"
        path.write_bytes(scene.export(file_type=extension))
        data = load(path)
        assert data.pos.shape == (16, 3)
        assert sorted(data.part_name) == ["a", "b"]
        assert data.part.bincount().tolist() == [12, 12]
        for part, name in enumerate(data.part_name):
            corners = data.pos[data.face[:, data.part == part]].double()
            volume = (corners[0] * torch.linalg.cross(corners[1], corners[2])).sum() / 6
            assert volume == pytest.approx(1)  # outward, though one is mirrored
            assert corners[..., 0].mean() == pytest.approx(5 if name == "b" else 0)


def test_companion_file_of_gltf(tmp_path):
    files = trimesh.exchange.gltf.export_gltf(trimesh.Scene(trimesh.creation.box()))
    for name, content in files.items():
        write(tmp_path, name, content)
    assert load(tmp_path / "model.gltf").pos.shape == (8, 3)
    companion = next(path for path in tmp_path.iterdir() if path.suffix == ".bin")
    companion.rename(tmp_path.parent / companion.name)
    with pytest.raises(LoadError, match="missing"):
        load(tmp_path / "model.gltf")
    tree = json.loads(files["model.gltf"])
    tree["buffers"][0]["uri"] = f"../{companion.name}"
    write(tmp_path, "model.gltf", json.dumps(tree))
    with pytest.raises(LoadError, match="outside"):
        load(tmp_path / "model.gltf")


def test_surface_cells_of_meshio_formats(tmp_path):
    points = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1.0]])
    mixed = meshio.Mesh(
        points,
        [("line", [[0, 1]]), ("triangle", [[0, 1, 4]]), ("quad", [[0, 1, 2, 3]])],
        cell_data={"label": [np.array([9]), np.array([1]), np.array([2])]},
    )
    for name, kind in (("m.vtu", "vtu"), ("m.vtk", "vtk"), ("m4.vtk", "vtk42")):
        meshio.write(tmp_path / name, mixed, file_format=kind)
        data = load(tmp_path / name)
        assert data.face.T.tolist() == [[0, 1, 4], [0, 1, 2], [0, 2, 3]], name
        assert data.label.tolist() == [1, 2, 2]
    mixed.cell_data = {}
    quads = meshio.Mesh(points, [("quad", [[0, 1, 2, 3]])])
    for kind, written in (("gmsh22", mixed), ("gmsh22", quads), ("gmsh", quads)):
        for binary in (True, False):
            written.write(tmp_path / "m.msh", file_format=kind, binary=binary)
            data = load(tmp_path / "m.msh")
            assert np.array_equal(data.pos, points)
            assert data.face.T.tolist()[-2:] == [[0, 1, 2], [0, 2, 3]]
    meshio.write(tmp_path / "v.vtu", meshio.Mesh(points, [("tetra", [[0, 1, 2, 4]])]))
    with pytest.raises(LoadError, match="tetra"):
        load(tmp_path / "v.vtu")


@pytest.mark.parametrize("extension", ["las", "laz"])
def test_las_far_from_the_origin_keeps_its_shape(tmp_path, extension):
    xyz = np.random.default_rng(0).uniform(0, 10, (200, 3)) + (665187, 5648349, 240)
    las = laspy.LasData(laspy.LasHeader(point_format=3, version="1.2"))
    las.header.scales, las.header.offsets = [1e-3] * 3, [665000, 5648000, 0]
    las.x, las.y, las.z = xyz.T
    las.red = las.green = las.blue = np.linspace(0, 65535, 200).astype(np.uint16)
    las.classification = np.arange(200) % 7
    las.write(tmp_path / f"c.{extension}")
    data = load(tmp_path / f"c.{extension}")
    assert np.abs(data.pos.numpy() + data.origin.numpy() - xyz).max() < 1e-3
    assert data.label.tolist() == [i % 7 for i in range(200)]
    assert data.color.min() == 0
    assert data.color.max() == 1


@pytest.mark.parametrize("size", [1e-6, 1, 1e6])
def test_shapes_of_any_size_far_from_the_origin(tmp_path, size):
    pos = np.random.default_rng(0).uniform(size=(50, 3)) * size + np.array([3, -7, 1]) * size * 1e6
    np.savetxt(tmp_path / "c.xyz", pos, fmt="%.17g")
    data = load(tmp_path / "c.xyz")
    assert np.abs(data.pos.numpy() + data.origin.numpy() - pos).max() < 1e-6 * size


def test_pcd_is_read_and_written_as_by_open3d(tmp_path):
    open3d = pytest.importorskip("open3d")
    pos = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(pos))
    cloud.colors = open3d.utility.Vector3dVector(np.abs(np.sin(pos)))
    for ascii_, compressed in ((True, False), (False, False), (False, True)):
        open3d.io.write_point_cloud(str(tmp_path / "c.pcd"), cloud, write_ascii=ascii_, compressed=compressed)
        data = load(tmp_path / "c.pcd")
        assert np.allclose(data.pos, pos, atol=1e-6)
        assert np.allclose(data.color, np.abs(np.sin(pos)), atol=1 / 255)
    save(tmp_path / "d.pcd", data)
    again = open3d.io.read_point_cloud(str(tmp_path / "d.pcd"))
    assert np.array_equal(np.asarray(again.points, np.float32), data.pos)
    assert np.allclose(again.colors, data.color, atol=1e-6)


def pcd(fields: str, sizes: str, types: str, encoding: str, points: int, body: bytes, counts: str = "") -> bytes:
    counts = counts or " ".join(["1"] * len(fields.split()))
    return (
        f"# .PCD v0.7\nVERSION 0.7\nFIELDS {fields}\nSIZE {sizes}\nTYPE {types}\nCOUNT {counts}\nWIDTH {points}\n"
        f"HEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {points}\nDATA {encoding}\n"
    ).encode() + body


def test_pcd_fields(tmp_path):
    body = b"1 nan nan 5 7 9 0.5 4286611584\n1 2 3 6 8 10 0.25 4278190335\n"
    content = pcd("x y z _ label f intensity rgba", "4 4 4 1 1 4 4 4", "F F F U I F F U", "ascii", 2, body)
    data = load(write(tmp_path, "c.pcd", content))
    assert data.pos.tolist() == [[1, 2, 3]]  # a missing return is left out
    assert data.label.tolist() == [8]
    assert data.intensity.tolist() == [0.25]
    assert data.color.tolist() == [[0, 0, 1, 1]]


def test_pcd_in_lzf_with_copies_that_overlap(tmp_path):
    # "abc", its copy of 12 bytes from 3 back, a zero, 8 copies of it, and 24 more with a long length
    packed = b"\x02abc" + bytes([7 << 5, 3, 2]) + b"\x00\x00" + bytes([6 << 5, 0]) + bytes([7 << 5, 15, 0])
    body = struct.pack("<II", len(packed), 48) + packed
    data = load(write(tmp_path, "c.pcd", pcd("x y z i", "4 4 4 4", "F F F F", "binary_compressed", 3, body)))
    columns = np.frombuffer(b"abc" * 5 + bytes(33), "<f4").reshape(4, 3)
    assert np.array_equal(data.pos.T, columns[:3])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pcd("x y z", "4 4 4", "F F F", "ascii", 1, b"nan 0 0\n"), "no point has coordinates"),
        (pcd("x y z", "4 4 4", "F F F", "ascii", 1, b"inf 0 0\n"), "vertex 0 has a coordinate that is not a finite"),
        (pcd("x y z label", "4 4 4 4", "F F F U", "ascii", 1, b"0 0 0 nan\n"), "label has a value that is no integer"),
        (pcd("x y z", "4 4 4", "F F F", "ascii", 2, b"0 0 0\n0 0\n"), "2 rows for 2 points of 3 numbers"),
        (pcd("x y z", "4 4 4", "F F F", "binary", 2, bytes(23)), "2 points need 24 bytes, 23 follow"),
        (pcd("x y z", "4 4 4", "F F F", "binary", 2, bytes(48), "2 1 1"), "x, y and z must have one number each"),
        (pcd("x y z x", "4 4 4 4", "F F F F", "binary", 1, bytes(16)), "two fields have the same name"),
        (pcd("x y z", "4 4 3", "F F F", "binary", 1, bytes(16)), "unknown type, size or count"),
        (
            pcd("x y z", "4 4 4", "F F F", "binary_compressed", 1, struct.pack("<II", 2, 12) + b"\x20\x09"),
            "the data is damaged: 0 of 12 bytes",
        ),
    ],
)
def test_messages_of_pcd(tmp_path, content, message):
    with pytest.raises(LoadError, match=message):
        load(write(tmp_path, "c.pcd", content))


def test_las_of_any_numbers(tmp_path):
    pos = torch.randn(50, 3)
    for label, intensity, dimensions in (
        (torch.arange(50), torch.arange(50.0), set()),
        (torch.arange(50) - 1, torch.rand(50), {"label", "intensity_float"}),
        (torch.zeros(50, dtype=torch.long), torch.zeros(50), {"label", "intensity_float"}),
    ):
        data = Data(pos=pos, label=label, intensity=intensity, color=torch.rand(50, 3), score=torch.rand(50))
        save(tmp_path / "c.laz", data)
        las = laspy.read(tmp_path / "c.laz")
        assert set(las.point_format.extra_dimension_names) == dimensions | {"score"}
        loaded = load(tmp_path / "c.laz")
        assert torch.equal(loaded.label, label)
        assert torch.equal(loaded.intensity, intensity)
        assert torch.equal(loaded.score, data.score)
        assert torch.allclose(loaded.color, data.color, atol=1 / 65535)
        assert torch.allclose(loaded.pos, pos, atol=1e-8)


@pytest.mark.parametrize(
    ("line", "key"),
    [("1 2 3 255 0 0", "color"), ("1 2 3 0.6 -0.8 0", "normal"), ("1,2,3,9,9,9,255", "color")],
)
def test_xyz_columns(tmp_path, line, key):
    data = load(write(tmp_path, "c.xyz", f"# comment\n{line}\n{line}\n"))
    assert data.pos.tolist() == [[1, 2, 3]] * 2
    assert key in data


def test_process_merges_equal_positions(tmp_path):
    data = sphere()
    save(tmp_path / "m.stl", data)
    merged = load(tmp_path / "m.stl", process=True)
    soup = load(tmp_path / "m.stl")
    assert soup.pos.shape[0] == 3 * data.face.shape[1]
    assert merged.pos.shape == data.pos.shape
    assert torch.equal(merged.pos[merged.face], soup.pos[soup.face])


def test_colors_that_are_not_numbers_are_left_out_with_a_warning(tmp_path):
    path = write(tmp_path, "m.obj", "v 0 0 0 nan 0 0\nv 1 0 0 0 0 0\nv 0 1 0 0 0 0\nf 1 2 3\n")
    with pytest.warns(UserWarning, match="color"):
        data = load(path)
    assert data.face.shape == (3, 1)
    assert "color" not in data


# -------------------------------------------------------------------------------------------------- errors


def test_unknown_extension_lists_the_known(tmp_path):
    for name in ("m.blend", "m.zip", "m"):
        with pytest.raises(LoadError, match=r"3mf.*dae.*xyz"):
            load(write(tmp_path, name, "x"))


@pytest.mark.parametrize("extension", READERS)
def test_files_that_are_not(tmp_path, extension):
    path = tmp_path / f"m.{extension}"
    with pytest.raises(LoadError, match="no such file"):
        load(path)
    path.mkdir()
    with pytest.raises(LoadError, match="directory"):
        load(path)
    path.rmdir()
    for content in (
        b"",
        b"\n",
        b"hello, world\n",
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
        b"PK\x03\x04" + bytes(80),
    ):
        with pytest.raises(LoadError) as error:
            load(write(tmp_path, path.name, content))
        assert path.name in str(error.value)


@pytest.mark.parametrize("extension", MESH)
@pytest.mark.parametrize("claimed", READERS)
def test_content_of_another_format(tmp_path, extension, claimed):
    if extension == claimed:
        return
    save(tmp_path / f"m.{extension}", sphere())
    path = (tmp_path / f"m.{extension}").rename(tmp_path / f"n.{claimed}")
    with pytest.raises(LoadError):
        load(path)


ASCII_PLY = (
    "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
    "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        # files count from 1 (OBJ) or from 0, and so do the messages; lines are counted from 1
        ("m.obj", "# x\nv 0 0 0\nv 1 0 0\nv 0 nan 0\nf 1 2 3\n", "line 4: vertex 3 has a coordinate that is not"),
        ("m.obj", "v 0 0 0\nv 1 0 0\nv 0 1e39 0\nf 1 2 3\n", "line 3: vertex 3 has"),
        ("m.obj", "v 0 0 0\nv 1 0 x\nv 0 1 0\nf 1 2 3\n", "line 2: v has 'x', which is no number"),
        (
            "m.obj",
            "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\nf 1 2 4\n",
            "line 5: the face refers to vertex 4; the file has 3",
        ),
        (
            "m.obj",
            "v 0 0 \\\n0\nv 1 0 0\nv 0 1 0\nf 1 \\\n2 9\n",
            "line 5: the face refers to vertex 9; the file has 3",
        ),
        (
            "m.obj",
            "v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nf 1/1 2/1 3/2\n",
            "line 5: the face refers to vt 2; the file has 1",
        ),
        ("m.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2\n", "line 4: the face has 2 corners"),
        ("m.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 0 1 2\n", "line 4.*counts from 1"),
        ("m.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 c\n", "line 4: 'c' is no index"),
        ("m.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf -1 -2 -4\n", "line 4.*beyond the first"),
        ("m.obj", "v 0 0 0\nv 1 0 0\nv 0 1\nf 1 2 3\n", "line 3: v has 2 numbers, expected 3"),
        (
            "m.off",
            "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 -1\n",
            "line 6: the face refers to vertex -1; the file has 3",
        ),
        (
            "m.off",
            "OFF\n3 1 0\n\n0 0 0\n1 0 0\n0 1 0\n3 0 1 3\n",
            "line 7: the face refers to vertex 3; the file has 3",
        ),
        ("m.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 y\n3 0 1 2\n", "line 5: a vertex has 'y', which is no number"),
        ("m.off", "OFF\n3 1 0\n0 0 0\n1 0 nan\n0 1 0\n3 0 1 2\n", "line 4: vertex 1 has a coordinate"),
        ("m.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n2 0 1\n", "line 6: the face is malformed"),
        ("m.off", "OFF\n3 2 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n", "4 lines follow"),
        ("m.ply", ASCII_PLY + "0 0 0\n1 0 0\n0 1 0\n3 0 1 3\n", "line 13: the face refers to vertex 3; the file has 3"),
        ("m.ply", ASCII_PLY + "0 0 0\n1 0 inf\n0 1 0\n3 0 1 2\n", "line 11: vertex 1 has a coordinate"),
        (
            "m.ply",
            ASCII_PLY + "0 0 0\n1 0\n0 1 0\n3 0 1 2\n",
            "line 11: the vertex has 2 numbers, its header asks for 3",
        ),
        ("m.ply", ASCII_PLY + "0 0 0\n1 0 0\n0 z 0\n3 0 1 2\n", "line 12: it has 'z', which is no number"),
        ("m.xyz", "# x y z\n1 2 3\n4 5\n", "line 3: 2 columns, line 2 has 3"),
        ("m.xyz", "1 2 3\n4 5 w\n", "line 2: it has 'w', which is no number"),
        ("m.xyz", "1 2\n3 4\n", "line 1: 2 columns"),
        ("m.xyz", "1 2 3\n\n4 5 inf\n", "line 3: vertex 1 has a coordinate"),
        ("m.obj", "# nothing\n", "no vertices"),
        ("m.stl", "solid a\nendsolid a\n", "no vertices"),
        ("m.stl", "solid a\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\n", "endsolid"),
    ],
)
def test_messages(tmp_path, name, content, message):
    with pytest.raises(LoadError, match=message) as error:
        load(write(tmp_path, name, content))
    assert name in str(error.value)


@pytest.mark.parametrize("extension", ["glb", "npz", "ply", "stl", "vtk", "vtu"])
def test_truncated_binaries(tmp_path, extension):
    data = sphere()
    save(tmp_path / f"m.{extension}", data)
    raw = (tmp_path / f"m.{extension}").read_bytes()
    whole = load(tmp_path / f"m.{extension}")
    lengths = {*np.linspace(0, len(raw) - 1, 60).astype(int).tolist(), *range(len(raw) - 8, len(raw))}
    for length in sorted(lengths):
        try:
            part = load(write(tmp_path, f"t.{extension}", raw[:length]))
        except LoadError:
            continue
        # only bytes without data, such as the last newline of XML, may be missing
        assert torch.equal(part.pos, whole.pos)
        assert torch.equal(part.face, whole.face)


def _glb(tree: dict, chunk: bytes = b"") -> bytes:
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    body = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(chunk), b"BIN\0") + chunk
    return b"glTF" + struct.pack("<II", 2, 12 + len(body)) + body


def _nested_glb(nodes: list[dict]) -> bytes:
    triangle = np.eye(3, dtype="<f4").tobytes()
    return _glb(
        {
            "buffers": [{"byteLength": 36}],
            "bufferViews": [{"buffer": 0, "byteLength": 36}],
            "accessors": [{"bufferView": 0, "count": 3, "componentType": 5126, "type": "VEC3"}],
            "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
            "nodes": [{"mesh": 0, **node} for node in nodes],
            "scenes": [{"nodes": [0]}],
        },
        triangle,
    )


def _nested_dae(levels: int) -> str:
    nodes = "".join(f'<node id="n{i}">' + f'<instance_node url="#n{i + 1}"/>' * 2 + "</node>" for i in range(levels))
    return (
        '<COLLADA xmlns="http://www.collada.org/2005/11/COLLADASchema" version="1.4.1"><library_nodes>'
        f'{nodes}<node id="n{levels}"/></library_nodes><library_visual_scenes><visual_scene id="s"><node>'
        '<instance_node url="#n0"/></node></visual_scene></library_visual_scenes>'
        '<scene><instance_visual_scene url="#s"/></scene></COLLADA>'
    )


def _las(points: int, offset_bits: int = 0) -> bytes:
    header = bytearray(227)
    header[:4], header[24:26], header[104] = b"LASF", b"\x01\x02", offset_bits
    struct.pack_into("<HII", header, 94, 227, 227, 0)
    struct.pack_into("<HI", header, 105, 20, points)
    return bytes(header) + bytes(800)


def _npz(shape: tuple[int, ...], size: int) -> bytes:
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": shape})
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("pos.npy", member.getvalue() + bytes(size))
    return archive.getvalue()


def _bomb_3mf() -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("3D/3dmodel.model", bytes(2**28))
    return archive.getvalue()


def _nested_3mf(levels: int) -> bytes:
    mesh = "<mesh><vertices><vertex x='0' y='0' z='0'/></vertices><triangles/></mesh>"
    objects = f"<object id='0'>{mesh}</object>"
    for i in range(levels):
        components = f'<component objectid="{i}"/>' * 10
        objects += f"<object id='{i + 1}'><components>{components}</components></object>"
    model = f"<model><resources>{objects}</resources><build><item objectid='{levels}'/></build></model>"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("3D/3dmodel.model", model)
    return archive.getvalue()


def _bomb_vtu() -> bytes:
    packed = zlib.compress(bytes(2**28), 9)
    header = base64.b64encode(struct.pack("<4I", 1, 2**28, 0, len(packed))).decode()
    array = "<DataArray type='Float32' NumberOfComponents='3' format='binary'>"
    array += header + base64.b64encode(packed).decode()
    return (
        "<VTKFile type='UnstructuredGrid' compressor='vtkZLibDataCompressor'><UnstructuredGrid>"
        f"<Piece NumberOfPoints='1' NumberOfCells='0'><Points>{array}</DataArray></Points></Piece>"
        "</UnstructuredGrid></VTKFile>"
    ).encode()


LAUGHS = "<!DOCTYPE x [<!ENTITY a 'ha'>" + "".join(f"<!ENTITY a{i} '{'&a;' * 10}'>" for i in range(9)) + "]>"
PLY = "ply\nformat {} 1.0\nelement vertex {}\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
PCD = "VERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH {0}\nHEIGHT 1\nPOINTS {0}\nDATA {1}\n"
HUGE = 10**9
HOSTILE = {
    "ply binary": ("m.ply", PLY.format("binary_little_endian", HUGE).encode() + bytes(900)),
    "ply ascii": ("m.ply", PLY.format("ascii", HUGE) + "0 0 0\n" * 100),
    "stl": ("m.stl", bytes(80) + struct.pack("<I", 2 * HUGE) + bytes(900)),
    "off": ("m.off", f"OFF\n{HUGE} 1 0\n" + "0 0 0\n" * 100),
    "las": ("m.las", _las(HUGE)),
    "laz": ("m.laz", _las(HUGE, 0x80)),
    "npz header": ("m.npz", _npz((HUGE, 3), 900)),
    "npz bomb": ("m.npz", _npz((2**25, 3), 12 * 2**25)),
    "vtk": (
        "m.vtk",
        f"# vtk DataFile Version 4.2\nx\nBINARY\nDATASET UNSTRUCTURED_GRID\nPOINTS {HUGE} float\n".encode()
        + bytes(900),
    ),
    "vtk grid": (
        "m.vtk",
        "# vtk DataFile Version 4.2\nx\nASCII\nDATASET STRUCTURED_POINTS\n"
        "DIMENSIONS 9999 9999 9999\nORIGIN 0 0 0\nSPACING 1 1 1\n",
    ),
    "msh": (
        "m.msh",
        f"$MeshFormat\n2.2 0 8\n$EndMeshFormat\n$Nodes\n{HUGE}\n1 0 0 0\n$EndNodes\n$Elements\n0\n$EndElements\n",
    ),
    "vtu": (
        "m.vtu",
        f"<VTKFile type='UnstructuredGrid'><UnstructuredGrid><Piece NumberOfPoints='{HUGE}' NumberOfCells='0'/>",
    ),
    "vtu bomb": ("m.vtu", _bomb_vtu()),
    "vtu laughs": ("m.vtu", f"<?xml version='1.0'?>{LAUGHS}<VTKFile>&a8;</VTKFile>"),
    "dae laughs": ("m.dae", f"<?xml version='1.0'?>{LAUGHS}<COLLADA>&a8;</COLLADA>"),
    "dae utf-16": (
        "m.dae",
        f"<?xml version='1.0' encoding='utf-16'?>{LAUGHS}<COLLADA>&a8;</COLLADA>".encode("utf-16"),
    ),
    "3mf bomb": ("m.3mf", _bomb_3mf()),
    "3mf laughs": ("m.3mf", _nested_3mf(9)),
    "3mf cycle": ("m.3mf", _nested_3mf(2).replace(b'objectid="0"', b'objectid="2"')),
    "glb accessor": (
        "m.glb",
        _glb(
            {
                "accessors": [{"count": HUGE, "componentType": 5126, "type": "VEC3"}],
                "bufferViews": [],
                "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
            }
        ),
    ),
    "glb views": (
        "m.glb",
        _glb(
            {
                "buffers": [{"byteLength": 10**6}],
                "bufferViews": [{"buffer": 0, "byteLength": 10**6}] * 2000,
                "accessors": [],
            },
            bytes(10**6),
        ),
    ),
    "glb depth": ("m.glb", _nested_glb([{"children": [i + 1]} for i in range(5000)] + [{}])),
    "glb cycle": ("m.glb", _nested_glb([{"children": [1]}, {"children": [0]}])),
    "dae laughs by nodes": ("m.dae", _nested_dae(40)),
    "glb length": (
        "m.glb",
        b"glTF" + struct.pack("<IIII", 2, 2**32 - 1, 2**32 - 1, 0x4E4F534A) + b"{}" * 400,
    ),
    "pcd binary": ("m.pcd", PCD.format(HUGE, "binary").encode() + bytes(900)),
    "pcd ascii": ("m.pcd", PCD.format(HUGE, "ascii") + "0 0 0\n" * 100),
    "pcd packed": (
        "m.pcd",
        PCD.format(HUGE, "binary_compressed").encode() + struct.pack("<II", 900, 12 * HUGE % 2**32) + bytes(900),
    ),
    "xyz": ("m.xyz", "1 2 3 " * 10**5 + "\n1 2\n"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_in_little_memory(tmp_path, case):
    name, content = HOSTILE[case]
    path = write(tmp_path, name, content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_quietly(tmp_path)  # imports are not counted
        tracemalloc.start()
        try:
            with pytest.raises(LoadError):
                load(path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 2**28


def load_quietly(folder: Path) -> None:
    for extension in ("glb", "obj", "ply", "stl", "vtk", "vtu"):
        save(folder / f"warm.{extension}", sphere())
        load(folder / f"warm.{extension}")


def test_nothing_is_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.write_text, (tmp_path / "owned", "x"))

    for array in (
        np.array([Evil()], dtype=object),
        np.array([(1, Evil())], dtype=[("a", int), ("b", object)]),
    ):
        with (tmp_path / "m.npz").open("wb") as file:
            np.savez(file, pos=np.zeros((3, 3)), evil=array)
        with pytest.raises(LoadError, match="Python objects"):
            load(tmp_path / "m.npz")
    assert not (tmp_path / "owned").exists()


def test_memory_errors_are_load_errors_and_interrupts_are_not(tmp_path, monkeypatch):
    path = write(tmp_path, "m.obj", "v 0 0 0\n")
    for raised, expected in ((MemoryError(), LoadError), (KeyboardInterrupt(), KeyboardInterrupt)):

        def fail(path, raised=raised):
            raise raised

        monkeypatch.setitem(READERS, "obj", fail)
        with pytest.raises(expected):
            load(path)


def test_parsers_are_silent(tmp_path, capfd):
    save(tmp_path / "m.vtu", sphere())
    write(tmp_path, "bad.vtu", (tmp_path / "m.vtu").read_bytes().replace(b"Points", b"Ponits"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path / "m.vtu")
        with pytest.raises(LoadError):
            load(tmp_path / "bad.vtu")
    assert capfd.readouterr() == ("", "")


def test_threads_do_not_disturb_each_other(tmp_path):
    data = sphere()
    for extension in MESH:
        save(tmp_path / f"m.{extension}", data)
    failures = []

    def work() -> None:
        for extension in MESH:
            same = torch.equal(load(tmp_path / f"m.{extension}").face, data.face)
            failures.extend([] if same else [extension])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# ---------------------------------------------------------------------------------------- files of others


def unpack(shared_data: Path, name: str, folder: Path) -> Path:
    archive = next(shared_data.rglob(name), None)
    if archive is None:
        pytest.skip(f"no {name}")
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            target = (folder / member.filename).resolve()
            assert target.is_relative_to(folder.resolve())
        file.extractall(folder)
    return folder


# vertices, faces, as the files state them (faces triangulated); None: refused
TORTURE = {
    "BoxInterleaved.glb": (24, 12), "Duck.glb": (2399, 4212), "Mesh_PrimitiveMode_04.gltf": (4, 2),
    "ballA.off": (1900, 3796), "blue_cube.dae": (8, 12), "comments.off": (8, 12), "whitespace.off": (8, 12),
    "cube.OBJ": (8, 12), "cube_compressed.obj": (8, 12), "empty.obj": None, "empty.ply": None,
    "empty.stl": None,
    "empty_nodes.glb": None, "face_in_group_name.obj": (1, 0), "face_in_group_name_mid_file.obj": (5, 2),
    "emptyIO/obj_points.obj": (8, 0), "emptyIO/ply_points_bin.ply": (8, 0), "emptyIO/stl_empty_bin.stl": None,
    "fuze.obj": (502, 1000), "fuze.ply": (502, 1000), "fuze_ascii.ply": None, "insulated.msh": (67, 111),
    "nancolor.obj": (8, 12), "negative_indices.obj": (8, 12), "notenoughindices.obj": None,
    "points_agisoft.xyz": (100, 0), "points_cloudcompare.xyz": (101, 0), "points_emptyface.ply": (1024, 0),
    "polygonfaces.obj": (5, 3), "reference.ply": (845, 1610),
    "soup.stl": (300, 100), "teapot.stl": (2682, 894),
    "joined_tetrahedra.obj": (5, 8), "two_objects.obj": (12, 16), "unit_cube.STL": (36, 12),
}  # fmt: skip

COMMON = {
    "alligator": 5981, "beetle": 2053, "cheburashka": 13334, "cow": 5804, "fandisk": 12946, "homer": 12000,
    "rocker-arm": 20088, "spot": 5856, "stanford-bunny": 69451, "suzanne": 968, "teapot": 6320, "woody": 1267,
}  # fmt: skip

ODEDSTEIN = {
    "human_man.obj": (6890, 13776), "human_woman.obj": (6890, 13776), "goathead.obj": (2763, 5522),
    "koala_low_resolution.obj": (3560, 7116), "penguin.obj": (3362, 6720),
    "penguin_control_mesh.obj": (201, 398),
    "sphere.obj": (642, 1280), "torus.obj": (2304, 4608), "wingnut.obj": (3047, 6090),
    "hand_lowres.obj": (810, 1602),
    "plane_holes.obj": (8519, 16747),
}  # fmt: skip


def count(path: Path) -> tuple[int, int]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="color is left out")
        data = load(path)
    faces = 0 if data.face is None else data.face.shape[1]
    assert torch.isfinite(data.pos).all()
    assert not faces or (data.face.min() >= 0 and data.face.max() < len(data.pos))
    return len(data.pos), faces


def test_torture_set(shared_data, tmp_path):
    folder = unpack(shared_data, "trimesh_models.zip", tmp_path) / "models"
    tried = 0
    for path in sorted(p for p in folder.rglob("*") if p.suffix[1:].lower() in READERS):
        name = path.relative_to(folder).as_posix()
        expected = TORTURE.get(name, "any")
        tried += 1
        try:
            found = count(path)
        except LoadError:
            assert expected is None or name.startswith("emptyIO/"), name
            continue
        assert expected in ("any", found), name
    assert tried > 90


def test_common_models(shared_data, tmp_path):
    folder = unpack(shared_data, "common_3d_test_models.zip", tmp_path)
    for name, faces in COMMON.items():
        path = next(folder.rglob(f"{name}.obj"))
        lines = sum(line.startswith(b"v ") for line in path.read_bytes().splitlines())
        assert count(path) == (lines, faces)


def test_odedstein_meshes(shared_data, tmp_path):
    folder = unpack(shared_data, "odedstein_meshes.zip", tmp_path)
    for path in folder.rglob("*.obj"):
        lines = sum(line.startswith(b"v ") for line in path.read_bytes().splitlines())
        found = count(path)
        assert found[0] == lines
        assert found == ODEDSTEIN.get(path.name, found)
