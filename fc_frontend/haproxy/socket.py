"""Send one command to HAProxy over one of its UNIX sockets.

Each command uses a new connection: a session that remains open would stay with the old worker after
a reload, and keep it alive (Management Guide 9.3).  A peer that hangs, floods or is not HAProxy
costs at most the given time and memory.
"""

from __future__ import annotations

import errno
import socket
import time

from fc_frontend.errors import Cause, Refused, Unavailable

ANSWER_LIMIT = 32 * 1024 * 1024
"""In bytes; the state of 15,000 servers takes 2 MB."""

_PAUSE = 0.005
_GONE = (errno.ENOENT, errno.ECONNREFUSED)


class NoListener(Unavailable):
    """Nobody listens on the socket: it is missing, or left over from a HAProxy that ended."""


class NoAnswer(Unavailable):
    """There is a listener, but no complete answer.  The command may have been executed."""


def ask(
    path: str,
    command: str,
    timeout: float,
    *,
    limit: int = ANSWER_LIMIT,
    patience: float = 0.0,
    payload: str = "",
) -> str:
    """Send `command`, with its `payload` of lines, to the UNIX socket `path`; return the answer.

    `timeout` bounds the whole call, in seconds; for `patience` seconds of it, a missing or refusing
    socket is retried, as HAProxy's are while it reloads.  `limit` bounds the answer, in bytes.  The
    writing side is closed after the command, because the master socket does not close by itself.

    Raises `NoListener`, `NoAnswer`, or a plain `Unavailable` if permission is lacking; and
    `Refused` for a command of more than one line, or a payload with a blank line.
    """
    if any(character in command for character in "\n\r\0"):
        raise Refused.of(
            f"not one command for HAProxy: {command[:80]!r}", "leave line feeds and NUL out of it"
        )
    if payload:
        if any(not line or "\r" in line or "\0" in line for line in payload.split("\n")):
            raise Refused.of("not a payload for HAProxy", "leave blank lines, CR and NUL out of it")
        # An empty line ends the payload (Management Guide 9.3).
        command = f"{command} <<\n{payload}\n"
    started = time.monotonic()
    deadline = started + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        _connect(connection, path, deadline, min(deadline, started + patience))
        try:
            answer = _exchange(
                connection, command.encode("utf-8", "surrogateescape"), deadline, limit
            )
        except TimeoutError:
            raise NoAnswer.of(
                f"no complete answer from {path} within {timeout:g} s",
                "see whether HAProxy is overloaded or stopped (`ps`, its log)",
            ) from None
        except OSError as error:
            raise NoAnswer.of(
                f"{path} broke off its answer: {error.strerror or error}",
                "try again: HAProxy may be reloading or ending",
            ) from error
    return answer


def _connect(connection: socket.socket, path: str, deadline: float, patient_until: float) -> None:
    while True:
        try:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            connection.connect(path)
        except OSError as error:
            now = time.monotonic()
            # EAGAIN: the queue of pending connections is full, which is temporary.
            until = deadline if error.errno == errno.EAGAIN else patient_until
            if error.errno in (*_GONE, errno.EAGAIN) and now < until:
                time.sleep(min(_PAUSE, until - now))
                continue
            raise _unreachable(path, error) from error
        return


def _exchange(connection: socket.socket, command: bytes, deadline: float, limit: int) -> str:
    connection.settimeout(max(0.001, deadline - time.monotonic()))
    connection.sendall(command + b"\n")
    connection.shutdown(socket.SHUT_WR)
    answer = bytearray()
    while True:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        connection.settimeout(remaining)
        chunk = connection.recv(65536)
        if not chunk:
            return answer.decode("utf-8", "replace")
        answer += chunk
        if len(answer) > limit:
            raise OSError(errno.EMSGSIZE, f"it is longer than {limit} bytes")


def _unreachable(path: str, error: OSError) -> Unavailable:
    reason = error.strerror or str(error)
    message = f"HAProxy's socket {path} cannot be reached: {reason}"
    if error.errno in _GONE:
        remedy = (
            "start HAProxy, or fc-frontend where that supervises it; HAProxy's unit needs `-S` for "
            "the master socket, its configuration `stats socket` for the runtime socket"
        )
        return NoListener.of(message, remedy, cause=Cause.NOT_LISTENING)
    if error.errno in (errno.EACCES, errno.EPERM):
        remedy = "run as root or as a member of the group that may use the socket"
        return Unavailable.of(message, remedy, cause=Cause.FORBIDDEN)
    if error.errno in (errno.EAGAIN, errno.ETIMEDOUT) or isinstance(error, TimeoutError):
        remedy = "see whether HAProxy is overloaded or stopped (`ps`, its log)"
        return NoAnswer.of(message, remedy)
    return Unavailable.of(message, "check that the path is HAProxy's unix socket")
