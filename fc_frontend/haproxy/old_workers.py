"""Old workers: their number, age and memory, and a limit on their number.

They live as long as their connections, at most `hard-stop-after` (manual 3.1).  With long-lived
connections, each reload leaves one more, which uses as much memory as the current worker.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from dataclasses import dataclass

from fc_frontend.errors import Unavailable
from fc_frontend.haproxy import runtime
from fc_frontend.haproxy.master import OldWorker, show_proc
from fc_frontend.haproxy.socket import ask

_SESSION = re.compile(r"^(0x[0-9a-f]+):", re.MULTILINE)
_TIMEOUT = 5.0
_SESSIONS_LIMIT = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class OldWorkers:
    """Old workers: `oldest` is the highest age in seconds, `memory` their resident bytes.

    `ended` are the processes that were ended because there were too many.
    """

    count: int = 0
    oldest: float = 0.0
    memory: int = 0
    ended: tuple[int, ...] = ()


def bound_old_workers(master_socket: str, runtime_socket: str, most: int) -> OldWorkers:
    """Return the old workers; end the oldest ones if there are more than `most`.

    Reports no old workers if the master does not answer.
    """
    import psutil

    try:
        found = sorted(show_proc(master_socket).old_workers, key=lambda old: -old.reloads)
        # After a failed reload, the current worker may be listed as an old one.
        serving = runtime.info(runtime_socket).get("Pid") if len(found) > most else None
    except Unavailable:
        return OldWorkers()
    ended: list[int] = []
    if serving is not None:
        too_many = [old for old in found if str(old.pid) != serving][: len(found) - most]
        ended = [old.pid for old in too_many if _end(master_socket, old)]
    left = [worker for worker in found if worker.pid not in ended]
    memory = 0
    for worker in left:
        with contextlib.suppress(psutil.Error):
            memory += psutil.Process(worker.pid).memory_info().rss
    oldest = max((worker.uptime for worker in left), default=0.0)
    return OldWorkers(len(left), oldest, memory, tuple(ended))


def _end(master_socket: str, worker: OldWorker) -> bool:
    """End a worker with its connections; return False if it cannot be reached."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(worker.pid, signal.SIGTERM)
        return True
    # The process of another user: it exits by itself once it has no connections.
    prefix = f"@!{worker.pid}"
    try:
        sessions = _SESSION.findall(
            ask(master_socket, f"{prefix} show sess", _TIMEOUT, limit=_SESSIONS_LIMIT)
        )
        for session in sessions:
            ask(master_socket, f"{prefix} shutdown session {session}", _TIMEOUT)
    except Unavailable:
        return False
    return bool(sessions)
