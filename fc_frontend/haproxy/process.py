"""Run another program to completion, with limits on time, memory, output and environment.

A program that hangs or floods its output must not affect fc-frontend, must not outlive it, and must
not see the secrets in its environment.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fc_frontend.errors import Problem, Unavailable

_CHUNK = 65536
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CONFINE = str(Path(__file__).with_name("confine.py"))
_GRACE = 10
"""Seconds after which a program ends by itself if fc-frontend has failed to end it."""
_NOT_STARTED = 127
"""The exit status of `confine` if it cannot start a program."""
_LOOK = 0.02
"""Interval in seconds at which the end of a silent program is checked.

A child of the program may hold its output open, so that there is no end of file.
"""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a program ended.

    `status` is the exit status, or the negative number of the signal that killed the program.  It
    is None if the program was killed after `timeout`.  `output` is its output, up to the limit.
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
    """Return the environment of programs whose output is parsed: `PATH`, and the C locale."""
    return {"PATH": os.environ.get("PATH", _PATH), "LC_ALL": "C.UTF-8"}


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    limit: int,
    memory: int = 0,
    stdout: bool = True,
    pass_fds: tuple[int, ...] = (),
) -> Finished:
    """Run `argv`; return how it ended and its output.

    It runs in its own process group, in `/`, with `minimal_environment`.  After `timeout` seconds
    the entire group is killed, and the program is killed when this process or thread ends
    (prctl(2), PR_SET_PDEATHSIG).  `memory` limits its allocations, in bytes; this also limits CPU
    time, and makes the kernel kill it first if memory runs out.  A program that starts other
    programs which keep running, as a reload command may, must not have these limits.  `limit`
    bounds the output, in bytes; the rest is read and discarded.  Standard error is always captured,
    standard output if `stdout`.  Raises `Unavailable` if it cannot be started.
    """
    started = time.monotonic()
    seconds = int(timeout) + _GRACE if memory else 0
    report, reported = os.pipe()
    try:
        words = map(str, (os.getpid(), reported, seconds, memory))
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", _CONFINE, *words, *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if stdout else subprocess.DEVNULL,
            stderr=subprocess.STDOUT if stdout else subprocess.PIPE,
            cwd="/",
            env=minimal_environment(),
            pass_fds=(*pass_fds, reported),
            start_new_session=True,
        )
    except OSError as error:
        os.close(report)
        raise Unavailable(cannot_start(argv[0], error)) from error
    finally:
        os.close(reported)
    pipe = process.stdout if stdout else process.stderr
    assert pipe is not None
    with pipe, os.fdopen(report, "rb", buffering=0) as failure:
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
        if status == _NOT_STARTED and (code := failure.read(16)):
            reason = OSError(int(code), os.strerror(int(code)))
            raise Unavailable(cannot_start(argv[0], reason)) from reason
    return Finished(status, _text(output), time.monotonic() - started)


def cannot_start(program: str, error: OSError) -> Problem:
    """Return the problem that `program` could not be started."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        remedy = "install it, or correct the path"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.ENOEXEC):
        remedy = "make it an executable file that this user may run"
    else:
        remedy = "look at the system's limits on processes and memory, then try again"
    return Problem(f"{program} cannot be started: {error.strerror}", remedy)


def _read(process: subprocess.Popen[bytes], fd: int, deadline: float, limit: int) -> bytes:
    """Read `fd` until its end or the end of the process; keep at most `limit` bytes."""
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
    # It has not been waited for, so its PID and process group ID cannot have been reused.
    if process.returncode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            process.kill()
        process.wait()


def _text(output: bytes) -> str:
    # HAProxy quotes the bytes of the configuration, which need not be UTF-8.
    return output.decode("utf-8", "replace")
