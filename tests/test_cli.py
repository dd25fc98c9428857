"""The command line, called as a user does."""

import json
import subprocess
import sys
import warnings

import pytest
import torch
import trimesh
from torch_geometric.data import Data

import geoattn
from geoattn.cli import main
from geoattn.data import Bodies, Rooms
from geoattn.models import create_model


@pytest.fixture
def person(tmp_path):
    path = tmp_path / "person.obj"
    body = Bodies(1, seed=3)[0]
    geoattn.save(path, Data(pos=body.pos, face=body.face))
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


SMALL = ["--channels", "16", "--blocks", "1", "--latents", "4", "--copies", "1"]


def test_train_evaluate_and_segment_with_the_result(person, tmp_path, capsys):
    folder = str(tmp_path / "run")
    train = ["train", "segmentation", "--data", "bodies", "--samples", "4", "-o", folder, *SMALL]
    assert main([*train, "--epochs", "2"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("accuracy", "mean iou", "lower arm"))
    figures = json.loads((tmp_path / "run" / "test.json").read_text())
    assert 0 < figures["mean_iou"] < figures["accuracy"] < 1
    assert len(figures["confusion"]) == 8
    assert (tmp_path / "run" / "test_confusion.png").read_bytes().startswith(b"\x89PNG")
    assert "head, hand, lower arm" in (tmp_path / "run" / "last" / "README.md").read_text()
    again = ["evaluate", folder, "--data", "bodies", "--samples", "4", "-o", str(tmp_path / "figures")]
    assert main(again) == 0
    assert f"{figures['accuracy']:.2%}" in capsys.readouterr().out
    assert json.loads((tmp_path / "figures" / "test.json").read_text()) == figures
    assert main([*train, "--epochs", "2"]) == 2  # there is a run already
    assert "resume" in capsys.readouterr().err
    assert main([*train, "--epochs", "3", "--resume"]) == 0
    assert "3 epochs" in capsys.readouterr().out
    assert main(["segment", str(person), "--model", folder, "-o", str(tmp_path / "out.ply")]) == 0


def test_classify_whole_meshes(tmp_path, capsys):
    for name, shape in (("box", trimesh.creation.box()), ("ball", trimesh.creation.icosphere(1))):
        for split in ("train", "test"):
            (tmp_path / "shapes" / split / name).mkdir(parents=True)
            for i in range(2):
                shape.apply_scale([1, 1, 1.1])
                export(shape, tmp_path / "shapes" / split / name / f"{i}.ply")
    train = ["train", "classification", "--data", str(tmp_path / "shapes"), "-o", str(tmp_path / "run"), *SMALL]
    assert main([*train, "--epochs", "2"]) == 0
    figures = json.loads((tmp_path / "run" / "test.json").read_text())
    assert sum(sum(row) for row in figures["confusion"]) == 4
    assert main(["train", "segmentation", "--data", str(tmp_path / "shapes")]) == 2
    assert "that is the task classification" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def stop(self, model, batch):
        raise KeyboardInterrupt

    monkeypatch.setattr("geoattn.models.labels.LabelTask.loss", stop)
    train = ["train", "segmentation", "--data", "bodies", "--samples", "2", "-o", str(tmp_path / "run"), *SMALL]
    monkeypatch.setattr("sys.argv", ["/usr/bin/geoattn"])
    assert main(train) == 130
    assert f"go on with: geoattn {' '.join(train)} --resume" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["leaning.py"])
    assert main(train) == 130
    assert "go on with: the same command with --resume" in capsys.readouterr().err


def test_a_classifier_does_not_segment(person, tmp_path, capsys):
    create_model("surface_classifier", names=("a", "b"), channels=8, blocks=1, latents=2).save_pretrained(
        tmp_path / "m"
    )
    assert main(["segment", str(person), "--model", str(tmp_path / "m"), "-o", str(tmp_path / "out.ply")]) == 2
    assert "holds a surface_classifier, made for classification, not for parts" in capsys.readouterr().err
    create_model("pointnet2_ssg", names=("a", "b"), labelled="whole").save_pretrained(tmp_path / "whole")
    assert main(["segment", str(person), "--model", str(tmp_path / "whole"), "-o", str(tmp_path / "out.ply")]) == 2
    assert "labels clouds as a whole, not their points: it was trained to classify" in capsys.readouterr().err


def test_warnings_are_shown_without_lines_of_code(person, capsys, monkeypatch):
    before, where = warnings.formatwarning, (UserWarning("colors are left out"), UserWarning, __file__, 1)
    monkeypatch.setattr("geoattn.cli.info._info", lambda arguments: print(warnings.formatwarning(*where)))
    assert main(["info", str(person)]) == 0
    assert capsys.readouterr().out.strip() == "geoattn: colors are left out"
    assert warnings.formatwarning is before


def test_folders_for_results_are_refused_before_the_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    train = ["train", "segmentation", "--data", "bodies", "--samples", "2", *SMALL]
    assert main([*train, "-o", str(tmp_path / "file")]) == 2
    assert "is a file; give the name of a folder" in capsys.readouterr().err
    assert main(["evaluate", "--data", "bodies", "-o", str(tmp_path / "file" / "x")]) == 2
    assert "is a file; give the name of a folder" in capsys.readouterr().err
    (tmp_path / "trainer.json").write_text("")
    assert main([*train, "-o", str(tmp_path)]) == 2
    assert "is a checkpoint; --output is the folder of the run" in capsys.readouterr().err


def test_help_shows_every_default_and_what_an_option_means(capsys):
    with pytest.raises(SystemExit):
        main(["train", "segmentation", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "--epochs N Passes over the training set. (default: 60)",
        "--channels N Features of an element inside the network. (default: 96)",
        "--copies N Variants of each training sample, itself included",
        "(default: auto)",
        "(default: float32)",
        "(default: runs/segmentation)",
    ):
        assert words in text, words
    assert "--names" not in text
    assert "--weights" not in text


def test_python_m_geoattn(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "geoattn", "--version"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"geoattn {geoattn.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["segment", "nothing.obj", "-o", "out.ply"], "nothing.obj: no such file"),
        (["segment", "nothing.obj", "-o", "out.xyzzy"], "out.xyzzy: cannot write '.xyzzy' files; supported are .glb"),
        (["segment", "nothing.obj", "--picture", "out.jpg"], "out.jpg: cannot write '.jpg' files; supported are .png"),
        (["segment", "nothing.obj", "--page", "no/such/out.html"], "the folder no/such does not exist"),
        (["segment", "nothing.obj", "-o", "out.ply", "--device", "abacus"], "device 'abacus' is unknown"),
        (["evaluate", "--data", "bodies", "--batch-size", "0"], "--batch-size is 0; it must be at least 1"),
        (["train", "segmentation", "--data", "bodies", "--dropout", "nan"], "dropout must be in [0, 1), got nan"),
        (["train", "segmentation", "--data", "bodies", "--seed", str(2**70)], "it must be less than 2**63"),
        (["segment", "nothing.obj", "-o", "out.ply", "--threads", "0"], "--threads is 0; it must be at least 1"),
        (["segment", "nothing.obj"], "nothing to write"),
        (["info", "nothing.xyzzy"], "unknown extension"),
        (["evaluate", "runs/nothing", "--data", "bodies"], "runs/nothing: no such folder"),
        (["train", "segmentation", "--data", "nothing.zip"], "nothing.zip: no such folder or zip file"),
        (["train", "segmentation", "--data", "bodies", "--samples", "0"], "samples must be at least 1, got 0"),
        (["train", "segmentation", "--data", "bodies", "--copies", "0"], "copies is 0; it must be at least 1"),
        (["train", "segmentation", "--data", "bodies", "--epochs", "0"], "epochs is 0; it must be greater than 0"),
        (["train", "segmentation", "--data", "bodies", "--patience", "3"], "--patience needs samples to validate on"),
        (["train", "segmentation", "--data", "bodies", "--samples", "2", "--hold-out", "a"], "these have none"),
        (["train", "segmentation", "--data", "bodies", "--labelled", "edge"], "not a label for each edge"),
    ],
)
def test_mistakes_are_explained_in_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_checkpoint_is_not_measured_on_other_classes(tmp_path, capsys):
    (tmp_path / "pets").mkdir()
    pet = Data(pos=torch.rand(4, 3), face=torch.tensor([[0, 1, 2], [1, 2, 3]]).T)
    (tmp_path / "pets" / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "pets" / "test").mkdir()
    geoattn.save(tmp_path / "pets" / "test" / "rex.ply", pet, label=torch.tensor([0, 1]))
    assert main(["evaluate", "--data", str(tmp_path / "pets")]) == 2
    assert "the data have the classes cat, dog, but the network was made for head, hand" in capsys.readouterr().err


def test_a_cloud_without_a_model_is_taken_for_a_room(tmp_path, capsys):
    geoattn.save(tmp_path / "cloud.ply", Data(pos=torch.rand(50, 3)))
    assert main(["segment", str(tmp_path / "cloud.ply"), "-o", str(tmp_path / "out.ply")]) == 0
    assert "no --model: the points get classes of rooms and tables" in capsys.readouterr().out
    assert geoattn.load(tmp_path / "out.ply").label.max() < len(Rooms.names)


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
