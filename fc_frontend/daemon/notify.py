"""Notifications to systemd: sd_notify(3) with the standard library.

Notifications are optional: nothing here ever blocks or raises, and without NOTIFY_SOCKET nothing
happens.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

from fc_frontend.text import one_line

_LONGEST_STATUS = 200


class Notifier:
    """Reports the daemon's state to the service manager."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{path[1:]}" if path.startswith("@") else path
        self._interval = self._watchdog_interval(environ)

    @property
    def watchdog_interval(self) -> float | None:
        """The interval in seconds at which to call `watchdog`: half of what systemd allows.

        None if systemd does not expect it (sd_watchdog_enabled(3)).
        """
        return self._interval

    def ready(self, status: str) -> None:
        """Report that start-up or reloading has finished."""
        self._tell("READY=1", status)

    def reloading(self, status: str) -> None:
        """Report that the configuration is being read again.

        Type=notify-reload requires the time.
        """
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}", status)

    def stopping(self, status: str) -> None:
        """Report that the daemon is ending."""
        self._tell("STOPPING=1", status)

    def status(self, text: str) -> None:
        """Set the line shown by `systemctl status`."""
        self._tell("", text)

    def watchdog(self) -> None:
        """Report that the daemon is alive."""
        self._tell("WATCHDOG=1", None)

    def _watchdog_interval(self, environ: Mapping[str, str]) -> float | None:
        microseconds = environ.get("WATCHDOG_USEC", "")
        pid = environ.get("WATCHDOG_PID", str(os.getpid()))
        if not self._address or not microseconds.isdecimal() or pid != str(os.getpid()):
            return None
        return int(microseconds) / 2_000_000 or None

    def _tell(self, state: str, status: str | None) -> None:
        if not self._address:
            return
        lines = [state] if state else []
        if status is not None:
            lines.append(f"STATUS={one_line(status, _LONGEST_STATUS)}")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto("\n".join(lines).encode(), self._address)
        except (OSError, ValueError):
            return
