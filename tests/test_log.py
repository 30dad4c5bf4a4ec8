"""Each event is one line, whatever its values contain."""

from __future__ import annotations

import contextlib
import io
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_frontend.observe.log import LEVELS, Limits, configure, render_event

ANY_TEXT = st.text(st.characters(exclude_categories=[])) | st.sampled_from(
    [
        "a\nb",
        "a\r\nREADY=1",
        "\x1b[31mred",
        "\x9b31m",
        "\udcff",
        "\ud800\udc00",
        '"quoted"',
        "back\\slash",
        "\u2028",
        "\x85",
        "\0",
        "\u202e",
        "key=value",
        "→",
        "grün",
        "",
        " ",
    ]
)


@given(event=ANY_TEXT, values=st.lists(ANY_TEXT, max_size=4), journal=st.booleans())
def test_an_event_is_one_printable_line(event: str, values: list[str], journal: bool) -> None:
    stream = io.StringIO()
    log = configure(stream, journal=journal)
    log.warning(event, **{f"field{number}": value for number, value in enumerate(values)})
    text = stream.getvalue()
    assert text.endswith("\n")
    line = text[:-1]
    assert line.isprintable()
    assert line.encode().decode() == line
    assert line.splitlines() == [line]


_ESCAPE = re.compile(
    r"\\(?:x(?P<x>[0-9a-f]{2})|u(?P<u>[0-9a-f]{4})|U(?P<U>[0-9a-f]{8})|(?P<letter>.))"
)
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t"}


def read_back(quoted: str) -> str:
    """Return the value that was written as `quoted`, without its quotes."""

    def unescaped(found: re.Match[str]) -> str:
        code = found["x"] or found["u"] or found["U"]
        return chr(int(code, 16)) if code else _CONTROLS.get(found["letter"], found["letter"])

    return _ESCAPE.sub(unescaped, quoted)


@given(value=ANY_TEXT)
def test_a_value_can_be_read_back(value: str) -> None:
    """A value, quoted or bare, cannot be confused with a field that follows it."""
    line = render_event("seen", {"value": value, "last": 1})
    found = re.fullmatch(r'seen value=("(?:[^"\\]|\\.)*"|[^\s"=]+) last=1', line)
    assert found is not None, line
    if not found[1].startswith('"'):
        assert found[1] == value
    else:
        assert read_back(found[1][1:-1]) == value


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("web", "web"),
        ("10.0.0.1:80", "10.0.0.1:80"),
        ("two words", '"two words"'),
        ("", '""'),
        (True, "true"),
        (False, "false"),
        (7, "7"),
        (0.25, "0.25"),
        (["a"], "\"['a']\""),
        (Path("/etc/x"), "/etc/x"),
        ('say "no"', '"say \\"no\\""'),
        ("a\\b", '"a\\\\b"'),
        ("a\nb", '"a\\nb"'),
        ("\x1b[0m", '"\\x1b[0m"'),
        ("\x85", '"\\x85"'),
        ("\u2028", '"\\u2028"'),
        ("\udcff", '"\\udcff"'),
        ("a=b", '"a=b"'),
        ("→", "→"),
    ],
)
def test_values_are_shown_as_logfmt(value: object, shown: str) -> None:
    assert render_event("seen", {"value": value}) == f"seen value={shown}"


def test_fields_that_are_none_are_left_out_and_others_keep_their_order() -> None:
    line = render_event("seen", {"z": 1, "gone": None, "a": 2, "no": False})
    assert line == "seen z=1 a=2 no=false"


@pytest.mark.parametrize("letter", ["x", "→", "\n", '"', "\\", "\U000e0001", "\udcff"])
def test_a_value_cannot_fill_the_disk(letter: str) -> None:
    line = render_event("seen", {"value": letter * 1_000_000})
    assert "…" in line
    assert len(line) < 11_000


def test_an_event_cannot_fill_the_disk() -> None:
    assert len(render_event("x" * 1_000_000, {})) < 11_000


def test_a_reader_that_has_gone_is_no_error() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    stream = os.fdopen(theirs, "w")
    log = configure(stream)
    for _ in range(100):
        log.error("seen", value="x" * 1000)
    with contextlib.suppress(BrokenPipeError):
        stream.close()
    log.error("seen")


def test_a_full_disk_is_no_error() -> None:
    full = Path("/dev/full").open("w")  # noqa: SIM115 - it cannot be closed well
    log = configure(full)
    for _ in range(100):
        log.error("seen", value="x" * 1000)
    with contextlib.suppress(OSError):
        full.close()


@pytest.mark.parametrize("level", LEVELS)
def test_only_the_wanted_levels_are_written(level: str) -> None:
    stream = io.StringIO()
    log = configure(stream, level=level)
    for name in LEVELS:
        getattr(log, name)(f"an-{name}")
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == [
        name for name, number in LEVELS.items() if number >= LEVELS[level]
    ]
    assert [line.split()[2] for line in lines] == [f"an-{line.split()[1]}" for line in lines]


def test_lines_for_the_journal_begin_with_their_priority() -> None:
    stream = io.StringIO()
    log = configure(stream, level="debug", journal=True)
    for name in LEVELS:
        getattr(log, name)("seen", service="web")
    assert stream.getvalue().splitlines() == [
        "<7>seen service=web",
        "<6>seen service=web",
        "<4>seen service=web",
        "<3>seen service=web",
    ]


def test_other_lines_begin_with_the_time_in_utc() -> None:
    stream = io.StringIO()
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    configure(stream).info("seen")
    stamp, level, event = stream.getvalue().split()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", stamp)
    assert before <= datetime.fromisoformat(stamp) <= datetime.now(UTC)
    assert (level, event) == ("info", "seen")


def test_fields_may_be_called_like_attributes_of_a_log_record() -> None:
    stream = io.StringIO()
    configure(stream, journal=True).info("seen", msg=1, args=2, name=3, extra=4, exc_info=True)
    assert stream.getvalue() == "<6>seen msg=1 args=2 name=3 extra=4 exc_info=true\n"


def test_percent_signs_are_not_filled_in() -> None:
    stream = io.StringIO()
    configure(stream, journal=True).info("100%s done", what="%d")
    assert stream.getvalue() == "<6>100%s done what=%d\n"


# Limits


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_repeated_events_are_counted_instead_of_written() -> None:
    stream, clock = io.StringIO(), Clock()
    log = configure(stream, journal=True, clock=clock)
    for _ in range(5):
        log.limited("dns").warning("dns-timeout")
    log.limited("other").warning("other")
    clock.now += 59.9
    log.limited("dns").warning("dns-timeout")
    clock.now += 0.2
    log.limited("dns").warning("dns-timeout")
    clock.now += 61
    log.limited("dns").warning("dns-timeout")
    assert stream.getvalue().splitlines() == [
        "<4>dns-timeout",
        "<4>other",
        "<4>dns-timeout repeated=5",
        "<4>dns-timeout",
    ]


def test_a_burst_is_written_before_the_rest_is_counted() -> None:
    stream, clock = io.StringIO(), Clock()
    log = configure(stream, journal=True, clock=clock)
    for _ in range(2):
        for _ in range(5):
            log.limited("dns", burst=3).info("dns-changed")
        clock.now += 61
    assert stream.getvalue().splitlines() == [
        *["<6>dns-changed"] * 3,
        "<6>dns-changed repeated=2",
        *["<6>dns-changed"] * 2,
    ]


def test_each_limit_has_its_own_time() -> None:
    stream, clock = io.StringIO(), Clock()
    log = configure(stream, journal=True, clock=clock)
    for _ in range(4):
        log.limited("fast", 1.0).info("fast")
        log.limited("slow", 10.0).info("slow")
        clock.now += 1.5
    assert stream.getvalue().count("fast") == 4
    assert stream.getvalue().count("slow") == 1


def test_all_levels_can_be_limited() -> None:
    stream = io.StringIO()
    log = configure(stream, level="debug", clock=Clock())
    for name in LEVELS:
        for _ in range(3):
            getattr(log.limited(name), name)("seen", service="web")
    assert len(stream.getvalue().splitlines()) == 4


def test_limits_of_many_keys_are_bounded() -> None:
    limits = Limits(most=100)
    assert [limits.allowed(f"key-{number}", 60, 0.0) for number in range(10_000)] == [0] * 10_000
    assert limits.allowed("key-9899", 60, 0.0) == 0, "it is forgotten"
    assert limits.allowed("key-9999", 60, 1.0) is None
    assert limits.allowed("key-9999", 60, 61.0) == 1
