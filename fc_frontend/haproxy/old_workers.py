"""Workers of former configurations: how many still serve, how old, and what memory they hold.

They live as long as their connections, bounded by `hard-stop-after` (manual 3.1).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from fc_frontend.errors import Unavailable
from fc_frontend.haproxy.master import show_proc


@dataclass(frozen=True, slots=True)
class OldWorkers:
    """`oldest` is the greatest age in seconds, `memory` the resident bytes of all of them."""

    count: int = 0
    oldest: float = 0.0
    memory: int = 0


def old_workers(master_socket: str) -> OldWorkers:
    """The old workers now; none if the master does not answer."""
    import psutil

    try:
        found = show_proc(master_socket).old_workers
    except Unavailable:
        return OldWorkers()
    memory = 0
    for worker in found:
        with contextlib.suppress(psutil.Error):
            memory += psutil.Process(worker.pid).memory_info().rss
    return OldWorkers(len(found), max((worker.uptime for worker in found), default=0.0), memory)
