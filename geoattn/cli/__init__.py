"""The command line: ``geoattn segment``, ``info``, ``train``, ``evaluate``; one file for each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import geoattn
from geoattn.cli import evaluate, info, segment, train
from geoattn.data import LoadError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, 2 where the input is at fault, or 130 after Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser("geoattn", description="Attention for meshes and point clouds.")
    parser.add_argument("--version", action="version", version=f"geoattn {geoattn.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (segment, info, train, evaluate):
        command.add(commands, argv)
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except KeyboardInterrupt:
        print("geoattn: stopped", file=sys.stderr)
        return 130
    except (LoadError, OSError, ValueError, ImportError, FloatingPointError) as error:
        print(f"geoattn: {error}", file=sys.stderr)
        return 2
    return 0
