"""A user's own folder: labels, splits, classes, and what is said of mistakes."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

import geoattn
from geoattn import LoadError
from geoattn.data import IGNORED, LabelledFolder, MissingSplitError, hold_out, load_dataset
from geoattn.data.datasets.folder_splits import _by_share, divide
from geoattn.data.labelled import LabelledSubset

STRIP = Data(pos=torch.rand(6, 3), face=torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]))  # V = 6, F = 4
CLOUD = Data(pos=torch.rand(6, 3))
ON_VERTICES, ON_FACES = torch.tensor([0, 1, 2, IGNORED, 2, 0]), torch.tensor([2, 0, IGNORED, 1])
OBJ = "".join(f"v {x} {x % 2} 0\n" for x in range(6)) + "f 1 2 3\nf 2 3 4\nf 3 4 5\nf 4 5 6\n"
SQUARE = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n" + "f 1 2 3\nf 1 2 4\nf 1 3 4\nf 2 3 4\n"  # as many faces as vertices


@pytest.fixture
def folder(tmp_path):
    """A folder to be filled with ``write``; what has no class names begins with labels up to 2."""
    return tmp_path / "data"


def write(root, *files, **texts):
    """Meshes in OBJ by their paths, with the text files (``train__a`` is train/a.txt) given."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(OBJ)
    for name, lines in texts.items():
        path = root / f"{name.replace('__', '/')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(map(str, lines)) + "\n")
    return root


def names(data):
    return [data[i].name for i in range(len(data))]


@pytest.mark.parametrize(
    ("extension", "shape", "label"),
    [
        ("glb", STRIP, ON_VERTICES),  # which holds labels of a mesh's vertices only
        *(
            (extension, shape, label)
            for extension in ("ply", "npz", "vtk", "vtu")
            for shape, label in ((STRIP, ON_VERTICES), (STRIP, ON_FACES), (CLOUD, ON_VERTICES))
        ),
    ],
)
def test_what_save_writes_is_a_data_set(folder, extension, shape, label):
    (folder / "train").mkdir(parents=True)
    geoattn.save(folder / "train" / f"a.{extension}", shape, label=label)
    data = load_dataset(folder)
    assert isinstance(data, LabelledFolder)
    assert data[0].y.tolist() == label.tolist()
    assert data[0].y.dtype == torch.int64
    assert torch.equal(data[0].pos, shape.pos)
    assert ("face" in data[0]) == ("face" in shape)
    assert "color" not in data[0]  # save draws the labels in colors, which a network must not see
    assert data.labelled == ("face" if label is ON_FACES else "vertex")
    assert data.names == ("0", "1", "2")


@pytest.mark.parametrize("label", [ON_VERTICES, ON_FACES])
def test_labels_in_a_text_file(folder, label):
    """By number, as numpy writes them, and by name; over those in the file."""
    (folder / "train").mkdir(parents=True)
    geoattn.save(folder / "train" / "a.ply", STRIP, label=label.clamp(max=0))
    texts = {
        "numbers": "\n".join(map(str, label.tolist())),
        "windows": "\ufeff" + "\r\n".join(map(str, label.tolist())) + "\r\n\r\n",
        "numpy": "\n".join(f"{value:.18e}" for value in label.tolist()),
        "names": "\n".join(["seat", "leg", "back", "-1"][value] for value in label.tolist()),
    }
    for text in texts.values():
        (folder / "train" / "a.txt").write_bytes(text.encode())
        (folder / "classes.txt").write_text("seat\nleg\nback\n")
        data = LabelledFolder(folder)
        assert data[0].y.tolist() == label.tolist()
        assert data.labelled == ("face" if label is ON_FACES else "vertex")
        assert data.names == ("seat", "leg", "back")


def test_a_number_that_names_another_class_is_refused(folder):
    write(folder, "train/a.obj", classes=["2", "nan", "arm"], train__a=["nan", 0, -1, 0])
    assert LabelledFolder(folder)[0].y.tolist() == [1, 0, -1, 0]
    write(folder, train__a=[0, 2, 0, 0])
    with pytest.raises(LoadError, match=r"a.txt:2: '2' is class 0 by its name .*, and another by its number"):
        LabelledFolder(folder)
    write(folder, classes=["2", "0", "1"], train__a=[0, 0, 0, 0])
    with pytest.raises(LoadError, match=r"classes.txt: the numbers 0 to 2 in another order; line 1 is .* class 0"):
        LabelledFolder(folder)
    write(folder, classes=["0", "1", "2"], train__a=[0, 2, 0, 1])
    assert LabelledFolder(folder)[0].y.tolist() == [0, 2, 0, 1]


def test_text_files_may_have_their_names_in_capitals(folder):
    write(folder, "train/a.obj", CLASSES=["seat", "leg"], train__a=["leg"] * 4)
    for path in (folder / "CLASSES.txt", folder / "train" / "a.txt"):
        path.rename(path.with_suffix(".TXT"))
    data = LabelledFolder(folder)
    assert (data.names, data[0].y.tolist()) == (("seat", "leg"), [1] * 4)
    write(folder, "b.obj", splits__train=["train/a.obj"])
    (folder / "splits" / "train.txt").rename(folder / "splits" / "train.TXT")
    assert names(LabelledFolder(folder)) == ["train/a"]


def test_parts_are_data_sets(folder):
    """By slices and lists, as of any of PyG's data sets, with the transform."""
    write(folder, **{f"train__{i}": [0, 1, 0, i] for i in range(4)})
    write(folder, *(f"train/{i}.obj" for i in range(4)))
    data = LabelledFolder(folder, transform=lambda sample: sample.update({"seen": True}))
    parts = data[:2], data[::-1], data[[3, 1]], hold_out(data, "0.5")[0][-1:], LabelledSubset(data, [2, 0])[:1]
    assert [names(part) for part in parts[:3]] == [["0", "1"], ["3", "2", "1", "0"], ["3", "1"]]
    assert names(parts[4]) == ["2"]
    for part in parts:
        assert (part.names, part.labelled, part[0].seen) == (data.names, "face", True)
    assert (data[-1].name, len(data), len(list(data))) == ("3", 4, 4)
    with pytest.raises(IndexError):
        data[4]
    assert len(next(iter(DataLoader(data[1:], batch_size=3))).y) == 12


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 2, 3, 1], "labels go up to 3, and no face has label 0. Labels count from 0; what is not"),
        ([0, 1, 255, 255], r"labels go up to 255, and no face has label 2, 3, 4, .... Labels"),
        ([-1] * 4, "nothing is labelled in the train split: each label is -1"),
        ([0, 1, -1, 1], None),
        ([0] * 4, None),
    ],
)
def test_labels_that_are_hardly_meant_are_warned_of(folder, labels, message, recwarn):
    write(folder, "train/a.obj", train__a=labels)
    for _ in range(2):
        LabelledFolder(folder)
    assert [bool(re.search(message or "", str(warning.message))) for warning in recwarn] == [True] * bool(message)
    write(folder, classes=[f"class {i}" for i in range(256)])
    recwarn.clear()
    LabelledFolder(folder)
    assert len(recwarn) == 0


@pytest.mark.parametrize(
    ("files", "lists", "message"),
    [
        (["Train/a.obj", "Test/b.obj"], {}, "Test: the folders of splits are called train, valid, test; call it test"),
        (["training/a.obj", "testing/b.obj"], {}, "call it test, or list .* splits/test.txt"),
        (["train/a.obj", "VAL/b.obj"], {}, "VAL: .* call it valid"),
        (["train/a.obj", "val/b.obj"], {}, "val: .* call it valid"),
        (["cat/Train/a.obj", "dog/Train/b.obj"], {}, "cat/Train: .* call it train"),
        (["cat/train/a.obj", "cat/val/b.obj", "dog/train/c.obj"], {}, "cat/val: .* call it valid"),
        (["train_set/a.obj", "test-data/b.obj"], {}, "test-data: .* call it test"),
        (["a.obj"], {"test": ["a.obj"]}, "test.txt: lists .* move it: splits/test.txt"),
        (["a.obj"], {"Splits__train": ["a.obj"]}, "Splits: the folder of the lists of splits is called splits"),
    ],
)
def test_splits_by_another_name_are_not_divided_by_share(folder, files, lists, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(write(folder, *files, **lists))


def test_what_only_sounds_like_a_split_is_none(folder):
    write(folder, "train/Train/a.obj", "train/Test/b.obj", "test/Train/c.obj", "test/Test/d.obj")
    assert LabelledFolder(folder).names == ("Test", "Train")
    other = folder.with_name("other")
    stems = ["test", "trains", "testimony", *map(str, range(9))]
    write(other, *(f"{stem}.obj" for stem in stems), **{stem: [0, 1, 0, 1] for stem in stems})
    assert len(LabelledFolder(other)) > 0


def test_colors_and_normals_are_kept(folder):
    (folder / "train").mkdir(parents=True)
    normal = torch.nn.functional.normalize(torch.rand(6, 3), dim=1)
    color = torch.tensor([[0.2, 0.4, 0.6]]).repeat(6, 1)
    geoattn.save(folder / "train" / "a.npz", Data(pos=CLOUD.pos, normal=normal, color=color, label=ON_VERTICES))
    write(folder, "train/b.obj", train__b=[0] * 6)
    first, second = LabelledFolder(folder)
    torch.testing.assert_close(first.normal, normal)
    torch.testing.assert_close(first.color, color, atol=1 / 255, rtol=0)
    assert not {"normal", "color"} & set(second.keys())


LAYOUTS = {
    "lists": (
        ["meshes/a.obj", "b.obj", "c.obj"],
        {"splits__train": ["meshes/a.obj"], "splits__test": ["b.obj", ""], "splits__valid": ["c.obj"]},
    ),
    "folders": (["train/a.obj", "test/b.obj", "valid/c.obj"], {}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_by_list_and_by_folder(folder, layout):
    files, lists = LAYOUTS[layout]
    write(folder, *files, **lists, **{file.removesuffix(".obj").replace("/", "__"): [0, 1, 2, 0] for file in files})
    got = {split: names(load_dataset(folder, split)) for split in ("train", "test", "valid")}
    assert got == {"train": ["meshes/a" if layout == "lists" else "a"], "test": ["b"], "valid": ["c"]}


@given(st.sets(st.text(st.characters(codec="utf-8", categories=("L", "N")), min_size=1, max_size=12), max_size=20))
def test_adding_files_moves_none(stems):
    few = sorted(stems)[::2]
    before, after = (
        {split: {file.name for file in files} for split, files in _by_share(inside).items()}
        for inside in ({Path(stem): Path(f"{stem}.obj") for stem in chosen} for chosen in (few, stems))
    )
    assert after["train"] | after["test"] == set(stems)
    assert not after["train"] & after["test"]
    assert all(before[split] <= after[split] for split in before)


def test_a_fifth_of_the_files_is_the_test(folder):
    write(folder, *(f"{i}.obj" for i in range(400)))
    assert 60 < len(divide(folder)["test"]) < 100  # 80, give or take 2.5 standard deviations
    with pytest.raises(MissingSplitError, match=r"no valid split; splits with files: train \(\d+\), test"):
        LabelledFolder(folder, "valid")


@pytest.mark.parametrize("layout", ["train/{0}/{1}.ply", "{0}/train/{1}.ply", "train/{0}/more/{1}.ply"])
def test_classes_by_folder(folder, layout):
    """Their numbers are the same in all splits, also of a class that one of them lacks."""
    for place in (("cat", 1), ("cow", 2), ("dog", 3)):
        path = folder / layout.format(*place)
        path.parent.mkdir(parents=True, exist_ok=True)
        geoattn.save(path, CLOUD)
    (folder / "test" / "dog").mkdir(parents=True)
    geoattn.save(folder / "test" / "dog" / "9.ply", STRIP)
    train, test = load_dataset(folder), load_dataset(folder, "test")
    assert train.names == test.names == ("cat", "cow", "dog")
    assert train.labelled == "whole"
    assert torch.cat([sample.y for sample in train]).tolist() == [0, 1, 2]
    assert (test[0].y.tolist(), test[0].name) == ([2], "dog/9")
    (folder / "classes.txt").write_text("dog\ncat\nbird\ncow\n")
    assert torch.cat([sample.y for sample in load_dataset(folder)]).tolist() == [1, 3, 0]
    assert names(hold_out(train, "cat")[1]) == [train[0].name]


def test_classes_by_folder_are_divided_by_share(folder):
    write(folder, *(f"{kind}/{i}.obj" for kind in ("cat", "dog") for i in range(20)))
    train, test = load_dataset(folder), load_dataset(folder, "test")
    assert len(train) + len(test) == 40
    assert train.names == ("cat", "dog")


def test_files_in_folders_that_have_labels_are_labelled_by_these(folder):
    write(folder, "train/one/a.obj", "train/two/b.obj", train__one__a=[0, 1, 0, 1], train__two__b=[0, 1, 0, 1])
    assert load_dataset(folder).labelled == "face"
    assert load_dataset(folder, labelled="whole").names == ("one", "two")


def test_classes_without_names_are_those_of_all_splits(folder):
    write(folder, "train/a.obj", "test/b.obj", train__a=[0, 1, 0, 1], test__b=[0, 1, 4, -1])
    with pytest.warns(UserWarning, match="no face has label 2, 3. Labels count from 0"):
        assert LabelledFolder(folder).names == LabelledFolder(folder, "test").names == tuple("01234")


def test_as_many_faces_as_vertices(folder):
    """Another file decides, or the caller."""
    write(folder, train__a=[0, 1, 0, 1])
    (folder / "train" / "a.obj").write_text(SQUARE)
    with pytest.raises(ValueError, match=r"as many faces as vertices; .*labelled=.face. .* --labelled"):
        LabelledFolder(folder)
    assert LabelledFolder(folder, labelled="face").labelled == "face"
    write(folder, "train/b.obj", train__b=[0, 1, 0, 1, 0, 0])
    assert LabelledFolder(folder).labelled == "vertex"


def test_all_splits_have_labels_for_the_same(folder):
    texts = {"train__a": [0] * 6, "test__b": [0] * 4}
    write(folder, "train/a.obj", "test/b.obj", classes=["x", "y"], **texts)
    with pytest.raises(LoadError, match=r"b.obj: its labels are for each face, .* as those of .*a.obj"):
        LabelledFolder(folder, "test")


def test_hidden_files_are_not_samples(folder):
    write(folder, "train/a.obj", "train/._a.obj", ".trash/b.obj", train__a=[0, 1, 0, 1])
    assert names(LabelledFolder(folder)) == ["a"]


CLASSES = ["seat", "leg", "back"]


@pytest.mark.parametrize(
    ("files", "texts", "message"),
    [
        (
            ["train/a.obj"],
            {"train__a": [0, 1, 3, 0]},
            r"a.txt:3: label 3; classes.txt has 0 \(seat\) to 2 \(back\)",
        ),
        (["train/a.obj"], {"train__a": [0, 1, -2, 0]}, "a.txt:3: label -2; classes.txt has"),
        (["train/a.obj"], {"train__a": [0, 1.5, 0, 0]}, "a.txt:2: label 1.5 is not an integer"),
        (["train/a.obj"], {"train__a": [0, "nan", 0, 0]}, "a.txt:2: label nan is not an integer"),
        (["train/a.obj"], {"train__a": [0, 10**30, 0, 0]}, "a.txt:2: label 10+; classes.txt has"),
        (["train/a.obj"], {"train__a": [0, "arm", 0, 0]}, r"a.txt:2: 'arm' is neither an integer nor a name in .*leg"),
        (["train/a.obj"], {"train__a": [0, "", 0, 0]}, "a.txt:2: an empty line; write -1"),
        (["train/a.obj"], {"train__a": [0, 1]}, "a.txt: 2 labels; a.obj needs 6 for its vertices or 4 for its faces"),
        (["train/a.obj"], {}, "a.obj: no labels: no attribute 'label', and no a.txt beside it"),
        (["train/a.obj"], {"train__a": []}, "a.txt: 0 labels"),
        (
            ["train/a.obj", "train/b.obj"],
            {"train__a": [0] * 6, "train__b": [0] * 4},
            "b.obj: its labels are for each face, not for each vertex as those of .*a.obj",
        ),
        (["train/a.obj", "test/b.obj", "c.obj"], {}, "c.obj: in none of the folders train, valid, test"),
        (["a.obj", "a.off"], {"a": [0] * 4}, "a.o.*: a.o.* beside it would be the same sample"),
        (["test/a.obj"], {}, r"no train split; splits with files: test \(1\). Put files into train/"),
        (["a.obj"], {"splits__train": ["b.obj"]}, "train.txt:1: .*b.obj: no such file; paths are relative to"),
        (["a.obj"], {"splits__train": ["a.obj", "./a.obj"]}, "train.txt:2: ./a.obj is in .*train.txt:1 already"),
        (
            ["a.obj"],
            {"splits__train": ["a.obj"], "splits__test": ["a.obj"]},
            "train.txt:1: a.obj is in .*test.txt:1 already",
        ),
        (["a.obj"], {"splits__val": ["a.obj"]}, "val.txt: expected train.txt, valid.txt, test.txt"),
        (["a.obj"], {"splits__train": ["a.txt"], "a": [0]}, "train.txt:1: a.txt: unknown extension"),
        (["a.obj"], {"splits__train": []}, "the train split is empty; splits with files: none"),
        (["train/seat/a.obj", "train/arm/a.obj"], {}, "arm/a.obj: the folder arm is not in classes.txt"),
    ],
)
def test_mistakes_are_named(folder, files, texts, message):
    with pytest.raises(ValueError, match=message):
        LabelledFolder(write(folder, *files, classes=CLASSES, **texts))


def test_names_without_a_list_of_names_are_named(folder):
    write(folder, "train/a.obj", train__a=["foot", 0, 0, 0])
    with pytest.raises(LoadError, match=r"a.txt:1: 'foot' is neither .*: write the names into a file classes.txt"):
        LabelledFolder(folder)


def test_wrong_attributes_are_named(folder):
    (folder / "train").mkdir(parents=True)
    path = folder / "train" / "a.npz"
    pos = CLOUD.pos.numpy()
    for label, message in (
        (np.array([0, 0, 0.5, 1, 2, 3]), "a.npz: vertex 2: label 0.5 is not an integer"),
        (
            np.array([0, 0, 1, 1, 2, 65535]),
            "vertex 5: label 65535; there may be 1000 classes without classes.txt",
        ),
    ):
        np.savez(path, pos=pos, label=label)
        with pytest.raises(LoadError, match=message):
            LabelledFolder(folder)
    geoattn.save(path, CLOUD, label=ON_VERTICES)
    with pytest.raises(LoadError, match="for each vertex, not for each face as asked for"):
        LabelledFolder(folder, labelled="face")
    with pytest.raises(ValueError, match="a label for each vertex, not a label for each edge"):
        load_dataset(folder, labelled="edge")
    with pytest.raises(ValueError, match="'vertex', 'face' or 'whole', got 'edge'"):
        LabelledFolder(folder, labelled="edge")
    path.write_bytes(b"broken")
    with pytest.raises(LoadError, match=r"a\.npz"):
        LabelledFolder(folder)


def test_class_folders_need_two(folder):
    write(folder, "train/one/a.obj")
    with pytest.raises(ValueError, match="expected labels, or folders of 2 classes or more; found one"):
        LabelledFolder(folder)
    write(folder, "train/two/a.obj", "train/c.obj")
    with pytest.raises(LoadError, match=r"c.obj: no labels"):
        LabelledFolder(folder, labelled=None)
    with pytest.raises(ValueError, match=r"c.obj: not in a class's folder"):
        LabelledFolder(folder, labelled="whole")


def test_text_files_in_another_encoding_are_named(folder):
    write(folder, "train/a.obj", train__a=[0] * 4, classes=["a", "b"], splits__train=["train/a.obj"])
    for name in ("classes.txt", "splits/train.txt", "train/a.txt"):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(kept.decode().encode("utf-16"))
        with pytest.raises(LoadError, match=f"{name}: not a text file in UTF-8"):
            LabelledFolder(folder)
        (folder / name).write_bytes(kept)
    assert len(LabelledFolder(folder)) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [("a\n\nb", "classes.txt:2: an empty line"), ("a\na", "2: 'a' is there twice"), ("a", "found 1")],
)
def test_class_names_are_checked(folder, text, message):
    write(folder, "train/a.obj", train__a=[0] * 4)
    (folder / "classes.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        LabelledFolder(folder)
