"""Mounts from /proc/PID/mountinfo (proc(5)): kernel, FUSE and read-only file systems.

A mount is read-only in one mount namespace and at one place.  With systemd's ProtectSystem=strict,
the daemon sees all of /etc as read-only, while other users write to it; a read-only bind mount
leaves its source writable.  So a directory counts as read-only only if neither this process nor
process 1 has a writable mount that leads to it.
"""

from __future__ import annotations

import os
import re
import select
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

_OWN = "/proc/self/mountinfo"
_FIRST = "/proc/1/mountinfo"
_ESCAPE = re.compile(r"\\([0-7]{3})")
_USER = re.compile(r"(?:.*,)?user_id=([0-9]+)(?:,.*)?")
_KERNEL = frozenset(
    """
    proc sysfs devpts debugfs tracefs securityfs cgroup cgroup2 configfs bpf pstore efivarfs mqueue
    fusectl binfmt_misc selinuxfs smackfs nsfs rpc_pipefs nfsd resctrl
    """.split()
)
_LOCAL = frozenset(
    """
    ext2 ext3 ext4 xfs btrfs zfs bcachefs f2fs jfs tmpfs ramfs devtmpfs hugetlbfs overlay erofs
    squashfs iso9660 udf vfat exfat ntfs3
    """.split()
)
"""File systems that answer as long as this host does."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of mountinfo.  `root` is the directory of the file system that is mounted.

    `user` is the user who mounted a FUSE file system, None for other file systems.
    """

    id: int
    device: int
    root: str
    point: str
    kind: str
    is_writable: bool
    user: int | None = None


def parse(text: str) -> tuple[Mount, ...]:
    """Return the mounts in the text of a mountinfo file, in its order: later ones cover earlier."""
    mounts = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(" "), after.split(" ", 2)
        major, _, minor = fields[2].partition(":")
        root, point = (_ESCAPE.sub(_unescaped, field) for field in fields[3:5])
        user = _USER.fullmatch(options) if kind.startswith("fuse") else None
        mounts.append(
            Mount(
                id=int(fields[0]),
                device=os.makedev(int(major), int(minor)),
                root=root,
                point=point,
                kind=kind,
                is_writable="ro" not in (*fields[5].split(","), *options.split(",")),
                user=int(user[1]) if user else None,
            )
        )
    return tuple(mounts)


def _unescaped(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 8))


def leads_to(mounts: Sequence[Mount], device: int, inside: str) -> bool:
    """Return whether a writable mount leads to the directory `inside` of a file system."""
    for number, mount in enumerate(mounts):
        if mount.device != device or not mount.is_writable or not _is_below(inside, mount.root):
            continue
        path = _moved(inside, mount.root, mount.point)
        covers = (later.point for later in mounts[number + 1 :] if _is_below(path, later.point))
        if not any(_is_below(point, mount.point) for point in covers):
            return True
    return False


def _is_below(path: str, directory: str) -> bool:
    return PurePosixPath(path).is_relative_to(directory)


def _moved(path: str, old: str, new: str) -> str:
    return str(PurePosixPath(new) / PurePosixPath(path).relative_to(old))


class Mounts:
    """The mounts of this process, and those of process 1."""

    def __init__(self) -> None:
        self._own = _read(_OWN) or ()
        self.kernel_devices = frozenset(m.device for m in self._own if m.kind in _KERNEL)
        """The device numbers of the kernel's own file systems, such as procfs."""
        self.remote_points = frozenset(
            m.point for m in self._own if m.kind not in _LOCAL | _KERNEL and m.point != "/"
        )
        """Mount points of file systems that may not answer: NFS, FUSE and any unknown type."""
        self.users = {m.device: m.user for m in self._own if m.user is not None}
        """The users who mounted FUSE file systems, by device number: they control the content."""

    @cached_property
    def _first(self) -> tuple[Mount, ...] | None:
        return _read(_FIRST)

    def is_read_only(self, descriptor: int, path: str) -> bool:
        """Return whether nobody can write the open directory or file `path`, whatever its mode.

        Returns False if that cannot be determined.
        """
        if not os.fstatvfs(descriptor).f_flag & os.ST_RDONLY or self._first is None:
            return False
        try:
            text = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
        except OSError:
            return False
        found = re.search(r"^mnt_id:\s*([0-9]+)$", text, re.MULTILINE)
        mount = next((m for m in self._own if found and m.id == int(found[1])), None)
        if mount is None or not _is_below(path, mount.point):
            return False
        inside = _moved(path, mount.point, mount.root)
        return not any(
            leads_to(mounts, mount.device, inside) for mounts in (self._own, self._first)
        )


def _read(path: str) -> tuple[Mount, ...] | None:
    try:
        return parse(Path(path).read_text("utf-8", "surrogateescape"))
    except (OSError, ValueError, IndexError):
        return None


class _Table:
    """The mounts, read again whenever the kernel reports a change (proc(5), mountinfo)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._poller: select.poll | None = None
        self._mounts: Mounts | None = None

    def get(self) -> Mounts:
        with self._lock:
            if self._mounts is None or self._has_changed():
                self._mounts = Mounts()
            return self._mounts

    def _has_changed(self) -> bool:
        if self._poller is None:
            try:
                table = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return True
            self._poller = select.poll()
            self._poller.register(table, select.POLLPRI)
            return True
        return bool(self._poller.poll(0))


_TABLE = _Table()


def mounts() -> Mounts:
    """Return the current mounts."""
    return _TABLE.get()
