"""A DNS client for cluster DNS that validates answers.

dnspython builds the queries, and parses answers that are not plain.  A sweep repeats the same
queries every second, so queries are built once, and plain answers are compared as bytes
before they are parsed again.  Failures of DNS never raise: a failure is an outcome,
and distinct from any answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from ipaddress import ip_address

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.SOA
import dns.rdtypes.IN.SRV
import dns.rrset

from fc_frontend.discovery.channel import Channel, Question, answers
from fc_frontend.discovery.scan import RecordType, fingerprint
from fc_frontend.errors import Cause
from fc_frontend.plan.model import Nameserver, Transport

EDNS_PAYLOAD = 8192
"""The number of bytes that a nameserver may send over UDP (RFC 6891, 6.2.3)."""
_CONCURRENT = 64
_MOST_HOPS = 8
MAX_QUESTIONS = 32768
_TCP_PATIENCE = 2
"""The timeout of TCP as a multiple of `timeout`, as it needs a connection first."""
_PREFER_FOR = 30.0
_CODES = {0: "NOERROR", 3: "NXDOMAIN"}
"""The response codes of plain answers."""
_LARGE = 4096
"""Larger answers, in bytes, are parsed outside of the event loop."""
_FULL = 48 * 1024
"""A truncated answer over TCP of at least this size was cut for lack of room (RFC 1035, 4.2.2)."""


class ReplyOutcome(StrEnum):
    """The outcome of a query."""

    ANSWER = "answer"
    PARTIAL = "partial"
    """More records than an answer can carry, even over TCP: the reply contains those received."""
    EMPTY = "empty"
    """The name exists, without records of this type (RFC 2308, NODATA)."""
    NXDOMAIN = "nxdomain"
    FAILURE = "failure"
    """No nameserver returned a usable answer."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """Queries to one nameserver with the same result, and the duration of each, in seconds."""

    nameserver: str
    transport: str
    rcode: str
    durations: tuple[float, ...]


@dataclass(frozen=True, slots=True, order=True)
class ServiceRecord:
    """An SRV record (RFC 2782) with the addresses of its target in the same answer."""

    target: str
    port: int
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply.  `addresses` and `services` are sorted and free of duplicates."""

    name: str
    rdtype: RecordType
    outcome: ReplyOutcome
    addresses: tuple[str, ...] = ()
    services: tuple[ServiceRecord, ...] = ()
    detail: str = ""
    cause: Cause | None = None
    """The cause of a failure, if there is a remedy other than to wait."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """The failure of one nameserver to return a usable answer."""

    detail: str
    cause: Cause | None = None


_TRUNCATED = _Failure("truncated, and TCP is not allowed", Cause.UNUSABLE_ANSWER)
"""Over UDP: TCP follows if it is allowed."""
_CAUSES = {
    "SERVFAIL": Cause.SERVFAIL,
    "REFUSED": Cause.REFUSED,
    "truncated": Cause.UNUSABLE_ANSWER,
    "malformed": Cause.UNUSABLE_ANSWER,
}
"""By response code, or its equivalent in metrics; the first one applies if nameservers differ."""


@dataclass(slots=True, eq=False)
class _Asked(Question):
    """A question, and the reply of its last plain answer."""

    rdtype: RecordType
    reply: Reply | None = None


class DnsClient:
    """Queries nameservers in order, and keeps to one that responds while the first does not."""

    def __init__(
        self,
        nameservers: Sequence[Nameserver],
        *,
        timeout: float = 1.0,
        tries: int = 2,
        observe: Callable[[Exchange], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`timeout` applies to each try, in seconds; `observe` is called with each exchange."""
        self._nameservers = tuple(nameservers)
        self._timeout = timeout
        self._tries = tries
        self._observe = observe or (lambda _exchange: None)
        self._clock = clock
        self._preferred = 0
        self._preferred_until = 0.0
        self._closings = 0
        self._parsing = asyncio.Lock()
        self._slots = asyncio.Semaphore(_CONCURRENT)
        self._channels: dict[Nameserver, Channel] = {}
        self._questions: dict[tuple[str, str], _Asked] = {}

    async def ask(self, name: str, rdtype: RecordType) -> Reply:
        """Return the reply to a query; CNAMEs are followed (RFC 1034, 3.6.2)."""
        alias = name
        closings = self._closings
        for _hop in range(_MOST_HOPS):
            async with self._slots:
                reply, target = await self._ask_all(self._question(alias, rdtype), closings)
            if target is None:
                return reply if alias == name else replace(reply, name=name)
            alias = target
        return Reply(name, rdtype, ReplyOutcome.FAILURE, detail="a chain of CNAMEs does not end")

    def source(self, name: str, rdtype: RecordType, reply: Reply) -> Question | None:
        """Return the question whose plain answer resulted in this reply; None if there is none."""
        asked = self._questions.get((name, rdtype))
        return asked if asked is not None and asked.reply is reply and asked.fingerprint else None

    async def compare(self, questions: Sequence[Question]) -> set[Question]:
        """Return those of many questions whose answers are unchanged, at low cost.

        The others are left to `ask`, which also queries other nameservers.
        """
        nameserver = self.preferred
        if nameserver is None or Transport.UDP not in nameserver.transports:
            return set()
        try:
            compared = await self._channel(nameserver).compare(questions, self._timeout)
        except OSError:
            return set()
        for rcode, durations in compared.durations.items():
            self._observe(Exchange(_label(nameserver), "udp", rcode, tuple(durations)))
        if compared.same:
            self._prefer(nameserver)
        return compared.same

    @property
    def preferred(self) -> Nameserver | None:
        """The nameserver that is queried first."""
        return self._order()[0] if self._nameservers else None

    async def serial(self, zone: str) -> int | None:
        """Return the serial in a zone's SOA record (RFC 1035, 3.3.13); None if one try fails."""
        nameserver = self.preferred
        if nameserver is None or Transport.UDP not in nameserver.transports:
            return None
        name, wire, section = _query(zone, "SOA")
        started = self._clock()
        try:
            answer = await self._channel(nameserver).exchange(
                Question(zone, "SOA", wire, section), self._timeout
            )
            response = dns.message.from_wire(answer, ignore_trailing=True)
        except TimeoutError:
            self._tell(nameserver, "udp", "timeout", started)
            return None
        except (OSError, dns.exception.DNSException, ValueError):
            self._tell(nameserver, "udp", "unreachable", started)
            return None
        self._tell(nameserver, "udp", _code(response.rcode()), started)
        found = response.get_rrset(response.answer, name, dns.rdataclass.IN, dns.rdatatype.SOA)
        record = found[0] if found else None
        return record.serial if isinstance(record, dns.rdtypes.ANY.SOA.SOA) else None

    def close(self) -> None:
        """Close all sockets; queries in flight fail.  The client may be used again."""
        self._closings += 1
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()

    def _question(self, name: str, rdtype: RecordType) -> _Asked:
        key = (name, rdtype)
        if key not in self._questions:
            if len(self._questions) >= MAX_QUESTIONS:
                # The targets of CNAME and SRV records change over time.
                self._questions.clear()
            _, wire, section = _query(name, rdtype)
            self._questions[key] = _Asked(name, rdtype, wire, section)
        return self._questions[key]

    def _order(self) -> list[Nameserver]:
        first = self._preferred if self._clock() < self._preferred_until else 0
        return [*self._nameservers[first:], *self._nameservers[:first]]

    async def _ask_all(self, question: _Asked, closings: int) -> tuple[Reply, str | None]:
        """Return the first usable reply, and the next name to query if it ends in an open CNAME.

        A query from before the client was closed opens no socket: nobody would close it.
        """
        failures: list[_Failure] = []
        for _round in range(self._tries):
            for nameserver in self._order():
                if closings != self._closings:
                    failures.append(_Failure("the client was closed"))
                    break
                result = await self._ask_one(nameserver, question)
                if not isinstance(result, _Failure):
                    self._prefer(nameserver)
                    return result
                failures.append(replace(result, detail=f"{nameserver}: {result.detail}"))
        said = "; ".join(dict.fromkeys(failure.detail for failure in failures))
        found = {failure.cause for failure in failures}
        reply = Reply(
            question.name,
            question.rdtype,
            ReplyOutcome.FAILURE,
            detail=said or "no nameserver is known",
            cause=next((cause for cause in _CAUSES.values() if cause in found), None),
        )
        return reply, None

    def _prefer(self, nameserver: Nameserver) -> None:
        index = self._nameservers.index(nameserver)
        if index != self._preferred or self._clock() >= self._preferred_until:
            self._preferred = index
            self._preferred_until = self._clock() + _PREFER_FOR

    async def _ask_one(
        self, nameserver: Nameserver, question: _Asked
    ) -> tuple[Reply, str | None] | _Failure:
        """Return an answer, or the failure."""
        if Transport.UDP in nameserver.transports:
            result = await self._by_udp(nameserver, question)
            if result is not _TRUNCATED or Transport.TCP not in nameserver.transports:
                return result
        return await self._by_tcp(nameserver, question)

    async def _by_udp(
        self, nameserver: Nameserver, question: _Asked
    ) -> tuple[Reply, str | None] | _Failure:
        started = self._clock()
        try:
            wire = await self._channel(nameserver).exchange(question, self._timeout)
        except TimeoutError:
            return self._failed(nameserver, "udp", "timeout", started)
        except OSError as exc:
            return self._failed(nameserver, "udp", "unreachable", started, exc.strerror or str(exc))
        if wire[2] & 0x02:
            self._tell(nameserver, "udp", "truncated", started)
            return _TRUNCATED
        return await self._read(nameserver, "udp", question, wire, started)

    def _channel(self, nameserver: Nameserver) -> Channel:
        channel = self._channels.get(nameserver)
        if channel is None or channel.closed:
            channel = self._channels[nameserver] = Channel(nameserver)
        return channel

    async def _by_tcp(
        self, nameserver: Nameserver, question: _Asked
    ) -> tuple[Reply, str | None] | _Failure:
        started = self._clock()
        try:
            async with asyncio.timeout(self._timeout * _TCP_PATIENCE):
                wire = await _exchange_over_tcp(nameserver, question)
        except TimeoutError:
            return self._failed(nameserver, "tcp", "timeout", started)
        except asyncio.IncompleteReadError:
            said = "the connection was closed"
            return self._failed(nameserver, "tcp", "unreachable", started, said)
        except OSError as exc:
            said = exc.strerror or str(exc)
            return self._failed(nameserver, "tcp", "unreachable", started, said)
        if not answers(question, wire):
            return self._failed(nameserver, "tcp", "malformed", started, "not an answer to it")
        return await self._read(nameserver, "tcp", question, wire, started)

    async def _read(
        self,
        nameserver: Nameserver,
        transport: str,
        question: _Asked,
        wire: bytes,
        started: float,
    ) -> tuple[Reply, str | None] | _Failure:
        found = fingerprint(wire, len(question.section), question.rdtype)
        if found is not None and found == question.fingerprint and question.reply is not None:
            self._tell(nameserver, transport, _CODES[wire[3] & 0x0F], started)
            return question.reply, None
        if isinstance(found, tuple):
            addresses = tuple(sorted({str(ip_address(address)) for address in found}))
            reply = Reply(question.name, question.rdtype, ReplyOutcome.ANSWER, addresses)
            question.fingerprint, question.last, question.reply = found, wire[2:], reply
            self._tell(nameserver, transport, "NOERROR", started)
            return reply, None
        try:
            response = await self._parsed(wire)
        except (dns.exception.DNSException, ValueError) as exc:
            return self._failed(nameserver, transport, "malformed", started, type(exc).__name__)
        result = self._judge(nameserver, transport, question, response, started)
        if not isinstance(result, _Failure):
            # An answer that begins a chain of CNAMEs is not plain.
            question.fingerprint, question.last, question.reply = found, wire[2:], result[0]
        return result

    async def _parsed(self, wire: bytes) -> dns.message.Message:
        """Parse an answer with dnspython, in a thread if large: 64 KiB take a tenth of a second.

        One at a time, as it competes with the event loop.  Raises DNSException and ValueError.
        """
        if len(wire) <= _LARGE:
            return dns.message.from_wire(wire, ignore_trailing=True)
        async with self._parsing:
            return await asyncio.to_thread(dns.message.from_wire, wire, ignore_trailing=True)

    def _judge(
        self,
        nameserver: Nameserver,
        transport: str,
        question: _Asked,
        response: dns.message.Message,
        started: float,
    ) -> tuple[Reply, str | None] | _Failure:
        if not isinstance(response, dns.message.QueryMessage):
            said = "not an answer to a query"
            return self._failed(nameserver, transport, "malformed", started, said)
        rcode = response.rcode()
        if rcode not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            return self._failed(nameserver, transport, _code(rcode), started)
        is_cut = bool(response.flags & dns.flags.TC)
        if is_cut and len(response.wire or b"") < _FULL:
            # This is the answer over TCP, after UDP: there is no other way to get the rest.
            return self._failed(nameserver, transport, "truncated", started)
        try:
            result = reply_of(question.name, question.rdtype, response)
        except (dns.exception.DNSException, ValueError) as exc:
            return self._failed(nameserver, transport, "malformed", started, type(exc).__name__)
        if is_cut and result[0].outcome is not ReplyOutcome.ANSWER:
            return self._failed(nameserver, transport, "truncated", started)
        self._tell(nameserver, transport, _code(rcode), started)
        return (replace(result[0], outcome=ReplyOutcome.PARTIAL), None) if is_cut else result

    def _failed(
        self, nameserver: Nameserver, transport: str, rcode: str, started: float, detail: str = ""
    ) -> _Failure:
        self._tell(nameserver, transport, rcode, started)
        if rcode == "timeout":
            seconds = self._timeout * (_TCP_PATIENCE if transport == "tcp" else 1)
            return _Failure(f"no answer within {seconds:g} s")
        return _Failure(f"{rcode}: {detail}" if detail else rcode, _CAUSES.get(rcode))

    def _tell(self, nameserver: Nameserver, transport: str, rcode: str, started: float) -> None:
        took = self._clock() - started
        self._observe(Exchange(_label(nameserver), transport, rcode, (took,)))


async def _exchange_over_tcp(nameserver: Nameserver, question: Question) -> bytes:
    """Return the answer to a question.  Raises IncompleteReadError and OSError."""
    number = secrets.token_bytes(2)
    reader, writer = await asyncio.open_connection(str(nameserver.address), nameserver.port)
    try:
        writer.write((2 + len(question.wire)).to_bytes(2) + number + question.wire)
        wire = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
        return wire if wire[:2] == number else b""
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _query(name: str, rdtype: str) -> tuple[dns.name.Name, bytes, bytes]:
    """Return a name, the query for it without its ID, and the question section of that."""
    query = dns.message.make_query(
        dns.name.from_text(name), rdtype, use_edns=0, payload=EDNS_PAYLOAD
    )
    wire = query.to_wire()
    asked = query.question[0].name
    return asked, wire[2:], wire[12 : 12 + len(asked.to_wire() or b"") + 4]


def _code(rcode: int) -> str:
    """Return the name of a response code.

    Unknown ones are grouped: each name becomes a label of metrics, and there are 4,096 codes.
    """
    return dns.rcode.to_text(dns.rcode.Rcode.make(rcode)) if rcode in _NAMED_CODES else "other"


_NAMED_CODES = frozenset(dns.rcode.Rcode)


@cache
def _label(nameserver: Nameserver) -> str:
    host = f"[{nameserver.address}]" if nameserver.address.version == 6 else nameserver.address
    return f"{host}:{nameserver.port}"


def reply_of(
    name: str, rdtype: RecordType, response: dns.message.QueryMessage
) -> tuple[Reply, str | None]:
    """Return the reply in a response, and the name to query instead if it is an alias."""
    if response.rcode() == dns.rcode.NXDOMAIN and not response.answer:
        return Reply(name, rdtype, ReplyOutcome.NXDOMAIN, detail="NXDOMAIN"), None
    chain = response.resolve_chaining()
    if chain.answer is None:
        target = chain.canonical_name.to_text(omit_final_dot=True)
        if response.rcode() == dns.rcode.NXDOMAIN:
            return Reply(name, rdtype, ReplyOutcome.NXDOMAIN, detail="NXDOMAIN"), None
        if chain.cnames:
            return Reply(name, rdtype, ReplyOutcome.EMPTY), target
        return Reply(name, rdtype, ReplyOutcome.EMPTY, detail="no records"), None
    if rdtype != "SRV":
        return Reply(name, rdtype, ReplyOutcome.ANSWER, _addresses(chain.answer)), None
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
    outcome = ReplyOutcome.ANSWER if services else ReplyOutcome.EMPTY
    return Reply(name, rdtype, outcome, services=tuple(sorted(services))), None


def _addresses(rrset: dns.rrset.RRset) -> tuple[str, ...]:
    return tuple(sorted({str(ip_address(record.address)) for record in rrset}))
