"""The command line, called as a user does."""

import json

import pytest
import trimesh

import geoattn
from geoattn.cli import main
from geoattn.data import Bodies


@pytest.fixture
def person(tmp_path):
    path = tmp_path / "person.obj"
    geoattn.save(path, Bodies(1, seed=3)[0])
    return path


def test_segment_writes_what_it_is_asked_for(person, tmp_path, capsys):
    ply, png, html = (tmp_path / name for name in ("parts.ply", "parts.png", "parts.html"))
    assert main(["segment", str(person), "-o", str(ply), "--picture", str(png), "--page", str(html)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*Bodies.names, "parts.ply", "parts.png", "parts.html"))
    found = geoattn.load(ply)
    assert found.label.shape == (found.face.size(1),)
    assert found.label.unique().tolist() == list(range(8))
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "lower arm" in html.read_text()


def test_info_says_what_may_go_wrong(tmp_path, capsys):
    box = trimesh.creation.box()
    assert main(["info", str(export(box, tmp_path / "box.obj"))]) == 0
    printed = capsys.readouterr().out
    assert "note" not in printed
    assert all(word in printed for word in ("vertices  8", "faces  12", "components  1", "Euler number  2", "area  6"))

    box.faces = [*box.faces[1:], (0, 0, 1)]
    bad = trimesh.util.concatenate(
        [box, trimesh.creation.box(transform=trimesh.transformations.translation_matrix((5, 0, 0)))]
    )
    assert main(["info", str(export(bad, tmp_path / "bad.obj"))]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("faces have no area", "the surface is open", "1 more components"))
    assert main(["info", str(export(trimesh.PointCloud([[0, 0, 0], [1, 2, 3.0]]), tmp_path / "points.ply"))]) == 0
    assert "a point cloud" in capsys.readouterr().out


def export(shape, path):
    shape.export(path)
    return path


def test_train_evaluate_and_segment_with_the_result(person, tmp_path, capsys):
    folder, small = str(tmp_path / "run"), ["--channels", "16", "--blocks", "1", "--latents", "4"]
    train = ["train", "segmentation", "--data", "bodies", "--meshes", "4", "-o", folder, "--copies", "1", *small]
    assert main([*train, "--epochs", "2"]) == 0
    figures = json.loads((tmp_path / "run" / "test.json").read_text())
    assert 0 < figures["mean_iou"] < figures["accuracy"] < 1
    assert main(["evaluate", f"{folder}/last", "--data", "bodies", "--meshes", "4"]) == 0
    assert f"{figures['accuracy']:.2%}" in capsys.readouterr().out
    assert main([*train, "--epochs", "2"]) == 2  # there is a run already
    assert "resume" in capsys.readouterr().err
    assert main([*train, "--epochs", "3", "--resume"]) == 0
    assert "3 epochs" in capsys.readouterr().out
    assert main(["segment", str(person), "--model", f"{folder}/last", "-o", str(tmp_path / "out.ply")]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["segment", "nothing.obj", "-o", "out.ply"], "nothing.obj: no such file"),
        (["segment", "nothing.obj"], "nothing to write"),
        (["info", "nothing.xyzzy"], "unknown extension"),
        (["train", "segmentation", "--data", "nothing.zip"], "nothing.zip: no such folder or zip file"),
        (["train", "segmentation", "--data", "bodies", "--hold-out", "a"], "bodies have none"),
        (["train", "segmentation", "--data", "bodies", "--labelled", "edge"], "labels on their faces"),
    ],
)
def test_mistakes_are_explained_in_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_checkpoint_is_not_measured_on_other_classes(tmp_path, capsys):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / name / split).mkdir(parents=True)
            export(trimesh.creation.box(), tmp_path / "pets" / name / split / "T1.obj")
    assert main(["evaluate", "--data", str(tmp_path / "pets")]) == 2
    assert "has the classes cat, dog, but" in capsys.readouterr().err


def test_a_missing_extra_names_the_pip_line(monkeypatch):
    from geoattn._optional import require

    with pytest.raises(ImportError, match=r"pip install 'geoattn\[viz\]'"):
        require("a_module_nobody_has", "viz")

    def no_library(name):
        raise ImportError("libusb-1.0.so.0: cannot open shared object file: No such file or directory")

    monkeypatch.setattr("importlib.import_module", no_library)
    with pytest.raises(ImportError, match=r"apt-get install libusb-1\.0-0"):
        require("open3d", "open3d")


def test_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert geoattn.__version__ == version("geoattn")
