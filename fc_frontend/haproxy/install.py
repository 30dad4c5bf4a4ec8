"""Install a configuration file atomically, and restore the former one.

This module never examines the content that it writes.
"""

from __future__ import annotations

from fc_frontend import files

_REFUSED = ".refused"
_COPY = 0o640


def read(path: str) -> bytes | None:
    """Return the content of `path`, or None if there is no such file.  Raises `Unavailable`."""
    found = files.read(path)
    return found.data if found else None


def install(path: str, text: str) -> bytes | None:
    """Write `text` to `path` and return the former content, or None if there was no file.

    A file that already has this content is not written.  Raises `Unavailable`.
    """
    previous = read(path)
    data = text.encode("utf-8", "surrogateescape")
    if previous != data:
        files.write(path, data)
    return previous


def mode_of_copies(path: str) -> int:
    """Return the mode for copies of the text at `path`, no more permissive than that file's."""
    mode = files.mode_of(path)
    return _COPY if mode is None else _COPY & mode


def restore(path: str, previous: bytes | None) -> None:
    """Undo `install`, given its return value.  Raises `Unavailable`."""
    if previous is None:
        files.remove(path, follow=True)
    elif read(path) != previous:
        files.write(path, previous)


def refused_path(path: str) -> str:
    """Return the path of the last text that HAProxy refused for `path`, kept for the operator."""
    return path + _REFUSED


def write_refused(path: str, text: str) -> str:
    """Keep the refused `text` beside `path`; return its path.  Raises `Unavailable`."""
    files.write_beside(path, _REFUSED, text.encode("utf-8", "surrogateescape"))
    return refused_path(path)


def clear_refused(path: str) -> None:
    """Remove the file of `write_refused`, if it exists.  Raises `Unavailable`."""
    files.remove(refused_path(path))
