"""`doctor` on networks: overlaps and routes, from given facts and in real network namespaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from fc_frontend.doctor.findings import Result
from fc_frontend.doctor.judge.network import (
    HostAddress,
    NetworkFacts,
    Route,
    judge_networks,
    parse_routes,
    parse_routes6,
)
from fc_frontend.plan.model import (
    Cluster,
    Nameserver,
)
from tests.support.doctor import CLUSTER, result_of, said

ROOT = Path(__file__).parent.parent

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
        (facts(), "ok", "problem", "no route"),
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
    assert result_of(found, "services and pods") == "problem"
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
    """Return the output of doctor in a new network namespace, after the shell commands `setup`."""
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
