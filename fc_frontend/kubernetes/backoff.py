"""The delay before the next attempt."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

FIRST_SECONDS = 0.2
MAX_SECONDS = 30.0
GOOD_SECONDS = 120.0
"""A connection that lasted this long resets the number of failures."""


@dataclass(slots=True)
class Backoff:
    """Exponential backoff up to `MAX_SECONDS`, with jitter: between half and all of each delay.

    The jitter keeps the frontends of a cluster from reconnecting all at once when its API server
    is back.
    """

    random: random.Random = field(default_factory=random.Random)
    _failures: int = 0

    def failed(self, lasted: float, retry_after: float = 0.0) -> float:
        """Return the seconds to wait after a failed connection that had lasted `lasted` seconds.

        At least `retry_after`, which the server requested.
        """
        if lasted >= GOOD_SECONDS:
            self._failures = 0
        longest = min(MAX_SECONDS, FIRST_SECONDS * float(1 << min(self._failures, 16)))
        self._failures += 1
        wait = longest * self.random.uniform(0.5, 1.0)
        return max(wait, retry_after * self.random.uniform(1.0, 1.2))
