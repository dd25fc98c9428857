"""Where a file may be written, asked before the work that makes its content, and how it is written whole."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from geoattn._optional import require


def check_path(path: str | PathLike[str], formats: Mapping[str, tuple[str, str | None] | None]) -> str:
    """Refuse a path that cannot be written, without writing anything.

    Args:
        path: Where a file is to be written.
        formats: By extension, the module that writes it and the extra of geoattn that installs the module, or None
            if none is needed.

    Returns:
        The extension in lower case, without its dot.

    Raises:
        ValueError: If the extension is none of ``formats``.
        FileNotFoundError: If the folder does not exist.
        IsADirectoryError: If the path is a folder.
        PermissionError: If nothing can be written in the folder.
        ImportError: If the module is not installed; the message has the pip line.

    """
    path = Path(path)
    extension = path.suffix[1:].lower()
    if extension not in formats:
        wrong = f"{path.suffix!r} files" if extension else "a file without extension"
        raise ValueError(f"{path}: cannot write {wrong}; supported are {', '.join(f'.{e}' for e in formats)}")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: nothing can be written in the folder {path.parent}")
    if (needed := formats[extension]) is not None:
        require(*needed)
    return extension


@contextmanager
def write_whole(path: str | PathLike[str]) -> Iterator[Path]:
    """A temporary name beside ``path``, renamed to it at the end: a reader sees all of the file or none of it.

    If the block raises, what was at ``path`` stays, and nothing else is left.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix.lower(), dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink()
        raise
