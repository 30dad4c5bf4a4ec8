"""Read declaring files: their text, what they look like unread, and who may change them."""

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
"""In all files of a directory."""
CLOCK_GRAIN = 2_000_000_000
"""Nanoseconds."""

Signature = tuple[int, int, int, int, int]
"""Device, inode, size, and the times of change of content and inode, in ns."""
_SIZE = 2


class Look(NamedTuple):
    """What a file looks like without reading it."""

    signature: Signature
    access: WriteAccess

    @classmethod
    def of(cls, found: Found) -> Look:
        """The look of what a path leads to."""
        return cls(_signature(found.status), found.access)

    @property
    def is_settled(self) -> bool:
        """True if a change after the look would give another signature.

        Clocks of file systems have grains of up to 2 s; what was changed within one grain of the
        look may be changed again without any sign.
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
    """A directory that was looked at, and the looks of its files by path, in order.

    `place` is None if it does not exist or cannot be read; a file's look is None if it cannot be
    looked at.
    """

    place: Found | None
    looks: dict[str, Look | None]


def look_at_directory(path: str) -> Found | None:
    """What a directory is, and who may change what is in it; None if it cannot be looked at."""
    try:
        return Walker().look(path)
    except OSError:
        return None


def look(path: str, place: Found | None) -> Look | None:
    """What a file looks like, by what its directory is; None if it cannot be looked at."""
    try:
        return _look(Walker(), place, path, os.lstat(path))
    except OSError:
        return None


def _look(walker: Walker, place: Found | None, path: str, status: os.stat_result) -> Look | None:
    is_link = stat.S_ISLNK(status.st_mode)
    if place is not None and not is_link and status.st_dev == place.status.st_dev:
        return Look(_signature(status), walker.entry_access(place, path, status))
    try:
        # It may be in a file system that does not answer.
        return Look.of(safe_files.look(path))
    except Unsafe:
        return None


def list_directory(
    path: str,
    is_wanted: Callable[[str], bool],
    problems: list[Problem],
    is_trusted: Callable[[WriteAccess], bool],
) -> Directory:
    """The files in a directory whose names are wanted, in order.

    Where they exceed a limit, untrusted files are left out first: whoever may write one of them
    cannot keep others from being read.
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
    """How much of a file would be read, in bytes: nothing of one that is refused for its size."""
    size = seen.signature[_SIZE] if seen else 0
    return size if size <= MAX_BYTES else 0


def _listed(path: str, is_wanted: Callable[[str], bool]) -> Directory:
    """Raises OSError."""
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
    """The text of a file that an operator names; None, and a problem, if it cannot be had."""
    return read_file(path, None, problems, missing_remedy)[0]


def read_file(
    path: str, place: Found | None, problems: list[Problem], missing_remedy: str = ""
) -> tuple[str | None, Look | None]:
    """The text of a file and what it looked like just then; None, and a problem, without them.

    `place` is its directory if that has just been looked at.
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
