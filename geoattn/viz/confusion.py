"""A confusion matrix as text and as a picture."""

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geoattn._optional import require
from geoattn.data.io import check_path, write_whole
from geoattn.viz.picture import PICTURE_FORMATS

_COLUMNS = 120  # of a terminal
_LONGEST_NAME = 18


def confusion_text(confusion: ArrayLike, names: Sequence[str]) -> str:
    """A table of at most 120 columns: how many samples each true class has, and per cent of them by predicted class.

    Columns are headed by numbers where names are too wide. Where there are too many classes for that, each row has the
    three classes it was most often taken for instead.

    Args:
        confusion: Counts ``[K, K]``, rows true classes, columns predicted ones, as `geoattn.metrics.ConfusionMatrix`
            has them.
        names: Of the classes, ``K``.

    Raises:
        ValueError: If ``confusion`` is not such a matrix.
    """
    count, percent, names = _read(confusion, names)
    total = [str(n) for n in count.sum(1)]
    cells = [[f"{p:.1f}" if n else "." for p, n in zip(*row, strict=True)] for row in zip(percent, count, strict=True)]
    numbered = [f"{i} {name}" for i, name in enumerate(names)]
    for labels, heads in ((names, names), (numbered, [str(i) for i in range(len(names))])):
        table = [[label, n, *row] for label, n, row in zip(labels, total, cells, strict=True)]
        lines = _aligned([["true", "count", *heads], *table])
        if len(lines[0]) <= _COLUMNS:
            return "\n".join(["per cent of each true class (rows) by predicted class (columns)", *lines])
    rows = [["true", "count", "right %"]]
    rows += [[name, n, f"{percent[i, i]:.1f}"] for i, (name, n) in enumerate(zip(names, total, strict=True))]
    wrong = ["  mistaken for, %"]
    for i, row in enumerate(count):
        order = [j for j in np.argsort(-row, kind="stable") if j != i and row[j]]
        wrong.append("  " + ", ".join(f"{names[j]} {cells[i][j]}" for j in order[:3]))
    return "\n".join((left + right).rstrip() for left, right in zip(_aligned(rows), wrong, strict=True))


def confusion_picture(confusion: ArrayLike, names: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Draw a confusion matrix into a PNG: per cent of each true class by predicted class, and counts if there is room.

    Args:
        confusion: Counts ``[K, K]``, rows true classes, columns predicted ones, as `geoattn.metrics.ConfusionMatrix`
            has them.
        names: Of the classes, ``K``.
        path: The file to write, with the extension png. Its folder must exist.

    Raises:
        ImportError: If matplotlib is not installed (extra ``viz``).
        OSError: If the folder of ``path`` does not exist or cannot be written in.
        ValueError: If ``confusion`` is not such a matrix, or ``path`` has another extension.
    """
    check_path(path, PICTURE_FORMATS)
    count, percent, names = _read(confusion, names)
    size = len(names)
    roomy = size <= 12
    cell = 0.62 if roomy else 0.28  # inches
    side = max(cell * size, 2.0)
    figure = require("matplotlib.figure", "viz").Figure(figsize=(side + 2.2, side + 1.6), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    for i, j in zip(*np.nonzero(count), strict=True):
        color = "white" if percent[i, j] > 55 else "#333333"
        text = f"{percent[i, j]:.1f}" if roomy else f"{percent[i, j]:.0f}"
        axes.text(j, i, text, ha="center", va="bottom" if roomy else "center", color=color, size=9 if roomy else 6)
        if roomy:
            axes.text(j, i + 0.08, count[i, j], ha="center", va="top", color=color, size=6)
    # Names are shown as they are: a dollar sign does not start a formula.
    style = {"size": 9 if roomy else 7, "parse_math": False}
    axes.set_xticks(range(size), names, rotation=45, ha="right", rotation_mode="anchor", **style)
    rows = [f"{name} ({n})" for name, n in zip(names, count.sum(1), strict=True)]
    axes.set_yticks(range(size), rows, **style)
    axes.set_xlabel("predicted (% of the true class)")
    axes.set_ylabel("true (count)")
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#dddddd", linewidth=0.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    with write_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _read(confusion: ArrayLike, names: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.float64], list[str]]:
    """Counts [K, K], per cent of their rows [K, K] (0 in an empty row) and names cut to what there is room for."""
    count = np.atleast_2d(np.asarray(confusion))
    if count.shape != (len(names), len(names)) or count.dtype.kind not in "iu" or (count < 0).any():
        raise ValueError(
            f"confusion must be counts (integers from 0) [{len(names)}, {len(names)}], by as many names; "
            f"got {count.dtype} {list(count.shape)}"
        )
    count = count.astype(np.int64)
    percent = 100 * count / np.maximum(count.sum(1, keepdims=True), 1)
    short = [name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…" for name in names]
    return count, percent, short


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines of one length: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
