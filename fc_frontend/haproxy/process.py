"""Run another program to its end, within bounds of time, output and environment.

A program that hangs, floods us or leaves children behind must never take fc-frontend with it, and
never sees the secrets that may stand in our environment.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from fc_frontend.errors import Problem, Unavailable

_CHUNK = 65536
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LOOK = 0.02
"""How often the end of a silent program is looked for, in seconds: it may leave its output open
to a child of its own, which then gives no end of file."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a program ended.

    `status` is the exit status, negative the signal that killed it, None if it was killed because
    `timeout` had passed.  `output` is what it wrote, as much as was allowed.
    """

    status: int | None
    output: str
    duration: float
    """In seconds."""

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        if self.status is None:
            return f"did not end within {self.duration:.1f} s"
        if self.status >= 0:
            return f"ended with status {self.status}"
        try:
            name = signal.Signals(-self.status).name
        except ValueError:
            name = f"signal {-self.status}"
        return f"was killed by {name}"


def minimal_environment() -> dict[str, str]:
    """What a program gets from us: where programs are, and a language without surprises."""
    return {"PATH": os.environ.get("PATH", _PATH), "LANG": "C.UTF-8"}


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    limit: int,
    stdout: bool = True,
    pass_fds: tuple[int, ...] = (),
) -> Finished:
    """Run `argv` and return how it ended and what it said.

    It runs in its own process group, in `/`, with `minimal_environment`.  After `timeout` seconds
    the whole group is killed.  `limit` bounds the output, in bytes; the rest is read and dropped.
    Standard error is always kept, standard output if `stdout`.  Raises `Unavailable` if it cannot
    be started.
    """
    started = time.monotonic()
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if stdout else subprocess.DEVNULL,
            stderr=subprocess.STDOUT if stdout else subprocess.PIPE,
            cwd="/",
            env=minimal_environment(),
            pass_fds=pass_fds,
            start_new_session=True,
        )
    except OSError as error:
        raise Unavailable(cannot_start(argv[0], error)) from error
    pipe = process.stdout if stdout else process.stderr
    assert pipe is not None
    with pipe:
        try:
            output = _read(process, pipe.fileno(), started + timeout, limit)
            status = process.wait(timeout=max(0.0, started + timeout - time.monotonic()))
        except subprocess.TimeoutExpired as expired:
            _kill_group(process)
            kept = expired.output or b""
            return Finished(None, _text(kept), time.monotonic() - started)
        except BaseException:
            _kill_group(process)
            raise
    return Finished(status, _text(output), time.monotonic() - started)


def cannot_start(program: str, error: OSError) -> Problem:
    """The problem that `program` could not be started."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        remedy = "install it, or correct the path"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.ENOEXEC):
        remedy = "make it an executable file that this user may run"
    else:
        remedy = "look at the system's limits on processes and memory, then try again"
    return Problem(message=f"{program} cannot be started: {error.strerror}", remedy=remedy)


def _read(process: subprocess.Popen[bytes], fd: int, deadline: float, limit: int) -> bytes:
    """All that comes out of `fd` until its end or the process's, at most `limit` bytes kept."""
    os.set_blocking(fd, False)
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    kept = bytearray()
    while True:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise subprocess.TimeoutExpired(process.args, 0, output=bytes(kept))
        ended = process.poll() is not None
        if not ended:
            poller.poll(min(remaining, _LOOK) * 1000)
        try:
            chunk = os.read(fd, _CHUNK)
        except BlockingIOError:
            if ended:
                return bytes(kept)
            continue
        if not chunk:
            return bytes(kept)
        kept += chunk[: limit - len(kept)]


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    # Not yet waited for, so its number still belongs to it, and to its group.
    if process.returncode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            process.kill()
        process.wait()


def _text(output: bytes) -> str:
    # HAProxy quotes the configuration's bytes, which need not be UTF-8.
    return output.decode("utf-8", "replace")
