"""Networks and tasks by their names."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from geoattn._optional import require
from geoattn.models.network import HUB, Network, find_checkpoint
from geoattn.train import Task

AnyNetwork = TypeVar("AnyNetwork", bound=type[Network])
AnyTask = TypeVar("AnyTask", bound=type[Task])


class _Registered(NamedTuple):
    network: type[Network]
    config: type


_NETWORKS: dict[str, _Registered] = {}
_TASKS: dict[str, type[Task]] = {}


def register_model(name: str, config: type, *tasks: str) -> Callable[[AnyNetwork], AnyNetwork]:
    """Decorator of a network: makes it known as ``name``, made from the dataclass ``config``, for some tasks."""

    def register(network: AnyNetwork) -> AnyNetwork:
        if name in _NETWORKS:
            _check_same(name, _NETWORKS[name].network, network)
        network.name, network.tasks = name, tasks
        _NETWORKS[name] = _Registered(network, config)
        return network

    return register


def register_task(task: AnyTask) -> AnyTask:
    """Decorator of a task: makes it known by its name, to the command line too."""
    if task.name in _TASKS:
        _check_same(task.name, _TASKS[task.name], task)
    _TASKS[task.name] = task
    return task


def _check_same(name: str, registered: type, new: type) -> None:
    """A class may be defined again, as in a notebook; another one may not take its name."""
    if registered.__qualname__ != new.__qualname__:
        raise ValueError(f"{name!r} is the name of {registered.__qualname__} already; give {new.__qualname__} another")


def list_models(task: str | None = None) -> list[str]:
    """Names of the networks, or of those for one task.

    Example:
        >>> geoattn.models.list_models("segmentation")
        ['surface_transformer']
    """
    _import_all()
    return sorted(name for name, found in _NETWORKS.items() if task is None or task in found.network.tasks)


def list_tasks() -> list[str]:
    """Names of the tasks, as ``geoattn train`` takes them."""
    _import_all()
    return sorted(_TASKS)


def model_config(name: str) -> type:
    """The dataclass that the network ``name`` is made from.

    Raises:
        ValueError: If there is no such network.
    """
    return _network(name).config


def create_model(name: str, **config: Any) -> Network:
    """A new network with random weights.

    Args:
        name: One of `list_models`.
        **config: Fields of its config.

    Raises:
        ValueError: If there is no such network, or its config has no such field, or lacks one.
    """
    network, config_class = _network(name)
    known = [field.name for field in fields(config_class)]
    if unknown := [option for option in config if option not in known]:
        raise ValueError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(known)}")
    try:
        made = config_class(**config)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error
    return network(made)


def load_model(source: str | Path, **options: Any) -> Network:
    """Load a network with its weights, on the CPU and in evaluation mode. Its ``config.json`` says which one it is.

    Args:
        source: Folder of a checkpoint, or of a training run (its best checkpoint, or else its last), or
            ``hf-hub:<owner>/<name>`` to download one from the Hugging Face hub.
        **options: Of the download, such as ``revision`` and ``token``.

    Raises:
        FileNotFoundError: If there is no such folder, or no checkpoint in it.
        ValueError: If ``config.json`` names no network of the registry, or does not fit it.
    """
    found = find_checkpoint(source)
    name = _read(found, "config.json", **options).get("network")
    if name not in list_models():
        raise ValueError(f"{source}: config.json names the network {name!r}; known are {', '.join(list_models())}")
    return _NETWORKS[name].network.from_pretrained(found, **options)


def load_task(source: str | Path) -> Task:
    """The task that a checkpoint was trained for, with the options it was trained with.

    Args:
        source: As of `load_model`.

    Raises:
        FileNotFoundError: If there is no such folder, or no ``task.json`` in it.
        ValueError: If the task is unknown.
    """
    options = _read(find_checkpoint(source), "task.json")
    return find_task(options.pop("name"))(**options)


def find_task(name: str) -> type[Task]:
    """The task of a name.

    Raises:
        ValueError: If there is none.
    """
    if name not in list_tasks():
        raise ValueError(f"task {name!r} is unknown; known are {', '.join(list_tasks())}")
    return _TASKS[name]


def _network(name: str) -> _Registered:
    if name not in list_models():
        raise ValueError(f"network {name!r} is unknown; known are {', '.join(list_models())}")
    return _NETWORKS[name]


def _read(checkpoint: str | Path, file: str, **options: Any) -> dict[str, Any]:
    path = Path(checkpoint) / file
    if str(checkpoint).startswith(HUB):
        path = Path(require("huggingface_hub").hf_hub_download(str(checkpoint).removeprefix(HUB), file, **options))
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; the folder holds no whole checkpoint")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return content


@cache
def _import_all() -> None:
    """Import the folder of every task, which registers it and its networks."""
    models = import_module("geoattn.models")
    for module in pkgutil.iter_modules(models.__path__, "geoattn.models."):
        if module.ispkg:
            import_module(module.name)
