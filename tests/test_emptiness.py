"""Absence is not evidence, and not every address is a pod's: ignored answers of cluster DNS."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network

import pytest

from fc_frontend.demo.dns import Fault, KubernetesService
from fc_frontend.demo.load import Load
from fc_frontend.discovery.resolve import held
from fc_frontend.haproxy import runtime
from fc_frontend.plan.addresses import is_within
from fc_frontend.plan.model import Answer, Endpoint, Freshness, Kind
from tests.support.frontend import Frontend


@pytest.fixture
def frontend(either_binary: str) -> Iterator[Frontend]:
    with Frontend(either_binary) as made:
        yield made


def state(frontend: Frontend, name: str = "shop") -> str:
    (service,) = [s for s in frontend.status()["services"] if s["name"] == name]
    return str(service["state"])


def addresses(frontend: Frontend) -> set[str | None]:
    servers = runtime.servers(frontend.settings["haproxy"]["runtime_socket"])
    return {s.address for s in servers if s.proxy == "shop" and s.operational == 2} - {None}


def test_a_service_that_vanishes_from_dns_is_held_even_across_a_reload(frontend: Frontend) -> None:
    pods = frontend.scale("shop", 3)
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.start()
    frontend.until(lambda: frontend.serves(8080, pods))
    with Load(frontend.host, 8080, clients=4) as load:
        frontend.dns.fault = Fault.NXDOMAIN
        frontend.until(lambda: state(frontend) == "stale")
        assert frontend.metric("fc_frontend_service_state", service="shop", state="stale") == 1
        assert frontend.metric("fc_frontend_service_endpoints", service="shop") == 3
        assert len(frontend.events("dns-empty")) == 1
        frontend.drop("more.json", {"more": frontend.service("more", 8081)})
        frontend.until(lambda: frontend.metric("fc_frontend_reloads_total") == 2)
        assert frontend.serves(8080, pods)
        frontend.dns.fault = Fault.NONE
        frontend.until(lambda: state(frontend) == "ok")
        assert not load.stop().failures


def test_scaling_to_zero_on_purpose_works_after_the_hold(frontend: Frontend) -> None:
    frontend.settings["intervals"]["hold"] = "2s"
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    pods = frontend.scale("shop", 2)
    frontend.start()
    frontend.until(lambda: frontend.serves(8080, pods))
    frontend.scale("shop", 0)
    frontend.until(lambda: state(frontend) == "empty")
    frontend.until(lambda: frontend.metric("fc_frontend_service_endpoints", service="shop") == 0)
    frontend.until(lambda: not addresses(frontend))
    pods = frontend.scale("shop", 2)
    frontend.until(lambda: frontend.serves(8080, pods))
    assert frontend.metric("fc_frontend_reloads_total") == 1


def test_addresses_outside_of_the_pod_network_never_get_traffic(frontend: Frontend) -> None:
    pods = frontend.scale("shop", 2)
    outside = f"127.{frontend.octet}.200.77"
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.start()
    frontend.until(lambda: frontend.serves(8080, pods))
    with Load(frontend.host, 8080, clients=2) as load:
        shop = KubernetesService("shop", ports={"http": 8080}, endpoints=(*pods.addresses, outside))
        frontend.dns.set_service(shop)
        frontend.until(
            lambda: (
                frontend.metric("fc_frontend_service_rejected_addresses", service="shop") == 1
                and frontend.status()["services"][0]["addresses_by"] == "runtime"
            )
        )
        frontend.until(lambda: addresses(frontend) == set(pods.addresses))
        # Pod changes are followed without HAProxy's resolver, and without a reload.
        reloads = frontend.metric("fc_frontend_reloads_total")
        more = frontend.scale("shop", 5, publish=False)
        frontend.dns.set_service(replace(shop, endpoints=(*more.addresses, outside)))
        frontend.until(lambda: frontend.serves(8080, more))
        assert frontend.metric("fc_frontend_reloads_total") == reloads
        assert outside in "".join(p["message"] for p in frontend.status()["problems"])
        tally = load.stop()
    assert not tally.failures


def answer(*addresses: str, kind: Kind = Kind.HEADLESS, **fields: object) -> Answer:
    endpoints = tuple(Endpoint(address, 80) for address in addresses)
    made = Answer(kind=kind, reason="", endpoints=endpoints, freshness=Freshness.FRESH)
    return replace(made, **fields)  # type: ignore[arg-type]


def test_what_is_lost_suddenly_is_held_and_then_believed() -> None:
    pods = answer("10.1.0.1", "10.1.0.2")
    nobody = answer(error="NXDOMAIN")
    first = held(pods, nobody, 0.5, 100.0, 30.0)
    assert first.endpoints == pods.endpoints
    assert first.lost_at == 100.0
    assert first.error == "NXDOMAIN"
    assert held(first, nobody, 0.5, 129.0, 30.0) == first
    assert held(first, nobody, 0.5, 130.0, 30.0) == nobody
    assert held(first, pods, 0.5, 110.0, 30.0) == pods
    assert held(pods, nobody, 0.5, 100.0, 0.0) == nobody
    assert held(None, nobody, 0.5, 100.0, 30.0) == nobody


def test_a_cluster_ip_does_not_take_the_place_of_pods_at_once() -> None:
    pods = answer("10.1.0.1", kind=Kind.WILDCARD)
    cluster_ip = answer("10.0.0.7", kind=Kind.SERVICE)
    assert held(pods, cluster_ip, 0.5, 0.0, 30.0).kind is Kind.WILDCARD


def test_a_share_is_held_only_where_haproxy_does_not_resolve_itself() -> None:
    names = [f"10.1.0.{number}" for number in range(1, 11)]
    few, most = answer(*names[:4]), answer(*names[:5])
    assert held(answer(*names), few, 0.5, 0.0, 30.0) == few
    by_runtime = replace(few, by_runtime=True)
    assert len(held(answer(*names), by_runtime, 0.5, 0.0, 30.0).endpoints) == 10
    by_runtime = replace(most, by_runtime=True)
    assert held(answer(*names), by_runtime, 0.5, 0.0, 30.0) == by_runtime


@pytest.mark.parametrize(
    ("address", "network", "accepted"),
    [
        ("10.1.2.3", "10.1.0.0/16", True),
        ("10.2.2.3", "10.1.0.0/16", False),
        ("127.0.0.1", "0.0.0.0/0", False),
        ("127.0.0.1", "127.0.0.0/8", True),
        ("169.254.169.254", "0.0.0.0/0", False),
        ("224.0.0.1", "0.0.0.0/0", False),
        ("0.0.0.0", "0.0.0.0/0", False),
        ("::1", "::/0", False),
        ("fe80::1", "::/0", False),
        ("fe80::1", "fe80::/64", True),
        ("fd00::1", "fd00::/64", True),
    ],
)
def test_special_addresses_need_a_network_of_their_own(
    address: str, network: str, accepted: bool
) -> None:
    assert is_within(address, (ip_network(network),)) is accepted


def test_servers_outside_of_the_pod_network_are_taken_away(frontend: Frontend) -> None:
    """Whatever made HAProxy's resolver add them: fc-frontend then fills the slots itself."""
    frontend.settings["intervals"]["resolve"] = "1h"
    pods = frontend.scale("shop", 2)
    outside = f"127.{frontend.octet}.200.77"
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
    frontend.start()
    frontend.until(lambda: frontend.serves(8080, pods))
    socket = frontend.settings["haproxy"]["runtime_socket"]
    with Load(frontend.host, 8080, clients=2) as load:
        runtime.command(socket, f"set server shop/pod2 addr {outside}")
        frontend.until(lambda: frontend.status()["services"][0]["addresses_by"] == "runtime")
        frontend.until(lambda: addresses(frontend) == set(pods.addresses))
        assert frontend.metric("fc_frontend_service_rejected_addresses", service="shop") == 1
        assert "foreign-servers" in frontend.log_text()
        frontend.until(lambda: frontend.serves(8080, pods))
        tally = load.stop()
    assert tally.requests > 100
