"""The zone's serial makes sweeps rarer, and is trusted only within its limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_frontend.discovery.hint import WORTHWHILE, Hint, longest
from tests.support.frontend import Frontend


def settled(serial: int = 7) -> Hint:
    """Return the hint after two sweeps without changes, at 0 and 10 s."""
    hint = Hint().after(serial, serial, 0.0, changed=True, is_quiet=False)
    return hint.after(serial, serial, 10.0, changed=False, is_quiet=True)


def test_while_the_serial_stands_sweeps_are_rarer() -> None:
    assert not settled().is_due(7, 11.0, 1.0)
    assert settled().is_due(7, 10.0 + longest(1.0), 1.0)


def test_another_serial_is_swept_for_at_once() -> None:
    assert settled().is_due(8, 11.0, 1.0)


def test_without_a_serial_all_is_as_without_hint() -> None:
    assert settled().is_due(None, 11.0, 1.0)
    assert Hint().is_due(None, 0.0, 1.0)
    unknown = Hint().after(None, None, 0.0, changed=False, is_quiet=True)
    assert unknown.is_due(None, 10.0, 1.0)


def test_two_changes_in_one_second_have_one_serial() -> None:
    hint = settled().after(8, 8, 11.0, changed=True, is_quiet=False)
    hint = hint.after(8, 8, 12.0, changed=False, is_quiet=True)
    assert hint.is_due(8, 12.5, 1.0)
    hint = hint.after(8, 8, 13.0, changed=True, is_quiet=False)
    # That change was within the granularity of the serial: no reason for distrust.
    hint = hint.after(8, 8, 14.0, changed=False, is_quiet=True)
    assert not hint.is_due(8, 15.0, 1.0)


def test_what_is_held_or_stale_is_swept_for_each_time() -> None:
    hint = settled().after(7, 7, 11.0, changed=False, is_quiet=False)
    assert hint.is_due(7, 12.0, 1.0)


def test_a_serial_that_stood_still_over_a_change_is_trusted_no_more_for_a_while() -> None:
    hint = settled().after(7, 7, 15.0, changed=True, is_quiet=False)
    hint = hint.after(7, 7, 16.0, changed=False, is_quiet=True)
    assert hint.is_due(7, 17.0, 1.0)
    assert hint.is_due(7, 600.0, 1.0)
    later = hint.after(7, 7, 700.0, changed=False, is_quiet=True)
    assert not later.is_due(7, 701.0, 1.0)


def test_a_change_between_the_serial_and_the_sweep_is_no_reason_for_distrust() -> None:
    hint = settled().after(7, 8, 15.0, changed=True, is_quiet=False)
    hint = hint.after(8, 8, 16.0, changed=False, is_quiet=True)
    hint = hint.after(8, 8, 19.0, changed=False, is_quiet=True)
    assert not hint.is_due(8, 20.0, 1.0)


@given(
    st.lists(
        st.tuples(st.integers(1, 3) | st.none(), st.booleans(), st.booleans()),
        max_size=60,
    )
)
def test_no_sweep_is_ever_further_away_than_the_bound(
    seconds: list[tuple[int | None, bool, bool]],
) -> None:
    hint, last = Hint(), -1.0
    for at, (serial, changed, is_quiet) in enumerate(seconds):
        if hint.is_due(serial, float(at), 1.0):
            hint = hint.after(serial, serial, float(at), changed=changed, is_quiet=is_quiet)
            last = float(at)
        assert at - last < longest(1.0)


@pytest.mark.parametrize(
    ("interval", "seconds"), [(0.5, 2.5), (1.0, 5.0), (3.0, 10.0), (60.0, 60.0)]
)
def test_the_bound_is_a_few_intervals_and_never_long(interval: float, seconds: float) -> None:
    assert longest(interval) == seconds


def test_the_daemon_asks_less_while_nothing_moves_and_at_once_when_something_does(
    either_binary: str,
) -> None:
    with Frontend(either_binary) as frontend:
        frontend.scale("shop", 2)
        services = {"shop": frontend.service("shop", 10000)}
        for number in range(1, WORTHWHILE + 20):
            services[f"s{number}"] = frontend.service("shop", 10000 + number)
        frontend.settings["services"] = services
        frontend.start()

        def swept() -> dict[str, float]:
            metrics = frontend.metrics()
            kinds = ("whole", "spared")
            return {k: metrics.sum("fc_frontend_dns_sweeps_total", kind=k) for k in kinds}

        before = frontend.until(lambda: (now := swept())["spared"] >= 3 and now)
        after = frontend.until(lambda: (now := swept())["spared"] >= before["spared"] + 12 and now)
        # One sweep in five, and those whose answers were late.
        assert after["whole"] - before["whole"] <= (after["spared"] - before["spared"]) / 3
        # The serial reveals the change, as does the end of the longest time without a sweep.
        frontend.scale("shop", 4)
        frontend.until(
            lambda: frontend.metric("fc_frontend_service_endpoints", service="shop") == 4
        )
