"""A cluster DNS on loopback that answers as CoreDNS's kubernetes plugin does.

The demo and the tests need a cluster DNS with content, delays and faults under their control,
which HAProxy's resolver cannot distinguish from a real one. It must never listen on an address
that other hosts can reach, never forward a query, and never fail because of a packet's content.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import enum
import errno
import functools
import ipaddress
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar, cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from fc_frontend.demo import handed_over, stop_listening

_T = TypeVar("_T")
_Transport = Literal["udp", "tcp"]

_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_ADDRESS_TYPES: Final = {dns.rdatatype.A: 4, dns.rdatatype.AAAA: 6}
_TRANSFERS: Final = (dns.rdatatype.AXFR, dns.rdatatype.IXFR)
_WITHOUT_EDNS: Final = 512
_TCP_LIMIT: Final = 65535
_QR: Final = 0x80
_TC: Final = 0x02
_LONGEST_ALIAS_CHAIN: Final = 8
MAX_CACHED_QUESTIONS: Final = 16384
_SHUFFLED_VARIANTS: Final = 8
_UDP_PENDING: Final = 10_000
_TCP_PENDING: Final = 1000
_PORT_ATTEMPTS: Final = 50
_CALL_TIMEOUT: Final = 30.0


class Fault(enum.Enum):
    """The server's behaviour instead of a proper answer."""

    NONE = "none"
    SERVFAIL = "servfail"
    REFUSED = "refused"
    NXDOMAIN = "nxdomain"
    SILENT = "silent"
    """No answer at all, as if the packets were lost."""
    TRUNCATED_NO_TCP = "truncated-no-tcp"
    """Every answer over UDP has the "truncated" flag, and TCP is not available."""
    NO_ADDITIONAL = "no-additional"
    """Proper answers, but without the addresses of SRV targets."""


_FAULT_CODES: Final = {
    Fault.SERVFAIL: dns.rcode.SERVFAIL,
    Fault.REFUSED: dns.rcode.REFUSED,
    Fault.NXDOMAIN: dns.rcode.NXDOMAIN,
}


class _NoAnswer(enum.Enum):
    IGNORE = "ignore"
    HANG_UP = "hang-up"


@dataclass(frozen=True, slots=True)
class KubernetesService:
    """A Service and the addresses of its ready pods, as in cluster DNS.

    Raises ValueError for a name that is no DNS label, and for a bad address or port.
    """

    name: str
    namespace: str = "default"
    cluster_ip: str | tuple[str, ...] | None = None
    """One address, one of each family, or None for a headless service."""
    ports: Mapping[str, int] = field(default_factory=dict)
    """Port number by port name; the name "" is a port without a name. All are TCP."""
    endpoints: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for label in (self.name, self.namespace):
            if not _LABEL.fullmatch(label):
                raise ValueError(f"{label!r} is not a lower-case DNS label")
        for address in (*self.cluster_ips, *self.endpoints):
            ipaddress.ip_address(address)
        for port_name, number in self.ports.items():
            if not 1 <= number <= 65535:
                raise ValueError(f"port {port_name!r} has the number {number}")

    @property
    def cluster_ips(self) -> tuple[str, ...]:
        """The cluster addresses; none for a headless service."""
        if self.cluster_ip is None:
            return ()
        return (self.cluster_ip,) if isinstance(self.cluster_ip, str) else self.cluster_ip

    @property
    def headless(self) -> bool:
        """Whether the service's name resolves to its pods."""
        return not self.cluster_ips


@dataclass(frozen=True, slots=True)
class _Target:
    """One address of a service with one of its ports; `endpoint` is True for a pod's address."""

    address: str
    port: int | None
    endpoint: bool


@dataclass(slots=True)
class _Found:
    """The records for a question, and their encoded forms: shuffled and truncated to size.

    Each record is a set of its own, since truncation keeps or drops whole sets.

    They are valid until `source`, the one service they are derived from, changes; without a
    source, until anything changes. `version` is the generation of the content at its last change.
    """

    rcode: dns.rcode.Rcode
    authoritative: bool = False
    source: tuple[str, str] | None = None
    version: int = 0
    answers: list[dns.rrset.RRset] = field(default_factory=list)
    authority: list[dns.rrset.RRset] = field(default_factory=list)
    additional: list[dns.rrset.RRset] = field(default_factory=list)
    wires: dict[_Transport, list[bytes]] = field(default_factory=dict)

    def variants(self) -> int:
        """Return how many differently shuffled answers are worth keeping."""
        addresses = sum(record.rdtype in _ADDRESS_TYPES for record in self.answers)
        return _SHUFFLED_VARIANTS if max(addresses, len(self.additional)) > 1 else 1


@dataclass(slots=True)
class ParsedQuestion:
    """A parsed query, and its records."""

    query: dns.message.Message
    name: dns.name.Name
    rdtype: dns.rdatatype.RdataType
    key: tuple[str, str]
    payload: int
    error: dns.rcode.Rcode
    found: dict[Fault, _Found] = field(default_factory=dict)


def endpoint_label(address: str) -> str:
    """Return the label of an endpoint without a hostname in CoreDNS: 10.1.0.3 is `10-1-0-3`."""
    return str(ipaddress.ip_address(address)).replace(".", "-").replace(":", "-")


def _bound_pair(address: str, port: int) -> tuple[socket.socket, socket.socket]:
    """Return a UDP and a TCP socket on the same address and port."""
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    attempts = _PORT_ATTEMPTS if port == 0 else 1
    while True:
        attempts -= 1
        with contextlib.ExitStack() as undo:
            udp = undo.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            tcp = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
            # HAProxy sends the queries for all its names at once when it starts.
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            udp.bind((address, port))
            try:
                tcp.bind(udp.getsockname()[:2])
                tcp.listen()
            except OSError as error:
                if error.errno == errno.EADDRINUSE and attempts:
                    continue
                raise
            udp.setblocking(False)
            tcp.setblocking(False)
            undo.pop_all()
            return udp, tcp


class ClusterDns:
    """An authoritative DNS server for a cluster's zone, over UDP and TCP on one address and port.

    Used as `async with ClusterDns(...) as dns:`, or with `start()` and `stop()`. All methods
    must be called in its event loop; see `ClusterDnsThread` for synchronous callers.

    `fault`, `fault_for` (by lower-case query name without the final dot; it takes precedence)
    and `delay` (seconds before each answer) may be changed at any time. `queries` counts by
    (query name, type, transport) and may be cleared.

    Raises ValueError for an address that is not loopback and for invalid names.
    """

    def __init__(
        self,
        services: Iterable[KubernetesService] = (),
        *,
        address: str = "127.0.0.1",
        port: int = 0,
        zone: str = "cluster.local",
        ttl: int = 5,
        wildcards: bool = False,
        bufsize: int | None = None,
        extra_records: Mapping[str, str] | None = None,
        max_connections: int = 256,
        idle_timeout: float = 10.0,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.time,
        loopback_only: bool = True,
        software: str | None = None,
    ) -> None:
        """Create a server; `ttl` and `idle_timeout` are in seconds, `bufsize` in bytes.

        Port 0 selects a free port. `wildcards` answers `*` and `any` as CoreDNS did before 1.9.
        `extra_records` maps names to the targets of their CNAMEs. `clock` returns Unix time, for
        the serial. `loopback_only` may be disabled in a separate network namespace. `software` is
        the answer to version.bind, as with CoreDNS's `chaos` plugin.
        """
        if loopback_only and not ipaddress.ip_address(address).is_loopback:
            raise ValueError(f"{address} is not a loopback address")
        self.fault = Fault.NONE
        self.fault_for: dict[str, Fault] = {}
        self.delay = 0.0
        self.queries: collections.Counter[tuple[str, str, _Transport]] = collections.Counter()
        self._address = address
        self._port = port
        self._zone = dns.name.from_text(zone)
        self._ttl = ttl
        self._wildcards = wildcards
        self._software = software
        self._bufsize = bufsize
        self._max_connections = max_connections
        self._idle_timeout = idle_timeout
        self._rng = rng or random.Random()
        self._clock = clock
        self._services: dict[tuple[str, str], KubernetesService] = {}
        self._namespaces = {"default"}
        self._aliases = {
            dns.name.from_text(name): dns.name.from_text(target)
            for name, target in (extra_records or {}).items()
        }
        self._questions: dict[bytes, ParsedQuestion] = {}
        self._generation = 0
        self._versions: dict[tuple[str, str], int] = {}
        self._udp: _UdpEndpoint | None = None
        self._listener: asyncio.Server | None = None
        self._connections: set[_TcpConnection] = set()
        self._changed()
        for service in services:
            self.set_service(service)

    # Content

    def set_service(self, service: KubernetesService) -> None:
        """Add the service, or replace the one of the same name and namespace."""
        self._services[service.name, service.namespace] = service
        self._namespaces.add(service.namespace)
        self._changed((service.name, service.namespace))

    def remove_service(self, name: str, namespace: str = "default") -> None:
        """Delete the service; its namespace is kept. Raises KeyError if there is none."""
        del self._services[name, namespace]
        self._changed((name, namespace))

    def set_endpoints(
        self, name: str, addresses: Iterable[str], namespace: str = "default"
    ) -> None:
        """Replace the ready addresses. Raises KeyError without the service, else ValueError."""
        service = self._services[name, namespace]
        self._services[name, namespace] = replace(service, endpoints=tuple(addresses))
        self._changed((name, namespace))

    def set_extra_record(self, name: str, target: str | None) -> None:
        """Serve a CNAME from `name` to `target`; a target of None removes it."""
        owner = dns.name.from_text(name)
        if target is None:
            self._aliases.pop(owner, None)
        else:
            self._aliases[owner] = dns.name.from_text(target)
        self._changed()

    def _changed(self, service: tuple[str, str] | None = None) -> None:
        """Record a change to one service, or to everything that answers may depend on."""
        self._serial = int(self._clock())
        self._generation += 1
        if service is None:
            self._questions.clear()
        else:
            self._versions[service] = self._generation

    def _version(self, source: tuple[str, str] | None) -> int:
        return self._generation if source is None else self._versions[source]

    # Lifecycle

    @property
    def address(self) -> tuple[str, int]:
        """The address of the listener. Raises RuntimeError before a free port has been selected."""
        if self._port == 0:
            raise RuntimeError("not started: the port is not known yet")
        return self._address, self._port

    async def start(self) -> None:
        """Listen; after a `stop()`, on the same port as before.

        Raises OSError if the port is in use, RuntimeError if the server is already running.
        """
        if self._udp is not None:
            raise RuntimeError("already started")
        loop = asyncio.get_running_loop()
        udp, tcp = _bound_pair(self._address, self._port)
        self._port = udp.getsockname()[1]
        self._listener = await loop.create_server(lambda: _TcpConnection(self), sock=tcp)
        _, self._udp = await loop.create_datagram_endpoint(lambda: _UdpEndpoint(self), sock=udp)

    async def stop(self) -> None:
        """Close all sockets, even with answers pending, and return when the port is free again."""
        closing: list[asyncio.Future[None]] = []
        if self._listener is not None:
            stop_listening(self._listener)
            self._listener = None
        if self._udp is not None:
            self._udp.transport.abort()
            closing.append(self._udp.closed)
            self._udp = None
        await handed_over()
        for connection in self._connections:
            connection.transport.abort()
            closing.append(connection.closed)
        await asyncio.gather(*closing)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    # Packets

    def _answer(self, packet: bytes, transport: _Transport) -> bytes | _NoAnswer:
        """Return the encoded answer to an encoded query."""
        question = self._question(packet)
        if question is None:
            if self.fault is Fault.SILENT:
                return _NoAnswer.IGNORE
            return _refusal(packet)
        self.queries[*question.key, transport] += 1
        fault = self.fault_for.get(question.key[0], self.fault)
        if fault is Fault.SILENT:
            return _NoAnswer.IGNORE
        if fault is Fault.TRUNCATED_NO_TCP and transport == "tcp":
            return _NoAnswer.HANG_UP
        return packet[:2] + self._wire(question, fault, transport)

    def _question(self, packet: bytes) -> ParsedQuestion | None:
        """Return the question of a query; None if it cannot be parsed."""
        body = packet[2:]
        question = self._questions.get(body)
        if question is None:
            question = _parsed(packet)
            if question is None:
                return None
            if len(self._questions) >= MAX_CACHED_QUESTIONS:
                self._questions.clear()
            self._questions[body] = question
        return question

    def _wire(self, question: ParsedQuestion, fault: Fault, transport: _Transport) -> bytes:
        """Return the answer without its first two bytes, the id.

        Encoding costs far more than the rest, so several shuffled variants of an answer are kept
        until the content changes.
        """
        found = question.found.get(fault)
        if found is None or found.version != self._version(found.source):
            found = question.found[fault] = self._found(question, fault)
            found.version = self._version(found.source)
            if fault is Fault.NO_ADDITIONAL:
                found.additional.clear()
        wires = found.wires.setdefault(transport, [])
        if len(wires) >= found.variants():
            return self._rng.choice(wires)
        limit = _TCP_LIMIT
        if transport == "udp":
            limit = max(_WITHOUT_EDNS, min(question.payload, self._bufsize or question.payload))
        wire = self._encoded(question, found, limit)
        if fault is Fault.TRUNCATED_NO_TCP:
            wire = bytes((wire[0] | _TC,)) + wire[1:]
        wires.append(wire)
        return wire

    def _encoded(self, question: ParsedQuestion, found: _Found, limit: int) -> bytes:
        answers, additional = found.answers, found.additional
        if found.variants() > 1:
            # As CoreDNS's loadbalance plugin does: only addresses are shuffled, and placed last.
            addresses = [record for record in answers if record.rdtype in _ADDRESS_TYPES]
            others = [record for record in answers if record.rdtype not in _ADDRESS_TYPES]
            answers = others + self._rng.sample(addresses, len(addresses))
            additional = self._rng.sample(additional, len(additional))
        advertised = min(question.payload, self._bufsize or question.payload)
        response = dns.message.make_response(question.query, our_payload=advertised)
        response.set_rcode(found.rcode)
        if found.authoritative:
            response.flags |= dns.flags.AA
        response.answer.extend(answers)
        response.authority.extend(found.authority)
        response.additional.extend(additional)
        wire = bytearray(response.to_wire(max_size=limit, prefer_truncation=True))
        in_additional = len(additional) + (response.edns >= 0)
        if int.from_bytes(wire[10:12], "big") < in_additional:
            # CoreDNS sets "truncated" for a lost additional record, too.
            wire[2] |= _TC
        return bytes(wire[2:])

    # Records

    def _found(self, question: ParsedQuestion, fault: Fault) -> _Found:
        if question.error is not dns.rcode.NOERROR:
            return self._special(question) or _Found(question.error)
        if fault in _FAULT_CODES:
            found = _Found(_FAULT_CODES[fault], authoritative=fault is Fault.NXDOMAIN)
            if fault is Fault.NXDOMAIN:
                found.authority.append(self._soa())
            return found
        return self._records(question.name, question.rdtype)

    def _special(self, question: ParsedQuestion) -> _Found | None:
        """Return the answer to version.bind, unless it is to be refused."""
        asked = question.query.question[0]
        if asked.rdclass != dns.rdataclass.CH or question.key != ("version.bind", "TXT"):
            return None
        if self._software is None:
            return None
        text = f'"{self._software}"'
        record = dns.rrset.from_text(asked.name, 0, asked.rdclass, asked.rdtype, text)
        return _Found(dns.rcode.NOERROR, authoritative=True, answers=[record])

    def _records(self, name: dns.name.Name, rdtype: dns.rdatatype.RdataType) -> _Found:
        """Return the records at a name, with the aliases on the way to it."""
        aliases: list[dns.rrset.RRset] = []
        while (target := self._aliases.get(name)) is not None:
            aliases.append(self._record(name, _rdata(dns.rdatatype.CNAME, _name_wire(target))))
            name = target
            if rdtype == dns.rdatatype.CNAME or len(aliases) == _LONGEST_ALIAS_CHAIN:
                return _Found(dns.rcode.NOERROR, authoritative=True, answers=aliases)
        if not name.is_subdomain(self._zone):
            # There is no forwarder, so names outside the zone fail.
            code = dns.rcode.NOERROR if aliases else dns.rcode.SERVFAIL
            return _Found(code, authoritative=bool(aliases), answers=aliases)
        found = self._in_zone(name, rdtype)
        if not found.answers:
            found.authority.append(self._soa())
        found.answers[:0] = aliases
        return found

    def _in_zone(self, name: dns.name.Name, rdtype: dns.rdatatype.RdataType) -> _Found:
        labels = tuple(
            label.decode("latin-1").lower() for label in name.relativize(self._zone).labels
        )
        found = _Found(dns.rcode.NOERROR, authoritative=True)
        match labels:
            case () if rdtype == dns.rdatatype.SOA:
                found.answers.append(self._soa(name))
            case () | ("svc",) | ("pod",):
                pass
            case (namespace, "svc") if namespace in self._namespaces:
                pass
            case (*inner, service_name, namespace, "svc") if (
                service := self._services.get((service_name, namespace))
            ) is not None and (targets := self._targets(service, inner)):
                self._add_records(found, name, rdtype, service, targets)
                if found.answers:
                    found.source = service_name, namespace
            case _:
                found.rcode = dns.rcode.NXDOMAIN
        return found

    def _targets(self, service: KubernetesService, inner: list[str]) -> list[_Target]:
        """Return the targets that the labels before a service's name denote.

        There are none for a headless service without ready endpoints, which CoreDNS does not
        distinguish from one that does not exist.
        """
        endpoint: str | None = None
        port: str | None = None
        protocol: str | None = None
        if len(inner) == 1:
            endpoint = inner[0]
        elif len(inner) == 2:
            port, protocol = (label.removeprefix("_") for label in inner)
        elif inner:
            return []
        numbers: list[int | None] = []
        if self._matches(protocol, "tcp"):
            numbers += (n for label, n in service.ports.items() if self._matches(port, label))
        if not service.ports and port is None:
            numbers.append(None)
        addresses = service.cluster_ips
        of_endpoints = service.headless or endpoint is not None
        if of_endpoints:
            addresses = service.endpoints
        return [
            _Target(address, number, of_endpoints)
            for address in addresses
            if endpoint is None or self._matches(endpoint, endpoint_label(address))
            for number in numbers
        ]

    def _add_records(
        self,
        found: _Found,
        name: dns.name.Name,
        rdtype: dns.rdatatype.RdataType,
        service: KubernetesService,
        targets: list[_Target],
    ) -> None:
        if rdtype in _ADDRESS_TYPES:
            for address in dict.fromkeys(target.address for target in targets):
                rdata = _address_rdata(address)
                if rdata.rdtype == rdtype:
                    found.answers.append(self._record(name, rdata))
        elif rdtype == dns.rdatatype.SRV:
            weight = max(1, 100 // len(targets))
            own_name = dns.name.from_text(f"{service.name}.{service.namespace}.svc", self._zone)
            answers: dict[tuple[int, dns.name.Name], None] = {}
            additional: dict[tuple[dns.name.Name, str], None] = {}
            for target in targets:
                if target.port is not None:
                    owner = own_name
                    if target.endpoint:
                        owner = dns.name.from_text(endpoint_label(target.address), own_name)
                    answers[target.port, owner] = None
                    additional[owner, target.address] = None
            for port, owner in answers:
                wire = struct.pack("!HHH", 0, weight, port) + _name_wire(owner)
                found.answers.append(self._record(name, _rdata(dns.rdatatype.SRV, wire)))
            found.additional += (
                self._record(owner, _address_rdata(address)) for owner, address in additional
            )

    def _matches(self, wanted: str | None, label: str) -> bool:
        if wanted is None or wanted == label:
            return True
        return self._wildcards and wanted in ("*", "any")

    def _soa(self, owner: dns.name.Name | None = None) -> dns.rrset.RRset:
        zone = self._zone.to_text()
        text = f"ns.dns.{zone} hostmaster.{zone} {self._serial} 7200 1800 86400 {self._ttl}"
        rdata = dns.rdata.from_text(dns.rdataclass.IN, dns.rdatatype.SOA, text)
        return self._record(owner or self._zone, rdata)

    def _record(self, owner: dns.name.Name, rdata: dns.rdata.Rdata) -> dns.rrset.RRset:
        return dns.rrset.from_rdata(owner, self._ttl, rdata)


def _parsed(packet: bytes) -> ParsedQuestion | None:
    """Return the parsed query of a packet; None if it is not a query with one valid question."""
    if len(packet) < 12 or packet[2] & _QR or _opcode(packet) != dns.opcode.QUERY:
        return None
    try:
        query = dns.message.from_wire(packet)
    except (dns.exception.DNSException, ValueError):
        return None
    if len(query.question) != 1:
        return None
    asked = query.question[0]
    error = dns.rcode.NOERROR
    if query.edns > 0:
        error = dns.rcode.BADVERS
    elif asked.rdclass != dns.rdataclass.IN or asked.rdtype in _TRANSFERS:
        error = dns.rcode.REFUSED
    return ParsedQuestion(
        query=query,
        name=asked.name,
        rdtype=asked.rdtype,
        key=(
            asked.name.to_text(omit_final_dot=True).lower(),
            dns.rdatatype.to_text(asked.rdtype),
        ),
        payload=query.payload if query.edns >= 0 else _WITHOUT_EDNS,
        error=error,
    )


def _opcode(packet: bytes) -> int:
    return packet[2] >> 3 & 0x0F


def _refusal(packet: bytes) -> bytes | _NoAnswer:
    """Return the answer to a packet that cannot be parsed, if it has an id to answer to."""
    if len(packet) < 2 or (len(packet) > 2 and packet[2] & _QR):
        # Two servers could otherwise answer each other's answers for ever.
        return _NoAnswer.IGNORE
    opcode = _opcode(packet) if len(packet) > 2 else int(dns.opcode.QUERY)
    code = dns.rcode.FORMERR if opcode == dns.opcode.QUERY else dns.rcode.NOTIMP
    return packet[:2] + bytes((_QR | opcode << 3, code)) + bytes(8)


def _rdata(rdtype: dns.rdatatype.RdataType, wire: bytes) -> dns.rdata.Rdata:
    return dns.rdata.from_wire(dns.rdataclass.IN, rdtype, wire, 0, len(wire))


@functools.lru_cache(maxsize=MAX_CACHED_QUESTIONS)
def _address_rdata(address: str) -> dns.rdata.Rdata:
    parsed = ipaddress.ip_address(address)
    return _rdata(dns.rdatatype.A if parsed.version == 4 else dns.rdatatype.AAAA, parsed.packed)


def _name_wire(name: dns.name.Name) -> bytes:
    return cast(bytes, name.to_wire())


class _UdpEndpoint(asyncio.DatagramProtocol):
    transport: asyncio.DatagramTransport

    def __init__(self, server: ClusterDns) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._pending = 0
        self.closed: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def connection_lost(self, _exc: Exception | None) -> None:
        self.closed.set_result(None)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        if self._pending >= _UDP_PENDING:
            return
        answer = self._server._answer(data, "udp")
        if not isinstance(answer, bytes):
            return
        self._pending += 1
        if self._server.delay > 0:
            self._loop.call_later(self._server.delay, self._send, answer, addr)
        else:
            self._send(answer, addr)

    def _send(self, answer: bytes, addr: tuple[Any, ...]) -> None:
        self._pending -= 1
        if not self.transport.is_closing():
            self.transport.sendto(answer, addr)


class _TcpConnection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, server: ClusterDns) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._pending = 0
        self._peer_done = False
        self._writing_paused = False
        self._idle: asyncio.TimerHandle | None = None
        self.closed: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        server = self._server
        server._connections.add(self)
        refused = server.fault is Fault.TRUNCATED_NO_TCP or server._listener is None
        if refused or len(server._connections) > server._max_connections:
            self.transport.abort()
        else:
            self._restart_idle_timer()

    def connection_lost(self, _exc: Exception | None) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._server._connections.discard(self)
        self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 2:
            end = 2 + int.from_bytes(self._buffer[:2], "big")
            if len(self._buffer) < end:
                return
            packet = bytes(self._buffer[2:end])
            del self._buffer[:end]
            self._restart_idle_timer()
            answer = self._server._answer(packet, "tcp")
            if answer is _NoAnswer.HANG_UP:
                self.transport.abort()
                return
            if isinstance(answer, bytes):
                self._pending += 1
                if self._server.delay > 0:
                    self._loop.call_later(self._server.delay, self._send, answer)
                else:
                    self._send(answer)
        self._throttle()

    def eof_received(self) -> bool:
        self._peer_done = True
        return self._pending > 0

    def pause_writing(self) -> None:
        self._writing_paused = True
        self._throttle()

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._throttle()

    def _send(self, answer: bytes) -> None:
        self._pending -= 1
        if self.transport.is_closing():
            return
        self._restart_idle_timer()
        self.transport.write(len(answer).to_bytes(2, "big") + answer)
        if self._peer_done and not self._pending:
            self.transport.close()
        else:
            self._throttle()

    def _throttle(self) -> None:
        """Read only while the client accepts its answers, so that memory is bounded."""
        if self.transport.is_closing() or self._peer_done:
            return
        if self._writing_paused or self._pending >= _TCP_PENDING:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def _restart_idle_timer(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = self._loop.call_later(self._server._idle_timeout, self._on_idle)

    def _on_idle(self) -> None:
        if self._pending and not self._writing_paused:
            self._restart_idle_timer()
        else:
            self.transport.abort()


class ClusterDnsThread:
    """A `ClusterDns` in a thread with its own event loop, for synchronous callers.

    Used as `with ClusterDnsThread(ClusterDns(...)) as dns:`. Its methods may be called from any
    thread; a change is in effect when the method returns.
    """

    def __init__(self, dns_server: ClusterDns | None = None) -> None:
        self._dns = dns_server or ClusterDns()

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="cluster-dns", daemon=True
        )
        self._thread.start()
        try:
            self._wait(self._dns.start())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._wait(self._dns.stop())
        finally:
            self._end()

    def call(self, function: Callable[[ClusterDns], _T]) -> _T:
        """Run the function in the server's loop and return its result, or raise its exception."""

        async def run() -> _T:
            return function(self._dns)

        return self._wait(run())

    @property
    def address(self) -> tuple[str, int]:
        """The address of the listener."""
        return self._dns.address

    def queries(self) -> collections.Counter[tuple[str, str, _Transport]]:
        """Return a copy of the counts so far."""
        return self.call(lambda server: server.queries.copy())

    def set_service(self, service: KubernetesService) -> None:
        """See `ClusterDns.set_service`."""
        self.call(lambda server: server.set_service(service))

    def remove_service(self, name: str, namespace: str = "default") -> None:
        """See `ClusterDns.remove_service`."""
        self.call(lambda server: server.remove_service(name, namespace))

    def set_endpoints(
        self, name: str, addresses: Iterable[str], namespace: str = "default"
    ) -> None:
        """See `ClusterDns.set_endpoints`."""
        self.call(lambda server: server.set_endpoints(name, addresses, namespace))

    def set_fault(self, fault: Fault, name: str | None = None) -> None:
        """Set the fault for all queries, or for those of one name (without the final dot)."""

        def change(server: ClusterDns) -> None:
            if name is None:
                server.fault = fault
            else:
                server.fault_for[name.lower()] = fault

        self.call(change)

    def set_delay(self, seconds: float) -> None:
        """Delay answers by that many seconds, from the next query on."""

        def change(server: ClusterDns) -> None:
            server.delay = seconds

        self.call(change)

    def stop_answering(self) -> None:
        """Close the sockets, as in an outage of the DNS host."""
        self._wait(self._dns.stop())

    def start_answering(self) -> None:
        """Listen on the same port again. Raises OSError if it is in use by now."""
        self._wait(self._dns.start())

    def _wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_CALL_TIMEOUT)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
