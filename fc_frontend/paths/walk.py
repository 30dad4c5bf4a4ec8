"""Follow a path, and find out who may change its target; the checked file is the one read."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from fc_frontend.paths.access import Component, Part, WriteAccess
from fc_frontend.paths.accounts import user_name
from fc_frontend.paths.mounts import mounts
from fc_frontend.paths.steps import Steps

_HARD_LINKS_ARE_PROTECTED = Path("/proc/sys/fs/protected_hardlinks")
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_STEP = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_ROOT = 0


@dataclass(frozen=True, slots=True)
class Found:
    """The target of a path: its path without links, its status, and who may change it.

    `is_shared` is true for a sticky directory in which others may create files.
    """

    path: str
    status: os.stat_result
    access: WriteAccess
    is_shared: bool = False

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.status.st_mode)


class NotAFile(OSError):
    """A path leads to a pipe, device or socket."""


class InKernel(OSError):
    """A path leads through procfs, sysfs or a similar file system.

    A link there has a different target in each process: HAProxy would open another file.
    """


class ForeignLink(OSError):
    """A link leads to a file that the link's owner may not read."""


class RemoteMount(OSError):
    """A path leads into a file system that may not answer; `filename` is its mount point."""


class Walker:
    """Follows paths.  One instance assumes that mounts do not change while it is used.

    With `stays_local`, RemoteMount is raised before a file system is entered that may not answer.
    """

    def __init__(self, *, stays_local: bool = False) -> None:
        self.mounts = mounts()
        self.stays_local = stays_local
        self._owner_of_root = Path("/").stat().st_uid

    def look(self, path: str) -> Found:
        """Return the target of `path`.  Raises OSError like an open would, including InKernel."""
        with contextlib.closing(_Way(self, path)) as way:
            return way.follow()

    @contextlib.contextmanager
    def opened(self, path: str) -> Iterator[tuple[int, Found]]:
        """Open the target of `path`; yield a descriptor, and who may change exactly that file.

        Raises OSError, and NotAFile for files whose opening has effects.
        """
        with contextlib.closing(_Way(self, path)) as way:
            found = way.follow()
            if not (stat.S_ISREG(found.status.st_mode) or found.is_directory):
                raise NotAFile(errno.EINVAL, "is not a regular file", path)
            descriptor = way.reopen()
            try:
                yield descriptor, replace(found, status=os.fstat(descriptor))
            finally:
                os.close(descriptor)

    def entry(self, directory: Found, path: str, status: os.stat_result) -> Found:
        """Return the last component of `path` in a known directory; it must not be a link."""
        real = f"{directory.path.rstrip('/')}/{path.rpartition('/')[2]}"
        return Found(real, status, self.entry_access(directory, real, status))

    def entry_access(self, directory: Found, path: str, status: os.stat_result) -> WriteAccess:
        """Return who may change the last component of `path` in a known directory; not for links.

        This is the same object as the directory's access if nobody else may.
        """
        is_plain = status.st_uid == _ROOT and not status.st_mode & _OTHERS_MAY_WRITE
        if is_plain and not directory.is_shared:
            # There may be thousands of these.
            return directory.access
        real = f"{directory.path.rstrip('/')}/{path.rpartition('/')[2]}"
        return self._judged(directory.access, real, status, directory.is_shared)

    def is_shared(self, status: os.stat_result) -> bool:
        """Return whether others may create files in a directory, but not remove the owner's."""
        return bool(
            status.st_mode & _OTHERS_MAY_WRITE
            and status.st_mode & stat.S_ISVTX
            and self.is_root(status.st_uid)
        )

    def is_root(self, uid: int) -> bool:
        """Return whether `uid` is root, or owns /.

        In a user namespace the host's root has no ID, and the owner of / has the most power.
        """
        return uid in (_ROOT, self._owner_of_root)

    def _judged(
        self,
        access: WriteAccess,
        path: str,
        status: os.stat_result,
        is_in_shared: bool,
        descriptor: int | None = None,
    ) -> WriteAccess:
        """Return `access` with one more component."""
        is_root = self.is_root(status.st_uid)
        part, mode = _part(status), stat.S_IMODE(status.st_mode)
        if is_root and (part is Part.LINK or not mode & _OTHERS_MAY_WRITE) and not is_in_shared:
            return access
        component = Component(path, part, status.st_uid, status.st_gid, mode)
        if not is_root and all(each.uid != status.st_uid for each in access.owners):
            access = replace(access, owners=(*access.owners, component))
        if part is Part.LINK:
            return access
        if (
            access.writable is None
            and mode & _OTHERS_MAY_WRITE
            and not (part is Part.DIRECTORY and self.is_shared(status))
            and not self._is_read_only(path, descriptor)
        ):
            access = replace(access, writable=component)
        if access.linked is None and is_in_shared and part is Part.FILE and status.st_nlink > 1:
            with contextlib.suppress(OSError):
                if _HARD_LINKS_ARE_PROTECTED.read_text().strip() != "0":
                    return access
            access = replace(access, linked=component)
        return access

    def _is_read_only(self, path: str, descriptor: int | None) -> bool:
        if descriptor is not None:
            return self.mounts.is_read_only(descriptor, path)
        try:
            opened = os.open(path, _STEP)
        except OSError:
            return False
        try:
            return self.mounts.is_read_only(opened, path)
        finally:
            os.close(opened)


def _part(status: os.stat_result) -> Part:
    if stat.S_ISLNK(status.st_mode):
        return Part.LINK
    return Part.DIRECTORY if stat.S_ISDIR(status.st_mode) else Part.FILE


class _Way(Steps):
    """The steps to one path, and who may change its target."""

    def __init__(self, walker: Walker, path: str) -> None:
        super().__init__(path)
        self._walker = walker
        self._access = walker._judged(
            WriteAccess(), "/", self.statuses[0], False, self.descriptors[0]
        )
        self._linkers: dict[int, str] = {}
        """Users other than root who own a link on the way, and the link."""

    def follow(self) -> Found:
        """Walk to the end.  Raises OSError."""
        status = self.walk()
        self._refuse_foreign_links(status)
        is_shared = stat.S_ISDIR(status.st_mode) and self._walker.is_shared(status)
        return Found("/" + "/".join(self.names), status, self._access, is_shared)

    def reopen(self) -> int:
        """Open exactly the file that `follow` found, for reading.  Raises OSError."""
        # This opens the same inode (proc(5)), even if another file has its name by now.
        return os.open(f"/proc/self/fd/{self.descriptors[-1]}", _READ)

    def before(self, path: str) -> None:
        if self._walker.stays_local and path in self._walker.mounts.remote_points:
            raise RemoteMount(errno.EREMOTE, os.strerror(errno.EREMOTE), path)

    def opened(self, path: str, status: os.stat_result) -> None:
        if status.st_dev != self.statuses[-1].st_dev:
            self._cross(path, status)
        is_in_shared = self._walker.is_shared(self.statuses[-1])
        self._access = self._walker._judged(
            self._access, path, status, is_in_shared, self.descriptors[-1]
        )

    def followed(self, path: str, link: os.stat_result) -> None:
        if not self._walker.is_root(link.st_uid):
            self._linkers.setdefault(link.st_uid, path)

    def _cross(self, path: str, status: os.stat_result) -> None:
        """Enter another file system.  Raises InKernel."""
        table = self._walker.mounts
        if status.st_dev in table.kernel_devices:
            raise InKernel(errno.EINVAL, "leads to a file of the kernel", self.given)
        user = table.users.get(status.st_dev)
        if user is not None and not self._walker.is_root(user):
            mount = Component(path, Part.MOUNT, user, status.st_gid, stat.S_IMODE(status.st_mode))
            self._access = replace(self._access, owners=(*self._access.owners, mount))

    def _refuse_foreign_links(self, status: os.stat_result) -> None:
        """Raise an error if a link leads to a file that the link's owner may not read."""
        for uid, link in self._linkers.items():
            is_readable = status.st_uid == uid or status.st_mode & stat.S_IROTH
            is_reachable = all(
                each.st_uid == uid or each.st_mode & stat.S_IXOTH for each in self.statuses[:-1]
            )
            if not (is_readable and is_reachable):
                message = f"leads by {link}, a link of {user_name(uid)}, to another user's file"
                raise ForeignLink(errno.EACCES, message, self.given)
