"""`doctor` on cluster DNS, with real nameservers and their faults."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import dns.message
import pytest

from fc_frontend.demo.dns import ClusterDns, ClusterDnsThread, Fault, KubernetesService
from fc_frontend.doctor.findings import Finding, Result, worst
from fc_frontend.doctor.judge.cluster_dns import (
    NameserverFacts,
    NamesFacts,
    QueryAttempt,
    Record,
    coredns_version,
    judge_names,
    judge_nameserver,
)
from fc_frontend.doctor.observe.cluster_dns import observe_names, observe_nameserver
from fc_frontend.plan.addresses import parse_nameserver
from fc_frontend.plan.model import (
    Bind,
    Discovery,
    Nameserver,
    ServiceSpec,
    Transport,
)
from tests.support.doctor import CLUSTER, result_of, said

SPECS = tuple(
    ServiceSpec(name=name, service=name, binds=(free,), port=port, discovery=discovery)
    for name, port, discovery, free in (
        ("web", 8080, Discovery.AUTO, Bind("ip", "127.0.0.1", 1)),
        ("named", "http", Discovery.AUTO, Bind("ip", "127.0.0.1", 2)),
        ("ip", 8080, Discovery.AUTO, Bind("ip", "127.0.0.1", 3)),
        ("gone", 8080, Discovery.AUTO, Bind("ip", "127.0.0.1", 4)),
    )
)
KUBERNETES = KubernetesService(
    "kubernetes", cluster_ip="10.0.0.1", ports={"https": 443}, endpoints=("192.0.2.1",)
)
CONTENT = (
    KUBERNETES,
    KubernetesService("web", endpoints=("10.1.0.1", "10.1.0.2"), ports={"http": 8080}),
    KubernetesService("named", endpoints=("10.1.0.3",), ports={"http": 8080}),
    KubernetesService("ip", cluster_ip="10.0.0.9", endpoints=("10.1.0.4",)),
)


@contextlib.contextmanager
def nameserver(
    *content: KubernetesService, scheme: str = "", **options: Any
) -> Iterator[tuple[ClusterDnsThread, Nameserver]]:
    with ClusterDnsThread(ClusterDns(content or CONTENT, **options)) as server:
        host, port = server.address
        yield server, parse_nameserver(f"{scheme}{host}:{port}")


def names(at: Nameserver, specs: tuple[ServiceSpec, ...] = SPECS) -> tuple[Finding, ...]:
    return judge_names(CLUSTER, specs, observe_names(at, CLUSTER, specs, 2.0))


def transports(at: Nameserver, *, timeout: float = 2.0) -> tuple[Finding, ...]:
    seen = observe_nameserver(at, CLUSTER.domain, timeout)
    return judge_nameserver(CLUSTER, seen)


def test_a_nameserver_that_is_good() -> None:
    with nameserver(software="CoreDNS-1.11.3") as (_, at):
        found = transports(at)
        assert worst(found) is Result.OK, said(found)
        assert "8192 bytes have room for about 508 pods; larger answers use TCP" in said(found)
        assert "CoreDNS-1.11.3: no wildcard names" in said(found)
        found = names(at)
        assert result_of(found, "kubernetes.default") == "ok"
        assert result_of(found, "SRV records") == "ok"
        assert "2 headless: web, named; 1 with a cluster IP: ip" in said(found)
        assert "no address for gone (gone.default)" in said(found)
        assert worst(found) is Result.WARNING


@pytest.mark.parametrize("software", ["CoreDNS-1.8.0", "dnsmasq-2.90", "a\x1b[2J\nb"])
def test_software_that_tells(software: str) -> None:
    with nameserver(software=software.replace("\x1b", "\\027").replace("\n", "\\010")) as (_, at):
        found = transports(at)
    shown = next(f for f in found if "software" in f.check).as_json()["message"]
    assert shown.isprintable()
    assert ("wildcard names work" in shown) == ("1.8.0" in software)


def test_coredns_versions() -> None:
    assert coredns_version("CoreDNS-1.14.5") == (1, 14, 5)
    assert coredns_version("bind 9") is None


@pytest.mark.parametrize(
    ("fault", "results", "words"),
    [
        (Fault.SILENT, {"127.0.0.1": "problem"}, "over UDP timed out, over TCP timed out"),
        (Fault.REFUSED, {"over UDP": "problem", "over TCP": "problem"}, "answers REFUSED"),
        (Fault.SERVFAIL, {"over UDP": "problem"}, "answers SERVFAIL"),
        (Fault.NXDOMAIN, {"over UDP": "problem"}, "for the zone cluster.local"),
        (
            Fault.TRUNCATED_NO_TCP,
            {"over UDP": "ok", "over TCP": "warning", "EDNS": "warning"},
            "because TCP fails",
        ),
    ],
)
def test_a_nameserver_with_a_fault(fault: Fault, results: dict[str, str], words: str) -> None:
    with nameserver() as (server, at):
        server.set_fault(fault)
        found = transports(at, timeout=0.3)
    for check, result in results.items():
        assert result_of(found, check) == result
    assert words in said(found)


def test_a_nameserver_that_is_gone() -> None:
    with nameserver() as (server, at):
        server.stop_answering()
        found = transports(at)
        silent = names(at)
    assert "over UDP connection refused, over TCP connection refused" in said(found)
    assert [f.result for f in silent] == [Result.UNKNOWN]


def test_a_slow_nameserver() -> None:
    with nameserver() as (server, at):
        server.set_delay(0.25)
        found = transports(at)
    assert result_of(found, "over UDP") == "warning"
    assert "queries each name once a second" in said(found)


def test_sizes_over_udp() -> None:
    many = KubernetesService("web", endpoints=tuple(f"10.1.3.{n}" for n in range(1, 201)))
    with nameserver(KUBERNETES, many, bufsize=1232) as (server, at):
        assert "1232 bytes have room for about 73 pods" in said(transports(at))
        assert "1 headless: web" in said(names(at, SPECS[:1]))
        assert server.queries()["web.default.svc.cluster.local", "A", "tcp"] == 1
        udp_only = replace(at, transports=(Transport.UDP,))
        found = names(udp_only, SPECS[:1])
        assert "truncated answers, and TCP fails: web" in said(found)
        assert worst(found) is Result.PROBLEM
        found = transports(udp_only)
        assert result_of(found, "EDNS size") == "warning"
        assert not [f for f in found if "over TCP" in f.check]
    with nameserver(bufsize=512) as (_, at):
        assert result_of(transports(at), "EDNS size") == "warning"


@contextlib.contextmanager
def lossy(at: Nameserver, *, largest: int = 65535, edns: bool = True) -> Iterator[Nameserver]:
    """Relay to `at`; UDP loses larger answers, or questions with EDNS."""
    relay = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    relay.bind(("127.0.0.1", 0))

    def carry() -> None:
        while True:
            try:
                question, sender = relay.recvfrom(65535)
            except OSError:
                return
            if len(question) < 12:
                return
            if not edns and dns.message.from_wire(question).edns >= 0:
                continue
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as onward:
                onward.settimeout(10)
                onward.sendto(question, (str(at.address), at.port))
                answer = onward.recv(65535)
            if len(answer) <= largest:
                relay.sendto(answer, sender)

    thread = threading.Thread(target=carry, daemon=True)
    thread.start()
    try:
        yield replace(at, port=relay.getsockname()[1], transports=(Transport.UDP,))
    finally:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
            end.sendto(b"end", relay.getsockname())
        thread.join(15)
        relay.close()


def test_fragments_that_get_lost() -> None:
    many = KubernetesService("web", endpoints=tuple(f"10.1.3.{n}" for n in range(1, 201)))
    with nameserver(KUBERNETES, many) as (_, at), lossy(at, largest=1400) as lossy_at:
        found = names(lossy_at, SPECS[:1])
    assert result_of(found, "large answers") == "problem"
    assert "IP fragments are lost" in said(found)


def test_edns_that_gets_lost() -> None:
    with nameserver() as (_, at), lossy(at, edns=False) as lossy_at:
        found = transports(lossy_at, timeout=0.5)
    assert result_of(found, "EDNS size") == "problem"
    assert "queries with EDNS" in said(found)


@pytest.mark.parametrize("wildcards", [True, False])
def test_wildcard_records(wildcards: bool) -> None:
    wanting = (replace(SPECS[0], discovery=Discovery.WILDCARD),)
    with nameserver(wildcards=wildcards) as (_, at):
        assert result_of(names(at), "wildcard records") == "ok"
        found = names(at, wanting)
    assert result_of(found, "wildcard records") == ("ok" if wildcards else "problem")
    assert ("needed by web" in said(found)) == (not wildcards)


def test_names_that_say_that_the_settings_are_wrong() -> None:
    api = replace(KUBERNETES, cluster_ip="172.20.0.1")
    strange = KubernetesService("web", endpoints=("172.16.0.1",))
    unnamed = KubernetesService("named", endpoints=("10.1.0.3",))
    with nameserver(api, strange, unnamed) as (server, at):
        found = names(at, SPECS[:2])
        assert result_of(found, "kubernetes.default") == "problem"
        assert "correct cluster.service_network" in said(found)
        assert "outside of the pod and service networks: web (172.16.0.1)" in said(found)
        assert result_of(found, "SRV records") == "problem"
        server.set_fault(Fault.SERVFAIL, "web.default.svc.cluster.local")
        assert "no usable answer for web (SERVFAIL)" in said(names(at, SPECS[:1]))
    with nameserver(KubernetesService("other")) as (_, at):
        assert result_of(names(at, ()), "kubernetes.default") == "warning"


def test_only_so_many_services_are_asked_about() -> None:
    many = tuple(replace(SPECS[0], name=f"web{n}") for n in range(120))
    with nameserver() as (_, at):
        assert "100 headless" in said(names(at, many))
        assert "20 more were not queried" in said(names(at, many))


def test_a_nameserver_that_falls_silent_for_some_names() -> None:
    found = judge_names(
        CLUSTER,
        SPECS[:1],
        NamesFacts(
            CLUSTER.nameservers[0], Record("NOERROR", ("10.0.0.1",)), bare={"web": Record(None)}
        ),
    )
    assert result_of(found, "wildcard records") == "unknown"
    assert result_of(found, "SRV records") == "unknown"
    assert "no usable answer for web (no answer)" in said(found)


def test_udp_that_does_not_serve() -> None:
    found = judge_nameserver(
        CLUSTER,
        NameserverFacts(
            nameserver=CLUSTER.nameservers[0],
            udp=QueryAttempt(False, "timed out"),
            tcp=QueryAttempt(True, "NOERROR", 0.001),
        ),
    )
    assert result_of(found, "over UDP") == "warning"
    assert result_of(found, "over TCP") == "ok"
