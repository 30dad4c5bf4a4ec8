"""Open files that others name, without being hung, flooded or fooled by what is there.

A name in a configuration can lead to a pipe, a device, a file of the kernel or a file system that
does not answer.  Nothing but a regular file is ever opened for reading, no more than a limit is
read, and whatever may block runs in a thread that is given up after `SECONDS`.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")

SECONDS = 5.0
"""How long one file may take.  A disk under load takes milliseconds."""
MAX_STUCK = 16
"""Threads that may wait for file systems that do not answer."""
MAX_LINKS = 40
"""Symbolic links on the way to a file, as in the kernel (path_resolution(7))."""
_KERNEL_FILESYSTEMS = frozenset(
    """
    proc sysfs devpts debugfs tracefs securityfs cgroup cgroup2 configfs bpf pstore efivarfs mqueue
    fusectl binfmt_misc selinuxfs smackfs nsfs rpc_pipefs nfsd resctrl
    """.split()
)
_NULL_DEVICE = os.makedev(1, 3)
_CHUNK = 1024 * 1024
_SWAPS = 3
"""How often a file may be replaced by a link, or taken away, just while it is looked at."""
_MOUNTS_AGE = 1.0
"""Seconds for which the table of mounts counts."""


class Fault(StrEnum):
    """Why a file is not read."""

    MISSING = "missing"
    DENIED = "denied"
    DIRECTORY = "directory"
    SPECIAL = "special"
    """A pipe, device or socket."""
    KERNEL = "kernel"
    """It is in procfs, sysfs or the like, or the way to it leads through there."""
    LINKS = "links"
    TOO_LARGE = "too-large"
    BUSY = "busy"
    """Another process holds a lease on it (fcntl(2), F_SETLEASE)."""
    SLOW = "slow"
    """It does not answer in time."""
    FAILED = "failed"


_FAULTS = {
    errno.ENOENT: Fault.MISSING,
    errno.ENOTDIR: Fault.MISSING,
    errno.EACCES: Fault.DENIED,
    errno.EPERM: Fault.DENIED,
    errno.ELOOP: Fault.LINKS,
    errno.EAGAIN: Fault.BUSY,
}
_REASONS = {
    Fault.MISSING: ("does not exist", "create it, or correct the path"),
    Fault.DENIED: ("may not be read", "let this user read it, or run as root"),
    Fault.DIRECTORY: ("is not a regular file", "put a regular file there, not a directory"),
    Fault.SPECIAL: (
        "is not a regular file",
        "put a regular file there, not a pipe, socket or device",
    ),
    Fault.KERNEL: (
        "is not a regular file",
        "put a regular file there, not one of /proc or /sys",
    ),
    Fault.LINKS: ("has symbolic links that lead in a circle", "correct the links"),
    Fault.BUSY: ("is locked by another process (a lease)", "end that process"),
    Fault.SLOW: (
        f"does not answer within {SECONDS:g} s",
        "see whether its file system is reachable (`findmnt -T`)",
    ),
}


class Unsafe(Exception):
    """A file that is not read.  `message` continues a sentence that begins with its name."""

    def __init__(self, fault: Fault, message: str = "", remedy: str = "") -> None:
        default, fix = _REASONS.get(fault, ("cannot be read", "see its owner and mode"))
        self.fault = fault
        self.message = message or default
        self.remedy = remedy or fix
        super().__init__(self.message)

    @classmethod
    def of(cls, error: OSError) -> Unsafe:
        """What the system refused."""
        fault = _FAULTS.get(error.errno or 0, Fault.FAILED)
        if fault in (Fault.FAILED, Fault.MISSING, Fault.DENIED):
            return cls(fault, f"cannot be read: {error.strerror}")
        return cls(fault)


@dataclass(frozen=True, slots=True)
class Found:
    """A file that may be read: where it really is, and what stat(2) says of it."""

    path: str
    status: os.stat_result

    @property
    def is_directory(self) -> bool:
        """True for a directory, which only `examine` returns."""
        return stat.S_ISDIR(self.status.st_mode)


def read(path: str, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.  Raises `Unsafe`."""
    try:
        return bounded(path, lambda: _read(path, limit))
    except OSError as exc:
        raise Unsafe.of(exc) from None


def read_listed(path: str, limit: int) -> bytes:
    """As `read`, at less cost, for a file in a directory that has just been listed.

    A plain file in the file system of its directory cannot hang where the directory did not.
    """
    try:
        if _is_plain(path):
            return _read_plain(path, limit)
    except OSError as exc:
        raise Unsafe.of(exc) from None
    return read(path, limit)


def examine(path: str) -> Found:
    """Where a file or directory really is, without opening it.  Raises `Unsafe`.

    A file is one that `read` would open, or /dev/null, which HAProxy's manual uses as an empty one.
    """
    return bounded(path, lambda: _examine(path))


def status_listed(path: str) -> os.stat_result:
    """What stat(2) says of a file in a directory that has just been listed.

    Raises OSError, as stat does, or `Unsafe` if there is no answer.
    """
    found = os.lstat(path)
    if not stat.S_ISLNK(found.st_mode):
        return found
    return bounded(path, lambda: os.stat(path))  # noqa: PTH116 - as lstat above


def names(directory: str, limit: int) -> list[str]:
    """The names in a directory, sorted.  Raises `Unsafe`, also if there are more than `limit`."""

    def listed() -> list[str]:
        found: list[str] = []
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    found.append(entry.name)
                    if len(found) > limit:
                        raise Unsafe(
                            Fault.TOO_LARGE,
                            f"has more than {limit} entries",
                            "split it into several directories",
                        )
        except OSError as exc:
            raise Unsafe.of(exc) from None
        return sorted(found)

    return bounded(directory, listed)


def bounded(path: str, work: Callable[[], T], seconds: float = SECONDS) -> T:
    """What `work`, which is about `path`, returns or raises; `Unsafe` if it takes too long.

    A thread that does not come back is left behind.  While it waits, the same path fails at once,
    and so do all once `MAX_STUCK` threads wait.
    """
    return _WORKERS.call(path, work, seconds)


def threads_stuck() -> int:
    """How many threads wait for file systems that do not answer."""
    return _WORKERS.stuck()


def _is_plain(path: str) -> bool:
    """True if `path` is a regular file in the file system of its directory, and no link."""
    found = os.lstat(path)
    parent = os.stat(os.path.dirname(path) or ".")  # noqa: PTH116, PTH120
    return stat.S_ISREG(found.st_mode) and found.st_dev == parent.st_dev


_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
"""O_NONBLOCK, as another process may hold a lease on the file."""


def _read_plain(path: str, limit: int) -> bytes:
    descriptor = os.open(path, _FLAGS | os.O_NOFOLLOW)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Unsafe(Fault.SPECIAL)
        return _all_of(descriptor, limit)
    finally:
        os.close(descriptor)


def _read(path: str, limit: int) -> bytes:
    handle, found = _handle(path)
    try:
        if not stat.S_ISREG(found.status.st_mode):
            raise Unsafe(Fault.DIRECTORY if found.is_directory else Fault.SPECIAL)
        # The link in /proc leads to the very file that `handle` stands for.
        descriptor = os.open(f"/proc/self/fd/{handle}", _FLAGS)
        try:
            return _all_of(descriptor, limit)
        finally:
            os.close(descriptor)
    finally:
        os.close(handle)


def _all_of(descriptor: int, limit: int) -> bytes:
    content = bytearray()
    while chunk := os.read(descriptor, min(_CHUNK, limit + 1 - len(content))):
        content += chunk
        if len(content) > limit:
            raise too_large(limit)
    return bytes(content)


def too_large(limit: int) -> Unsafe:
    """That a file has more than `limit` bytes."""
    return Unsafe(Fault.TOO_LARGE, f"is larger than {limit} bytes", "split it into several files")


def _examine(path: str) -> Found:
    try:
        handle, found = _handle(path)
        os.close(handle)
    except OSError as exc:
        raise Unsafe.of(exc) from None
    return found


def _handle(path: str) -> tuple[int, Found]:
    """A descriptor that stands for a file, with O_PATH: to open a device can have effects.

    Raises OSError or `Unsafe`.
    """
    for attempt in range(_SWAPS, -1, -1):
        real = _resolved(path)
        try:
            handle = os.open(real, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            if not attempt:
                raise
            continue
        found = os.fstat(handle)
        fault = _fault(found)
        if fault is None:
            return handle, Found(real, found)
        os.close(handle)
        if not (stat.S_ISLNK(found.st_mode) and attempt):
            raise Unsafe(fault)
    raise Unsafe(Fault.LINKS)


def _fault(found: os.stat_result) -> Fault | None:
    if found.st_dev in _kernel_devices():
        return Fault.KERNEL
    is_null = stat.S_ISCHR(found.st_mode) and found.st_rdev == _NULL_DEVICE
    if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode) or is_null:
        return None
    return Fault.SPECIAL


def _resolved(path: str) -> str:
    """`path` without links.  Raises OSError, or `Unsafe` if the way leads through the kernel's.

    A link in /proc means something else in each process: what we would look at is not what HAProxy
    would open.
    """
    kernel = _kernel_devices()
    todo = _parts(path if path.startswith("/") else str(Path.cwd() / path))
    at, links = "/", 0
    while todo:
        name = todo.pop()
        if name == "..":
            at = os.path.dirname(at)  # noqa: PTH120
            continue
        here = f"{at.rstrip('/')}/{name}"
        found = os.lstat(here)
        if found.st_dev in kernel:
            raise Unsafe(Fault.KERNEL)
        if not stat.S_ISLNK(found.st_mode):
            at = here
            continue
        links += 1
        if links > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = os.readlink(here)  # noqa: PTH115
        at = "/" if target.startswith("/") else at
        todo += _parts(target)
    return at


def _parts(path: str) -> list[str]:
    """The parts of a path, last one first."""
    return [part for part in path.split("/") if part not in ("", ".")][::-1]


def _kernel_devices() -> frozenset[int]:
    """The device numbers of the file systems in which the kernel shows itself (proc(5))."""
    return _devices_at(int(time.monotonic() / _MOUNTS_AGE))


@lru_cache(maxsize=1)
def _devices_at(_age: int) -> frozenset[int]:
    try:
        return _devices_in(Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape"))
    except OSError:
        return frozenset()


def _devices_in(table: str) -> frozenset[int]:
    found = set()
    for line in table.splitlines():
        mount, _, kind = line.partition(" - ")
        if kind.split(" ", 1)[0] in _KERNEL_FILESYSTEMS:
            major, _, minor = mount.split(" ", 3)[2].partition(":")
            found.add(os.makedev(int(major), int(minor)))
    return frozenset(found)


class _Job:
    """One call in a thread."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.work = work
        self.done = threading.Event()
        self.result: object = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.work()
        except BaseException as exc:
            self.error = exc
        self.done.set()


class _Worker(threading.Thread):
    """A thread for calls that may block.  A daemon: one that is stuck must not keep us from ending.

    It ends when it is given None.
    """

    def __init__(self) -> None:
        super().__init__(name="files", daemon=True)
        self.jobs: SimpleQueue[_Job | None] = SimpleQueue()

    def run(self) -> None:
        while (job := self.jobs.get()) is not None:
            job.run()


class _Workers:
    """Threads for calls that may block, each for one call at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._stuck: dict[str, _Job] = {}

    def stuck(self) -> int:
        with self._lock:
            self._stuck = {path: job for path, job in self._stuck.items() if not job.done.is_set()}
            return len(self._stuck)

    def call(self, path: str, work: Callable[[], T], seconds: float) -> T:
        self.stuck()
        with self._lock:
            if path in self._stuck or len(self._stuck) >= MAX_STUCK:
                raise Unsafe(Fault.SLOW)
            worker = self._idle.pop() if self._idle else None
        if worker is None:
            worker = _Worker()
            worker.start()
        job = _Job(work)
        worker.jobs.put(job)
        if not job.done.wait(seconds):
            with self._lock:
                self._stuck[path] = job
            # It ends once it comes back.
            worker.jobs.put(None)
            raise Unsafe(Fault.SLOW)
        with self._lock:
            self._idle.append(worker)
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[return-value]


_WORKERS = _Workers()
