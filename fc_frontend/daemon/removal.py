"""When removals of services and fragments from the files take effect: a state without a loop.

Moving or rewriting files removes them for a moment, and a missing mount is an empty directory.  So
a removal waits until no file has changed for `intervals.removal`.
"""

from __future__ import annotations

from fc_frontend.plan.model import Intervals

_MOST_PERIODS = 12
"""Files that change continuously delay a removal by at most this many times `intervals.removal`."""


class RemovalWait:
    """The last observations of files that are gone.  All times are monotonic, in seconds."""

    def __init__(self) -> None:
        self._changed = float("-inf")
        self._gone: float | None = None
        self._emptied: float | None = None

    def files_changed(self, now: float) -> None:
        """Record that a file changed, or was read for the first time."""
        self._changed = now

    def is_over(self, intervals: Intervals, now: float) -> bool:
        """Return whether removals take effect."""
        return now >= self._end(intervals)

    def note(self, is_waiting: bool, now: float) -> None:
        """Record whether the removal of any unit is waiting."""
        self._gone = (now if self._gone is None else self._gone) if is_waiting else None

    def due(self, intervals: Intervals) -> float | None:
        """Return the time of the next look; None if nothing waits."""
        return None if self._gone is None else self._end(intervals)

    def believes_empty(self, is_emptied: bool, intervals: Intervals, now: float) -> bool:
        """Return whether services.d has been empty for long enough for this to take effect."""
        if not is_emptied:
            self._emptied = None
            return False
        self._emptied = now if self._emptied is None else self._emptied
        return now >= self._emptied + intervals.emptied

    def _end(self, intervals: Intervals) -> float:
        end = self._changed + intervals.removal
        if self._gone is not None:
            end = min(end, self._gone + intervals.removal * _MOST_PERIODS)
        return end
