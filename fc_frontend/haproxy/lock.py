"""Locks between processes: for deployments, for the history and for the record of drains.

They serialize the daemon, `apply`, `rollback` and other commands.

`filelock` is not used: it opens the path itself, so it can neither use a file that was opened
without following links of other users, nor lock a directory.  It would replace the 12 lines of
`_wait`, and takes 30 ms to import.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from fc_frontend import files
from fc_frontend.errors import Problem, Severity, Unavailable
from fc_frontend.paths.own import directory

FILE = "deploy.lock"
_PAUSE = 0.01


@contextlib.contextmanager
def deploying(state_directory: str, timeout: float) -> Iterator[tuple[Problem, ...]]:
    """Hold the deployment lock; wait for another holder for at most `timeout` seconds.

    The lock is released when its process ends; it is not reentrant.  If the lock cannot be created,
    as on a read-only file system, the caller continues without it and gets a warning.  Raises
    `Unavailable` if another process holds it for too long.
    """
    path = Path(state_directory) / FILE
    try:
        files.make_directory(state_directory, mode=0o750)
        file = files.open_lock(str(path))
    except (OSError, Unavailable) as error:
        yield (_unlocked(path, error),)
        return
    try:
        try:
            is_ours = _wait(file, timeout)
        except OSError as error:
            yield (_unlocked(path, error),)
            return
        if not is_ours:
            raise _busy(path, file, timeout)
        _sign(file)
        yield ()
    finally:
        os.close(file)


@contextlib.contextmanager
def directory_locked(path: Path, timeout: float = 5.0) -> Iterator[None]:
    """Hold an advisory lock on a directory; wait for it for at most `timeout` seconds.

    The lock is released when its process ends; it is not reentrant.  Raises `Unavailable`.
    """
    try:
        with directory(str(path)) as opened:
            file = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=opened)
    except OSError as error:
        raise not_locked(path, error.strerror or str(error)) from error
    try:
        try:
            is_ours = _wait(file, timeout)
        except OSError as error:
            raise not_locked(path, error.strerror or str(error)) from error
        if not is_ours:
            raise not_locked(path, "another process holds it")
        yield
    finally:
        os.close(file)


def not_locked(path: Path, reason: str) -> Unavailable:
    """Return the error that a directory cannot be locked."""
    return Unavailable.of(
        f"{path} cannot be locked: {reason}",
        "run as the user that fc-frontend's daemon runs as, or as root; else try again",
        field="state_directory",
    )


def _wait(file: int, timeout: float) -> bool:
    """Return whether the file was locked before `timeout`."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_PAUSE)
        else:
            return True


def _sign(file: int) -> None:
    # The PID only serves the message to waiting processes: a full disk must not stop a deployment.
    with contextlib.suppress(OSError):
        os.truncate(file, 0)
        os.pwrite(file, str(os.getpid()).encode(), 0)


def _busy(path: Path, file: int, timeout: float) -> Unavailable:
    holder = os.pread(file, 20, 0).decode("ascii", "replace")
    return Unavailable.of(
        f"process {holder if holder.isdecimal() else 'unknown'} has been deploying for "
        f"{timeout:g} s ({path})",
        remedy="look what it waits for, and try again",
    )


def _unlocked(path: Path, error: OSError | Unavailable) -> Problem:
    reason = error.strerror if isinstance(error, OSError) else error.problem.message
    return Problem(
        f"{path} cannot be locked: {reason or error}",
        remedy="give this user write permission there; until then, simultaneous deployments do not "
        "wait for each other",
        severity=Severity.WARNING,
        field="state_directory",
    )
