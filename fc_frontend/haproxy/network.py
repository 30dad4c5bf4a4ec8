"""Network namespaces of this host, as HAProxy's `namespace` names them."""

from __future__ import annotations

import ctypes
import os
import posixpath
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fc_frontend.syntax.files import NETWORK_NAMESPACES

_CLONE_NEWNET = 0x40000000
"""As in linux/sched.h; `os.setns` comes with Python 3.12."""
_Result = TypeVar("_Result")


def run_in_network(name: str, function: Callable[[], _Result]) -> _Result:
    """What `function` returns in the network namespace `name`.

    It runs in a thread of its own, as a namespace is entered by threads, setns(2).  Raises OSError
    if the namespace does not exist or may not be entered, and what `function` raises.
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
