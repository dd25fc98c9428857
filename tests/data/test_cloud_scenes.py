"""Sets of rooms, streets and tiles, in the layouts they are published in: written here, and snippets where they are."""

import json

import laspy
import numpy as np
import pytest
import torch
from torch_geometric.data import Data

import geoattn
from geoattn import LoadError
from geoattn.data import MissingSplitError, load_dataset
from geoattn.data.datasets.clouds import DALES, S3DIS, NuScenes, ScanNet, SemanticKITTI

pytestmark = pytest.mark.filterwarnings("ignore:.* of the .* of the:UserWarning")
RANDOM = np.random.default_rng(0)


def write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, np.ndarray):
        np.save(file, content) if file.suffix == ".npy" else content.tofile(file)
    else:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


# ------------------------------------------------------------------------------------------------------------ S3DIS


@pytest.fixture
def s3dis(tmp_path):
    for area in range(1, 7):
        room = tmp_path / f"Area_{area}" / "office_1"
        write(room / "Annotations" / "chair_1.txt", "1 2 3 0 51 255\n4 5 6 255 0 0\n")
        write(room / "Annotations" / "stairs_2.txt", "7 8 9 0 0 0\n")
        write(room / "office_1.txt", "the same points again\n")
        write(tmp_path / f"Area_{area}" / f"Area_{area}_alignmentAngle.txt", "office_1 90\n")
    write(tmp_path / "Area_5" / "hallway_10" / "Annotations" / "floor_1.txt", "0 0 0 1 2 3\n")
    write(tmp_path / "Area_5" / "hallway_9" / "Annotations" / "board_1.txt", "0 0 0 1 2 3\n")
    return tmp_path


def test_s3dis(s3dis):
    train, test = (load_dataset(s3dis, split) for split in ("train", "test"))
    assert isinstance(train, S3DIS)
    assert (train.labelled, len(train.names)) == ("vertex", 13)
    assert [room.name for room in train] == [f"Area_{area}/office_1" for area in (1, 2, 3, 4, 6)]
    assert [room.name for room in test] == ["Area_5/hallway_9", "Area_5/hallway_10", "Area_5/office_1"]
    assert train[0].pos.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert torch.allclose(train[0].color, torch.tensor([[0, 0.2, 1], [1, 0, 0], [0, 0, 0]]))
    assert [test.names[i] for i in train[0].y] == ["chair", "chair", "clutter"]
    assert [room.name for room in S3DIS(s3dis, "test", test_area=2)] == ["Area_2/office_1"]
    with pytest.raises(MissingSplitError, match="no valid split"):
        load_dataset(s3dis, "valid")


@pytest.mark.parametrize(
    ("damaged", "whole"),
    [
        ("1 2 3 185\x00187 5", "1 2 3 185 187 5"),
        ("1 2 3 103.0\x100000 0 0", "1 2 3 103.000000 0 0"),
        ("1 -9.1\x160 3 0 0 0", "1 -9.160 3 0 0 0"),
    ],
)
def test_bytes_of_s3dis_that_lost_a_bit_are_repaired(s3dis, damaged, whole):
    for area, line in ((1, damaged), (2, whole)):
        write(s3dis / f"Area_{area}" / "office_1" / "Annotations" / "chair_1.txt", line + "\r\n")
    repaired, expected, *_ = load_dataset(s3dis)
    assert torch.equal(repaired.pos, expected.pos)
    assert torch.equal(repaired.color, expected.color)


def test_damage_in_s3dis_is_named(s3dis):
    annotations = s3dis / "Area_1" / "office_1" / "Annotations"
    write(annotations / "chair_1.txt", "1 2 3 0 0 0\n1 2 3 0 0 300\n")
    with pytest.raises(LoadError, match=r"Area_1/office_1: colors go from 0 to 300, not 0 to 255"):
        load_dataset(s3dis)[0]
    write(annotations / "chair_1.txt", "1 2 3 0 0 0\n1 2 3 0 0\n")
    with pytest.raises(LoadError, match=r"chair_1.txt:2: 5 columns, expected 6"):
        load_dataset(s3dis)[0]
    write(annotations / "chair_1.txt", "1 2 3 0 0 0x1\n")
    with pytest.raises(LoadError, match=r"chair_1.txt:1: '0x1' is no number"):
        load_dataset(s3dis)[0]
    (annotations / "chair_1.txt").rename(annotations / "char_1.txt")
    with pytest.raises(LoadError, match=r"char_1.txt: 'char' is none of the classes ceiling"):
        load_dataset(s3dis)[0]
    (s3dis / "Area_5").rename(s3dis / "area5")
    with pytest.raises(
        FileNotFoundError, match=r"Area_5: no such .* S3DIS: get Stanford3dDataset_v1.2_Aligned_Version"
    ):
        load_dataset(s3dis, "test")


def test_s3dis_as_pointcept_keeps_it(tmp_path):
    pos, normal = RANDOM.random((2, 4, 3)).astype(np.float32)
    color = RANDOM.integers(0, 256, (4, 3)).astype(np.uint8)
    for area in range(1, 7):
        room = tmp_path / f"Area_{area}" / "office_1"
        label = np.array([[area], [12], [-1], [0]], np.int16)
        for key, array in {"coord": pos, "color": color, "segment": label, "normal": normal}.items():
            write(room / f"{key}.npy", array)
    data = load_dataset(tmp_path, "test")
    assert isinstance(data, S3DIS)
    [room] = data
    assert torch.equal(room.pos, torch.from_numpy(pos))
    assert torch.equal(room.normal, torch.from_numpy(normal))
    assert torch.equal((255 * room.color).round().byte(), torch.from_numpy(color))
    assert room.y.tolist() == [5, 12, -1, 0]
    write(tmp_path / "Area_5" / "office_1" / "segment.npy", np.array([0, 1, 2]))
    with pytest.raises(LoadError, match=r"office_1: labels \[3\] for 4 points"):
        data[0]
    np.save(tmp_path / "Area_5" / "office_1" / "segment.npy", np.array([None] * 4), allow_pickle=True)
    with pytest.raises(LoadError, match=r"segment.npy: .*Python objects"):
        data[0]


# ---------------------------------------------------------------------------------------------------------- ScanNet


@pytest.fixture
def scannet(tmp_path):
    """Three scans of three splits, of four vertices each, which are in the segments 7, 7, 8, 9."""
    pos = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]])
    face, color = torch.tensor([[0, 1], [1, 3], [2, 2]]), torch.tensor([[0, 0.2, 0.4, 1]] * 4)
    for name, folder in (("scene0000_01", "scans"), ("scene0011_00", "scans"), ("scene0707_00", "scans_test")):
        scan = tmp_path / folder / name
        scan.mkdir(parents=True)
        geoattn.save(scan / f"{name}_vh_clean_2.ply", Data(pos=pos, face=face, color=color))
        if folder == "scans":
            painted = scan / f"{name}_vh_clean_2.labels.ply"
            geoattn.save(painted, Data(pos=pos, face=face), label=torch.tensor([1, 1, 39, 40]))  # 40: no class
            write(scan / f"{name}_vh_clean_2.0.010000.segs.json", {"segIndices": [7, 7, 8, 9]})
            groups = [{"label": "wall", "segments": [7]}, {"label": "doorframe", "segments": [8]}]
            groups.append({"label": "not in the map", "segments": [9]})
            write(scan / f"{name}.aggregation.json", {"segGroups": groups})
    rows = ["id\traw_category\tnyu40id", "1\twall\t1", "161\tdoorframe\t8", "1191\tdoorframe\t39"]
    write(tmp_path / "scannetv2-labels.combined.tsv", "\n".join(rows))
    return tmp_path


def test_scannet(scannet):
    with pytest.warns(UserWarning, match="1 of the 1201 scans of the train split"):
        train = load_dataset(scannet)
    assert isinstance(train, ScanNet)
    [scan] = train
    assert scan.name == "scene0000_01"
    assert [train.names[i] for i in scan.y[:3]] == ["wall", "wall", "otherfurniture"]
    assert scan.y[3] == -1
    assert scan.pos.shape == (4, 3)
    assert torch.allclose(scan.color, torch.tensor([[0, 0.2, 0.4]] * 4))
    assert scan.normal.tolist() == [[0, 0, 1]] * 4
    assert "face" not in scan
    assert [scan.name for scan in load_dataset(scannet, "valid")] == ["scene0011_00"]
    with pytest.raises(MissingSplitError, match=r'not published; measure on valid. ScanNet\(path, "test"\) reads'):
        load_dataset(scannet, "test")
    [scan] = ScanNet(scannet, "test")
    assert scan.name == "scene0707_00"
    assert scan.y.tolist() == [-1] * 4


def test_scannet_by_its_aggregation(scannet):
    scan = scannet / "scans" / "scene0000_01"
    many = ScanNet(scannet, classes=200)
    assert len(many.names) == len(set(many.names)) == 200
    y = many[0].y.tolist()
    assert [many.names[i] for i in y[:3]] == ["wall", "wall", "doorframe"]
    assert y[3] == -1
    (scan / "scene0000_01_vh_clean_2.labels.ply").unlink()
    few = ScanNet(scannet)
    assert [few.names[i] for i in few[0].y[:3]] == ["wall", "wall", "door"]
    write(scan / "scene0000_01.aggregation.json", {"segGroups": [{"label": "wall"}]})
    with pytest.raises(LoadError, match=r"scene0000_01.aggregation.json: expected a field 'segments', a list"):
        few[0]
    write(scan / "scene0000_01_vh_clean_2.0.010000.segs.json", {"segIndices": [1, 2]})
    with pytest.raises(LoadError, match=r"segs.json: segIndices \[2\] for the 4 vertices"):
        few[0]
    (scannet / "scannetv2-labels.combined.tsv").unlink()
    write(scan / "scene0000_01_vh_clean_2.0.010000.segs.json", {"segIndices": [1, 2, 3, 4]})
    with pytest.raises(FileNotFoundError, match=r"combined.tsv: no such .* ScanNet: get the scans"):
        few[0]
    with pytest.raises(ValueError, match="classes must be 20 or 200, got 40"):
        ScanNet(scannet, classes=40)


def test_scannet_as_pointcept_keeps_it(tmp_path):
    arrays = {"coord": RANDOM.random((3, 3)), "normal": RANDOM.random((3, 3)), "color": np.full((3, 3), 51)}
    arrays |= {"segment20": np.array([0, -1, 19]), "segment200": np.array([0, 199, -1])}
    for split, name in (("train", "scene0000_00"), ("val", "scene0011_00")):
        for key, array in arrays.items():
            write(tmp_path / split / name / f"{key}.npy", array)
    [scan] = load_dataset(tmp_path, "valid")
    assert (scan.name, scan.y.tolist()) == ("scene0011_00", [0, -1, 19])
    assert scan.color.tolist() == [[pytest.approx(0.2)] * 3] * 3
    assert ScanNet(tmp_path, classes=200)[0].y.tolist() == [0, 199, -1]
    write(tmp_path / "train" / "scene0000_00" / "segment20.npy", np.array([0, 255, 19]))
    with pytest.raises(LoadError, match="scene0000_00: point 1 has label 255; expected 0 to 19, or -1"):
        load_dataset(tmp_path)[0]
    with pytest.raises(FileNotFoundError, match=r"test: no such file or folder. ScanNet: get"):
        ScanNet(tmp_path, "test")


# ---------------------------------------------------------------------------------------------------- SemanticKITTI


@pytest.fixture
def kitti(tmp_path):
    for sequence in ("00", "08", "11"):
        for sweep in ("000000", "000001"):
            folder = tmp_path / "dataset" / "sequences" / sequence
            write(folder / "velodyne" / f"{sweep}.bin", np.arange(16, dtype="<f4") / 8)
            if sequence != "11":
                instance = np.array([3, 0, 9, 0], "<u4") << 16
                write(folder / "labels" / f"{sweep}.label", instance + np.array([10, 0, 254, 60], "<u4"))
    return tmp_path


def test_semantic_kitti(kitti):
    with pytest.warns(UserWarning, match="1 of the 10 sequences of the train split"):
        data = load_dataset(kitti)
    assert isinstance(data, SemanticKITTI)
    assert (len(data), len(data.names), data[1].name) == (2, 19, "00/000001")
    assert data[0].pos[1].tolist() == [0.5, 0.625, 0.75]
    assert data[0].intensity.tolist() == [0.375, 0.875, 1.375, 1.875]
    assert data[0].y.tolist() == [0, -1, 5, 8]
    assert [data.names[i] for i in data[0].y[2:]] == ["person", "road"]
    moving = SemanticKITTI(kitti / "dataset", "valid", moving=True)
    assert [moving.names[i] for i in moving[0].y[2:]] == ["moving-person", "road"]
    assert len(moving.names) == 25
    assert SemanticKITTI(kitti, "test")[0].y.tolist() == [-1] * 4


def test_damage_in_semantic_kitti_is_named(kitti):
    data = load_dataset(kitti)
    folder = kitti / "dataset" / "sequences" / "00"
    write(folder / "labels" / "000000.label", np.array([10, 10, 3, 10], "<u4"))
    with pytest.raises(LoadError, match=r"000000.label: point 2 has label 3, which is none of the set's"):
        data[0]
    write(folder / "labels" / "000000.label", np.array([10, 10], "<u4"))
    with pytest.raises(LoadError, match=r"000000.label: 2 labels for the 4 points of 000000.bin"):
        data[0]
    (folder / "labels" / "000000.label").unlink()
    with pytest.raises(FileNotFoundError, match=r"000000.label: no such .* data_odometry_labels.zip"):
        data[0]
    write(folder / "velodyne" / "000000.bin", np.arange(15, dtype="<f4"))
    with pytest.raises(LoadError, match=r"000000.bin: 60 bytes, expected a multiple of 16"):
        data[0]
    (folder / "velodyne").rename(folder / "points")
    with pytest.raises(FileNotFoundError, match=r"00/velodyne: no such .* data_odometry_velodyne.zip"):
        SemanticKITTI(kitti)


def test_the_real_sweep_of_semantic_kitti(shared_data):
    if not (shared_data / "points" / "semantickitti_mini").is_dir():
        pytest.skip("no SemanticKITTI")
    [sweep] = load_dataset(shared_data / "points" / "semantickitti_mini")
    assert sweep.pos.shape == (50, 3)
    assert 0 <= sweep.intensity.min() <= sweep.intensity.max() <= 1
    assert sweep.y.unique().tolist() == [-1, 12, 14, 15, 17]  # building, vegetation, trunk, pole


# --------------------------------------------------------------------------------------------------------- nuScenes


def write_nuscenes(root, version="v1.0-trainval", scenes=("scene-0001", "scene-0003")):
    tables = root / version
    write(tables / "scene.json", [{"token": f"s{name}", "name": name} for name in scenes])
    samples = [{"token": f"{name}{i}", "scene_token": f"s{name}"} for name in scenes for i in range(2)]
    write(tables / "sample.json", samples)
    names = ["noise", "animal", "vehicle.car", "static.other"]
    others = sorted({category for some in NuScenes.categories.values() for category in some} - set(names))
    write(tables / "category.json", [{"name": name, "index": i} for i, name in enumerate([*names, *others])])
    data, labels = [], []
    for i, sample in enumerate(samples):
        token = f"t{i}"
        for folder, key in (("samples/LIDAR_TOP", True), ("sweeps/LIDAR_TOP", False), ("samples/RADAR_FRONT", True)):
            row = {"token": token if "samples/L" in folder else f"x{i}", "sample_token": sample["token"]}
            data.append(row | {"is_key_frame": key, "filename": f"{folder}/n__{9 - i}.pcd.bin"})
        write(root / data[-3]["filename"], np.array([[1, 2, 3, 255, 0], [4, 5, 6, 51, 31]], "<f4"))
        if version != "v1.0-test":
            file = f"lidarseg/{version}/{token}_lidarseg.bin"
            labels.append({"token": token, "sample_data_token": token, "filename": file})
            write(root / file, np.array([2, i % 2], np.uint8))
    (tables / "sample_data.json").write_text(json.dumps(data, indent=0))
    if labels:
        write(tables / "lidarseg.json", labels)
    return root


def test_nuscenes(tmp_path):
    root = write_nuscenes(tmp_path)
    train, valid = (load_dataset(root, split) for split in ("train", "valid"))
    assert isinstance(train, NuScenes)
    assert len(train.names) == 16
    assert [sweep.name for sweep in train] == ["scene-0001/t1", "scene-0001/t0"]  # by time
    assert [sweep.name for sweep in valid] == ["scene-0003/t3", "scene-0003/t2"]
    sweep = train[1]
    assert sweep.pos.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert sweep.intensity.tolist() == [1, pytest.approx(0.2)]
    assert sweep.y.tolist() == [train.names.index("car"), -1]
    with pytest.raises(FileNotFoundError, match=r"v1.0-test: no such .* NuScenes: get"):
        NuScenes(root, "test")


def test_nuscenes_test_and_mini(tmp_path):
    root = write_nuscenes(tmp_path / "test", "v1.0-test", ["scene-0077"])
    assert NuScenes(root, "test")[0].y.tolist() == [-1, -1]
    root = write_nuscenes(tmp_path / "mini", "v1.0-mini", ["scene-0061", "scene-0103"])
    assert {sweep.name[:10] for sweep in load_dataset(root)} == {"scene-0061"}
    assert {sweep.name[:10] for sweep in load_dataset(root, "valid")} == {"scene-0103"}


def test_damage_in_nuscenes_is_named(tmp_path):
    root = write_nuscenes(tmp_path)
    write(root / "lidarseg" / "v1.0-trainval" / "t0_lidarseg.bin", np.array([2], np.uint8))
    with pytest.raises(LoadError, match=r"t0_lidarseg.bin: 1 labels for the 2 points of n__9.pcd.bin"):
        load_dataset(root)[1]
    write(root / "lidarseg" / "v1.0-trainval" / "t0_lidarseg.bin", np.array([2, 99], np.uint8))
    with pytest.raises(LoadError, match=r"t0_lidarseg.bin: point 1 has label 99"):
        load_dataset(root)[1]
    tables = root / "v1.0-trainval"
    write(tables / "lidarseg.json", [{"sample_data_token": "t0", "filename": "f"}])
    with pytest.raises(LoadError, match=r"lidarseg.json: no labels for the sweep t1 of scene-0001"):
        load_dataset(root)
    write(tables / "category.json", [{"name": "noise"}])
    with pytest.raises(LoadError, match=r"category.json: expected a list of rows with name, index; one has no index"):
        load_dataset(root)
    (tables / "lidarseg.json").unlink()
    write(tables / "sample.json", [{"token": "a", "scene_token": "b"}])
    with pytest.raises(LoadError, match=r"sample.json: a sample of no scene"):
        load_dataset(root)
    (tables / "sample.json").write_text("[{")
    with pytest.raises(LoadError, match=r"sample.json: Expecting property name"):
        load_dataset(root)


def test_the_real_sweep_of_nuscenes(shared_data, tmp_path):
    file = shared_data / "points" / "nuscenes" / "LIDAR_TOP_1532402927647951.pcd.bin"
    if not file.is_file():
        pytest.skip("no nuScenes")
    root = write_nuscenes(tmp_path, "v1.0-test", ["scene-0077"])
    (root / "samples" / "LIDAR_TOP" / "n__9.pcd.bin").write_bytes(file.read_bytes())
    sweep = NuScenes(root, "test")[1]
    assert sweep.pos.shape == (34688, 3)
    assert sweep.pos.norm(dim=1).max() < 120
    assert 0 <= sweep.intensity.min() < sweep.intensity.max() <= 1


# ------------------------------------------------------------------------------------------------------------ DALES


def ply(file, element, columns, kind="binary_little_endian"):
    kinds = {"f8": "double", "f4": "float", "i4": "int", "u2": "ushort"}
    table = np.empty(len(columns["x"]), [(name, values.dtype.newbyteorder("<")) for name, values in columns.items()])
    for name, values in columns.items():
        table[name] = values
    header = ["ply", f"format {kind} 1.0", f"element {element} {len(table)}"]
    header += [f"property {kinds[values.dtype.str[1:]]} {name}" for name, values in columns.items()]
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(" ".join(map(str, row)) for row in table.tolist()) + "\n"
    body = text.encode() if kind == "ascii" else table.tobytes()
    file.write_bytes("\n".join([*header, "end_header", ""]).encode() + body)


def test_dales(tmp_path):
    pos = dict(zip("xyz", RANDOM.random((3, 3)), strict=True))
    objects = pos | {"intensity": np.array([0, 13107, 65535], "u2"), "sem_class": np.array([0, 1, 8], "i4")}
    ply(tmp_path / "train" / "5080_54400_new.ply", "testing", objects)
    ply(tmp_path / "train" / "5080_54435.ply", "vertex", pos | {"class": np.array([5, 5, 2], "i4")}, "ascii")
    las = laspy.create(point_format=3, file_version="1.2")
    las.header.scales, las.header.offsets = [0.01] * 3, [500_000, 5_400_000, 0]
    las.x, las.y, las.z = np.array([[500_000.5, 500_001], [5_400_000, 5_400_002.25], [3, 4]])
    las.classification, las.intensity = [1, 2], [0, 65535]
    (tmp_path / "test").mkdir()
    las.write(tmp_path / "test" / "5095_54440.las")

    with pytest.warns(UserWarning, match="2 of the 29 tiles of the train split"):
        train = load_dataset(tmp_path)
    assert isinstance(train, DALES)
    first, second = train
    assert first.y.tolist() == [-1, 0, 7]
    assert first.name == "5080_54400_new"
    assert first.intensity.tolist() == [0, pytest.approx(0.2), 1]
    assert torch.allclose(first.pos.T, torch.tensor(np.array(list(pos.values())), dtype=torch.float32))
    assert [train.names[i] for i in second.y] == ["power lines", "power lines", "vegetation"]
    assert torch.allclose(second.pos, first.pos)
    assert "intensity" not in second
    [tile] = load_dataset(tmp_path, "test")
    assert tile.y.tolist() == [0, 1]
    assert tile.intensity.tolist() == [0, 1]
    assert (tile.pos + tile.origin).tolist() == [[500_000.5, 5_400_000, 3], [500_001, 5_400_002.25, 4]]


def test_damage_in_dales_is_named(tmp_path):
    pos = dict(zip("xyz", RANDOM.random((3, 3)), strict=True))
    file = tmp_path / "train" / "5080_54435.ply"
    ply(file, "testing", pos | {"sem_class": np.array([1, 9, 1], "i4")})
    with pytest.raises(LoadError, match=r"5080_54435.ply: point 1 has label 9; expected 0 \(unknown\) to 8"):
        DALES(tmp_path)[0]
    ply(file, "testing", pos)
    with pytest.raises(LoadError, match=r"5080_54435.ply: no labels: expected the property sem_class"):
        DALES(tmp_path)[0]
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(LoadError, match=r"5080_54435.ply: the header announces more"):
        DALES(tmp_path)[0]
    file.write_text("ply\nformat ascii 1.0\nelement vertex 1\nproperty list uchar int x\nend_header\n1 1\n")
    with pytest.raises(LoadError, match=r"5080_54435.ply: expected points first"):
        DALES(tmp_path)[0]
    with pytest.raises(FileNotFoundError, match=r"test: no such file or folder. DALES: get dales_semantic"):
        load_dataset(tmp_path, "test")
