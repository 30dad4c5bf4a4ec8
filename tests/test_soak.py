"""Services and pods are added, changed and removed, and the daemon holds no more than before.

The short form of `python -m tests.bench soak`, which takes an hour and finds slow growth; this test
finds what is left behind at each turn.
"""

from __future__ import annotations

import pytest

from tests.bench.soak import Churn, slope
from tests.conftest import binary_of
from tests.support.frontend import Frontend

SERVICES = 4
TURNS = 14
WARM = 11
"""Turns after which caches are full; a leak shows in the growth of each later turn."""
EXACT = ("tasks", "threads", "descriptors", "metrics", "workers", "master")
LEFTOVERS = 2500
"""Memory blocks, of the 100,000s that a turn allocates: a leak of one turn would exceed this."""


@pytest.mark.extended
def test_nothing_is_left_behind_by_changes() -> None:
    with Frontend(binary_of("2.8-wheel")) as frontend:
        churn = Churn(frontend, SERVICES)
        churn.start()
        for number in range(TURNS):
            churn.turn(number)
            churn.look(number)
    first, last = churn.looks[WARM], churn.looks[-1]
    for figure in EXACT:
        # One look may fall between two of the daemon's loops, when there are fewer tasks.
        counts = [getattr(look, figure) for look in churn.looks]
        assert min(counts[WARM + 1 :]) <= max(counts[: WARM + 1]), counts
    assert last.workers == 1
    assert last.blocks - first.blocks <= LEFTOVERS
    assert last.rss - first.rss <= 2000
    # The state directory contains a history of at most 50 deployments, and few other files.
    assert last.files <= 2 * 50 + 10


def test_growth_shows_and_a_few_looks_that_are_off_do_not() -> None:
    level = [10.0 + (5.0 if number % 10 == 0 else 0.0) for number in range(100)]
    assert slope(level) == 0.0
    rising = [10.0 + 0.1 * number for number in range(100)]
    assert slope(rising) == pytest.approx(0.1)
