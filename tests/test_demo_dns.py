"""The demo's cluster DNS, queried over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Coroutine, Iterator
from typing import Any

import dns.asyncquery
import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.query
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fc_frontend.demo.dns import (
    ClusterDns,
    ClusterDnsThread,
    Fault,
    KubernetesService,
    ParsedQuestion,
    endpoint_label,
)
from tests.conftest import PATIENCE, until, until_in_loop
from tests.support.objects import count_of

PODS = ("10.1.0.3", "10.1.0.4", "10.1.0.5", "fd00::3")
WEB = KubernetesService("web", ports={"http": 8080}, endpoints=PODS)
INGRESS = KubernetesService(
    "ingress", "edge", cluster_ip="10.0.0.7", ports={"https": 443}, endpoints=("10.1.0.9",)
)


def ask(
    server: ClusterDns | ClusterDnsThread,
    name: str,
    rdtype: str = "A",
    *,
    tcp: bool = False,
    payload: int | None = None,
    timeout: float = PATIENCE,
) -> dns.message.Message:
    host, port = server.address
    query = dns.message.make_query(name, rdtype)
    if payload is not None:
        query.use_edns(0, payload=payload)
    function = dns.query.tcp if tcp else dns.query.udp
    return function(query, host, port=port, timeout=timeout)


def texts(response: dns.message.Message, section: str = "answer") -> list[str]:
    return [
        f"{dns.rdatatype.to_text(rrset.rdtype)} {rdata.to_text()}"
        for rrset in getattr(response, section)
        for rdata in rrset
    ]


def outcome(response: dns.message.Message) -> tuple[str, list[str], list[str]]:
    """Return the code, the sorted answers, and the types in the authority section."""
    authority = [dns.rdatatype.to_text(rrset.rdtype) for rrset in response.authority]
    return dns.rcode.to_text(response.rcode()), sorted(texts(response)), authority


NXDOMAIN: tuple[str, list[str], list[str]] = ("NXDOMAIN", [], ["SOA"])
NODATA: tuple[str, list[str], list[str]] = ("NOERROR", [], ["SOA"])


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterDnsThread]:
    """Yield a server whose content no test changes."""
    services = (
        WEB,
        INGRESS,
        KubernetesService("idle", ports={"http": 80}),
        KubernetesService("idle-ip", cluster_ip=("10.0.0.8", "fd01::8")),
        KubernetesService("plain", endpoints=("10.1.0.20",)),
        KubernetesService("two", ports={"http": 80, "": 81}, endpoints=("10.1.0.30", "fd00::30")),
        KubernetesService("dual", cluster_ip=("10.0.0.9", "fd01::9"), ports={"http": 80}),
    )
    server = ClusterDns(
        services,
        clock=lambda: 1700000000.9,
        extra_records={
            "www.cluster.local": "alias.cluster.local",
            "alias.cluster.local": "web.default.svc.cluster.local",
            "gone.cluster.local": "nothing.default.svc.cluster.local",
            "away.cluster.local": "example.org",
            "outside.example.org": "plain.default.svc.cluster.local",
            "loop.cluster.local": "loop.cluster.local",
        },
    )
    with ClusterDnsThread(server) as running:
        yield running


@pytest.fixture(params=[False, True], ids=["udp", "tcp"])
def tcp(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


# Names


@pytest.mark.parametrize(
    ("name", "rdtype", "expected"),
    [
        (
            "web.default.svc.cluster.local",
            "A",
            ("NOERROR", ["A 10.1.0.3", "A 10.1.0.4", "A 10.1.0.5"], []),
        ),
        ("web.default.svc.cluster.local", "AAAA", ("NOERROR", ["AAAA fd00::3"], [])),
        ("WEB.Default.SVC.cluster.LOCAL", "AAAA", ("NOERROR", ["AAAA fd00::3"], [])),
        ("web.default.svc.cluster.local", "TXT", NODATA),
        ("web.default.svc.cluster.local", "CNAME", NODATA),
        ("plain.default.svc.cluster.local", "AAAA", NODATA),
        ("plain.default.svc.cluster.local", "SRV", NODATA),
        ("idle.default.svc.cluster.local", "A", NXDOMAIN),
        ("idle.default.svc.cluster.local", "AAAA", NXDOMAIN),
        ("nothing.default.svc.cluster.local", "A", NXDOMAIN),
        ("nothing.default.svc.cluster.local", "TXT", NXDOMAIN),
        ("web.edge.svc.cluster.local", "A", NXDOMAIN),
        ("web.nowhere.svc.cluster.local", "A", NXDOMAIN),
        ("idle-ip.default.svc.cluster.local", "A", ("NOERROR", ["A 10.0.0.8"], [])),
        ("idle-ip.default.svc.cluster.local", "AAAA", ("NOERROR", ["AAAA fd01::8"], [])),
        ("ingress.edge.svc.cluster.local", "A", ("NOERROR", ["A 10.0.0.7"], [])),
        ("ingress.edge.svc.cluster.local", "AAAA", NODATA),
        ("cluster.local", "A", NODATA),
        ("svc.cluster.local", "A", NODATA),
        ("pod.cluster.local", "A", NODATA),
        ("edge.svc.cluster.local", "A", NODATA),
        ("nowhere.svc.cluster.local", "A", NXDOMAIN),
        ("10-1-0-3.default.pod.cluster.local", "A", NXDOMAIN),
        ("10-1-0-3.web.default.svc.cluster.local", "A", ("NOERROR", ["A 10.1.0.3"], [])),
        ("10-1-0-3.web.default.svc.cluster.local", "AAAA", NODATA),
        ("fd00--3.web.default.svc.cluster.local", "AAAA", ("NOERROR", ["AAAA fd00::3"], [])),
        ("10-1-0-9.ingress.edge.svc.cluster.local", "A", ("NOERROR", ["A 10.1.0.9"], [])),
        ("10-1-0-99.web.default.svc.cluster.local", "A", NXDOMAIN),
        ("*.web.default.svc.cluster.local", "A", NXDOMAIN),
        ("any.web.default.svc.cluster.local", "A", NXDOMAIN),
        ("a.b.c.web.default.svc.cluster.local", "A", NXDOMAIN),
        ("_tcp.web.default.svc.cluster.local", "SRV", NXDOMAIN),
        ("_http._udp.web.default.svc.cluster.local", "SRV", NXDOMAIN),
        ("_ftp._tcp.web.default.svc.cluster.local", "SRV", NXDOMAIN),
        ("_http._tcp.idle.default.svc.cluster.local", "SRV", NXDOMAIN),
        (
            "_http._tcp.web.default.svc.cluster.local",
            "A",
            ("NOERROR", ["A 10.1.0.3", "A 10.1.0.4", "A 10.1.0.5"], []),
        ),
        ("example.org", "A", ("SERVFAIL", [], [])),
        (".", "A", ("SERVFAIL", [], [])),
        ("cluster.local", "AXFR", ("REFUSED", [], [])),
    ],
)
def test_answers_as_coredns(
    cluster: ClusterDnsThread,
    name: str,
    rdtype: str,
    expected: tuple[str, list[str], list[str]],
    tcp: bool,
) -> None:
    response = ask(cluster, name, rdtype, tcp=tcp)
    assert outcome(response) == expected
    authoritative = expected[0] in ("NOERROR", "NXDOMAIN")
    assert bool(response.flags & dns.flags.AA) is authoritative
    assert not response.flags & dns.flags.TC
    assert response.flags & dns.flags.RD
    for rrset in response.answer:
        assert rrset.ttl == 5
        assert rrset.name.to_text(omit_final_dot=True) == name, "the name as it was asked for"


def test_weights_and_additional_addresses_of_a_headless_service(
    cluster: ClusterDnsThread, tcp: bool
) -> None:
    name = "_http._tcp.web.default.svc.cluster.local"
    response = ask(cluster, name, "SRV", tcp=tcp, payload=1232)
    suffix = "web.default.svc.cluster.local."
    assert texts(response) == [
        f"SRV 0 25 8080 10-1-0-3.{suffix}",
        f"SRV 0 25 8080 10-1-0-4.{suffix}",
        f"SRV 0 25 8080 10-1-0-5.{suffix}",
        f"SRV 0 25 8080 fd00--3.{suffix}",
    ]
    assert {(rrset.name.to_text(), rrset[0].to_text()) for rrset in response.additional} == {
        (f"10-1-0-3.{suffix}", "10.1.0.3"),
        (f"10-1-0-4.{suffix}", "10.1.0.4"),
        (f"10-1-0-5.{suffix}", "10.1.0.5"),
        (f"fd00--3.{suffix}", "fd00::3"),
    }


def test_srv_of_a_cluster_ip_points_at_the_service_itself(cluster: ClusterDnsThread) -> None:
    response = ask(cluster, "_https._tcp.ingress.edge.svc.cluster.local", "SRV")
    assert texts(response) == ["SRV 0 100 443 ingress.edge.svc.cluster.local."]
    assert texts(response, "additional") == ["A 10.0.0.7"]

    dual = ask(cluster, "_http._tcp.dual.default.svc.cluster.local", "SRV")
    assert texts(dual) == ["SRV 0 50 80 dual.default.svc.cluster.local."]
    assert sorted(texts(dual, "additional")) == ["A 10.0.0.9", "AAAA fd01::9"]


def test_srv_at_the_bare_name_lists_ports_without_a_name_too(cluster: ClusterDnsThread) -> None:
    response = ask(cluster, "two.default.svc.cluster.local", "SRV", payload=4096)
    suffix = "two.default.svc.cluster.local."
    assert sorted(texts(response)) == [
        f"SRV 0 25 80 10-1-0-30.{suffix}",
        f"SRV 0 25 80 fd00--30.{suffix}",
        f"SRV 0 25 81 10-1-0-30.{suffix}",
        f"SRV 0 25 81 fd00--30.{suffix}",
    ]
    assert sorted(texts(response, "additional")) == ["A 10.1.0.30", "AAAA fd00::30"]
    named = ask(cluster, "_http._tcp.two.default.svc.cluster.local", "SRV")
    assert {rdata.port for rrset in named.answer for rdata in rrset} == {80}


def test_srv_weight_is_at_least_one() -> None:
    pods = tuple(f"10.1.2.{n}" for n in range(1, 151))
    with ClusterDnsThread(
        ClusterDns([KubernetesService("s", ports={"h": 1}, endpoints=pods)])
    ) as d:
        response = ask(d, "_h._tcp.s.default.svc.cluster.local", "SRV", tcp=True)
    assert [rdata.weight for rrset in response.answer for rdata in rrset] == [1] * 150


def test_soa_has_the_time_of_the_last_change_as_serial() -> None:
    now = 1700000000.9
    server = ClusterDns(ttl=30, zone="k8s.example", clock=lambda: now)
    with ClusterDnsThread(server) as running:
        (soa,) = ask(running, "k8s.example", "SOA").answer
        expected = "ns.dns.k8s.example. hostmaster.k8s.example. 1700000000 7200 1800 86400 30"
        assert soa[0].to_text() == expected
        assert soa.ttl == 30
        now += 60
        running.set_service(WEB)
        assert ask(running, "k8s.example", "SOA").answer[0][0].serial == 1700000060
        assert len(ask(running, "web.default.svc.k8s.example").answer[0]) == 3
        negative = ask(running, "gone.default.svc.k8s.example")
        assert negative.authority[0].name == dns.name.from_text("k8s.example")
        assert negative.authority[0][0].serial == 1700000060


def test_wildcards_before_coredns_1_9() -> None:
    server = ClusterDns(
        [WEB, INGRESS, KubernetesService("idle", cluster_ip="10.0.0.8")], wildcards=True
    )
    with ClusterDnsThread(server) as running:
        for label in ("*", "any"):
            name = f"{label}.web.default.svc.cluster.local"
            response = ask(running, name)
            assert len(texts(response)) == 3
            assert {rrset.name.to_text(omit_final_dot=True) for rrset in response.answer} == {name}
            of_cluster_ip = ask(running, f"{label}.ingress.edge.svc.cluster.local")
            assert texts(of_cluster_ip) == ["A 10.1.0.9"], "the pods, not the cluster IP"
            assert outcome(ask(running, f"{label}.idle.default.svc.cluster.local")) == NXDOMAIN
            srv = ask(running, f"_{label}._tcp.web.default.svc.cluster.local", "SRV", tcp=True)
            assert len(texts(srv)) == 4


def test_cnames_are_followed_within_the_zone(cluster: ClusterDnsThread, tcp: bool) -> None:
    response = ask(cluster, "www.cluster.local", "A", tcp=tcp)
    answers = texts(response)
    assert answers[:2] == ["CNAME alias.cluster.local.", "CNAME web.default.svc.cluster.local."]
    assert sorted(answers[2:]) == ["A 10.1.0.3", "A 10.1.0.4", "A 10.1.0.5"]
    assert response.answer[2].name.to_text() == "web.default.svc.cluster.local."


@pytest.mark.parametrize(
    ("name", "rdtype", "code", "answers"),
    [
        ("www.cluster.local", "CNAME", "NOERROR", ["CNAME alias.cluster.local."]),
        ("gone.cluster.local", "A", "NXDOMAIN", ["CNAME nothing.default.svc.cluster.local."]),
        ("away.cluster.local", "A", "NOERROR", ["CNAME example.org."]),
        (
            "outside.example.org",
            "A",
            "NOERROR",
            ["CNAME plain.default.svc.cluster.local.", "A 10.1.0.20"],
        ),
        ("loop.cluster.local", "A", "NOERROR", ["CNAME loop.cluster.local."]),
    ],
)
def test_the_ends_of_cnames(
    cluster: ClusterDnsThread, name: str, rdtype: str, code: str, answers: list[str]
) -> None:
    response = ask(cluster, name, rdtype)
    assert dns.rcode.to_text(response.rcode()) == code
    assert texts(response) == answers


# Changes


def test_changes_are_served_at_once(tcp: bool) -> None:
    name = "web.default.svc.cluster.local"
    with ClusterDnsThread() as running:
        assert outcome(ask(running, name, tcp=tcp)) == NXDOMAIN
        assert outcome(ask(running, "team.svc.cluster.local", tcp=tcp)) == NXDOMAIN
        running.set_service(WEB)
        assert len(texts(ask(running, name, tcp=tcp))) == 3
        running.set_endpoints("web", ["10.1.0.77"])
        assert texts(ask(running, name, tcp=tcp)) == ["A 10.1.0.77"]
        running.set_endpoints("web", [])
        assert outcome(ask(running, name, tcp=tcp)) == NXDOMAIN
        running.set_service(KubernetesService("web", "team", endpoints=("10.1.0.1",)))
        running.remove_service("web", "team")
        assert outcome(ask(running, "web.team.svc.cluster.local", tcp=tcp)) == NXDOMAIN
        assert outcome(ask(running, "team.svc.cluster.local", tcp=tcp)) == NODATA
        running.call(lambda server: server.set_extra_record("x.cluster.local", "example.org"))
        assert texts(ask(running, "x.cluster.local", tcp=tcp)) == ["CNAME example.org."]
        running.call(lambda server: server.set_extra_record("x.cluster.local", None))
        assert outcome(ask(running, "x.cluster.local", tcp=tcp)) == NXDOMAIN


def test_addresses_are_shuffled() -> None:
    server = ClusterDns([WEB], rng=random.Random(7))
    with ClusterDnsThread(server) as running:
        orders = {tuple(texts(ask(running, "web.default.svc.cluster.local"))) for _ in range(64)}
    assert len(orders) > 2
    assert {tuple(sorted(order)) for order in orders} == {
        ("A 10.1.0.3", "A 10.1.0.4", "A 10.1.0.5")
    }


def test_an_injected_random_makes_the_order_repeatable() -> None:
    def orders() -> list[list[str]]:
        with ClusterDnsThread(ClusterDns([WEB], rng=random.Random(3))) as running:
            return [texts(ask(running, "web.default.svc.cluster.local")) for _ in range(12)]

    assert orders() == orders()


@pytest.mark.parametrize(
    "make",
    [
        lambda: KubernetesService("No_Label"),
        lambda: KubernetesService("web", "a.b"),
        lambda: KubernetesService("web", endpoints=("10.1.0",)),
        lambda: KubernetesService("web", cluster_ip="none"),
        lambda: KubernetesService("web", ports={"http": 0}),
        lambda: ClusterDns(address="0.0.0.0"),
        lambda: ClusterDns(zone="a..b"),
    ],
)
def test_invalid_content_is_refused(make: Any) -> None:
    with pytest.raises((ValueError, dns.exception.DNSException)):
        make()


def test_unknown_services_cannot_be_changed() -> None:
    server = ClusterDns([WEB])
    with pytest.raises(KeyError):
        server.remove_service("nothing")
    with pytest.raises(KeyError):
        server.set_endpoints("web", [], "edge")
    with pytest.raises(ValueError, match="does not appear to be"):
        server.set_endpoints("web", ["pod-1"])
    with ClusterDnsThread(server) as running, pytest.raises(KeyError):
        running.remove_service("nothing")


def test_endpoint_labels() -> None:
    assert endpoint_label("10.1.0.3") == "10-1-0-3"
    assert endpoint_label("FD00:0:0::3") == "fd00--3"


# Sizes


def many(count: int) -> KubernetesService:
    pods = tuple(f"10.1.{n // 250}.{n % 250 + 1}" for n in range(count))
    return KubernetesService("many", ports={"http": 80}, endpoints=pods)


@pytest.mark.parametrize(
    ("payload", "bufsize", "records"),
    [(None, None, 29), (512, None, 28), (100, None, 28), (1232, None, 73), (8192, None, 508),
     (8192, 1232, 73), (8192, 100, 28), (512, 1232, 28), (None, 1232, 29)],
)  # fmt: skip
def test_udp_answers_are_cut_to_the_client_s_size(
    payload: int | None, bufsize: int | None, records: int
) -> None:
    with ClusterDnsThread(ClusterDns([many(600)], bufsize=bufsize)) as running:
        name = "many.default.svc.cluster.local"
        response = ask(running, name, payload=payload)
        assert response.flags & dns.flags.TC
        assert len(texts(response)) == records
        assert (response.edns == 0) is (payload is not None)
        whole = ask(running, name, payload=payload, tcp=True)
        assert not whole.flags & dns.flags.TC
        assert len(texts(whole)) == 600


def test_an_answer_that_just_fits_is_not_truncated() -> None:
    name = "many.default.svc.cluster.local"
    with ClusterDnsThread(ClusterDns([many(29)])) as running:
        assert len(ask(running, name).to_wire()) <= 512
        assert not ask(running, name).flags & dns.flags.TC
        running.set_service(many(30))
        assert ask(running, name).flags & dns.flags.TC


def test_lost_additional_records_count_as_truncated() -> None:
    with ClusterDnsThread(ClusterDns([many(7)])) as running:
        response = ask(running, "_http._tcp.many.default.svc.cluster.local", "SRV")
        assert len(texts(response)) + len(texts(response, "additional")) < 14
        assert len(texts(response)) == 7
        assert response.flags & dns.flags.TC


def test_tcp_carries_thousands_of_records() -> None:
    with ClusterDnsThread(ClusterDns([many(3000)])) as running:
        response = ask(running, "many.default.svc.cluster.local", tcp=True)
        assert len(texts(response)) == 3000
        assert not response.flags & dns.flags.TC


def test_unknown_edns_version(cluster: ClusterDnsThread) -> None:
    host, port = cluster.address
    query = dns.message.make_query("cluster.local", "SOA", use_edns=1)
    response = dns.query.udp(query, host, port=port, timeout=PATIENCE)
    assert response.rcode() == dns.rcode.BADVERS


def test_other_classes_are_refused(cluster: ClusterDnsThread) -> None:
    host, port = cluster.address
    query = dns.message.make_query("version.bind", "TXT", dns.rdataclass.CH)
    assert dns.query.udp(query, host, port=port, timeout=PATIENCE).rcode() == dns.rcode.REFUSED


# TCP


async def framed(reader: asyncio.StreamReader) -> dns.message.Message:
    async with asyncio.timeout(PATIENCE):
        length = int.from_bytes(await reader.readexactly(2), "big")
        return dns.message.from_wire(await reader.readexactly(length))


def frame(query: dns.message.Message) -> bytes:
    wire = query.to_wire()
    return len(wire).to_bytes(2, "big") + wire


def query(name: str, rdtype: str = "A", identifier: int | None = None) -> dns.message.Message:
    return dns.message.make_query(name, rdtype, id=identifier)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 4 * PATIENCE))


async def closed_by_server(reader: asyncio.StreamReader) -> bool:
    async with asyncio.timeout(PATIENCE):
        try:
            return await reader.read() == b""
        except ConnectionResetError:
            return True


def test_pipelined_queries_and_a_half_closed_connection() -> None:
    async def scenario() -> None:
        async with ClusterDns([WEB]) as server:
            server.delay = 0.01
            reader, writer = await asyncio.open_connection(*server.address)
            frames = b"".join(
                frame(query("web.default.svc.cluster.local", identifier=n)) for n in range(20)
            )
            for n in range(0, len(frames), 7):
                writer.write(frames[n : n + 7])
                await writer.drain()
            writer.write_eof()
            responses = [await framed(reader) for _ in range(20)]
            assert [response.id for response in responses] == list(range(20))
            assert await reader.read() == b""
            writer.close()
            assert server.queries == {("web.default.svc.cluster.local", "A", "tcp"): 20}

    run(scenario())


def test_more_pipelined_queries_than_are_answered_at_a_time() -> None:
    async def scenario() -> None:
        async with ClusterDns([many(200)]) as server:
            server.delay = 0.001
            reader, writer = await asyncio.open_connection(*server.address)
            one = frame(query("many.default.svc.cluster.local", identifier=1))
            count = 6000
            sending = asyncio.ensure_future(writer.drain())
            writer.write(one * count)
            writer.write_eof()
            received = 0
            while received < count:
                response = int.from_bytes(await reader.readexactly(2), "big")
                await reader.readexactly(response)
                received += 1
            await sending
            assert await reader.read() == b""
            writer.close()

    run(scenario())


def test_idle_connections_are_closed() -> None:
    async def scenario() -> None:
        async with ClusterDns([WEB], idle_timeout=0.05) as server:
            server.delay = 0.15
            reader, writer = await asyncio.open_connection(*server.address)
            writer.write(frame(query("web.default.svc.cluster.local")))
            assert (await framed(reader)).answer, "a pending answer keeps the connection open"
            assert await closed_by_server(reader)
            writer.close()
            reader, writer = await asyncio.open_connection(*server.address)
            writer.write(b"\x00")
            assert await closed_by_server(reader), "part of a query does not"
            writer.close()

    run(scenario())


def test_connections_are_bounded() -> None:
    async def scenario() -> None:
        async with ClusterDns([WEB], max_connections=2) as server:
            kept = []
            for _ in range(2):
                reader, writer = await asyncio.open_connection(*server.address)
                writer.write(frame(query("cluster.local", "SOA")))
                assert (await framed(reader)).answer
                kept.append((reader, writer))
            reader, writer = await asyncio.open_connection(*server.address)
            assert await closed_by_server(reader)
            writer.close()
            for reader, writer in kept:
                writer.write(frame(query("cluster.local", "SOA")))
                assert (await framed(reader)).answer
                writer.close()

    run(scenario())


# Faults


@pytest.mark.parametrize("fault", [Fault.SERVFAIL, Fault.REFUSED, Fault.NXDOMAIN])
def test_faults_with_a_code(fault: Fault, tcp: bool) -> None:
    name = "web.default.svc.cluster.local"
    with ClusterDnsThread(ClusterDns([WEB])) as running:
        good = ask(running, name, tcp=tcp)
        running.set_fault(fault)
        response = ask(running, name, tcp=tcp)
        assert dns.rcode.to_text(response.rcode()) == fault.name
        assert not response.answer
        if fault is Fault.NXDOMAIN:
            assert outcome(response) == NXDOMAIN
        running.set_fault(Fault.NONE)
        assert outcome(ask(running, name, tcp=tcp)) == outcome(good)


def test_silence(tcp: bool) -> None:
    name = "web.default.svc.cluster.local"
    wire = query(name).to_wire()
    with ClusterDnsThread(ClusterDns([WEB])) as running:
        running.set_fault(Fault.SILENT)
        with socket.socket(type=socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE)
            client.connect(running.address)
            client.sendall(len(wire).to_bytes(2, "big") + wire if tcp else wire)
            if not tcp:
                client.send(b"\x12\x34\x01")
            until(running.queries)
            client.settimeout(0.05)
            with pytest.raises(TimeoutError):
                client.recv(512)
        assert running.queries() == {(name, "A", "tcp" if tcp else "udp"): 1}
        running.set_fault(Fault.NONE)
        assert ask(running, name, tcp=tcp).answer


def test_truncated_without_tcp() -> None:
    name = "web.default.svc.cluster.local"
    with ClusterDnsThread(ClusterDns([WEB])) as running:
        with socket.create_connection(running.address) as before:
            before.settimeout(PATIENCE)
            running.set_fault(Fault.TRUNCATED_NO_TCP)
            assert ask(running, name).flags & dns.flags.TC
            assert ask(running, name, payload=4096).flags & dns.flags.TC
            assert ask(running, "nothing.cluster.local").flags & dns.flags.TC
            with pytest.raises((OSError, EOFError)):
                ask(running, name, tcp=True)
            with pytest.raises((OSError, EOFError)):
                dns.query.send_tcp(before, query(name))
                dns.query.receive_tcp(before)
        running.set_fault(Fault.NONE)
        assert not ask(running, name).flags & dns.flags.TC
        assert ask(running, name, tcp=True).answer


def test_a_fault_for_one_name(tcp: bool) -> None:
    with ClusterDnsThread(ClusterDns([WEB, INGRESS])) as running:
        running.set_fault(Fault.REFUSED, "Web.default.svc.cluster.local")
        refused = ask(running, "WEB.default.svc.cluster.local", tcp=tcp)
        assert refused.rcode() == dns.rcode.REFUSED
        assert ask(running, "ingress.edge.svc.cluster.local", tcp=tcp).answer
        running.set_fault(Fault.SERVFAIL)
        running.set_fault(Fault.NONE, "web.default.svc.cluster.local")
        assert ask(running, "web.default.svc.cluster.local", tcp=tcp).answer
        other = ask(running, "ingress.edge.svc.cluster.local", tcp=tcp)
        assert other.rcode() == dns.rcode.SERVFAIL


def test_a_delayed_answer_does_not_hold_up_others(tcp: bool) -> None:
    async def scenario() -> None:
        async with ClusterDns([WEB, INGRESS]) as server:
            host, port = server.address
            ask_async = dns.asyncquery.tcp if tcp else dns.asyncquery.udp

            async def answer(name: str) -> dns.message.Message:
                return await ask_async(query(name), host, port=port, timeout=PATIENCE)

            server.delay = 3600.0
            slow = asyncio.ensure_future(answer("web.default.svc.cluster.local"))
            await until_in_loop(lambda: server.queries.total() == 1)
            server.delay = 0.0
            assert (await answer("ingress.edge.svc.cluster.local")).answer
            assert not slow.done()
            slow.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await slow

    run(scenario())


def test_stopping_drops_delayed_answers() -> None:
    async def scenario() -> None:
        async with ClusterDns([WEB]) as server:
            server.delay = 0.05
            reader, writer = await asyncio.open_connection(*server.address)
            writer.write(frame(query("web.default.svc.cluster.local")))
            with socket.socket(type=socket.SOCK_DGRAM) as client:
                client.sendto(query("web.default.svc.cluster.local").to_wire(), server.address)
                await until_in_loop(lambda: server.queries.total() == 2)
                await server.stop()
                assert await closed_by_server(reader)
                writer.close()
                await server.start()
                # The timer of the old socket's answer fires before the timer of this answer.
                host, port = server.address
                response = await dns.asyncquery.udp(
                    query("cluster.local", "SOA"), host, port=port, timeout=PATIENCE
                )
                assert response.answer
                with pytest.raises(BlockingIOError):
                    client.recv(512, socket.MSG_DONTWAIT)

    run(scenario())


# Counts


def test_queries_are_counted_by_name_type_and_transport(tcp: bool) -> None:
    with ClusterDnsThread(ClusterDns([WEB])) as running:
        for name, rdtype in (("WEB.default.svc.cluster.local.", "A"), ("x.org", "TYPE65280")):
            ask(running, name, rdtype, tcp=tcp)
            ask(running, name, rdtype, tcp=tcp)
        transport = "tcp" if tcp else "udp"
        assert running.queries() == {
            ("web.default.svc.cluster.local", "A", transport): 2,
            ("x.org", "TYPE65280", transport): 2,
        }


# Packets


def exchange(running: ClusterDnsThread, packet: bytes) -> list[bytes]:
    """Return the answers to a packet, complete once a later query is answered."""
    probe = query("cluster.local", "SOA", identifier=0xBEEF).to_wire()
    answers: list[bytes] = []
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.connect(running.address)
        client.send(packet)
        client.send(probe)
        while True:
            answer = client.recv(65535)
            if answer[:2] == b"\xbe\xef":
                return answers
            answers.append(answer)


@pytest.mark.parametrize(
    ("packet", "answer"),
    [
        (b"", None),
        (b"\x12", None),
        (b"\x12\x34", "FORMERR"),
        (b"\x12\x34\x01", "FORMERR"),
        (b"\x12\x34\x01\x00" + bytes(8), "FORMERR"),
        (b"\x12\x34\x01\x00\x00\x01" + bytes(6), "FORMERR"),
        (b"\x12\x34\x01\x00\x00\x01" + bytes(6) + b"\xc0\x0c\x00\x01\x00\x01", "FORMERR"),
        (b"\x12\x34\x01\x00\x00\x02" + bytes(6) + 2 * b"\x01a\x00\x00\x01\x00\x01", "FORMERR"),
        (b"\x12\x34\x81\x00\x00\x01" + bytes(6) + b"\x00\x00\x01\x00\x01", None),
        (b"\x12\x34\x20\x00" + bytes(8), "NOTIMP"),
        (b"\x12\x34\x78\x00" + bytes(8), "NOTIMP"),
    ],
)
def test_packets_that_are_no_query(
    cluster: ClusterDnsThread, packet: bytes, answer: str | None
) -> None:
    answers = exchange(cluster, packet)
    if answer is None:
        assert answers == []
        return
    (response,) = answers
    assert response[:2] == packet[:2]
    assert response[2] & 0x80
    assert dns.rcode.to_text(dns.rcode.Rcode(response[3] & 0x0F)) == answer


GOOD = [
    query("web.default.svc.cluster.local").to_wire(),
    dns.message.make_query("_http._tcp.web.default.svc.cluster.local", "SRV", use_edns=0,
                           payload=1232).to_wire(),
    dns.message.make_query("www.cluster.local", "AAAA", use_edns=0,
                           options=[dns.edns.CookieOption(b"12345678", b"")]).to_wire(),
]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Return a valid query with some bytes changed, cut off or added."""
    packet = bytearray(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(1, 6))):
        packet[draw(st.integers(0, len(packet) - 1))] = draw(st.integers(0, 255))
    return bytes(packet[: draw(st.integers(0, len(packet)))]) + draw(st.binary(max_size=8))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(packet=st.one_of(st.binary(max_size=600), damaged()))
def test_no_packet_harms_the_server(cluster: ClusterDnsThread, packet: bytes) -> None:
    if packet[:2] == b"\xbe\xef":
        packet = b"\x00\x00" + packet[2:]
    answers = exchange(cluster, packet)
    assert len(answers) <= 1
    for answer in answers:
        assert answer[:2] == packet[:2]
        assert answer[2] & 0x80
    with socket.create_connection(cluster.address, timeout=PATIENCE) as client:
        client.sendall(struct.pack("!H", len(packet)) + packet)
        dns.query.send_tcp(client, query("cluster.local", "SOA", identifier=0xBEEF))
        while (answer := tcp_frame(client))[:2] != b"\xbe\xef":
            assert answer[:2] == packet[:2]


def tcp_frame(client: socket.socket) -> bytes:
    with client.makefile("rb", buffering=0) as stream:
        length = int.from_bytes(stream.read(2) or b"", "big")
        data = b""
        while len(data) < length:
            part = stream.read(length - len(data))
            assert part
            data += part
        return data


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stream=st.binary(max_size=300))
def test_no_stream_harms_the_server(cluster: ClusterDnsThread, stream: bytes) -> None:
    with socket.create_connection(cluster.address, timeout=PATIENCE) as client:
        client.sendall(stream)
    assert ask(cluster, "cluster.local", "SOA").answer


def test_the_cache_of_questions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fc_frontend.demo.dns.MAX_CACHED_QUESTIONS", 4)
    before = count_of(ParsedQuestion)
    with ClusterDnsThread(ClusterDns([WEB])) as running:
        for n in range(20):
            assert outcome(ask(running, f"x{n}.default.svc.cluster.local")) == NXDOMAIN
            assert count_of(ParsedQuestion) - before <= 4


# Life


def test_restart_on_the_same_port(tcp: bool) -> None:
    name = "web.default.svc.cluster.local"
    with ClusterDnsThread(ClusterDns([WEB])) as running:
        address = running.address
        for _ in range(5):
            with socket.create_connection(address) as open_connection:
                assert ask(running, name, tcp=tcp).answer
                running.stop_answering()
                open_connection.settimeout(PATIENCE)
                with pytest.raises(ConnectionError):
                    assert open_connection.recv(1) == b""
                    raise ConnectionResetError
            with pytest.raises((OSError, dns.exception.Timeout)):
                ask(running, name, tcp=tcp, timeout=0.05)
            with socket.socket(type=socket.SOCK_DGRAM) as free:
                free.bind(address)
            running.start_answering()
            assert running.address == address
            assert ask(running, name, tcp=tcp).answer


def test_ipv6() -> None:
    with ClusterDnsThread(ClusterDns([WEB], address="::1")) as running:
        assert running.address[0] == "::1"
        for tcp in (False, True):
            assert ask(running, "web.default.svc.cluster.local", tcp=tcp).answer


def test_starting_twice_and_taken_ports() -> None:
    async def scenario() -> None:
        server = ClusterDns()
        with pytest.raises(RuntimeError, match="not started"):
            _ = server.address
        async with server:
            with pytest.raises(RuntimeError, match="already started"):
                await server.start()
            with pytest.raises(OSError, match="in use"):
                await ClusterDns(port=server.address[1]).start()
        await server.stop()

    run(scenario())


def test_a_free_port_is_free_for_both_transports(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first port that the system offers for UDP is already in use for TCP."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = taken.getsockname()[1]
        offered: list[int] = []

        class Socket(socket.socket):
            def bind(self, address: Any) -> None:
                if self.type == socket.SOCK_DGRAM and address[1] == 0:
                    address = (address[0], 0 if offered else busy)
                    offered.append(address[1])
                super().bind(address)

        async def scenario() -> None:
            with pytest.raises(OSError, match="in use"):
                await ClusterDns(port=busy).start()
            with monkeypatch.context() as patch:
                patch.setattr(socket, "socket", Socket)
                server = ClusterDns()
                await server.start()
            try:
                assert offered[:2] == [busy, 0]
                assert server.address[1] != busy
            finally:
                await server.stop()

        run(scenario())


def test_a_thread_that_cannot_start_leaves_nothing_behind() -> None:
    with (
        ClusterDnsThread() as running,
        pytest.raises(OSError, match="in use"),
        ClusterDnsThread(ClusterDns(port=running.address[1])),
    ):
        pytest.fail("the port was taken")


def test_delay_of_the_thread_helper() -> None:
    with ClusterDnsThread(ClusterDns([WEB])) as running:
        running.set_delay(3600.0)
        with pytest.raises(dns.exception.Timeout):
            ask(running, "web.default.svc.cluster.local", timeout=0.03)
        running.set_delay(0.0)
        assert ask(running, "web.default.svc.cluster.local").answer
