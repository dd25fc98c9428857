"""``geoattn evaluate``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from geoattn.cli.options import add_data, add_device, check_folder, set_device
from geoattn.cli.report import print_figures, write_figures
from geoattn.models import load_model, load_task
from geoattn.models.segmentation.segment import HUMAN
from geoattn.train import evaluate


def add_options(command: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Add the command's arguments."""
    command.add_argument(
        "model",
        nargs="?",
        default=str(HUMAN),
        help="folder of a run or a checkpoint, or hf-hub:<owner>/<name>; default: parts of human bodies",
    )
    add_data(command)
    command.add_argument("--split", choices=("train", "valid", "test"), default="test", help="which samples")
    command.add_argument("--batch-size", type=int, metavar="N", help="samples at a time; default: as it was trained")
    command.add_argument(
        "-o", "--output", type=Path, help="folder for the figures (JSON) and the confusion matrix (PNG)"
    )
    add_device(command)
    command.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> None:
    device = set_device(arguments)
    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise ValueError(f"--batch-size is {arguments.batch_size}; it must be at least 1")
    if arguments.output:
        check_folder(arguments.output)
    task, model = load_task(arguments.model), load_model(arguments.model).to(device)
    samples = task.dataset(arguments.data, arguments.split, arguments.samples)
    figures = evaluate(task, model, samples, batch_size=arguments.batch_size, precision=arguments.precision)
    print_figures(task, model, figures)
    if arguments.output:
        write_figures(task, model, figures, arguments.output)
