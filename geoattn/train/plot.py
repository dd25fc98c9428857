"""The history of a training run as JSON, as a table and as curves."""

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

from geoattn._optional import require
from geoattn.train.config import Row, TrainResult


def write_history(result: TrainResult) -> None:
    """Write ``history.json`` and ``history.csv``."""
    table = io.StringIO()
    rows = csv.DictWriter(
        table, list(dict.fromkeys(name for row in result.history for name in row)), lineterminator="\n"
    )
    rows.writeheader()
    rows.writerows(result.history)
    for name, text in (
        ("history.json", json.dumps(result.history, indent=1)),
        ("history.csv", table.getvalue()),
    ):
        new = result.folder / f"{name}.tmp"
        new.write_text(text)
        os.replace(new, result.folder / name)


def write_curves(result: TrainResult) -> None:
    """Write ``curves.png``, if matplotlib is installed."""
    try:
        plot_curves(result.history, result.folder / "curves.png", result.best_epoch)
    except ImportError as error:
        print(f"no curves.png: {error}")


def plot_curves(history: Sequence[Row], path: str | Path, best_epoch: int | None = None) -> None:
    """Draw the training loss and the validation metrics against the epoch, and write a PNG to ``path``.

    Args:
        history: One row per epoch, as in :class:`geoattn.train.TrainResult`: ``epoch``, ``loss``, and any
            number of ``valid_...``, of which the first is the monitored one.
        path: The PNG to write.
        best_epoch: The epoch to mark, counted from 1.

    Raises:
        ImportError: If matplotlib, which the extra ``viz`` installs, is missing.
    """
    figure_module = require("matplotlib.figure", "viz")
    ticker = require("matplotlib.ticker", "viz")
    metrics = [name for name in history[-1] if name.startswith("valid_")] if history else []
    panels = 2 if metrics else 1
    # A Figure of its own, not pyplot's: no window, and the caller's backend stays as it is.
    figure = figure_module.Figure(figsize=(6.4, 2.8 * panels), layout="constrained")
    axes = figure.subplots(panels, sharex=True, squeeze=False)[:, 0]
    epochs = [row["epoch"] for row in history]

    def draw(panel: int, name: str, label: str, color: str) -> None:
        values = [float("nan") if (value := row.get(name)) is None else value for row in history]
        marker = "." if len(history) < 50 else ""
        axes[panel].plot(epochs, values, label=label, color=color, marker=marker, linewidth=1.5)

    draw(0, "loss", "training loss", "C0")
    losses = [value for row in history if (value := row["loss"]) is not None]
    if losses and 0 < 10 * min(losses) < max(losses):
        axes[0].set_yscale("log")
    axes[0].set_ylabel("training loss")
    if metrics:
        for index, name in enumerate(metrics):
            draw(1, name, name.removeprefix("valid_").replace("_", " "), f"C{1 + index % 9}")
        if best_epoch is not None:
            best = history[best_epoch - 1]
            axes[1].plot([best["epoch"]], [best[metrics[0]]], "o", color="C1", markersize=9, fillstyle="none")
            axes[1].annotate(
                f"{best[metrics[0]]:.4g}",
                (best["epoch"], best[metrics[0]]),
                (0, -14),
                textcoords="offset points",
            )
        axes[1].set_ylabel("validation")
        axes[1].legend(fontsize="small", frameon=False, ncols=1 + (len(metrics) - 1) // 8)
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
    axes[-1].set_xlim(0.5, max(len(history), 1) + 0.5)
    axes[-1].set_xlabel("epoch")
    new = Path(f"{path}.tmp")
    figure.savefig(new, format="png", dpi=150)
    os.replace(new, path)
