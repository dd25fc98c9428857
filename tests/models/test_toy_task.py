"""What a new task costs: one file, and it trains, resumes, evaluates and is on the command line."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from geoattn.cli import main
from geoattn.models import list_tasks, load_model, load_task, registry


@pytest.fixture
def toy_task(monkeypatch):
    """The task, registered for one test."""
    list_tasks()  # the package's own come first, and stay
    monkeypatch.setattr(registry, "_NETWORKS", dict(registry._NETWORKS))
    monkeypatch.setattr(registry, "_TASKS", dict(registry._TASKS))
    spec = importlib.util.spec_from_file_location("toy_task", Path(__file__).with_name("toy_task.py"))
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "toy_task", module)
    spec.loader.exec_module(module)
    return module


def test_a_task_of_twenty_lines(toy_task, tmp_path, capsys):
    run = str(tmp_path / "run")
    train = ["train", "leaning", "--data", "random", "--axis", "1", "--channels", "16", "--lr", "0.05", "-o", run]
    assert main([*train, "--epochs", "5"]) == 0
    assert "leaning_network, 98 parameters, on cpu; 64 training samples, 64 to validate on" in capsys.readouterr().out
    assert main([*train, "--epochs", "20", "--resume"]) == 0
    assert "20 epochs" in capsys.readouterr().out
    figures = json.loads((tmp_path / "run" / "test.json").read_text())
    assert figures["accuracy"] > 0.8
    assert main(["evaluate", run, "--data", "random"]) == 0
    assert f"{figures['accuracy']:.2%}" in capsys.readouterr().out
    assert load_task(run) == toy_task.LeaningTask(axis=1)
    assert isinstance(load_model(run), toy_task.LeaningNetwork)
    assert (tmp_path / "run" / "best").is_dir()


def test_its_options_are_explained(toy_task, capsys):
    with pytest.raises(SystemExit):
        main(["train", "leaning", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Which way a cloud of points leans" in text
    assert "--axis N Along which axis: 0, 1 or 2. (default: 0)" in text
    assert "--channels N Features of a point. (default: 8)" in text
