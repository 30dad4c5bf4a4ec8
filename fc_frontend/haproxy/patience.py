"""Time limits for checks of a configuration.

If a change blocks HAProxy, trials without it identify that change.  If each trial could take
`haproxy.check_timeout`, one such change would delay all others for minutes.
"""

from __future__ import annotations

MIN_SECONDS = 2.0
TIMES_ACCEPTED = 10.0
"""Limit for a trial, as a multiple of the duration of the last accepted check."""


class Patience:
    """Remembers the duration of the last accepted check."""

    def __init__(self) -> None:
        self._accepted: float | None = None
        self._is_short = False

    def limit(self, timeout: float, *, is_trial: bool) -> float:
        """Return the time limit of the next check in seconds, at most `timeout`.

        Trials get a shorter limit than the check of an entire configuration.  After a check that
        took too long, all checks get the shorter limit until `relax` is called.
        """
        if self._accepted is None or not (is_trial or self._is_short):
            return timeout
        return min(timeout, max(MIN_SECONDS, TIMES_ACCEPTED * self._accepted))

    def accepted(self, seconds: float) -> None:
        """Record that HAProxy accepted a configuration after this many seconds."""
        self._accepted = seconds

    def exceeded(self) -> None:
        """Record that a check took too long: the same change will be tried again."""
        self._is_short = True

    def relax(self) -> None:
        """Record that nothing is withheld any more."""
        self._is_short = False
