"""Start HAProxy without an init system, find it again, and end it on request.

HAProxy outlives us: it has its own session, none of our pipes, and its own reaper once we are
gone.  A process is only ever ended after it has said itself, on its master socket, that it is the
master that is meant.
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
"""HAProxy starts without what we have set for these."""

_children: set[int] = set()
"""Masters that this process started: while it lives, it alone can take note of their end."""


def running(master_socket: str, timeout: float = 5.0) -> Processes | None:
    """The HAProxy behind `master_socket`, so that it can be adopted; None if there is none.

    Nobody listens there either while a master replaces itself in a reload: as long as a process
    has this socket among its arguments, it is waited for.  Raises `Unavailable` if there is one
    that does not answer as a master within `timeout` seconds.
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
    """Start `haproxy -W -db -f CONFIG -S MASTER_SOCKET` and return its master's process id.

    It runs on when we end.  Returns once its master socket answers and its worker reports the
    configuration `expected_hash`; None is for a text of others, which it cannot report.  Its output
    goes to the file `output`, appended, or where ours goes.  The directories of the sockets must
    exist.

    Raises `Unavailable` if a HAProxy is there already, or if this one is not ready after `timeout`
    seconds or ends before that; then nothing of it is left, and its first alerts are in the
    message.
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
    """End the HAProxy with the master `master_pid`; True if it has ended within `timeout` seconds.

    `graceful` lets connections end first (SIGUSR1), else they are cut off (SIGTERM); Management
    Guide 4.  Nothing is ended that does not say on `master_socket` that it is `master_pid`: raises
    `Unavailable` then.
    """
    _reap()
    try:
        process = os.pidfd_open(master_pid)
    except ProcessLookupError:
        return True
    try:
        # Held before it is asked, so that the number cannot pass to another process meanwhile.
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
    """Our open files that a program started from here would get, but for the standard ones."""
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
    # watchdog opens inotify without close-on-exec: HAProxy would keep it.
    actions += [(os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable()]
    if output is not None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        actions += [
            (os.POSIX_SPAWN_OPEN, 1, str(Path(output).absolute()), flags, 0o640),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
    # `-C /`: relative paths in the configuration mean the same as when it was judged.
    # `-db`: a text with `daemon` would leave a master that is no child of ours.
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
    """True if a process was started with `-S master_socket`."""
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
    """None as soon as HAProxy serves `expected_hash`, else how it failed to, in words."""
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
    """End a master that we have started and not yet taken note of, with its workers."""
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
    """What HAProxy writes from now on, if that can be read: a file and where to begin in it."""

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
    """The alerts that HAProxy has against the file, where its own words went elsewhere."""
    try:
        text = Path(config_file).read_text("utf-8", "surrogateescape")
        alerts = validate(binary, text, timeout=timeout).alerts[:_ALERTS]
        return [without_content(alert.text) for alert in alerts]
    except (OSError, Unavailable):
        return []
