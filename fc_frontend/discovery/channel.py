"""A UDP socket to one nameserver, for single queries and for thousands at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import dns.rcode

from fc_frontend.discovery.scan import NONE, ONE, AnswerFingerprint, fingerprint
from fc_frontend.plan.model import Nameserver

_RECEIVE_BUFFER = 1 << 20
_LARGEST = 65535
_CODES_WITHOUT_QUESTION = (
    dns.rcode.FORMERR,
    dns.rcode.SERVFAIL,
    dns.rcode.NOTIMP,
    dns.rcode.REFUSED,
)
"""Response codes that may be sent without the question (dnspython's `is_response`)."""
_WINDOW = 96
"""Queries in flight at once: a nameserver's receive buffer has room for some 150."""
_IN_ONE_GO = 256
"""The number of datagrams read before the event loop continues."""
_OVERHEAD = 1500
"""The maximum overhead of a datagram in a receive buffer, in bytes."""
_SILENCE = 0.2
"""Seconds without any answer after which the queries in flight are sent once more."""
_TIMES_FASTEST = 4
"""The allowed multiple of the fastest answer's duration, besides the time for a second attempt."""
_LONGEST_BURST = 1.0
"""The maximum duration of a comparison in seconds, plus an allowance for its number of queries."""
_SLOWEST_RATE = 1000
"""Queries per second."""


@dataclass(slots=True, eq=False)
class Question:
    """A query in wire format, without its ID, and the last plain answer to it."""

    name: str
    rdtype: str
    wire: bytes
    section: bytes
    fingerprint: AnswerFingerprint | None = None
    last: bytes = b""
    """The last plain answer, without its ID."""


@dataclass(frozen=True, slots=True)
class Compared:
    """The questions whose answers are unchanged, and the durations in seconds by response code."""

    same: set[Question] = field(default_factory=set)
    durations: dict[str, list[float]] = field(default_factory=dict)


class Channel:
    """A connected UDP socket: the kernel drops datagrams from other addresses.

    An answer is accepted if its ID is that of a query in flight and it repeats the question, which
    is optional for errors; anything else is ignored, so a forger gains nothing by being first (RFC
    5452, 9).  The socket is read until it is empty: a sweep's answers arrive in bursts, and an
    iteration of the event loop for each costs as much as all other work.
    """

    def __init__(self, nameserver: Nameserver) -> None:
        """Raises OSError."""
        self._loop = asyncio.get_running_loop()
        self._pending: dict[bytes, tuple[Question, asyncio.Future[bytes]]] = {}
        self._burst: _Burst | None = None
        self.closed = False
        family = socket.AF_INET6 if nameserver.address.version == 6 else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            room = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            self._socket.connect((str(nameserver.address), nameserver.port))
            self._loop.add_reader(self._socket.fileno(), self._readable)
        except BaseException:
            self._socket.close()
            raise
        self._room = room

    async def exchange(self, question: Question, seconds: float) -> bytes:
        """Return the answer to `question`.

        Raises TimeoutError, and OSError if it cannot be sent.
        """
        if self.closed:
            raise OSError("the socket is closed")
        number = self.free(secrets.token_bytes(2))
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._pending[number] = question, future
        timer = self._loop.call_later(seconds, _expire, future)
        try:
            # A full send buffer drops the query, as the network might: the timeout covers it.
            with contextlib.suppress(BlockingIOError):
                self._socket.send(number + question.wire)
            return await future
        finally:
            timer.cancel()
            self._pending.pop(number, None)

    async def compare(self, questions: Sequence[Question], seconds: float) -> Compared:
        """Send many questions that had plain answers before, and find those with the same answer.

        An answer that differs or is late is left to `exchange`.  An answer is late if it arrives
        after a silence much longer than the fastest answer took, and of `seconds` at most.
        Only one such comparison runs at a time; a further one compares nothing.
        """
        if self.closed or self._burst is not None or not questions:
            return Compared()
        burst = self._burst = _Burst(self, questions, self._room)
        try:
            burst.fill()
            silent_since = time.monotonic()
            deadline = silent_since + _LONGEST_BURST + len(questions) / _SLOWEST_RATE
            while not burst.ended.done():
                await asyncio.wait([burst.ended], timeout=_SILENCE)
                now = time.monotonic()
                silent_since = max(silent_since, burst.heard)
                if now - silent_since >= burst.patience(seconds) or now >= deadline:
                    break
                if not burst.ended.done() and now - silent_since >= _SILENCE:
                    burst.repeat()
        finally:
            self._burst = None
        return burst.compared()

    def send(self, number: bytes, question: Question) -> None:
        """Send a question once.

        A datagram for which the system has no room is lost, as on the network.
        """
        with contextlib.suppress(BlockingIOError):
            self._socket.send(number + question.wire)

    def free(self, number: bytes) -> bytes:
        """Return `number`, or another one if a query in flight has it."""
        while number in self._pending or (self._burst and number in self._burst.flight):
            number = secrets.token_bytes(2)
        return number

    def close(self) -> None:
        """Close the socket; queries in flight fail."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._fail(OSError("the socket was closed"))

    def _readable(self) -> None:
        receive, burst = self._socket.recv, self._burst
        for _ in range(_IN_ONE_GO):
            if self.closed:
                return
            try:
                data = receive(_LARGEST)
            except BlockingIOError:
                return
            except OSError as exc:
                # An ICMP error for an earlier query, such as a closed port.
                self._fail(exc)
                return
            if burst is None or not burst.take(data):
                self._take(data)

    def _take(self, data: bytes) -> None:
        question, future = self._pending.get(data[:2], (None, None))
        if question is None or future is None or future.done():
            return
        if answers(question, data):
            future.set_result(data)

    def _fail(self, exc: Exception) -> None:
        if self._burst is not None:
            self._burst.end()
        for _question, future in self._pending.values():
            if not future.done():
                future.set_exception(exc)


class _Burst:
    """Many queries in flight: as many at once as the buffers have room for."""

    def __init__(self, channel: Channel, questions: Sequence[Question], room: int) -> None:
        self._channel = channel
        self._todo = list(questions)
        self._numbers = os.urandom(2 * len(questions))
        self._room = room // 2
        self.flight: dict[bytes, tuple[Question, float]] = {}
        self._same: set[Question] = set()
        self._durations: list[list[float]] = [[] for _ in range(16)]
        self.heard = 0.0
        """When the last answer arrived, on the monotonic clock."""
        self._fastest = float("inf")
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fill(self) -> None:
        """Send questions while there is room."""
        todo, flight, channel = self._todo, self.flight, self._channel
        while todo and len(flight) < _WINDOW:
            size = len(todo[-1].last) + _OVERHEAD
            if size > self._room and flight:
                return
            question = todo.pop()
            number = channel.free(self._numbers[2 * len(todo) : 2 * len(todo) + 2])
            self._room -= size
            flight[number] = question, time.monotonic()
            try:
                channel.send(number, question)
            except OSError:
                self.end()
                return
        if not flight:
            self.end()

    def take(self, data: bytes) -> bool:
        """Process an answer; return False if it belongs to none of these questions."""
        question, sent = self.flight.get(data[:2], (None, 0.0))
        if question is None:
            return False
        end = 12 + len(question.section)
        is_same = data[2:] == question.last
        if not is_same and data[12:end] == question.section:
            found = fingerprint(data, end - 12, question.rdtype)
            is_same = found is not None and found == question.fingerprint
        if not is_same and not answers(question, data):
            return True
        self.heard = time.monotonic()
        if is_same:
            self._same.add(question)
        self._fastest = min(self._fastest, self.heard - sent)
        self._durations[data[3] & 0x0F].append(self.heard - sent)
        del self.flight[data[:2]]
        self._room += len(question.last) + _OVERHEAD
        self.fill()
        return True

    def patience(self, most: float) -> float:
        """Return the seconds of silence that end the burst, `most` without any answer."""
        return min(most, 2 * _SILENCE + _TIMES_FASTEST * self._fastest)

    def compared(self) -> Compared:
        """Return the results so far."""
        durations = {
            dns.rcode.to_text(dns.rcode.Rcode.make(code)): found
            for code, found in enumerate(self._durations)
            if found
        }
        return Compared(self._same, durations)

    def repeat(self) -> None:
        """Send the queries in flight once more: a datagram may have been lost."""
        for number, (question, _) in self.flight.items():
            try:
                self._channel.send(number, question)
            except OSError:
                self.end()
                return

    def end(self) -> None:
        """End the burst; unanswered questions are asked by other means."""
        if not self.ended.done():
            self.ended.set_result(None)


def answers(question: Question, data: bytes) -> bool:
    """Return whether this is an answer to the question, or an error without a question."""
    if len(data) < 12 or not data[2] & 0x80:
        return False
    end = 12 + len(question.section)
    if data[4:6] == ONE:
        return data[12:end].lower() == question.section.lower()
    return data[4:6] == NONE and data[3] & 0x0F in _CODES_WITHOUT_QUESTION


def _expire(future: asyncio.Future[bytes]) -> None:
    if not future.done():
        with contextlib.suppress(asyncio.InvalidStateError):
            future.set_exception(TimeoutError())
