"""Examine the directories that fc-frontend writes in, and the clock."""

from __future__ import annotations

import ctypes
import os
import pwd
import time
from pathlib import Path

from fc_frontend.doctor.judge.machine import Clock, DirectoryFacts

_STA_UNSYNC = 0x40
_TIMEX_BYTES = 512
"""More than the size of `struct timex`."""
_MOST_FILES = 1000


def observe_place(check: str, path: str) -> DirectoryFacts:
    """Find out whether this user may write in the directory `path`, without writing."""
    nearest = Path(path)
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    try:
        space = os.statvfs(nearest)
        free: int | None = space.f_bavail * space.f_frsize
    except OSError:
        free = None
    return DirectoryFacts(
        check=check,
        path=path,
        nearest=str(nearest),
        is_directory=nearest.is_dir(),
        writable=os.access(nearest, os.W_OK | os.X_OK, effective_ids=True),
        user=_user(),
        free=free,
    )


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"user {os.geteuid()}"


def observe_clock(directory: str) -> Clock:
    """Return the time, the newest file in `directory`, and whether the clock is synchronized."""
    newest: float | None = None
    newest_path = ""
    try:
        with os.scandir(directory) as entries:
            for _, entry in zip(range(_MOST_FILES), entries, strict=False):
                written = entry.stat(follow_symlinks=False).st_mtime
                if newest is None or written > newest:
                    newest, newest_path = written, entry.path
    except OSError:
        pass
    return Clock(time.time(), newest, newest_path, _synchronized())


def _synchronized() -> bool | None:
    """Return whether the kernel considers its clock synchronized, or None if unknown.

    adjtimex(2) with no mode only reads; `status` is at the fifth word of `struct timex`.
    """
    buffer = ctypes.create_string_buffer(_TIMEX_BYTES)
    library = ctypes.CDLL(None, use_errno=True)
    if library.adjtimex(buffer) < 0:
        return None
    word = ctypes.sizeof(ctypes.c_long)
    # int modes; long offset, freq, maxerror, esterror; int status
    status = ctypes.c_int.from_buffer(buffer, 5 * word).value
    return not status & _STA_UNSYNC
