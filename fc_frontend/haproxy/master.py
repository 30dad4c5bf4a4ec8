"""Query HAProxy's master process for the state of its workers.

The master survives reloads, so its socket reports which worker serves and which old workers are
still finishing their connections.  This module never changes anything.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from fc_frontend.errors import Unavailable
from fc_frontend.haproxy.socket import NoAnswer, NoListener, ask
from fc_frontend.text import whole_number

_LIMIT = 1024 * 1024
_PAUSE = 0.005
_ROW = re.compile(
    r"""^(?P<pid>[0-9]{1,15})\s+(?P<type>\S+)\s+
        (?:[0-9]{1,15}\s+(?=[0-9]{1,15}\s))?                      # <relative PID>, until 2.4
        (?P<reloads>[0-9]{1,15}|-)\s+
        (?:\[failed:\s*(?P<failed>[0-9]{1,15})\]\s*)?     # the master's, from 2.5
        (?P<days>[0-9]{1,15})d(?P<hours>[0-9]{1,15})h(?P<minutes>[0-9]{1,15})m(?P<seconds>[0-9]{1,15})s
        (?:\s+(?P<version>\S+))?\s*$""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class OldWorker:
    """A worker of a former configuration that is still finishing its connections.

    `reloads` is the number of reloads since it was started, `uptime` its age in seconds.
    """

    pid: int
    reloads: int
    uptime: float


@dataclass(frozen=True, slots=True)
class Processes:
    """HAProxy's processes (Management Guide 9.4, `show proc`).

    `reloads` counts the master's reloads, successful or not; `failed` counts those that failed
    since the last success.  `worker` is the current worker, or None; `worker_reloads` is 0 if the
    last reload started it.  After a failed reload, some versions list the worker that still serves
    among the old ones.
    """

    master: int
    reloads: int
    failed: int
    version: str | None
    worker: int | None
    worker_reloads: int
    old_workers: tuple[OldWorker, ...]

    @property
    def pids(self) -> frozenset[int]:
        """All of HAProxy's processes."""
        workers = {self.worker} if self.worker is not None else set()
        return frozenset({self.master, *workers, *(old.pid for old in self.old_workers)})


def show_proc(path: str, timeout: float = 5.0, *, patience: float = 0.0) -> Processes:
    """Return the processes of the master behind the socket `path`.

    For `patience` seconds, the query is repeated if the master cannot be reached or breaks off: a
    master that starts or reloads re-executes itself and drops existing connections.  Raises
    `Unavailable`.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            return parse_processes(path, ask(path, "show proc", timeout, limit=_LIMIT))
        except (NoListener, NoAnswer):
            if time.monotonic() >= deadline:
                raise
            time.sleep(_PAUSE)


def parse_processes(path: str, answer: str) -> Processes:
    """Parse the answer to `show proc`; the `Unavailable` for an invalid one names `path`."""
    master: re.Match[str] | None = None
    current: list[re.Match[str]] = []
    old: list[OldWorker] = []
    section = ""
    for line in answer.splitlines():
        if line.startswith("#"):
            section = line[1:].strip().lower()
        elif row := _ROW.match(line.strip()):
            if row["type"] == "master":
                master = row
            elif row["type"] == "worker" and section.startswith("old"):
                old.append(OldWorker(int(row["pid"]), _count(row["reloads"]), _seconds(row)))
            elif row["type"] == "worker":
                current.append(row)
    if master is None:
        raise _not_a_master(path, answer)
    # If two are listed, the most recent one serves.
    current.sort(key=lambda row: _count(row["reloads"]))
    serving = current[0] if current else None
    old += [OldWorker(int(r["pid"]), _count(r["reloads"]), _seconds(r)) for r in current[1:]]
    return Processes(
        master=int(master["pid"]),
        reloads=_count(master["reloads"]),
        failed=_count(master["failed"]),
        version=master["version"],
        worker=int(serving["pid"]) if serving else None,
        worker_reloads=_count(serving["reloads"]) if serving else 0,
        old_workers=tuple(old),
    )


def _count(text: str | None) -> int:
    return whole_number(text) or 0


def _seconds(row: re.Match[str]) -> float:
    days, hours, minutes, seconds = (
        int(row[unit]) for unit in ("days", "hours", "minutes", "seconds")
    )
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _not_a_master(path: str, answer: str) -> Unavailable:
    if not answer.strip():
        # A master that re-executes itself accepts connections that it can no longer answer.
        return NoAnswer.of(
            f"{path} gave an empty answer to `show proc`", "try again: HAProxy may be reloading"
        )
    first = answer.strip().splitlines()[0][:80]
    return Unavailable.of(
        f"{path} is not HAProxy's master socket: it answers {first!r} to `show proc`",
        "set haproxy.master_socket to the path that HAProxy was given with `-S`",
        field="haproxy.master_socket",
    )
