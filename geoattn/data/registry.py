"""Data sets by name, or by what lies in a folder.

A data set that is made or found by name registers a builder::

    @register_dataset("bodies")
    def _bodies(split: str, samples: int | None) -> Bodies: ...

and a reader of a kind of folder (or file) registers how it recognises its own, and how it is read::

    @register_layout("<class>/train/*.off", recognises)
    def _modelnet(path: Path, split: str, labelled: Labelled | None) -> ModelNet: ...
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar, get_args

from geoattn.data.labelled import Labelled, LabelledSamples, LabelledSubset

SPLITS = ("train", "valid", "test")

Builder = Callable[[str, int | None], LabelledSamples]
Reader = Callable[[Path, str, Labelled | None], LabelledSamples]
AnyBuilder = TypeVar("AnyBuilder", bound=Builder)
AnyReader = TypeVar("AnyReader", bound=Reader)


class _Layout(NamedTuple):
    description: str
    recognises: Callable[[Path], bool]
    reader: Reader
    general: bool
    name: str | None


_BUILDERS: dict[str, Builder] = {}
_LAYOUTS: list[_Layout] = []


class MissingSplitError(ValueError):
    """A data set that does not have the split that is asked for."""


def register_dataset(name: str) -> Callable[[AnyBuilder], AnyBuilder]:
    """Give a data set a name. The builder takes the split and the number of samples, or None for its own."""

    def register(builder: AnyBuilder) -> AnyBuilder:
        if name in _BUILDERS:
            raise ValueError(f"there is a data set {name!r} already")
        _BUILDERS[name] = builder
        return builder

    return register


def register_layout(
    description: str, recognises: Callable[[Path], bool], *, general: bool = False, name: str | None = None
) -> Callable[[AnyReader], AnyReader]:
    """Have paths read that ``recognises`` says yes to.

    Args:
        description: What such a path looks like, for error messages.
        recognises: Whether a path, which exists, is such a one.
        general: Whether others are asked first, because it also recognises what they do.
        name: Of a published set. Who asks for it by this name, and not by a folder, gets the reader's own error, which
            says where to get it.
    """

    def register(reader: AnyReader) -> AnyReader:
        _LAYOUTS.append(_Layout(description, recognises, reader, general, name))
        _LAYOUTS.sort(key=lambda layout: layout.general)
        return reader

    return register


def list_datasets() -> list[str]:
    """The data sets that `load_dataset` knows by name."""
    return sorted(_BUILDERS)


def load_dataset(
    data: str | Path, split: str = "train", *, samples: int | None = None, labelled: Labelled | None = None
) -> LabelledSamples:
    """A labelled data set.

    Args:
        data: One of `list_datasets`, or the path of a set on disk (which a leading ``./`` tells from a name).
        split: ``"train"``, ``"valid"`` or ``"test"``.
        samples: How many samples a generator makes for training (it makes a tenth of them for the test). Of a set on
            disk, at most so many, spread evenly over it.
        labelled: What the labels are to be for: ``"face"``, ``"vertex"``, ``"edge"`` or ``"whole"``. Default: what the
            data set has labels for.

    Raises:
        ValueError: If there is no such data set, its layout is unknown, it has labels for something else, or
            ``samples`` is less than 1.
        MissingSplitError: If it does not have the split.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    if labelled not in (None, *get_args(Labelled)):
        raise ValueError(f"labelled must be one of {', '.join(get_args(Labelled))}; got {labelled!r}")
    if samples is not None and samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if isinstance(data, str) and data in _BUILDERS:
        found = _BUILDERS[data](split, samples)
    else:
        found = _read(Path(data), split, labelled)
        if samples is not None and samples < len(found):
            # A set in the order of its classes keeps them all, if there are enough samples.
            found = LabelledSubset(found, [i * len(found) // samples for i in range(samples)])
    if labelled not in (None, found.labelled):
        raise ValueError(f"{data} has {_described(found.labelled)}, not {_described(labelled)}")
    return found


def _read(path: Path, split: str, labelled: Labelled | None) -> LabelledSamples:
    if not path.exists():
        published = {layout.name: layout.reader for layout in _LAYOUTS if layout.name}
        if path.name.lower() in published:
            return published[path.name.lower()](path, split, labelled)
        raise ValueError(
            f"{path}: no such folder or zip file, and no data set of this name; there is {', '.join(list_datasets())}, "
            f"and to be downloaded first {', '.join(sorted(published))}"
        )
    for layout in _LAYOUTS:
        if layout.recognises(path):
            return layout.reader(path, split, labelled)
    raise ValueError(f"{path}: not a data set; expected " + ", or ".join(layout.description for layout in _LAYOUTS))


def _described(labelled: Labelled | None) -> str:
    return "one label for each whole sample" if labelled == "whole" else f"a label for each {labelled}"
