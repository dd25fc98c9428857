"""Which backend is forced, known to all modules that run on one; `geoattn.backend` sets it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_forced: str | None = None


def forced() -> str | None:
    """Name of the backend that is forced, if any."""
    return _forced


@contextmanager
def force(name: str) -> Iterator[None]:
    """Force the backend ``name`` inside the ``with`` block, in the whole process."""
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before
