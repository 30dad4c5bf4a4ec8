"""Events are one line each, whatever their fields hold."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_frontend.observe.log import Limits, Log, configure


def logged(journal: bool = True, level: str = "info") -> tuple[Log, io.StringIO]:
    stream = io.StringIO()
    return configure(stream, level=level, journal=journal), stream


def test_an_event_is_a_name_and_fields() -> None:
    log, stream = logged()
    log.info("pods-changed", service="shop", pods=3, why="a b", nothing=None, ok=True)
    assert stream.getvalue() == '<6>pods-changed service=shop pods=3 why="a b" ok=true\n'


def test_priorities_and_times() -> None:
    log, stream = logged(level="debug")
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")
    assert stream.getvalue() == "<7>a\n<6>b\n<4>c\n<3>d\n"
    log, stream = logged(journal=False)
    log.warning("c")
    head, rest = stream.getvalue().split(" ", 1)
    assert head.endswith("Z")
    assert rest == "warning c\n"


def test_levels_filter() -> None:
    log, stream = logged(level="warning")
    log.info("a")
    log.debug("b")
    log.warning("c")
    assert stream.getvalue() == "<4>c\n"


@given(st.text(st.characters(), max_size=200))
def test_no_value_begins_a_line_or_colours_a_terminal(value: str) -> None:
    log, stream = logged()
    log.info("event", value=value)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert all(letter.isprintable() for letter in text[:-1])
    text.encode()


@pytest.mark.parametrize("value", ["\n<0>forged", "\x1b[31m", "\ud800", "\u2028", '"', "\\"])
def test_hostile_values_are_escaped(value: str) -> None:
    log, stream = logged()
    log.info("event", value=value)
    (line,) = stream.getvalue().splitlines()
    assert line.startswith('<6>event value="')


def test_values_are_bounded() -> None:
    log, stream = logged()
    log.info("event", value="x" * 100_000)
    assert len(stream.getvalue()) < 1100


def test_repeated_events_are_counted() -> None:
    now = [0.0]
    stream = io.StringIO()
    log = configure(stream, journal=True, clock=lambda: now[0])
    for _ in range(5):
        log.limited("dns", 60).warning("dns-failed")
    now[0] = 61.0
    log.limited("dns", 60).warning("dns-failed")
    log.limited("other", 60).warning("other-failed")
    assert stream.getvalue() == "<4>dns-failed\n<4>dns-failed repeated=4\n<4>other-failed\n"


def test_what_is_remembered_of_repetitions_is_bounded() -> None:
    limits = Limits(most=10)
    assert all(limits.allowed(str(number), 60, 0.0) == 0 for number in range(1000))
    assert limits.allowed("999", 60, 1.0) is None
    assert limits.allowed("0", 60, 1.0) == 0


def test_rich_is_not_drawn_in_and_can_be_imported_later() -> None:
    code = (
        "import sys; from fc_frontend.observe.log import configure; configure(sys.stderr);"
        "assert 'structlog' in sys.modules and 'rich' not in sys.modules;"
        "import rich.console"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
