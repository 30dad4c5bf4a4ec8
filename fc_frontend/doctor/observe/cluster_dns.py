"""Query each nameserver separately, over each transport, as HAProxy does."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Literal

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.SOA

from fc_frontend.doctor.judge.cluster_dns import (
    NOTHING,
    SMALLEST_EDNS,
    NameserverFacts,
    NamesFacts,
    QueryAttempt,
    Record,
)
from fc_frontend.plan.model import Cluster, Nameserver, Network, ServiceSpec, Target, Transport
from fc_frontend.plan.names import headless_name, srv_name, wildcard_name

RecordType = Literal["A", "AAAA", "SRV"]
PAYLOAD = 8192
"""The payload size in bytes offered over UDP, as by fc-frontend itself."""
MOST_SERVICES = 100
_TRIES = 3
_CONCURRENT = 16
_MOST_SILENCES = 8
_TIMEOUT = "timed out"
_FAILURES = (dns.exception.DNSException, OSError, EOFError, ValueError)


def observe_nameserver(nameserver: Nameserver, domain: str, timeout: float) -> NameserverFacts:
    """Query `nameserver` for its zone, with a timeout of `timeout` seconds for each query."""
    udp, answer = _best(lambda: _ask(nameserver, domain, Transport.UDP, timeout))
    edns_lost = False
    if udp.code == _TIMEOUT:
        plain, answer = _attempt(
            lambda: _ask(nameserver, domain, Transport.UDP, timeout, payload=None)
        )
        edns_lost = plain.answered
        udp = plain if plain.answered else udp
    tcp, over_tcp = _best(lambda: _ask(nameserver, domain, Transport.TCP, timeout))
    known = answer or over_tcp
    software = None
    if known is not None:
        transport = Transport.UDP if answer is not None else Transport.TCP
        software = _software(nameserver, transport, timeout)
    return NameserverFacts(
        nameserver=nameserver,
        udp=udp,
        tcp=tcp,
        payload=answer.payload if answer is not None and answer.edns >= 0 else None,
        edns_lost=edns_lost,
        software=software,
        serial=_serial(known),
    )


def _ask(
    nameserver: Nameserver,
    name: str,
    transport: Transport,
    timeout: float,
    *,
    rdtype: str = "SOA",
    rdclass: str = "IN",
    payload: int | None = PAYLOAD,
) -> dns.message.Message:
    edns = None if payload is None else 0
    query = dns.message.make_query(name, rdtype, rdclass, use_edns=edns, payload=payload)
    where = str(nameserver.address)
    if transport is Transport.UDP:
        family = socket.AF_INET6 if nameserver.address.version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as connected:
            # Only a connected socket reports a closed port.
            connected.connect((where, nameserver.port))
            connected.setblocking(False)
            return dns.query.udp(
                query, where, timeout, nameserver.port, ignore_trailing=True, sock=connected
            )
    return dns.query.tcp(query, where, timeout, nameserver.port, ignore_trailing=True)


def _attempt(
    ask: Callable[[], dns.message.Message],
) -> tuple[QueryAttempt, dns.message.Message | None]:
    started = time.monotonic()
    try:
        answer = ask()
    except _FAILURES as exc:
        return QueryAttempt(False, failure(exc), time.monotonic() - started), None
    seconds = time.monotonic() - started
    return QueryAttempt(True, dns.rcode.to_text(answer.rcode()), seconds), answer


def _best(
    ask: Callable[[], dns.message.Message],
) -> tuple[QueryAttempt, dns.message.Message | None]:
    """Return the slowest answered attempt of several; try only once if that is not answered."""
    slowest, answer = _attempt(ask)
    for _ in range(_TRIES - 1 if answer is not None else 0):
        again, other = _attempt(ask)
        if other is not None and again.seconds > slowest.seconds:
            slowest, answer = again, other
    return slowest, answer


def failure(exc: Exception) -> str:
    """Return the error as text."""
    if isinstance(exc, dns.exception.Timeout | TimeoutError):
        return _TIMEOUT
    if isinstance(exc, OSError):
        return (exc.strerror or str(exc)).lower()
    if isinstance(exc, EOFError):
        return "the connection was closed"
    return f"not an answer ({type(exc).__name__})"


def _serial(answer: dns.message.Message | None) -> int | None:
    for rrset in (*answer.answer, *answer.authority) if answer is not None else ():
        for record in rrset:
            if isinstance(record, dns.rdtypes.ANY.SOA.SOA):
                return int(record.serial)
    return None


def _software(nameserver: Nameserver, transport: Transport, timeout: float) -> str | None:
    with contextlib.suppress(*_FAILURES):
        answer = _ask(nameserver, "version.bind", transport, timeout, rdtype="TXT", rdclass="CH")
        for rrset in answer.answer:
            if rrset.rdtype == dns.rdatatype.TXT:
                text: bytes = b" ".join(rrset[0].strings)
                return text.decode("utf-8", "replace")[:100]
    return None


async def _record(nameserver: Nameserver, name: str, rdtype: RecordType, seconds: float) -> Record:
    where, port = str(nameserver.address), nameserver.port
    answer = None
    large_lost = False

    async def ask(transport: Transport, payload: int) -> dns.message.Message | None:
        query = dns.message.make_query(name, rdtype, use_edns=0, payload=payload)
        send = dns.asyncquery.udp if transport is Transport.UDP else dns.asyncquery.tcp
        try:
            return await send(query, where, seconds, port, ignore_trailing=True)
        except _FAILURES:
            return None

    if Transport.UDP in nameserver.transports:
        answer = await ask(Transport.UDP, PAYLOAD)
        if answer is None:
            answer = await ask(Transport.UDP, SMALLEST_EDNS)
            large_lost = _is_cut(answer)
    if (answer is None or _is_cut(answer)) and Transport.TCP in nameserver.transports:
        answer = await ask(Transport.TCP, PAYLOAD) or answer
    if answer is None:
        return Record(None)
    return Record(
        dns.rcode.to_text(answer.rcode()),
        tuple(
            record.address
            for rrset in answer.answer
            if rrset.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA)
            for record in rrset
        ),
        sum(len(rrset) for rrset in answer.answer if rrset.rdtype == dns.rdatatype.SRV),
        _is_cut(answer),
        large_lost,
    )


def _is_cut(answer: dns.message.Message | None) -> bool:
    return answer is not None and bool(answer.flags & dns.flags.TC)


class _Asker:
    """Query one nameserver for several names concurrently; give up if it does not answer."""

    def __init__(self, nameserver: Nameserver, timeout: float) -> None:
        self._nameserver = nameserver
        self._timeout = timeout
        self._limit = asyncio.Semaphore(_CONCURRENT)
        self._silences = 0

    async def ask(self, name: str, rdtypes: Iterable[RecordType]) -> Record:
        """Return the first record that is not empty, or else the first answer."""
        found = Record(None)
        for rdtype in rdtypes:
            async with self._limit:
                if self._silences >= _MOST_SILENCES:
                    return found
                record = await _record(self._nameserver, name, rdtype, self._timeout)
            self._silences = self._silences + 1 if record.code is None else 0
            if record.addresses or record.count:
                return record
            found = record if found.code is None else found
        return found

    async def of_each(
        self, questions: Mapping[str, tuple[str, Sequence[RecordType]]]
    ) -> dict[str, Record]:
        """Return the records of names, by the keys of `questions`."""
        records = await asyncio.gather(*(self.ask(*question) for question in questions.values()))
        return dict(zip(questions, records, strict=True))


def _types(networks: tuple[Network, ...]) -> tuple[RecordType, ...]:
    versions = dict.fromkeys(network.version for network in networks)
    return tuple("A" if version == 4 else "AAAA" for version in versions)


async def _names(
    nameserver: Nameserver, cluster: Cluster, services: Sequence[ServiceSpec], seconds: float
) -> NamesFacts:
    asked = [spec for spec in services if spec.target is not Target.NODE]
    chosen = asked[:MOST_SERVICES]
    domain = cluster.domain
    api = f"kubernetes.default.svc.{domain}"
    of_services = _types(cluster.service_networks)
    of_any = tuple(dict.fromkeys((*_types(cluster.pod_networks), *of_services)))
    to_pods = [spec for spec in chosen if spec.target is Target.POD]
    asker = _Asker(nameserver, seconds)
    first = await asker.ask(api, of_services)
    if first.code is None:
        return NamesFacts(nameserver, first)
    cluster_own, bare, wildcard, srv = await asyncio.gather(
        asker.of_each(
            {
                "srv": (f"_https._tcp.{api}", ("SRV",)),
                # Its endpoints are the master's own addresses, of either family.
                "wildcard": (f"*.{api}", ("A", "AAAA")),
            }
        ),
        asker.of_each({spec.name: (headless_name(spec, domain), of_any) for spec in chosen}),
        asker.of_each(
            {
                spec.name: (wildcard_name(spec, domain), _types(cluster.pod_networks))
                for spec in to_pods
                if isinstance(spec.port, int)
            }
        ),
        asker.of_each(
            {
                spec.name: (srv_name(spec, domain), ("SRV",))
                for spec in to_pods
                if isinstance(spec.port, str)
            }
        ),
    )
    return NamesFacts(
        nameserver,
        first,
        api_srv=cluster_own["srv"],
        api_wildcard=cluster_own["wildcard"],
        bare=bare,
        wildcard=wildcard,
        srv=srv,
        left_out=len(asked) - len(chosen),
    )


def observe_names(
    nameserver: Nameserver, cluster: Cluster, services: Sequence[ServiceSpec], timeout: float
) -> NamesFacts:
    """Query `nameserver` for kubernetes.default and the first 100 declared services."""
    if not _lives(nameserver, cluster.domain, timeout):
        return NamesFacts(nameserver, NOTHING)
    return asyncio.run(_names(nameserver, cluster, services, timeout))


def _lives(nameserver: Nameserver, domain: str, timeout: float) -> bool:
    """Return whether it answers at all; one packet may get lost."""
    transports = (*nameserver.transports, nameserver.transports[0])
    return any(
        _attempt(partial(_ask, nameserver, domain, transport, timeout))[0].answered
        for transport in transports
    )
