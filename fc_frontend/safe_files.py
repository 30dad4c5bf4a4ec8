"""Open files named by others without being blocked, flooded or deceived.

A name in a configuration can lead to a pipe, a device, a file of the kernel or a file system that
does not answer.  Only regular files are opened for reading, and only up to a limit.  Access to a
file system that may not answer runs in a thread that is abandoned after `SECONDS`.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from enum import StrEnum
from queue import SimpleQueue
from typing import TypeVar

from fc_frontend.paths.walk import ForeignLink, Found, InKernel, NotAFile, RemoteMount, Walker

T = TypeVar("T")

SECONDS = 5.0
"""Time limit for one file.  A disk under load takes milliseconds."""
MAX_STUCK = 16
"""Maximum number of threads that may wait for file systems that do not answer."""
_NULL_DEVICE = os.makedev(1, 3)
_CHUNK = 1024 * 1024


class FileFault(StrEnum):
    """The reason why a file is not read."""

    MISSING = "missing"
    DENIED = "denied"
    DIRECTORY = "directory"
    SPECIAL = "special"
    """A pipe, device or socket."""
    KERNEL = "kernel"
    """It is in procfs, sysfs or a similar file system, or its path leads through one."""
    LINKS = "links"
    TOO_LARGE = "too-large"
    FOREIGN = "foreign"
    """A link leads to a file that the link's owner may not read."""
    BUSY = "busy"
    """Another process holds a lease on it (fcntl(2), F_SETLEASE)."""
    SLOW = "slow"
    """It does not answer in time."""
    FAILED = "failed"


_FAULTS = {
    errno.ENOENT: FileFault.MISSING,
    errno.ENOTDIR: FileFault.MISSING,
    errno.EACCES: FileFault.DENIED,
    errno.EPERM: FileFault.DENIED,
    errno.ELOOP: FileFault.LINKS,
    errno.EAGAIN: FileFault.BUSY,
}
_WALK_FAULTS: dict[type[OSError], FileFault] = {
    ForeignLink: FileFault.FOREIGN,
    InKernel: FileFault.KERNEL,
    NotAFile: FileFault.SPECIAL,
}
_REASONS = {
    FileFault.MISSING: ("does not exist", "create it, or correct the path"),
    FileFault.DENIED: ("may not be read", "let this user read it, or run as root"),
    FileFault.DIRECTORY: ("is not a regular file", "put a regular file there, not a directory"),
    FileFault.SPECIAL: (
        "is not a regular file",
        "put a regular file there, not a pipe, socket or device",
    ),
    FileFault.KERNEL: (
        "is not a regular file",
        "put a regular file there, not one of /proc or /sys",
    ),
    FileFault.LINKS: ("has symbolic links that lead in a circle", "correct the links"),
    FileFault.FOREIGN: (
        "is a link to a file of another user",
        "let its owner put the file itself there",
    ),
    FileFault.BUSY: ("is locked by another process (a lease)", "end that process"),
    FileFault.SLOW: (
        f"does not answer within {SECONDS:g} s",
        "see whether its file system is reachable (`findmnt -T`)",
    ),
}


class Unsafe(Exception):
    """A file that is not read.  `message` continues a sentence that begins with its name."""

    def __init__(self, fault: FileFault, message: str = "", remedy: str = "") -> None:
        default, fix = _REASONS.get(fault, ("cannot be read", "see its owner and mode"))
        self.fault = fault
        self.message = message or default
        self.remedy = remedy or fix
        super().__init__(self.message)

    @classmethod
    def of(cls, error: OSError) -> Unsafe:
        """Return the fault for an error of the system, or of the walk to the file."""
        for kind, fault in _WALK_FAULTS.items():
            if isinstance(error, kind):
                return cls(fault, (error.strerror or "") if fault is FileFault.FOREIGN else "")
        fault = _FAULTS.get(error.errno or 0, FileFault.FAILED)
        if fault in (FileFault.FAILED, FileFault.MISSING, FileFault.DENIED):
            return cls(fault, f"cannot be read: {error.strerror}")
        return cls(fault)


def read(path: str, limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes.  Raises `Unsafe`."""
    return read_found(path, limit)[0]


def read_found(path: str, limit: int) -> tuple[bytes, Found]:
    """Like `read`, with the target of `path` and who may change it.  Raises `Unsafe`."""
    return _local_first(lambda walker: _read(walker, path, limit))


def read_listed(path: str, limit: int, directory: Found) -> tuple[bytes, Found]:
    """Like `read_found`, at less cost, for a file of a `directory` that was just examined.

    A plain file in the file system of its directory cannot hang if the directory did not.
    """
    try:
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_dev != directory.status.st_dev:
            return read_found(path, limit)
        descriptor = os.open(path, _FLAGS | os.O_NOFOLLOW)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise Unsafe(FileFault.SPECIAL)
            return _all_of(descriptor, limit), Walker().entry(directory, path, status)
        finally:
            os.close(descriptor)
    except OSError as exc:
        raise Unsafe.of(exc) from None


def examine(path: str) -> Found:
    """Return the target of `path`, without opening it.  Raises `Unsafe`.

    A file is one that `read` would open, or /dev/null, which HAProxy's manual uses as an empty
    file.
    """
    return _local_first(lambda walker: _examine(walker, path))


def look(path: str) -> Found:
    """Return the target of `path`, of any type, without opening it.  Raises `Unsafe`."""
    return _local_first(lambda walker: _look(walker, path))


def names(directory: str, limit: int) -> list[str]:
    """Return the names in a directory, sorted.  Raises `Unsafe`, also for more than `limit`."""

    def listed(walker: Walker) -> list[str]:
        found: list[str] = []
        try:
            with walker.opened(directory) as (opened, _), os.scandir(opened) as entries:
                for entry in entries:
                    found.append(entry.name)
                    if len(found) > limit:
                        raise Unsafe(
                            FileFault.TOO_LARGE,
                            f"has more than {limit} entries",
                            "split it into several directories",
                        )
        except RemoteMount:
            raise
        except OSError as exc:
            raise Unsafe.of(exc) from None
        return sorted(found)

    return _local_first(listed)


def bounded(place: str, work: Callable[[], T], seconds: float = SECONDS) -> T:
    """Call `work`, which concerns `place`; raise `Unsafe` if it takes too long.

    A thread that does not return is abandoned.  While it waits, calls for the same place fail at
    once, and so do all calls once `MAX_STUCK` threads wait.
    """
    return _WORKERS.call(place, work, seconds)


def _local_first(work: Callable[[Walker], T]) -> T:
    """Call `work`: directly if it only needs local disks, else by `bounded`.

    One path that does not answer counts for its entire file system, so that nobody can make others
    wait by naming many paths.
    """
    try:
        return work(Walker(stays_local=True))
    except RemoteMount as exc:
        return bounded(exc.filename, lambda: work(Walker()))


def remote_mount(path: str) -> str | None:
    """Return the mount point of a file system that may not answer, if `path` leads there."""
    try:
        Walker(stays_local=True).look(path)
    except RemoteMount as exc:
        return str(exc.filename)
    except OSError:
        return None
    return None


def threads_stuck() -> int:
    """Return the number of threads that wait for file systems that do not answer."""
    return _WORKERS.stuck()


_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
"""O_NONBLOCK, because another process may hold a lease on the file."""


def _read(walker: Walker, path: str, limit: int) -> tuple[bytes, Found]:
    try:
        with walker.opened(path) as (descriptor, found):
            if found.is_directory:
                raise Unsafe(FileFault.DIRECTORY)
            return _all_of(descriptor, limit), found
    except RemoteMount:
        raise
    except OSError as exc:
        raise Unsafe.of(exc) from None


def _all_of(descriptor: int, limit: int) -> bytes:
    content = bytearray()
    while chunk := os.read(descriptor, min(_CHUNK, limit + 1 - len(content))):
        content += chunk
        if len(content) > limit:
            raise too_large(limit)
    return bytes(content)


def too_large(limit: int) -> Unsafe:
    """Return the error that a file has more than `limit` bytes."""
    return Unsafe(
        FileFault.TOO_LARGE, f"is larger than {limit} bytes", "split it into several files"
    )


def _look(walker: Walker, path: str) -> Found:
    try:
        return walker.look(path)
    except RemoteMount:
        raise
    except OSError as exc:
        raise Unsafe.of(exc) from None


def _examine(walker: Walker, path: str) -> Found:
    found = _look(walker, path)
    mode = found.status.st_mode
    is_null = stat.S_ISCHR(mode) and found.status.st_rdev == _NULL_DEVICE
    if not (stat.S_ISREG(mode) or found.is_directory or is_null):
        raise Unsafe(FileFault.SPECIAL)
    return found


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
    """A thread for calls that may block; a daemon, so that a stuck one does not prevent exit.

    It ends when it receives None.
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
                raise Unsafe(FileFault.SLOW)
            worker = self._idle.pop() if self._idle else None
        if worker is None:
            worker = _Worker()
            worker.start()
        job = _Job(work)
        worker.jobs.put(job)
        if not job.done.wait(seconds):
            with self._lock:
                self._stuck[path] = job
            # The thread ends once the call returns.
            worker.jobs.put(None)
            raise Unsafe(FileFault.SLOW)
        with self._lock:
            self._idle.append(worker)
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[return-value]


_WORKERS = _Workers()
