"""Check whether and how cluster DNS answers, and for which record types.

HAProxy discards a truncated answer as a whole.  The size that UDP carries, and whether TCP works,
therefore determine how many pods a service may have.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address

from fc_frontend.doctor.findings import Finding, Group
from fc_frontend.doctor.judge.network import contained
from fc_frontend.plan.model import Cluster, Discovery, Nameserver, ServiceSpec, Target, Transport
from fc_frontend.plurals import some

_GROUP = Group("cluster DNS")
SLOW = 0.2
"""In seconds.  HAProxy queries each name once a second, and new ones in a burst."""
SMALLEST_EDNS = 1232
_COREDNS = re.compile(r"coredns-v?(\d+)\.(\d+)\.(\d+)", re.IGNORECASE)
_PER_SIZE = ((8192, 508), (4096, 253), (1232, 73), (512, 28))
"""The number of A records that fit into each size in bytes, measured with CoreDNS."""


@dataclass(frozen=True, slots=True)
class QueryAttempt:
    """One query over one transport; `code` is the DNS response code, or the error.

    `seconds` is the response time of the slowest answered attempt.
    """

    answered: bool
    code: str
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Record:
    """The answer for a name: the response code, or None without an answer, and the addresses.

    `large_lost` is set if UDP returned nothing with the full payload size offered, but a truncated
    answer with a smaller one.
    """

    code: str | None
    addresses: tuple[str, ...] = ()
    count: int = 0
    truncated: bool = False
    large_lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NameserverFacts:
    """The answers of one nameserver.

    `payload` is the largest size that it sends over UDP, or None without EDNS.  `edns_lost` is set
    if it answered over UDP only without EDNS.  `serial` is that of the zone, which CoreDNS takes
    from its clock.
    """

    nameserver: Nameserver
    udp: QueryAttempt
    tcp: QueryAttempt
    payload: int | None = None
    edns_lost: bool = False
    software: str | None = None
    serial: int | None = None


NOTHING = Record(None)


@dataclass(frozen=True, slots=True)
class NamesFacts:
    """The answers of one nameserver for names, by the name of the service in the settings."""

    nameserver: Nameserver
    api: Record
    """A or AAAA of kubernetes.default.svc, which exists in every cluster."""
    api_srv: Record = NOTHING
    api_wildcard: Record = NOTHING
    bare: dict[str, Record] = field(default_factory=dict)
    wildcard: dict[str, Record] = field(default_factory=dict)
    srv: dict[str, Record] = field(default_factory=dict)
    left_out: int = 0


def judge_nameserver(cluster: Cluster, facts: NameserverFacts) -> tuple[Finding, ...]:
    """Judge transports, sizes, response time and software of one nameserver."""
    return tuple(_nameserver(cluster, facts))


def _nameserver(cluster: Cluster, facts: NameserverFacts) -> Iterator[Finding]:
    at = str(facts.nameserver)
    wanted = facts.nameserver.transports
    if not facts.udp.answered and not facts.tcp.answered:
        yield _GROUP.problem(
            at,
            f"no answer: over UDP {facts.udp.code}, over TCP {facts.tcp.code}",
            "check the address in cluster.nameservers, the route to it, firewalls for port "
            f"{facts.nameserver.port} (UDP and TCP), and that the cluster's DNS pods run",
        )
        return
    for transport, attempt in ((Transport.UDP, facts.udp), (Transport.TCP, facts.tcp)):
        if transport in wanted:
            yield _transport(f"{at} over {transport.upper()}", cluster, transport, attempt)
    if Transport.UDP in wanted and facts.udp.answered:
        yield _size(f"{at} EDNS size", facts)
    yield _software(f"{at} software", facts.software)


def _transport(
    check: str, cluster: Cluster, transport: Transport, attempt: QueryAttempt
) -> Finding:
    if not attempt.answered:
        meaning = (
            "HAProxy cannot get answers that are too large for UDP, and misses these pods"
            if transport is Transport.TCP
            else "HAProxy can use TCP only"
        )
        return _GROUP.warning(
            check,
            f"no answer: {attempt.code}; {meaning}",
            f"allow {transport.upper()} to it, or use the working transport only "
            "(tcp://… or udp://… in cluster.nameservers)",
        )
    if attempt.code != "NOERROR":
        return _GROUP.problem(
            check,
            f"answers {attempt.code} for the zone {cluster.domain}",
            "set cluster.nameservers to the cluster's own DNS, and check cluster.domain",
        )
    took = f"{attempt.seconds * 1000:.1f} ms"
    if attempt.seconds > SLOW:
        return _GROUP.warning(
            check,
            f"answers in {took}, but HAProxy queries each name once a second",
            "check the load of the cluster's DNS pods and of the network",
        )
    return _GROUP.ok(check, f"answers in {took}")


def _size(check: str, facts: NameserverFacts) -> Finding:
    over_tcp = (
        "; larger answers use TCP"
        if facts.tcp.answered and Transport.TCP in facts.nameserver.transports
        else "; larger answers are lost, because TCP fails"
    )
    if facts.edns_lost:
        return _GROUP.problem(
            check,
            "queries with EDNS, as HAProxy sends them, get no answer over UDP",
            "look for a firewall that drops them, or use only tcp://… in cluster.nameservers",
        )
    if facts.payload is None:
        message = f"no EDNS: 512 bytes have room for 28 pods{over_tcp}"
    else:
        pods = next((n for size, n in _PER_SIZE if facts.payload >= size), 28)
        message = f"{facts.payload} bytes have room for about {pods} pods{over_tcp}"
    is_small = facts.payload is None or facts.payload < SMALLEST_EDNS
    if over_tcp.startswith("; larger answers are lost") or is_small:
        return _GROUP.warning(
            check, message, "allow TCP as well, and write the nameserver without udp://"
        )
    return _GROUP.ok(check, message)


def _software(check: str, software: str | None) -> Finding:
    if software is None:
        return _GROUP.ok(check, "version hidden")
    version = coredns_version(software)
    if version is None:
        return _GROUP.ok(check, software)
    wildcards = "wildcard names work" if version < (1, 9, 0) else "no wildcard names (since 1.9)"
    return _GROUP.ok(check, f"{software}: {wildcards}")


def coredns_version(software: str) -> tuple[int, int, int] | None:
    """Return CoreDNS's version in the answer to version.bind, or None for other software."""
    found = _COREDNS.match(software)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def judge_names(
    cluster: Cluster, services: tuple[ServiceSpec, ...], facts: NamesFacts
) -> tuple[Finding, ...]:
    """Judge whether kubernetes.default and the declared services resolve as expected."""
    return tuple(_names(cluster, services, facts))


def _names(
    cluster: Cluster, services: tuple[ServiceSpec, ...], facts: NamesFacts
) -> Iterator[Finding]:
    at = str(facts.nameserver)
    if facts.api.code is None:
        yield _GROUP.unknown(
            f"{at} names",
            "no answer for any name",
            "see the results for UDP and TCP above",
        )
        return
    yield _api(f"{at} kubernetes.default", cluster, facts.api)
    yield _wildcard(f"{at} wildcard records", services, facts)
    yield _srv(f"{at} SRV records", facts)
    yield from _declared(at, cluster, services, facts)


class _Said(StrEnum):
    HEADLESS = "headless"
    SERVICE = "with a cluster IP"
    FOREIGN = "foreign"
    MISSING = "missing"
    SILENT = "silent"
    CUT = "cut"


def _said(cluster: Cluster, record: Record) -> _Said:
    addresses = [ip_address(text) for text in record.addresses]
    if record.code not in ("NOERROR", "NXDOMAIN"):
        return _Said.SILENT
    if record.truncated:
        return _Said.CUT
    if not addresses:
        return _Said.MISSING
    if all(contained(address, cluster.pod_networks) for address in addresses):
        return _Said.HEADLESS
    if all(contained(address, cluster.service_networks) for address in addresses):
        return _Said.SERVICE
    return _Said.FOREIGN


def _declared(
    at: str, cluster: Cluster, services: tuple[ServiceSpec, ...], facts: NamesFacts
) -> Iterator[Finding]:
    check = f"{at} declared services"
    by: dict[_Said, list[str]] = {}
    for spec in services:
        if spec.name in facts.bare:
            record = facts.bare[spec.name]
            said = _said(cluster, record)
            detail = {
                _Said.SILENT: f" ({record.code or 'no answer'})",
                _Said.MISSING: f" ({spec.service}.{spec.namespace})",
                _Said.FOREIGN: f" ({some(record.addresses, 2)})",
            }.get(said, "")
            by.setdefault(said, []).append(spec.name + detail)
    good = [f"{len(by[s])} {s}: {some(by[s])}" for s in (_Said.HEADLESS, _Said.SERVICE) if s in by]
    if good:
        more = f"; {facts.left_out} more were not queried" if facts.left_out else ""
        yield _GROUP.ok(check, "; ".join(good) + more)
    if _Said.FOREIGN in by:
        yield _GROUP.problem(
            check,
            f"addresses outside of the pod and service networks: {some(by[_Said.FOREIGN])}",
            "correct cluster.pod_network and cluster.service_network; such addresses get no "
            "traffic",
        )
    if _Said.MISSING in by:
        yield _GROUP.warning(
            check,
            f"no address for {some(by[_Said.MISSING])}",
            "no such service, or none of its pods is ready: `kubectl get service,endpoints`",
        )
    if _Said.SILENT in by:
        yield _GROUP.problem(
            check,
            f"no usable answer for {some(by[_Said.SILENT])}",
            "see `fc-frontend resolve` and the log of the cluster's DNS",
        )
    yield from _sizes(at, by.get(_Said.CUT, []), facts)


def _sizes(at: str, cut: list[str], facts: NamesFacts) -> Iterator[Finding]:
    lost = [name for name, record in facts.bare.items() if record.large_lost]
    if lost:
        yield _GROUP.problem(
            f"{at} large answers",
            f"answers larger than {SMALLEST_EDNS} bytes do not arrive over UDP ({some(lost)}): "
            "IP fragments are lost",
            "allow IP fragments, set `bufsize 1232` in CoreDNS, or use only tcp://… in "
            "cluster.nameservers",
        )
    if cut:
        yield _GROUP.problem(
            f"{at} declared services",
            f"truncated answers, and TCP fails: {some(cut)}",
            "allow TCP to the nameserver, and write it without udp://",
        )


def _api(check: str, cluster: Cluster, record: Record) -> Finding:
    if record.code != "NOERROR" or not record.addresses:
        code = record.code if record.code != "NOERROR" else "no address"
        return _GROUP.warning(
            check,
            f"{code} for kubernetes.default.svc.{cluster.domain}, which every cluster has",
            "check cluster.domain, and that the nameserver is the cluster's own",
        )
    outside = [
        text
        for text in record.addresses
        if not contained(ip_address(text), cluster.service_networks)
    ]
    if outside:
        return _GROUP.problem(
            check,
            f"{some(outside)} is the API's cluster IP and lies outside of the service network "
            f"{some(cluster.service_networks)}",
            "correct cluster.service_network",
        )
    return _GROUP.ok(check, f"{some(record.addresses)}, in the service network")


def _wildcard(check: str, services: tuple[ServiceSpec, ...], facts: NamesFacts) -> Finding:
    answered = [name for name, record in facts.wildcard.items() if record.addresses]
    if answered or facts.api_wildcard.addresses:
        return _GROUP.ok(
            check, "answered, as by CoreDNS before 1.9: pods of all services are found"
        )
    if all(record.code is None for record in (facts.api_wildcard, *facts.wildcard.values())):
        return _GROUP.unknown(
            check, "no answer", "run doctor again; check the log of the cluster's DNS"
        )
    needing = [
        spec.name
        for spec in services
        if spec.discovery is Discovery.WILDCARD and spec.target is Target.POD
    ]
    if needing:
        return _GROUP.problem(
            check,
            f"not answered, as by CoreDNS since 1.9, but needed by {some(needing)}",
            "make these services headless (clusterIP: None) and declare discovery: auto",
        )
    return _GROUP.ok(check, "not answered, as by CoreDNS since 1.9; no service needs them")


def _srv(check: str, facts: NamesFacts) -> Finding:
    answered = [name for name, record in facts.srv.items() if record.count]
    silent = [name for name, record in facts.srv.items() if not record.count]
    if silent:
        return _GROUP.problem(
            check,
            f"none for the named port of {some(silent)}",
            "name the port in the Service as in pod_port, or give its number",
        )
    if answered or facts.api_srv.count:
        return _GROUP.ok(check, "answered: named ports can be declared")
    if facts.api_srv.code is None:
        return _GROUP.unknown(
            check, "no answer", "run doctor again; check the log of the cluster's DNS"
        )
    return _GROUP.ok(check, "none for _https._tcp.kubernetes.default; no service needs them")
