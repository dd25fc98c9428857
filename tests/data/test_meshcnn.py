"""Sets in MeshCNN's layout: written by hand, and the real ones where they are."""

import zipfile

import pytest
import torch

from geoattn import LoadError
from geoattn.data import Bodies, MeshCNNDataset, MissingSplitError
from geoattn.geometry import edges

OBJ = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 1 1 0\nf 1 2 3\nf 3 2 4\n"  # edges 01 12 02 | 13 23
LABELS = [1, 2, 2, 3, 3]


@pytest.fixture
def parts(tmp_path):
    root = tmp_path / "parts"
    for folder in ("train", "test", "seg", "sseg"):
        (root / folder).mkdir(parents=True)
    for split, stem in (("train", "b"), ("train", "a"), ("test", "c")):
        (root / split / f"{stem}.obj").write_text(OBJ)
        (root / "seg" / f"{stem}.eseg").write_text("\n".join(map(str, LABELS)))
        (root / "sseg" / f"{stem}.seseg").write_text("\n".join("0.5 0.5 0" if i < 3 else "0 0 1" for i in range(5)))
    (root / "seg" / "no_mesh.eseg").write_text("1")
    return root


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent))
    return path


@pytest.mark.parametrize("pack", [False, True])
def test_segmentation(parts, tmp_path, pack):
    path = zipped(parts, tmp_path / "parts.zip") if pack else parts
    train, test = (MeshCNNDataset(path, split) for split in ("train", "test"))
    assert [item.name for item in (train[0], train[1])] == ["a", "b"]
    assert len(train) == 2
    assert len(test) == 1
    assert test.names == ("1", "2", "3")
    assert test.labelled == "face"
    assert test[0].edge_y.tolist() == [0, 1, 1, 2, 2]
    assert test[0].edge_soft.shape == (5, 3)
    assert test[0].y.tolist() == [1, 2]  # the majority of (0, 1, 1) and of (1, 2, 2)
    assert MeshCNNDataset(path, labelled="edge")[0].y.tolist() == [0, 1, 1, 2, 2]
    # Vertex 0 has edges 0 and 1: the smaller of two equals. Vertex 1 has 0, 1, 2.
    assert MeshCNNDataset(path, labelled="vertex")[0].y.tolist() == [0, 0, 1, 2]


def test_classification(tmp_path):
    for name in ("dog", "cat"):
        for split in ("train", "test"):
            (tmp_path / "animals" / name / split).mkdir(parents=True)
            (tmp_path / "animals" / name / split / "T1.obj").write_text(OBJ)
    data = MeshCNNDataset(zipped(tmp_path / "animals", tmp_path / "animals.zip"), "test")
    assert data.labelled == "whole"
    assert data.names == ("cat", "dog")
    assert [data[i].y.tolist() for i in range(2)] == [[0], [1]]


def test_a_class_without_test_meshes_keeps_its_number(tmp_path):
    for place in ("ant/train", "cat/train", "cat/test"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "T1.obj").write_text(OBJ)
    train, test = MeshCNNDataset(tmp_path), MeshCNNDataset(tmp_path, "test")
    assert train.names == test.names == ("ant", "cat")
    assert (len(test), test[0].y.tolist()) == (1, [1])


def test_only_human_seg_has_the_names_of_body_parts(parts, tmp_path):
    """Eight classes alone do not make a set one of bodies; names are those of classes.txt, unless they are numbers."""
    for file in (parts / "sseg").iterdir():
        file.write_text("1 0 0 0 0 0 0 0\n" * 5)
    numbers = tuple(map(str, range(1, 9)))
    assert MeshCNNDataset(parts).names == numbers
    named = tuple("abcdefgh")
    (parts / "classes.txt").write_text("\n".join(named))
    assert MeshCNNDataset(parts).names == named
    (parts / "classes.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"classes.txt: 2 names for 8 classes"):
        MeshCNNDataset(parts)
    (parts / "classes.txt").write_text("\n".join(numbers))  # as MeshCNN writes it
    assert MeshCNNDataset(parts).names == numbers
    body = parts.rename(tmp_path / "human_seg")
    assert MeshCNNDataset(body).names == Bodies.names
    assert MeshCNNDataset(zipped(body, tmp_path / "any_name.zip")).names == Bodies.names


def test_transform_is_applied(parts):
    data = MeshCNNDataset(parts, transform=lambda mesh: mesh.pos * 2)
    assert data[0].max() == 2


def test_damage_is_named(parts, tmp_path):
    (parts / "seg" / "c.eseg").write_text("1\n2\n")
    with pytest.raises(LoadError, match=r"c.eseg: 2 lines for the 5 edges"):
        MeshCNNDataset(parts, "test")
    (parts / "seg" / "c.eseg").write_text("1\n2\nx\n1\n1")
    with pytest.raises(LoadError, match=r"c.eseg"):
        MeshCNNDataset(parts, "test")
    (parts / "seg" / "c.eseg").write_text("1\n2\n9\n1\n1")
    with pytest.raises(LoadError, match=r"c.eseg: labels must be 1 to 3"):
        MeshCNNDataset(parts, "test")
    (parts / "seg" / "c.eseg").unlink()
    with pytest.raises(LoadError, match=r"c.eseg"):
        MeshCNNDataset(parts, "test")
    with pytest.raises(FileNotFoundError, match="no such folder or zip file"):
        MeshCNNDataset(tmp_path / "nothing")
    with pytest.raises(ValueError, match="found neither"):
        MeshCNNDataset(parts / "seg")
    with pytest.raises(ValueError, match="split must be"):
        MeshCNNDataset(parts, "validation")
    with pytest.raises(MissingSplitError, match="no valid split"):
        MeshCNNDataset(parts, "valid")
    with pytest.raises(ValueError, match="expected a folder or a zip file"):
        MeshCNNDataset(parts / "train" / "a.obj")


def test_archives_stay_in_their_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("../outside.obj", OBJ)
    with pytest.raises(ValueError, match="outside the folder"):
        MeshCNNDataset(tmp_path / "bad.zip")
    assert not (tmp_path.parent / "outside.obj").exists()


@pytest.mark.parametrize(
    ("name", "split", "meshes", "per_label"),
    [
        ("meshcnn_human_seg", "test", 18, [4178, 3142, 2743, 3639, 10232, 7301, 4914, 4351]),
        ("meshcnn_coseg_aliens", "test", 29, [16221, 14946, 20392, 13691]),
        ("meshcnn_coseg_vases", "test", 45, [10403, 10856, 39096, 7145]),
        ("shrec_16", "test", 120, None),
    ],
)
def test_the_real_sets(shared_data, name, split, meshes, per_label):
    data = MeshCNNDataset(shared_data / "mesh" / f"{name}.zip", split)
    assert len(data) == meshes
    if per_label is None:
        assert torch.bincount(torch.cat([data[i].y for i in range(meshes)])).tolist() == [4] * 30
        return
    items = [data[i] for i in range(meshes)]
    assert torch.bincount(torch.cat([item.edge_y for item in items])).tolist() == per_label
    agreeing = torch.cat([(item.edge_y[edges(item.face).face_edge] == item.y).sum(0) for item in items])
    assert (agreeing < 2).sum() <= 1  # one face of one alien has three different labels
