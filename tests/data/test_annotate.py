"""Labels for the points of a file: everything else stays as it is there."""

import warnings
from io import BytesIO
from pathlib import Path

import laspy
import numpy as np
import pytest
import torch
import trimesh
from laspy.vlrs.known import WktCoordinateSystemVlr
from torch_geometric.data import Data

from geoattn.data.io import _las, annotate, load, save

N = 40
LABEL = torch.arange(N) % 20
SCORE = torch.linspace(0, 1, N)


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def las_file(path: Path, point_format: int = 3, version: str = "1.2", **extra: np.ndarray) -> Path:
    """A file in which every dimension has numbers of its own, far from the origin."""
    rng = np.random.default_rng(0)
    header = laspy.LasHeader(point_format=point_format, version=version)
    header.scales, header.offsets = [0.01, 0.02, 0.005], [665000, 5648000, -20]
    header.vlrs.append(WktCoordinateSystemVlr('PROJCS["ETRS89 / UTM zone 32N"]'))
    header.vlrs.append(laspy.VLR("someone", 7, "a record", b"whatever"))
    header.system_identifier, header.file_source_id = "a scanner", 77
    if version == "1.4":
        header.evlrs = laspy.vlrs.vlrlist.VLRList([laspy.VLR("someone", 8, "at the end", bytes(70000))])
    header.add_extra_dims([laspy.ExtraBytesParams(name, values.dtype) for name, values in extra.items()])
    las = laspy.LasData(header, laspy.ScaleAwarePointRecord.zeros(N, header=header))
    for name in las.point_format.standard_dimension_names:
        bits = las.point_format.dimension_by_name(name).num_bits
        las[name] = rng.integers(0, 2 ** min(bits, 31) - 1 or 2, N) % (10**6 if name in "XYZ" else 2**16)
    for name, values in extra.items():
        las[name] = values
    las.write(str(path))
    return path


@pytest.mark.parametrize(("point_format", "version"), [(0, "1.2"), (3, "1.2"), (3, "1.4"), (6, "1.4"), (8, "1.4")])
@pytest.mark.parametrize("names", ["a.las b.laz", "a.laz b.las"])
def test_las_keeps_all_but_the_classification(tmp_path, monkeypatch, point_format, version, names):
    monkeypatch.setattr(_las, "CHUNK", 7)
    source, target = (tmp_path / name for name in names.split())
    las_file(source, point_format, version, reflectance=np.linspace(-9, 9, N), echo=np.arange(N, dtype=np.uint16))
    data = load(source)
    annotate(source, target, data, label=LABEL, score=SCORE)
    before, after = laspy.read(source), laspy.read(target)
    for name in before.point_format.dimension_names:
        if name != "classification":
            assert np.array_equal(before[name], after[name]), name
    assert np.array_equal(after.classification, LABEL)
    assert np.array_equal(after.score, SCORE)
    header = after.header
    for name in ("version", "system_identifier", "file_source_id", "creation_date", "generating_software"):
        assert getattr(header, name) == getattr(before.header, name)
    assert header.point_format.id == point_format
    assert np.array_equal(header.scales, before.header.scales)
    assert np.array_equal(header.offsets, before.header.offsets)
    assert [vlr.string for vlr in header.vlrs.get("WktCoordinateSystemVlr")]
    assert [vlr.record_data for vlr in header.vlrs if vlr.record_id == 7] == [b"whatever"]
    if version == "1.4":
        assert [len(vlr.record_data) for vlr in header.evlrs if vlr.record_id == 8] == [70000]
    again = load(target)
    assert torch.equal(again.pos, data.pos)
    assert torch.equal(again.origin, data.origin)
    assert torch.equal(again.label, LABEL)
    assert torch.equal(again.score, SCORE)


@pytest.mark.parametrize(("point_format", "version", "most"), [(1, "1.2", 31), (7, "1.4", 255)])
def test_labels_that_the_classification_does_not_hold(tmp_path, point_format, version, most):
    source, target = las_file(tmp_path / "a.las", point_format, version), tmp_path / "b.las"
    data = load(source)
    for label, dimension in (
        ((LABEL > 3) * most, "classification"),
        ((LABEL > 3) * (most + 1), "label"),
        (LABEL - 1, "label"),
    ):
        annotate(source, target, data, label=label)
        las = laspy.read(target)
        assert ("label" in las.point_format.extra_dimension_names) == (dimension == "label")
        assert np.array_equal(las[dimension], label)
        assert torch.equal(load(target).label, label)
    annotate(target, target, data, label=LABEL, score=SCORE)  # again, in place: the extra dimension goes
    assert torch.equal(load(target).label, LABEL)
    assert laspy.read(target).point_format.extra_dimension_names != ["label"]


def ply_file(path: Path, encoding: str) -> Path:
    types = [("x", "f8"), ("label", "u1"), ("y", "f8"), ("z", "f8"), ("red", "u1"), ("gps", "i2"), ("score", "f8")]
    order = ">" if "big" in encoding else "<"
    rng = np.random.default_rng(0)
    table = np.empty(N, [(name, order + kind) for name, kind in types])
    for name in table.dtype.names:
        table[name] = rng.uniform(0, 100, N)
    table["x"] += 665187.2345678
    names = {"f8": "double", "u1": "uchar", "i2": "short"}
    header = ["ply", f"format {encoding} 1.0", "comment by hand", "element camera 1", "property float f"]
    header += [f"element vertex {N}", *(f"property {names[kind]} {name}" for name, kind in types)]
    header += ["element other 2", "property list uchar int list", "end_header", ""]
    if encoding == "ascii":
        rows = "".join(" ".join(str(value) for value in row) + "\n" for row in table.tolist())
        body = ("35\n" + rows + "2 5 6\n2 7 8\n").encode()
    else:
        other = b"".join(
            np.array(v, order + k).tobytes() for v, k in ((2, "u1"), ([5, 6], "i4"), (2, "u1"), ([7, 8], "i4"))
        )
        body = np.array(35, order + "f4").tobytes() + table.tobytes() + other
    path.write_bytes("\n".join(header).encode() + body)
    return path


@pytest.mark.parametrize("encoding", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_ply_keeps_all_properties_and_elements(tmp_path, encoding):
    source, target = ply_file(tmp_path / "a.ply", encoding), tmp_path / "b.ply"
    data = load(source)
    annotate(source, target, data, label=LABEL - 1, score=SCORE)
    before, after = (
        trimesh.exchange.ply.load_ply(BytesIO(path.read_bytes()))["metadata"]["_ply_raw"] for path in (source, target)
    )
    for name in ("x", "y", "z", "red", "gps"):
        assert np.array_equal(before["vertex"]["data"][name], after["vertex"]["data"][name])
    assert before["camera"] == after["camera"]
    assert source.read_bytes()[-10:] == target.read_bytes()[-10:]  # the last element
    assert b"comment by hand" in target.read_bytes()
    again = load(target)
    assert torch.equal(again.pos, data.pos)
    assert torch.equal(again.label, LABEL - 1)
    assert torch.allclose(again.score, SCORE, atol=1e-8)
    assert target.read_bytes().count(b" score\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "binary"])
def test_pcd_keeps_its_fields_and_its_missing_returns(tmp_path, encoding):
    dtype = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("_", "<u1", (2,)), ("label", "<u2"), ("ring", "<u2")])
    table = np.zeros(2 * N, dtype)
    rng = np.random.default_rng(0)
    for name in "xyz":
        table[name] = np.where(np.arange(2 * N) % 2, rng.normal(size=2 * N), np.nan)
    table["ring"] = rng.integers(0, 99, 2 * N)
    rows = "".join(f"{r['x']} {r['y']} {r['z']} 0 0 {r['label']} {r['ring']}\n" for r in table).encode()
    header = (
        f"VERSION 0.7\nFIELDS x y z _ label ring\nSIZE 4 4 4 1 2 2\nTYPE F F F U U U\nCOUNT 1 1 1 2 1 1\nWIDTH {N}\n"
        f"HEIGHT 2\nVIEWPOINT 1 2 3 1 0 0 0\nPOINTS {2 * N}\nDATA {encoding}\n"
    )
    source, target = tmp_path / "a.pcd", tmp_path / "b.pcd"
    source.write_bytes(header.encode() + (rows if encoding == "ascii" else table.tobytes()))
    data = load(source)
    assert data.num_nodes == N
    annotate(source, target, data, label=LABEL, score=SCORE)
    written = target.read_bytes()
    head, body = written.split(b"DATA binary\n")
    assert b"FIELDS x y z _ ring label score" in head
    assert b"VIEWPOINT 1 2 3 1 0 0 0" in head
    assert f"WIDTH {N}\nHEIGHT 2".encode() in head
    new = np.frombuffer(
        body, [*((n, dtype[n]) for n in ("x", "y", "z", "_", "ring")), ("label", "<i4"), ("score", "<f4")]
    )
    for name in ("x", "y", "z", "ring"):
        assert np.allclose(new[name], table[name], equal_nan=True, rtol=1e-6)
    assert (new["label"][::2] == -1).all()
    assert (new["score"][::2] == 0).all()
    assert np.array_equal(new["label"][1::2], LABEL)
    again = load(target)
    assert torch.equal(again.label, LABEL)
    assert torch.equal(again.score, SCORE)


def test_between_formats_the_rest_is_named(tmp_path):
    source = las_file(tmp_path / "a.las", echo=np.arange(N, dtype=np.uint16))
    data = load(source)
    with pytest.warns(UserWarning, match="gps_time.* echo, coordinate system of a.las are kept by las and laz only"):
        annotate(source, tmp_path / "b.ply", data, label=LABEL, score=SCORE)
    again = load(tmp_path / "b.ply")
    assert torch.equal(again.label, LABEL)
    assert torch.equal(again.score, SCORE)
    for name in ("color", "intensity"):
        assert torch.allclose(again[name], data[name], atol=1 / 255)
    assert torch.allclose(again.pos + again.origin - data.origin, data.pos.double(), atol=1e-3)
    save(tmp_path / "c.xyz", Data(pos=torch.rand(N, 3)))
    annotate(tmp_path / "c.xyz", tmp_path / "c.laz", load(tmp_path / "c.xyz"), label=LABEL, score=SCORE)
    assert torch.equal(load(tmp_path / "c.laz").label, LABEL)


@pytest.mark.parametrize(
    ("label", "score", "message"),
    [
        (LABEL[1:], SCORE, r"label has shape \[39\], expected one number for each of 40"),
        (LABEL, SCORE[1:], r"score has shape \[39\]"),
        (LABEL + 0.5, SCORE, r"label holds float32 from 0.5"),
        (LABEL + 2**31, SCORE, r"label holds int64 .* expected 32-bit integers"),
    ],
)
def test_what_cannot_be_right_is_refused(tmp_path, label, score, message):
    source = las_file(tmp_path / "a.las")
    with pytest.raises(ValueError, match=message):
        annotate(source, tmp_path / "b.las", load(source), label=label, score=score)
    assert [path.name for path in tmp_path.iterdir()] == ["a.las"]


def test_real_scans(tmp_path, shared_data):
    points = shared_data / "points"
    data = load(points / "las" / "autzen_trim.laz")
    annotate(points / "las" / "autzen_trim.laz", tmp_path / "a.laz", data, label=torch.ones(110000, dtype=torch.long))
    again = laspy.read(tmp_path / "a.laz")
    assert (again.classification == 1).all()
    assert len(again.header.vlrs.get("GeoKeyDirectoryVlr")) == 1
    data = load(points / "osd" / "test" / "test55.pcd")
    assert data.num_nodes == 175178
    assert data.label.unique().numel() == 22
    annotate(points / "osd" / "test" / "test55.pcd", tmp_path / "b.pcd", data, label=data.label)
    again = load(tmp_path / "b.pcd")
    assert all(torch.equal(again[name], data[name]) for name in ("pos", "color", "label"))
