"""Directories to which fc-frontend writes: only trusted links are followed on the way.

All functions raise `OSError`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from fc_frontend.paths.steps import MAX_LINKS, Steps


class UntrustedPath(OSError):
    """A file, link or directory that another user may have put there, with the remedy."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(errno.EPERM, reason)
        self.remedy = remedy


@contextlib.contextmanager
def directory(path: str) -> Iterator[int]:
    """Open the directory `path`, and yield its descriptor for `dir_fd`.

    Links on the way are followed if nobody but root and this user could have created them.  Raises
    `OSError`.
    """
    with contextlib.closing(_TrustedSteps(path)) as steps:
        if not stat.S_ISDIR(steps.walk().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        yield steps.descriptors[-1]


def is_shared(status: os.stat_result) -> bool:
    """Return whether users other than the owner, or foreign groups, may write to a directory.

    In a sticky directory such as /tmp, no other user can remove or rename this user's files.
    """
    if status.st_mode & stat.S_ISVTX and status.st_uid in (0, os.geteuid()):
        return False
    by_group = status.st_mode & stat.S_IWGRP and status.st_gid not in (0, os.getegid())
    return bool(by_group or status.st_mode & stat.S_IWOTH)


def require_private(opened: int, path: str) -> None:
    """Raise `UntrustedPath` unless root or this user owns the directory, and not all may write.

    Root assumes that the directory's owner is the daemon's user.
    """
    status = os.fstat(opened)
    if status.st_mode & stat.S_IWOTH:
        raise UntrustedPath(f"every user may write in {path}", f"chmod o-w {path}")
    if status.st_uid in (0, os.geteuid()):
        return
    if os.geteuid() != 0:
        raise UntrustedPath(
            f"{path} belongs to user {status.st_uid}, not to root or to us (user {os.geteuid()})",
            f"run as its owner or as root, or chown {path}",
        )
    if os.stat("..", dir_fd=opened).st_mode & stat.S_IWOTH:
        raise UntrustedPath(
            f"{path} belongs to user {status.st_uid}, and is where every user may create one",
            "choose another directory",
        )


class _TrustedSteps(Steps):
    """Steps that stop at a link which other users may have created."""

    def followed(self, path: str, link: os.stat_result) -> None:
        _require_trusted(link, self.statuses[-1], path.rpartition("/")[2])


@contextlib.contextmanager
def place(path: str, *, follow: bool) -> Iterator[tuple[int, str]]:
    """Yield the directory of `path` and the name in it; with `follow`, those of a link's target."""
    where = Path(path)
    links = 0
    while True:
        if not where.name or where.name == "..":
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with directory(str(where.parent)) as parent:
            status = status_of(parent, where.name)
            if not follow or status is None or not stat.S_ISLNK(status.st_mode):
                yield parent, where.name
                return
            links += 1
            if links > MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            _require_trusted(status, os.fstat(parent), str(where))
            where = where.parent / os.readlink(where.name, dir_fd=parent)


def _require_trusted(link: os.stat_result, holder: os.stat_result, name: str) -> None:
    trusted = {0, os.geteuid()}
    if link.st_uid not in trusted or holder.st_uid not in trusted or is_shared(holder):
        raise UntrustedPath(
            f"{name} is a symbolic link that user {link.st_uid} made, or that others than root and "
            "this user may replace",
            "put the file itself there, or name the link's target in the settings",
        )


def status_of(parent: int, name: str) -> os.stat_result | None:
    """Return the status of a link or file itself, or None if there is none."""
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None
