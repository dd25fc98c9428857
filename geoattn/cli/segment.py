"""``geoattn segment``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geoattn
from geoattn.cli.options import add_device, set_device
from geoattn.data.io import annotate, check_output, check_path
from geoattn.models import load_model
from geoattn.models.points import PointNetwork, missing_features
from geoattn.models.segmentation import segment
from geoattn.models.segmentation.segment import HUMAN, SCENE
from geoattn.viz import PAGE_FORMATS, PICTURE_FORMATS, page, picture


def add_options(command: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Add the command's arguments."""
    command.add_argument("mesh", metavar="FILE", type=Path, help="any mesh or point cloud that geoattn.load reads")
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        help="write it with labels here: of a mesh as colors and attribute, of a cloud beside all that the file has",
    )
    command.add_argument("--picture", type=Path, help="write a picture (PNG) here")
    command.add_argument("--page", type=Path, help="write an interactive page (HTML) here")
    command.add_argument(
        "--model",
        help="folder of a run or a checkpoint, or hf-hub:<owner>/<name>; default: the package's for bodies, or rooms",
    )
    command.add_argument(
        "--votes", type=int, default=1, metavar="N", help="from how many views a cloud is labelled (turned, scaled ...)"
    )
    add_device(command)
    command.set_defaults(run=_segment)


def _segment(arguments: argparse.Namespace) -> None:
    output, title = arguments.output, arguments.mesh.name
    if not (output or arguments.picture or arguments.page):
        raise ValueError("nothing to write; give -o, --picture or --page")
    device = set_device(arguments)
    if output:
        check_output(output)
    for path, formats in ((arguments.picture, PICTURE_FORMATS), (arguments.page, PAGE_FORMATS)):
        if path:
            check_path(path, formats)
    data = geoattn.load(arguments.mesh)
    model = load_model(arguments.model or _default_model(data)).to(device)
    if "segmentation" not in model.tasks:
        raise ValueError(f"{arguments.model} holds a {model.name}, made for {', '.join(model.tasks)}, not for parts")
    labelled = model.config.labelled
    if labelled == "whole":
        raise ValueError(f"{arguments.model} labels clouds as a whole, not their points: it was trained to classify")
    if output:
        check_output(output, data, label_on=labelled)
    if isinstance(model, PointNetwork):
        for name in missing_features(data, model.config):
            print(f"{title} has no {name}: {'estimated' if name == 'normal' else 'taken as zero'}")
    elif arguments.votes != 1:
        raise ValueError(f"--votes is of networks of point clouds; {arguments.model or 'this'} holds a {model.name}")
    found = segment(data, model, precision=arguments.precision, votes=arguments.votes, progress=True)
    names = model.config.names
    for label, name in enumerate(names):
        mine = found.label == label
        if mine.any():
            share, score = float(mine.float().mean()), float(found.score[mine].mean())
            print(f"{name:>12}  {int(mine.sum()):7d}  {share:6.1%}  score {score:.2f}")
    if output:
        if data.face is None:
            annotate(arguments.mesh, output, data, label=found.label, score=found.score)
        else:
            geoattn.save(output, data, label=found.label, label_on=labelled)
        print(f"wrote {output}")
    if arguments.picture:
        picture(data, arguments.picture, label=found.label, label_on=labelled, names=names, title=title)
        print(f"wrote {arguments.picture}")
    if arguments.page:
        page(data, arguments.page, label=found.label, score=found.score, label_on=labelled, names=names, title=title)
        print(f"wrote {arguments.page}")


def _default_model(data: Any) -> Path:
    """The checkpoint of the package for what is in a file."""
    if data.face is None:
        print("no --model: the points get classes of rooms and tables, as of a scan in metres with z up")
        return SCENE
    return HUMAN
