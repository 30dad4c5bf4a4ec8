"""Tell a daemon that works from one that waits for something that never comes.

Everything that the loops do has time limits of its own, but a thread in a system call cannot be
ended: a state directory on a dead NFS server stops a step for good.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from fc_frontend.plan.model import Haproxy

_SLACK = 30.0
"""Seconds for what has no setting: reading files, a sweep in which no nameserver answers."""


class Work(StrEnum):
    """What a loop does; the values are a metric's labels."""

    STEP = "step"
    """Reading files, checking and deploying."""
    SWEEP = "sweep"
    """Asking cluster DNS."""
    RESCAN = "rescan"
    """Looking for changed files, keeping answers."""
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
    """After how many seconds without progress work counts as stuck.

    The longest wait without a sign is for the lock of another command's deployment, then a check
    and a reload of our own.
    """
    return 2 * (haproxy.check_timeout + haproxy.reload_timeout) + _SLACK


class Progress:
    """What the loops do now, and since when there was a sign of progress."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[Work, float] = {}

    @contextlib.contextmanager
    def of(self, work: Work) -> Iterator[None]:
        """Note that `work` is done meanwhile."""
        self._since[work] = self._clock()
        try:
            yield
        finally:
            del self._since[work]

    def advance(self, work: Work) -> None:
        """Note a sign of progress, from any thread."""
        if work in self._since:
            self._since[work] = self._clock()

    def stuck(self, limit: float) -> Stuck | None:
        """The work that has been without progress for longest, if that is more than `limit` s."""
        since = dict(self._since)
        if not since:
            return None
        work = min(since, key=since.__getitem__)
        seconds = self._clock() - since[work]
        return Stuck(work, seconds) if seconds > limit else None
