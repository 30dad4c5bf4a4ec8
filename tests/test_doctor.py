"""`doctor`: each judgement by its facts, and each look at the real thing.

Nameserver, HAProxy, namespaces and TLS are real.  Only the API server is a stand-in, as no
Kubernetes runs here: an HTTPS server that answers /readyz and /api/v1/nodes in the API's own words.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import email.utils
import http.server
import json
import os
import pty
import re
import shutil
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import dns.message
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fc_frontend.demo.dns import ClusterDns, ClusterDnsThread, Fault, KubernetesService
from fc_frontend.doctor.examine import Probe, examine
from fc_frontend.doctor.findings import Finding, Group, Result, worst
from fc_frontend.doctor.judge.cluster_dns import (
    Attempt,
    NameserverFacts,
    NamesFacts,
    Record,
    coredns_version,
    judge_names,
    judge_nameserver,
)
from fc_frontend.doctor.judge.haproxy import (
    Build,
    Privilege,
    Socket,
    judge_build,
    judge_low_ports,
    judge_sockets,
    parse_build,
)
from fc_frontend.doctor.judge.kubernetes import (
    KubernetesFacts,
    Node,
    Response,
    ahead,
    judge_kubernetes,
    parse_nodes,
)
from fc_frontend.doctor.judge.machine import (
    Clock,
    Place,
    judge_clock,
    judge_date,
    judge_place,
    judge_serial,
)
from fc_frontend.doctor.judge.network import (
    HostAddress,
    NetworkFacts,
    Route,
    judge_networks,
    parse_routes,
    parse_routes6,
)
from fc_frontend.doctor.observe.cluster_dns import observe_names, observe_nameserver
from fc_frontend.doctor.observe.haproxy import observe_build
from fc_frontend.doctor.observe.kubernetes import observe_kubernetes, read_kubeconfig
from fc_frontend.doctor.observe.machine import observe_clock, observe_place
from fc_frontend.errors import Problem, Unavailable
from fc_frontend.haproxy.conflicts import endpoint_of
from fc_frontend.haproxy.master import show_proc
from fc_frontend.plan.addresses import parse_nameserver
from fc_frontend.plan.model import (
    Bind,
    Cluster,
    Discovery,
    Haproxy,
    Nameserver,
    ServiceSpec,
    Transport,
)
from fc_frontend.syntax.endpoints import Endpoint
from tests.conftest import RealHaproxy, free_bind, until
from tests.frontend import Frontend

ROOT = Path(__file__).parent.parent
CLUSTER = Cluster(
    nameservers=(Nameserver(ip_address("10.0.0.254")),),
    service_networks=(ip_network("10.0.0.0/24"),),
    pod_networks=(ip_network("10.1.0.0/16"),),
)
SECRET = "the-token-that-nobody-may-see"


def result_of(findings: tuple[Finding, ...], check: str) -> str:
    """The result of the one check whose name has `check` in it."""
    found = [finding for finding in findings if check in finding.check]
    assert len(found) == 1, findings
    return found[0].result.value


def said(findings: tuple[Finding, ...]) -> str:
    return "\n".join(f"{f.result} {f.check}: {f.message} → {f.remedy}" for f in findings)


# Findings


def test_the_worst_counts_and_nothing_is_unknown() -> None:
    group = Group("g")
    ok, warning = group.ok("a", "b"), group.warning("a", "b", "c")
    unknown, problem = group.unknown("a", "b", "c"), group.problem("a", "b", "c")
    assert worst(()) is Result.UNKNOWN
    assert worst((ok,)) is Result.OK
    assert worst((warning, ok)) is Result.WARNING
    assert worst((ok, unknown, warning)) is Result.UNKNOWN
    assert worst((problem, unknown, ok)) is Result.PROBLEM


def test_a_probe_that_hangs_or_fails_costs_only_itself() -> None:
    release = threading.Event()
    ended = threading.Event()

    def hang() -> list[Finding]:
        release.wait(30)
        ended.set()
        return []

    def fail() -> list[Finding]:
        raise ValueError(SECRET)

    def refuse() -> list[Finding]:
        raise Unavailable(Problem(message="no such thing", remedy="make it"))

    good = Group("g").ok("good", "all is well")
    heard: list[int] = []
    found = examine(
        (
            Probe("g", "hanging", hang),
            Probe("g", "failing", fail),
            Probe("g", "refusing", refuse),
            Probe("g", "good", lambda: (good,)),
        ),
        whole=1.0,
        told=lambda done, _under_way: heard.append(done),
    )
    assert not ended.is_set()
    release.set()
    assert [f.check for f in found] == ["hanging", "failing", "refusing", "good"]
    assert [f.result for f in found[:3]] == [Result.UNKNOWN] * 3
    assert "no result within 1 s" in found[0].message
    assert SECRET not in said(found)
    assert "ValueError" in found[1].message
    assert (found[2].message, found[2].remedy) == ("no such thing", "make it")
    assert found[3] == good
    assert max(heard) == 3


# Networks

DEFAULT = Route(ip_network("0.0.0.0/0"), "eth0", ip_address("192.0.2.1"))
PODS, SERVICES = CLUSTER.pod_networks[0], CLUSTER.service_networks[0]
OWN = ip_address("192.0.2.2")


def facts(*routes: Route, addresses: dict[str, str] | None = None, **changes: Any) -> NetworkFacts:
    given = {"192.0.2.2/24": "eth0", **(addresses or {})}
    values: dict[str, Any] = {
        "addresses": tuple(HostAddress(name, ip_interface(text)) for text, name in given.items()),
        "routes": routes,
        "sources": {PODS: OWN, SERVICES: OWN} if routes else {PODS: None, SERVICES: None},
    }
    return NetworkFacts(**{**values, **changes})


def route(network: str, interface: str, gateway: str | None = None, refuses: bool = False) -> Route:
    return Route(ip_network(network), interface, ip_address(gateway) if gateway else None, refuses)


@pytest.mark.parametrize(
    ("seen", "overlap", "way", "words"),
    [
        (facts(DEFAULT), "ok", "warning", "only the default route (0.0.0.0/0 by 192.0.2.1"),
        (facts(), "ok", "problem", "no route leads there"),
        (facts(sources={PODS: OWN, SERVICES: None}), "ok", "ok", "another table"),
        (facts(DEFAULT, route("10.1.0.0/16", "flannel.1")), "ok", "ok", "10.1.0.0/16 on flannel.1"),
        (facts(DEFAULT, route("10.1.0.0/16", "eth0", "192.0.2.9")), "ok", "ok", "by 192.0.2.9"),
        (
            facts(DEFAULT, route("10.1.3.0/24", "eth0", "192.0.2.9")),
            "ok",
            "ok",
            "routes to 1 parts of it",
        ),
        (facts(DEFAULT, route("10.0.0.0/8", "tun0", "192.0.2.9")), "ok", "warning", "wider"),
        (facts(DEFAULT, route("10.1.0.0/16", "lo", None, True)), "ok", "problem", "refuses it"),
        (
            facts(DEFAULT, route("10.1.3.0/24", "wg0", "192.0.2.9")),
            "warning",
            "ok",
            "10.1.3.0/24 by 192.0.2.9 on wg0",
        ),
        (facts(DEFAULT, route("10.1.3.0/24", "eth1")), "warning", "ok", "10.1.3.0/24 on eth1"),
        (
            facts(DEFAULT, addresses={"10.1.7.1/24": "eth1"}),
            "problem",
            "warning",
            "10.1.7.1/24 on eth1",
        ),
        (
            facts(DEFAULT, addresses={"10.200.0.1/8": "eth1"}),
            "problem",
            "warning",
            "10.200.0.1/8 on eth1",
        ),
        (
            facts(DEFAULT, route("10.1.0.0/24", "cni0"), addresses={"10.1.0.1/24": "cni0"}),
            "ok",
            "ok",
            "routes to 1 parts of it",
        ),
        (
            facts(DEFAULT, addresses={"10.1.0.1/32": "lo"}),
            "warning",
            "warning",
            "10.1.0.1 on its loopback",
        ),
        (facts(route("0.0.0.0/1", "tun0"), route("128.0.0.0/1", "tun0")), "ok", "warning", "/1"),
        (facts(DEFAULT, addresses={"fd00::1/64": "eth0"}), "ok", "warning", "default route"),
    ],
)  # fmt: skip
def test_the_pod_network(seen: NetworkFacts, overlap: str, way: str, words: str) -> None:
    found = judge_networks(CLUSTER, seen)
    assert result_of(found, "overlap of pod network") == overlap
    assert result_of(found, "route to pod network") == way
    assert words in said(found)
    assert all(bool(f.remedy) == (f.result is not Result.OK) for f in found)


def test_the_default_route_is_enough_for_services_where_kube_proxy_runs() -> None:
    found = judge_networks(CLUSTER, facts(DEFAULT, kube_proxy=True))
    assert result_of(found, "route to service network") == "ok"
    assert result_of(found, "route to pod network") == "warning"


def test_routes_by_others_than_the_nodes_are_strange() -> None:
    cluster = replace(CLUSTER, nodes={"node1": ip_address("192.0.2.10")})
    by_node = facts(DEFAULT, route("10.1.1.0/24", "eth0", "192.0.2.10"))
    by_other = facts(DEFAULT, route("10.1.1.0/24", "eth0", "192.0.2.77"))
    assert result_of(judge_networks(cluster, by_node), "overlap of pod") == "ok"
    assert result_of(judge_networks(cluster, by_other), "overlap of pod") == "warning"


def test_fixed_addresses_and_networks_among_themselves() -> None:
    cluster = Cluster(
        nameservers=(Nameserver(ip_address("10.1.2.3")),),
        service_networks=(ip_network("10.1.0.0/24"),),
        pod_networks=(ip_network("10.1.0.0/16"), ip_network("fd01::/48")),
        nodes={"node1": ip_address("10.1.9.9"), "node2": ip_address("192.0.2.3")},
    )
    networks = (*cluster.service_networks, *cluster.pod_networks)
    found = judge_networks(cluster, facts(DEFAULT, sources=dict.fromkeys(networks, OWN)))
    assert result_of(found, "services and pods apart") == "problem"
    assert result_of(found, "addresses of nodes") == "problem"
    assert "node1 (10.1.9.9)" in said(found)
    assert "node2" not in said(found)
    assert result_of(found, "nameserver 10.1.2.3:53") == "warning"
    assert result_of(found, "route to pod network fd01::/48") == "ok"
    empty = judge_networks(Cluster(), facts(DEFAULT, sources={}))
    assert [f.result for f in empty] == [Result.UNKNOWN] * 2


def test_routes_as_the_kernel_writes_them() -> None:
    table = textwrap.dedent("""\
        Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
        eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
        *\t0000010A\t00000000\t0201\t0\t0\t0\t0000FFFF\t0\t0\t0
        eth1\t0007010A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
        """)
    if sys.byteorder == "little":
        assert parse_routes(table) == (
            DEFAULT,
            Route(ip_network("10.1.0.0/16"), "*", None, True),
            Route(ip_network("10.1.7.0/24"), "eth1"),
        )
    zero = "0" * 32
    table6 = "\n".join(
        (
            f"fd01{'0' * 28} 30 {zero} 00 fe80{'0' * 27}1 00000400 00000001 00000000 00000003 eth0",
            f"{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo",
            f"{'0' * 31}1 80 {zero} 00 {zero} 00000000 00000002 00000000 80200001       lo",
            f"fe80{'0' * 28} 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001     eth0",
            f"ff00{'0' * 28} 08 {zero} 00 {zero} 00000100 00000001 00000000 00000001     eth0",
        )
    )
    assert parse_routes6(table6) == (Route(ip_network("fd01::/48"), "eth0", ip_address("fe80::1")),)


def in_namespace(tmp_path: Path, setup: str, config: dict[str, Any]) -> dict[str, Any]:
    """What doctor says in a network namespace of its own, after the shell commands `setup`."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    user = [] if os.getuid() == 0 else ["--map-root-user"]
    script = f'set -e; ip link set lo up; {setup}; exec "$@"'
    done = subprocess.run(
        [
            *("unshare", *user, "--net", "/bin/sh", "-c", script, "sh"),
            *(sys.executable, "-m", "fc_frontend", "doctor", "-c", str(path), "--format", "json"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout, done.stderr
    findings = json.loads(done.stdout)["findings"]
    return {finding["check"]: finding for finding in findings}


VETH = "ip link add {0} type veth peer name {0}p; ip link set {0} up; ip link set {0}p up"


def test_overlaps_and_routes_in_a_namespace(tmp_path: Path) -> None:
    config = {
        "cluster": {"nameservers": ["127.0.0.1:5"], "pod_network": ["10.1.0.0/16", "fd01::/48"]},
        "haproxy": {"log": None},
    }
    bad = in_namespace(
        tmp_path,
        f"{VETH.format('eth7')}; ip address add 10.1.200.5/24 dev eth7; "
        "ip route add default via 10.1.200.1; ip route add blackhole 10.0.0.0/24",
        config,
    )
    assert bad["overlap of pod network 10.1.0.0/16"]["result"] == "problem"
    assert "10.1.200.5/24 on eth7" in bad["overlap of pod network 10.1.0.0/16"]["message"]
    assert bad["route to service network 10.0.0.0/24"]["result"] == "problem"
    assert "refuses" in bad["route to service network 10.0.0.0/24"]["message"]
    assert bad["route to pod network fd01::/48"]["result"] == "problem"
    good = in_namespace(
        tmp_path,
        f"{VETH.format('eth0')}; ip address add 192.0.2.2/24 dev eth0; "
        f"{VETH.format('flannel.1')}; ip address add 10.1.4.0/32 dev flannel.1; "
        "ip route add 10.1.0.0/16 dev flannel.1; ip route add 10.0.0.0/24 via 192.0.2.9; "
        "ip -6 address add fd99::1/64 dev eth0 nodad; ip -6 route add fd01::/48 via fd99::2",
        config,
    )
    for network in ("10.1.0.0/16", "fd01::/48"):
        assert good[f"overlap of pod network {network}"]["result"] == "ok"
        assert good[f"route to pod network {network}"]["result"] == "ok"
    assert good["route to service network 10.0.0.0/24"]["result"] == "ok"
    assert "by 192.0.2.9 on eth0" in good["route to service network 10.0.0.0/24"]["message"]
    assert "by fd99::2 on eth0" in good["route to pod network fd01::/48"]["message"]


def test_a_route_of_another_table_counts(tmp_path: Path) -> None:
    found = in_namespace(
        tmp_path,
        f"{VETH.format('eth0')}; ip address add 192.0.2.2/24 dev eth0; "
        "ip route add 10.1.0.0/16 via 192.0.2.9 table 77; ip rule add to 10.1.0.0/16 table 77",
        {"cluster": {"nameservers": ["127.0.0.1:5"]}},
    )
    assert "another table" in found["route to pod network 10.1.0.0/16"]["message"]
    assert found["route to service network 10.0.0.0/24"]["result"] == "problem"


# Cluster DNS

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
        assert "8192 bytes hold some 508 pods; what is larger comes over TCP" in said(found)
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
        (Fault.REFUSED, {"over UDP": "problem", "over TCP": "problem"}, "it says REFUSED"),
        (Fault.SERVFAIL, {"over UDP": "problem"}, "it says SERVFAIL"),
        (Fault.NXDOMAIN, {"over UDP": "problem"}, "for the zone cluster.local"),
        (
            Fault.TRUNCATED_NO_TCP,
            {"over UDP": "ok", "over TCP": "warning", "EDNS": "warning"},
            "TCP does not serve",
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
    assert "asks each name once a second" in said(found)


def test_sizes_over_udp() -> None:
    many = KubernetesService("web", endpoints=tuple(f"10.1.3.{n}" for n in range(1, 201)))
    with nameserver(KUBERNETES, many, bufsize=1232) as (server, at):
        assert "1232 bytes hold some 73 pods" in said(transports(at))
        assert "1 headless: web" in said(names(at, SPECS[:1]))
        assert server.queries()["web.default.svc.cluster.local", "A", "tcp"] == 1
        udp_only = replace(at, transports=(Transport.UDP,))
        found = names(udp_only, SPECS[:1])
        assert "truncated answers, and no TCP to get the rest: web" in said(found)
        assert worst(found) is Result.PROBLEM
        found = transports(udp_only)
        assert result_of(found, "EDNS size") == "warning"
        assert not [f for f in found if "over TCP" in f.check]
    with nameserver(bufsize=512) as (_, at):
        assert result_of(transports(at), "EDNS size") == "warning"


@contextlib.contextmanager
def lossy(at: Nameserver, *, largest: int = 65535, edns: bool = True) -> Iterator[Nameserver]:
    """A way to `at` on which UDP loses larger answers, or questions with EDNS."""
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
    assert "fragments get lost" in said(found)


def test_edns_that_gets_lost() -> None:
    with nameserver() as (_, at), lossy(at, edns=False) as lossy_at:
        found = transports(lossy_at, timeout=0.5)
    assert result_of(found, "EDNS size") == "problem"
    assert "questions with EDNS" in said(found)


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
        assert "20 more were not asked about" in said(names(at, many))


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
            udp=Attempt(False, "timed out"),
            tcp=Attempt(True, "NOERROR", 0.001),
        ),
    )
    assert result_of(found, "over UDP") == "warning"
    assert result_of(found, "over TCP") == "ok"


# HAProxy

TODAY = datetime.date(2026, 11, 23)


@pytest.mark.parametrize(
    ("branch", "status", "expected", "words"),
    [
        ("2.4", "", "warning", "got its last fixes in Q2 2026"),
        ("2.6", "", "ok", "until Q2 2027 (known as of"),
        ("3.3", "", "ok", "until Q1 2027"),
        ("2.9", "", "warning", "Q1 2025"),
        ("4.0", "long-term branch - will stop receiving fixes around Q2 2034.", "ok", "its own"),
        ("4.1", "stable branch - will stop receiving fixes around Q3 2026.", "warning", "Q3 2026"),
        ("4.1", "stable branch - will stop receiving fixes around Q4 2026.", "ok", "Q4 2026"),
        ("3.5", "development branch - not safe for use in production.", "warning", "development"),
        ("9.9", "", "unknown", "nothing is known"),
    ],
)
def test_end_of_life(branch: str, status: str, expected: str, words: str) -> None:
    build = Build(
        path="haproxy", version=f"{branch}.1", branch=branch, supported=True, status=status
    )
    found = judge_build(build, TODAY, with_tls=False, with_stats=False)
    assert result_of(found, "end of life") == expected
    assert words in said(found)


def test_features() -> None:
    bare = Build(path="haproxy", version="2.6.1", branch="2.6", supported=True)
    full = replace(bare, features=frozenset({"OPENSSL", "PROMEX"}))
    old = replace(bare, version="2.2.1", supported=False)
    for build, tls, stats, expected in (
        (bare, True, True, "problem"),
        (bare, False, True, "warning"),
        (bare, False, False, "ok"),
        (full, True, True, "ok"),
    ):
        found = judge_build(build, TODAY, with_tls=tls, with_stats=stats)
        assert result_of(found, "features") == expected
    found = judge_build(old, TODAY, with_tls=False, with_stats=False)
    assert result_of(found, "version") == "problem"


def test_the_real_binaries_tell_all(haproxy_binary: str) -> None:
    build = observe_build(Haproxy(binary=haproxy_binary), 10.0)
    assert build.supported
    assert {"OPENSSL", "PROMEX"} <= build.features
    # The table and the binary's own word agree.
    own = parse_build("", f"Status: {build.status}\n", build.version, "0.0", True)
    for known in (build, own):
        found = judge_build(known, TODAY, with_tls=True, with_stats=True)
        year = "2027" if build.branch == "2.6" else "2028"
        assert f"until Q2 {year}" in said(found)


def test_sockets() -> None:
    problem = Problem(message="it refuses", remedy="ask again")
    away = Socket("s", problem, is_there=False)
    good, master = Socket("r", level="admin", version="2.8.1"), Socket("m", version="2.8.1")

    def judged(runtime: Socket, other: Socket, **settings: Any) -> tuple[Finding, ...]:
        return judge_sockets(Haproxy(**settings), runtime, other, "2.8.1")

    assert worst(judged(good, master)) is Result.OK
    assert worst(judged(away, away)) is Result.WARNING
    assert worst(judged(away, away, supervise=True)) is Result.OK
    assert result_of(judged(good, away), "master socket") == "problem"
    assert worst(judged(good, away, reload_command=("true",))) is Result.OK
    assert result_of(judged(away, master), "runtime socket") == "problem"
    assert result_of(judged(replace(good, level="operator"), master), "runtime") == "problem"
    updated = judge_sockets(Haproxy(), good, master, "2.8.25")
    assert result_of(updated, "running version") == "warning"


def test_low_ports() -> None:
    low, high = (endpoint_of(Bind("ip", "*", port)) for port in (443, 8080))

    def judged(may: bool | None, *binds: Endpoint, first: int = 1024) -> str:
        privilege = Privilege(first_free=first, may=may, who="HAProxy's master")
        return judge_low_ports(binds, privilege).result.value

    assert judged(False, high) == "ok"
    assert judged(False, low, high) == "problem"
    assert judged(True, low) == "ok"
    assert judged(None, low) == "unknown"
    assert judged(None, low, first=80) == "ok"
    assert judged(False, endpoint_of(Bind("unix", "/run/x"))) == "ok"


@pytest.fixture
def frontend(either_binary: str) -> Iterator[Frontend]:
    with Frontend(either_binary) as made:
        yield made


def doctor(frontend: Frontend, *arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit code and the findings by check; several of the same check are joined."""
    done = frontend.run("doctor", "--format", "json", *arguments, check=False)
    assert not done.stderr, done.stderr
    found: dict[str, dict[str, str]] = {}
    for finding in json.loads(done.stdout)["findings"]:
        seen = found.setdefault(finding["check"], finding)
        if seen is not finding:
            seen["message"] += f"; {finding['message']}"
            seen["result"] += f" {finding['result']}"
    return done.returncode, found


def files(frontend: Frontend) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns)
        for path in frontend.directory.rglob("*")
        if path != frontend.log and not path.name.startswith(".")
    }


def test_a_running_frontend_is_fit_and_stays_as_it_is(frontend: Frontend) -> None:
    frontend.settings["services"]["web"] = frontend.service("web", 8001)
    frontend.scale("web", 2)
    frontend.start()
    frontend.until(lambda: frontend.answers(8001, 4).keys())
    frontend.stop_daemon()
    master = frontend.settings["haproxy"]["master_socket"]
    before, processes = files(frontend), show_proc(master)
    _, found = doctor(frontend)
    assert files(frontend) == before
    after = show_proc(master)
    assert (after.worker, after.reloads) == (processes.worker, processes.reloads)
    # The daemon too: it serves while it is looked at.
    frontend.start()
    _, found = doctor(frontend)
    for check in ("runtime socket", "master socket", "binds", "low ports", "file descriptors"):
        assert found[check]["result"] == "ok", found[check]
    assert "listen" not in found
    assert "with level admin" in found["runtime socket"]["message"]
    assert found["directory of haproxy.cfg"]["result"] == "ok"
    assert found["state directory"]["result"] == "ok"
    assert found["time"]["result"] == "ok"
    at = ":".join(map(str, frontend.dns.address))
    assert found[f"against {at}"]["result"] == "ok"
    assert "1 headless: web" in found[f"{at} declared services"]["message"]
    assert frontend.answers(8001, 4).keys()


def test_binds_that_others_hold(frontend: Frontend) -> None:
    frontend.settings["services"]["web"] = frontend.service("web", 8001)
    frontend.write()
    with socket.create_server((frontend.host, 8001)), socket.create_server((frontend.host, 9484)):
        code, found = doctor(frontend)
    assert code == 1
    assert found["binds"]["result"] == "problem"
    assert f"{frontend.host}:8001 is held by" in found["binds"]["message"]
    assert f"{frontend.host}:9484 is held by" in found["listen"]["message"]
    assert found["sockets"]["result"] == "ok"
    assert "supervise" in found["sockets"]["message"]


def test_a_runtime_socket_that_permits_too_little(haproxy: RealHaproxy, frontend: Frontend) -> None:
    text = haproxy.configuration(binds=(free_bind(),)).replace("level admin", "level operator")
    haproxy.start(text)
    frontend.settings["haproxy"].update(
        runtime_socket=haproxy.runtime_socket, master_socket=haproxy.master_socket
    )
    frontend.write()
    reloads = haproxy.processes().reloads
    _, found = doctor(frontend)
    assert found["runtime socket"]["result"] == "problem"
    assert "permits level operator only" in found["runtime socket"]["message"]
    assert found["master socket"]["result"] == "ok"
    assert haproxy.processes().reloads == reloads


def test_sockets_that_hang_cost_only_their_time(frontend: Frontend) -> None:
    """And a nameserver that says nothing: the whole ends within 15 seconds."""
    frontend.settings["services"] = {
        f"web{n}": frontend.service(f"web{n}", 10000 + n) for n in range(50)
    }
    frontend.write()
    frontend.dns.fault = Fault.SILENT
    with contextlib.ExitStack() as stack:
        for name in ("master_socket", "runtime_socket"):
            silent = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            silent.bind(frontend.settings["haproxy"][name])
            silent.listen()
        code, found = doctor(frontend)
    assert code == 1
    at = ":".join(map(str, frontend.dns.address))
    assert "timed out" in found[at]["message"]
    assert found[f"{at} names"]["result"] == "unknown"
    assert "no complete answer" in found["runtime socket"]["message"]
    assert "no complete answer" in found["master socket"]["message"]


def test_no_haproxy_at_all(frontend: Frontend) -> None:
    frontend.settings["haproxy"].update(binary="/nowhere/haproxy", supervise=False)
    frontend.write()
    code, found = doctor(frontend)
    assert code == 1
    assert found["version"]["result"] == "problem"
    assert found["sockets"]["result"] == "warning"


# Files and the clock


def test_places(tmp_path: Path) -> None:
    good = observe_place("state directory", str(tmp_path))
    assert (good.writable, good.nearest) == (True, str(tmp_path))
    new = observe_place("state directory", str(tmp_path / "a" / "b"))
    assert (new.writable, new.nearest) == (True, str(tmp_path))
    assert "will be made" in said(judge_place(new))
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    blocked = observe_place("state directory", str(tmp_path / "file" / "b"))
    assert worst(judge_place(blocked)) is Result.PROBLEM
    full = replace(good, free=1000)
    assert worst(judge_place(full)) is Result.WARNING


def test_nothing_writable_at_all(tmp_path: Path) -> None:
    """In a mount namespace whose every mount is read-only, as a broken disk makes it."""
    settings = {
        "cluster": {"nameservers": ["127.0.0.1:5"]},
        "state_directory": str(tmp_path),
        "haproxy": {"config_file": str(tmp_path / "haproxy.cfg")},
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings))
    script = 'mount -o remount,bind,ro / 2>/dev/null || mount -o remount,ro,bind / && exec "$@"'
    user = [] if os.getuid() == 0 else ["--user", "--map-root-user"]
    done = subprocess.run(
        [
            *("unshare", *user, "--mount", "/bin/sh", "-c", script, "sh"),
            *(sys.executable, "-B", "-m", "fc_frontend", "doctor", "-c", str(path)),
            *("--format", "json"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    found = {f["check"]: f for f in json.loads(done.stdout)["findings"]}
    assert done.returncode == 1
    for check in ("directory of haproxy.cfg", "state directory"):
        assert found[check]["result"] == "problem"
        assert f"may not write in {tmp_path}" in found[check]["message"]


def test_the_clock(tmp_path: Path) -> None:
    now = datetime.datetime(2026, 11, 23, tzinfo=datetime.UTC).timestamp()
    assert worst(judge_clock(Clock(now, now - 5, "f", True))) is Result.OK
    assert worst(judge_clock(Clock(now, now + 30, "f", True))) is Result.OK
    assert worst(judge_clock(Clock(now, now + 90, "f", True))) is Result.PROBLEM
    assert worst(judge_clock(Clock(0.0, None, "", True))) is Result.PROBLEM
    assert result_of(judge_clock(Clock(now)), "synchronized") == "unknown"
    assert result_of(judge_clock(Clock(now, synchronized=False)), "synchronized") == "warning"
    future = tmp_path / "history"
    future.write_text("")
    os.utime(future, (time.time() + 3600, time.time() + 3600))
    seen = observe_clock(str(tmp_path))
    assert seen.newest_path == str(future)
    assert result_of(judge_clock(seen), "time") == "problem"
    assert seen.synchronized is not None
    assert observe_clock(str(tmp_path / "none")).newest_file is None


def test_other_clocks() -> None:
    assert judge_serial("dns", None, 2e9) == ()
    # Other servers have dates, which no clock shows before 2033.
    assert judge_serial("dns", 2026112301, 1.8e9) == ()
    assert judge_serial("dns", 1, 2e9) == ()
    assert judge_serial("dns", 1_900_000_000, 2e9)[0].result is Result.OK
    assert judge_serial("dns", 2_000_001_000, 2e9)[0].result is Result.WARNING
    assert ahead(1000.0, 1000.2, 1000.4) == 0
    assert ahead(1300.0, 1000.0, 1000.0) == 300
    assert judge_date("api", 0.0).result is Result.OK
    assert judge_date("api", 300.0).result is Result.PROBLEM
    assert "300 s ahead of" in judge_date("api", -300.0).message


# The API server


@dataclass(frozen=True)
class Certificates:
    """An authority, and what it has signed; all are PEM files."""

    directory: Path

    def data(self, name: str) -> str:
        return base64.b64encode((self.directory / name).read_bytes()).decode()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    directory = tmp_path_factory.mktemp("tls")
    openssl = shutil.which("openssl")
    assert openssl, "apt install openssl"

    def run(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], cwd=directory, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for authority in ("ca", "other"):
        run("req", "-x509", *key, "-subj", f"/CN={authority}", "-days", "30",
            "-keyout", f"{authority}.key", "-out", f"{authority}.crt")  # fmt: skip
    for name in ("server", "client"):
        run("req", *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr",
            "-addext", "subjectAltName=IP:127.0.0.1,DNS:kubernetes")  # fmt: skip
        run("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key",
            "-CAcreateserial", "-days", "20", "-copy_extensions", "copy",
            "-out", f"{name}.crt")  # fmt: skip
    return Certificates(directory)


class ApiServer(http.server.ThreadingHTTPServer):
    """A stand-in for a Kubernetes API server: two paths, by certificate or token."""

    daemon_threads = True
    ready = 200
    status = 200
    ahead = 0.0
    nodes: object = None
    raw: bytes | None = None
    redirect: str | None = None
    asked: list[tuple[str, str | None]]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that does not trust us hangs up: nothing to tell."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: ApiServer

    def log_message(self, *_arguments: object) -> None:
        """Nothing: the test reads `asked`."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        return email.utils.formatdate(time.time() + self.server.ahead, usegmt=True)

    def do_GET(self) -> None:
        server, authorization = self.server, self.headers["Authorization"]
        server.asked.append((self.path, authorization))
        peer = self.connection.getpeercert()
        if server.redirect:
            self.send_response(302)
            self.send_header("Location", server.redirect)
            self.end_headers()
        elif not peer and authorization != f"Bearer {SECRET}":
            self._answer(401, b'{"message": "Unauthorized"}')
        elif self.path == "/readyz":
            self._answer(server.ready, b"ok" if server.ready == 200 else b"[-]etcd failed\x1b[2J")
        elif self.path.startswith("/api/v1/nodes"):
            body = server.raw if server.raw is not None else json.dumps(server.nodes).encode()
            self._answer(server.status, body)
        else:
            self._answer(404, b"")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def node(name: str, *, ready: bool = True, network: str = "10.1.0.0/24") -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "spec": {"podCIDR": network, "podCIDRs": [network]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "192.0.2.10"}],
            "conditions": [
                {"type": "DiskPressure", "status": "False"},
                {"type": "Ready", "status": str(ready), "reason": "KubeletNotReady"},
            ],
        },
    }


@pytest.fixture
def api(certificates: Certificates) -> Iterator[ApiServer]:
    server = ApiServer(("127.0.0.1", 0), _Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(
        certificates.directory / "server.crt", certificates.directory / "server.key"
    )
    context.load_verify_locations(certificates.directory / "ca.crt")
    context.verify_mode = ssl.CERT_OPTIONAL
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.asked = []
    server.nodes = {"items": [node("node1"), node("node2", network="10.1.1.0/24")]}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join(10)
    server.server_close()


@pytest.fixture
def kubeconfig(api: ApiServer, certificates: Certificates, tmp_path: Path) -> KubeConfig:
    return KubeConfig(tmp_path / "kubeconfig", api, certificates)


class KubeConfig:
    """A kubeconfig with a client certificate, as `kubernetes-make-kubeconfig` makes it."""

    def __init__(self, path: Path, api: ApiServer, certificates: Certificates) -> None:
        self.path = path
        self.cluster: dict[str, Any] = {
            "server": f"https://127.0.0.1:{api.server_address[1]}",
            "certificate-authority-data": certificates.data("ca.crt"),
        }
        self.user: dict[str, Any] = {
            "client-certificate-data": certificates.data("client.crt"),
            "client-key-data": certificates.data("client.key"),
        }
        self.write()

    def write(self, text: str | None = None) -> str:
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [
                {"name": "there", "context": {"cluster": "x", "user": "y"}},
                {"name": "here", "context": {"cluster": "c", "user": "u"}},
            ],
            "clusters": [{"name": "c", "cluster": self.cluster}],
            "users": [{"name": "u", "user": self.user}],
        }
        self.path.write_text(text if text is not None else yaml.safe_dump(document))
        self.path.chmod(0o600)
        return str(self.path)

    def judged(self, cluster: Cluster = CLUSTER) -> tuple[Finding, ...]:
        return judge_kubernetes(cluster, observe_kubernetes(str(self.path), 5.0))


def test_the_api_by_certificate(kubeconfig: KubeConfig, api: ApiServer) -> None:
    found = kubeconfig.judged()
    assert worst(found) is Result.OK, said(found)
    assert "2 are ready: node1, node2" in said(found)
    assert "within 1 s of it" in said(found)
    assert [path for path, _ in api.asked] == ["/readyz", "/api/v1/nodes?limit=500"]
    assert {token for _, token in api.asked} == {None}


def test_the_api_by_token_which_is_never_shown(
    kubeconfig: KubeConfig, api: ApiServer, frontend: Frontend
) -> None:
    kubeconfig.user = {"token": SECRET}
    kubeconfig.write()
    frontend.write()
    for shape in ("text", "json", "nagios"):
        done = frontend.run(
            *("doctor", "--kubeconfig", str(kubeconfig.path), "--format", shape), check=False
        )
        assert SECRET not in done.stdout + done.stderr
    assert (
        "is ready"
        in frontend.run("doctor", "--kubeconfig", str(kubeconfig.path), check=False).stdout
    )
    assert {token for _, token in api.asked} == {f"Bearer {SECRET}"}
    assert SECRET not in repr(read_kubeconfig(str(kubeconfig.path)))
    token_file = kubeconfig.path.with_name("token")
    token_file.write_text(f"{SECRET}\n")
    kubeconfig.user = {"tokenFile": "token"}
    kubeconfig.write()
    assert worst(kubeconfig.judged()) is Result.OK
    kubeconfig.user = {"token": "wrong"}
    kubeconfig.write()
    found = kubeconfig.judged()
    assert worst(found) is Result.UNKNOWN
    assert "does not accept the kubeconfig's certificate or token" in said(found)


def test_nodes_and_readiness(kubeconfig: KubeConfig, api: ApiServer) -> None:
    api.nodes = {"items": [node("node1"), node("node2", ready=False)]}
    found = kubeconfig.judged()
    assert result_of(found, "nodes") == "warning"
    assert "node2 (KubeletNotReady)" in said(found)
    api.nodes = {"items": [node("node1", ready=False)]}
    assert result_of(kubeconfig.judged(), "nodes") == "problem"
    api.nodes = {"items": [node("node1", network="10.77.0.0/24")]}
    assert result_of(kubeconfig.judged(), "pod network") == "problem"
    assert "10.77.0.0/24 (node1)" in said(kubeconfig.judged())
    strange = replace(CLUSTER, nodes={"a": ip_address("192.0.2.10"), "b": ip_address("192.0.2.99")})
    assert "no node has the address of b (192.0.2.99)" in said(kubeconfig.judged(strange))
    api.ready, api.ahead = 500, 600
    found = kubeconfig.judged()
    assert result_of(found, "readyz") == "problem"
    assert "etcd failed" in said(found)
    assert "behind it" in said(found)
    assert all(f.as_json()["message"].isprintable() for f in found)
    api.status = 403
    assert "may not ask for it (403)" in said(kubeconfig.judged())


def test_an_api_that_answers_strangely(kubeconfig: KubeConfig, api: ApiServer) -> None:
    api.raw = b"[[["
    assert result_of(kubeconfig.judged(), "nodes") == "unknown"
    api.raw = b"[" * 100_000
    assert result_of(kubeconfig.judged(), "nodes") == "unknown"
    api.raw = b"null"
    assert result_of(kubeconfig.judged(), "nodes") == "problem"
    # A redirect is not followed: the token would go with it.
    api.redirect = "https://127.0.0.1:1/elsewhere"
    found = kubeconfig.judged()
    assert "says 302" in said(found)


def test_an_api_that_is_not_trusted_or_not_there(
    kubeconfig: KubeConfig, api: ApiServer, certificates: Certificates
) -> None:
    kubeconfig.cluster["certificate-authority-data"] = certificates.data("other.crt")
    kubeconfig.write()
    found = kubeconfig.judged()
    assert worst(found) is Result.PROBLEM
    assert "its certificate is not good" in said(found)
    assert not api.asked
    kubeconfig.cluster["insecure-skip-tls-verify"] = True
    kubeconfig.path.chmod(0o644)
    kubeconfig.write()
    kubeconfig.path.chmod(0o644)
    found = kubeconfig.judged()
    assert result_of(found, "kubeconfig") == "warning"
    assert result_of(found, "certificate") == "warning"
    assert result_of(found, "nodes") == "ok"
    del kubeconfig.cluster["insecure-skip-tls-verify"]
    kubeconfig.cluster["certificate-authority-data"] = certificates.data("ca.crt")
    kubeconfig.cluster["tls-server-name"] = "kubernetes"
    kubeconfig.write()
    assert worst(kubeconfig.judged()) is Result.OK
    kubeconfig.cluster["tls-server-name"] = "another"
    kubeconfig.write()
    assert "its certificate is not good" in said(kubeconfig.judged())
    del kubeconfig.cluster["tls-server-name"]
    kubeconfig.cluster["server"] = "https://127.0.0.1:1"
    kubeconfig.write()
    assert "connection refused" in said(kubeconfig.judged()).lower()


def test_a_certificate_that_ends_soon() -> None:
    seen = KubernetesFacts(
        server="https://api",
        ready=Response(200),
        listed=Response(200),
        nodes=(Node("n", True),),
        certificate_days=3.0,
    )
    assert result_of(judge_kubernetes(CLUSTER, seen), "certificate") == "warning"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text": "{"}, "not YAML"),
        ({"text": "[]"}, "not a kubeconfig"),
        ({"text": "current-context: here\n"}, "its current-context is missing"),
        ({"server": "http://127.0.0.1"}, "not an https URL"),
        ({"server": "https://user:pw@127.0.0.1"}, "not an https URL"),
        ({"server": "https://127.0.0.1/a b\r\nX: y"}, "not an https URL"),
        ({"server": "https://127.0.0.1:99999"}, "not a URL"),
        ({"certificate-authority-data": "%%%"}, "not base64"),
        ({"certificate-authority-data": "YWJj"}, "not PEM"),
        ({"certificate-authority": "missing.crt"}, "cannot be read"),
        ({"user": {}}, "neither certificate nor token"),
        ({"user": {"exec": {"command": "touch"}}}, "`exec` is not used here"),
        ({"user": {"token": f"{SECRET}\r\nX-Evil: 1"}}, "its token is not a token"),
        ({"user": {"token": [SECRET]}}, "its token is not a token"),
        ({"user": {"client-certificate-data": "LS0tLS1CRUdJTiBYLS0tLS0K"}}, "cannot be used"),
    ],
)
def test_kubeconfigs_that_cannot_be_used(
    kubeconfig: KubeConfig, change: dict[str, Any], words: str
) -> None:
    text = change.pop("text", None)
    if "user" in change:
        kubeconfig.user = change.pop("user")
    if "certificate-authority" in change:
        del kubeconfig.cluster["certificate-authority-data"]
    kubeconfig.cluster.update(change)
    kubeconfig.write(text)
    with pytest.raises(Unavailable) as caught:
        kubeconfig.judged()
    assert words in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "kubernetes-make-kubeconfig" in caught.value.problems[0].remedy


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(
                ["items", "metadata", "name", "status", "conditions", "type", "spec", "podCIDRs"]
            ),
            inner,
        )
    ),
)


@given(_ANY)
def test_any_list_of_nodes_can_be_judged(document: Any) -> None:
    facts = KubernetesFacts(
        server="s", ready=Response(200), listed=Response(200), nodes=parse_nodes(document)
    )
    assert judge_kubernetes(CLUSTER, facts)


# The command


def test_the_command_as_text_and_for_nagios(frontend: Frontend) -> None:
    frontend.settings["services"]["web"] = frontend.service("web", 8001)
    frontend.write()
    done = frontend.run("doctor", check=False)
    for group in ("network", "cluster DNS", "HAProxy", "files", "clock"):
        assert f"\n{group}\n" in f"\n{done.stdout}"
    assert "\x1b" not in done.stdout
    rows = re.findall(
        r"^  (ok|warning|problem|unknown) +\S.*\n((?:   +→ .*\n)*)", done.stdout, re.MULTILINE
    )
    assert len(rows) > 15
    assert all(bool(remedy) == (word != "ok") for word, remedy in rows)
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"(fit|fit, with warnings|cannot tell|not fit): .*\d+ ok", last)
    words = {word for word, _ in rows}
    assert done.returncode == (1 if "problem" in words else 3 if "unknown" in words else 0)
    nagios = frontend.run("doctor", "--format", "nagios", check=False)
    code = 2 if "problem" in words else 3 if "unknown" in words else 1 if "warning" in words else 0
    assert nagios.returncode == code
    assert re.match(
        r"FC-FRONTEND (OK|WARNING|CRITICAL|UNKNOWN) - .* \| problems=\d+ warnings=\d+ unknown=\d",
        nagios.stdout,
    )


def test_settings_that_cannot_be_read_and_services_that_are_wrong(frontend: Frontend) -> None:
    frontend.config.write_text("{")
    assert frontend.run("doctor", check=False).returncode == 3
    for shape in ("json", "nagios"):
        done = frontend.run("doctor", "--format", shape, check=False)
        assert done.returncode == 3
        assert "unknown" in done.stdout.lower()
    frontend.config.write_text(json.dumps({"cluster": {"pod_network": "everything"}}))
    done = frontend.run("doctor", check=False)
    assert done.returncode == 3
    assert "'everything' is not a network" in done.stderr
    overlapping = {"pod_network": "10.1.0.0/16", "service_network": "10.1.0.0/24"}
    frontend.config.write_text(json.dumps({"cluster": overlapping}))
    code, found = doctor(frontend)
    assert code == 1
    assert found["services and pods apart"]["result"] == "problem"
    frontend.settings["services"]["web"] = {"pod_port": 0}
    frontend.write()
    code, found = doctor(frontend)
    assert code == 1
    assert found["declaration"]["result"] == "problem"
    assert found["state directory"]["result"] == "ok"


def test_wrong_usage(frontend: Frontend) -> None:
    assert frontend.run("doctor", "--format", "xml", check=False).returncode == 2


def test_progress_on_a_terminal(frontend: Frontend) -> None:
    frontend.write()
    frontend.dns.fault = Fault.SILENT
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "fc_frontend", "doctor", "-c", str(frontend.config)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    seen = bytearray()
    try:
        while chunk := os.read(ours, 4096):
            seen += chunk
    except OSError:  # EIO: the last one has closed its end
        pass
    finally:
        os.close(ours)
    until(lambda: process.poll() is not None)
    assert b"done; now: cluster DNS" in seen
    assert seen.endswith(b"\r\x1b[K")


def test_help_teaches() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fc_frontend", "doctor", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    for word in ("overlaps", "--kubeconfig", "changes nothing", "Exit code"):
        assert word in done.stdout


def test_places_are_judged_by_what_is_seen() -> None:
    place = Place(
        check="c",
        path="/a/b",
        nearest="/a/b",
        is_directory=True,
        writable=False,
        user="u",
        free=None,
    )
    assert "u may not write in /a/b" in said(judge_place(place))
