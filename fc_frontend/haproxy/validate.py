"""Let HAProxy check a configuration before any running HAProxy loads it.

The text is passed to `haproxy -c` in memory, so a check writes no files and needs no write
permission.  This module never decides by itself, and never treats a missing verdict as acceptance.
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
"""The memory that `haproxy -c` may allocate, in bytes.

Measured on 2.6 and 2.8: 5,000 services with 20 slots each take 550 MB, 5,000 certificates 150 MB,
16 MiB of addresses for `src -f` 215 MB, the same of one-letter lines 1.5 GB.
"""
_READ = 8 * 1024 * 1024
_SHOWN = 256 * 1024
"""Maximum output that is kept, in bytes; more is parsed, as an alert may follow many warnings."""

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
    """HAProxy reached a verdict and reported the reasons."""
    TIME = "time"
    """It did not finish in time: something that the configuration names or does blocks it."""
    KILLED = "killed"
    """A signal killed it, as the kernel does when memory runs out, or it crashed."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of HAProxy.

    `line` counts from 1 in the checked text.  `section` and `server` are names in the message;
    semantic errors often have these and no line.
    """

    level: Level
    text: str
    line: int | None = None
    section: str | None = None
    server: str | None = None


@dataclass(frozen=True, slots=True)
class CheckVerdict:
    """HAProxy's verdict on a configuration.

    `messages` omits those that only sum up others; `output` is the entire output, at most 256 KiB.
    In both, the configuration is called `haproxy.cfg`.
    """

    accepted: bool
    messages: tuple[Message, ...]
    output: str
    ending: Ending = Ending.JUDGED
    duration: float = 0.0
    """In seconds."""

    @property
    def alerts(self) -> tuple[Message, ...]:
        """The messages that prevent HAProxy from starting."""
        return tuple(m for m in self.messages if m.level == "alert")

    @property
    def warnings(self) -> tuple[Message, ...]:
        """The messages that do not prevent HAProxy from starting."""
        return tuple(m for m in self.messages if m.level == "warning")


def validate(binary: str, text: str, *, timeout: float) -> CheckVerdict:
    """Return HAProxy's verdict on the configuration `text` (Management Guide 3, `-c`).

    A configuration is accepted if there is no alert and the status is 0, or 2, which HAProxy before
    3.0 returns for a configuration without a listener: that is valid, only not yet of use.  Any
    alert refuses it, because 3.x may print one and still return 0.

    Parse errors are reported together; semantic errors only if parsing succeeds.

    A check that takes longer than `timeout` seconds, needs more than `MAX_MEMORY` or crashes
    refuses the configuration as well; see `ending`.  Raises `Unavailable` if `binary` cannot be run
    at all.
    """
    # fc-frontend's maps and lists are written with the configuration, and any content is valid.
    # HAProxy does not accept the same name for a map and a list.
    text = _OWN_LIST.sub("/dev/./null", text)
    text = _OWN_MAP.sub("/dev/null", text)
    with contextlib.ExitStack() as opened:
        passed = []
        if any(own_lists(text)):
            # Certificates were checked when they were stored, and loading 5,000 takes 8 s.
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
    """Yield the descriptor of a file in memory."""
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
    """Return the messages in HAProxy's standard error, in their order.

    A line without a level belongs to the previous message.  So does a line with another process ID
    if `is_one_process`: HAProxy quotes words of the configuration verbatim, line feeds included,
    and they may look like messages.
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
    """Return a message with the place that it concerns.

    HAProxy names the place first.  The rest may quote the configuration, which can look like other
    places.
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
    """Raise `Unavailable` if HAProxy did not even start, for lack of a library."""
    if finished.status not in (126, 127) or messages:
        return
    last = finished.output.strip().splitlines()[-1:]
    detail = f": {last[0][:200]}" if last else ""
    raise Unavailable.of(
        f"haproxy -c {finished.ending}{detail}",
        f"run `{binary} -v` by hand: a library that it needs may be missing",
    )
