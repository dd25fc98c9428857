"""``geoattn train``."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

from geoattn.cli.options import HelpFormatter, add_data, add_device, add_fields, check_folder, set_device, values_of
from geoattn.cli.report import print_figures, write_figures
from geoattn.data import LabelledSamples, MissingSplitError, hold_out
from geoattn.models import find_task, list_models, list_tasks, load_model, model_config
from geoattn.train import Samples, Task, TrainConfig, evaluate, fit, make_fabric
from geoattn.train.task import Split


def add_options(command: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Add the command's arguments: those of each task."""
    tasks = command.add_subparsers(required=True, metavar="TASK")
    for name in list_tasks():
        task = find_task(name)
        summary = (task.__doc__ or "").splitlines()[0].rstrip(".")
        of_task = tasks.add_parser(name, help=summary, description=summary, formatter_class=HelpFormatter)
        _add_options_of_task(of_task, task, argv)


def _add_options_of_task(command: argparse.ArgumentParser, task: type[Task], argv: Sequence[str]) -> None:
    add_data(command)
    command.add_argument("-o", "--output", type=Path, default=Path("runs") / task.name, help="checkpoints go here")
    command.add_argument("--resume", action="store_true", help="go on where the run in --output was stopped")
    command.add_argument(
        "--hold-out",
        metavar="WHAT",
        help="validate on these training samples: a share such as 0.2, or how their names begin (comma-separated)",
    )
    add_device(command)
    # Which options there are depends on the network, so it is looked for first.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--network", default=task.network)
    network = first.parse_known_args(argv)[0].network
    networks = list_models(task.name)
    command.add_argument("--network", choices=networks, default=task.network, help="what to train")
    add_fields(command.add_argument_group("options of the task"), task)
    if network in networks:
        add_fields(command.add_argument_group(f"options of the network {network}"), model_config(network))
    add_fields(command.add_argument_group("options of the training"), TrainConfig, task.training)
    command.set_defaults(run=lambda arguments: _train(arguments, task, argv))


def _train(arguments: argparse.Namespace, task_class: type[Task], argv: Sequence[str]) -> None:
    device, folder = set_device(arguments), arguments.output
    check_folder(folder)
    if (folder / "trainer.json").exists():
        raise ValueError(f"{folder} is a checkpoint; --output is the folder of the run, such as {folder.parent}")
    if (folder / "last").exists() and not arguments.resume:
        raise FileExistsError(f"{folder} holds a run; give --resume to go on with it, or another --output")
    if arguments.resume and not (folder / "last").exists():
        print(f"there is no run in {folder} to go on with: this is its beginning")
    task = task_class(**values_of(task_class, arguments))
    config = TrainConfig(**values_of(TrainConfig, arguments))
    samples, valid_samples, test_samples = _splits(task, arguments)
    if config.patience is not None and valid_samples is None:
        raise ValueError("--patience needs samples to validate on: give --hold-out, or data with a split valid")
    torch.manual_seed(config.seed)
    model = task.model(samples, arguments.network, **values_of(model_config(arguments.network), arguments))
    fabric = make_fabric(arguments.device, arguments.precision)
    first = os.environ.get("RANK", "0") == "0"  # torchrun's other processes have nothing to say
    if first:
        held = "" if valid_samples is None else f", {len(valid_samples)} to validate on"
        size = sum(p.numel() for p in model.parameters())
        print(f"{arguments.network}, {size:,} parameters, on {device}; {len(samples)} training samples{held}")
    try:
        result = fit(
            task,
            model,
            samples,
            folder,
            config,
            valid_samples=valid_samples,
            resume=arguments.resume,
            fabric=fabric,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"go on with: {_again(arguments, argv)}" if first else "") from None
    if first:
        early = ", stopped early," if result.epoch < config.epochs else ""
        print(f"{result.epoch} epochs{early} in {result.minutes:.1f} minutes; checkpoint: {result.checkpoint}")
    if test_samples is None:
        if first:
            print("not measured: " + ("--hold-out was given" if arguments.hold_out else "the data have no split test"))
        return
    model = load_model(result.checkpoint).to(fabric.device)
    figures = evaluate(task, model, test_samples, precision=arguments.precision)
    if first:
        print_figures(task, model, figures)
        write_figures(task, model, figures, folder)


def _again(arguments: argparse.Namespace, argv: Sequence[str]) -> str:
    """The command that goes on with the run."""
    if Path(sys.argv[0]).name != "geoattn" or "RANK" in os.environ:  # a script of one's own, or torchrun
        return "the same command with --resume"
    return shlex.join(["geoattn", *argv, *([] if arguments.resume else ["--resume"])])


def _splits(task: Task, arguments: argparse.Namespace) -> tuple[Samples, Samples | None, Samples | None]:
    """What to train on, to validate on and to test on, all opened before the work begins."""

    def split(name: Split) -> Samples | None:
        try:
            return task.dataset(arguments.data, name, arguments.samples)
        except MissingSplitError:
            return None

    samples = task.dataset(arguments.data, "train", arguments.samples)
    if arguments.hold_out is not None:  # such a run compares; the test split is for the one that was chosen
        return *hold_out(cast("LabelledSamples", samples), arguments.hold_out, arguments.seed), None
    return samples, split("valid"), split("test")
