"""Let HAProxy judge a configuration before any running HAProxy sees it.

The text reaches `haproxy -c` through memory, so judging writes nothing and needs no right to write
anywhere.  This module never judges by itself, and never takes silence for consent.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Literal, cast

from fc_frontend.errors import Problem, Unavailable
from fc_frontend.haproxy.process import Finished, run

Level = Literal["alert", "warning", "notice"]

_READ = 8 * 1024 * 1024
_SHOWN = 256 * 1024
"""An alert may stand behind thousands of warnings: more is judged than is kept, in bytes."""

_SHOWN_NAME = "haproxy.cfg"
_HEAD = re.compile(r"^\[(ALERT|WARNING|NOTICE|DIAG)\]\s+(?:\S+\s+)?\(\d+\) : (.*)$")
_LINE = re.compile(r"\[haproxy\.cfg:(\d+)\]")
_BOTH = re.compile(r"\bserver '?([A-Za-z0-9_.:-]+)/([A-Za-z0-9_.:-]+)'?", re.IGNORECASE)
_SECTION = re.compile(r"\b(?:proxy|frontend|backend|listen)\s+'([^']+)'", re.IGNORECASE)
_SERVER = re.compile(r"\bserver\s+'([^'/]+)'", re.IGNORECASE)
_SUMMARY = re.compile(r"^(?:Error\(s\) found in configuration file|Fatal errors found in config)")


@dataclass(frozen=True, slots=True)
class Message:
    """One thing that HAProxy said.

    `line` counts from 1 in the judged text.  `section` and `server` are names that the message
    gives; errors of meaning often have these and no line.
    """

    level: Level
    text: str
    line: int | None = None
    section: str | None = None
    server: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What HAProxy thinks of a configuration.

    `messages` leaves out the sentences that only sum up others; `output` is all that it said, at
    most 256 KiB.  In both, the configuration is called `haproxy.cfg`.
    """

    accepted: bool
    messages: tuple[Message, ...]
    output: str

    @property
    def alerts(self) -> tuple[Message, ...]:
        """The messages for which HAProxy would not start."""
        return tuple(m for m in self.messages if m.level == "alert")

    @property
    def warnings(self) -> tuple[Message, ...]:
        """The messages with which HAProxy starts all the same."""
        return tuple(m for m in self.messages if m.level == "warning")


def validate(binary: str, text: str, *, timeout: float) -> Verdict:
    """HAProxy's verdict on the configuration `text` (Management Guide 3, `-c`).

    Accepted is what gives no alert and status 0, or status 2, which HAProxy before 3.0 gives to a
    configuration without a listener: that is not wrong, only not yet of use.  Any alert refuses,
    as 3.x may print one and still return 0.

    Parse errors come all at once; errors of meaning only when parsing is clean.  Raises
    `Unavailable` if `binary` cannot be run, is killed, or takes longer than `timeout` seconds.
    """
    memory = os.memfd_create(_SHOWN_NAME)
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(text.encode("utf-8", "surrogateescape"))
        path = f"/proc/self/fd/{memory}"
        finished = run(
            [binary, "-c", "-f", path],
            timeout=timeout,
            limit=_READ,
            stdout=False,
            pass_fds=(memory,),
        )
    finally:
        os.close(memory)
    said = re.sub(re.escape(path) + r"(?!\d)", _SHOWN_NAME, finished.output)
    messages = parse_messages(said)
    _require_verdict(binary, finished, messages, timeout)
    alerts = [m for m in messages if m.level == "alert"]
    accepted = finished.status in (0, 2) and not alerts
    if alerts:
        telling = [m for m in alerts if not _SUMMARY.match(m.text)] or alerts
        messages = tuple(m for m in messages if m.level != "alert" or m in telling)
    elif not accepted:
        reason = f"haproxy -c {finished.ending} and gave no reason"
        messages = (*messages, Message("alert", reason))
    return Verdict(accepted, messages, said.encode()[:_SHOWN].decode("utf-8", "ignore"))


def parse_messages(output: str) -> tuple[Message, ...]:
    """The messages in what HAProxy wrote to standard error, in their order.

    A line without a level belongs to the message before it.
    """
    found: list[tuple[Level, list[str]]] = []
    for line in output.splitlines():
        if head := _HEAD.match(line):
            level = "notice" if head[1] == "DIAG" else head[1].lower()
            found.append((cast(Level, level), [head[2].removeprefix("config : ")]))
        elif found and line.strip():
            found[-1][1].append(re.sub(r"^\s*\| ?", "", line).rstrip())
    return tuple(_message(level, "\n".join(lines)) for level, lines in found)


def _message(level: Level, text: str) -> Message:
    line = _LINE.search(text)
    both = _BOTH.search(text)
    section = both or _SECTION.search(text)
    server = _SERVER.search(text)
    return Message(
        level=level,
        text=text,
        line=int(line[1]) if line else None,
        section=section[1] if section else None,
        server=both[2] if both else server[1] if server else None,
    )


def _require_verdict(
    binary: str, finished: Finished, messages: tuple[Message, ...], timeout: float
) -> None:
    """Raise `Unavailable` where HAProxy ended without having judged."""
    if finished.status is None:
        remedy = (
            f"raise the time limit of {timeout:g} s, or look for names in the configuration that "
            "HAProxy resolves while it starts"
        )
    elif finished.status < 0:
        remedy = "try again; if it was SIGKILL, look for a lack of memory with `dmesg`"
    elif finished.status in (126, 127) and not messages:
        remedy = f"run `{binary} -v` by hand: a library that it needs may be missing"
    else:
        return
    last = finished.output.strip().splitlines()[-1:]
    detail = f": {last[0][:200]}" if last else ""
    raise Unavailable(Problem(message=f"haproxy -c {finished.ending}{detail}", remedy=remedy))
