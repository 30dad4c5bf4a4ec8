"""Ask each nameserver by itself, over each transport, as HAProxy will."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
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
    SMALLEST_EDNS,
    Attempt,
    NamesFacts,
    NameserverFacts,
    Record,
)
from fc_frontend.plan.model import Cluster, Nameserver, ServiceSpec, Target, Transport
from fc_frontend.plan.names import headless_name, srv_name, wildcard_name

PAYLOAD = 8192
"""Bytes offered over UDP, as fc-frontend does itself."""
MOST_SERVICES = 100
_TRIES = 3
_CONCURRENT = 16
_FAILURES = (dns.exception.DNSException, OSError, EOFError, ValueError)


def observe_nameserver(
    nameserver: Nameserver, domain: str, timeout: float, *, transfer: bool
) -> NameserverFacts:
    """What `nameserver` does with questions about its zone.  `timeout` is for each, in seconds.

    `transfer` asks for a zone transfer, which has brought down CoreDNS before 1.14.5 where its
    configuration allows it.
    """
    udp, answer = _best(lambda: _ask(nameserver, domain, Transport.UDP, timeout))
    large_lost = False
    if answer is None and udp.code == _TIMEOUT:
        # An answer may be lost for its size alone.
        small, answer = _attempt(
            lambda: _ask(nameserver, domain, Transport.UDP, timeout, payload=SMALLEST_EDNS)
        )
        large_lost = small.answered
        udp = small if small.answered else udp
    tcp, over_tcp = _best(lambda: _ask(nameserver, domain, Transport.TCP, timeout))
    known = answer or over_tcp
    software = None
    asked: Attempt | None = None
    if known is not None:
        transport = Transport.UDP if answer is not None else Transport.TCP
        software = _software(nameserver, transport, timeout)
        if transfer:
            asked = _transfer(nameserver, domain, timeout)
    return NameserverFacts(
        nameserver=nameserver,
        udp=udp,
        tcp=tcp,
        payload=answer.payload if answer is not None and answer.edns >= 0 else None,
        large_lost=large_lost,
        software=software,
        transfer=asked,
        serial=_serial(known),
    )


_TIMEOUT = "timed out"


def _ask(
    nameserver: Nameserver,
    name: str,
    transport: Transport,
    timeout: float,
    *,
    rdtype: str = "SOA",
    rdclass: str = "IN",
    payload: int = PAYLOAD,
) -> dns.message.Message:
    query = dns.message.make_query(name, rdtype, rdclass, use_edns=0, payload=payload)
    where = str(nameserver.address)
    if transport is Transport.UDP:
        return dns.query.udp(query, where, timeout, nameserver.port, ignore_trailing=True)
    return dns.query.tcp(query, where, timeout, nameserver.port, ignore_trailing=True)


def _attempt(
    ask: Callable[[], dns.message.Message],
) -> tuple[Attempt, dns.message.Message | None]:
    started = time.monotonic()
    try:
        answer = ask()
    except _FAILURES as exc:
        return Attempt(False, failure(exc), time.monotonic() - started), None
    seconds = time.monotonic() - started
    return Attempt(True, dns.rcode.to_text(answer.rcode()), seconds), answer


def _best(
    ask: Callable[[], dns.message.Message],
) -> tuple[Attempt, dns.message.Message | None]:
    """Several tries, the slowest of those that were answered; one if that is not answered."""
    slowest, answer = _attempt(ask)
    for _ in range(_TRIES - 1 if answer is not None else 0):
        again, other = _attempt(ask)
        if other is not None and again.seconds > slowest.seconds:
            slowest, answer = again, other
    return slowest, answer


def failure(exc: Exception) -> str:
    """What failed, in words."""
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
        answer = _ask(
            nameserver, "version.bind", transport, timeout, rdtype="TXT", rdclass="CH"
        )
        for rrset in answer.answer:
            if rrset.rdtype == dns.rdatatype.TXT:
                text: bytes = b" ".join(rrset[0].strings)
                return text.decode("utf-8", "replace")[:100]
    return None


def _transfer(nameserver: Nameserver, domain: str, timeout: float) -> Attempt:
    """Only the first message is read: whether it is allowed, not what is in it."""
    attempt, answer = _attempt(
        lambda: _ask(nameserver, domain, Transport.TCP, timeout, rdtype="AXFR")
    )
    if answer is not None and attempt.code == "NOERROR" and not answer.answer:
        return Attempt(True, "no records", attempt.seconds)
    return attempt


async def _record(
    nameserver: Nameserver, name: str, rdtype: Literal["A", "AAAA", "SRV"], timeout: float
) -> Record:
    where, port = str(nameserver.address), nameserver.port
    query = dns.message.make_query(name, rdtype, use_edns=0, payload=PAYLOAD)
    answer = None
    if Transport.UDP in nameserver.transports:
        with contextlib.suppress(*_FAILURES):
            answer = await dns.asyncquery.udp(query, where, timeout, port, ignore_trailing=True)
    cut = answer is not None and bool(answer.flags & dns.flags.TC)
    if (answer is None or cut) and Transport.TCP in nameserver.transports:
        with contextlib.suppress(*_FAILURES):
            answer = await dns.asyncquery.tcp(query, where, timeout, port, ignore_trailing=True)
            cut = bool(answer.flags & dns.flags.TC)
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
        cut,
    )


async def _names(
    nameserver: Nameserver, cluster: Cluster, services: Sequence[ServiceSpec], timeout: float
) -> NamesFacts:
    limit = asyncio.Semaphore(_CONCURRENT)
    silences = 0

    async def ask(name: str, *rdtypes: Literal["A", "AAAA", "SRV"]) -> Record:
        nonlocal silences
        found = Record(None)
        for rdtype in rdtypes:
            async with limit:
                # A nameserver that says nothing is not waited for once a name.
                if silences >= _CONCURRENT:
                    return found
                record = await _record(nameserver, name, rdtype, timeout)
            silences = silences + 1 if record.code is None else 0
            if record.addresses or record.count:
                return record
            found = record if found.code is None else found
        return found

    def families(spec: ServiceSpec | None) -> tuple[Literal["A", "AAAA"], ...]:
        to_pods = spec is not None and spec.target is Target.POD
        networks = cluster.pod_networks if to_pods else cluster.service_networks
        found = [
            "A" if family == "ipv4" else "AAAA" for family in cluster.families(networks)
        ]
        if to_pods:
            found += ["A" if f == "ipv4" else "AAAA" for f in cluster.families(cluster.service_networks)]
        return tuple(dict.fromkeys(found)) or ("A",)  # type: ignore[return-value]

    asked = [spec for spec in services if spec.target is not Target.NODE]
    chosen = asked[:MOST_SERVICES]
    domain = cluster.domain
    api = f"kubernetes.default.svc.{domain}"

    async def each(
        specs: Sequence[ServiceSpec], name: Callable[[ServiceSpec, str], str], srv: bool = False
    ) -> dict[str, Record]:
        records = await asyncio.gather(
            *(
                ask(name(spec, domain), *(("SRV",) if srv else families(spec)))
                for spec in specs
            )
        )
        return {spec.name: record for spec, record in zip(specs, records, strict=True)}

    to_pods = [spec for spec in chosen if spec.target is Target.POD]
    numbered = [spec for spec in to_pods if isinstance(spec.port, int)]
    named = [spec for spec in to_pods if isinstance(spec.port, str)]
    first, first_srv, first_wildcard = await asyncio.gather(
        ask(api, *families(None)),
        ask(f"_https._tcp.{api}", "SRV"),
        ask(f"*.{api}", "A"),
    )
    bare, wildcard, srv = await asyncio.gather(
        each(chosen, headless_name), each(numbered, wildcard_name), each(named, srv_name, srv=True)
    )
    return NamesFacts(
        nameserver=nameserver,
        api=first,
        api_srv=first_srv,
        api_wildcard=first_wildcard,
        bare=bare,
        wildcard=wildcard,
        srv=srv,
        left_out=len(asked) - len(chosen),
    )


def observe_names(
    nameserver: Nameserver, cluster: Cluster, services: Sequence[ServiceSpec], timeout: float
) -> NamesFacts:
    """What `nameserver` says of kubernetes.default and of the first 100 declared services."""
    return asyncio.run(_names(nameserver, cluster, services, timeout))
