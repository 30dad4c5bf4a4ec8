"""The loopback address of this host, used for listeners without a configured address."""

from __future__ import annotations

import errno
import functools
import socket

from fc_frontend.plan.model import Bind

IPV4 = "127.0.0.1"
IPV6 = "::1"


@functools.cache
def loopback_address() -> str:
    """Return `::1` if this host has it and lacks `127.0.0.1`, else `127.0.0.1`.

    The result is constant for the lifetime of the process, so that a default bind keeps its
    address.
    """
    return IPV6 if _is_absent(socket.AF_INET, IPV4) and _can_bind(IPV6) else IPV4


def on_loopback(port: int) -> Bind:
    """Return the default bind with `port`."""
    return Bind("ip", loopback_address(), port)


def _is_absent(family: socket.AddressFamily, address: str) -> bool:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError as error:
        return error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    return False


def _can_bind(address: str) -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True
