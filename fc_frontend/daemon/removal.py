"""When to believe that services and fragments are gone from the files: a state without a loop.

Whoever moves or rewrites files removes them for a moment, and a mount that is missing is an empty
directory.  So a removal waits until no file has changed for `intervals.removal`.
"""

from __future__ import annotations

from fc_frontend.plan.model import Intervals

_MOST_PERIODS = 12
"""Files that change all the time delay a removal by this many times `intervals.removal`."""


class RemovalWait:
    """What was last seen of files that are gone.  All times are monotonic, in seconds."""

    def __init__(self) -> None:
        self._changed = float("-inf")
        self._gone: float | None = None
        self._emptied: float | None = None

    def files_changed(self, now: float) -> None:
        """A file changed, or was looked at for the first time."""
        self._changed = now

    def is_over(self, intervals: Intervals, now: float) -> bool:
        """True if removals are believed."""
        return now >= self._end(intervals)

    def note(self, is_waiting: bool, now: float) -> None:
        """Whether any unit is gone whose removal waits."""
        self._gone = (now if self._gone is None else self._gone) if is_waiting else None

    def due(self, intervals: Intervals) -> float | None:
        """When to look again; None if nothing waits."""
        return None if self._gone is None else self._end(intervals)

    def believes_empty(self, is_emptied: bool, intervals: Intervals, now: float) -> bool:
        """True if services.d has been empty for so long that this is believed."""
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
