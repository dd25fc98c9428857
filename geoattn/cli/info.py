"""``geoattn info``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import geoattn


def add_options(command: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Add the command's arguments."""
    command.add_argument("mesh", type=Path, help="any file geoattn.load reads")
    command.set_defaults(run=_info)


def _info(arguments: argparse.Namespace) -> None:
    data = geoattn.load(arguments.mesh)
    has = ", ".join(key for key in data.to_dict() if key not in ("pos", "face")) or "positions only"
    for name, value in (("file", arguments.mesh), ("has", has)):
        print(f"{name:>18}  {value}")
    print(geoattn.geometry.describe(data.pos, data.face))
