"""`doctor` on packet filter rules that take connections before HAProxy gets them.

The rules are as kube-proxy (iptables and nftables mode), the CNI plugin portmap, Docker and
firewalls write them.  The judgments are compared with the connections that arrive in network
namespaces.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_frontend.doctor.findings import Finding, Result
from fc_frontend.doctor.judge.iptables import parse_iptables
from fc_frontend.doctor.judge.nftables import parse_nftables
from fc_frontend.doctor.judge.packets import (
    Connection,
    Hit,
    PacketFacts,
    Table,
    follow,
    judge_packets,
)
from fc_frontend.errors import Problem
from tests.test_doctor_network import VETH, in_namespace

ROOT = Path(__file__).parent.parent
RULES = ROOT / "tests/recorded/packet_filter"
IPTABLES = RULES / "kube-proxy.iptables"
NFTABLES = RULES / "kube-proxy.nft"
LISTED = RULES / "kube-proxy.nft.json"
"""The output of `nft --json list ruleset` (1.0.6) for the rules."""
ADDRESS = "198.51.100.2"
SETUP = f"{VETH.format('eth9')}; ip address add {ADDRESS}/32 dev eth9"


def judged(tables: tuple[Table, ...], port: int, host: str = ADDRESS) -> Finding:
    (finding,) = judge_packets([Connection(ip_address(host), port)], PacketFacts(tables))
    return finding


def of_iptables() -> tuple[Table, ...]:
    return parse_iptables(IPTABLES.read_text(), 4)


def of_nftables() -> tuple[Table, ...]:
    return parse_nftables(LISTED.read_text(), with_iptables=True)


@pytest.mark.parametrize(
    ("port", "result", "owner", "remedy"),
    [
        (80, "problem", "redirected before HAProxy gets them, by kube-proxy for Service "
         "kube-system/traefik", "--disable=servicelb,traefik"),
        (443, "ok", "no rule", ""),
        (5000, "problem", "by Docker", "docker ps"),
        (6000, "problem", "refused before HAProxy gets them, by a rule of the firewall", "accept"),
        (7000, "ok", "no rule", ""),
        (8080, "problem", "a pod's hostPort", "svclb"),
        (8443, "problem", "a pod's hostPort", "svclb"),
        (9000, "ok", "no rule", ""),
        (30080, "problem", "kube-proxy for Service kube-system/traefik", "node port"),
        (30081, "problem", "kube-proxy for Service default/empty", "no endpoints"),
    ],
)  # fmt: skip
def test_rules_of_iptables(port: int, result: str, owner: str, remedy: str) -> None:
    finding = judged(of_iptables(), port)
    assert finding.result == result, finding
    assert owner in finding.message
    assert remedy in finding.remedy


@pytest.mark.parametrize(
    ("host", "port", "result", "owner", "remedy"),
    [
        (ADDRESS, 443, "problem", "kube-proxy for Service shop/web", "has this address"),
        (ADDRESS, 81, "problem", "refused before HAProxy gets them, by kube-proxy", "no endpoints"),
        (ADDRESS, 25, "problem", "refused before HAProxy gets them, by the policy", "accept"),
        (ADDRESS, 8443, "ok", "no rule", ""),
        (ADDRESS, 30080, "ok", "no rule", ""),
        ("192.0.2.2", 30080, "problem", "kube-proxy for Service shop/web", "node port"),
        ("2001:db8::7", 83, "problem", "a rule with the comment “to the old server”", "remove"),
        ("2001:db8::7", 86, "ok", "no rule", ""),
    ],
)
def test_rules_of_nftables(host: str, port: int, result: str, owner: str, remedy: str) -> None:
    finding = judged(of_nftables(), port, host)
    assert finding.result == result, finding
    assert owner in finding.message
    assert remedy in finding.remedy


FIB = (
    '{"match": {"op": "==", "left": {"fib": {"result": "type", "flags": "daddr"}}, '
    '"right": "local"}}'
)
"""As newer versions of nft write it."""


@pytest.mark.parametrize(
    ("rules", "arrives"),
    [
        ("-s 127.0.0.0/8 -j ACCEPT\n-A PREROUTING -j DROP", False),
        ("! -s 127.0.0.1/32 -p tcp -m tcp --dport 80 -j DROP", False),
        ("-m mark --mark 0x200/0xf00 -j ACCEPT\n-A PREROUTING -j DROP", False),
        ("-p tcp -m mark --mark 0xa67d0200 -j TPROXY --on-port 32166", True),
        ("-j MARK --set-xmark 0x200/0xf00\n-A PREROUTING -m mark --mark 0x200/0xf00 -j DROP", None),
        (
            "-p tcp -m recent --set --name A --rsource -m tcp -j DNAT --to-destination 10.1.0.3",
            False,
        ),
        ("-i br-ex -p tcp --dport 80 -j ACCEPT\n-A PREROUTING -j DROP", None),
        ("-i br-0123456789ab -j ACCEPT\n-A PREROUTING -j DROP", False),
    ],
)
def test_what_other_programs_write_for_iptables(rules: str, arrives: bool | None) -> None:
    text = f"*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING {rules}\nCOMMIT\n"
    hits = follow(Connection(ip_address(ADDRESS), 80), parse_iptables(text, 4))
    assert arrival(hits) is arrives


@pytest.mark.parametrize(
    ("statements", "arrives"),
    [
        (f'{FIB}, {{"redirect": {{"port": 81}}}}', False),
        ('{"dnat": {"addr": {"map": {"key": {"payload": {"protocol": "tcp", "field": "dport"}}, '
         '"data": {"set": [[8080, "203.0.113.7"]]}}}}}', True),
        ('{"vmap": {"key": {"payload": {"protocol": "tcp", "field": "dport"}}, '
         '"data": {"set": [[22, {"accept": null}], ["*", {"drop": null}]]}}}', False),
        ('{"set": {"op": "add", "elem": {"payload": {"protocol": "ip", "field": "saddr"}}, '
         '"set": "@flood", "stmt": [{"limit": {"rate": 100}}]}}, {"drop": null}', None),
        ('{"xt": {"type": "target", "name": "REJECT"}}', False),
        ('{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, '
         '"right": {"prefix": {"addr": "10.0.0.0", "len": 8}}}}, {"drop": null}', True),
    ],
)  # fmt: skip
def test_what_other_programs_write_for_nftables(statements: str, arrives: bool | None) -> None:
    chain = {"family": "inet", "table": "nat", "name": "PREROUTING", "hook": "prerouting"}
    rule = {"family": "inet", "table": "nat", "chain": "PREROUTING"}
    expr = json.loads(f"[{statements}]")
    text = json.dumps({"nftables": [{"chain": chain}, {"rule": {**rule, "expr": expr}}]})
    tables = parse_nftables(text, with_iptables=False)
    assert arrival(follow(Connection(ip_address(ADDRESS), 80), tables)) is arrives


def arrival(hits: list[Hit]) -> bool | None:
    """Whether the connection arrives; None if that depends on more than address and port."""
    if any(hit.is_sure for hit in hits):
        return False
    return None if hits else True


def test_datagrams_have_rules_of_their_own() -> None:
    quic = Connection(ip_address(ADDRESS), 53, "udp")
    (hit,) = [each for each in follow(quic, of_nftables()) if each.is_sure]
    assert hit.table == "fw"
    assert not follow(Connection(ip_address(ADDRESS), 443, "udp"), of_nftables()[:1])


def test_many_connections_are_counted_and_bounded() -> None:
    connections = [Connection(ip_address(ADDRESS), port) for port in range(100, 200)]
    found = judge_packets(connections, PacketFacts(of_iptables()))
    assert len(found) == 6
    assert found[-1].message == "95 more binds like these"


def test_addresses_of_kube_proxys_ipvs_mode() -> None:
    facts = PacketFacts(ipvs=frozenset({ip_address(ADDRESS)}))
    (finding,) = judge_packets([Connection(ip_address(ADDRESS), 80)], facts)
    assert finding.result is Result.WARNING
    assert "kube-ipvs0" in finding.message


@pytest.mark.parametrize(("is_shared", "results"), [(True, [Result.UNKNOWN]), (False, [])])
def test_rules_that_cannot_be_read(is_shared: bool, results: list[Result]) -> None:
    facts = PacketFacts(unread=Problem("you must be root", "run as root"), is_shared=is_shared)
    found = judge_packets([Connection(ip_address(ADDRESS), 80)], facts)
    assert [each.result for each in found] == results


@given(st.text(alphabet='-AjgpdimM! :0123456789"\\*abcPREOUTINGDNATKUBE\n/.,'))
def test_any_text_of_iptables_can_be_judged(text: str) -> None:
    tables = parse_iptables(f"*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING {text}\n{text}", 4)
    assert judge_packets([Connection(ip_address(ADDRESS), 80)], PacketFacts(tables))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                "match op left right payload protocol field meta key vmap data set elem val concat "
                "range prefix addr len jump goto target accept drop dnat xt type name ct fib "
                "flags numgen".split()
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(st.lists(st.dictionaries(st.sampled_from("match vmap xt jump goto".split()), _JSON)))
def test_any_statements_of_nftables_can_be_judged(statements: list[Any]) -> None:
    chain = {"family": "inet", "table": "t", "name": "c", "hook": "prerouting", "prio": -100}
    rule = {"family": "inet", "table": "t", "chain": "c", "expr": statements}
    text = json.dumps({"nftables": [{"chain": chain}, {"rule": rule}]})
    tables = parse_nftables(text, with_iptables=True)
    assert judge_packets([Connection(ip_address(ADDRESS), 80)], PacketFacts(tables))


# In network namespaces

LOADS = {
    "iptables-nft": f"iptables-nft-restore < {IPTABLES}",
    "iptables-legacy": f"iptables-legacy-restore < {IPTABLES}",
    "nftables": f"nft -f {NFTABLES}",
}
WANTED = [
    *((ADDRESS, port) for port in (25, 80, 81, 443, 5000, 6000, 8080, 8443, 9000, 30080, 30081)),
    *(("192.0.2.1", port) for port in (7000, 30080)),
    *(("2001:db8::7", port) for port in (83, 86)),
]
JUDGES = """
import json, sys
from ipaddress import ip_address
from fc_frontend.doctor.judge.packets import Connection, follow
from fc_frontend.doctor.observe.packets import observe_packets
facts = observe_packets(10.0)
assert facts.unread is None, facts.unread
wanted = json.loads(sys.argv[1])
hits = [follow(Connection(ip_address(host), port), facts.tables) for host, port in wanted]
print(json.dumps([not any(hit.is_sure for hit in each) for each in hits]))
"""


def in_own_network(*argv: str) -> Any:
    """Return the JSON that a program prints in a new network namespace."""
    user = [] if os.getuid() == 0 else ["--map-root-user"]
    done = subprocess.run(
        ["unshare", *user, "--net", *argv],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.extended
@pytest.mark.parametrize("kind", LOADS)
def test_what_is_judged_is_what_arrives(kind: str) -> None:
    load = ["sh", "-c", LOADS[kind]]
    wanted = json.dumps(WANTED)
    outside = [sys.executable, "-m", "tests.support.outside", json.dumps(load), wanted]
    arrived = in_own_network(*outside)
    command = f'ip link set lo up && {LOADS[kind]} && exec "$@"'
    ours = in_own_network("sh", "-c", command, "sh", sys.executable, "-c", JUDGES, wanted)
    # The firewall accepts 7000 from 192.0.2.9 and refuses other clients: that is not judged.
    assert dict(zip(WANTED, ours, strict=True)) == dict(zip(WANTED, arrived, strict=True))
    assert True in arrived
    assert False in arrived


@pytest.mark.extended
def test_what_nft_lists_is_as_recorded() -> None:
    command = f"nft -f {NFTABLES} && nft --json list ruleset"
    listed = in_own_network("sh", "-c", command)["nftables"][1:]
    assert listed == json.loads(LISTED.read_text())["nftables"][1:]


@pytest.mark.extended
@pytest.mark.parametrize("kind", LOADS)
def test_doctor_names_the_owner(tmp_path: Path, kind: str) -> None:
    service = {"pod_port": 8080, "binds": [f"{ADDRESS}:{p}" for p in (80, 81, 443, 8080, 30080)]}
    config = {
        "cluster": {"nameservers": ["127.0.0.1:5"]},
        "haproxy": {"log": None},
        "services": {"web": service},
    }
    found = in_namespace(tmp_path, f"{SETUP}; {LOADS[kind]}", config)
    finding = found["packet filter"]
    assert finding["result"] == "problem"
    assert "kube-proxy" in finding["message"]


@pytest.mark.extended
def test_looking_changes_nothing() -> None:
    """`iptables-legacy-save -t nat` creates the table nat; the commands of doctor must not."""
    listed = "nft list ruleset; cat /proc/net/ip_tables_names /proc/net/ip6_tables_names"
    look = f"{sys.executable} -c '{JUDGES}' '[]'"
    command = f"ip link set lo up; {{ {look}; {listed}; }} 2>&1 | grep -v '^# Warning: iptables'"
    assert in_own_network("sh", "-c", command) == []


@pytest.mark.extended
def test_a_host_without_rules(tmp_path: Path) -> None:
    config = {
        "cluster": {"nameservers": ["127.0.0.1:5"]},
        "haproxy": {"log": None},
        "services": {"web": {"pod_port": 8080, "binds": ["*:80", "127.0.0.1:81"]}},
    }
    finding = in_namespace(tmp_path, SETUP, config)["packet filter"]
    assert finding["result"] == "ok"
    assert finding["message"] == "no rule of this host takes connections to 1 bind"


@pytest.mark.extended
def test_a_host_with_kube_proxy_in_ipvs_mode(tmp_path: Path) -> None:
    config = {
        "cluster": {"nameservers": ["127.0.0.1:5"]},
        "haproxy": {"log": None},
        "services": {"web": {"pod_port": 8080, "binds": [f"{ADDRESS}:80"]}},
    }
    setup = f"{VETH.format('kube-ipvs0')}; ip address add {ADDRESS}/32 dev kube-ipvs0"
    finding = in_namespace(tmp_path, setup, config)["packet filter"]
    assert finding["result"] == "warning"
    assert "IPVS" in finding["message"]
