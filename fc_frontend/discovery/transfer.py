"""A whole zone at once (AXFR, RFC 5936) instead of a question for each service.

A transferred zone is evidence of what is in it, never of what is not: wildcards are made up by
CoreDNS as they are asked for, and who is not in the zone, or has more records than are sure to fit
into an answer, is asked about as if there were no transfer.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA
import dns.rdtypes.IN.SRV
import dns.rrset

from fc_frontend.discovery.client import Outcome, Reply, ServiceRecord
from fc_frontend.discovery.scan import RecordType
from fc_frontend.discovery.steady import Asks
from fc_frontend.plan.model import Nameserver, Transport

_PATIENCE = 20.0
"""Seconds that a transfer may take."""
_LARGEST = 256 << 20
"""Bytes; a hundred thousand pods with all of their records have half of it."""
_REST = 10
"""Times its own duration that passes from the end of a transfer to the next one."""
_REFUSED_FOR = 600.0
"""Seconds after a failed one."""
_MOST = 200
"""Records of one name that fit into an answer over TCP, whatever the names' lengths are."""


class NotTransferred(Exception):
    """No zone came; the message says why."""


@dataclass(frozen=True, slots=True)
class Zone:
    """The records of a zone by name and type; names are in lower case and end without a dot."""

    addresses: Mapping[tuple[str, RecordType], set[str]]
    services: Mapping[str, set[tuple[str, int]]]


@dataclass(frozen=True, slots=True)
class Transferred:
    """Answers from a zone, or else asks."""

    zone: Zone
    client: Asks

    async def ask(self, name: str, rdtype: RecordType) -> Reply:
        """The answer; never raises for what DNS does."""
        return self._known(name.lower(), rdtype) or await self.client.ask(name, rdtype)

    def _known(self, name: str, rdtype: RecordType) -> Reply | None:
        if rdtype != "SRV":
            found = self.zone.addresses.get((name, rdtype), set())
            if not 0 < len(found) <= _MOST:
                return None
            return Reply(name, rdtype, Outcome.ANSWER, tuple(sorted(found)))
        services = self.zone.services.get(name, set())
        if not 0 < len(services) <= _MOST:
            return None
        records = {
            ServiceRecord(target, port, self._addresses(target)) for target, port in services
        }
        return Reply(name, rdtype, Outcome.ANSWER, services=tuple(sorted(records)))

    def _addresses(self, name: str) -> tuple[str, ...]:
        of = self.zone.addresses
        return tuple(sorted(of.get((name, "A"), set()) | of.get((name, "AAAA"), set())))


@dataclass(slots=True)
class Transfers:
    """Transfers that leave both sides time for something else: nine tenths of it and more."""

    clock: Callable[[], float] = time.monotonic
    _not_before: float = field(default=float("-inf"))

    def may_begin(self) -> bool:
        """False for a while after each transfer, and for minutes after one that failed."""
        return self.clock() >= self._not_before

    async def zone(self, nameserver: Nameserver | None, domain: str) -> Zone:
        """The zone of `domain` now; at most 20 s.  Raises `NotTransferred`."""
        started = self.clock()
        try:
            found = await transfer(nameserver, domain)
        except NotTransferred:
            self._not_before = self.clock() + _REFUSED_FOR
            raise
        now = self.clock()
        self._not_before = now + _REST * (now - started)
        return found


async def transfer(
    nameserver: Nameserver | None, domain: str, *, patience: float = _PATIENCE
) -> Zone:
    """A zone from a nameserver, within `patience` seconds.  Raises `NotTransferred`."""
    if nameserver is None or Transport.TCP not in nameserver.transports:
        raise NotTransferred("there is no nameserver that may be asked over TCP")
    try:
        async with asyncio.timeout(patience):
            return await _transfer(nameserver, domain)
    except TimeoutError:
        said = f"it took more than {patience:g} s"
    except asyncio.IncompleteReadError:
        said = "the connection was closed"
    except OSError as exc:
        said = exc.strerror or str(exc)
    except (dns.exception.DNSException, ValueError) as exc:
        said = f"malformed: {type(exc).__name__}"
    raise NotTransferred(f"{nameserver}: {said}")


async def _transfer(nameserver: Nameserver, domain: str) -> Zone:
    origin = dns.name.from_text(domain)
    query = dns.message.make_query(origin, dns.rdatatype.AXFR)
    wire = query.to_wire()
    reader, writer = await asyncio.open_connection(str(nameserver.address), nameserver.port)
    try:
        writer.write(len(wire).to_bytes(2) + wire)
        filled = _Filled(origin)
        size = 0
        while not filled.is_whole:
            message = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
            size += len(message)
            if size > _LARGEST:
                raise NotTransferred(f"it has more than {_LARGEST >> 20} MiB")
            # A message takes tens of milliseconds to read: others have their turn meanwhile.
            response = await asyncio.to_thread(dns.message.from_wire, message, xfr=True)
            filled.add(_judged(response, query, is_first=size == len(message)))
        return filled.zone
    except NotTransferred as exc:
        raise NotTransferred(f"{nameserver}: {exc}") from None
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _judged(
    response: dns.message.Message, query: dns.message.Message, *, is_first: bool
) -> dns.message.Message:
    """`response`, if it is one to `query`.  Later ones need not repeat it (RFC 5936, 2.2.1)."""
    is_bare = response.id == query.id and not response.question and not is_first
    if not response.flags & dns.flags.QR or not (is_bare or query.is_response(response)):
        raise NotTransferred("not an answer to the question")
    if response.rcode() != dns.rcode.NOERROR:
        raise NotTransferred(dns.rcode.to_text(response.rcode()))
    if not response.answer:
        raise NotTransferred("an answer without records")
    return response


class _Filled:
    """A zone that fills from the messages of a transfer, from its SOA to its SOA again."""

    def __init__(self, origin: dns.name.Name) -> None:
        self._origin = origin
        self._serial: int | None = None
        self._addresses: dict[tuple[str, RecordType], set[str]] = {}
        self._services: dict[str, set[tuple[str, int]]] = {}
        self.zone = Zone(self._addresses, self._services)
        self.is_whole = False

    def add(self, message: dns.message.Message) -> None:
        """Take what a message brings.  Raises `NotTransferred` if that makes no zone."""
        for rrset in message.answer:
            if self.is_whole:
                raise NotTransferred("there are records after its end")
            if rrset.rdtype == dns.rdatatype.SOA and rrset.name == self._origin:
                self._take_soa(rrset)
            elif self._serial is None:
                raise NotTransferred("it does not begin with its SOA record")
            elif rrset.rdclass == dns.rdataclass.IN and rrset.name.is_subdomain(self._origin):
                self._take(rrset)

    def _take_soa(self, rrset: dns.rrset.RRset) -> None:
        serial = rrset[0].serial
        if self._serial is None:
            self._serial = serial
        elif self._serial == serial:
            self.is_whole = True
        else:
            raise NotTransferred("the zone changed on the way")

    def _take(self, rrset: dns.rrset.RRset) -> None:
        if rrset.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA):
            rdtype: RecordType = "A" if rrset.rdtype == dns.rdatatype.A else "AAAA"
            key = (_text(rrset.name), rdtype)
            self._addresses.setdefault(key, set()).update(record.address for record in rrset)
        elif rrset.rdtype == dns.rdatatype.SRV:
            self._services.setdefault(_text(rrset.name), set()).update(
                (_text(record.target), record.port)
                for record in rrset
                if record.target != dns.name.root and record.port
            )


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()
