"""How long a check of a configuration may take.

A change that blocks HAProxy is found by trials without it.  If each of them could take
`haproxy.check_timeout`, one such change would keep all others waiting for minutes.
"""

from __future__ import annotations

MIN_SECONDS = 2.0
TIMES_ACCEPTED = 10.0
"""A trial may take this many times as long as the check that was accepted last."""


class Patience:
    """Remembers how long an accepted check takes."""

    def __init__(self) -> None:
        self._accepted: float | None = None
        self._is_short = False

    def limit(self, timeout: float, *, is_trial: bool) -> float:
        """Seconds that the next check may take, at most `timeout`.

        Trials get less than the check of a whole configuration, and so do all checks from one that
        took too long until `relax` is called.
        """
        if self._accepted is None or not (is_trial or self._is_short):
            return timeout
        return min(timeout, max(MIN_SECONDS, TIMES_ACCEPTED * self._accepted))

    def accepted(self, seconds: float) -> None:
        """Note that HAProxy accepted a configuration after so many seconds."""
        self._accepted = seconds

    def exceeded(self) -> None:
        """Note that a check took too long: the same change will be tried again."""
        self._is_short = True

    def relax(self) -> None:
        """Note that nothing is withheld any more."""
        self._is_short = False
