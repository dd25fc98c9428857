"""Results of slow functions kept on disk, found again by the content of the arguments."""

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import Tensor

from geoattn._optional import require

# Part of every key: raise it when a cached function changes what it returns for the same arguments.
_VERSION = 1

Result = TypeVar("Result", bound=Tensor | tuple[Tensor, ...])


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


def cached(function: Callable[..., Result], *args: object, **kwargs: object) -> Result:
    """``function(*args, **kwargs)``, computed once and read from disk from then on.

    The key is the SHA-256 of the function's full name and of all arguments: for tensors their dtype, shape
    and values. Any number of processes may share the folder. A file that cannot be read is computed again and
    replaced; a folder that cannot be written costs one warning, not the result::

        eigenvalues, eigenvectors = cached(eigenbasis, pos, face, 64)

    Args:
        function: A function defined at the top of a module, whose result depends on its arguments only: a
            tensor or a tuple of tensors.
        *args: Its arguments: tensors, numbers, strings, booleans, None, and tuples or lists of these.
        **kwargs: Its arguments by name.

    Returns:
        The function's result on the CPU, without gradient, the same bits whether computed or read.

    Raises:
        TypeError: If an argument is of another type, or the function is a lambda or local to another.
    """
    safetensors = require("safetensors.torch")
    path = cache_dir() / f"{_key(function, args, kwargs)}.safetensors"
    try:
        return cast(Result, _unpack(safetensors.load_file(path)))
    except (require("safetensors").SafetensorError, OSError, KeyError):
        pass
    tensors = _pack(function(*args, **kwargs))
    try:
        _write(path, safetensors.save(tensors))
    except OSError as error:
        _warn_once(f"cannot keep results in {path.parent} ({error.strerror}); set GEOATTN_CACHE elsewhere")
    return cast(Result, _unpack(tensors))


def _pack(result: Tensor | tuple[Tensor, ...]) -> dict[str, Tensor]:
    named = {"single": result} if isinstance(result, Tensor) else {str(i): t for i, t in enumerate(result)}
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in named.items()}


def _unpack(tensors: dict[str, Tensor]) -> Tensor | tuple[Tensor, ...]:
    if "single" in tensors:
        return tensors["single"]
    return tuple(tensors[str(i)] for i in range(len(tensors)))


def _key(function: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]) -> str:
    name = f"{function.__module__}.{function.__qualname__}"
    if "<" in name:
        raise TypeError(f"cached() needs a function defined at the top of a module, got {name}")
    digest = hashlib.sha256()
    _update(digest, (_VERSION, name, args, tuple(sorted(kwargs.items()))))
    return digest.hexdigest()


def _update(digest: "hashlib._Hash", value: object) -> None:
    """Feed a value so that different values, also of different type or nesting, feed different bytes."""
    if isinstance(value, Tensor):
        digest.update(f"tensor {value.dtype} {tuple(value.shape)}:".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, (tuple, list)):
        digest.update(f"{type(value).__name__} {len(value)}:".encode())
        for item in value:
            _update(digest, item)
    elif value is None or isinstance(value, (bool, int, float, str)):
        text = repr(value)
        digest.update(f"{type(value).__name__} {len(text)}:{text}".encode())
    else:
        raise TypeError(f"cached() takes tensors, numbers, strings, None, tuples of these; got {type(value)}")


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


@lru_cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)
