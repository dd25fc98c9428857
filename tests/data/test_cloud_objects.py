"""Sets of objects, in the layouts they are published in: written here, and the real ones where they are."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch

from geoattn import LoadError
from geoattn.data import MissingSplitError, hold_out, load_dataset
from geoattn.data.datasets.clouds import (
    BIMNet10,
    DALESObjects,
    ModelNet40,
    ScanObjectNN,
    ShapeNetPart,
    ShapeNetPartCap,
)

RANDOM = np.random.default_rng(0)


@pytest.fixture
def bimnet10(tmp_path):
    h5py = pytest.importorskip("h5py")
    for split, count in (("train", 4), ("test", 2)):
        with h5py.File(tmp_path / f"bimnet10_{split}.h5", "w") as file:
            file["data"] = RANDOM.random((count, 8, 3), np.float32)
            file["label"] = np.arange(count, dtype=np.uint8) + 6
    return tmp_path


def test_bimnet10(bimnet10):
    train, test = (load_dataset(bimnet10, split) for split in ("train", "test"))
    assert isinstance(train, BIMNet10)
    assert (len(train), len(test)) == (4, 2)
    assert (train.labelled, train.names[8]) == ("whole", "wall")
    assert train[2].name == "wall_002"
    assert train[2].y.tolist() == [8]
    assert train[2].pos.shape == (8, 3)
    assert train[2].pos.dtype == torch.float32
    with pytest.raises(MissingSplitError, match="no valid split; hold some"):
        load_dataset(bimnet10, "valid")


def test_damaged_hdf5_is_named(bimnet10, monkeypatch):
    h5py = pytest.importorskip("h5py")
    with h5py.File(bimnet10 / "bimnet10_test.h5", "r+") as file:
        del file["label"]
        file["label"] = np.array([3, 10])
    with pytest.raises(LoadError, match=r"bimnet10_test.h5: cloud 1: point 0 has label 10; expected 0 to 9"):
        BIMNet10(bimnet10, "test")[1]
    with h5py.File(bimnet10 / "bimnet10_test.h5", "r+") as file:
        del file["data"]
        file.create_dataset("data", (10**6, 2048, 3), "f4", chunks=True)  # takes no place on the disk
    with pytest.raises(LoadError, match=r"bimnet10_test.h5: data announces 24576000000 bytes"):
        BIMNet10(bimnet10, "test")
    (bimnet10 / "bimnet10_test.h5").write_bytes((bimnet10 / "bimnet10_train.h5").read_bytes()[:700])
    with pytest.raises(LoadError, match=r"bimnet10_test.h5: .*truncated"):
        BIMNet10(bimnet10, "test")
    (bimnet10 / "bimnet10_test.h5").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"test.h5: no such file or folder. BIMNet10: get .* github.com/jingdao"
    ):
        BIMNet10(bimnet10, "test")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"pip install 'geoattn\[points\]'"):
        BIMNet10(bimnet10)


def test_the_real_bimnet10(shared_data):
    pytest.importorskip("h5py")
    if not (shared_data / "points" / "bimnet10").is_dir():
        pytest.skip("no BIMNet10")
    for split, counts in (("train", [11, 11, 23, 24, 29, 8, 16, 11, 19, 13]), ("test", [4, 4, 7, 7, 8, 3, 5, 4, 5, 4])):
        data = load_dataset(shared_data / "points" / "bimnet10", split)
        assert torch.cat([data[i].y for i in range(len(data))]).bincount().tolist() == counts
        assert data[0].pos.norm(dim=1).max() == pytest.approx(1, abs=1e-5)


@pytest.fixture
def dales_objects(tmp_path):
    arrays = {
        "xyz": RANDOM.random((1000, 3)).astype(np.float32),
        "offset": np.arange(0, 1001, 2),
        "object_id": np.arange(500),
        "label": np.repeat(np.arange(5), 100).astype(np.uint8),
    }
    return tmp_path, arrays, lambda **other: np.savez(tmp_path / "dales_objects500_max1024.npz", **{**arrays, **other})


def test_dales_objects(dales_objects):
    path, arrays, write = dales_objects
    write()
    train, test = (load_dataset(path, split) for split in ("train", "test"))
    assert isinstance(test, DALESObjects)
    assert (len(train), len(test)) == (400, 100)
    names = [item.name for item in test]
    assert not set(names) & {item.name for item in train}
    assert names[:3] == ["000", "010", "015"]  # the split is the same for everyone
    assert torch.cat([item.y for item in test]).bincount().tolist() == [20] * 5
    assert test[1].pos.tolist() == arrays["xyz"][20:22].tolist()
    write(offset=np.arange(0, 1001, 2)[::-1])
    with pytest.raises(LoadError, match=r"offset \[501\] must increase from 0 to 1000, for 500 clouds"):
        load_dataset(path)
    write(object_id=np.arange(500)[::-1])
    with pytest.raises(LoadError, match="with object_id // 100 the label"):
        load_dataset(path)
    write(xyz=np.full((1000, 3), np.nan))
    with pytest.raises(LoadError, match=r"object 000: point 0 has the coordinates \[nan, nan, nan\]"):
        load_dataset(path, "test")[0]
    write(label=np.array(["building"] * 500))
    with pytest.raises(LoadError, match=r"max1024.npz: label: expected numbers, got <U8"):
        load_dataset(path)
    write(xyz=np.array([None] * 1000))  # pickled
    with pytest.raises(LoadError, match="Object arrays cannot be loaded"):
        load_dataset(path)


def test_the_real_objects_of_dales(shared_data):
    if not (shared_data / "points" / "dales_objects500").is_dir():
        pytest.skip("no DALES objects")
    for split, counts in (("train", [79, 80, 80, 80, 80]), ("test", [20] * 5)):
        data = load_dataset(shared_data / "points" / "dales_objects500", split)
        assert torch.cat([item.y for item in data]).bincount().tolist() == counts
        assert max(item.pos.size(0) for item in data) == 1024


SKATEBOARD = "0.1 0.2 0.3 1 0 0 44.000000\n0.4 0.5 0.6 0 -1 0 46.000000\n"


@pytest.fixture
def shapenet_part(tmp_path):
    (tmp_path / "train_test_split").mkdir()
    for split, synset in (("train", "02954340"), ("val", "02954340"), ("test", "04225987")):
        (tmp_path / synset).mkdir(exist_ok=True)
        (tmp_path / synset / f"{split}1.txt").write_text(SKATEBOARD.replace("44.", "6.").replace("46.", "7."))
        listed = [f"shape_data/{synset}/{split}1"]
        (tmp_path / "train_test_split" / f"shuffled_{split}_file_list.json").write_text(json.dumps(listed))
    (tmp_path / "04225987" / "test1.txt").write_text(SKATEBOARD)
    return tmp_path


def test_shapenet_part(shapenet_part):
    data = load_dataset(shapenet_part, "test")
    assert isinstance(data, ShapeNetPart)
    assert (data.labelled, len(data.names), len(data.category_names)) == ("vertex", 50, 16)
    assert data.parts_of_category[14] == (44, 45, 46)
    assert sum(data.parts_of_category, ()) == tuple(range(50))
    [sample] = data
    assert sample.name == "04225987/test1"
    assert sample.y.tolist() == [44, 46]
    assert sample.category.tolist() == [14]
    assert data.category_names[14] == "Skateboard"
    assert data.names[44:47] == ("Skateboard 0", "Skateboard 1", "Skateboard 2")
    assert torch.equal(sample.pos, torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]))
    assert sample.normal.tolist() == [[1, 0, 0], [0, -1, 0]]
    assert load_dataset(shapenet_part, "valid")[0].y.tolist() == [6, 7]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SKATEBOARD.replace("46.", "47."), r"test1.txt: point 1 has label 47; parts of Skateboard are 44 to 46"),
        (SKATEBOARD.replace("46.", "-1."), r"test1.txt: point 1 has label -1; parts of Skateboard are 44 to 46"),
        (SKATEBOARD.replace("44.000000", "44.5"), r"test1.txt: point 0 has label 44.5"),
        (SKATEBOARD.replace("0.5", "O.5"), r"test1.txt:2: 'O.5' is no number"),
        (SKATEBOARD + "1 2 3\n", r"test1.txt:3: 3 columns, expected 7"),
        ("1 2 3\n", r"test1.txt:1: 3 columns, expected 7"),
        ("", "test1.txt: no points"),
    ],
)
def test_damaged_shapes_are_named(shapenet_part, text, message):
    (shapenet_part / "04225987" / "test1.txt").write_text(text)
    with pytest.raises(LoadError, match=message):
        load_dataset(shapenet_part, "test")[0]


def test_what_is_missing_of_shapenet_part_is_said(shapenet_part):
    (shapenet_part / "04225987" / "test1.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"test1.txt: no such .*get shapenetcore_partanno.* unpack it"):
        load_dataset(shapenet_part, "test")[0]
    listed = shapenet_part / "train_test_split" / "shuffled_test_file_list.json"
    listed.write_text('["shape_data/04225987/../../secret"]')
    with pytest.raises(LoadError, match=r"shuffled_test_file_list.json: 'shape_data/04225987/../../secret' is not"):
        load_dataset(shapenet_part, "test")
    listed.unlink()
    with pytest.raises(FileNotFoundError, match=r"shuffled_test_file_list.json: no such"):
        load_dataset(shapenet_part, "test")
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such file or folder. ShapeNetPart: get"):
        ShapeNetPart(shapenet_part / "nowhere")


def test_the_caps_of_shapenet_part(tmp_path):
    for split, shapes in (("val", 4), ("test", 2)):
        offset = np.arange(0, 4 * shapes + 1, 4)
        pos, normal = RANDOM.random((2, offset[-1], 3)).astype(np.float32)
        np.savez(
            tmp_path / f"cap_{split}.npz", pos=pos, normal=normal, offset=offset, part_label=6 + np.arange(len(pos)) % 2
        )
    train, test = (load_dataset(tmp_path, split) for split in ("train", "test"))
    assert isinstance(train, ShapeNetPartCap)
    assert (len(train), len(test)) == (4, 2)
    assert test[1].y.tolist() == [6, 7, 6, 7]
    assert test[1].category.tolist() == [2]
    assert torch.equal(test[1].normal, torch.from_numpy(normal[4:8]))
    held = hold_out(train, "0.25")[1]
    assert held.parts_of_category == train.parts_of_category
    assert held.category_names == ShapeNetPart.category_names


def test_the_real_shapes_of_shapenet_part(shared_data, tmp_path):
    folder = shared_data / "points"
    if not (folder / "shapenetpart_cap").is_dir():
        pytest.skip("no ShapeNetPart")
    sizes = []
    for split, counts in (("train", [5, 13259]), ("test", [11, 27812])):
        data = load_dataset(folder / "shapenetpart_cap", split)
        assert [len(data), sum(item.pos.size(0) for item in data)] == counts
        sizes.append(torch.cat([item.y for item in data]).bincount()[6:].tolist())
    assert sizes[1] == [20235, 7577]

    # The official lists of this extract name shapes that are not in it.
    shutil.copytree(folder / "shapenetpart_samples", tmp_path / "samples", copy_function=shutil.copyfile)
    (tmp_path / "samples").chmod(0o755)
    (tmp_path / "samples" / "train_test_split").chmod(0o755)
    shapes = [f"shape_data/{file.parent.name}/{file.stem}" for file in sorted((tmp_path / "samples").glob("0*/*.txt"))]
    (tmp_path / "samples" / "train_test_split" / "shuffled_train_file_list.json").write_text(json.dumps(shapes))
    data = load_dataset(tmp_path / "samples")
    assert [item.pos.size(0) for item in data] == [2598, 2475, 2751, 2794]
    assert [item.y.unique().tolist() for item in data] == [[45], [45], [47, 48], [47, 48, 49]]
    assert [int(item.category) for item in data] == [14, 14, 15, 15]
    assert (data[2].normal.norm(dim=1) - 1).abs().max() < 1e-3


def test_modelnet40_as_text(tmp_path):
    for name, split in (("chair_0001", "train"), ("tv_stand_0300", "test")):
        kind = name.rpartition("_")[0]
        (tmp_path / kind).mkdir()
        (tmp_path / kind / f"{name}.txt").write_text("0.1,0.2,0.3,0,0,1\n0.4,0.5,0.6,0,-1,0\n")
        (tmp_path / f"modelnet40_{split}.txt").write_text(f"{name}\n")
    (tmp_path / "modelnet40_shape_names.txt").write_text("\n".join(ModelNet40.names))
    train, test = (load_dataset(tmp_path, split) for split in ("train", "test"))
    assert isinstance(train, ModelNet40)
    assert (train.labelled, len(train.names), len(set(train.names))) == ("whole", 40, 40)
    assert [train.names[train[0].y], test.names[test[0].y]] == ["chair", "tv_stand"]
    assert train[0].name == "chair_0001"
    assert train[0].normal.tolist() == [[0, 0, 1], [0, -1, 0]]
    with pytest.raises(MissingSplitError):
        load_dataset(tmp_path, "valid")
    (tmp_path / "chair" / "chair_0001.txt").write_text("0.1,0.2,0.3,0,0\n")
    with pytest.raises(LoadError, match=r"chair_0001.txt:1: 5 columns, expected 6"):
        train[0]
    (tmp_path / "modelnet40_train.txt").write_text("chair_0001\nstuhl_1\n")
    with pytest.raises(LoadError, match=r"modelnet40_train.txt: shape 2 is 'stuhl_1'; expected a class and a number"):
        load_dataset(tmp_path)


def test_modelnet40_as_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "shape_names.txt").write_text("\n".join(ModelNet40.names) + "\n")
    pos, normal = RANDOM.random((2, 3, 8, 3)).astype(np.float32)
    for split, parts in (("train", 2), ("test", 1)):
        files = [f"data/modelnet40_ply_hdf5_2048/ply_data_{split}{i}.h5" for i in range(parts)]
        (tmp_path / f"{split}_files.txt").write_text("\n".join(files))
        for i in range(parts):
            with h5py.File(tmp_path / f"ply_data_{split}{i}.h5", "w") as file:
                file["data"], file["normal"] = pos, normal
                file["label"] = np.array([[0], [39], [i]], np.uint8)
    train, test = (load_dataset(tmp_path, split) for split in ("train", "test"))
    assert isinstance(train, ModelNet40)
    assert torch.cat([item.y for item in train]).tolist() == [0, 39, 0, 0, 39, 1]
    assert (train[4].name, len(test)) == ("ply_data_train1_0001", 3)
    assert torch.equal(train[5].pos, torch.from_numpy(pos[2]))
    assert torch.equal(train[5].normal, torch.from_numpy(normal[2]))
    (tmp_path / "ply_data_test0.h5").unlink()
    with pytest.raises(FileNotFoundError, match=r"ply_data_test0.h5: no such .* ModelNet40: get modelnet40_normal"):
        load_dataset(tmp_path, "test")
    (tmp_path / "shape_names.txt").write_text("chair\ntable\n")
    with pytest.raises(LoadError, match=r"shape_names.txt: not the 40 names"):
        load_dataset(tmp_path)


def test_modelnet40_as_meshes(tmp_path):
    for name in ModelNet40.names:
        for split in ("train", "test"):
            (tmp_path / name / split).mkdir(parents=True)
    (tmp_path / "xbox" / "train" / "xbox_0001.off").write_text("OFF3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
    train = load_dataset(tmp_path)
    assert isinstance(train, ModelNet40)
    [mesh] = train
    assert (mesh.name, mesh.face.tolist(), mesh.y.tolist()) == ("xbox_0001", [[0], [1], [2]], [39])


def test_the_real_meshes_of_modelnet(shared_data, tmp_path):
    meshes = shared_data / "points" / "modelnet_off"
    if not meshes.is_dir():
        pytest.skip("no ModelNet")
    for name in ModelNet40.names:
        (tmp_path / name / "test").mkdir(parents=True)
        (tmp_path / name / "train").mkdir()
    for mesh in meshes.iterdir():
        shutil.copyfile(mesh, tmp_path / mesh.name.rpartition("_")[0] / "test" / mesh.name)
    data = load_dataset(tmp_path, "test")
    assert [data.names[mesh.y] for mesh in data] == ["chair", "chair", "toilet"]
    assert [mesh.pos.size(0) for mesh in data] == [2382, 192, 3739]


def test_scanobjectnn(tmp_path):
    h5py = pytest.importorskip("h5py")
    for folder, end, label in (
        ("main_split", "", 3),
        ("main_split", "_augmentedrot_scale75", 14),
        ("main_split_nobg", "", 9),
    ):
        for begin in ("training", "test"):
            (tmp_path / folder).mkdir(exist_ok=True)
            with h5py.File(tmp_path / folder / f"{begin}_objectdataset{end}.h5", "w") as file:
                file["data"] = RANDOM.random((2, 16, 3))
                file["label"], file["mask"] = np.array([0, label]), np.zeros((2, 16))
    for path, variant, name in (
        (tmp_path, "PB_T50_RS", "toilet"),
        (tmp_path / "main_split", "PB_T50_RS", "toilet"),
        (tmp_path / "main_split_nobg", "OBJ", "table"),
    ):
        data = load_dataset(path, "test")
        assert isinstance(data, ScanObjectNN)
        assert (data.variant, data.names[data[1].y]) == (variant, name)
        assert data[1].pos.dtype == torch.float32
    assert ScanObjectNN(tmp_path, variant="OBJ")[1].y.tolist() == [3]
    with pytest.raises(FileNotFoundError, match=r"training_objectdataset_augmentedrot.h5: no such .*get h5_files.zip"):
        ScanObjectNN(tmp_path, variant="PB_T50_R")
    with pytest.raises(ValueError, match=r"variant must be one of PB_T50_RS, .*; got 'hard'"):
        ScanObjectNN(tmp_path, variant="hard")
