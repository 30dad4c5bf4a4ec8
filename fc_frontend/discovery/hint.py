"""When to sweep: the serial of the cluster's zone is a hint to ask less, never a proof.

CoreDNS's serial is the Unix time of the last change, of each replica's own (plugin *kubernetes*).
While it stands, nothing moved, as far as it goes: a second change in the same second does not move
it, another server may not keep it so, and a cache may tell an old one.  So a whole sweep comes
every few intervals in any case, and a serial that stood still over a change is trusted no more for
a while.  Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

WORTHWHILE = 100
"""Services from which on a question for the serial is worth its while."""
_GRAIN = 2.0
"""Seconds within which two changes may have one serial."""
_DISTRUST = 600.0
"""Seconds."""


def longest(interval: float) -> float:
    """Seconds after which a whole sweep comes in any case; `interval` is that of the sweeps."""
    return max(interval, min(5 * interval, 10.0))


@dataclass(frozen=True, slots=True)
class Hint:
    """What is known of the serial.  All times are on the monotonic clock, in seconds."""

    serial: int | None = None
    since: float = 0.0
    """When this serial was first seen."""
    swept: float = float("-inf")
    """When the last whole sweep began."""
    is_quiet: bool = False
    """True if that found nothing new, nothing stale and nothing that is held."""
    distrusted_until: float = float("-inf")

    def is_due(self, serial: int | None, now: float, interval: float) -> bool:
        """True if a whole sweep is due, with `serial` being that of now, None if not known."""
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
        """What is known after a whole sweep that began at `began`.

        `before` and `after` are the serials around it; `changed` if it found something new.
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
