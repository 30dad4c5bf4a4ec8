"""A file system that never answers, like that of a dead NFS server: FUSE without a daemon."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

_MNT_DETACH = 2


@contextlib.contextmanager
def hung(directory: Path) -> Iterator[Path]:
    """Mount the file system on `directory`; blocked calls fail at its unmount.  Requires root."""
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
        if libc.mount(b"hung", os.fsencode(directory), b"fuse", 0, options.encode()):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(directory))
        try:
            yield directory
        finally:
            libc.umount2(os.fsencode(directory), _MNT_DETACH)
    finally:
        os.close(device)
