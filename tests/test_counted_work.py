"""The daemon does the work that is expected for a fixed script of changes, and no more.

What is expected stands in tests/bench/expectations.json; tests/bench/counted.py has the script.
"""

from __future__ import annotations

import copy

import pytest

from tests.bench.counted import (
    IDLE,
    MANY_IDLE,
    MANY_TOUCHED,
    REMEDY,
    WHOLE,
    Counted,
    ceilings,
    count,
    differences,
    expectations,
    report,
)
from tests.conftest import BINARIES


def test_a_script_of_changes_costs_what_is_expected() -> None:
    found = differences(expectations(), count(next(iter(BINARIES))))
    assert not found, report(found)


@pytest.fixture
def expected() -> Counted:
    return expectations()


@pytest.mark.parametrize(
    ("step", "what", "more"),
    [
        (IDLE, "queries a sweep", 1),
        (MANY_IDLE, "queries a sweep", 1),
        (MANY_TOUCHED, "services rendered", 1),
        (MANY_TOUCHED, "service files read", 1),
        (MANY_TOUCHED, "haproxy -c", 1),
        (IDLE, "services rendered", 1),
        ("touch it again", "service files read", 1),
        ("change a port", "haproxy -c", 1),
        ("change a port", "haproxy.cfg bytes", 2000),
        (WHOLE, "state/answers.json writes", 100),
        (WHOLE, "state/new-file writes", 1),
    ],
)
def test_more_work_shows(expected: Counted, step: str, what: str, more: int) -> None:
    counted = copy.deepcopy(expected)
    before = counted[step].get(what, 0)
    counted[step][what] = before + more
    ((*place, wanted, seen),) = differences(expected, counted)
    assert place == [step, what]
    assert (wanted, seen) == (str(expected[step].get(what, "-")), str(before + more))
    said = report(differences(expected, counted))
    assert step in said
    assert REMEDY in said


def test_a_step_that_is_missing_or_new_shows(expected: Counted) -> None:
    counted = copy.deepcopy(expected)
    counted["new"] = counted.pop(IDLE)
    assert {step for step, *_ in differences(expected, counted)} == {IDLE, "new"}


def test_less_work_shows_where_it_is_exact(expected: Counted) -> None:
    """So that what was won is not lost again unseen."""
    counted = copy.deepcopy(expected)
    counted["change a port"]["haproxy -c"] -= 1
    counted["touch it again"]["service files read"] -= 1
    counted[WHOLE]["state/answers.json writes"] -= 1
    assert [what for _, what, *_ in differences(expected, counted)] == ["haproxy -c"]


def test_runs_that_differ_are_no_expectation(expected: Counted) -> None:
    other = copy.deepcopy(expected)
    other[WHOLE]["state/answers.json writes"] += 1
    assert ceilings([expected, other])[WHOLE] == other[WHOLE]
    other["change a port"]["reloads"] += 1
    with pytest.raises(ValueError, match="change a port"):
        ceilings([expected, other])
