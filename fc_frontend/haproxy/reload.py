"""Reload HAProxy with a new configuration without dropping connections, and verify the result.

The outcome of a reload, failed or not, is a value; only an attempt that cannot be made raises.
`confirm` verifies a reload, and relies only on the current worker.
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
"""Maximum number of bytes of HAProxy's messages that are kept."""

_ATTEMPT = 2.0
_FIRST_PAUSE = 0.005
_LONGEST_PAUSE = 0.1
_REFUSED_BIND = re.compile(r"(?:Binding|Starting) \[(.*):(\d+)\] for ")
_NO_WORDS = "HAProxy keeps the former configuration; its log has the reason"


class FilePlace(NamedTuple):
    """A line, counted from 1, of a file as passed to HAProxy."""

    file: str
    line: int


@dataclass(frozen=True, slots=True)
class ReloadOutcome:
    """The outcome of a reload.

    `message` contains HAProxy's own messages if there are any, at most 4 KiB; `duration` is in
    seconds, from the request until HAProxy reported the result.  `refused_binds` are the lines of
    listeners that HAProxy could not bind, if it reports them (2.7 and later).  `is_known` is False
    if HAProxy did not report a result within the time limit.
    """

    ok: bool
    message: str
    duration: float
    refused_binds: tuple[FilePlace, ...] = ()
    is_known: bool = True


def reload_by_master(socket: str, version: Version, timeout: float) -> ReloadOutcome:
    """Reload through the master socket, and wait for the result.

    From 2.7 on, `reload` waits and reports the result itself.  Before, it reports nothing and the
    socket is gone until the new master runs; then the count of reloads has increased, and
    `[failed: N]` shows the result (HAProxy first retries a failing bind for 2 s).  Management
    Guide 9.4, `reload`.

    A failed or overdue reload is an outcome; raises `Unavailable` only if the master cannot be
    reached.
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
        # The master may break off as it re-executes itself: the count of reloads shows whether it
        # did.
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
    """Reload by running the operator's own command, such as `systemctl reload haproxy`.

    The outcome is its exit status and its output.  After `timeout` seconds it is killed with its
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
    """Wait until the current worker has the configuration `expected_hash`; return whether it does.

    Returns False after `timeout` seconds, or once the process `master` has ended.  Queries at once,
    then after 5 ms, 10 ms and so on up to every 100 ms, each time on a new connection.
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
    """Wait until a worker other than that of `before` serves; return whether one does.

    This is for a text that fc-frontend did not write, which the worker cannot confirm by a digest.
    If the master cannot be queried, the result of the reload counts.  Returns False after `timeout`
    seconds.
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
    """Return the problem that a reload succeeded, but the worker has another configuration.

    `running` is the hash of the worker, None if it has none of fc-frontend's or does not answer.
    """
    has = f"the configuration {running}" if running else "no configuration of ours"
    return Problem(
        f"HAProxy reloaded, but its worker has {has} after {timeout:g} s, not {expected_hash}",
        remedy="check that haproxy.config_file and haproxy.runtime_socket are this HAProxy's",
    )


def _visible(pid: int | None) -> Path | None:
    """Return a path that exists as long as the process; None if it is not visible here."""
    process = Path(f"/proc/{pid}")
    return process if pid is not None and process.exists() else None


def parse_answer(answer: str) -> tuple[bool, bool, str, tuple[FilePlace, ...]]:
    """Return whether the answer has a result, whether it is success, messages, `refused_binds`."""
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
    """Return the lines of the listeners that HAProxy could not bind, from its log messages.

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
    """Return whether the reload succeeded, and HAProxy's messages; None if not known in time."""
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
