"""Return memory to the system that was needed for a short time only.

For each thread, glibc keeps larger freed blocks for reuse (mallopt(3)).  With thousands of
services, whose answers and texts take megabytes, that is as much again as is in use.
"""

from __future__ import annotations

import contextlib
import ctypes

_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_LARGE = 128 * 1024
"""In bytes: glibc's own default, which glibc would raise dynamically."""


def return_what_is_free() -> None:
    """Return blocks of 128 KiB or more to the system when they are freed; glibc only."""
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_ARENA_MAX, 1)
