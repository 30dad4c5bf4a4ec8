"""Read configuration files: their text, their metadata, and who may change them."""

from __future__ import annotations

import os
import stat
import time
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

from fc_frontend import safe_files
from fc_frontend.config.document import MAX_BYTES
from fc_frontend.errors import Problem
from fc_frontend.paths.access import WriteAccess
from fc_frontend.paths.walk import Found, Walker
from fc_frontend.safe_files import FileFault, Unsafe

MAX_FILES = 20_000
MAX_TOTAL_BYTES = 32 * 1024 * 1024
"""For all files of a directory."""
CLOCK_GRAIN = 2_000_000_000
"""Nanoseconds."""

Signature = tuple[int, int, int, int, int]
"""Device, inode, size, and the modification times of content and inode, in ns."""
_SIZE = 2


class Look(NamedTuple):
    """The metadata of a file, obtained without reading it."""

    signature: Signature
    access: WriteAccess

    @classmethod
    def of(cls, found: Found) -> Look:
        """Return the metadata of the file to which a path leads."""
        return cls(_signature(found.status), found.access)

    @property
    def is_settled(self) -> bool:
        """Whether any later change would change the signature.

        File system clocks have a granularity of up to 2 s; a file that was changed within that time
        before the look may be changed again without a different timestamp.
        """
        return max(self.signature[3:]) + CLOCK_GRAIN < time.time_ns()


def _signature(status: os.stat_result) -> Signature:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


class Directory(NamedTuple):
    """A directory, and the metadata of its files by path, in order.

    `place` is None if the directory does not exist or cannot be read.  The metadata of a file is
    None if it cannot be obtained.
    """

    place: Found | None
    looks: dict[str, Look | None]


def look_at_directory(path: str) -> Found | None:
    """Return a directory's status and write access; None if they cannot be obtained."""
    try:
        return Walker().look(path)
    except OSError:
        return None


def look(path: str, place: Found | None) -> Look | None:
    """Return the metadata of a file in the directory `place`; None if it cannot be obtained."""
    try:
        return _look(Walker(), place, path, os.lstat(path))
    except OSError:
        return None


def _look(walker: Walker, place: Found | None, path: str, status: os.stat_result) -> Look | None:
    is_link = stat.S_ISLNK(status.st_mode)
    if place is not None and not is_link and status.st_dev == place.status.st_dev:
        return Look(_signature(status), walker.entry_access(place, path, status))
    try:
        # It may be in a file system that does not respond.
        return Look.of(safe_files.look(path))
    except Unsafe:
        return None


def list_directory(
    path: str,
    is_wanted: Callable[[str], bool],
    problems: list[Problem],
    is_trusted: Callable[[WriteAccess], bool],
) -> Directory:
    """List the files of a directory whose names satisfy `is_wanted`, in order.

    If they exceed a limit, untrusted files are omitted first, so that their writers cannot prevent
    other files from being read.
    """
    try:
        found = _listed(path, is_wanted)
    except FileNotFoundError:
        return Directory(None, {})
    except OSError as exc:
        problems.append(
            Problem(f"cannot be listed: {exc.strerror}", "see its owner and mode", file=path)
        )
        return Directory(None, {})
    if len(found.looks) > MAX_FILES:
        problems.append(
            Problem(
                f"has more than {MAX_FILES} files", "put several services into one file", file=path
            )
        )

    def is_doubtful(seen: Look | None) -> bool:
        return seen is not None and not is_trusted(seen.access)

    order = sorted(found.looks.items(), key=lambda each: (is_doubtful(each[1]), each[0]))
    taken = order[:MAX_FILES]
    fitting = bisect_right(list(accumulate(_size(seen) for _, seen in taken)), MAX_TOTAL_BYTES)
    if fitting < len(taken):
        problems.append(
            Problem(
                f"has more than {MAX_TOTAL_BYTES} bytes in all of its files",
                "remove files that are not needed",
                file=path,
            )
        )
    return Directory(found.place, dict(sorted(taken[:fitting])))


def _size(seen: Look | None) -> int:
    """Return how many bytes of a file would be read: 0 for a file refused because of its size."""
    size = seen.signature[_SIZE] if seen else 0
    return size if size <= MAX_BYTES else 0


def _listed(path: str, is_wanted: Callable[[str], bool]) -> Directory:
    """List the wanted files of a directory.  Raises OSError."""
    walker = Walker()
    found: dict[str, Look | None] = {}
    with walker.opened(path) as (descriptor, place), os.scandir(descriptor) as entries:
        for entry in entries:
            if is_wanted(entry.name):
                found[f"{path}/{entry.name}"] = _entry(walker, place, path, entry)
    return Directory(place, found)


def _entry(walker: Walker, place: Found, directory: str, entry: os.DirEntry[str]) -> Look | None:
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return None
    return _look(walker, place, f"{directory}/{entry.name}", status)


def read_text(path: str, problems: list[Problem], missing_remedy: str = "") -> str | None:
    """Return the text of a file named by an operator; if unreadable, None and add a problem."""
    return read_file(path, None, problems, missing_remedy)[0]


def read_file(
    path: str, place: Found | None, problems: list[Problem], missing_remedy: str = ""
) -> tuple[str | None, Look | None]:
    """Return the text of a file, and its metadata when it was read.

    If the file cannot be read, return None for both and add a problem; if it is not UTF-8, return
    None for the text.  `place` is the file's directory, if its status is already known.
    """
    try:
        if place is None:
            content, found = safe_files.read_found(path, MAX_BYTES)
        else:
            content, found = safe_files.read_listed(path, MAX_BYTES, place)
    except Unsafe as exc:
        remedy = missing_remedy if exc.fault is FileFault.MISSING else exc.remedy
        problems.append(Problem(exc.message, remedy, file=path))
        return None, None
    try:
        return content.decode("utf-8"), Look.of(found)
    except UnicodeDecodeError as exc:
        line = content.count(b"\n", 0, exc.start) + 1
        problems.append(Problem("is not UTF-8", "save it as UTF-8", file=path, line=line))
        return None, Look.of(found)
