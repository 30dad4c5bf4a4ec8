"""The daemon does the expected work for a fixed script of changes, and no more.

The expected counts are in tests/bench/expectations.json; the script is in tests/bench/counted.py.
"""

from __future__ import annotations

import copy
import signal

import pytest

from tests.bench.counted import (
    BROKEN,
    IDLE,
    MANY_IDLE,
    MANY_TOUCHED,
    MENDED,
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
from tests.support.frontend import Frontend


@pytest.mark.extended
def test_a_script_of_changes_costs_what_is_expected() -> None:
    found = differences(expectations(), count(next(iter(BINARIES))))
    assert not found, report(found)


def test_no_two_configurations_are_judged_at_once(either_binary: str) -> None:
    """Files, SIGHUPs, pods that outgrow slots, and checks by hand may all coincide."""
    with Frontend(either_binary) as frontend:
        log, lock = frontend.directory / "judged.log", frontend.directory / "judging"
        program = frontend.directory / "haproxy"
        program.write_text(
            f"""#!/bin/sh
case " $* " in *" -c "*) ;; *) exec {either_binary} "$@" ;; esac
mkdir {lock} || echo two at once >> {log}
echo one >> {log}
{either_binary} "$@"
code=$?
sleep 0.1
rmdir {lock}
exit $code
"""
        )
        program.chmod(0o755)
        frontend.settings["haproxy"]["binary"] = str(program)
        frontend.settings["intervals"] = {"resolve": "100ms", "reload": 0, "debounce": "10ms"}
        frontend.scale("shop", 2)
        frontend.settings["services"]["shop"] = frontend.service("shop", 10000)
        daemon = frontend.start()
        for number in range(15):
            before = log.read_text().count("one\n")
            frontend.drop(
                f"{number}.yaml", {f"s{number}": frontend.service("shop", 10001 + number)}
            )
            frontend.drop("bad.yaml", {"bad": frontend.service("shop", 10000 + number)})
            daemon.send_signal(signal.SIGHUP)
            frontend.scale("shop", 2 + number)
            frontend.until(lambda: log.read_text().count("one\n") > before)  # noqa: B023
        (frontend.services_d / "bad.yaml").unlink()
        frontend.until(lambda: len(frontend.status()["services"]) == 16 and frontend.ready())
        judged = log.read_text().split("\n")
        assert "two at once" not in judged
        assert judged.count("one") >= 3


@pytest.fixture
def expected() -> Counted:
    return expectations()


@pytest.mark.parametrize(
    ("step", "what", "more"),
    [
        (IDLE, "queries a sweep", 1),
        (MANY_IDLE, "queries a sweep", 1),
        (BROKEN, "service files read", 40),
        (MENDED, "services rendered", 1),
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
    """An improvement is visible, so that it is not lost again unnoticed."""
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
