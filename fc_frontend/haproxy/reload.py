"""Make HAProxy take a new configuration without dropping a connection, and see that it did.

A reload's outcome is a value, failed or not; only what could not even be tried is raised.  Who
wants proof asks `confirm`, which believes nobody but the worker that serves.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fc_frontend.errors import Problem, Unavailable
from fc_frontend.haproxy.master import Processes, show_proc
from fc_frontend.haproxy.process import run
from fc_frontend.haproxy.runtime import running_hash
from fc_frontend.haproxy.socket import NoAnswer, NoListener, ask
from fc_frontend.haproxy.validate import parse_messages
from fc_frontend.haproxy.version import Version
from fc_frontend.haproxy.wording import without_content
from fc_frontend.plan.model import Haproxy

_WORDS = 4096
"""How much of HAProxy's words is kept, in bytes."""

_ATTEMPT = 2.0
_FIRST_PAUSE = 0.005
_LONGEST_PAUSE = 0.1
_REFUSED_BIND = re.compile(r"(?:Binding|Starting) \[(.*):(\d+)\] for ")
_NO_WORDS = "HAProxy keeps the former configuration; its log has the reason"


class FilePlace(NamedTuple):
    """A line, counted from 1, of a file as HAProxy was given it."""

    file: str
    line: int


@dataclass(frozen=True, slots=True)
class ReloadOutcome:
    """How a reload went.

    `message` has HAProxy's own words where it gave any, at most 4 KiB; `duration` is in seconds,
    from the request until HAProxy had said how it went.  `refused_binds` are the lines whose
    listeners HAProxy could not take, where it names them (2.7 and later).  `is_known` is False if
    HAProxy did not say how it went within the time limit.
    """

    ok: bool
    message: str
    duration: float
    refused_binds: tuple[FilePlace, ...] = ()
    is_known: bool = True


def reload_by_master(socket: str, version: Version, timeout: float) -> ReloadOutcome:
    """Reload through the master socket, and wait until it is known how that went.

    From 2.7 `reload` waits and says so itself.  Before, it says nothing and the socket is gone
    until the new master runs; then the count of reloads has risen, and `[failed: N]` tells (a bind
    that cannot be taken is retried by HAProxy for 2 s first).  Management Guide 9.4, `reload`.

    A failed or overdue reload is an outcome; raises `Unavailable` only if there is no master to
    ask.
    """
    started = time.monotonic()
    deadline = started + timeout
    attempt = min(timeout, _ATTEMPT)
    before = show_proc(socket, attempt, patience=attempt)
    master = _visible(before.master)
    try:
        answer = ask(socket, "reload", timeout if version.reload_answers else attempt)
    except NoListener:
        raise
    except Unavailable:
        # The master may break off as it replaces itself: its count tells whether it did.
        answer = ""
    said, ok, words, places = parse_answer(answer)
    if said:
        return ReloadOutcome(ok, words, time.monotonic() - started, places)
    found = _await_count(socket, before, master, deadline)
    duration = time.monotonic() - started
    if found is None:
        message = f"HAProxy did not finish the reload within {timeout:g} s"
        return ReloadOutcome(False, message, duration, is_known=False)
    ok, words = found
    return ReloadOutcome(ok, words, duration)


def reload_by_command(argv: Sequence[str], timeout: float) -> ReloadOutcome:
    """Reload by running the operator's own command, as `systemctl reload haproxy`.

    The outcome is its exit status, and its output.  After `timeout` seconds it is killed with its
    children.  Raises `Unavailable` if it cannot be started.
    """
    finished = run(argv, timeout=timeout, limit=_WORDS)
    words = finished.output.strip()
    if finished.status == 0:
        return ReloadOutcome(True, words, finished.duration)
    ending = f"`{' '.join(argv)}` {finished.ending}"
    message = f"{ending}: {words}" if words else ending
    is_known = finished.status is not None
    return ReloadOutcome(False, message, finished.duration, refused_binds(words), is_known)


def confirm(
    runtime_socket: str, expected_hash: str, timeout: float, master: int | None = None
) -> bool:
    """True as soon as the worker that serves has the configuration `expected_hash`.

    False if it has not within `timeout` seconds, or once the process `master` has ended.  Asks at
    once, then after 5 ms, 10 ms and so on up to every 100 ms, each time on a new connection.
    """
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE
    process = _visible(master)
    while True:
        remaining = deadline - time.monotonic()
        try:
            if running_hash(runtime_socket, max(0.01, min(remaining, _ATTEMPT))) == expected_hash:
                return True
        except Unavailable:
            # Between two workers there may be no answer.
            if process is not None and not process.exists():
                return False
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return False
        time.sleep(min(pause, remaining))
        pause = min(pause * 2, _LONGEST_PAUSE)


def confirm_foreign(haproxy: Haproxy, before: Processes | None, timeout: float) -> bool:
    """True as soon as another worker serves than `before`, and none of a text of ours.

    For a text of others, which the worker cannot prove; where the master cannot be asked, the
    reload's own word counts.  False if that is not so within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    former = None if before is None else before.worker
    while True:
        remaining = max(0.01, min(deadline - time.monotonic(), _ATTEMPT))
        try:
            worker = show_proc(haproxy.master_socket, remaining).worker
        except Unavailable:
            if before is None:
                return True
        else:
            if worker is not None and worker != former:
                return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LONGEST_PAUSE)


def unconfirmed(expected_hash: str, running: str | None, timeout: float) -> Problem:
    """The problem that a reload is said to have worked, but the worker tells otherwise.

    `running` is the hash that the worker has, None if it has none of ours or does not answer.
    """
    has = f"the configuration {running}" if running else "no configuration of ours"
    return Problem(
        f"HAProxy reloaded, but its worker has {has} after {timeout:g} s, not {expected_hash}",
        remedy="check that haproxy.config_file and haproxy.runtime_socket are this HAProxy's",
    )


def _visible(pid: int | None) -> Path | None:
    """What exists as long as the process does; None if it cannot be seen from our namespace."""
    process = Path(f"/proc/{pid}")
    return process if pid is not None and process.exists() else None


def parse_answer(answer: str) -> tuple[bool, bool, str, tuple[FilePlace, ...]]:
    """Whether the answer tells how it went, whether well, HAProxy's words, and `refused_binds`."""
    head, _, logs = answer.partition("\n--\n")
    first = head.strip().splitlines()[0] if head.strip() else ""
    if not first.startswith("Success="):
        return False, False, "", ()
    ok = first.strip() == "Success=1"
    wanted = ("warning",) if ok else ("alert",)
    words = [
        without_content(message.text)
        for message in parse_messages(logs)
        if message.level in wanted and not message.text.startswith("Former worker")
    ]
    if not ok and not words:
        words = [without_content(line) for line in logs.strip().splitlines()] or [_NO_WORDS]
    return True, ok, _bounded("\n".join(words)), refused_binds(logs)


def refused_binds(logs: str) -> tuple[FilePlace, ...]:
    """Where the listeners are that HAProxy could not take, by what it logged.

    `protocol_bind_all` in HAProxy's source: `Binding [FILE:LINE] for …` and `Starting […] for …`.
    """
    found = (
        _REFUSED_BIND.match(message.text)
        for message in parse_messages(logs)
        if message.level == "alert"
    )
    return tuple(FilePlace(match[1], int(match[2])) for match in found if match)


def _await_count(
    socket: str, before: Processes, master: Path | None, deadline: float
) -> tuple[bool, str] | None:
    """Whether the reload went well, and HAProxy's words; None if that is not known in time."""
    pause = _FIRST_PAUSE
    while True:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return None
        try:
            now = show_proc(socket, min(remaining, _ATTEMPT))
        except (NoListener, NoAnswer):
            if master is not None and not master.exists():
                return False, f"HAProxy's master process {before.master} ended during the reload"
        else:
            if now.reloads > before.reloads or now.master != before.master:
                return _judge(now)
        time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(pause * 1.5, 0.02)


def _judge(now: Processes) -> tuple[bool, str]:
    if now.failed or now.worker is None or now.worker_reloads:
        return False, _NO_WORDS
    return True, ""


def _bounded(words: str) -> str:
    return words.encode()[:_WORDS].decode("utf-8", "ignore")
