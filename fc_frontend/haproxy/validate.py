"""Let HAProxy judge a configuration before any running HAProxy sees it.

The text reaches `haproxy -c` through memory, so judging writes nothing and needs no right to write
anywhere.  This module never judges by itself, and never takes silence for consent.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Literal, cast

from fc_frontend.errors import Unavailable
from fc_frontend.haproxy.process import Finished, run
from fc_frontend.syntax.certificates import own_lists, with_certificate
from fc_frontend.syntax.routes import ALLOW_ENDING, MAPS_DIRECTORY

Level = Literal["alert", "warning", "notice"]

MAX_MEMORY = 2 * 1024 * 1024 * 1024
"""What `haproxy -c` may allocate, in bytes.

Measured on 2.6 and 2.8: 5,000 services with 20 slots each take 550 MB, 5,000 certificates 150 MB,
16 MiB of addresses for `src -f` 215 MB, the same of one-letter lines 1.5 GB.
"""
_READ = 8 * 1024 * 1024
_SHOWN = 256 * 1024
"""An alert may stand behind thousands of warnings: more is judged than is kept, in bytes."""

_OWN_LIST = re.compile(rf"/[^\s,()]*/{MAPS_DIRECTORY}/[^\s,()]+{re.escape(ALLOW_ENDING)}(?!\S)")
_OWN_MAP = re.compile(rf"/[^\s,()]*/{MAPS_DIRECTORY}/[^\s,()]+")
_SHOWN_NAME = "haproxy.cfg"
_HEAD = re.compile(r"^\[(ALERT|WARNING|NOTICE|DIAG)\]\s+(?:\S+\s+)?\((\d+)\) : (.*)$")
_LINE = re.compile(r"(?:parsing |Binding )?\[haproxy\.cfg:(\d{1,9})\]")
_BOTH = re.compile(r"\bserver '?([A-Za-z0-9_.:-]+)/([A-Za-z0-9_.:-]+)'?", re.IGNORECASE)
_SECTION = re.compile(r"\b(?:proxy|frontend|backend|listen)\s+'([^']+)'", re.IGNORECASE)
_SERVER = re.compile(r"\bserver\s+'([^'/]+)'", re.IGNORECASE)
_SUMMARY = re.compile(r"^(?:Error\(s\) found in configuration file|Fatal errors found in config)")


class Ending(StrEnum):
    """How a check ended."""

    JUDGED = "judged"
    """HAProxy reached a verdict and said why."""
    TIME = "time"
    """It did not finish in time: something that the configuration names or does blocks it."""
    KILLED = "killed"
    """A signal killed it, as the kernel does when memory runs out, or it crashed."""


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
class CheckVerdict:
    """What HAProxy thinks of a configuration.

    `messages` leaves out the sentences that only sum up others; `output` is all that it said, at
    most 256 KiB.  In both, the configuration is called `haproxy.cfg`.
    """

    accepted: bool
    messages: tuple[Message, ...]
    output: str
    ending: Ending = Ending.JUDGED
    duration: float = 0.0
    """In seconds."""

    @property
    def alerts(self) -> tuple[Message, ...]:
        """The messages for which HAProxy would not start."""
        return tuple(m for m in self.messages if m.level == "alert")

    @property
    def warnings(self) -> tuple[Message, ...]:
        """The messages with which HAProxy starts all the same."""
        return tuple(m for m in self.messages if m.level == "warning")


def validate(binary: str, text: str, *, timeout: float) -> CheckVerdict:
    """HAProxy's verdict on the configuration `text` (Management Guide 3, `-c`).

    Accepted is what gives no alert and status 0, or status 2, which HAProxy before 3.0 gives to a
    configuration without a listener: that is not wrong, only not yet of use.  Any alert refuses,
    as 3.x may print one and still return 0.

    Parse errors come all at once; errors of meaning only when parsing is clean.

    A check that takes longer than `timeout` seconds, needs more than `MAX_MEMORY` or crashes
    refuses the configuration as well: `ending` tells.  Raises `Unavailable` if `binary` cannot be
    run at all.
    """
    # Our maps and lists are written with the configuration, and any content is good.  HAProxy does
    # not take one name for a map and for a list.
    text = _OWN_LIST.sub("/dev/./null", text)
    text = _OWN_MAP.sub("/dev/null", text)
    with contextlib.ExitStack() as opened:
        passed = []
        if any(own_lists(text)):
            # Certificates were checked when they were stored, and to load 5,000 takes 8 s.
            passed.append(opened.enter_context(_in_memory("pem", _stand_in())))
            text = with_certificate(text, f"/proc/self/fd/{passed[0]}")
        content = text.encode("utf-8", "surrogateescape")
        passed.append(opened.enter_context(_in_memory(_SHOWN_NAME, content)))
        path = f"/proc/self/fd/{passed[-1]}"
        finished = run(
            [binary, "-c", "-f", path],
            timeout=timeout,
            limit=_READ,
            memory=MAX_MEMORY,
            stdout=False,
            pass_fds=tuple(passed),
        )
    said = re.sub(re.escape(path) + r"(?!\d)", _SHOWN_NAME, finished.output)
    messages = parse_messages(said, is_one_process=True)
    _require_start(binary, finished, messages)
    ending = _ending(finished)
    if ending is not Ending.JUDGED:
        alert = Message("alert", f"haproxy -c {finished.ending}")
        return CheckVerdict(False, (alert,), _shown(said), ending, finished.duration)
    alerts = [m for m in messages if m.level == "alert"]
    accepted = finished.status in (0, 2) and not alerts
    if alerts:
        telling = [m for m in alerts if not _SUMMARY.match(m.text)] or alerts
        messages = tuple(m for m in messages if m.level != "alert" or m in telling)
    elif not accepted:
        reason = f"haproxy -c {finished.ending} and gave no reason"
        messages = (*messages, Message("alert", reason))
    return CheckVerdict(accepted, messages, _shown(said), duration=finished.duration)


@contextlib.contextmanager
def _in_memory(name: str, content: bytes) -> Iterator[int]:
    """A descriptor of a file in memory."""
    memory = os.memfd_create(name)
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(content)
        yield memory
    finally:
        os.close(memory)


@lru_cache(maxsize=1)
def _stand_in() -> bytes:
    from fc_frontend.certificates.pem import self_signed

    return self_signed("fc-frontend.invalid").pem


def _shown(said: str) -> str:
    return said.encode()[:_SHOWN].decode("utf-8", "ignore")


def _ending(finished: Finished) -> Ending:
    if finished.status is None or -finished.status in (signal.SIGALRM, signal.SIGXCPU):
        return Ending.TIME
    return Ending.KILLED if finished.status < 0 else Ending.JUDGED


def parse_messages(output: str, *, is_one_process: bool = False) -> tuple[Message, ...]:
    """The messages in what HAProxy wrote to standard error, in their order.

    A line without a level belongs to the message before it.  So does a line with another process
    id if `is_one_process`: HAProxy repeats words of the configuration as they are, line feeds
    included, and they may look like messages.
    """
    found: list[tuple[Level, list[str]]] = []
    process = ""
    for line in output.split("\n"):
        head = _HEAD.match(line)
        if head and (not is_one_process or head[2] == (process := process or head[2])):
            level = "notice" if head[1] == "DIAG" else head[1].lower()
            found.append((cast(Level, level), [head[3].removeprefix("config : ")]))
        elif found and line.strip():
            found[-1][1].append(re.sub(r"^\s*\| ?", "", line).rstrip())
    return tuple(_message(level, "\n".join(lines)) for level, lines in found)


def _message(level: Level, text: str) -> Message:
    """A message with the place that it is about.

    HAProxy says that first.  What follows may be words of the configuration, which can look like
    other places.
    """
    line = _LINE.match(text)
    names = [match for match in (_BOTH.search(text), _SECTION.search(text)) if match]
    first = min(names, key=lambda match: match.start(), default=None)
    has_server = first is not None and first.re is _BOTH
    server = None if has_server else _SERVER.search(text)
    return Message(
        level=level,
        text=text,
        line=int(line[1]) if line else None,
        section=first[1] if first else None,
        server=first[2] if first and has_server else server[1] if server else None,
    )


def _require_start(binary: str, finished: Finished, messages: tuple[Message, ...]) -> None:
    """Raise `Unavailable` where HAProxy did not even start, for want of a library."""
    if finished.status not in (126, 127) or messages:
        return
    last = finished.output.strip().splitlines()[-1:]
    detail = f": {last[0][:200]}" if last else ""
    raise Unavailable.of(
        f"haproxy -c {finished.ending}{detail}",
        f"run `{binary} -v` by hand: a library that it needs may be missing",
    )
