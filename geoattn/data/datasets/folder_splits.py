"""Which files of a user's folder are for training, which for validation and which for the test."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from geoattn.data.io import READERS
from geoattn.data.labelled import read_lines
from geoattn.data.registry import SPLITS, MissingSplitError

TEST_SHARE = 0.2
"""Share of the files that are the test split where a folder says nothing else."""

_WORDS = {
    "train": ("train", "training"),
    "valid": ("val", "valid", "validation", "validate", "dev"),
    "test": ("test", "testing"),
}


class File(NamedTuple):
    """A mesh or a cloud: where it is, and its path inside its split without the extension."""

    path: Path
    name: str

    @property
    def folder(self) -> str | None:
        """The first folder of its name, if it is in one."""
        return self.name.partition("/")[0] if "/" in self.name else None


def divide(root: Path) -> dict[str, list[File]]:
    """The files of each split of the folder ``root``: by its lists, its folders, or else by share.

    Raises:
        ValueError: If there are no files, a file is in two lists or in none of the folders, two files differ by their
            extension only, or a folder or a list means a split and is called something else.
    """
    if (root / "splits").is_dir():
        splits = _by_list(root)
    else:
        inside = {path: path.relative_to(root) for path in mesh_and_cloud_files(root)}
        _check_folders(root, inside.values())
        if any(set(SPLITS) & set(relative.parts[:-1]) for relative in inside.values()):
            splits = _by_folder(inside)
        else:
            _check_lists(root, inside.values())
            splits = _by_share(inside)
    places: dict[Path, Path] = {}
    for file in (file for files in splits.values() for file in files):
        other = places.setdefault(file.path.with_suffix(""), file.path)
        if other != file.path:
            raise ValueError(f"{file.path}: {other.name} beside it would be the same sample; keep one of them")
    return splits


def split_meant(name: str) -> str | None:
    """The split that the name of a folder or of a list means, however it is written: Train, testing, val_set."""
    word = re.sub(r"[\W_]*(set|data|split)?[\W_]*$", "", name.lower())
    return next((split for split, words in _WORDS.items() if word in words), None)


def _check_folders(root: Path, inside: Collection[Path]) -> None:
    """That no folder means a split and is called something else: its files would be divided by share."""
    for relative in inside:
        folders = relative.parts[:-1]
        for depth, name in enumerate(folders, 1):
            split = split_meant(name)
            if split and not set(SPLITS) & set(folders):
                raise ValueError(
                    f"{root.joinpath(*folders[:depth])}: the folders of splits are called {', '.join(SPLITS)}; "
                    f"call it {split}, or list the files of each split, such as splits/{split}.txt"
                )


def _check_lists(root: Path, inside: Collection[Path]) -> None:
    """That no lists lie elsewhere than in the folder ``splits``: the files would be divided by share."""
    samples = set(map(_name, inside))  # whose labels a text file may hold
    for path in sorted(root.iterdir()):
        if path.is_dir() and path.name.lower() in ("split", "splits"):
            if any(split_meant(file.stem) for file in path.glob("*.txt")):
                raise ValueError(f"{path}: the folder of the lists of splits is called splits; call it that")
        elif path.suffix.lower() == ".txt" and (split := split_meant(path.stem)) and path.stem not in samples:
            raise ValueError(f"{path}: lists of splits are read from the folder splits; move it: splits/{split}.txt")


def missing(root: Path, split: str, splits: dict[str, list[File]]) -> MissingSplitError:
    """The error for a split without files."""
    what = f"the {split} split is empty" if split in splits or (root / split).is_dir() else f"no {split} split"
    there = ", ".join(f"{name} ({len(files)})" for name, files in splits.items() if files) or "none"
    return MissingSplitError(
        f"{root}: {what}; splits with files: {there}. Put files into {split}/, or list them in splits/{split}.txt"
    )


def mesh_and_cloud_files(root: Path) -> list[Path]:
    """Every file below a folder that `geoattn.load` reads, but for hidden ones, in the order of their paths."""
    return sorted(
        path
        for path in root.rglob("*")
        if path.suffix[1:].lower() in READERS
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
        and path.is_file()
    )


def _by_list(root: Path) -> dict[str, list[File]]:
    """As ``splits/train.txt``, ``valid.txt`` and ``test.txt`` list them, one path relative to ``root`` a line."""
    splits: dict[str, list[File]] = {}
    listed: dict[Path, str] = {}
    texts = (path for path in (root / "splits").iterdir() if path.suffix.lower() == ".txt" and path.name[0] != ".")
    for text in sorted(texts, key=lambda text: (text.stem not in SPLITS, text.stem)):
        if text.stem not in SPLITS:
            raise ValueError(f"{text}: expected {', '.join(f'{split}.txt' for split in SPLITS)}")
        files = splits.setdefault(text.stem, [])
        for number, line in enumerate(read_lines(text), 1):
            if not line:
                continue
            where, path = f"{text}:{number}", root / line
            if not path.is_file():
                raise ValueError(f"{where}: {path}: no such file; paths are relative to {root}")
            if path.suffix[1:].lower() not in READERS:
                raise ValueError(f"{where}: {path.name}: unknown extension; supported are {', '.join(READERS)}")
            if path.resolve() in listed:
                raise ValueError(f"{where}: {line} is in {listed[path.resolve()]} already")
            listed[path.resolve()] = where
            files.append(File(path, _name(Path(line))))
    return splits


def _by_folder(inside: dict[Path, Path]) -> dict[str, list[File]]:
    """By the folder ``train``, ``valid`` or ``test`` that each is in, at whatever depth."""
    splits: dict[str, list[File]] = {}
    for path, relative in inside.items():
        split = next((part for part in relative.parts[:-1] if part in SPLITS), None)
        if split is None:
            raise ValueError(f"{path}: in none of the folders {', '.join(SPLITS)}, as other files are")
        parts = list(relative.parts)
        parts.remove(split)
        splits.setdefault(split, []).append(File(path, _name(Path(*parts))))
    return splits


def _by_share(inside: dict[Path, Path]) -> dict[str, list[File]]:
    """By a hash of their names, so that a file stays in its split whatever files are added."""
    splits: dict[str, list[File]] = {"train": [], "test": []}
    for path, relative in inside.items():
        name = _name(relative)
        # Some file systems keep accents apart from their letters.
        digest = hashlib.sha256(unicodedata.normalize("NFC", name).encode()).digest()
        splits["test" if int.from_bytes(digest[:8], "big") < TEST_SHARE * 2**64 else "train"].append(File(path, name))
    return splits


def _name(relative: Path) -> str:
    return relative.with_suffix("").as_posix()
