"""Checkpoints that are complete or absent, also when the process is killed while it writes one.

A checkpoint is a folder: ``model.safetensors`` and ``config.json`` (what ``from_pretrained`` reads), ``task.json``,
``optimizer.safetensors``, ``trainer.json`` (how far the run is), and a ``README.md`` that says what it is. Nothing in
it is pickled. No state of a random generator is stored, because the loop seeds them anew from (seed, epoch, process).
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Sized
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from geoattn._optional import require
from geoattn.train.config import TrainConfig, TrainResult
from geoattn.train.task import Task

safetensors = require("safetensors.torch")
safetensors_error = require("safetensors").SafetensorError

FIELDS = ("epoch", "step", "minutes", "best_epoch", "best_value", "higher_is_better", "history")
# Options that change neither the weights nor their order.
NOT_COMPARED = ("workers", "cache")


def describe(
    task: Task, config: TrainConfig, model: nn.Module, samples: Sized, valid_samples: Sized | None, processes: int
) -> dict[str, Any]:
    """All that must be the same for a checkpoint to be resumed, as JSON."""
    run = {
        "task": {"name": task.name, **dataclasses.asdict(cast("Any", task))},
        "config": {name: x for name, x in dataclasses.asdict(config).items() if name not in NOT_COMPARED},
        "model": {
            "class": type(model).__qualname__,
            "config": _config(model),
            "tensors": {name: list(tensor.shape) for name, tensor in model.state_dict().items()},
        },
        "training samples": len(samples),
        "validation samples": None if valid_samples is None else len(valid_samples),
        "processes": processes,
    }
    return json.loads(json.dumps(run, default=str))


def save(model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainResult, run: dict[str, Any]) -> None:
    """Write ``last``, and ``best`` as well if this epoch is the best one, to the run's folder.

    ``best`` follows ``last``: a crash between the two is repaired by :func:`recover`, which finds in ``last``
    that it is the best one.
    """
    new = state.folder / "last.tmp"
    shutil.rmtree(new, ignore_errors=True)
    try:
        _write(new, model, optimizer, state, run)
        _publish(state.folder, "last")
        _copy_if_best(state.folder)
    except (OSError, safetensors_error) as error:
        shutil.rmtree(new, ignore_errors=True)
        raise OSError(
            f"{state.folder}: the checkpoint cannot be written ({error}); an earlier one is as it was"
        ) from error


def _write(
    new: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainResult, run: dict[str, Any]
) -> None:
    new.mkdir(parents=True)
    save_pretrained = getattr(model, "save_pretrained", None)
    if callable(save_pretrained):
        save_pretrained(new)
    elif (config := _config(model)) is not None:
        (new / "config.json").write_text(json.dumps(config, indent=2))
    if not (new / "model.safetensors").exists():
        safetensors.save_model(model, str(new / "model.safetensors"))
    tensors = {
        f"{index}.{name}": value.contiguous()
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    safetensors.save_file(tensors, new / "optimizer.safetensors")
    (new / "task.json").write_text(json.dumps(run["task"], indent=2) + "\n")
    (new / "README.md").write_text(_card(model, state, run))
    trainer = {field: getattr(state, field) for field in FIELDS}
    trainer["random"] = "seeded at each epoch from (config.seed, epoch, process)"
    trainer["run"] = run
    (new / "trainer.json").write_text(json.dumps(trainer, indent=1))


def restore(state: TrainResult, model: nn.Module, optimizer: torch.optim.Optimizer, run: dict[str, Any]) -> None:
    """Put ``last`` of the run's folder into ``state``, ``model`` and ``optimizer``.

    Raises:
        ValueError: If the checkpoint is of another ``run`` (:func:`describe`). Then nothing is changed.
    """
    last = state.folder / "last"
    trainer = _read(last)
    saved = trainer["run"]
    if saved["config"]["epochs"] < run["config"]["epochs"]:
        saved["config"]["epochs"] = run["config"]["epochs"]
    if difference := _first_difference(saved, run, ""):
        raise ValueError(
            f"{last} is of another run: {difference}. Of the config, only epochs may change, and only grow; "
            "make it the same, or train in another folder"
        )
    tensors: dict[int, dict[str, torch.Tensor]] = {}
    try:
        for key, value in safetensors.load_file(last / "optimizer.safetensors").items():
            index, name = key.split(".", 1)
            tensors.setdefault(int(index), {})[name] = value.clone()  # the file is mapped, and will be deleted
        safetensors.load_model(model, last / "model.safetensors")
    except (OSError, safetensors_error) as error:
        raise _damaged(last, error) from error
    for field in FIELDS:
        setattr(state, field, trainer[field])
    optimizer.load_state_dict({**optimizer.state_dict(), "state": tensors})


def _card(model: nn.Module, state: TrainResult, run: dict[str, Any]) -> str:
    """What the checkpoint is, in words, with the command that measures it."""
    task, monitor = run["task"]["name"], state.monitor or ""
    config = _config(model) or {}
    value = state.history[-1].get(monitor)
    facts = {
        "task": task,
        "network": f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters",
        "labels": ", ".join(config.get("names", ())),
        "trained on": f"{run['training samples']} samples, {state.epoch} epochs in {state.minutes:.1f} minutes",
        "validation": "" if value is None else f"{monitor.removeprefix('valid_').replace('_', ' ')} {value:.4g}",
        "made with": f"geoattn {_version()}, torch {torch.__version__}",
    }
    rows = "".join(f"| {name} | {fact} |\n" for name, fact in facts.items() if fact)
    return (
        f"# {type(model).__name__}: {task}\n\n| | |\n|---|---|\n{rows}\n"
        "`config.json` has the sizes of the network, `task.json` and `trainer.json` how it was trained.\n\n"
        '```python\nfrom geoattn.models import load_model\n\nmodel = load_model("this folder")\n```\n\n'
        "```sh\ngeoattn evaluate THIS_FOLDER --data YOUR_DATA\n```\n"
    )


def _version() -> str:
    try:
        return version("geoattn")
    except PackageNotFoundError:  # found by its path alone, as in a clone on PYTHONPATH
        return "not installed"


def recover(folder: Path) -> None:
    """Finish or undo what a killed process left half-done in ``folder``."""
    for name in ("last", "best"):
        if (folder / f"{name}.old").exists() and not (folder / name).exists():
            os.rename(folder / f"{name}.old", folder / name)
        for leftover in (folder / f"{name}.old", folder / f"{name}.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
    if (folder / "last").exists():
        _copy_if_best(folder)


def _read(checkpoint: Path) -> dict[str, Any]:
    try:
        return json.loads((checkpoint / "trainer.json").read_text())
    except (OSError, ValueError) as error:
        raise _damaged(checkpoint, error) from error


def _damaged(checkpoint: Path, error: Exception) -> ValueError:
    return ValueError(f"{checkpoint} is no whole checkpoint ({error}); delete it, or train in another folder")


def _config(model: nn.Module) -> dict[str, Any] | None:
    config = getattr(model, "config", None)
    return dataclasses.asdict(config) if dataclasses.is_dataclass(config) and not isinstance(config, type) else None


def _first_difference(saved: Any, now: Any, name: str) -> str | None:
    """Where two JSON values differ first, as ``model.config.width: saved 32, now 64``; None if nowhere."""
    if isinstance(saved, dict) and isinstance(now, dict):
        for key in [*saved, *(key for key in now if key not in saved)]:
            if difference := _first_difference(saved.get(key), now.get(key), f"{name}.{key}" if name else key):
                return difference
        return None
    return None if saved == now else f"{name}: saved {saved!r}, now {now!r}"


def _copy_if_best(folder: Path) -> None:
    last = _read(folder / "last")
    if last["best_epoch"] != last["epoch"]:
        return
    if (folder / "best").exists() and _read(folder / "best")["epoch"] == last["epoch"]:
        return
    shutil.rmtree(folder / "best.tmp", ignore_errors=True)
    shutil.copytree(folder / "last", folder / "best.tmp")
    _publish(folder, "best")


def _publish(folder: Path, name: str) -> None:
    """Let the complete folder ``name.tmp`` take the place of ``name``.

    No system call replaces a folder that is not empty, so the old one steps aside first. Between the two
    renames only ``name.old`` is there, and :func:`recover` brings it back.
    """
    new, old = folder / f"{name}.tmp", folder / f"{name}.old"
    for path in [*new.rglob("*"), new]:
        _flush(path)
    if (folder / name).exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder / name, old)
    os.rename(new, folder / name)
    _flush(folder)
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    """Have the system write ``path`` to the disk, so that a power cut after the rename does not empty it."""
    if os.name == "nt":  # Windows neither opens folders nor flushes files opened for reading
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
