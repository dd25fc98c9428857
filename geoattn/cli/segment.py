"""``geoattn segment``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geoattn
from geoattn.cli.options import add_device, set_device
from geoattn.data.io import check_output, check_path
from geoattn.models import load_model
from geoattn.models.segmentation import segment
from geoattn.models.segmentation.segment import HUMAN
from geoattn.viz import PAGE_FORMATS, PICTURE_FORMATS, page, picture


def add_options(command: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Add the command's arguments."""
    command.add_argument("mesh", type=Path, help="any mesh file geoattn.load reads")
    command.add_argument("-o", "--output", type=Path, help="write the mesh with labels as colors and attribute here")
    command.add_argument("--picture", type=Path, help="write a picture (PNG) here")
    command.add_argument("--page", type=Path, help="write an interactive page (HTML) here")
    command.add_argument(
        "--model",
        help="folder of a run or a checkpoint, or hf-hub:<owner>/<name>; default: parts of human bodies, for meshes",
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
    model = load_model(arguments.model or _default_model(arguments.mesh, data)).to(device)
    if "segmentation" not in model.tasks:
        raise ValueError(f"{arguments.model} holds a {model.name}, made for {', '.join(model.tasks)}, not for parts")
    labelled = model.config.labelled
    if output:
        check_output(output, data, label_on=labelled)
    found = segment(data, model, precision=arguments.precision)
    names = model.config.names
    for label, name in enumerate(names):
        mine = found.label == label
        if mine.any():
            share, score = float(mine.float().mean()), float(found.score[mine].mean())
            print(f"{name:>12}  {int(mine.sum()):7d}  {share:6.1%}  score {score:.2f}")
    if output:
        geoattn.save(output, data, label=found.label, label_on=labelled)
        print(f"wrote {output}")
    if arguments.picture:
        picture(data, arguments.picture, label=found.label, label_on=labelled, names=names, title=title)
        print(f"wrote {arguments.picture}")
    if arguments.page:
        page(data, arguments.page, label=found.label, score=found.score, label_on=labelled, names=names, title=title)
        print(f"wrote {arguments.page}")


def _default_model(path: Path, data: Any) -> Path:
    """The checkpoint of the package for what is in a file."""
    if data.face is None:
        raise ValueError(f"{path} is a point cloud, and no checkpoint in the package segments those; give --model")
    return HUMAN
