"""A wrong wall clock: with this directory on PYTHONPATH, CLOCK_AHEAD seconds are added.

The kernel has namespaces for monotonic clocks only; these are not changed.
"""

from __future__ import annotations

import datetime
import os
import time

AHEAD = float(os.environ.get("CLOCK_AHEAD", "0"))
now = time.time
Datetime = datetime.datetime


class Ahead(Datetime):
    """The real class with a shifted time."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Ahead:
        return cls.fromtimestamp(now() + AHEAD, tz)


time.time = lambda: now() + AHEAD
datetime.datetime = Ahead  # type: ignore[misc]
