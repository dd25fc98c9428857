"""Options of the command line made from dataclasses, written once, and those that several commands share."""

from __future__ import annotations

import argparse
import dataclasses
import os
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from docstring_parser import parse

from geoattn.train import find_device


def add_fields(parser: argparse._ActionsContainer, config: type, defaults: Any = None) -> None:
    """Add an option for each field of a dataclass that does not follow from the data.

    Its help is the field's entry under ``Attributes:`` in the docstring of the class, or of one it inherits from.

    Args:
        parser: Gets the options.
        config: The dataclass.
        defaults: An instance with other defaults than the class has.
    """
    types_of, described = get_type_hints(config), _descriptions(config)
    for field in _fields(config):
        default = field.default if defaults is None else getattr(defaults, field.name)
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            default=default,
            help=described.get(field.name, ""),
            **_argument(types_of[field.name]),
        )


def values_of(config: type, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the options say of the fields of a dataclass, by their names."""
    return {field.name: getattr(arguments, field.name) for field in _fields(config)}


def _fields(config: type) -> Iterator[dataclasses.Field[Any]]:
    return (field for field in dataclasses.fields(config) if not field.metadata.get("from_data"))


def _argument(kind: Any) -> dict[str, Any]:
    """How argparse reads a value of a type."""
    if get_origin(kind) in (Union, types.UnionType):  # ... | None
        [kind] = [choice for choice in get_args(kind) if choice is not type(None)]
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    if get_origin(kind) is tuple:
        return {"nargs": "+", **_argument(get_args(kind)[0])}
    return {"type": kind, "metavar": {int: "N", float: "X"}.get(kind, kind.__name__.upper())}


def _descriptions(config: type) -> dict[str, str]:
    found: dict[str, str] = {}
    for base in reversed(config.__mro__):
        for entry in parse(base.__doc__ or "").params:
            text = " ".join((entry.description or "").split()).replace("`", "").replace("None: ", "default: ")
            found[entry.arg_name] = text.replace("%", "%%")
    return found


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add ``--data`` and ``--samples``."""
    parser.add_argument(
        "--data", required=True, help="name of a data set, or a folder or file of your own (docs/your_own_data.md)"
    )
    parser.add_argument(
        "--samples", type=int, metavar="N", help="so many of a generator's samples, at most so many of a data set's"
    )


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made or written in, before the work whose results it shall get.

    Raises:
        OSError: If it is a file, or nothing can be written there.
    """
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir():
        raise NotADirectoryError(f"{folder}: {place} is a file; give the name of a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder}: nothing can be written in {place}")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``, ``--precision`` and ``--threads``."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<number>; auto: CUDA if there is any")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32", help="of products and attention"
    )
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads; default: torch's choice. 1 is often the fastest where the machine does other work",
    )


def set_device(arguments: argparse.Namespace) -> torch.device:
    """Do what ``--threads`` says and find the device of ``--device``."""
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise ValueError(f"--threads is {arguments.threads}; it must be at least 1")
        torch.set_num_threads(arguments.threads)
    return find_device(arguments.device)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help that shows every default but None, which each help text explains."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, argparse.SUPPRESS) else super()._get_help_string(action)
