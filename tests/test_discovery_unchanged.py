"""Sweeps without changes: they are cheap, and never take a different answer for the same one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rrset
import pytest

from fc_frontend.demo.dns import ClusterDns, KubernetesService
from fc_frontend.discovery.client import DnsClient, Exchange, ReplyOutcome, reply_of
from fc_frontend.discovery.resolve import resolve_all
from fc_frontend.discovery.scan import RecordType, fingerprint
from fc_frontend.discovery.unchanged import UnchangedAnswers
from fc_frontend.plan.model import (
    Answer,
    Bind,
    Cluster,
    Freshness,
    Kind,
    Nameserver,
    ServiceSpec,
    Target,
    Transport,
)
from tests.conftest import PATIENCE
from tests.support.nameservers import ANSWER_TIMEOUT, Query, damaged, in_loop, scripted

MESSAGES = int(os.environ.get("FC_FRONTEND_DNS_MESSAGES", "2500"))
NAME = "web.default.svc.cluster.local"


def spec(name: str, **changes: object) -> ServiceSpec:
    made = ServiceSpec(name=name, service=name, binds=(Bind("ip", "*", 80),), port=8080)
    return replace(made, **changes)  # type: ignore[arg-type]


def headless(name: str, number: int, pods: int = 3) -> KubernetesService:
    found = tuple(f"10.1.{number % 250}.{n + 1}" for n in range(pods))
    return KubernetesService(name, ports={"http": 8080}, endpoints=found)


@dataclass
class Sweeping:
    """A cluster's services as they are swept, and the queries sent."""

    server: ClusterDns
    cluster: Cluster
    client: DnsClient
    exchanges: list[Exchange]
    specs: list[ServiceSpec]
    unchanged: UnchangedAnswers = field(default_factory=UnchangedAnswers)
    answers: dict[str, Answer] = field(default_factory=dict)
    now: float = 0.0

    async def sweep(self, hold: float = 0.0) -> dict[str, Answer]:
        """Return the current answers; `queries` and `exchanges` are those of this sweep."""
        self.server.queries.clear()
        self.exchanges.clear()
        self.answers = await resolve_all(
            self.specs,
            self.cluster,
            self.client,
            self.answers,
            now=self.now,
            hold=hold,
            unchanged=self.unchanged,
        )
        return self.answers

    @property
    def queries(self) -> list[tuple[str, str]]:
        return [(name.split(".")[0], rdtype) for name, rdtype, _ in self.server.queries.elements()]

    @property
    def told(self) -> int:
        return sum(len(exchange.durations) for exchange in self.exchanges)


@contextlib.asynccontextmanager
async def sweeping(
    *services: KubernetesService,
    specs: list[ServiceSpec] | None = None,
    nameserver: Nameserver | None = None,
    patience: float = ANSWER_TIMEOUT,
    pods: tuple[str, ...] = ("10.1.0.0/16",),
    **options: object,
) -> AsyncIterator[Sweeping]:
    async with ClusterDns(services, **options) as server:  # type: ignore[arg-type]
        host, port = server.address
        cluster = Cluster(
            nameservers=(nameserver or Nameserver(ip_address(host), port),),
            pod_networks=tuple(ip_network(network) for network in pods),
            service_networks=(ip_network("10.96.0.0/12"),),
            nodes={"node0": ip_address("192.0.2.1")},
        )
        exchanges: list[Exchange] = []
        client = DnsClient(cluster.nameservers, timeout=patience, observe=exchanges.append)
        try:
            listed = specs or [spec(service.name) for service in services]
            yield Sweeping(server, cluster, client, exchanges, listed)
        finally:
            client.close()


@in_loop
async def test_what_did_not_change_is_the_very_same_answer() -> None:
    services = [headless(f"s{n}", n) for n in range(300)]
    async with sweeping(*services) as swept:
        first = await swept.sweep()
        assert len(swept.queries) == 300
        for _ in range(3):
            again = await swept.sweep()
            assert all(again[name] is answer for name, answer in first.items())
            assert sorted(swept.queries) == sorted((f"s{n}", "A") for n in range(300))
            assert swept.told == 300


@in_loop
async def test_one_that_changed_is_seen_at_once_and_the_others_stay() -> None:
    services = [headless(f"s{n}", n) for n in range(20)]
    async with sweeping(*services) as swept:
        await swept.sweep()
        before = await swept.sweep()
        swept.server.set_service(headless("s7", 7, pods=5))
        after = await swept.sweep()
        assert len(after["s7"].endpoints) == 5
        assert all(after[f"s{n}"] is before[f"s{n}"] for n in range(20) if n != 7)
        assert len(swept.queries) == 21
        await swept.sweep()
        assert len(swept.queries) == 20


@in_loop
async def test_names_that_do_not_exist_and_such_without_pods_are_compared_as_well() -> None:
    services = [headless("empty", 1, pods=0), headless("web", 2)]
    async with sweeping(*services, specs=[spec("empty"), spec("web"), spec("gone")]) as swept:
        first = await swept.sweep()
        assert not first["empty"].endpoints
        assert "NXDOMAIN" in (first["gone"].error or "")
        again = await swept.sweep()
        assert all(again[name] is answer for name, answer in first.items())
        # Serials and TTLs do not count as a change of the answer.
        swept.server.set_service(headless("other", 3))
        again = await swept.sweep()
        assert all(again[name] is answer for name, answer in first.items())
        assert swept.told == len(swept.queries) == 3
        swept.server.set_service(headless("gone", 3))
        assert len((await swept.sweep())["gone"].endpoints) == 3


@in_loop
async def test_a_cluster_ip_whose_wildcard_does_not_exist_costs_two_comparisons() -> None:
    service = replace(headless("web", 1), cluster_ip="10.96.0.7")
    async with sweeping(service) as swept:
        first = await swept.sweep()
        assert first["web"].kind is Kind.SERVICE
        again = await swept.sweep()
        assert again["web"] is first["web"]
        assert len(swept.queries) == 2


@in_loop
async def test_all_kinds_go_on_as_before() -> None:
    service = headless("web", 1)
    ip = replace(headless("ip", 2), cluster_ip="10.96.0.8")
    specs = [
        spec("web"),
        spec("named", service="web", port="http"),
        spec("ip", target=Target.SERVICE),
        spec("node", target=Target.NODE),
    ]
    async with sweeping(service, ip, specs=specs) as swept:
        first = await swept.sweep()
        kinds = [first[s.name].kind for s in specs]
        assert kinds == [Kind.HEADLESS, Kind.SRV, Kind.SERVICE, Kind.NODES]
        again = await swept.sweep()
        assert again == first
        swept.server.set_service(headless("web", 1, pods=4))
        after = await swept.sweep()
        assert [len(after[s.name].endpoints) for s in specs] == [4, 4, 1, 1]


@in_loop
async def test_a_declaration_that_changed_is_resolved_from_the_start() -> None:
    async with sweeping(headless("web", 1)) as swept:
        await swept.sweep()
        swept.specs = [spec("web", port=9090)]
        assert {e.port for e in (await swept.sweep())["web"].endpoints} == {9090}


@in_loop
async def test_other_networks_are_looked_at_anew() -> None:
    async with sweeping(headless("web", 1)) as swept:
        await swept.sweep()
        swept.cluster = replace(swept.cluster, pod_networks=(ip_network("10.2.0.0/16"),))
        assert len((await swept.sweep())["web"].rejected) == 3


@in_loop
async def test_a_sudden_loss_is_held_and_ends_as_without_comparison() -> None:
    async with sweeping(headless("web", 1)) as swept:
        await swept.sweep(hold=30)
        swept.server.remove_service("web")
        for swept.now in (1.0, 2.0, 29.0):
            held = (await swept.sweep(hold=30))["web"]
            assert len(held.endpoints) == 3
            assert held.lost_at == 1.0
        swept.now = 31.0
        assert not (await swept.sweep(hold=30))["web"].endpoints


@in_loop
async def test_the_second_family_counts_only_where_the_first_has_nothing() -> None:
    both = replace(headless("web", 1), endpoints=("10.1.0.1", "fd00::1"))
    six = replace(headless("six", 1), endpoints=("fd00::2",))
    async with sweeping(both, six, pods=("10.1.0.0/16", "fd00::/64")) as swept:
        first = await swept.sweep()
        assert [e.address for e in first["six"].endpoints] == ["fd00::2"]
        again = await swept.sweep()
        assert all(again[name] is answer for name, answer in first.items())
        assert sorted(swept.queries) == [("six", "A"), ("six", "AAAA"), ("web", "A")]
        swept.server.set_service(replace(six, endpoints=("10.1.0.9",)))
        assert [e.address for e in (await swept.sweep())["six"].endpoints] == ["10.1.0.9"]


@in_loop
async def test_large_answers_do_not_overrun_the_buffers() -> None:
    services = [headless(f"s{n}", n, pods=240) for n in range(40)]
    async with sweeping(*services, patience=2) as swept:
        await swept.sweep()
        # A busy host may delay an answer beyond its timeout; small buffers would always lose some.
        async with asyncio.timeout(PATIENCE):
            while (swept.told, len(swept.queries)) != (40, 40):
                await swept.sweep()


# Servers that fail or send wrong answers


def answering(behave: Callable[[Query, bytes], None]) -> Callable[[Query], None]:
    """Return a server with one pod for each name; `behave` handles its answers."""

    def respond(query: Query) -> None:
        name = query.message.question[0].name.to_text()
        behave(query, query.answered(f"{name} A 10.1.0.1"))

    return respond


@in_loop
async def test_a_lost_datagram_is_asked_for_again_and_costs_a_moment() -> None:
    seen: dict[bytes, int] = {}

    def behave(query: Query, answer: bytes) -> None:
        seen[query.wire[12:]] = seen.get(query.wire[12:], 0) + 1
        # The second question for every other name is lost.
        if seen[query.wire[12:]] != 2 or query.wire[13] % 2:
            query.reply(answer)

    async with (
        scripted(answering(behave)) as nameserver,
        sweeping(nameserver=nameserver, specs=[spec(f"{n}") for n in range(10)]) as swept,
    ):
        first = await swept.sweep()
        again = await swept.sweep()
        assert all(exchange.rcode == "NOERROR" for exchange in swept.exchanges)
        assert all(again[name] is answer for name, answer in first.items())


@in_loop
async def test_forged_answers_are_passed_over() -> None:
    forging = False

    def behave(query: Query, answer: bytes) -> None:
        if forging:
            other = dns.message.from_wire(answer)
            forged = dns.message.make_response(dns.message.make_query("evil.example.", "A"))
            forged.id = other.id
            query.reply(forged.to_wire())
            wrong = bytes([answer[0] ^ 1]) + answer[1:-1] + b"\x42"
            query.reply(wrong)
            query.reply_from_elsewhere(answer[:-1] + b"\x42")
            query.reply(query.wire)
        query.reply(answer)

    async with (
        scripted(answering(behave)) as nameserver,
        sweeping(nameserver=nameserver, specs=[spec(f"s{n}") for n in range(50)]) as swept,
    ):
        first = await swept.sweep()
        forging = True
        again = await swept.sweep()
        assert all(again[name] is answer for name, answer in first.items())


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED])
@in_loop
async def test_a_server_that_begins_to_fail_leaves_what_was_known(rcode: dns.rcode.Rcode) -> None:
    failing = False

    def behave(query: Query, answer: bytes) -> None:
        if failing:
            answer = query.answered(rcode=rcode)
        query.reply(answer)

    async with (
        scripted(answering(behave)) as nameserver,
        sweeping(nameserver=nameserver, specs=[spec(f"s{n}") for n in range(5)]) as swept,
    ):
        first = await swept.sweep()
        failing = True
        stale = await swept.sweep()
        assert {answer.freshness for answer in stale.values()} == {Freshness.STALE}
        assert all(stale[name].endpoints == first[name].endpoints for name in first)
        failing = False
        assert await swept.sweep() == first


@in_loop
async def test_a_server_that_falls_silent_leaves_what_was_known() -> None:
    silent = False

    def behave(query: Query, answer: bytes) -> None:
        if not silent:
            query.reply(answer)

    async with (
        scripted(answering(behave)) as nameserver,
        sweeping(
            nameserver=nameserver, specs=[spec(f"s{n}") for n in range(5)], patience=0.3
        ) as swept,
    ):
        first = await swept.sweep()
        silent = True
        stale = await swept.sweep()
        assert {answer.freshness for answer in stale.values()} == {Freshness.STALE}
        silent = False
        assert await swept.sweep() == first


@in_loop
async def test_a_port_that_closes_is_noticed_without_waiting() -> None:
    async with sweeping(headless("web", 1), patience=20) as swept:
        first = await swept.sweep()
        await swept.server.stop()
        stale = await swept.sweep()
        assert stale["web"].freshness is Freshness.STALE
        assert stale["web"].endpoints == first["web"].endpoints


@in_loop
async def test_a_client_that_is_closed_meanwhile_leaves_what_was_known() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.setblocking(False)
        host, port = deaf.getsockname()
        nameserver = Nameserver(ip_address(host), port, (Transport.UDP,))
        async with sweeping(headless("web", 1)) as swept:
            first = await swept.sweep()
            client = DnsClient((nameserver,), timeout=30)
            question = swept.client.source(NAME, "A", await swept.client.ask(NAME, "A"))
            assert question is not None
            comparing = asyncio.create_task(client.compare([question]))
            await asyncio.get_running_loop().sock_recv(deaf, 512)
            client.close()
            assert await asyncio.wait_for(comparing, 5) == set()
            assert await swept.sweep() == first


# Agreement with dnspython


def made_message(rng: random.Random) -> tuple[RecordType, bytes, bytes]:
    """Return a type, the question section and an answer to it."""
    rdtype: RecordType = rng.choice(["A", "AAAA"])
    query = dns.message.make_query(NAME, rdtype, use_edns=0 if rng.random() < 0.8 else -1)
    response = dns.message.make_response(query, recursion_available=rng.random() < 0.5)
    response.flags |= dns.flags.AA if rng.random() < 0.8 else 0
    kind = rng.randrange(6)
    pods = [f"10.1.0.{n}" for n in range(1, 4)] if rdtype == "A" else ["fd00::1", "fd00::2"]
    rng.shuffle(pods)
    ttl = rng.choice([0, 5, 30])
    if kind < 3:
        response.answer.append(dns.rrset.from_text(f"{NAME}.", ttl, "IN", rdtype, *pods[kind:]))
    else:
        if kind == 3:
            response.set_rcode(dns.rcode.NXDOMAIN)
        response.authority.append(
            dns.rrset.from_text(
                "cluster.local.",
                ttl,
                "IN",
                "SOA",
                f"ns.dns.cluster.local. hostmaster.cluster.local. {rng.randrange(2**31)} "
                "7200 1800 86400 5",
            )
        )
    wire = response.to_wire()
    length = len(dns.name.from_text(NAME).to_wire() or b"") + 4
    return rdtype, wire[12 : 12 + length], wire


def read_by_dnspython(rdtype: RecordType, wire: bytes) -> object:
    """Return the reply for an answer, read as one that is not plain."""
    try:
        message = dns.message.from_wire(wire, ignore_trailing=True)
        if not isinstance(message, dns.message.QueryMessage):
            return "no answer"
        if message.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            return dns.rcode.to_text(message.rcode())
        if message.flags & dns.flags.TC:
            return "truncated"
        return reply_of(NAME, rdtype, message)
    except (dns.exception.DNSException, ValueError):
        return "malformed"


def test_answers_that_are_taken_for_the_same_are_read_alike() -> None:
    rng = random.Random(1035)
    read: dict[object, object] = {}
    plain = 0
    for number in range(MESSAGES):
        rdtype, section, wire = made_message(rng)
        if number % 3:
            wire = damaged(wire, rng)
        if len(wire) < 12 or wire[12 : 12 + len(section)] != section:
            continue
        found = fingerprint(wire, len(section), rdtype)
        if found is None:
            continue
        plain += 1
        reply = read_by_dnspython(rdtype, wire)
        assert reply == read.setdefault((rdtype, found), reply), (number, wire.hex())
    assert plain > MESSAGES / 4
    outcomes = {reply[0].outcome for reply in read.values() if isinstance(reply, tuple)}
    assert outcomes == {ReplyOutcome.ANSWER, ReplyOutcome.NXDOMAIN, ReplyOutcome.EMPTY}


def test_only_what_moves_is_left_out_of_an_absence() -> None:
    query = dns.message.make_query(NAME, "A")
    response = dns.message.make_response(query)
    response.set_rcode(dns.rcode.NXDOMAIN)
    soa = "ns.dns.cluster.local. hostmaster.cluster.local. 1700000000 7200 1800 86400 5"
    response.authority.append(dns.rrset.from_text("cluster.local.", 5, "IN", "SOA", soa))
    wire = response.to_wire()
    section = len(dns.name.from_text(NAME).to_wire() or b"") + 4
    same = fingerprint(wire, section, "A")
    moved = [
        at
        for at in range(2, len(wire))
        if fingerprint(wire[:at] + bytes([wire[at] ^ 0x20]) + wire[at + 1 :], section, "A") == same
    ]
    serial = wire.index(struct.pack("!I", 1700000000))
    ttl = wire.index(b"\x00\x06\x00\x01", 12 + section) + 4
    assert moved == [*range(ttl, ttl + 4), *range(serial, serial + 4)]
