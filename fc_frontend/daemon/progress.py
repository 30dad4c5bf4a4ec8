"""Distinguish a working daemon from one that waits for an event that never happens.

All work in the loops has time limits of its own, but a thread in a system call cannot be ended: a
state directory on a dead NFS server blocks a step for good.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from fc_frontend.plan.model import Haproxy

_SLACK = 30.0
"""Seconds for work without a setting: reading files, a sweep in which no nameserver answers."""


class Work(StrEnum):
    """The kinds of work in the loops; the values are labels of a metric."""

    STEP = "step"
    """Reading files, checking and deploying."""
    SWEEP = "sweep"
    """Asking cluster DNS."""
    RESCAN = "rescan"
    """Looking for changed files, saving answers."""
    LOOK = "look"
    """Looking at HAProxy."""


@dataclass(frozen=True, slots=True)
class Stuck:
    """Work without progress for some seconds."""

    work: Work
    seconds: float

    def __str__(self) -> str:
        return f"the {self.work} has made no progress for {self.seconds:.0f} s"


def bound(haproxy: Haproxy) -> float:
    """Return the seconds without progress after which work counts as stuck.

    The longest silent wait is for the lock of another command's deployment, followed by
    fc-frontend's own check and reload.
    """
    return 2 * (haproxy.check_timeout + haproxy.reload_timeout) + _SLACK


class Progress:
    """The current work of the loops, and the time of its last sign of progress."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[Work, float] = {}

    @contextlib.contextmanager
    def of(self, work: Work) -> Iterator[None]:
        """Record that `work` is under way while the context is active."""
        self._since[work] = self._clock()
        try:
            yield
        finally:
            del self._since[work]

    def advance(self, work: Work) -> None:
        """Record a sign of progress, from any thread."""
        if work in self._since:
            self._since[work] = self._clock()

    def stuck(self, limit: float) -> Stuck | None:
        """Return the work without progress for longest, if for more than `limit` seconds."""
        since = dict(self._since)
        if not since:
            return None
        work = min(since, key=since.__getitem__)
        seconds = self._clock() - since[work]
        return Stuck(work, seconds) if seconds > limit else None
