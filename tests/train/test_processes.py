"""Runs in processes of their own: killed with SIGKILL and resumed, or two at once."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from trainee import train

TRAINEE = str(Path(__file__).with_name("trainee.py"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def start(folder, runs, processes=1):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), TRAINEE, str(folder), json.dumps(runs)]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log)


def finish(process, folder):
    code = process.wait(timeout=120)
    assert code == 0, (folder / "log").read_text()


def end(path):
    return torch.load(path, weights_only=True)


def saved_epoch(folder):
    try:
        return json.loads((folder / "last" / "trainer.json").read_text())["epoch"]
    except FileNotFoundError:  # none yet, or just between the two renames
        return 0


def test_killed_runs_end_like_one_that_was_not(tmp_path):
    options = {"config": {"epochs": 9, "lr": 1e-2}, "model": {}, "length": 40, "slow": 2e-3, "augment": True}
    whole = start(tmp_path, {"whole": options})
    generator = random.Random()
    kills = []
    for goal in (2, 5):
        process = start(tmp_path, {"cut": options})
        deadline = time.monotonic() + 60
        while saved_epoch(tmp_path / "cut") < goal and time.monotonic() < deadline:
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.002)
        time.sleep(generator.uniform(0, 0.1))  # an epoch takes as long
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=60) == -signal.SIGKILL
        kills.append(saved_epoch(tmp_path / "cut"))
    finish(start(tmp_path, {"cut": options}), tmp_path)
    finish(whole, tmp_path)
    expected, result = end(tmp_path / "whole-0.pt"), end(tmp_path / "cut-0.pt")
    for name, tensor in expected["model"].items():
        assert torch.equal(tensor, result["model"][name]), (name, kills)
    for name in ("last", "best"):
        ours, theirs = (load_file(tmp_path / run / name / "model.safetensors") for run in ("cut", "whole"))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), (name, kills)
    for row in (*expected["history"], *result["history"]):
        del row["minutes"]
    assert result["history"] == expected["history"]


def test_two_processes(tmp_path):
    exact = {"model": {"dropout": 0.0, "batch_norm": False}, "length": 24, "slow": 0.0, "augment": False}
    exact["config"] = {"epochs": 4, "lr": 1e-2, "batch_size": 3}
    timed = {"model": {"dropout": 0.3}, "length": 25, "slow": 1e-3, "augment": True}
    timed["config"] = {"epochs": 10_000, "minutes": 1 / 60, "batch_size": 4}
    finish(start(tmp_path, {"exact": exact, "timed": timed}, processes=2), tmp_path)

    # Without dropout they take the steps of one process with the doubled batch.
    exact["config"]["batch_size"] = 6
    single = train(tmp_path / "single", **exact)
    first, second = end(tmp_path / "exact-0.pt"), end(tmp_path / "exact-1.pt")
    for name, tensor in single["model"].items():
        assert torch.equal(first["model"][name], second["model"][name]), name
        torch.testing.assert_close(first["model"][name].to(tensor.device), tensor, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(first["history"], single["history"], strict=True):
        assert abs(ours["loss"] - theirs["loss"]) < 1e-5
        assert ours["valid_accuracy"] == theirs["valid_accuracy"]  # 7 samples: the shares are uneven

    # They agree on the running statistics and on when the time is over.
    first, second = end(tmp_path / "timed-0.pt"), end(tmp_path / "timed-1.pt")
    assert first["history"][-1]["lr"] < 2e-5
    saved = load_file(tmp_path / "timed" / "last" / "model.safetensors")
    assert "norm.running_mean" in saved
    for name, tensor in saved.items():
        assert torch.equal(first["model"][name], second["model"][name]), name
        assert torch.equal(first["model"][name], tensor), name
