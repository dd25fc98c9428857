"""Figures of an evaluation, printed and written."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor, nn

from geoattn.data.io import write_whole
from geoattn.train import Task
from geoattn.viz import confusion_picture, confusion_text


def print_figures(task: Task, model: nn.Module, figures: dict[str, Tensor]) -> None:
    """Print scalars, as per cent where they lie between 0 and 1, and the confusion matrix."""
    metrics = task.metrics(model)
    for name, value in figures.items():
        if value.ndim == 0:
            share = (metrics[name].plot_lower_bound, metrics[name].plot_upper_bound) == (0.0, 1.0)
            shown = f"{value.item():{'.2%' if share else '.4g'}}" if value.isfinite() else "none: nothing was labelled"
            print(f"{name.replace('_', ' '):>20}  {shown}")
    if (matrix := figures.get("confusion")) is not None:
        print(f"\n{confusion_text(matrix, _names(model, matrix))}")


def write_figures(task: Task, model: nn.Module, figures: dict[str, Tensor], folder: Path, name: str = "test") -> None:
    """Write ``<name>.json``, and the confusion matrix as ``<name>_confusion.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {key: value.tolist() if value.isfinite().all() else None for key, value in figures.items()}
    with write_whole(folder / f"{name}.json") as new:
        new.write_text(json.dumps(values, indent=2) + "\n")
    if (matrix := figures.get("confusion")) is not None:
        try:
            confusion_picture(matrix, _names(model, matrix), folder / f"{name}_confusion.png")
        except ImportError as error:
            print(f"no picture of the confusion matrix: {error}")


def _names(model: nn.Module, matrix: Tensor) -> tuple[str, ...]:
    return getattr(model.config, "names", None) or tuple(str(label) for label in range(len(matrix)))
