"""Results of slow computations kept on disk, found again by the content of what they were made from."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import tempfile
import types
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from geoattn._optional import require

Value: TypeAlias = Tensor | str | int | float | bool | None
# The entry of a file that has the values that are not tensors, as JSON.
_OTHERS = "json"


def cache_dir() -> Path:
    """The cache's folder: ``$GEOATTN_CACHE``, or else ``geoattn`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if folder := os.environ.get("GEOATTN_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "geoattn"


def clear_cache() -> int:
    """Delete all cached results, and only those.

    Returns:
        How many files were deleted.
    """
    count = 0
    for pattern in ("*.safetensors", "*.safetensors.tmp"):
        for path in cache_dir().glob(pattern):
            path.unlink(missing_ok=True)
            count += 1
    return count


def cached(key: str, compute: Callable[[], Mapping[str, Value]]) -> dict[str, Value]:
    """``compute()``, computed once and read from disk from then on.

    Any number of processes may share the folder. A file that cannot be read is computed again and replaced; a folder
    that cannot be written costs one warning, not the result.

    Args:
        key: A :func:`fingerprint` of all that the result depends on.
        compute: Gives tensors, strings, numbers and None by name.

    Returns:
        The result, its tensors on the CPU and without gradient; the same bits whether computed or read.

    Raises:
        TypeError: If the result holds anything else.
    """
    path = cache_dir() / f"{key}.safetensors"
    try:
        return _unpack(path.read_bytes())
    except (require("safetensors").SafetensorError, OSError, KeyError, ValueError):
        content = _pack(compute())
    try:
        _write(path, content)
    except OSError as error:
        _warn_once(f"cannot keep results in {path.parent} ({error.strerror}); set GEOATTN_CACHE elsewhere")
    return _unpack(content)


def fingerprint(*values: object) -> str:
    """SHA-256 of the values, of this package's source and of the source of the functions among them.

    Args:
        *values: Tensors (their dtype, shape and content count), numbers, strings, None; tuples, lists and dicts of
            these; functions and classes defined at the top of a module; and objects of such classes, as transforms and
            dataclasses are, and their methods, where their attributes are all of that kind.

    Raises:
        TypeError: If a value is of another type.
    """
    digest = hashlib.sha256(_package_source())
    _update(digest, values)
    return digest.hexdigest()


@functools.lru_cache
def _package_source() -> bytes:
    """A digest of all Python files of the package, so that a change in any of them outdates what is kept."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.digest()


@functools.lru_cache
def _source(defined: type | types.FunctionType) -> bytes:
    """The file in which a function or class is defined."""
    name = f"{defined.__module__}.{defined.__qualname__}"
    file = inspect.getsourcefile(defined)
    if "<" in name or file is None:
        raise TypeError(f"nothing says when {name} changes; it must be defined at the top of a module")
    return name.encode() + hashlib.sha256(Path(file).read_bytes()).digest()


def _update(digest: hashlib._Hash, value: object) -> None:
    """Feed a value so that different values, also of different type or nesting, feed different bytes."""
    if isinstance(value, Tensor):
        digest.update(f"tensor {value.dtype} {tuple(value.shape)}:".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, (tuple, list)):
        digest.update(f"{type(value).__name__} {len(value)}:".encode())
        for item in value:
            _update(digest, item)
    elif isinstance(value, dict):
        digest.update(f"dict {len(value)}:".encode())
        for item in value.items():
            _update(digest, item)
    elif value is None or isinstance(value, (bool, int, float, str)):
        text = repr(value)
        digest.update(f"{type(value).__name__} {len(text)}:{text}".encode())
    elif isinstance(value, (type, types.FunctionType)):
        digest.update(b"source:" + _source(value))
    elif isinstance(value, types.MethodType):
        _update(digest, (value.__name__, value.__self__))
    elif hasattr(value, "__dict__") and _is_its_attributes(type(value)):
        _update(digest, (type(value), vars(value)))
    else:
        raise TypeError(
            f"nothing says when a {type(value).__qualname__} changes; give a function at the top of a module, or an "
            "object whose attributes are tensors, numbers, strings and the like"
        )


def _is_its_attributes(cls: type) -> bool:
    """Whether an object is made of nothing but the attributes one sees, as pickle judges it."""
    return all(getattr(cls, name) is getattr(object, name) for name in ("__reduce__", "__reduce_ex__"))


def _pack(result: Mapping[str, Value]) -> bytes:
    tensors: dict[str, Tensor] = {}
    others: dict[str, Value] = {}
    for name, value in result.items():
        if isinstance(value, Tensor) and not value.is_sparse:
            tensors[f"tensor.{name}"] = value.detach().cpu().contiguous().clone()
        elif value is None or isinstance(value, (str, int, float)):
            others[name] = value
        else:
            raise TypeError(f"{name!r} is a {type(value).__qualname__}; only tensors, strings and numbers can be kept")
    # The order of the names, which neither of the two parts keeps.
    text = json.dumps({"names": list(result), "values": others})
    tensors[_OTHERS] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    return bytes(require("safetensors.torch").save(tensors))


def _unpack(content: bytes) -> dict[str, Value]:
    tensors = require("safetensors.torch").load(content)
    stored = json.loads(tensors.pop(_OTHERS).numpy().tobytes())
    found = stored["values"] | {name.removeprefix("tensor."): tensor for name, tensor in tensors.items()}
    return {name: found[name] for name in stored["names"]}


def _write(path: Path, content: bytes) -> None:
    """Write a file in one step: a reader sees all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(suffix=".safetensors.tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@functools.lru_cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)
