"""Whatever cluster DNS does, services keep their pods, and follow it again afterwards."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import dns.message
import dns.rrset
import pytest

from fc_frontend.demo.dns import ClusterDns, Fault, KubernetesService
from fc_frontend.demo.load import Load
from fc_frontend.haproxy import runtime
from tests.conftest import binary_of
from tests.faults.site import EXTRA, SERVICES, Site, serving
from tests.support.frontend import Frontend

PLAIN_HAPROXY_LOSES_AFTER = 32.0
"""Seconds of silence after which HAProxy with default holds has no server left."""
_ZONE = "default.svc.cluster.local"


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(binary_of("2.8-wheel")) as made:
        yield made


def states(site: Site) -> dict[str, str]:
    return {service["name"]: service["state"] for service in site.frontend.status()["services"]}


def until_states(site: Site, **wanted: str) -> None:
    site.frontend.until(lambda: wanted.items() <= states(site).items())


@pytest.fixture(scope="module", autouse=True)
def long_outage() -> Iterator[tuple[Site, float]]:
    """A site without cluster DNS during all tests of this module, and the time of its last reload.

    The holds of a HAProxy process begin with its start.
    """
    with serving(binary_of("2.6-debian")) as made:
        made.frontend.dns.fault = Fault.SILENT
        until_states(made, **ALL_STALE)
        reloads_meanwhile(made)
        yield made, time.monotonic()


ALL_STALE = dict.fromkeys(SERVICES, "stale")
ALL_OK = dict.fromkeys(SERVICES, "ok")


def follows_again(site: Site) -> None:
    """Assert that DNS is followed again: pods appear and disappear without a reload."""
    until_states(site, **ALL_OK)
    reloads = site.frontend.metric("fc_frontend_reloads_total")
    pods = site.frontend.scale("cart", 4)
    site.frontend.until(lambda: site.frontend.serves(SERVICES["cart"], pods))
    assert site.frontend.metric("fc_frontend_reloads_total") == reloads
    site.is_mended()


def reloads_meanwhile(site: Site) -> None:
    """Reload in the middle of the fault: the new worker has all pods at once."""
    reloads = site.frontend.metric("fc_frontend_reloads_total")
    site.declare(*EXTRA)
    site.frontend.until(
        lambda: (
            site.frontend.metric("fc_frontend_reloads_total") > reloads and site.frontend.ready()
        )
    )
    site.all_serve()
    site.still_serve()


@pytest.mark.parametrize(
    ("fault", "rcode"),
    [
        (Fault.SERVFAIL, "SERVFAIL"),
        pytest.param(Fault.REFUSED, "REFUSED", marks=pytest.mark.extended),
        (Fault.SILENT, "timeout"),
        pytest.param(Fault.TRUNCATED_NO_TCP, "truncated", marks=pytest.mark.extended),
    ],
    ids=lambda value: getattr(value, "value", ""),
)
def test_a_failing_nameserver_costs_nothing_even_across_a_reload(
    site: Site, fault: Fault, rcode: str
) -> None:
    site.frontend.dns.fault = fault
    until_states(site, **ALL_STALE)
    assert site.frontend.metric("fc_frontend_dns_queries_total", rcode=rcode) > 0
    assert site.frontend.metric("fc_frontend_service_endpoints", service="cart") == 2
    reloads_meanwhile(site)
    assert len(site.frontend.events("dns-stale")) == len(SERVICES)
    site.frontend.dns.fault = Fault.NONE
    site.frontend.until(lambda: len(site.frontend.events("dns-fresh")) >= len(SERVICES))
    follows_again(site)


def test_an_outage_of_one_name_is_no_outage_of_others(site: Site) -> None:
    for name in ("cart", "docs"):
        site.frontend.dns.fault_for[f"{name}.{_ZONE}"] = Fault.SERVFAIL
    until_states(site, cart="stale", docs="stale", shop="ok")
    # The name that still resolves is followed.
    pods = site.frontend.scale("shop", 4)
    site.frontend.until(lambda: site.frontend.serves(SERVICES["shop"], pods))
    reloads_meanwhile(site)
    until_states(site, cart="stale", docs="stale", shop="ok")
    site.frontend.dns.fault_for.clear()
    follows_again(site)


def test_pods_that_come_while_cluster_dns_is_silent_are_used_when_it_is_back(site: Site) -> None:
    site.frontend.dns.fault = Fault.SILENT
    until_states(site, **ALL_STALE)
    pods = site.frontend.scale("docs", 5)
    site.still_serve()
    site.frontend.dns.fault = Fault.NONE
    site.frontend.until(lambda: site.frontend.serves(SERVICES["docs"], pods))
    follows_again(site)


# Several nameservers


@contextlib.contextmanager
def second_nameserver(frontend: Frontend) -> Iterator[ClusterDns]:
    """Run a second cluster DNS with the same pods as the frontend's own."""
    second = ClusterDns(address=f"127.{frontend.octet}.255.54")
    frontend.call(second.start())
    host, port = second.address
    frontend.settings["cluster"]["nameservers"].append(f"{host}:{port}")
    first = frontend.dns.set_service

    def both(service: KubernetesService) -> None:
        first(service)
        second.set_service(service)

    frontend.dns.set_service = both  # type: ignore[method-assign]
    try:
        yield second
    finally:
        frontend.call(second.stop())


@pytest.mark.parametrize(
    ("fault", "is_first"),
    [
        pytest.param(Fault.SILENT, True, id="silent-first"),
        pytest.param(Fault.SERVFAIL, False, id="servfail-second"),
        pytest.param(Fault.SILENT, False, id="silent-second", marks=pytest.mark.extended),
        pytest.param(Fault.SERVFAIL, True, id="servfail-first", marks=pytest.mark.extended),
    ],
)
def test_one_of_two_nameservers_is_enough(fault: Fault, is_first: bool) -> None:
    with Frontend(binary_of("2.6-debian")) as frontend, second_nameserver(frontend) as second:
        site = Site(frontend)
        site.start()
        with site.loaded():
            server = frontend.dns if is_first else second
            server.fault = fault
            place = "{}:{}".format(*server.address)
            if is_first:
                # The preferred nameserver is found to fail, and is skipped for a while.
                frontend.until(
                    lambda: sum(
                        frontend.metric("fc_frontend_dns_queries_total", nameserver=place, rcode=r)
                        for r in ("timeout", "SERVFAIL")
                    )
                )
            until_states(site, **ALL_OK)
            # Changes are followed as usual.
            pods = frontend.scale("cart", 4)
            frontend.until(lambda: frontend.serves(SERVICES["cart"], pods))
            reloads_meanwhile(site)
            pods = site.shrink("cart", 3)
            frontend.until(lambda: frontend.serves(SERVICES["cart"], pods))
            until_states(site, **ALL_OK)
            server.fault = Fault.NONE
            follows_again(site)


# Invalid answers


class Liar:
    """A nameserver in front of the real one that changes its answers as a test decides.

    `respond` is called with each UDP query and the true answer, and returns the datagrams to send;
    the second value of each is whether it is sent from another address.  TCP is forwarded, or
    refused.
    """

    def __init__(self, frontend: Frontend) -> None:
        self.respond: Callable[[bytes, bytes], list[tuple[bytes, bool]]] = lambda _, true: [
            (true, False)
        ]
        self.lies = 0
        self._upstream = frontend.dns.address
        self._stop = threading.Event()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((f"127.{frontend.octet}.255.55", 0))
        self._socket.settimeout(0.2)
        self._elsewhere = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._elsewhere.bind((f"127.{frontend.octet}.255.66", 0))
        self.address = "{}:{}".format(*self._socket.getsockname())
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Liar:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join(5)
        self._socket.close()
        self._elsewhere.close()

    def _serve(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as upstream:
            upstream.connect(self._upstream)
            upstream.settimeout(1)
            while not self._stop.is_set():
                with contextlib.suppress(TimeoutError):
                    query, client = self._socket.recvfrom(65535)
                    upstream.send(query)
                    true = upstream.recv(65535)
                    while true[:2] != query[:2]:
                        true = upstream.recv(65535)
                    for wire, is_elsewhere in self.respond(query, true):
                        self.lies += wire != true or is_elsewhere
                        (self._elsewhere if is_elsewhere else self._socket).sendto(wire, client)


FORGED = "192.0.2.66"


def forged(query: bytes, address: str) -> dns.message.Message:
    """Return an answer that looks valid, with an address that belongs to no pod."""
    asked = dns.message.from_wire(query)
    # Without EDNS, so that truncation cuts into the address.
    asked.use_edns(False)
    answer = dns.message.make_response(asked)
    name = asked.question[0].name
    answer.answer.append(dns.rrset.from_text(name, 5, "IN", "A", address))
    return answer


def wrong_id(query: bytes, address: str) -> list[tuple[bytes, bool]]:
    answer = forged(query, address)
    answer.id ^= 0x5555
    return [(answer.to_wire(), False)]


def wrong_question(query: bytes, address: str) -> list[tuple[bytes, bool]]:
    asked = dns.message.from_wire(query)
    other = dns.message.make_query("other.default.svc.cluster.local", asked.question[0].rdtype)
    other.id = asked.id
    return [(forged(other.to_wire(), address).to_wire(), False)]


def wrong_source(query: bytes, address: str) -> list[tuple[bytes, bool]]:
    return [(forged(query, address).to_wire(), True)]


def cut_off(query: bytes, address: str) -> list[tuple[bytes, bool]]:
    return [(forged(query, address).to_wire()[:-3], False)]


def counts_too_high(query: bytes, address: str) -> list[tuple[bytes, bool]]:
    wire = bytearray(forged(query, address).to_wire())
    wire[6:8] = b"\xff\xff"
    return [(bytes(wire), False)]


def endless_pointer(query: bytes, address: str) -> list[tuple[bytes, bool]]:
    return [(query[:2] + b"\x84\0\0\1\0\1\0\0\0\0" + b"\xc0\x0c\0\1\0\1" * 2, False)]


def garbage(query: bytes, address: str) -> list[tuple[bytes, bool]]:
    return [(b"", False), (b"\0", False), (query[:2] + b"\xff" * 600, False), (query, False)]


Lie = Callable[[bytes, str], list[tuple[bytes, bool]]]
FORGERIES: list[Lie] = [wrong_id, wrong_question, wrong_source]
LIES = [*FORGERIES, cut_off, counts_too_high, endless_pointer, garbage]


def _names(lies: tuple[Lie | None, ...]) -> str:
    return "-".join(getattr(lie, "__name__", "the-truth") for lie in lies)


@pytest.fixture(scope="module")
def lied_to() -> Iterator[tuple[Site, Liar]]:
    """A site whose only nameserver may lie; its pod network includes the forged addresses."""
    with Frontend(binary_of("2.6-debian")) as frontend, Liar(frontend) as liar:
        frontend.settings["cluster"]["nameservers"] = [liar.address]
        frontend.settings["cluster"]["pod_network"] = [
            f"127.{frontend.octet}.0.0/17",
            "192.0.2.0/24",
        ]
        site = Site(frontend)
        site.start()
        with site.loaded():
            yield site, liar


@pytest.mark.parametrize("lies", [*((lie,) for lie in LIES), (*FORGERIES, None)], ids=_names)
def test_a_forged_or_malformed_answer_moves_no_request(
    lied_to: tuple[Site, Liar], lies: tuple[Lie | None, ...]
) -> None:
    """In place of the true answer it is a failure; before the true answer, it is ignored."""
    site, liar = lied_to
    before = liar.lies

    def respond(query: bytes, true: bytes) -> list[tuple[bytes, bool]]:
        sent = [lie(query, FORGED) if lie else [(true, False)] for lie in lies]
        return [datagram for datagrams in sent for datagram in datagrams]

    liar.respond = respond
    try:
        site.frontend.until(lambda: liar.lies - before > 20)
        until_states(site, **(ALL_OK if None in lies else ALL_STALE))
        site.still_serve()
        text = str(site.frontend.status()["services"])
        assert FORGED not in text
        servers = runtime.servers(site.frontend.settings["haproxy"]["runtime_socket"])
        assert FORGED not in {server.address for server in servers}
    finally:
        liar.respond = lambda _, true: [(true, False)]
    until_states(site, **ALL_OK)


def test_addresses_outside_of_the_pod_networks_are_kept_out_and_said(site: Site) -> None:
    frontend = site.frontend
    pods = frontend.pods["cart"]
    outside = [FORGED, f"127.{frontend.octet}.200.77"]
    both = KubernetesService("cart", ports={"http": 8080}, endpoints=(*pods.addresses, *outside))

    async def publish() -> None:
        frontend.dns.set_service(both)

    frontend.call(publish())
    frontend.until(
        lambda: frontend.metric("fc_frontend_service_rejected_addresses", service="cart") == 2
    )
    (said,) = [s for s in frontend.status()["services"] if s["name"] == "cart"]
    assert set(said["rejected"]) == set(outside)
    site.still_serve()
    reloads_meanwhile(site)
    frontend.until(lambda: not _addresses(site) & set(outside))
    frontend.scale("cart", 2)
    frontend.until(
        lambda: frontend.metric("fc_frontend_service_rejected_addresses", service="cart") == 0
    )
    follows_again(site)


def _addresses(site: Site) -> set[Any]:
    """Return the addresses of the servers to which HAProxy sends requests."""
    servers = runtime.servers(site.frontend.settings["haproxy"]["runtime_socket"])
    return {server.address for server in servers if server.up}


def test_the_time_that_cluster_dns_takes_is_nobodys_loss(site: Site) -> None:
    """Slow answers: no request fails, and changes are still followed."""
    site.frontend.dns.delay = 0.4
    pods = site.frontend.scale("cart", 4)
    site.frontend.until(lambda: site.frontend.serves(SERVICES["cart"], pods))
    reloads_meanwhile(site)
    site.frontend.dns.delay = 0.0
    follows_again(site)


def test_the_end_and_return_of_the_nameserver_itself(site: Site) -> None:
    """The nameserver's host answers with ICMP, then the nameserver is back at its address."""
    frontend = site.frontend

    async def end() -> None:
        await frontend.dns.stop()

    frontend.call(end())
    until_states(site, **ALL_STALE)
    reloads_meanwhile(site)
    host, port = frontend.dns.address
    again = ClusterDns(address=host, port=port)
    for name, pods in frontend.pods.items():
        again.set_service(
            KubernetesService(name, ports={"http": 8080}, endpoints=tuple(pods.addresses))
        )
    frontend.dns = again
    frontend.call(again.start())
    follows_again(site)


def test_an_outage_longer_than_haproxy_itself_endures_costs_nothing(
    long_outage: tuple[Site, float],
) -> None:
    """The last test of the module: most of the time has passed during the others."""
    site, began = long_outage
    site.frontend.until(lambda: time.monotonic() - began > PLAIN_HAPROXY_LOSES_AFTER + 8)
    site.all_serve()
    site.still_serve()
    ages = [
        site.frontend.metric("fc_frontend_service_answer_age_seconds", service=name)
        for name in SERVICES
    ]
    assert min(ages) > PLAIN_HAPROXY_LOSES_AFTER + 8
    assert states(site).items() >= ALL_STALE.items()
    site.frontend.dns.fault = Fault.NONE
    follows_again(site)


@pytest.mark.extended
def test_nameservers_that_do_not_agree_are_reported_everywhere() -> None:
    with Frontend(binary_of("2.8-wheel")) as frontend, second_nameserver(frontend) as second:
        pods = frontend.scale("shop", 3)
        frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
        lagging = KubernetesService("shop", ports={"http": 8080}, endpoints=pods.addresses[:1])
        second.set_service(lagging)
        frontend.start()
        frontend.until(lambda: frontend.metric("fc_frontend_dns_disagreements") == 1)
        said = "the nameservers of the cluster do not agree"
        shown = [each["message"] for each in frontend.status()["problems"]]
        (found,) = (message for message in shown if said in message)
        assert "names 3 pods" in found
        assert "names 1 pod" in found
        assert "nameservers-disagree" in frontend.log_text()
        for command in ("resolve", "doctor", "status"):
            done = frontend.run(command, check=False)
            assert said in " ".join((done.stdout + done.stderr).split()), command
        second.set_service(replace(lagging, endpoints=pods.addresses))
        frontend.until(lambda: frontend.metric("fc_frontend_dns_disagreements") == 0)
        assert said not in frontend.run("status", check=False).stdout
        assert said not in frontend.run("resolve").stderr


@pytest.mark.extended
def test_pods_that_only_one_nameserver_has_are_served_where_slots_are_filled_here(
    either_binary: str,
) -> None:
    """The first nameserver lags 20 s behind, and all pods are replaced meanwhile."""
    with Frontend(either_binary) as frontend, second_nameserver(frontend) as second:
        old = frontend.scale("shop", 3)
        # HAProxy's resolver would accept this address, so fc-frontend fills the slots.
        outside = "192.0.2.1"
        frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
        named = KubernetesService("shop", ports={"http": 8080})
        for server in (frontend.dns, second):
            server.set_service(replace(named, endpoints=(*old.addresses, outside)))
        frontend.start()
        frontend.until(lambda: frontend.serves(8080, old))
        frontend.until(lambda: frontend.status()["services"][0]["addresses_by"] == "runtime")
        new = frontend.scale("next", 3)
        with Load(frontend.host, 8080, clients=4, interval=0.02, timeout=20) as load:
            second.set_service(replace(named, endpoints=(*new.addresses, outside)))
            frontend.until(lambda: load.tally().pods.keys() >= {"next-1", "next-2", "next-3"})
            before = load.tally()
            # Pods end as in Kubernetes: requests in progress are still answered.
            frontend.call(old.scale(0, grace=0.5))
            frontend.until(lambda: load.tally().since(before).requests > 1000)
            assert len(load.tally().since(before).failures) <= 4
            frontend.dns.set_service(replace(named, endpoints=(*new.addresses, outside)))
            frontend.until(lambda: frontend.serves(8080, new))
