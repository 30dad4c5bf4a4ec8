"""Put a configuration in its place, whole or not at all, and put the former one back.

This module never looks at what it writes.
"""

from __future__ import annotations

from fc_frontend import files

_REFUSED = ".refused"
_COPY = 0o640


def read(path: str) -> bytes | None:
    """The content of `path`, None if there is no such file.  Raises `Unavailable`."""
    found = files.read(path)
    return found.data if found else None


def install(path: str, text: str) -> bytes | None:
    """Make `text` the content of `path` and return what was there before, None for no file.

    A file that has this content is left alone.  Raises `Unavailable`.
    """
    previous = read(path)
    data = text.encode("utf-8", "surrogateescape")
    if previous != data:
        files.write(path, data)
    return previous


def mode_of_copies(path: str) -> int:
    """The mode for copies of the text at `path`: nobody may read them who may not read it."""
    mode = files.mode_of(path)
    return _COPY if mode is None else _COPY & mode


def restore(path: str, previous: bytes | None) -> None:
    """Undo `install`, given what it returned.  Raises `Unavailable`."""
    if previous is None:
        files.remove(path, follow=True)
    elif read(path) != previous:
        files.write(path, previous)


def refused_path(path: str) -> str:
    """Where the last text that HAProxy refused for `path` is kept for the operator to read."""
    return path + _REFUSED


def write_refused(path: str, text: str) -> str:
    """Keep the refused `text` beside `path`; returns where.  Raises `Unavailable`."""
    files.write_beside(path, _REFUSED, text.encode("utf-8", "surrogateescape"))
    return refused_path(path)


def clear_refused(path: str) -> None:
    """Remove what `write_refused` kept, if it is there.  Raises `Unavailable`."""
    files.remove(refused_path(path))
