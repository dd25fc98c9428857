"""Checks of arguments that are the same everywhere: errors repeat what was given and say what to give instead."""

from __future__ import annotations

import operator
import os
import warnings
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data


def check_tensors(**arguments: object) -> None:
    """That arguments, given by their names, are tensors.

    Raises:
        TypeError: If one is not.
    """
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {described(name, value)}")


def described(name: str, value: object) -> str:
    """What was given under a name, and how it becomes a tensor."""
    if isinstance(value, np.ndarray):
        return f"a numpy array {value.shape}; pass torch.from_numpy({name})"
    if isinstance(value, Data):
        return f"a Data; pass data.{name}"
    if isinstance(value, (list, tuple)) and all(isinstance(x, Tensor) for x in value):
        return f"a {type(value).__name__} of {len(value)} tensors; join them with torch.cat or torch.stack"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}; pass torch.tensor({name})"
    return f"{type(value).__name__} {value!r:.60}" if isinstance(value, (str, float, int)) else type(value).__name__


def checked_integer(name: str, value: Any, least: int | None = None) -> int:
    """An argument as an integer of Python's: numpy's and torch's are integers, numbers such as 4.0 and True are not.

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it is less than ``least``.
    """
    if type(value) is not int and not isinstance(value, torch.SymInt):
        number = value.item() if isinstance(value, (Tensor, np.ndarray, np.generic)) and value.ndim == 0 else value
        if isinstance(number, (bool, Tensor, np.ndarray)) or not hasattr(number, "__index__"):
            whole = isinstance(number, float) and number.is_integer()
            hint = f"; pass {int(number)}" if whole else ""
            raise TypeError(f"{name} must be an integer, got {type(number).__name__} {number!r:.60}{hint}")
        value = operator.index(number)
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return cast("int", value)


def check_data(data: object) -> None:
    """That a mesh or a cloud is given as PyG's `Data`.

    Raises:
        TypeError: If it is something else, such as the path of a file.
    """
    if isinstance(data, Data):
        return
    if isinstance(data, (str, os.PathLike)):
        what = f"a path; read the file first: geoattn.load({os.fspath(data)!r})"
    elif type(data).__module__.startswith("trimesh."):
        what = f"trimesh's {type(data).__name__}; convert it with torch_geometric.utils.from_trimesh"
    else:
        what = f"{type(data).__name__}; pass Data(pos=..., face=...)"
    raise TypeError(f"expected a mesh or a point cloud as torch_geometric.data.Data, got {what}")


@cache
def warn_once(message: str) -> None:
    """Warn, once in a process."""
    warnings.warn(message, stacklevel=3)
