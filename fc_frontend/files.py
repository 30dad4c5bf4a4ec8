"""Read, write and remove files, even as root in directories that other users may write.

There are two kinds of path:

- The operator's, such as haproxy.cfg: a symbolic link is followed if nobody but root and this user
  could have created it.
- fc-frontend's own, in the state directory and beside haproxy.cfg: the last component is never
  followed.

A file is replaced by rename(2), so that a reader, or HAProxy after a power failure, sees either the
old content or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fc_frontend.errors import Unavailable
from fc_frontend.paths.own import (
    UntrustedPath,
    directory,
    is_shared,
    place,
    require_private,
    status_of,
)

MAX_BYTES = 256 * 1024 * 1024
"""Largest file that is read."""
_PERMISSIONS = 0o777
"""The bits of a mode that are kept: no set-id bits."""
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
    errno.ELOOP: "correct the symbolic links: they form a circle",
    errno.ENAMETOOLONG: "choose a shorter path",
}


@dataclass(frozen=True, slots=True)
class Attributes:
    """A file's permissions and owner."""

    mode: int
    uid: int
    gid: int

    @classmethod
    def of(cls, status: os.stat_result) -> Attributes:
        """Return the attributes of a file, without set-id bits."""
        return cls(stat.S_IMODE(status.st_mode) & _PERMISSIONS, status.st_uid, status.st_gid)


@dataclass(frozen=True, slots=True)
class Content:
    """A file's bytes and attributes, read at the same time."""

    data: bytes
    attributes: Attributes


# Reading


def read(path: str, limit: int = MAX_BYTES) -> Content | None:
    """Return the operator's file `path`, or None if there is none.  Raises `Unavailable`."""
    with reported("read", path):
        return _read(path, limit, follow=True)


def read_own(path: str, limit: int) -> bytes | None:
    """Return the content of fc-frontend's own file `path`, or None if there is none.

    Raises `OSError`, also for a file of more than `limit` bytes, for a link, for anything but a
    regular file, and if others may have written it.
    """
    found = _read(path, limit, follow=False)
    return found.data if found else None


def mode_of(path: str) -> int | None:
    """Return the permissions of the operator's file `path`, or None if they cannot be read."""
    with contextlib.suppress(OSError), place(path, follow=True) as (parent, name):
        status = status_of(parent, name)
        return Attributes.of(status).mode if status else None
    return None


def signature(path: str) -> tuple[int, int, int] | None:
    """Return a value that changes whenever the file does; None if it cannot be read."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def sizes(path: str) -> dict[str, int]:
    """Return the names in fc-frontend's own directory `path`, with the files' sizes in bytes.

    Empty if there is no such directory, or no permission to list it.
    """
    found: dict[str, int] = {}
    with (
        contextlib.suppress(OSError),
        directory(path) as opened,
        _listable(opened) as listable,
        os.scandir(listable) as entries,
    ):
        for entry in entries:
            if (status := status_of(opened, entry.name)) is not None:
                found[entry.name] = status.st_size
    return found


# Writing


def write(path: str, data: bytes, *, mode: int = 0o640) -> None:
    """Write `data` to the operator's file `path`.  Raises `Unavailable`.

    A link is kept, and its target is replaced unless that is read-only, as in /nix/store.  An
    existing file keeps its mode and, where permitted, its owner and group; a new one gets `mode`
    and, as root, the directory's owner.  Nothing is left behind on failure.
    """
    replace(path, data, mode=mode)


def replace(
    path: str,
    data: bytes,
    *,
    mode: int = 0o640,
    attributes: Attributes | None = None,
    expected: Callable[[Content | None], bool] = lambda _: True,
) -> bool:
    """Like `write`, but return False, with nothing changed, if `expected` rejects the content.

    `expected` is called with the current content right before the rename.  With `attributes`, the
    file gets these, as far as permitted.
    """
    with reported("written", path), place(path, follow=True) as (parent, name):
        existing = _replaceable(parent, name)
        if existing is not None and Path(path).is_symlink() and not existing.st_mode & stat.S_IWUSR:
            raise UntrustedPath(
                f"it is a symbolic link to {Path(path).readlink()}, which is read-only",
                "set the path to a file of its own: that one is not ours to replace",
            )
        if attributes is None:
            attributes = _inherited(parent, mode) if existing is None else Attributes.of(existing)

        def unchanged() -> bool:
            return expected(_content(parent, name, MAX_BYTES))

        return _replace(parent, name, data, attributes, unchanged)


def write_own(path: str, data: bytes, *, mode: int = 0o640) -> None:
    """Write `data` to fc-frontend's own file `path`.  Raises `Unavailable`.

    Any existing file is replaced, a link itself rather than its target.  The mode is `mode`,
    without bits that a replaced file lacks.  As root, the file gets the owner of its directory.
    """
    with reported("written", path), place(path, follow=False) as (parent, name):
        require_private(parent, str(Path(path).parent))
        existing = status_of(parent, name)
        if existing is not None and stat.S_ISREG(existing.st_mode):
            mode &= stat.S_IMODE(existing.st_mode)
        _replace(parent, name, data, _inherited(parent, mode), lambda: True)


def write_beside(path: str, suffix: str, data: bytes) -> None:
    """Write a file of fc-frontend's own beside the operator's `path`, with its mode and owner.

    Without a file at `path`, the directory's owner and group may read it.  Raises `Unavailable`.
    """
    found = None
    with contextlib.suppress(OSError), place(path, follow=True) as (parent, name):
        found = status_of(parent, name)
    beside = path + suffix
    with reported("written", beside), place(beside, follow=False) as (parent, name):
        attributes = _inherited(parent, 0o640) if found is None else Attributes.of(found)
        _replace(parent, name, data, attributes, lambda: True)


def remove(path: str, *, follow: bool = False) -> None:
    """Remove the file or link `path` itself or, with `follow`, its target, if it exists.

    Raises `Unavailable`.
    """
    with (
        reported("removed", path),
        contextlib.suppress(FileNotFoundError),
        place(path, follow=follow) as (parent, name),
    ):
        os.unlink(name, dir_fd=parent)
        _sync(parent)


def remove_leftovers(directories: Iterable[str]) -> int:
    """Remove temporary files of writers that were killed; return their number.

    Only files too old to be in use are removed.  Errors are ignored.
    """
    removed = 0
    for path in directories:
        for name in sizes(path):
            if not _LEFTOVER.fullmatch(name):
                continue
            with contextlib.suppress(OSError), directory(path) as parent:
                status = os.stat(name, dir_fd=parent, follow_symlinks=False)
                if time.time() - status.st_mtime > _LEFTOVER_AGE:
                    os.unlink(name, dir_fd=parent)
                    removed += 1
    return removed


def make_directory(path: str, *, mode: int) -> None:
    """Create fc-frontend's own directory `path`, with its parents.  Raises `Unavailable`.

    Does nothing if it exists.  As root, a new directory gets the owner of its parent.
    """
    with reported("made", path):
        _make_directory(path, mode)


def open_lock(path: str) -> int:
    """Open fc-frontend's own file `path` to lock and write it; create it if it is missing.

    Returns the descriptor.  Raises `OSError`.
    """
    # O_NONBLOCK, because opening a pipe in its place would block.
    flags = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    with place(path, follow=False) as (parent, name):
        file = -1
        try:
            file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o640, dir_fd=parent)
            _give(file, _inherited(parent, 0o640))
        except FileExistsError:
            try:
                file = os.open(name, os.O_RDWR | flags, dir_fd=parent)
            except PermissionError:
                # The file of another user: reading is enough to lock it.
                file = os.open(name, os.O_RDONLY | flags, dir_fd=parent)
            except OSError as error:
                raise _not_followed(error, parent, name) from None
        try:
            _require_single(os.fstat(file), parent)
        except OSError:
            os.close(file)
            raise
    return file


# Problems


def unavailable(verb: str, path: str, error: OSError) -> Unavailable:
    """Return the error that `path` cannot be read, written, removed…, with reason and remedy."""
    reason = error.strerror or str(error)
    remedy = _REMEDIES.get(error.errno or 0, "see the reason, and correct the path or the disk")
    if verb == "read" and error.errno in (errno.EACCES, errno.EPERM):
        remedy = "run as root, or as a user who may read it"
    if isinstance(error, UntrustedPath):
        remedy = error.remedy
    return Unavailable.of(f"{path} cannot be {verb}: {reason}", remedy, file=path)


@contextlib.contextmanager
def reported(verb: str, path: str) -> Iterator[None]:
    """Raise `Unavailable`, as returned by `unavailable`, for an `OSError`."""
    try:
        yield
    except OSError as error:
        raise unavailable(verb, path, error) from error


# Helpers


def _make_directory(path: str, mode: int) -> None:
    try:
        with directory(path):
            return
    except FileNotFoundError:
        parent = str(Path(path).parent)
        if parent == path:
            raise
    _make_directory(parent, mode)
    with directory(parent) as holder:
        name = Path(path).name
        try:
            os.mkdir(name, mode, dir_fd=holder)
        except FileExistsError:
            with directory(path):
                return
        if os.geteuid() == 0:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            made = os.open(name, flags, dir_fd=holder)
            try:
                _give(made, _inherited(holder, mode))
            finally:
                os.close(made)


def _not_followed(error: OSError, parent: int, name: str) -> OSError:
    if error.errno != errno.ELOOP:
        return error
    with contextlib.suppress(OSError):
        link = os.readlink(name, dir_fd=parent)
        return UntrustedPath(f"it is a symbolic link (to {link})", "remove the link")
    return error


def _require_single(status: os.stat_result, parent: int) -> None:
    """Raise unless it is a regular file that nobody has hard-linked from elsewhere."""
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    holder = os.fstat(parent)
    if status.st_nlink > 1 and (holder.st_uid != status.st_uid or is_shared(holder)):
        raise UntrustedPath(
            "it is a hard link, which another user may have made of a file elsewhere",
            "replace it by a copy, or remove it",
        )


def _read(path: str, limit: int, *, follow: bool) -> Content | None:
    try:
        with place(path, follow=follow) as (parent, name):
            if not follow and os.fstat(parent).st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                # Files here determine HAProxy's configuration: see
                # config.trusted_users.state_verdict.
                raise UntrustedPath(
                    f"other users may write in {Path(path).parent}",
                    f"chmod go-w {Path(path).parent}",
                )
            return _content(parent, name, limit)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _content(parent: int, name: str, limit: int) -> Content | None:
    # Checked before it is opened, because opening a device may have effects.
    before = status_of(parent, name)
    if before is not None and not stat.S_ISLNK(before.st_mode):
        _require_single(before, parent)
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    try:
        file = os.open(name, flags, dir_fd=parent)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _not_followed(error, parent, name) from None
    with os.fdopen(file, "rb", buffering=0) as stream:
        status = os.fstat(file)
        _require_single(status, parent)
        data = bytearray()
        while part := stream.read(min(1 << 20, limit + 1 - len(data))):
            data += part
        if len(data) > limit:
            raise OSError(errno.EFBIG, f"larger than {limit} bytes")
    return Content(bytes(data), Attributes.of(status))


def _replaceable(parent: int, name: str) -> os.stat_result | None:
    existing = status_of(parent, name)
    if existing is None:
        return None
    if stat.S_ISDIR(existing.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(existing.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return existing


def _inherited(parent: int, mode: int) -> Attributes:
    """Return attributes of a new file.

    As root, these are the directory's owner and group; otherwise -1, which keeps this user's.
    """
    if os.geteuid() != 0:
        return Attributes(mode, -1, -1)
    holder = os.fstat(parent)
    return Attributes(mode, holder.st_uid, holder.st_gid)


def _replace(
    parent: int, name: str, data: bytes, attributes: Attributes, unchanged: Callable[[], bool]
) -> bool:
    temporary = f".{name[:200]}.{secrets.token_hex(6)}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(temporary, flags, 0o600, dir_fd=parent)
    try:
        try:
            with open(file, "wb", closefd=False) as stream:
                stream.write(data)
            _give(file, attributes)
            os.fsync(file)
        finally:
            os.close(file)
        if not unchanged():
            os.unlink(temporary, dir_fd=parent)
            return False
        os.replace(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=parent)
        raise
    _sync(parent)
    return True


def _give(file: int, attributes: Attributes) -> None:
    # Changing the owner clears set-id bits, so the mode is set afterwards.
    _own(file, uid=-1, gid=attributes.gid)
    _own(file, uid=attributes.uid, gid=-1)
    os.fchmod(file, attributes.mode)


def _own(file: int, *, uid: int, gid: int) -> None:
    """Set the owner or group of the file where permitted."""
    try:
        os.fchown(file, uid, gid)
    except OSError as error:
        # In a user namespace, an owner that is not mapped is invalid.
        if error.errno not in (errno.EPERM, errno.EINVAL):
            raise


@contextlib.contextmanager
def _listable(opened: int) -> Iterator[int]:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    listable = os.open(".", flags, dir_fd=opened)
    try:
        yield listable
    finally:
        os.close(listable)


def _sync(parent: int) -> None:
    # Only this makes the new name survive a power failure.
    with _listable(parent) as opened:
        os.fsync(opened)
