"""The command line: ``geoattn segment``, ``info``, ``train``, ``evaluate``; one file for each."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

import geoattn
from geoattn.cli.options import HelpFormatter
from geoattn.data import LoadError

COMMANDS = {
    "segment": "label the parts of a mesh or a point cloud",
    "info": "what is in a file of a mesh or a cloud, and what may go wrong with it",
    "train": "train a network",
    "evaluate": "measure a network on labelled samples",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, 2 where the input is at fault, 130 after Ctrl-C, 141 where nobody reads the output.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser("geoattn", description="Attention for meshes and point clouds.")
    parser.add_argument("--version", action="version", version=f"geoattn {geoattn.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary, formatter_class=HelpFormatter)
        if argv[:1] == [name]:  # the others need not be imported
            import_module(f"geoattn.cli.{name}").add_options(command, argv)
    arguments = parser.parse_args(argv)
    as_before = warnings.formatwarning
    warnings.formatwarning = _warning
    try:
        arguments.run(arguments)
    except KeyboardInterrupt as error:
        print(f"\ngeoattn: stopped; {error}".rstrip("; "), file=sys.stderr)
        return 130
    except BrokenPipeError:  # the output went to a program that wanted no more of it, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (LoadError, OSError, ValueError, ImportError, FloatingPointError) as error:
        print(f"geoattn: {error}", file=sys.stderr)
        return 2
    finally:
        warnings.formatwarning = as_before
    return 0


def _warning(message: Warning | str, *_: object, **__: object) -> str:
    """What a warning says, without the line of ours that says it."""
    return f"geoattn: {message}\n"
