"""Services with more pods than fit in an answer of cluster DNS, over the runtime API."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import ClassVar

import pytest

from fc_frontend.demo.dns import KubernetesService
from fc_frontend.demo.load import Load
from fc_frontend.haproxy import runtime
from fc_frontend.haproxy.assign import SlotChanges, changes, is_free, silent
from fc_frontend.haproxy.drain import Drained
from fc_frontend.haproxy.runtime import ServerState
from fc_frontend.plan.model import FREE_ADDRESS, Bind, Endpoint, Kind, ServicePlan, ServiceSpec
from tests.conftest import free_port
from tests.support.api_cluster import READY, ApiFrontend
from tests.support.certificates import Certificates
from tests.support.frontend import Frontend

MANY = 4600


@pytest.fixture
def frontend(either_binary: str) -> Iterator[Frontend]:
    with Frontend(either_binary) as made:
        yield made


class Everywhere(asyncio.Protocol):
    """An HTTP server on all loopback addresses, which answers with the requested address.

    HAProxy sees thousands of real pods, without thousands of listeners.
    """

    connections: ClassVar[set[asyncio.Transport]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._pod = transport.get_extra_info("sockname")[0].encode()
        self.connections.add(transport)

    def connection_lost(self, _exc: Exception | None) -> None:
        self.connections.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        answer = b"HTTP/1.1 200 OK\r\nX-Pod: %b\r\nContent-Length: 0\r\n\r\n" % self._pod
        self._transport.write(answer * data.count(b"\r\n\r\n"))


@pytest.fixture
def everywhere(frontend: Frontend) -> Iterator[int]:
    """Start `Everywhere` and yield its port."""
    port = free_port("0.0.0.0")

    async def start() -> asyncio.Server:
        loop = asyncio.get_running_loop()
        return await loop.create_server(Everywhere, "0.0.0.0", port, backlog=4096)

    async def stop() -> None:
        server.close()
        for connection in list(Everywhere.connections):
            connection.abort()
        await asyncio.sleep(0)

    server = frontend.call(start())
    yield port
    frontend.call(stop())


def addresses(frontend: Frontend, count: int) -> tuple[str, ...]:
    first = int(ip_address(f"127.{frontend.octet}.0.1"))
    return tuple(str(ip_address(first + number)) for number in range(count))


def publish(frontend: Frontend, pods: tuple[str, ...], port: int) -> None:
    async def set_service() -> None:
        frontend.dns.set_service(KubernetesService("shop", ports={"http": port}, endpoints=pods))

    frontend.call(set_service())


def routed(frontend: Frontend) -> set[str]:
    """Return the addresses that HAProxy sends requests to."""
    servers = runtime.servers(frontend.settings["haproxy"]["runtime_socket"])
    return {
        server.address or ""
        for server in servers
        if server.proxy == "shop" and not is_free(server) and server.operational == 2
    }


@pytest.mark.extended
@pytest.mark.parametrize("by_name", [pytest.param(False, marks=pytest.mark.extended), True])
def test_more_pods_than_an_answer_carries_all_get_traffic(
    frontend: Frontend, everywhere: int, by_name: bool
) -> None:
    pods = addresses(frontend, MANY)
    frontend.settings["intervals"]["hold"] = "2s"
    frontend.settings["services"]["shop"] = frontend.service(
        "shop",
        8080,
        pod_port="http" if by_name else everywhere,
        balance="roundrobin",
        server_options="inter 60s",
    )
    publish(frontend, pods[:3], everywhere)
    frontend.start()
    with Load(frontend.host, 8080, clients=2, timeout=20.0) as load:
        publish(frontend, pods, everywhere)
        frontend.until(lambda: routed(frontend) == set(pods))
        assert frontend.status()["services"][0]["addresses_by"] == "runtime"
        asked = set(frontend.answers(8080, 200))
        assert len(asked) > 150
        assert asked <= set(pods)
        # A reload for another reason loses none of them.
        frontend.drop("more.json", {"more": frontend.service("more", 8081, pod_port=80)})
        frontend.until(lambda: len(frontend.status()["services"]) == 2 and frontend.ready())
        assert routed(frontend) == set(pods)
        assert not load.stop().failures
    assert frontend.metric("fc_frontend_reloads_total", result="ok") <= 4
    # A complete answer is authoritative again: the other pods are removed without a reload.
    before = frontend.metric("fc_frontend_reloads_total")
    publish(frontend, pods[100:200], everywhere)
    frontend.until(lambda: routed(frontend) == set(pods[100:200]))
    assert set(frontend.answers(8080, 100)) <= set(pods[100:200])
    assert frontend.metric("fc_frontend_reloads_total") == before
    # The next reload returns the service to HAProxy's own resolver.
    (frontend.services_d / "more.json").unlink()
    frontend.until(lambda: frontend.status()["services"][0]["addresses_by"] == "resolver")
    frontend.until(lambda: routed(frontend) == set(pods[100:200]))


@pytest.fixture
def slices(either_binary: str, certificates: Certificates) -> Iterator[ApiFrontend]:
    with ApiFrontend(either_binary, certificates) as made:
        yield made


@pytest.mark.extended
def test_pods_of_slices_up_to_a_thousand_take_at_most_one_reload_a_doubling(
    slices: ApiFrontend,
) -> None:
    frontend = slices
    port = free_port("0.0.0.0")

    async def start() -> asyncio.Server:
        loop = asyncio.get_running_loop()
        return await loop.create_server(Everywhere, "0.0.0.0", port, backlog=4096)

    server = frontend.call(start())
    pods = addresses(frontend, 1000)

    def ready(count: int) -> None:
        # A slice has at most a hundred endpoints (kube-controller-manager's default).
        for number in range(10):
            part = pods[:count][number * 100 : (number + 1) * 100]
            frontend.endpoints("shop", dict.fromkeys(part, READY), port=port, number=number + 1)

    frontend.kube_service("shop", target=port)
    ready(3)
    fields = {"pod_port": port, "balance": "roundrobin", "server_options": "inter 60s"}
    frontend.settings["services"]["shop"] = frontend.service("shop", 8080, **fields)
    frontend.start()
    frontend.until(lambda: routed(frontend) == set(pods[:3]))
    with Load(frontend.host, 8080, clients=4, timeout=20.0) as load:
        for count in (40, 5, 300, 1000):
            before = frontend.metric("fc_frontend_reloads_total", result="ok")
            had = frontend.status()["services"][0]["slots"]
            ready(count)
            frontend.until(lambda count=count: routed(frontend) == set(pods[:count]))
            doublings = max(0, math.ceil(math.log2(count / had))) if count > had else 0
            reloads = frontend.metric("fc_frontend_reloads_total", result="ok") - before
            assert reloads <= doublings, (count, had)
        asked = set(frontend.answers(8080, 300))
        assert len(asked) > 250
    assert not load.tally().failures, frontend.log_text()[-4000:]

    async def stop() -> None:
        server.close()
        for connection in list(Everywhere.connections):
            connection.abort()

    frontend.call(stop())


@pytest.mark.extended
def test_haproxy_started_by_itself_has_the_pods_that_we_assigned(
    frontend: Frontend, everywhere: int
) -> None:
    pods = addresses(frontend, MANY)
    frontend.settings["services"]["shop"] = frontend.service(
        "shop", 8080, pod_port=everywhere, server_options="inter 60s"
    )
    publish(frontend, pods, everywhere)
    frontend.start()
    frontend.until(lambda: routed(frontend) == set(pods))
    state = frontend.directory / "state" / "server-state"
    frontend.until(lambda: state.read_text().count(" pod") == MANY)
    frontend.stop_daemon()
    frontend.end_haproxy()
    frontend.call(frontend.dns.stop())
    frontend.start(wait=False)
    frontend.until(lambda: set(frontend.answers(8080, 5)) <= set(pods))
    assert routed(frontend) == set(pods)
    frontend.call(frontend.dns.start())


# Assignment


def slot(number: int, address: str | None = None, port: int = 80, **fields: int) -> ServerState:
    values = {"operational": 2, "admin": 4, "changed_ago": 0, **fields}
    return ServerState(
        proxy="shop",
        server=f"pod{number}",
        address=address or FREE_ADDRESS,
        port=port,
        weight=1,
        initial_weight=1,
        check_status=None,
        check_result=None,
        check_health=None,
        check_state=None,
        agent_state=None,
        fqdn=None,
        srv_record=None,
        **values,
    )


def service(*endpoints: Endpoint) -> ServicePlan:
    spec = ServiceSpec(name="shop", service="shop", binds=(Bind("ip", "127.0.0.1", 80),), port=80)
    return ServicePlan(
        spec=spec,
        kind=Kind.HEADLESS,
        reason="",
        query="shop.default.svc.cluster.local",
        slots=5,
        prefer="ipv4",
        endpoints=endpoints,
        by_runtime=True,
    )


def test_pods_that_stay_keep_their_slots_and_free_ones_are_used() -> None:
    slots = [slot(10), slot(2, "10.1.0.2"), slot(1, "10.1.0.1"), slot(3)]
    wanted = service(Endpoint("10.1.0.2", 80), Endpoint("10.1.0.4", 80), Endpoint("10.1.0.5", 81))
    found = changes(wanted, slots, {})
    assert found.commands == (
        "set server shop/pod1 state drain",
        "set server shop/pod3 addr 10.1.0.4 port 80;set server shop/pod3 state ready",
        "set server shop/pod10 addr 10.1.0.5 port 81;set server shop/pod10 state ready",
    )
    assert found.is_leaving


def test_the_slot_of_a_pod_that_left_is_free_with_its_last_session() -> None:
    left = slot(1, "10.1.0.1", admin=8)
    assert changes(service(), [left], {"pod1": 1}) == SlotChanges((), is_leaving=True)
    assert changes(service(), [left], {"pod1": 0}) == SlotChanges(
        (f"set server shop/pod1 state maint;set server shop/pod1 addr {FREE_ADDRESS} port 1",),
        is_leaving=False,
    )


def test_a_pod_that_needs_a_slot_takes_that_of_one_that_left() -> None:
    left = slot(1, "10.1.0.1", admin=8)
    found = changes(service(Endpoint("10.1.0.2", 80)), [left], {"pod1": 3})
    assert found.commands == (
        "set server shop/pod1 state maint;set server shop/pod1 addr 10.1.0.2 port 80;"
        "set server shop/pod1 state ready",
    )
    assert not found.is_leaving


def test_a_pod_that_terminates_is_drained_and_keeps_its_slot() -> None:
    wanted = replace(service(), draining=(Endpoint("10.1.0.1", 80),))
    found = changes(wanted, [slot(1, "10.1.0.1")], {})
    assert found == SlotChanges(("set server shop/pod1 state drain",), is_leaving=False)
    assert changes(wanted, [slot(1, "10.1.0.1", admin=8)], {}).commands == ()


def test_only_drains_on_record_stay_on_pods_that_take_requests() -> None:
    wanted = service(Endpoint("10.1.0.1", 80))
    residue = slot(1, "10.1.0.1", admin=8)
    assert changes(wanted, [residue], {}).commands == ("set server shop/pod1 state ready",)
    for drained in (
        Drained(services=frozenset(("shop",))),
        Drained(pods=frozenset((("shop", "10.1.0.1"),))),
        Drained(slots=frozenset((("shop", "pod1"),))),
    ):
        assert changes(wanted, [residue], {}, drained).commands == ()
    new = changes(wanted, [slot(2)], {}, Drained(services=frozenset(("shop",))))
    assert new.commands[0].endswith("state ready;set server shop/pod2 state drain")


def test_a_port_that_changes_keeps_its_slot() -> None:
    wanted = service(Endpoint("10.1.0.1", 81))
    found = changes(wanted, [slot(1, "10.1.0.1")], {})
    assert found.commands == ("set server shop/pod1 addr 10.1.0.1 port 81",)


def test_pods_without_a_free_slot_are_left_out() -> None:
    wanted = service(*(Endpoint(f"10.1.0.{number}", 80) for number in range(1, 9)))
    assert len(changes(wanted, [slot(1), slot(2)], {}).commands) == 2
    assert changes(service(), [], {}).commands == ()


def test_only_what_failed_its_checks_for_long_is_gone() -> None:
    slots = [
        slot(1, "10.1.0.1", operational=0, changed_ago=31),
        slot(2, "10.1.0.2", operational=0, changed_ago=3),
        slot(3, "10.1.0.3", operational=0, changed_ago=99, admin=5),
        slot(4, "10.1.0.4", changed_ago=99),
        slot(5, operational=0, changed_ago=99),
    ]
    assert silent(slots) == {"10.1.0.1"}
