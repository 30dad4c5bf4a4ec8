"""One deployment at a time: the daemon, `apply` and `rollback` take turns."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from fc_frontend.errors import Problem, Severity, Unavailable
from fc_frontend.haproxy.install import give_to_owner

FILE = "deploy.lock"
_PAUSE = 0.02


@contextlib.contextmanager
def deploying(state_directory: str, timeout: float) -> Iterator[tuple[Problem, ...]]:
    """Hold the lock; waits for another holder for at most `timeout` seconds.

    Ends with the process that has it; not to be taken twice.  A lock that cannot be made, as on a
    read-only file system, hinders nobody: then it gives a warning.  Raises `Unavailable` if another
    process holds it for too long.
    """
    path = Path(state_directory) / FILE
    try:
        file = _open(path)
    except OSError as error:
        yield (_unlocked(path, error),)
        return
    try:
        try:
            _wait(path, file, timeout)
        except OSError as error:
            yield (_unlocked(path, error),)
            return
        _sign(file)
        yield ()
    finally:
        os.close(file)


def _open(path: Path) -> int:
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    # A pipe in its place would be waited for.
    flags = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o640)
    except PermissionError:
        # Another user's: to lock it, reading is enough.
        return os.open(path, os.O_RDONLY | flags)
    give_to_owner(str(path))
    return file


def _wait(path: Path, file: int, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise _busy(path, file, timeout) from None
            time.sleep(_PAUSE)
        else:
            return


def _sign(file: int) -> None:
    # Only told to those who wait in vain: a full disk must not stop a deployment.
    with contextlib.suppress(OSError):
        os.truncate(file, 0)
        os.pwrite(file, str(os.getpid()).encode(), 0)


def _busy(path: Path, file: int, timeout: float) -> Unavailable:
    holder = os.pread(file, 20, 0).decode("ascii", "replace")
    return Unavailable(
        Problem(
            message=f"process {holder if holder.isdecimal() else 'unknown'} has been deploying for "
            f"{timeout:g} s ({path})",
            remedy="look what it waits for, and try again",
        )
    )


def _unlocked(path: Path, error: OSError) -> Problem:
    return Problem(
        message=f"{path} cannot be locked: {error.strerror or error}",
        remedy="give this user the right to write there; until then, nobody waits for others that "
        "deploy at the same time",
        severity=Severity.WARNING,
        field="state_directory",
    )
