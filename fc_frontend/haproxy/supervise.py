"""Start HAProxy without an init system, find it again, and end it on request.

HAProxy outlives fc-frontend: it has its own session, holds none of fc-frontend's pipes, and is
adopted by another reaper when fc-frontend ends.  A process is only ended after it has reported, on
its master socket, that it is the expected master.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import stat
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from fc_frontend.errors import Unavailable
from fc_frontend.haproxy.master import Processes, show_proc
from fc_frontend.haproxy.process import cannot_start, minimal_environment
from fc_frontend.haproxy.runtime import running_hash
from fc_frontend.haproxy.socket import NoAnswer, NoListener
from fc_frontend.haproxy.validate import parse_messages, validate
from fc_frontend.haproxy.wording import without_content

_PAUSE = 0.01
_ATTEMPT = 1.0
_ENDING = 2.0
_ALERTS = 3
_WORDS = 64 * 1024

_SIGNALS = (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""HAProxy starts with the default handlers of these signals, not with fc-frontend's."""

_children: set[int] = set()
"""Masters that this process started: only it can wait for them while it lives."""


def running(master_socket: str, timeout: float = 5.0) -> Processes | None:
    """Return the HAProxy behind `master_socket`, so that it can be adopted; None if there is none.

    During a reload the master replaces itself, and nobody listens for a moment: as long as a
    process has this socket among its arguments, the call waits for it.  Raises `Unavailable` if a
    listener does not answer as a master within `timeout` seconds.
    """
    _reap()
    deadline = time.monotonic() + timeout
    while True:
        try:
            return show_proc(master_socket, max(_PAUSE, deadline - time.monotonic()))
        except (NoListener, NoAnswer) as unavailable:
            if isinstance(unavailable, NoListener) and not _claimed(master_socket):
                return None
            if time.monotonic() >= deadline:
                raise
        time.sleep(_PAUSE)


def start(
    binary: str,
    config_file: str,
    master_socket: str,
    *,
    timeout: float,
    expected_hash: str | None,
    runtime_socket: str,
    output: str | None = None,
) -> int:
    """Start `haproxy -W -db -f CONFIG -S MASTER_SOCKET` and return the PID of its master.

    It continues to run when fc-frontend ends.  Returns once its master socket answers and its
    worker reports the configuration `expected_hash`; None is for a foreign text, for which it
    cannot report one.  Its output is appended to the file `output`, or goes to fc-frontend's own
    output.  The directories of the sockets must exist.

    Raises `Unavailable` if a HAProxy runs there already, or if this one is not ready after
    `timeout` seconds or ends before that; then none of its processes is left, and the message
    contains its first alerts.
    """
    if (there := running(master_socket)) is not None:
        raise Unavailable.of(
            f"HAProxy already runs behind {master_socket} (process {there.master})",
            "adopt it, or stop it first",
        )
    words = _Words.of(output)
    pid = _spawn(binary, config_file, master_socket, output)
    try:
        ending = _await_ready(pid, master_socket, runtime_socket, expected_hash, timeout)
    except BaseException:
        _end(pid)
        raise
    if ending is None:
        return pid
    _end(pid)
    alerts = words.alerts() or _judged(binary, config_file, timeout)
    remedy = (
        "correct what HAProxy complains about"
        if alerts
        else "read what HAProxy wrote to our standard error (`journalctl -u fc-frontend`)"
    )
    said = f": {'; '.join(alerts)}" if alerts else ""
    message = f"HAProxy did not start: {ending}{said}"
    raise Unavailable.of(message, remedy)


def stop(master_pid: int, *, master_socket: str, graceful: bool, timeout: float) -> bool:
    """End the HAProxy with the master `master_pid`; return whether it ended within `timeout`.

    `timeout` is in seconds.  `graceful` lets connections finish first (SIGUSR1); otherwise they are
    cut off (SIGTERM); Management Guide 4.  Only a process that reports on `master_socket` that it
    is `master_pid` is ended: raises `Unavailable` otherwise.
    """
    _reap()
    try:
        process = os.pidfd_open(master_pid)
    except ProcessLookupError:
        return True
    try:
        # The process is opened before the query, so that its PID cannot be reused in between.
        said = show_proc(master_socket)
        if said.master != master_pid:
            raise Unavailable.of(
                f"process {master_pid} is not the HAProxy master behind "
                f"{master_socket}, which is {said.master}",
                remedy="look which HAProxy runs there, and stop it by hand if it should end",
            )
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGUSR1 if graceful else signal.SIGTERM)
        return _ended(process, timeout)
    finally:
        os.close(process)
        _reap()


def _inheritable() -> list[int]:
    """Return the open files, other than the standard ones, that a child would inherit."""
    found: list[int] = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if int(entry.name) > 2 and os.get_inheritable(int(entry.name)):
                found.append(int(entry.name))
    return found


def _spawn(binary: str, config_file: str, master_socket: str, output: str | None) -> int:
    actions: list[tuple[int, int, str, int, int] | tuple[int, int, int] | tuple[int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    ]
    # watchdog opens inotify without close-on-exec: HAProxy would keep it open.
    actions += [(os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable()]
    if output is not None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        actions += [
            (os.POSIX_SPAWN_OPEN, 1, str(Path(output).absolute()), flags, 0o640),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
    # `-C /`: relative paths in the configuration resolve as in the check.
    # `-db`: a text with `daemon` would leave a master that is not a child of this process.
    argv = [binary, "-W", "-db", "-C", "/", "-f", str(Path(config_file).absolute())]
    argv += ["-S", str(Path(master_socket).absolute())]
    try:
        # Not subprocess: its object would have to live as long as HAProxy.
        pid = os.posix_spawn(
            binary,
            argv,
            minimal_environment(),
            file_actions=actions,
            setsid=True,
            setsigmask=[],
            setsigdef=_SIGNALS,
        )
    except OSError as error:
        raise Unavailable(cannot_start(binary, error)) from error
    _children.add(pid)
    return pid


def _claimed(master_socket: str) -> bool:
    """Return whether a process was started with `-S master_socket`."""
    wanted = os.fsencode(Path(master_socket).absolute())
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = process.joinpath("cmdline").read_bytes().split(b"\0")
            for option, value in pairwise(words):
                path = value.partition(b",")[0].removeprefix(b"unix@")
                if option == b"-S" and path == wanted:
                    return True
    return False


def _await_ready(
    pid: int, master_socket: str, runtime_socket: str, expected_hash: str | None, timeout: float
) -> str | None:
    """Wait until HAProxy serves `expected_hash`; return None, or the reason of a failure."""
    deadline = time.monotonic() + timeout
    lacking = "its master socket does not answer"
    while True:
        _reap()
        if pid not in _children:
            return "it ended at once"
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return f"after {timeout:g} s {lacking}"
        attempt = min(remaining, _ATTEMPT)
        with contextlib.suppress(Unavailable):
            said = show_proc(master_socket, attempt)
            lacking = "its worker does not have the expected configuration"
            serves = said.master == pid and said.worker is not None
            if serves and (
                expected_hash is None or running_hash(runtime_socket, attempt) == expected_hash
            ):
                return None
        time.sleep(min(_PAUSE, max(0.0, deadline - time.monotonic())))


def _end(pid: int) -> None:
    """End a master that this process started and has not yet reaped, with its workers."""
    if pid not in _children:
        return
    process = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGTERM)
        if not _ended(process, _ENDING):
            os.killpg(pid, signal.SIGKILL)
            _ended(process, _ENDING)
    finally:
        os.close(process)
        _reap()


def _ended(process: int, timeout: float) -> bool:
    poller = select.poll()
    poller.register(process, select.POLLIN)
    return bool(poller.poll(timeout * 1000))


def _reap() -> None:
    for pid in tuple(_children):
        try:
            ended, _ = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            ended = pid
        if ended:
            _children.discard(pid)


@dataclass(frozen=True, slots=True)
class _Words:
    """HAProxy's output from now on, if it can be read: a file and the offset at which to start."""

    path: str | None
    offset: int

    @classmethod
    def of(cls, output: str | None) -> _Words:
        path = output or "/proc/self/fd/2"
        try:
            status = Path(path).stat()
        except FileNotFoundError:
            return cls(path, 0)
        except OSError:
            return cls(None, 0)
        return cls(path if stat.S_ISREG(status.st_mode) else None, status.st_size)

    def alerts(self) -> list[str]:
        if self.path is None:
            return []
        try:
            with Path(self.path).open("rb") as file:
                file.seek(self.offset)
                said = file.read(_WORDS).decode("utf-8", "replace")
        except OSError:
            return []
        alerts = [m.text for m in parse_messages(said) if m.level == "alert"][:_ALERTS]
        return [without_content(alert) for alert in alerts]


def _judged(binary: str, config_file: str, timeout: float) -> list[str]:
    """Return HAProxy's alerts about the file, if its own output is not available."""
    try:
        text = Path(config_file).read_text("utf-8", "surrogateescape")
        alerts = validate(binary, text, timeout=timeout).alerts[:_ALERTS]
        return [without_content(alert.text) for alert in alerts]
    except (OSError, Unavailable):
        return []
