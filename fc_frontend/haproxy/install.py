"""Put a configuration in its place, whole or not at all, and put the former one back.

A reader, and HAProxy after a power failure, sees the old text or the new one.  Permissions that
the operator gave to the file stay.  This module never looks at what it writes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable
from pathlib import Path

from fc_frontend.errors import Problem, Unavailable

_LEFTOVER = re.compile(r"\..{1,200}\.[0-9a-f]{12}\.tmp")
_LEFTOVER_AGE = 60.0
"""In seconds."""

_REMEDIES = {
    errno.ENOSPC: "make room on that file system",
    errno.EDQUOT: "make room within the quota of this user",
    errno.EROFS: "mount it writable, or set another path (with systemd: ReadWritePaths=)",
    errno.EACCES: "give this user the right to write in that directory",
    errno.EPERM: "give this user the right to write in that directory",
    errno.ENOENT: "create the directory",
    errno.ENOTDIR: "correct the path: a part of it is not a directory",
    errno.EEXIST: "correct the path: what is there is not a directory",
    errno.EISDIR: "correct the path: it is a directory",
    errno.ELOOP: "correct the symbolic links: they lead in a circle",
    errno.ENAMETOOLONG: "choose a shorter path",
}


def atomic_write(path: str, data: bytes, *, mode: int = 0o640) -> None:
    """Make `data` the content of `path`, so that it is there whole even if the power fails now.

    A symbolic link stays; the file that it names is replaced.  An existing file keeps its mode
    and, where permitted, its owner and group; a new one gets `mode`.  Raises `Unavailable` with
    path, reason and remedy; nothing is left behind then.
    """
    try:
        _atomic_write(path, data, mode)
    except OSError as error:
        raise _unavailable("written", path, error) from error


def make_directory(path: str, *, mode: int) -> None:
    """Have the directory `path`, with `mode` if it is new.  Raises `Unavailable`."""
    try:
        Path(path).mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise _unavailable("made", path, error) from error


def give_to_owner(path: str) -> None:
    """Let `path` belong to whom its directory belongs, if we are root; else nothing.

    What root writes into the state directory, the daemon must be able to read.
    """
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            owner = Path(path).parent.stat()
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def read(path: str) -> bytes | None:
    """The content of `path`, None if there is no such file.  Raises `Unavailable`."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unavailable("read", path, error) from error


def install(path: str, text: str) -> bytes | None:
    """Make `text` the content of `path` and return what was there before, None for no file.

    A file that has this content is left alone.  Raises `Unavailable`.
    """
    previous = read(path)
    data = text.encode("utf-8", "surrogateescape")
    if previous != data:
        atomic_write(path, data)
    return previous


def remove_leftovers(directories: Iterable[str]) -> int:
    """Remove what writers that were killed left behind; how many files it was.

    Only what is old enough to be nobody's any more.  What cannot be removed stays.
    """
    removed = 0
    for directory in directories:
        with contextlib.suppress(OSError):
            for path in Path(directory).iterdir():
                if not _LEFTOVER.fullmatch(path.name):
                    continue
                if time.time() - path.lstat().st_mtime > _LEFTOVER_AGE:
                    path.unlink()
                    removed += 1
    return removed


def signature(path: str) -> tuple[int, int, int] | None:
    """What changes when the file does; None if it cannot be seen."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def restore(path: str, previous: bytes | None) -> None:
    """Undo `install`, given what it returned.  Raises `Unavailable`."""
    if previous is None:
        _remove(path)
    elif read(path) != previous:
        atomic_write(path, previous)


def refused_path(path: str) -> str:
    """Where the last text that HAProxy refused for `path` is kept for the operator to read."""
    return f"{path}.refused"


def write_refused(path: str, text: str) -> str:
    """Keep the refused `text` beside `path`; returns where.  Raises `Unavailable`."""
    atomic_write(refused_path(path), text.encode("utf-8", "surrogateescape"))
    return refused_path(path)


def clear_refused(path: str) -> None:
    """Remove what `write_refused` kept, if it is there.  Raises `Unavailable`."""
    _remove(refused_path(path))


def _atomic_write(path: str, data: bytes, mode: int) -> None:
    try:
        target = Path(path).resolve()
    except RuntimeError:  # until Python 3.12, for links in a circle
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
    try:
        existing = target.stat()
    except FileNotFoundError:
        existing = None
    if existing is not None:
        if stat.S_ISDIR(existing.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(existing.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        mode = stat.S_IMODE(existing.st_mode)
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(6)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(temporary, flags, 0o600)
    try:
        try:
            if existing is not None:
                # Changing the owner clears set-id bits, so the mode comes after.
                _keep(file, uid=-1, gid=existing.st_gid)
                _keep(file, uid=existing.st_uid, gid=-1)
            os.fchmod(file, mode)
            with open(file, "wb", closefd=False) as stream:
                stream.write(data)
            os.fsync(file)
        finally:
            os.close(file)
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_directory(target.parent)


def _keep(file: int, *, uid: int, gid: int) -> None:
    """Give the file its former owner or group where permitted."""
    try:
        os.fchown(file, uid, gid)
    except OSError as error:
        # In a user namespace an owner that is not mapped into it is an invalid one.
        if error.errno not in (errno.EPERM, errno.EINVAL):
            raise


def _remove(path: str) -> None:
    try:
        Path(path).unlink()
        _sync_directory(Path(path).parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unavailable("removed", path, error) from error


def _sync_directory(directory: Path) -> None:
    # Only then does the new name survive a power failure.
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _unavailable(verb: str, path: str, error: OSError) -> Unavailable:
    reason = error.strerror or str(error)
    remedy = _REMEDIES.get(error.errno or 0, "see the reason, and correct the path or the disk")
    if verb == "read" and error.errno in (errno.EACCES, errno.EPERM):
        remedy = "run as root, or as a user who may read it"
    return Unavailable(
        Problem(message=f"{path} cannot be {verb}: {reason}", remedy=remedy, file=path)
    )
