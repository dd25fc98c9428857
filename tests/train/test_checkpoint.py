import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from trainee import LongAlong

from geoattn.train import TrainConfig, TrainResult, checkpoint

CONFIG = TrainConfig(epochs=10)


class Killed(BaseException):
    """Not an Exception, so that nothing tidies up after it."""


class Killer:
    """An audit hook is told of each operation on files, and may raise: this one does before the n-th."""

    left: int | None = None

    def __call__(self, event: str, args: tuple) -> None:
        if self.left is not None and (event == "open" or event.startswith(("os.", "shutil."))):
            self.left -= 1
            if self.left < 0:
                raise Killed(event)


KILLER = Killer()
sys.addaudithook(KILLER)


class Run:
    """A run without training: the weights are the number of the epoch."""

    def __init__(self, folder):
        self.model = nn.Linear(2, 3)
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.state = TrainResult(folder)
        self.description = checkpoint.describe(LongAlong(), CONFIG, self.model, range(5), None, 1)

    def epoch(self, value):
        epoch = self.state.epoch + 1
        self.model.zero_grad()
        self.model(torch.ones(1, 2)).sum().backward()
        self.optimizer.step()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.fill_(epoch)
                self.optimizer.state[parameter]["exp_avg"].fill_(epoch)
        self.state.add({"loss": 1.0, "minutes": 0.0, "valid_score": value})

    def save(self):
        checkpoint.save(self.model, self.optimizer, self.state, self.description)


def assert_whole(folder, epoch):
    """All files of the checkpoint are of one epoch."""
    assert json.loads((folder / "trainer.json").read_text())["epoch"] == epoch
    assert all((tensor == epoch).all() for tensor in load_file(folder / "model.safetensors").values())
    moments = load_file(folder / "optimizer.safetensors")
    assert len(moments) == 6
    assert all((tensor == epoch).all() for name, tensor in moments.items() if name.endswith("exp_avg"))


@pytest.mark.parametrize("values", [[0.1, 0.2, 0.3], [0.1, 0.5, 0.3]], ids=["best", "not best"])
def test_a_kill_at_any_operation_leaves_the_old_or_the_new_checkpoint(tmp_path, values):
    seen = set()
    operations = 0
    while True:
        folder = tmp_path / str(operations)
        run = Run(folder)
        for value in values[:2]:
            run.epoch(value)
            run.save()
        run.epoch(values[2])
        KILLER.left = operations
        try:
            run.save()
        except Killed:
            killed = True
        else:
            killed = False
        finally:
            KILLER.left = None
        checkpoint.recover(folder)
        last = json.loads((folder / "last" / "trainer.json").read_text())
        assert_whole(folder / "last", last["epoch"])
        assert_whole(folder / "best", last["best_epoch"])
        assert {path.name for path in folder.iterdir()} == {"last", "best"}
        seen.add(last["epoch"])
        resumed = Run(folder)
        checkpoint.restore(resumed.state, resumed.model, resumed.optimizer, resumed.description)
        assert resumed.state.epoch == last["epoch"]
        if not killed:
            break
        operations += 1
    assert seen == {2, 3}
    assert last["epoch"] == 3
    assert operations > 20


def test_a_kill_during_recovery_is_recovered_from(tmp_path):
    for operations in range(100):
        folder = tmp_path / str(operations)
        run = Run(folder)
        run.epoch(0.1)
        run.save()
        (folder / "last").rename(folder / "last.old")  # as between the two renames
        (folder / "last.tmp").mkdir()
        (folder / "last.tmp" / "trainer.json").write_text("{")
        KILLER.left = operations
        try:
            checkpoint.recover(folder)
        except Killed:
            killed = True
        else:
            killed = False
        finally:
            KILLER.left = None
        checkpoint.recover(folder)
        assert_whole(folder / "last", 1)
        assert_whole(folder / "best", 1)
        assert {path.name for path in folder.iterdir()} == {"last", "best"}
        if not killed:
            break
    assert 2 < operations < 99


def test_a_kill_at_the_first_save_leaves_none_or_one(tmp_path):
    seen = set()
    for operations in range(100):
        folder = tmp_path / str(operations)
        run = Run(folder)
        run.epoch(0.1)
        KILLER.left = operations
        try:
            run.save()
        except Killed:
            pass
        else:
            break
        finally:
            KILLER.left = None
        checkpoint.recover(folder)
        seen.add((folder / "last").exists())
        if (folder / "last").exists():
            assert_whole(folder / "last", 1)
            assert_whole(folder / "best", 1)
    assert seen == {True, False}


def test_restore_gives_back_what_was_saved(tmp_path):
    run = Run(tmp_path)
    run.epoch(0.5)
    run.save()
    other = Run(tmp_path)
    checkpoint.restore(other.state, other.model, other.optimizer, other.description)
    assert other.state == run.state
    for ours, theirs in zip(run.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        for name, value in run.optimizer.state[ours].items():
            assert torch.equal(value, other.optimizer.state[theirs][name])
