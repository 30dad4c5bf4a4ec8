"""Decide when to sweep: an unchanged serial of the cluster's zone saves queries.

The serial is a hint, never a proof.  CoreDNS's serial is the Unix time of the last change, which
each replica has of its own (plugin *kubernetes*).  An unchanged serial may hide a change: a second
change in the same second does not alter it, another server may handle it differently, and a cache
may return an old one.  So a full sweep follows every few intervals in any case, and a serial that
did not change with the answers is ignored for a while.  Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

WORTHWHILE = 100
"""The number of services from which on a query for the serial pays off."""
_GRAIN = 2.0
"""Seconds within which two changes may have the same serial."""
_DISTRUST = 600.0
"""Seconds."""


def longest(interval: float) -> float:
    """Return the seconds after which a full sweep is due; `interval` is that of sweeps."""
    return max(interval, min(5 * interval, 10.0))


@dataclass(frozen=True, slots=True)
class Hint:
    """The known serial.  All times are on the monotonic clock, in seconds."""

    serial: int | None = None
    since: float = 0.0
    """When this serial was first seen."""
    swept: float = float("-inf")
    """When the last full sweep began."""
    is_quiet: bool = False
    """Whether it found nothing new, nothing stale and no held answers."""
    distrusted_until: float = float("-inf")

    def is_due(self, serial: int | None, now: float, interval: float) -> bool:
        """Return whether a full sweep is due; `serial` is the current one, None if unknown."""
        return (
            serial is None
            or serial != self.serial
            or not self.is_quiet
            or now < self.distrusted_until
            or self.swept < self.since + _GRAIN
            or now - self.swept >= longest(interval)
        )

    def after(
        self, before: int | None, after: int | None, began: float, *, changed: bool, is_quiet: bool
    ) -> Hint:
        """Return the hint after a full sweep that began at `began`.

        `before` and `after` are the serials before and after it; `changed` if any answer changed.
        """
        same = before is not None and before == self.serial
        stood_still = same and before == after and self.swept >= self.since + _GRAIN
        told = replace(
            self,
            serial=before,
            since=self.since if same else began,
            swept=began,
            is_quiet=is_quiet,
        )
        if changed and stood_still:
            return replace(told, distrusted_until=began + _DISTRUST)
        return told
