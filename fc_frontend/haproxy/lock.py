"""One deployment at a time: the daemon, `apply` and `rollback` take turns."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from fc_frontend.errors import Problem, Unavailable

FILE = "deploy.lock"
_PAUSE = 0.02


@contextlib.contextmanager
def deploying(state_directory: str, timeout: float) -> Iterator[None]:
    """Hold the lock; waits for another holder for at most `timeout` seconds.

    A lock that cannot be made, as on a read-only file system, hinders nobody.  Raises `Unavailable`
    if another process holds it for too long.
    """
    path = Path(state_directory) / FILE
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    except OSError:
        yield
        return
    try:
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise _busy(path, file, timeout) from None
            time.sleep(_PAUSE)
        os.truncate(file, 0)
        os.pwrite(file, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(file)


def _busy(path: Path, file: int, timeout: float) -> Unavailable:
    holder = os.pread(file, 20, 0).decode("ascii", "replace") or "unknown"
    return Unavailable(
        Problem(
            message=f"process {holder} has been deploying for {timeout:g} s ({path})",
            remedy="look what it waits for, and try again",
        )
    )
