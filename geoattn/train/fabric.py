"""Devices, precision and processes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import torch

from geoattn._optional import require

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Precision = Literal["float32", "bfloat16"]
_FABRIC: dict[str, Literal["32-true", "bf16-mixed"]] = {"float32": "32-true", "bfloat16": "bf16-mixed"}


def find_device(device: str = "auto") -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` names; ``auto`` is CUDA where there is any.

    Raises:
        ValueError: If there is no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is unknown; give auto, cpu, cuda or cuda:<number>") from error
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} is not supported; give auto, cpu, cuda or cuda:<number>")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device!r} was asked for, but torch finds {torch.cuda.device_count()} CUDA devices")
    return found


def make_fabric(device: str = "auto", precision: Precision = "float32") -> Fabric:
    """What trains on a device, in as many processes as ``torchrun`` started.

    Args:
        device: See `find_device`; processes of ``torchrun`` on ``cuda`` take a device each.
        precision: ``bfloat16`` computes products and attention in bfloat16 and keeps weights in float32.

    Raises:
        ValueError: If there is no such device or precision.
    """
    if precision not in _FABRIC:
        raise ValueError(f"precision {precision!r} is unknown; give one of {', '.join(_FABRIC)}")
    found = find_device(device)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun sets these two
    nodes = max(int(os.environ.get("WORLD_SIZE", "1")) // processes, 1)
    devices: int | list[int] = processes if processes > 1 or found.index is None else [found.index]
    fabric = require("lightning_fabric").Fabric
    return fabric(accelerator=found.type, devices=devices, num_nodes=nodes, precision=_FABRIC[precision])
