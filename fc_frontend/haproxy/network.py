"""Run code in the network namespaces that HAProxy's `namespace` names."""

from __future__ import annotations

import ctypes
import os
import posixpath
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fc_frontend.syntax.files import NETWORK_NAMESPACES

_CLONE_NEWNET = 0x40000000
"""As in linux/sched.h; Python has `os.setns` from 3.12 on."""
_Result = TypeVar("_Result")


def run_in_network(name: str, function: Callable[[], _Result]) -> _Result:
    """Call `function` in the network namespace `name`, and return its result.

    It runs in a separate thread, because setns(2) affects only the calling thread.  Raises OSError
    if the namespace does not exist or may not be entered, and any exception of `function`.
    """

    def inside() -> _Result:
        path = posixpath.join(NETWORK_NAMESPACES, name.lstrip("/"))
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(descriptor, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
        finally:
            os.close(descriptor)
        return function()

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(inside).result()
