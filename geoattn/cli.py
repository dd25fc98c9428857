"""The command line: ``geoattn segment``, ``info``, ``train``, ``evaluate``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import geoattn
from geoattn.data import Bodies, LoadError, MeshCNNDataset
from geoattn.data.transforms import ELEMENTS, Element
from geoattn.models.segmentation import (
    SurfaceTransformer,
    SurfaceTransformerConfig,
    evaluate,
    segment,
)
from geoattn.models.segmentation import (
    train as train_segmentation,
)
from geoattn.models.segmentation.segment import HUMAN
from geoattn.train import Samples, TrainConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 where the input is at fault."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (LoadError, OSError, ValueError, ImportError) as error:
        print(f"geoattn: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("geoattn", description="Attention for meshes and point clouds.")
    parser.add_argument("--version", action="version", version=f"geoattn {geoattn.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("segment", help="label the parts of a mesh")
    command.add_argument("mesh", type=Path, help="any mesh file geoattn.load reads")
    command.add_argument("-o", "--output", type=Path, help="write the mesh with labels as colors and attribute here")
    command.add_argument("--picture", type=Path, help="write a picture (PNG) here")
    command.add_argument("--page", type=Path, help="write an interactive page (HTML) here")
    command.add_argument(
        "--model", default=str(HUMAN), help="checkpoint folder or hub id; default: parts of human bodies"
    )
    command.set_defaults(run=_segment)

    command = commands.add_parser("info", help="what is in a mesh file, and what may go wrong with it")
    command.add_argument("mesh", type=Path)
    command.set_defaults(run=_info)

    command = commands.add_parser("train", help="train a network")
    tasks = command.add_subparsers(required=True, metavar="TASK")
    task = tasks.add_parser(
        "segmentation",
        help="parts of meshes, or classes of whole meshes where the data has one label for each",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_data(task)
    task.add_argument("--output", "-o", type=Path, default=Path("runs/segmentation"), help="checkpoints go here")
    task.add_argument("--epochs", type=int, default=60)
    task.add_argument("--minutes", type=float, help="stop after this time, with the learning rate at 0")
    task.add_argument("--batch-size", type=int, default=4)
    task.add_argument("--lr", type=float, default=1e-3)
    task.add_argument("--weight-decay", type=float, default=0.05)
    task.add_argument("--seed", type=int, default=0)
    task.add_argument("--copies", type=int, default=4, help="deformations of each mesh, itself included")
    task.add_argument(
        "--hold-out", default="", help="validate on the training meshes whose names begin so (comma-separated)"
    )
    task.add_argument("--patience", type=int, help="with --hold-out: stop after so many epochs without a better one")
    task.add_argument("--element", choices=ELEMENTS, default="vertex", help="what attends")
    task.add_argument("--labelled", choices=ELEMENTS, default="face", help="what gets labels")
    for name in ("channels", "blocks", "latents", "heads"):
        task.add_argument(f"--{name}", type=int, default=getattr(SurfaceTransformerConfig, name))
    task.add_argument("--dropout", type=float, default=SurfaceTransformerConfig.dropout)
    task.add_argument("--threads", type=int, help="CPU threads; default: torch's choice")
    task.add_argument("--resume", action="store_true", help="go on where the run in --output was stopped")
    task.set_defaults(run=_train)

    command = commands.add_parser("evaluate", help="measure a network on labelled meshes")
    command.add_argument("model", nargs="?", default=str(HUMAN), help="checkpoint folder or hub id")
    _add_data(command)
    command.add_argument("--split", choices=("train", "test"), default="test")
    command.set_defaults(run=_evaluate)
    return parser


def _add_data(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data", required=True, help='zip or folder of a set in MeshCNN\'s layout, or "bodies": random human bodies'
    )
    command.add_argument("--meshes", type=int, default=1000, help="how many random bodies")


def _segment(arguments: argparse.Namespace) -> None:
    if not (arguments.output or arguments.picture or arguments.page):
        raise ValueError("nothing to write; give -o, --picture or --page")
    data = geoattn.load(arguments.mesh)
    model = SurfaceTransformer.from_pretrained(arguments.model)
    found = segment(data, model)
    names, title = model.config.names, arguments.mesh.name
    for label, name in enumerate(names):
        mine = found.label == label
        if mine.any():
            share, score = float(mine.float().mean()), float(found.score[mine].mean())
            print(f"{name:>12}  {int(mine.sum()):7d}  {share:6.1%}  score {score:.2f}")
    if arguments.output:
        geoattn.save(arguments.output, data, label=found.label)
        print(f"wrote {arguments.output}")
    if arguments.picture:
        from geoattn.viz import picture

        picture(data, arguments.picture, label=found.label, names=names, title=title)
        print(f"wrote {arguments.picture}")
    if arguments.page:
        from geoattn.viz import page

        page(data, arguments.page, label=found.label, score=found.score, names=names, title=title)
        print(f"wrote {arguments.page}")


def _info(arguments: argparse.Namespace) -> None:
    data = geoattn.load(arguments.mesh)
    has = ", ".join(key for key in data.to_dict() if key not in ("pos", "face")) or "positions only"
    for name, value in (("file", arguments.mesh), ("has", has)):
        print(f"{name:>18}  {value}")
    print(geoattn.geometry.describe(data.pos, data.face))


def _meshes(arguments: argparse.Namespace, split: str, labelled: Element) -> MeshCNNDataset | Bodies:
    """The data set of ``--data``. Bodies of the two splits never share a seed."""
    if arguments.data != "bodies":
        return MeshCNNDataset(arguments.data, split, labelled)
    if labelled != "face":
        raise ValueError(f"bodies have labels on their faces, not on each {labelled}")
    return Bodies(arguments.meshes, seed=0) if split == "train" else Bodies(max(arguments.meshes // 10, 1), seed=1)


def _train(arguments: argparse.Namespace) -> None:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if (arguments.output / "last").exists() and not arguments.resume:
        raise FileExistsError(f"{arguments.output} holds a run; give --resume to go on with it, or another --output")
    meshes = _meshes(arguments, "train", arguments.labelled)
    train_meshes: Samples = meshes
    valid_meshes: Samples | None = None
    if arguments.hold_out:
        if isinstance(meshes, Bodies):
            raise ValueError("--hold-out chooses meshes by name, and bodies have none")
        every = [meshes[i] for i in range(len(meshes))]
        held = [mesh.name.startswith(tuple(arguments.hold_out.split(","))) for mesh in every]
        if all(held) or not any(held):
            raise ValueError(f"--hold-out {arguments.hold_out}: holds out {sum(held)} of {len(held)} meshes")
        train_meshes = [mesh for mesh, out in zip(every, held, strict=True) if not out]
        valid_meshes = [mesh for mesh, out in zip(every, held, strict=True) if out]
    torch.manual_seed(arguments.seed)
    model = SurfaceTransformer(
        SurfaceTransformerConfig(
            names=meshes.names,
            element=arguments.element,
            labelled=arguments.labelled,
            whole=meshes.labelled == "whole",
            faces=max(train_meshes[i].face.size(1) for i in range(min(len(train_meshes), 20))),
            channels=arguments.channels,
            heads=arguments.heads,
            blocks=arguments.blocks,
            latents=arguments.latents,
            dropout=arguments.dropout,
        )
    )
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(train_meshes)} training meshes")
    config = TrainConfig(
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        weight_decay=arguments.weight_decay,
        seed=arguments.seed,
        minutes=arguments.minutes,
        patience=arguments.patience,
    )
    result = train_segmentation(
        model,
        train_meshes,
        arguments.output,
        config,
        valid_meshes=valid_meshes,
        copies=arguments.copies,
        resume=arguments.resume,
    )
    if os.environ.get("RANK", "0") != "0":  # torchrun's other processes have nothing to say
        return
    print(f"{result.epoch} epochs in {result.minutes:.1f} minutes; checkpoint: {result.checkpoint}")
    if valid_meshes is None:
        model = SurfaceTransformer.from_pretrained(result.checkpoint)
        _report(evaluate(model, _meshes(arguments, "test", arguments.labelled)), arguments.output / "test.json")


def _evaluate(arguments: argparse.Namespace) -> None:
    model = SurfaceTransformer.from_pretrained(arguments.model)
    meshes = _meshes(arguments, arguments.split, model.config.labelled)
    if (meshes.labelled == "whole", meshes.names) != (model.config.whole, model.config.names):
        raise ValueError(
            f"{arguments.data} has the classes {', '.join(meshes.names)}, "
            f"but {arguments.model} was trained for {', '.join(model.config.names)}"
        )
    _report(evaluate(model, meshes))


def _report(figures: dict[str, float], path: Path | None = None) -> None:
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):>20}  {value:.2%}")
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n")
