"""Have memory given back that was needed for a moment only.

glibc keeps what was freed of larger pieces for the next time, per thread (mallopt(3)).  With
thousands of services, whose answers and texts are megabytes, that is as much again as is in use.
"""

from __future__ import annotations

import contextlib
import ctypes

_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_LARGE = 128 * 1024
"""In bytes: glibc's own default, which it would raise with what it sees."""


def return_what_is_free() -> None:
    """Let pieces from 128 KiB on go back to the system when they are freed; glibc only."""
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_ARENA_MAX, 1)
