"""Questions to cluster DNS, and answers that can be believed.

dnspython makes the queries and reads the answers.  A sweep asks the same questions every second, so
queries are made once, and plain answers of address records are compared by their bytes before
anything is read again.  The client never raises for what DNS does: a failure is an outcome, and
never looks like an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import ip_address
from typing import Literal

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rdtypes.IN.SRV
import dns.rrset

from fc_frontend.plan.model import Nameserver, Transport

RecordType = Literal["A", "AAAA", "SRV"]

EDNS_PAYLOAD = 8192
"""Bytes that a nameserver may send over UDP (RFC 6891, 6.2.3)."""
_CONCURRENT = 64
_MOST_HOPS = 8
_MOST_QUESTIONS = 32768
_TCP_PATIENCE = 2
"""Times `timeout` that TCP may take, as it needs a connection first."""
_PREFER_FOR = 30.0
_RECEIVE_BUFFER = 1 << 20
_FULL = 48 * 1024
"""Bytes of a truncated answer over TCP that can only be for want of room (RFC 1035, 4.2.2)."""
_IN = b"\x00\x01"
_NONE = b"\x00\x00"
_ONE = b"\x00\x01"
_OPT = b"\x00\x00\x29"
_POINTER_TO_QUESTION = b"\xc0\x0c"
_LENGTHS = {"A": 4, "AAAA": 16}
_CODES_WITHOUT_QUESTION = (
    dns.rcode.FORMERR,
    dns.rcode.SERVFAIL,
    dns.rcode.NOTIMP,
    dns.rcode.REFUSED,
)
"""What servers may send without repeating the question (dnspython's `is_response`)."""


class Outcome(StrEnum):
    """What kind of answer it was."""

    ANSWER = "answer"
    PARTIAL = "partial"
    """More records than an answer can carry, over TCP too: those that it brought are there."""
    EMPTY = "empty"
    """The name exists, without records of this type (RFC 2308, NODATA)."""
    NXDOMAIN = "nxdomain"
    FAILURE = "failure"
    """No nameserver gave a usable answer."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question to one nameserver; `duration` in seconds."""

    nameserver: str
    transport: str
    rcode: str
    duration: float


@dataclass(frozen=True, slots=True, order=True)
class ServiceRecord:
    """An SRV record (RFC 2782) with the addresses that the answer brought for its target."""

    target: str
    port: int
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.  `addresses` and `services` are sorted and free of duplicates."""

    name: str
    rdtype: RecordType
    outcome: Outcome
    addresses: tuple[str, ...] = ()
    services: tuple[ServiceRecord, ...] = ()
    detail: str = ""


@dataclass(slots=True)
class _Question:
    """A question as it goes over the wire, without its id, and the last plain answer to it."""

    name: str
    rdtype: RecordType
    wire: bytes
    section: bytes
    records: tuple[bytes, ...] | None = None
    reply: Reply | None = None


class DnsClient:
    """Asks nameservers in their order, and stays with one that answers while the first does not."""

    def __init__(
        self,
        nameservers: Sequence[Nameserver],
        *,
        timeout: float = 1.0,
        tries: int = 2,
        observe: Callable[[Exchange], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`timeout` is for each try, in seconds; `observe` is told of each exchange."""
        self._nameservers = tuple(nameservers)
        self._timeout = timeout
        self._tries = tries
        self._observe = observe or (lambda _exchange: None)
        self._clock = clock
        self._preferred = 0
        self._preferred_until = 0.0
        self._closings = 0
        self._channels: dict[Nameserver, _Channel] = {}
        self._questions: dict[tuple[str, str], _Question] = {}
        self._slots = asyncio.Semaphore(_CONCURRENT)

    async def ask(self, name: str, rdtype: RecordType) -> Reply:
        """The answer to a question; CNAMEs are followed (RFC 1034, 3.6.2)."""
        alias = name
        closings = self._closings
        for _hop in range(_MOST_HOPS):
            async with self._slots:
                reply, target = await self._ask_all(self._question(alias, rdtype), closings)
            if target is None:
                return reply if alias == name else replace(reply, name=name)
            alias = target
        return Reply(name, rdtype, Outcome.FAILURE, detail="a chain of CNAMEs does not end")

    def close(self) -> None:
        """Close all sockets; questions under way fail.  The client may be used again."""
        self._closings += 1
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()

    def _question(self, name: str, rdtype: RecordType) -> _Question:
        key = (name, rdtype)
        if key not in self._questions:
            if len(self._questions) >= _MOST_QUESTIONS:
                # Targets of CNAME and SRV records come and go.
                self._questions.clear()
            query = dns.message.make_query(
                dns.name.from_text(name), rdtype, use_edns=0, payload=EDNS_PAYLOAD
            )
            wire = query.to_wire()
            length = len(query.question[0].name.to_wire() or b"") + 4
            self._questions[key] = _Question(name, rdtype, wire[2:], wire[12 : 12 + length])
        return self._questions[key]

    def _order(self) -> list[Nameserver]:
        first = self._preferred if self._clock() < self._preferred_until else 0
        return [*self._nameservers[first:], *self._nameservers[:first]]

    async def _ask_all(self, question: _Question, closings: int) -> tuple[Reply, str | None]:
        """The first usable answer, and the name to ask next if it ends in an open CNAME.

        A question from before the client was closed opens no socket again: nobody would close it.
        """
        failures: list[str] = []
        for _round in range(self._tries):
            for nameserver in self._order():
                if closings != self._closings:
                    failures.append("the client was closed")
                    break
                result = await self._ask_one(nameserver, question)
                if not isinstance(result, str):
                    self._prefer(nameserver)
                    return result
                failures.append(f"{nameserver}: {result}")
        said = "; ".join(dict.fromkeys(failures)) or "no nameserver is known"
        return Reply(question.name, question.rdtype, Outcome.FAILURE, detail=said), None

    def _prefer(self, nameserver: Nameserver) -> None:
        index = self._nameservers.index(nameserver)
        if index != self._preferred or self._clock() >= self._preferred_until:
            self._preferred = index
            self._preferred_until = self._clock() + _PREFER_FOR

    async def _ask_one(
        self, nameserver: Nameserver, question: _Question
    ) -> tuple[Reply, str | None] | str:
        """An answer, or in words why there is none."""
        if Transport.UDP in nameserver.transports:
            said = await self._by_udp(nameserver, question)
            if said != "truncated":
                return said
            if Transport.TCP not in nameserver.transports:
                return "truncated, and TCP is not allowed"
        return await self._by_tcp(nameserver, question)

    async def _by_udp(
        self, nameserver: Nameserver, question: _Question
    ) -> tuple[Reply, str | None] | str:
        started = self._clock()
        try:
            wire = await self._channel(nameserver).exchange(question, self._timeout)
        except TimeoutError:
            return self._failed(nameserver, "udp", "timeout", started)
        except OSError as exc:
            return self._failed(nameserver, "udp", "unreachable", started, exc.strerror or str(exc))
        if wire[2] & 0x02:
            self._tell(nameserver, "udp", "truncated", started)
            return "truncated"
        return self._read(nameserver, "udp", question, wire, started)

    def _channel(self, nameserver: Nameserver) -> _Channel:
        channel = self._channels.get(nameserver)
        if channel is None or channel.closed:
            channel = self._channels[nameserver] = _Channel(nameserver)
        return channel

    async def _by_tcp(
        self, nameserver: Nameserver, question: _Question
    ) -> tuple[Reply, str | None] | str:
        started = self._clock()
        query = dns.message.from_wire(secrets.token_bytes(2) + question.wire)
        try:
            response = await dns.asyncquery.tcp(
                query, str(nameserver.address), self._timeout * _TCP_PATIENCE, nameserver.port
            )
        except (dns.exception.Timeout, TimeoutError):
            return self._failed(nameserver, "tcp", "timeout", started)
        except (dns.exception.DNSException, ValueError) as exc:
            return self._failed(nameserver, "tcp", "malformed", started, type(exc).__name__)
        except (OSError, EOFError) as exc:
            said = getattr(exc, "strerror", None) or "the connection was closed"
            return self._failed(nameserver, "tcp", "unreachable", started, said)
        return self._judge(nameserver, "tcp", question, response, started)

    def _read(
        self,
        nameserver: Nameserver,
        transport: str,
        question: _Question,
        wire: bytes,
        started: float,
    ) -> tuple[Reply, str | None] | str:
        records = plain_records(wire, len(question.section), question.rdtype)
        if records is not None and records == question.records and question.reply is not None:
            self._tell(nameserver, transport, "NOERROR", started)
            return question.reply, None
        try:
            response = dns.message.from_wire(wire, ignore_trailing=True)
        except (dns.exception.DNSException, ValueError) as exc:
            return self._failed(nameserver, transport, "malformed", started, type(exc).__name__)
        result = self._judge(nameserver, transport, question, response, started)
        if not isinstance(result, str):
            question.records, question.reply = records, result[0]
        return result

    def _judge(
        self,
        nameserver: Nameserver,
        transport: str,
        question: _Question,
        response: dns.message.Message,
        started: float,
    ) -> tuple[Reply, str | None] | str:
        if not isinstance(response, dns.message.QueryMessage):
            said = "not an answer to a query"
            return self._failed(nameserver, transport, "malformed", started, said)
        rcode = response.rcode()
        if rcode not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            return self._failed(nameserver, transport, dns.rcode.to_text(rcode), started)
        is_cut = bool(response.flags & dns.flags.TC)
        if is_cut and len(response.wire or b"") < _FULL:
            # Over TCP, as UDP was left for it before: there is nowhere else to ask for the rest.
            return self._failed(nameserver, transport, "truncated", started)
        try:
            result = _reply(question, response)
        except (dns.exception.DNSException, ValueError) as exc:
            return self._failed(nameserver, transport, "malformed", started, type(exc).__name__)
        if is_cut and result[0].outcome is not Outcome.ANSWER:
            return self._failed(nameserver, transport, "truncated", started)
        self._tell(nameserver, transport, dns.rcode.to_text(rcode), started)
        return (replace(result[0], outcome=Outcome.PARTIAL), None) if is_cut else result

    def _failed(
        self, nameserver: Nameserver, transport: str, rcode: str, started: float, detail: str = ""
    ) -> str:
        self._tell(nameserver, transport, rcode, started)
        if rcode == "timeout":
            seconds = self._timeout * (_TCP_PATIENCE if transport == "tcp" else 1)
            return f"no answer within {seconds:g} s"
        return f"{rcode}: {detail}" if detail else rcode

    def _tell(self, nameserver: Nameserver, transport: str, rcode: str, started: float) -> None:
        host = f"[{nameserver.address}]" if nameserver.address.version == 6 else nameserver.address
        name = f"{host}:{nameserver.port}"
        self._observe(Exchange(name, transport, rcode, self._clock() - started))


def plain_records(wire: bytes, section: int, rdtype: RecordType) -> tuple[bytes, ...] | None:
    """The sorted data of an answer that has address records of the question's own name and no more.

    `section` is the length of the question section in bytes.  None for anything out of the
    ordinary (an error, CNAME, SRV, more sections, other compression, a cut record), which
    dnspython has to read.
    """
    length = _LENGTHS.get(rdtype)
    if length is None or not _begins_plainly(wire):
        return None
    count = int.from_bytes(wire[6:8], "big")
    head = _POINTER_TO_QUESTION + (b"\x00\x01" if rdtype == "A" else b"\x00\x1c") + _IN
    size = b"\x00\x04" if rdtype == "A" else b"\x00\x10"
    at, step = 12 + section, 12 + length
    if count == 0 or not _ends_plainly(wire, at + count * step):
        return None
    records = []
    for start in range(at, at + count * step, step):
        if wire[start : start + 6] != head or wire[start + 10 : start + 12] != size:
            return None
        records.append(wire[start + 12 : start + step])
    records.sort()
    return tuple(records)


def _begins_plainly(wire: bytes) -> bool:
    """True for a whole answer to a query, without error, with a question and no authority."""
    return (
        len(wire) >= 12
        and wire[2] & 0xFA == 0x80
        and not wire[3] & 0x0F
        and wire[4:6] == _ONE
        and wire[8:10] == _NONE
    )


def _ends_plainly(wire: bytes, at: int) -> bool:
    """True if nothing follows but an OPT record without error and options (RFC 6891, 6.1.2)."""
    if wire[10:12] == _NONE:
        return len(wire) >= at
    return (
        wire[10:12] == _ONE
        and len(wire) >= at + 11
        and wire[at : at + 3] == _OPT
        and wire[at + 5] == 0
        and wire[at + 9 : at + 11] == _NONE
    )


def _reply(question: _Question, response: dns.message.QueryMessage) -> tuple[Reply, str | None]:
    name, rdtype = question.name, question.rdtype
    if response.rcode() == dns.rcode.NXDOMAIN and not response.answer:
        return Reply(name, rdtype, Outcome.NXDOMAIN, detail="NXDOMAIN"), None
    chain = response.resolve_chaining()
    if chain.answer is None:
        target = chain.canonical_name.to_text(omit_final_dot=True)
        if response.rcode() == dns.rcode.NXDOMAIN:
            return Reply(name, rdtype, Outcome.NXDOMAIN, detail="NXDOMAIN"), None
        if chain.cnames:
            return Reply(name, rdtype, Outcome.EMPTY), target
        return Reply(name, rdtype, Outcome.EMPTY, detail="no records"), None
    if rdtype != "SRV":
        return Reply(name, rdtype, Outcome.ANSWER, _addresses(chain.answer)), None
    brought: dict[dns.name.Name, set[str]] = {}
    for rrset in response.additional:
        if rrset.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA):
            brought.setdefault(rrset.name, set()).update(_addresses(rrset))
    services = {
        ServiceRecord(
            record.target.to_text(omit_final_dot=True).lower(),
            record.port,
            tuple(sorted(brought.get(record.target, ()))),
        )
        for record in chain.answer
        if isinstance(record, dns.rdtypes.IN.SRV.SRV)
        and record.target != dns.name.root
        and record.port
    }
    outcome = Outcome.ANSWER if services else Outcome.EMPTY
    return Reply(name, rdtype, outcome, services=tuple(sorted(services))), None


def _addresses(rrset: dns.rrset.RRset) -> tuple[str, ...]:
    return tuple(sorted({str(ip_address(record.address)) for record in rrset}))


class _Channel:
    """One connected UDP socket: the kernel drops what another address sends.

    An answer counts if its id belongs to a question under way and it repeats that question, which
    errors need not do; all else is ignored, so that a forger gains nothing by being first (RFC
    5452, 9).  The socket is read until it is empty: a sweep's answers come in bursts, and a turn of
    the event loop for each costs as much as all else.
    """

    def __init__(self, nameserver: Nameserver) -> None:
        """Raises OSError."""
        self._loop = asyncio.get_running_loop()
        self._pending: dict[int, tuple[_Question, asyncio.Future[bytes]]] = {}
        self.closed = False
        family = socket.AF_INET6 if nameserver.address.version == 6 else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            self._socket.connect((str(nameserver.address), nameserver.port))
            self._loop.add_reader(self._socket.fileno(), self._readable)
        except BaseException:
            self._socket.close()
            raise

    async def exchange(self, question: _Question, seconds: float) -> bytes:
        """The answer to `question`.  Raises TimeoutError, and OSError if it cannot be sent."""
        if self.closed:
            raise OSError("the socket is closed")
        number = secrets.randbits(16)
        while number in self._pending:
            number = secrets.randbits(16)
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._pending[number] = question, future
        timer = self._loop.call_later(seconds, _expire, future)
        try:
            # A full send buffer loses the question, as the network might: the time limit covers it.
            with contextlib.suppress(BlockingIOError):
                self._socket.send(number.to_bytes(2, "big") + question.wire)
            return await future
        finally:
            timer.cancel()
            self._pending.pop(number, None)

    def close(self) -> None:
        """Close the socket; questions under way fail."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._fail(OSError("the socket was closed"))

    def _readable(self) -> None:
        while not self.closed:
            try:
                data = self._socket.recv(65535)
            except BlockingIOError:
                return
            except OSError as exc:
                # What ICMP said of an earlier question, such as a closed port.
                self._fail(exc)
                return
            self._take(data)

    def _take(self, data: bytes) -> None:
        if len(data) < 12 or not data[2] & 0x80:
            return
        question, future = self._pending.get(int.from_bytes(data[:2], "big"), (None, None))
        if question is None or future is None or future.done():
            return
        end = 12 + len(question.section)
        repeated = data[4:6] == _ONE and data[12:end].lower() == question.section.lower()
        if repeated or (data[4:6] == _NONE and data[3] & 0x0F in _CODES_WITHOUT_QUESTION):
            future.set_result(data)

    def _fail(self, exc: Exception) -> None:
        for _question, future in self._pending.values():
            if not future.done():
                future.set_exception(exc)


def _expire(future: asyncio.Future[bytes]) -> None:
    if not future.done():
        with contextlib.suppress(asyncio.InvalidStateError):
            future.set_exception(TimeoutError())
