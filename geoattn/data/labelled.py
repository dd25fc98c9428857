"""What labelled data sets have in common, and parts of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch_geometric.data import Dataset

from geoattn._arguments import check_tensors
from geoattn.data.io import LoadError

Labelled = Literal["face", "vertex", "edge", "whole"]
"""What labels are for; ``"whole"``: one label for each sample."""

IGNORED = -1
"""The label of what is not labelled: it counts neither in the loss nor in the metrics."""


class LabelledSamples(Protocol):
    """A labelled data set: samples with ``pos``, ``face`` if they are meshes, ``y`` and mostly ``name``."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes."""

    @property
    def labelled(self) -> Labelled:
        """What ``y`` labels."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class LabelledSubset(Dataset):
    """Some samples of a labelled data set, with its classes.

    Args:
        samples: The data set.
        chosen: Which of its samples, in the order they are to have.
    """

    def __init__(self, samples: LabelledSamples, chosen: Sequence[int]) -> None:
        super().__init__()
        self.samples = samples
        self.chosen = chosen
        self.names = samples.names
        self.labelled = samples.labelled
        for name in ("category_names", "parts_of_category"):  # of sets whose parts belong to categories of objects
            if hasattr(samples, name):
                setattr(self, name, getattr(samples, name))

    def len(self) -> int:
        """How many samples."""
        return len(self.chosen)

    def get(self, idx: int) -> Any:
        """Sample ``idx``."""
        return self.samples[self.chosen[idx]]


def hold_out(samples: LabelledSamples, spec: str, seed: int = 0) -> tuple[LabelledSubset, LabelledSubset]:
    """Hold some samples out of training, to validate on.

    Args:
        samples: A labelled data set.
        spec: A share with a decimal point, such as ``"0.2"``, drawn at random; or, separated by commas, how the names
            of the samples to hold out begin.
        seed: Of the draw.

    Returns:
        What is left to train on, and what is held out, in the order they had.

    Raises:
        ValueError: If nothing or everything would be held out, a prefix fits no sample, or samples have no names.
    """
    count = len(samples)
    if re.fullmatch(r"\d*\.\d+", spec):
        chosen = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[: round(float(spec) * count)]
        held = set(chosen.tolist())
    else:
        held = _begin_with(samples, spec)
    if not 0 < len(held) < count:
        raise ValueError(f"hold-out {spec!r}: holds out {len(held)} of {count} samples")
    return (
        LabelledSubset(samples, [i for i in range(count) if i not in held]),
        LabelledSubset(samples, sorted(held)),
    )


def _begin_with(samples: LabelledSamples, spec: str) -> set[int]:
    """The samples whose names begin with one of the prefixes."""
    prefixes = [prefix.strip() for prefix in spec.split(",")]
    if not all(prefixes):
        raise ValueError(f"hold-out {spec!r}: expected a share such as 0.2, or beginnings of names between commas")
    names = []
    for i in range(len(samples)):
        name = samples[i].get("name")
        if name is None:
            raise ValueError(
                f"hold-out {spec!r}: samples are chosen by name, and these have none; give a share such as 0.2"
            )
        names.append(str(name))
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            raise ValueError(f"hold-out {spec!r}: no name begins with {prefix!r}; the first names are {names[:3]}")
    return {i for i, name in enumerate(names) if name.startswith(tuple(prefixes))}


def check_labels(
    y: object, num_classes: int, count: int | None = None, name: str = "the sample", ignored: int = IGNORED
) -> Tensor:
    """Labels ``[count]`` of a sample, found to be integers, each of them a class or ignored.

    Args:
        y: The labels, ``[count]``; a single one may have no dimension.
        num_classes: Number of classes ``K``.
        count: How many things are labelled; default: as many as there are labels.
        name: Of the sample, for the error.
        ignored: The label of what is not labelled.

    Raises:
        TypeError: If they are no tensor.
        ValueError: If there are none, another number of them, or one that is neither a class nor ignored.
    """
    if y is None:
        raise ValueError(f"{name} has no labels: expected y, integers from 0 to {num_classes - 1}")
    check_tensors(y=y)
    assert isinstance(y, Tensor)
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(f"{name} has labels y of {y.dtype} {list(y.shape)}; expected integers, as of y.long()")
    if y.dim() > 1 or (count is not None and y.numel() != count):
        wanted = "one for each thing that is labelled" if count is None else f"[{count}]"
        raise ValueError(f"{name} has labels y {list(y.shape)}; expected {wanted}")
    wrong = y[((y < 0) | (y >= num_classes)) & (y != ignored)]
    if wrong.numel():
        raise ValueError(f"{name} has label {int(wrong[0])}; expected 0 to {num_classes - 1}, or {ignored} (ignored)")
    return y.reshape(-1)


def class_weights(samples: LabelledSamples | Sequence[Any], num_classes: int) -> Tensor:
    """Weights that let rare classes count as much as frequent ones: ``[K]`` float32, for ``F.cross_entropy``.

    With ``n_k`` labels of class ``k``, ``w_k = c / n_k``, and ``c`` such that the weights of the classes that occur
    have mean 1. A class that does not occur has weight 1. Labels `IGNORED` are not counted.

    Args:
        samples: Samples with labels ``y``.
        num_classes: Number of classes ``K``.

    Raises:
        ValueError: If a sample has no labels or one out of range, or if no class occurs.
    """
    count = torch.zeros(num_classes, dtype=torch.float64)
    for i in range(len(samples)):
        y = check_labels(samples[i].y, num_classes, name=f"sample {i}")
        count += torch.bincount(y[y != IGNORED].cpu(), minlength=num_classes)
    occurs = count > 0
    if not occurs.any():
        raise ValueError(f"no class occurs: {len(samples)} samples have no label but {IGNORED}, ignored")
    inverse = 1 / count[occurs]
    weight = torch.ones(num_classes, dtype=torch.float64)
    weight[occurs] = inverse / inverse.mean()
    return weight.float()


def read_lines(file: Path) -> list[str]:
    """The lines of a text file without blanks around them, but for empty ones at its end.

    Raises:
        LoadError: If it is not text in UTF-8.
    """
    try:
        return [line.strip() for line in file.read_text("utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError as error:
        raise LoadError(f"{file}: not a text file in UTF-8") from error


def classes_file(root: Path) -> Path | None:
    """The file with the names of a data set's classes, ``classes.txt`` in letters of either case, if there is one."""
    return max((path for path in root.iterdir() if path.name.lower() == "classes.txt"), default=None)


def read_names(file: Path) -> tuple[str, ...]:
    """Names of classes from a text file, one a line.

    Raises:
        LoadError: If it has fewer than two, a line is empty, or a name is there twice.
    """
    lines = read_lines(file)
    if len(lines) < 2:
        raise LoadError(f"{file}: expected the names of at least 2 classes, one a line; found {len(lines)}")
    for number, name in enumerate(lines, 1):
        if not name or name in lines[: number - 1]:
            raise LoadError(f"{file}:{number}: " + (f"{name!r} is there twice" if name else "an empty line"))
    return tuple(lines)
