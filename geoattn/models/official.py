"""Checkpoints that the authors of a network published, in the library's own network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_WRAPPERS = ("state_dict", "model_state_dict", "model")


class KeyReport(NamedTuple):
    """What did not fit when an official checkpoint was loaded.

    Attributes:
        missing: Parameters of the network that the checkpoint does not have; they keep their values.
        unexpected: Entries of the checkpoint that the network has no place for.
    """

    missing: list[str]
    unexpected: list[str]


def load_official(model: nn.Module, source: str | Path | Mapping[str, Any]) -> KeyReport:
    """Load the weights of a checkpoint of the authors' code.

    Weights of other classes are no mistake: what is missing or left over is returned for the caller to look at.

    Args:
        model: A network with a method ``official_key``, which gives our name of an entry, or None for one that
            is to be left out without mention.
        source: A file that `torch.save` wrote, or what it holds: a ``state_dict``, or a dictionary that has one as
            ``state_dict``, ``model_state_dict`` or ``model``. Prefixes ``module.`` are taken off. Nothing is unpickled
            but tensors and plain values.

    Raises:
        TypeError: If there are no official checkpoints of this network.
        ValueError: If the file is no such checkpoint, or nothing in it fits, or a tensor has another shape than the
            network's; the network is then as it was.
    """
    rename = getattr(model, "official_key", None)
    if rename is None:
        raise TypeError(f"{type(model).__name__} has no official checkpoints that could be read")
    content: Any = source
    if isinstance(source, (str, Path)):
        try:
            content = torch.load(source, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise
        except Exception as error:  # of the unpickler, the archive, the file
            raise ValueError(f"{source} is no checkpoint of tensors and plain values: {error}") from error
    for name in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        raise ValueError(f"expected a state_dict, got a {type(content).__name__}")

    own = model.state_dict()
    found: dict[str, Tensor] = {}
    unexpected = []
    for key, value in content.items():
        name = rename(str(key).removeprefix("module."))
        if name is None:
            continue
        if name not in own or not isinstance(value, Tensor):
            unexpected.append(str(key))
        elif (value := _of_linear(value, own[name])).shape != own[name].shape:
            raise ValueError(
                f"{key} has the shape {list(value.shape)}, the network's {name} {list(own[name].shape)}: make the "
                "network with the widths, features and classes of the checkpoint"
            )
        else:
            found[name] = value
    if not found:
        raise ValueError(f"nothing of the checkpoint fits a {type(model).__name__}; its first keys: {unexpected[:3]}")
    model.load_state_dict(found, strict=False)
    return KeyReport([name for name in own if name not in found], unexpected)


def _of_linear(value: Tensor, own: Tensor) -> Tensor:
    """The weight of a convolution with kernels of size 1 as that of a linear layer, where the network has one."""
    return value.reshape(own.shape) if value.shape == (*own.shape, *(1,) * (value.dim() - own.dim())) else value
