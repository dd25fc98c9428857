"""Damaged files of every format: loading gives a consistent sample or a LoadError, and never hangs."""

import base64
import contextlib
import io
import random
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import laspy
import meshio
import numpy as np
import pytest
import torch
import trimesh
from torch_geometric.data import Data

from geoattn.data.io import LoadError, load, save

pytestmark = pytest.mark.filterwarnings("ignore:.* leaves out:UserWarning")

CASES = 200
SLOW_CASES = 4  # most start a process

SPHERE = trimesh.creation.icosphere(subdivisions=0)


def saved(folder: Path, extension: str, data: Data, **attributes: torch.Tensor) -> bytes:
    save(folder / f"seed.{extension}", data, **attributes)
    return (folder / f"seed.{extension}").read_bytes()


def own_seeds(folder: Path, extension: str) -> list[bytes]:
    """What our writers write: meshes and clouds, with and without attributes."""
    pos = torch.tensor(SPHERE.vertices, dtype=torch.float32)
    face = torch.tensor(SPHERE.faces.T.copy())
    color = torch.linspace(0, 1, 36).view(12, 3)
    mesh = Data(pos=pos, face=face, normal=torch.nn.functional.normalize(pos), color=color)
    cloud = Data(pos=pos, color=color)
    seeds = []
    for data in (mesh, cloud):
        for attributes in ({}, {"label": torch.arange(12)}, {"label": torch.arange(20), "scalar": pos[:, 0]}):
            with contextlib.suppress(ValueError):  # the format cannot hold it
                seeds.append(saved(folder, extension, data, **attributes))
    return seeds


def meshio_seeds(folder: Path, extension: str, kinds: list[tuple[str, dict]]) -> list[bytes]:
    built = meshio.Mesh(SPHERE.vertices, [("triangle", SPHERE.faces)])
    seeds = []
    for kind, options in kinds:
        built.write(folder / f"seed.{extension}", file_format=kind, **options)
        seeds.append((folder / f"seed.{extension}").read_bytes())
    return seeds


def scene() -> trimesh.Scene:
    scene = trimesh.Scene()
    scene.add_geometry(SPHERE, node_name="a")
    scene.add_geometry(SPHERE, node_name="b", transform=np.diag([2.0, 2, 2, 1]))
    return scene


def gltf() -> bytes:
    files = trimesh.exchange.gltf.export_gltf(scene(), merge_buffers=True)
    content = next(value for key, value in files.items() if key.endswith(".bin"))
    uri = b"data:application/octet-stream;base64," + base64.b64encode(content)
    return re.sub(rb'"uri":\s*"[^"]*"', lambda _: b'"uri":"' + uri + b'"', files["model.gltf"])


def las_seeds(folder: Path, extension: str) -> list[bytes]:
    seeds = own_seeds(folder, extension)
    for version, point_format in (("1.2", 3), ("1.4", 7)):
        las = laspy.LasData(laspy.LasHeader(point_format=point_format, version=version))
        las.x, las.y, las.z = np.random.default_rng(0).normal(size=(3, 50))
        las.red, las.classification = np.arange(50) * 1000, np.arange(50) % 5
        las.write(folder / f"seed.{extension}")
        seeds.append((folder / f"seed.{extension}").read_bytes())
    return seeds


def pcd_seeds(folder: Path) -> list[bytes]:
    seeds = own_seeds(folder, "pcd")
    header = (
        b"VERSION 0.7\nFIELDS x y z label\nSIZE 4 4 4 2\nTYPE F F F U\nCOUNT 1 1 1 1\nWIDTH 6\nHEIGHT 2\nPOINTS 12\n"
    )
    rows = "".join(f"{x:.6f} {y:.6f} {z:.6f} {i}\n" for i, (x, y, z) in enumerate(SPHERE.vertices))
    columns = SPHERE.vertices.astype("<f4").T.tobytes() + np.arange(12, dtype="<u2").tobytes()
    packed = b"".join(bytes([31]) + columns[i : i + 32] for i in range(0, 160, 32)) + b"\x07" + columns[160:]
    sizes = len(packed).to_bytes(4, "little") + len(columns).to_bytes(4, "little")
    return [*seeds, header + b"DATA ascii\n" + rows.encode(), header + b"DATA binary_compressed\n" + sizes + packed]


MIXED_PLY = (
    b"ply\nformat binary_big_endian 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
    b"element face 2\nproperty list uchar int vertex_indices\nend_header\n"
    + np.arange(12, dtype=">f4").tobytes()
    + b"\x03"
    + np.array([0, 1, 2], ">i4").tobytes()
    + b"\x04"
    + np.array([0, 1, 2, 3], ">i4").tobytes()
)
OBJ = (
    b"o a\nv 0 0 0 1 0 0\nv 1 0 0 0 1 0\nv 0 1 0 0 0 1\nv 1 1 0 1 1 1\nvt 0 0\nvt 1 1\nvn 0 0 1\n"
    b"f 1/1/1 2/2/1 3/1/1\no b\nf -4//1 -3//1 -2//1 -1//1\n"
)
COFF = b"COFF\n4 2 0\n0 0 0 255 0 0 255\n1 0 0 0 255 0 255\n0 1 0 0 0 255 255\n1 1 0 9 9 9 255\n3 0 1 2\n4 0 1 3 2\n"
BINARY = [("gmsh22", {"binary": True}), ("gmsh", {"binary": True})]
ASCII = [("gmsh22", {"binary": False}), ("gmsh", {"binary": False})]
VTK = [(kind, {"binary": binary}) for kind in ("vtk42", "vtk51") for binary in (True, False)]
VTU = [("vtu", {"binary": False}), ("vtu", {"compression": None}), ("vtu", {"compression": "lzma"})]

SEEDS: dict[str, Callable[[Path], list[bytes]]] = {
    "3mf": lambda folder: [scene().export(file_type="3mf")],
    "dae": lambda folder: [trimesh.exchange.dae.export_collada(SPHERE)],
    "glb": lambda folder: [*own_seeds(folder, "glb"), scene().export(file_type="glb")],
    "gltf": lambda folder: [gltf()],
    "las": lambda folder: las_seeds(folder, "las"),
    "laz": lambda folder: las_seeds(folder, "laz"),
    "msh": lambda folder: meshio_seeds(folder, "msh", BINARY + ASCII),
    "npz": lambda folder: own_seeds(folder, "npz"),
    "obj": lambda folder: [*own_seeds(folder, "obj"), OBJ],
    "off": lambda folder: [*own_seeds(folder, "off"), COFF],
    "pcd": pcd_seeds,
    "ply": lambda folder: [*own_seeds(folder, "ply"), SPHERE.export(file_type="ply", encoding="ascii"), MIXED_PLY],
    "stl": lambda folder: [*own_seeds(folder, "stl"), SPHERE.export(file_type="stl_ascii").encode()],
    "vtk": lambda folder: own_seeds(folder, "vtk") + meshio_seeds(folder, "vtk", VTK),
    "vtu": lambda folder: own_seeds(folder, "vtu") + meshio_seeds(folder, "vtu", VTU),
    "xyz": lambda folder: own_seeds(folder, "xyz"),
}

NUMBERS = [b"0", b"-1", b"1", b"3", b"99999999999", b"1e400", b"nan", b"inf", b"4294967295", b"x", b"1" + b"0" * 22]
WORDS = [0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**40, 2**63 - 1, 2**64 - 1]


def damage(rng: random.Random, content: bytes) -> bytes:
    """Flip, cut off, repeat, delete and swap bytes; replace words and written numbers."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        if not data:
            break
        at = rng.randrange(min(len(data), 400) if rng.random() < 0.5 else len(data))
        end = at + rng.randrange(1, 40)
        kind = rng.randrange(9)
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del data[rng.randrange(len(data)) :]
        elif kind == 3:
            data[at:at] = data[at:end]
        elif kind == 4:
            del data[at:end]
        elif kind == 5:
            other = rng.randrange(len(data))
            here, there = bytes(data[at:end]), bytes(data[other : other + end - at])
            if len(here) == len(there):
                data[at:end], data[other : other + end - at] = there, here
        elif kind == 6:
            width = rng.choice([1, 2, 4, 8])
            word = rng.choice(WORDS) % 256**width
            data[at : at + width] = word.to_bytes(width, rng.choice(["little", "big"]))
        elif numbers := list(re.finditer(rb"-?\d+(\.\d+)?", bytes(data[:4000]))):
            number = rng.choice(numbers)
            near = b"%d" % (int(float(number[0][:15])) + rng.choice([-1, 1]))
            data[number.start() : number.end()] = rng.choice([near, *NUMBERS])
    return bytes(data)


def damage_inside(rng: random.Random, content: bytes) -> bytes:
    """Damage a member of an archive, so that its checksum is right."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(packed, "w") as new:
        chosen = rng.choice(old.namelist())
        for name in old.namelist():
            new.writestr(name, damage(rng, old.read(name)) if name == chosen else old.read(name))
    return packed.getvalue()


def assert_consistent(data: Data) -> None:
    num_vertices = len(data.pos)
    assert num_vertices > 0
    assert data.pos.dtype == torch.float32
    assert data.pos.shape == (num_vertices, 3)
    rows = {num_vertices}
    if data.face is not None:
        assert data.face.dtype == torch.int64
        assert data.face.shape[0] == 3
        assert data.face.min() >= 0
        assert data.face.max() < num_vertices
        rows.add(data.face.shape[1])
    for key, value in data.items():
        if isinstance(value, torch.Tensor):
            assert not value.is_floating_point() or torch.isfinite(value).all(), key
            assert key in ("face", "origin") or len(value) in rows, key


@pytest.mark.parametrize("extension", SEEDS)
def test_damaged_files(tmp_path, extension):
    seeds = SEEDS[extension](tmp_path)
    path = tmp_path / f"m.{extension}"
    for seed in seeds:
        path.write_bytes(seed)
        assert_consistent(load(path))
    refused = 0
    cases = SLOW_CASES if extension == "laz" else CASES
    for case in range(cases):
        rng = random.Random(f"{extension} {case}")
        seed = rng.choice(seeds)
        inside = seed.startswith(b"PK") and rng.random() < 0.7
        path.write_bytes(damage_inside(rng, seed) if inside else damage(rng, seed))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert_consistent(load(path))
        except LoadError as error:
            refused += path.name in str(error)
        except BaseException as error:
            raise AssertionError(f"case {case} of {extension}: {error!r}") from error
    assert refused > 0
