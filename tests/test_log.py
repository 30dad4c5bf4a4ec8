"""Events are one line each, whatever their values hold."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import textwrap
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


@given(value=ANY_TEXT)
def test_a_value_can_be_read_back(value: str) -> None:
    """Quoted or bare, nothing after it can be taken for another field."""
    line = render_event({"event": "seen", "value": value, "last": 1})
    found = re.fullmatch(r'seen value=("(?:[^"\\]|\\.)*"|[^\s"=]+) last=1', line)
    assert found is not None, line
    if not found[1].startswith('"'):
        assert found[1] == value
    elif value.isprintable():
        assert re.sub(r"\\(.)", r"\1", found[1][1:-1]) == value


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
    assert render_event({"event": "seen", "value": value}) == f"seen value={shown}"


def test_fields_that_are_none_are_left_out_and_others_keep_their_order() -> None:
    line = render_event({"event": "seen", "z": 1, "gone": None, "a": 2, "no": False})
    assert line == "seen z=1 a=2 no=false"


@pytest.mark.parametrize("letter", ["x", "→", "\n", '"', "\\", "\U000e0001", "\udcff"])
def test_a_value_cannot_fill_the_disk(letter: str) -> None:
    line = render_event({"event": "seen", "value": letter * 1_000_000})
    assert "…" in line
    assert len(line) < 11_000


def test_an_event_cannot_fill_the_disk() -> None:
    assert len(render_event({"event": "x" * 1_000_000})) < 11_000


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


def test_field_names_of_structlogs_own_arguments_do_no_harm() -> None:
    stream = io.StringIO()
    configure(stream, journal=True).info("seen", logger=1, method=2, name=3, level=4, exc_info=True)
    assert stream.getvalue() == "<6>seen logger=1 method=2 name=3 level=4 exc_info=true\n"


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
    assert len(limits._seen) == 100
    assert limits.allowed("key-9999", 60, 1.0) is None
    assert limits.allowed("key-9999", 60, 61.0) == 1


# What it costs


def in_child(code: str) -> dict[str, object]:
    """What the `code` printed as JSON, in a Python of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_rich_is_not_imported_though_it_is_installed_and_can_be_imported_later() -> None:
    found = in_child("""
        import io, json, sys, importlib.util
        assert importlib.util.find_spec("rich")
        from fc_frontend.observe.log import configure
        stream = io.StringIO()
        configure(stream).info("seen")
        before = sorted(m for m in sys.modules if m == "rich" or m.startswith("rich."))
        import rich
        from rich.table import Table
        from rich.console import Console
        configure(stream).info("again")
        print(json.dumps({
            "before": before,
            "after": sys.modules.get("rich") is rich,
            "lines": stream.getvalue().count("\\n"),
        }))
    """)
    assert found == {"before": [], "after": True, "lines": 2}


def test_rich_stays_if_it_was_there_before() -> None:
    found = in_child("""
        import io, json, sys
        import rich
        from fc_frontend.observe.log import configure
        configure(io.StringIO()).info("seen")
        print(json.dumps({"same": sys.modules["rich"] is rich}))
    """)
    assert found == {"same": True}


def test_logging_takes_little_memory() -> None:
    found = in_child("""
        import io, json
        import asyncio, psutil
        process = psutil.Process()
        before = process.memory_info().rss
        from fc_frontend.observe.log import configure
        configure(io.StringIO()).info("seen")
        print(json.dumps({"megabytes": (process.memory_info().rss - before) / 1e6}))
    """)
    print(f"structlog: {found['megabytes']:.1f} MB")
    assert isinstance(found["megabytes"], float)
    assert found["megabytes"] < 13
