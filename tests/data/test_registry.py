"""Data sets by name and by what lies in a folder."""

import zipfile

import pytest
import torch

from geoattn.data import (
    Bodies,
    LabelledFolder,
    MeshCNNDataset,
    MissingSplitError,
    list_datasets,
    load_dataset,
    registry,
)

OBJ = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 1 1 0\nf 1 2 3\nf 3 2 4\n"


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def pets(tmp_path):
    names = [f"{kind}/{split}/{i}.obj" for kind in ("cat", "dog") for split in ("train", "test") for i in range(3)]
    return write(tmp_path / "pets", dict.fromkeys(names, OBJ))


def test_bodies_by_name():
    assert "bodies" in list_datasets()
    train, test = load_dataset("bodies", samples=25), load_dataset("bodies", "test", samples=25)
    assert isinstance(train, Bodies)
    assert (len(train), len(test)) == (25, 2)
    assert train.seed != test.seed
    assert len(load_dataset("bodies", "test", samples=3)) == 1
    assert (len(load_dataset("bodies")), len(load_dataset("bodies", "test"))) == (1000, 100)
    assert train.names == Bodies.names
    assert train.labelled == "face"


def test_a_new_data_set_costs_its_registration(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))
    monkeypatch.setattr(registry, "_LAYOUTS", list(registry._LAYOUTS))

    class Dots(list):
        names = ("left", "right")
        labelled = "whole"

    @registry.register_dataset("dots")
    def _dots(split, samples):
        return Dots(range(samples or 7))

    @registry.register_layout("a folder with dots.txt", lambda path: (path / "dots.txt").exists())
    def _dots_of(path, split, labelled):
        return Dots((path / "dots.txt").read_text().split())

    assert "dots" in list_datasets()
    assert len(load_dataset("dots")) == 7
    (tmp_path / "dots.txt").write_text("1 2 3")
    assert load_dataset(tmp_path) == ["1", "2", "3"]
    with pytest.raises(ValueError, match="'dots' already"):
        registry.register_dataset("dots")(_dots)


@pytest.mark.parametrize("pack", [False, True])
def test_meshcnn_sets_are_recognised(pets, tmp_path, pack):
    parts = {"train/a.obj": OBJ, "seg/a.eseg": "1\n" * 5, "sseg/a.seseg": "1 0\n" * 5}
    write(tmp_path / "parts", parts)
    for name, labelled in (("pets", "whole"), ("parts", "face")):
        path = tmp_path / name
        if pack:
            with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
                for file in path.rglob("*.*"):
                    archive.write(file, file.relative_to(tmp_path))
            path = tmp_path / f"{name}.zip"
        data = load_dataset(str(path))
        assert isinstance(data, MeshCNNDataset)
        assert data.labelled == labelled
    assert load_dataset(path, labelled="edge").labelled == "edge"


def test_a_set_with_a_valid_split_is_not_one_of_meshcnns(pets):
    for kind in ("cat", "dog"):
        write(pets, {f"{kind}/valid/1.obj": OBJ})
    data = load_dataset(pets, "valid")
    assert isinstance(data, LabelledFolder)
    assert (len(data), data.names) == (2, ("cat", "dog"))


def test_some_samples_of_a_set_on_disk_are_spread_over_its_classes(pets):
    data = load_dataset(pets, samples=2)
    assert len(data) == 2
    assert data.names == ("cat", "dog")
    assert data.labelled == "whole"
    assert torch.cat([data[i].y for i in range(2)]).tolist() == [0, 1]
    assert len(load_dataset(pets, samples=100)) == 6


def test_a_path_is_told_from_a_name(pets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pets.rename("bodies")
    assert isinstance(load_dataset("bodies"), Bodies)
    assert isinstance(load_dataset("./bodies"), MeshCNNDataset)


def test_mistakes_are_named(pets, tmp_path):
    with pytest.raises(ValueError, match=r"bodys: no such folder or zip file, and no data set of this name; .*bodies"):
        load_dataset("bodys")
    with pytest.raises(FileNotFoundError, match=r"S3DIS: no such file or folder. S3DIS: get Stanford3dDataset_v1.2_A"):
        load_dataset("S3DIS")
    for samples in (0, -3):
        with pytest.raises(ValueError, match=f"at least 1, got {samples}"):
            load_dataset("bodies", samples=samples)
    with pytest.raises(ValueError, match="train, valid, test; got 'dev'"):
        load_dataset("bodies", "dev")
    with pytest.raises(ValueError, match="face, vertex, edge, whole; got 'faces'"):
        load_dataset("bodies", labelled="faces")
    for data in ("bodies", pets):
        with pytest.raises(MissingSplitError, match="no valid split"):
            load_dataset(data, "valid")
    with pytest.raises(ValueError, match="bodies has a label for each face, not a label for each edge"):
        load_dataset("bodies", labelled="edge")
    with pytest.raises(ValueError, match="pets has one label for each whole sample, not a label for each face"):
        load_dataset(pets, labelled="face")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("nothing")
    for name in ("empty", "file.txt"):
        with pytest.raises(ValueError, match=f"{name}: not a data set; expected MeshCNN's layout"):
            load_dataset(tmp_path / name)
