import csv
import itertools
import json
import math
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import PyTorchModelHubMixin
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from trainee import Clouds, LongAlong, Mean, build, cpu

from geoattn.train import TrainConfig, checkpoint, fit, loop
from geoattn.train.optim import adamw, schedule

CONFIG = TrainConfig(epochs=4, batch_size=8, lr=1e-2, workers=0)


def run(folder, config=CONFIG, model=None, samples=None, task=None, **options):
    model = model if model is not None else build()
    samples = samples if samples is not None else Clouds(24, 0, augment=True)
    return model, fit(task or LongAlong(), model, samples, folder, config, fabric=cpu(), **options)


def assert_equal(state, other):
    assert state.keys() == other.keys()
    for name in state:
        assert torch.equal(state[name], other[name]), name


def scripted(values, higher_is_better=True):
    """A task whose metric has the next of the values at each call; with one validation sample: at each epoch."""
    left = iter(values)

    class Metric(Mean):
        pass

    Metric.higher_is_better = higher_is_better

    class Scripted(LongAlong):
        def metrics(self, model):
            return {"scripted": Metric()}

        def measure(self, metrics, model, batch):
            metrics["scripted"].update(next(left), 1)

    return Scripted()


def losing(loss):
    """The task with another loss."""
    return type("Task", (LongAlong,), {"loss": lambda self, model, batch: loss(model, batch)})()


def loss(model, batch):
    return LongAlong().loss(model, batch)


def weights(folder):
    return load_file(folder / "model.safetensors")


def stop_at(step):
    """The loss, with a crash at a step, counted from 0 since this call."""
    steps = iter(range(10**6))

    def failing(model, batch):
        if next(steps) == step:
            raise KeyboardInterrupt
        return loss(model, batch)

    return failing


def test_learns_and_says_so(tmp_path):
    config = replace(CONFIG, epochs=15)
    model, result = run(tmp_path / "new" / "run", config, valid_samples=Clouds(8, 1))
    assert result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]
    assert result.best_value == max(row["valid_accuracy"] for row in result.history) >= 0.75
    assert (result.epoch, result.step) == (15, 15 * 3)
    assert [row["epoch"] for row in result.history] == list(range(1, 16))
    minutes = [row["minutes"] for row in result.history]
    assert minutes == sorted(minutes)
    assert minutes[-1] == result.minutes > 0
    assert json.loads((result.folder / "history.json").read_text()) == result.history
    with (result.folder / "history.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in table] == [row["loss"] for row in result.history]
    assert sorted(path.name for path in result.folder.iterdir()) == [
        "best", "curves.png", "history.csv", "history.json", "last",
    ]  # fmt: skip
    assert_equal(weights(result.folder / "last"), model.state_dict())
    assert json.loads((result.folder / "last" / "config.json").read_text())["width"] == 16


def test_best_is_the_best_epoch_and_last_the_last(tmp_path):
    one = Clouds(1, 1)
    _, result = run(tmp_path / "long", task=scripted([0.1, 0.5, 0.5, 0.2]), valid_samples=one)
    assert (result.best_epoch, result.best_value) == (2, 0.5)
    assert result.checkpoint == tmp_path / "long" / "best"
    at = []

    class Remember(LongAlong):
        def measure(self, metrics, model, batch):
            at.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
            metrics["accuracy"].update(0, 1)

    run(tmp_path / "again", task=Remember(), valid_samples=one)
    assert_equal(weights(result.checkpoint), at[1])
    assert_equal(weights(result.folder / "last"), at[3])


def test_the_lowest_error_is_the_best(tmp_path):
    task = scripted([0.3, 0.1, math.nan, 0.2], higher_is_better=False)
    _, result = run(tmp_path / "long", task=task, valid_samples=Clouds(1, 1))
    assert (result.best_epoch, result.best_value) == (2, 0.1)
    assert result.history[2]["valid_scripted"] is None
    with pytest.raises(ValueError, match="'scripted' chooses the best epoch, but does not say if higher_is_better"):
        run(tmp_path / "other", task=scripted([0.3], higher_is_better=None), valid_samples=Clouds(1, 1))


def test_without_validation_there_is_only_last(tmp_path):
    _, result = run(tmp_path, replace(CONFIG, epochs=1))
    assert result.checkpoint == tmp_path / "last"
    assert not (tmp_path / "best").exists()
    assert result.best_value is None


def test_metrics_are_summed_over_the_set_whatever_its_batches(tmp_path):
    class Points(LongAlong):
        def metrics(self, model):
            return {"points": Mean(), "nothing": Mean()}

        def measure(self, metrics, model, batch):
            metrics["points"].update(batch.pos[:, 0].double().sum(), len(batch.pos))

    valid = Clouds(11, 1)
    _, result = run(tmp_path, replace(CONFIG, epochs=1, batch_size=4), task=Points(), valid_samples=valid)
    expected = float(valid.pos[..., 0].double().mean())
    assert result.history[0]["valid_points"] == pytest.approx(expected, rel=1e-12)
    assert "valid_nothing" not in result.history[0]
    assert result.monitor == "valid_points"


def test_patience_stops_and_resuming_does_not_go_on(tmp_path):
    config = replace(CONFIG, epochs=50, patience=3)
    options = {"valid_samples": Clouds(1, 1), "task": scripted([0.0, 0.4, math.nan, 0.3, 0.4, 0.9])}
    _, result = run(tmp_path, config, **options)
    assert (result.epoch, result.best_epoch) == (5, 2)
    _, result = run(tmp_path, config, resume=True, **options)
    assert (result.epoch, result.best_value) == (5, 0.4)


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_what_is_not_finite_stops_with_the_last_checkpoint_intact(tmp_path, broken):
    steps = iter(range(100))

    def bad(model, batch):
        value = loss(model, batch)
        if next(steps) == 4:  # the second step of the second epoch
            zero = (model.head.bias * 0).sum()
            return value * math.nan if broken == "loss" else value + zero.sqrt()
        return value

    with pytest.raises(FloatingPointError, match=f"{broken}.* nan at epoch 2, step 5"):
        run(tmp_path / "cut", task=losing(bad))
    model, _ = run(tmp_path / "cut", resume=True)
    whole, _ = run(tmp_path / "whole")
    assert_equal(model.state_dict(), whole.state_dict())


def test_global_state_is_as_before(tmp_path):
    random.seed(5), np.random.seed(5), torch.manual_seed(5)  # noqa: NPY002
    expected = random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002
    random.seed(5), np.random.seed(5), torch.manual_seed(5)  # noqa: NPY002
    model = build().eval()
    run(tmp_path / "a", model=model)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", model=model, task=losing(stop_at(2)))
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected  # noqa: NPY002
    assert not model.training
    assert torch.is_grad_enabled()


def test_the_seed_decides(tmp_path):
    ends = []
    for index, seed in enumerate((0, 0, 1)):
        torch.manual_seed(index)  # what was before does not matter
        ends.append(run(tmp_path / str(index), replace(CONFIG, seed=seed))[0].state_dict()["lift.weight"])
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


@pytest.mark.parametrize(("save_every", "workers", "stop"), [(1, 0, 7), (2, 0, 11), (1, 1, 4), (3, 0, 1)])
def test_resumed_equals_uninterrupted_to_the_bit(tmp_path, save_every, workers, stop):
    config = replace(CONFIG, epochs=5, save_every=save_every, workers=workers)
    options = {"valid_samples": Clouds(7, 1)}
    whole, expected = run(tmp_path / "whole", config, **options)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", config, task=losing(stop_at(stop)), **options)
    model, result = run(tmp_path / "cut", config, resume=True, **options)
    assert_equal(model.state_dict(), whole.state_dict())
    for name in ("last", "best"):
        assert_equal(weights(tmp_path / "cut" / name), weights(tmp_path / "whole" / name))
    for row in (*result.history, *expected.history):
        del row["minutes"]
    assert result.history == expected.history


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"config": replace(CONFIG, lr=0.5)}, r"config\.lr: saved 0\.01, now 0\.5"),
        ({"config": replace(CONFIG, epochs=3)}, r"config\.epochs: saved 4, now 3"),
        ({"task": LongAlong(copies=3)}, r"task\.copies: saved None, now 3"),
        ({"model": build(width=32)}, r"model\.config\.width: saved 16, now 32"),
        ({"model": build(batch_norm=False)}, r"model\.config\.batch_norm"),
        ({"samples": Clouds(25, 0)}, r"training samples: saved 24, now 25"),
        ({"valid_samples": Clouds(3, 0)}, r"validation samples: saved None, now 3"),
    ],
)
def test_another_run_is_not_resumed(tmp_path, changed, message):
    run(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "last").iterdir()}
    model = changed.get("model", build())
    weight = model.lift.weight.clone()
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **{"model": model, **changed}, resume=True)
    assert torch.equal(weight, model.lift.weight)
    assert before == {path: path.read_bytes() for path in (tmp_path / "last").iterdir()}


def test_more_epochs_go_on_from_the_last(tmp_path):
    run(tmp_path)
    _, result = run(tmp_path, replace(CONFIG, epochs=6), resume=True)
    assert [row["epoch"] for row in result.history] == [1, 2, 3, 4, 5, 6]
    assert 0 < result.history[-1]["lr"] < result.history[-2]["lr"]


def test_a_checkpoint_is_not_overwritten_unasked(tmp_path):
    model, _ = run(tmp_path)
    with pytest.raises(FileExistsError, match="resume=True"):
        run(tmp_path)
    assert_equal(weights(tmp_path / "last"), model.state_dict())


def test_minutes_end_the_run_annealed(tmp_path, monkeypatch):
    seconds = itertools.count()  # one more each time the clock is read
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    config = replace(CONFIG, epochs=10_000, minutes=1.5)
    _, result = run(tmp_path, config)
    assert 1.5 <= result.minutes < 1.7
    assert 1 < result.epoch < 90
    assert result.history[-1]["lr"] < 0.02 * config.lr < 0.5 * config.lr < max(row["lr"] for row in result.history)


def test_epochs_end_the_run_annealed_if_they_come_first(tmp_path):
    _, slow = run(tmp_path / "a", replace(CONFIG, minutes=60))
    _, free = run(tmp_path / "b", CONFIG)
    assert [row["lr"] for row in slow.history] == pytest.approx([row["lr"] for row in free.history], rel=0.05)


def test_models_of_the_hub_mixin_come_back_from_their_checkpoints(tmp_path):
    class HubNet(nn.Module, PyTorchModelHubMixin):
        def __init__(self, width: int = 8):
            super().__init__()
            self.lift = nn.Linear(3, width)
            self.head = nn.Linear(width, 2)
            self.head.bias = nn.Parameter(torch.zeros(2))

        def forward(self, batch):
            return self.head(torch.relu(self.lift(batch.pos))).view(batch.num_graphs, -1, 2).mean(1)

    model, result = run(tmp_path, model=HubNet(width=12))
    assert_equal(HubNet.from_pretrained(result.checkpoint).state_dict(), model.state_dict())


def test_tied_weights_are_saved_and_resumed(tmp_path):
    def tied():
        model = build()
        model.other = nn.Linear(3, 16, bias=False)
        model.other.weight = model.lift.weight
        return model

    whole, _ = run(tmp_path / "whole", model=tied())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", model=tied(), task=losing(stop_at(8)))
    model, _ = run(tmp_path / "cut", model=tied(), resume=True)
    assert_equal(model.state_dict(), whole.state_dict())


def test_without_matplotlib_a_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    run(tmp_path, replace(CONFIG, epochs=1))
    assert "pip install 'geoattn[viz]'" in capsys.readouterr().out
    assert (tmp_path / "history.csv").exists()
    assert not (tmp_path / "curves.png").exists()


def test_only_what_has_two_dimensions_decays():
    model = build()
    model.head.bias = nn.Parameter(torch.zeros(2, 2))  # a bias of two dimensions is one still
    model.lift.weight.requires_grad_(False)
    groups = adamw(model, CONFIG).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    names = {name: decay.get(id(p)) for name, p in model.named_parameters()}
    assert names.pop("lift.weight") is None
    assert names == {"lift.bias": 0, "norm.weight": 0, "norm.bias": 0, "head.weight": 0.05, "head.bias": 0}


@given(st.floats(0, 0.9), st.floats(0, 1), st.floats(0, 1))
def test_the_learning_rate_rises_once_and_falls_to_zero(warmup, one, two):
    first, second = sorted((one, two))
    assert schedule(1.0, warmup) == pytest.approx(0)
    assert schedule(warmup, warmup) == 1
    assert 0 <= schedule(first, warmup) <= 1
    if second <= warmup:
        assert schedule(first, warmup) <= schedule(second, warmup)
    elif first >= warmup:
        assert schedule(first, warmup) >= schedule(second, warmup)


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 0), ("lr", -1.0), ("lr", math.nan), ("warmup", 1.0), ("patience", 0), ("workers", -1)],
)
def test_a_bad_config_names_its_field(field, value):
    with pytest.raises(ValueError, match=rf"^{field} is {value}"):
        TrainConfig(**{field: value})


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="samples is empty"):
        run(tmp_path, samples=Clouds(0, 0))
    with pytest.raises(ValueError, match="no validation samples"):
        run(tmp_path, replace(CONFIG, patience=2))
    with pytest.raises(ValueError, match="requires a gradient"):
        run(tmp_path, model=build().requires_grad_(False))
    assert not (tmp_path / "last").exists()


def test_a_checkpoint_that_cannot_be_written_leaves_the_last(tmp_path, monkeypatch):
    run(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "last").iterdir()}

    def full(*args, **options):
        raise checkpoint.safetensors_error("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint.safetensors, "save_file", full)
    with pytest.raises(OSError, match=r"the checkpoint cannot be written .*No space left on device"):
        run(tmp_path, replace(CONFIG, epochs=6), resume=True)
    assert before == {path: path.read_bytes() for path in (tmp_path / "last").iterdir()}
    assert not (tmp_path / "last.tmp").exists()


@pytest.mark.parametrize("name", ["trainer.json", "optimizer.safetensors", "model.safetensors"])
def test_a_damaged_checkpoint_is_named(tmp_path, name):
    run(tmp_path)
    content = (tmp_path / "last" / name).read_bytes()
    (tmp_path / "last" / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="last is no whole checkpoint"):
        run(tmp_path, replace(CONFIG, epochs=6), resume=True)


def test_the_history_grows_with_each_epoch(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, task=losing(stop_at(7)))
    assert [row["epoch"] for row in json.loads((tmp_path / "history.json").read_text())] == [1, 2]
