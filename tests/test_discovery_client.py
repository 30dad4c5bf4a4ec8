"""The DNS client against real servers: every kind of answer, failover, forgeries and garbage."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import random
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, ParamSpec

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.rrset
import psutil
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fc_frontend.demo.dns import ClusterDns, Fault, KubernetesService
from fc_frontend.discovery.channel import Question
from fc_frontend.discovery.client import (
    DnsClient,
    Exchange,
    Reply,
    ReplyOutcome,
    ServiceRecord,
)
from fc_frontend.discovery.scan import RecordType, plain_records
from fc_frontend.plan.model import Nameserver, Transport
from tests.conftest import PATIENCE, until_in_loop
from tests.support.objects import count_of

P = ParamSpec("P")

SOON = 0.1
"""Seconds for what never comes."""
SPARE = 0.5
"""Seconds where one server is silent and the next one answers."""
PREFERRED_FOR = 30.0
"""Seconds for which the server that answered last is asked before those ahead of it."""
MESSAGES = int(os.environ.get("FC_FRONTEND_DNS_MESSAGES", "2500"))

ZONE = "default.svc.cluster.local"
WEB = f"web.{ZONE}"
PODS = ("10.1.0.3", "10.1.0.4", "10.1.0.5", "fd00::3", "fd00::4")
V4 = PODS[:3]
V6 = PODS[3:]
SERVICE = KubernetesService("web", ports={"http": 8080}, endpoints=PODS)
FORGED = "10.66.66.66"

by_examples = settings(max_examples=100, suppress_health_check=list(HealthCheck))


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """The test as an ordinary function, in an event loop of its own."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def server(place: tuple[str, int], *transports: Transport, host: str | None = None) -> Nameserver:
    """The nameserver at `place`, as settings would have it."""
    both = transports or (Transport.UDP, Transport.TCP)
    return Nameserver(ip_address(host or place[0]), place[1], both)


class Asking:
    """A client, what it observed, and a clock that stands still unless it is moved."""

    def __init__(
        self,
        nameservers: Sequence[Nameserver],
        *,
        timeout: float = PATIENCE,
        tries: int = 2,
    ) -> None:
        self.now = 1000.0
        self.clock: Callable[[], float] = lambda: self.now
        self.exchanges: list[Exchange] = []
        self.client = DnsClient(
            nameservers,
            timeout=timeout,
            tries=tries,
            observe=self.exchanges.append,
            clock=self.time,
        )

    def time(self) -> float:
        return self.clock()

    async def __call__(self, name: str = WEB, rdtype: RecordType = "A") -> Reply:
        return await self.client.ask(name, rdtype)

    def told(self) -> list[tuple[str, str, str]]:
        """Nameserver, transport and code of each exchange since the last call."""
        said = [(e.nameserver, e.transport, e.rcode) for e in self.exchanges]
        self.exchanges.clear()
        return said


@contextlib.asynccontextmanager
async def asking(
    *servers: ClusterDns | Nameserver | tuple[str, int], **options: Any
) -> AsyncIterator[Asking]:
    """A client of `servers`, closed in the end."""
    places = [s.address if isinstance(s, ClusterDns) else s for s in servers]
    known = [place if isinstance(place, Nameserver) else server(place) for place in places]
    asked = Asking(known, **options)
    try:
        yield asked
    finally:
        asked.client.close()


def closed_place() -> tuple[str, int]:
    """An address where nobody listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return "127.0.0.1", port


def text(place: tuple[str, int]) -> str:
    return f"[{place[0]}]:{place[1]}" if ":" in place[0] else f"{place[0]}:{place[1]}"


# Servers that do what the embedded one never would


@dataclass(frozen=True)
class Query:
    """A query as it came, and the two places from which it may be answered."""

    wire: bytes
    reply: Callable[[bytes], None]
    reply_from_elsewhere: Callable[[bytes], None]

    @property
    def message(self) -> dns.message.Message:
        return dns.message.from_wire(self.wire)

    def answered(self, *lines: str, rcode: dns.rcode.Rcode = dns.rcode.NOERROR) -> bytes:
        """An answer with records as in a zone file."""
        response = dns.message.make_response(self.message)
        response.set_rcode(rcode)
        for line in lines:
            owner, rdtype, data = line.split(" ", 2)
            response.answer.append(dns.rrset.from_text(owner, 5, "IN", rdtype, data))
        return response.to_wire()


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, respond: Callable[[Query], None], elsewhere: socket.socket) -> None:
        self._respond = respond
        self._elsewhere = elsewhere

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        self._respond(
            Query(
                data,
                lambda wire: self._transport.sendto(wire, addr),
                lambda wire: void(self._elsewhere.sendto(wire, addr)),
            )
        )


def void(_value: object) -> None:
    """For what returns something that nobody needs."""


@contextlib.asynccontextmanager
async def scripted(respond: Callable[[Query], None]) -> AsyncIterator[Nameserver]:
    """A server for UDP alone whose every answer the test decides."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as elsewhere:
        elsewhere.bind(("127.0.0.1", 0))
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Udp(respond, elsewhere), local_addr=("127.0.0.1", 0)
        )
        try:
            yield server(transport.get_extra_info("sockname"), Transport.UDP)
        finally:
            transport.close()


@contextlib.asynccontextmanager
async def scripted_tcp(respond: Callable[[bytes], bytes]) -> AsyncIterator[Nameserver]:
    """A server for TCP alone: it sends what `respond` makes of a query, and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            length = int.from_bytes(await reader.readexactly(2), "big")
            writer.write(respond(await reader.readexactly(length)))
            await writer.drain()
        finally:
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server(listener.sockets[0].getsockname(), Transport.TCP)
    finally:
        listener.close()
        await listener.wait_closed()


# Answers


@in_loop
async def test_address_records_of_both_families_are_answered_sorted() -> None:
    async with ClusterDns([SERVICE]) as dns_server, asking(dns_server) as ask:
        assert await ask(WEB, "A") == Reply(WEB, "A", ReplyOutcome.ANSWER, tuple(sorted(V4)))
        assert await ask(WEB, "AAAA") == Reply(WEB, "AAAA", ReplyOutcome.ANSWER, tuple(sorted(V6)))


@in_loop
async def test_a_service_record_has_its_port_and_the_addresses_of_its_target() -> None:
    async with ClusterDns([SERVICE]) as dns_server, asking(dns_server) as ask:
        reply = await ask(f"_http._tcp.{WEB}", "SRV")
        assert reply.outcome is ReplyOutcome.ANSWER
        assert reply.services == tuple(
            sorted(
                ServiceRecord(f"{pod.replace('.', '-').replace(':', '-')}.{WEB}", 8080, (pod,))
                for pod in PODS
            )
        )


@in_loop
async def test_a_service_record_for_no_service_or_port_0_is_no_server() -> None:
    def respond(query: Query) -> None:
        query.reply(query.answered(f"{WEB}. SRV 0 1 80 .", f"{WEB}. SRV 0 1 0 pod.{WEB}."))

    async with scripted(respond) as nameserver, asking(nameserver) as ask:
        reply = await ask(WEB, "SRV")
        assert (reply.outcome, reply.services) == (ReplyOutcome.EMPTY, ())


@in_loop
async def test_an_unknown_name_is_nxdomain_and_a_missing_type_is_empty() -> None:
    only_v4 = KubernetesService("four", endpoints=("10.1.0.9",))
    async with ClusterDns([only_v4]) as dns_server, asking(dns_server) as ask:
        assert (await ask(f"none.{ZONE}")).outcome is ReplyOutcome.NXDOMAIN
        assert (await ask(f"four.{ZONE}", "AAAA")).outcome is ReplyOutcome.EMPTY
        assert (await ask(f"four.{ZONE}")).addresses == ("10.1.0.9",)


@in_loop
async def test_a_nameserver_with_an_ipv6_address_is_asked() -> None:
    async with ClusterDns([SERVICE], address="::1") as dns_server, asking(dns_server) as ask:
        assert (await ask()).addresses == V4
        assert ask.told() == [(text(dns_server.address), "udp", "NOERROR")]


@in_loop
async def test_shuffled_answers_compare_equal() -> None:
    many = KubernetesService("many", endpoints=tuple(f"10.1.2.{i}" for i in range(1, 60)))
    async with ClusterDns([many]) as dns_server, asking(dns_server) as ask:
        replies = {await ask(f"many.{ZONE}") for _ in range(30)}
        assert len(replies) == 1
        assert len(replies.pop().addresses) == 59


@in_loop
async def test_a_change_is_seen_at_once_and_so_is_its_end() -> None:
    async with ClusterDns([SERVICE]) as dns_server, asking(dns_server) as ask:
        before = await ask()
        dns_server.set_endpoints("web", ["10.1.0.3", "10.1.0.4", "10.1.0.9"])
        assert (await ask()).addresses == ("10.1.0.3", "10.1.0.4", "10.1.0.9")
        dns_server.set_endpoints("web", ["10.1.0.3"])
        assert (await ask()).addresses == ("10.1.0.3",)
        dns_server.set_endpoints("web", [])
        assert (await ask()).outcome is ReplyOutcome.NXDOMAIN
        dns_server.set_endpoints("web", PODS)
        assert await ask() == before


@in_loop
async def test_500_questions_at_once_get_each_their_own_answer() -> None:
    expected = {f"s{i}.{ZONE}": f"10.2.{i // 250}.{i % 250 + 1}" for i in range(500)}
    services = [
        KubernetesService(name.split(".")[0], endpoints=(address,))
        for name, address in expected.items()
    ]
    async with ClusterDns(services) as dns_server, asking(dns_server) as ask:
        dns_server.delay = 0.001
        replies = await asyncio.gather(*(ask(name) for name in expected))
        assert {r.name: r.addresses for r in replies} == {n: (a,) for n, a in expected.items()}
        assert Counter(ask.told()) == {(text(dns_server.address), "udp", "NOERROR"): 500}


@in_loop
async def test_each_exchange_is_observed_with_its_duration() -> None:
    async with ClusterDns([SERVICE]) as dns_server, asking(dns_server) as ask:
        ticks = itertools.count(1000, 0.25)
        ask.clock = lambda: next(ticks)
        await ask(f"none.{ZONE}")
        dns_server.fault = Fault.TRUNCATED_NO_TCP
        await ask()
        assert all(seconds >= 0.25 for e in ask.exchanges for seconds in e.durations)
        assert [(e.transport, e.rcode) for e in ask.exchanges] == [
            ("udp", "NXDOMAIN"),
            *[("udp", "truncated"), ("tcp", "unreachable")] * 2,
        ]
        assert {e.nameserver for e in ask.exchanges} == {text(dns_server.address)}


# Aliases


@in_loop
async def test_aliases_inside_one_answer_are_followed() -> None:
    aliases = {"a.example": "b.example", "b.example": WEB}
    async with (
        ClusterDns([SERVICE], extra_records=aliases) as dns_server,
        asking(dns_server) as ask,
    ):
        assert await ask("a.example") == Reply("a.example", "A", ReplyOutcome.ANSWER, V4)
        assert len(ask.told()) == 1


@in_loop
async def test_aliases_across_several_answers_are_followed_and_keep_the_name_asked_for() -> None:
    # The server ends an answer after eight of them.
    aliases = {f"a{i}.example": f"a{i + 1}.example" for i in range(20)} | {"a20.example": WEB}
    async with (
        ClusterDns([SERVICE], extra_records=aliases) as dns_server,
        asking(dns_server) as ask,
    ):
        assert await ask("a0.example") == Reply("a0.example", "A", ReplyOutcome.ANSWER, V4)
        assert len(ask.told()) == 3


@in_loop
async def test_a_chain_of_aliases_without_end_is_a_failure() -> None:
    def respond(query: Query) -> None:
        name = query.message.question[0].name
        target = dns.name.from_text(f"x{int(name.labels[0][1:]) + 1}.example")
        query.reply(query.answered(f"{name} CNAME {target}"))

    async with scripted(respond) as nameserver, asking(nameserver) as ask:
        reply = await ask("x0.example")
        assert (reply.name, reply.outcome) == ("x0.example", ReplyOutcome.FAILURE)
        assert "CNAME" in reply.detail
        assert len(ask.told()) == 8


@in_loop
async def test_aliases_in_a_circle_are_a_failure() -> None:
    aliases = {"a.example": "b.example", "b.example": "a.example"}
    async with ClusterDns(extra_records=aliases) as dns_server, asking(dns_server) as ask:
        assert (await ask("a.example")).outcome is ReplyOutcome.FAILURE


@in_loop
async def test_an_alias_of_an_unknown_name_is_nxdomain_and_of_an_unreachable_one_a_failure() -> (
    None
):
    aliases = {"a.example": f"none.{ZONE}", "b.example": "outside.example"}
    async with ClusterDns(extra_records=aliases) as dns_server, asking(dns_server) as ask:
        assert (await ask("a.example")).outcome is ReplyOutcome.NXDOMAIN
        reply = await ask("b.example")
        assert reply.outcome is ReplyOutcome.FAILURE
        assert "SERVFAIL" in reply.detail


# Sizes and transports

CROWD = KubernetesService(
    "crowd", endpoints=tuple(f"10.3.{i // 200}.{i % 200 + 1}" for i in range(600))
)


@in_loop
async def test_600_addresses_come_over_tcp_after_a_truncated_answer() -> None:
    async with ClusterDns([CROWD]) as dns_server, asking(dns_server) as ask:
        reply = await ask(f"crowd.{ZONE}")
        assert reply.addresses == tuple(sorted(CROWD.endpoints))
        place = text(dns_server.address)
        assert ask.told() == [(place, "udp", "truncated"), (place, "tcp", "NOERROR")]


@in_loop
async def test_a_truncated_answer_is_a_failure_where_tcp_is_not_allowed() -> None:
    async with (
        ClusterDns([CROWD]) as dns_server,
        asking(server(dns_server.address, Transport.UDP)) as ask,
    ):
        reply = await ask(f"crowd.{ZONE}")
        assert (reply.outcome, reply.addresses) == (ReplyOutcome.FAILURE, ())
        assert "TCP is not allowed" in reply.detail


@in_loop
async def test_the_next_nameserver_is_asked_where_one_truncates_without_tcp() -> None:
    async with ClusterDns([CROWD]) as first, ClusterDns([CROWD]) as second:
        first.fault = Fault.TRUNCATED_NO_TCP
        async with asking(first, second) as ask:
            assert len((await ask(f"crowd.{ZONE}")).addresses) == 600


@in_loop
async def test_a_nameserver_for_tcp_alone_is_never_asked_over_udp() -> None:
    async with (
        ClusterDns([SERVICE]) as dns_server,
        asking(server(dns_server.address, Transport.TCP)) as ask,
    ):
        assert (await ask()).addresses == V4
        assert (await ask(f"none.{ZONE}")).outcome is ReplyOutcome.NXDOMAIN
        assert {transport for _, transport, _ in ask.told()} == {"tcp"}


@in_loop
async def test_an_answer_that_is_truncated_even_over_tcp_is_a_failure() -> None:
    def respond(wire: bytes) -> bytes:
        query = Query(wire, void, void)
        cut = bytearray(query.answered(f"{WEB}. A 10.1.0.3"))
        cut[2] |= 0x02
        return len(cut).to_bytes(2, "big") + cut

    async with scripted_tcp(respond) as nameserver, asking(nameserver, tries=1) as ask:
        reply = await ask()
        assert (reply.outcome, reply.addresses) == (ReplyOutcome.FAILURE, ())
        assert [rcode for _, _, rcode in ask.told()] == ["truncated"]


# Failover


@pytest.mark.parametrize("fault", [Fault.SERVFAIL, Fault.REFUSED])
@in_loop
async def test_a_refusal_or_failure_of_one_nameserver_leads_to_the_next(fault: Fault) -> None:
    async with ClusterDns([SERVICE]) as first, ClusterDns([SERVICE]) as second:
        first.fault = fault
        async with asking(first, second) as ask:
            assert (await ask()).addresses == V4
            assert ask.told() == [
                (text(first.address), "udp", fault.name),
                (text(second.address), "udp", "NOERROR"),
            ]


@pytest.mark.parametrize("code", ["FORMERR", "SERVFAIL", "NOTIMP", "REFUSED"])
@in_loop
async def test_an_error_that_does_not_repeat_the_question_is_not_waited_out(code: str) -> None:
    def respond(query: Query) -> None:
        query.reply(query.wire[:2] + bytes((0x80, dns.rcode.from_text(code))) + bytes(8))

    async with (
        scripted(respond) as first,
        ClusterDns([SERVICE]) as second,
        asking(first, second) as ask,
    ):
        assert (await ask()).addresses == V4
        assert [rcode for _, _, rcode in ask.told()] == [code, "NOERROR"]


@pytest.mark.parametrize("code", ["NOERROR", "NXDOMAIN"])
@in_loop
async def test_an_answer_that_does_not_repeat_the_question_is_ignored(code: str) -> None:
    def respond(query: Query) -> None:
        query.reply(query.wire[:2] + bytes((0x80, dns.rcode.from_text(code))) + bytes(8))
        query.reply(query.answered(f"{WEB}. A 10.1.0.3"))

    async with scripted(respond) as nameserver, asking(nameserver) as ask:
        assert (await ask()).addresses == ("10.1.0.3",)


@in_loop
async def test_a_closed_port_leads_to_the_next_nameserver_without_waiting() -> None:
    closed = closed_place()
    async with ClusterDns([SERVICE]) as second, asking(closed, second) as ask:
        assert (await ask()).addresses == V4
        assert ask.told() == [
            (text(closed), "udp", "unreachable"),
            (text(second.address), "udp", "NOERROR"),
        ]


@pytest.mark.parametrize("transport", Transport)
@in_loop
async def test_nxdomain_is_an_answer_and_no_reason_to_ask_another(transport: Transport) -> None:
    async with (
        ClusterDns() as first,
        ClusterDns([SERVICE]) as second,
        asking(server(first.address, transport), second) as ask,
    ):
        assert (await ask()).outcome is ReplyOutcome.NXDOMAIN
        assert len(ask.told()) == 1


@pytest.mark.parametrize("transport", Transport)
@in_loop
async def test_if_every_nameserver_fails_the_reply_names_each_with_its_reason(
    transport: Transport,
) -> None:
    async with ClusterDns() as first, ClusterDns() as second:
        first.fault, second.fault = Fault.SERVFAIL, Fault.REFUSED
        nameservers = [server(s.address, transport) for s in (first, second)]
        async with asking(*nameservers, closed_place()) as ask:
            reply = await ask()
            assert reply.outcome is ReplyOutcome.FAILURE
            assert f"{nameservers[0]}: SERVFAIL" in reply.detail
            assert f"{nameservers[1]}: REFUSED" in reply.detail
            assert "unreachable" in reply.detail
            assert len(ask.told()) == 6


@in_loop
async def test_without_nameservers_every_question_fails() -> None:
    async with asking() as ask:
        assert (await ask()).outcome is ReplyOutcome.FAILURE


@pytest.mark.parametrize("transport", Transport)
@in_loop
async def test_silence_is_a_failure_that_says_how_long_it_waited(transport: Transport) -> None:
    async with ClusterDns() as dns_server:
        dns_server.fault = Fault.SILENT
        nameserver = server(dns_server.address, transport)
        async with asking(nameserver, timeout=SOON, tries=1) as ask:
            reply = await ask()
            assert reply.outcome is ReplyOutcome.FAILURE
            waited = SOON if transport is Transport.UDP else 2 * SOON
            assert f"no answer within {waited:g} s" in reply.detail
            assert ask.told() == [(text(dns_server.address), transport, "timeout")]


@in_loop
async def test_a_silent_first_nameserver_costs_one_timeout_and_not_one_for_each_question() -> None:
    async with ClusterDns([SERVICE]) as first, ClusterDns([SERVICE]) as second:
        first.fault = Fault.SILENT
        async with asking(first, second, timeout=SPARE) as ask:
            await ask()
            assert [rcode for _, _, rcode in ask.told()] == ["timeout", "NOERROR"]
            for _ in range(20):
                assert (await ask()).addresses == V4
            assert set(ask.told()) == {(text(second.address), "udp", "NOERROR")}


@in_loop
async def test_a_silent_first_nameserver_delays_a_sweep_of_many_names_only_once() -> None:
    services = [KubernetesService(f"s{i}", endpoints=("10.1.0.1",)) for i in range(400)]
    async with ClusterDns() as first, ClusterDns(services) as second:
        first.fault = Fault.SILENT
        # A second in which the whole host stands still would not be the silence of the first one.
        async with asking(first, second, timeout=4 * SPARE) as ask:
            replies = await asyncio.gather(*(ask(f"s{i}.{ZONE}") for i in range(400)))
            assert {reply.outcome for reply in replies} == {ReplyOutcome.ANSWER}
            # No more than may be under way at the same time.
            assert Counter(ask.told())[text(first.address), "udp", "timeout"] <= 64


@in_loop
async def test_the_declared_order_returns_after_30_seconds_if_the_first_nameserver_does() -> None:
    async with ClusterDns([SERVICE]) as first, ClusterDns([SERVICE]) as second:
        failed = (text(first.address), "udp", "SERVFAIL")
        helped = (text(second.address), "udp", "NOERROR")
        first.fault = Fault.SERVFAIL
        async with asking(first, second) as ask:
            await ask()
            assert ask.told() == [failed, helped]
            ask.now += PREFERRED_FOR - 1
            await ask()
            assert ask.told() == [helped]
            ask.now += 2
            await ask()
            await ask()
            await ask()
            assert ask.told() == [failed, helped, helped, helped]
            first.fault = Fault.NONE
            ask.now += PREFERRED_FOR - 1
            await ask()
            assert ask.told() == [helped]
            ask.now += 2
            await ask()
            await ask()
            assert ask.told() == [(text(first.address), "udp", "NOERROR")] * 2


@in_loop
async def test_a_nameserver_that_was_stopped_is_used_again_when_it_is_back() -> None:
    async with ClusterDns([SERVICE]) as dns_server, asking(dns_server) as ask:
        assert (await ask()).addresses == V4
        await dns_server.stop()
        assert (await ask()).outcome is ReplyOutcome.FAILURE
        await dns_server.start()
        assert (await ask()).addresses == V4


# Forgeries and garbage


def another_id(wire: bytes) -> bytes:
    return bytes((wire[0] ^ 0x55, wire[1])) + wire[2:]


@in_loop
async def test_answers_with_another_id_or_question_are_ignored() -> None:
    def respond(query: Query) -> None:
        forged = query.answered(f"{WEB}. A {FORGED}")
        query.reply(another_id(forged))
        query.reply(forged.replace(b"\x03web", b"\x03wed"))
        query.reply(forged.replace(b"\x00\x01\x00\x01", b"\x00\x1c\x00\x01", 1))
        query.reply(forged[:2] + bytes((forged[2] & 0x7F,)) + forged[3:])
        query.reply(forged[:11])
        query.reply(b"")
        query.reply(query.wire)
        query.reply(query.answered(f"{WEB}. A 10.1.0.3"))

    async with scripted(respond) as nameserver, asking(nameserver) as ask:
        assert (await ask()).addresses == ("10.1.0.3",)
        assert [rcode for _, _, rcode in ask.told()] == ["NOERROR"]


@in_loop
async def test_an_answer_from_another_port_is_ignored() -> None:
    def respond(query: Query) -> None:
        query.reply_from_elsewhere(query.answered(f"{WEB}. A {FORGED}"))
        query.reply(query.answered(f"{WEB}. A 10.1.0.3"))

    async with scripted(respond) as nameserver, asking(nameserver) as ask:
        assert (await ask()).addresses == ("10.1.0.3",)


@in_loop
async def test_an_answer_from_another_port_alone_is_a_timeout() -> None:
    def respond(query: Query) -> None:
        query.reply_from_elsewhere(query.answered(f"{WEB}. A {FORGED}"))

    async with (
        scripted(respond) as nameserver,
        asking(nameserver, timeout=SOON, tries=1) as ask,
    ):
        assert (await ask()).outcome is ReplyOutcome.FAILURE
        assert [rcode for _, _, rcode in ask.told()] == ["timeout"]


@in_loop
async def test_an_answer_that_comes_twice_is_used_once() -> None:
    def respond(query: Query) -> None:
        query.reply(query.answered(f"{WEB}. A 10.1.0.3"))
        query.reply(query.answered(f"{WEB}. A {FORGED}"))

    async with scripted(respond) as nameserver, asking(nameserver) as ask:
        assert [(await ask()).addresses for _ in range(5)] == [("10.1.0.3",)] * 5


@in_loop
async def test_records_of_other_names_in_an_answer_are_not_used() -> None:
    def respond(query: Query) -> None:
        query.reply(query.answered(f"evil.{ZONE}. A {FORGED}", f"{WEB}. A 10.1.0.3"))

    async with scripted(respond) as nameserver, asking(nameserver) as ask:
        assert (await ask()).addresses == ("10.1.0.3",)


@in_loop
async def test_queries_have_ids_and_come_from_a_port_that_cannot_be_guessed() -> None:
    seen: list[int] = []

    def respond(query: Query) -> None:
        seen.append(int.from_bytes(query.wire[:2], "big"))
        query.reply(query.answered(f"{WEB}. A 10.1.0.3"))

    async with scripted(respond) as nameserver, asking(nameserver) as ask:
        for _ in range(50):
            await ask()
    assert len(set(seen)) > 40
    steps = {(after - before) % 65536 for before, after in itertools.pairwise(seen)}
    assert len(steps) > 40


@st.composite
def garbage(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """What stands before and after the question of an answer: any flags, counts and records."""
    flags = draw(st.integers(0, 0xFFFF)) | 0x8000
    counts = draw(st.tuples(*[st.integers(0, 3) | st.integers(0, 0xFFFF)] * 3))
    return struct.pack("!HHHHH", flags & ~0x0200, 1, *counts), draw(st.binary(max_size=60))


def readable(wire: bytes) -> bool:
    """True if dnspython reads `wire` as an answer that is none of a failure."""
    try:
        message = dns.message.from_wire(wire, ignore_trailing=True)
    except (dns.exception.DNSException, ValueError):
        return False
    if message.opcode() != dns.opcode.QUERY:
        return False
    return message.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN)


def opcode_flags(opcode: int) -> bytes:
    return struct.pack("!HHHHH", 0x8000 | opcode << 11, 1, 0, 0, 0)


@example(("A", (opcode_flags(dns.opcode.NOTIFY), b"")))
@example(("A", (opcode_flags(dns.opcode.UPDATE), b"")))
@example(("SRV", (opcode_flags(15), b"")))
@example(("A", (b"\x80\x00\x00\x01\x00\x01\x00\x00\x00\x00", b"\xc0\x0c")))
@example(("A", (b"\x80\x0f\x00\x01\x00\x00\x00\x00\x00\x00", b"")))
@given(st.tuples(st.sampled_from(["A", "AAAA", "SRV"]), garbage()))
@by_examples
def test_garbage_is_a_failure_and_never_an_exception(
    given_: tuple[RecordType, tuple[bytes, bytes]],
) -> None:
    rdtype, (header, rest) = given_
    sent: list[bytes] = []

    def answer(wire: bytes) -> bytes:
        question = wire[12 : 12 + len(dns.name.from_text(WEB).to_wire() or b"") + 4]
        sent.append(wire[:2] + header + question + rest)
        return sent[-1]

    async def scenario() -> None:
        async with (
            scripted(lambda query: query.reply(answer(query.wire))) as nameserver,
            asking(nameserver, tries=1) as ask,
        ):
            judge(await ask(WEB, rdtype))

    async def over_tcp() -> None:
        def framed(wire: bytes) -> bytes:
            made = answer(wire)
            return len(made).to_bytes(2, "big") + made

        async with scripted_tcp(framed) as nameserver, asking(nameserver, tries=1) as ask:
            judge(await ask(WEB, rdtype))

    def judge(reply: Reply) -> None:
        if not readable(sent[-1]):
            assert reply.outcome is ReplyOutcome.FAILURE
            assert reply.addresses == () == reply.services

    asyncio.run(scenario())
    asyncio.run(over_tcp())


@given(st.binary(max_size=40))
@settings(by_examples, max_examples=30)
def test_any_bytes_over_tcp_are_a_failure(noise: bytes) -> None:
    async def scenario() -> None:
        async with (
            scripted_tcp(lambda _query: noise) as nameserver,
            asking(nameserver, tries=1) as ask,
        ):
            assert (await ask()).outcome is ReplyOutcome.FAILURE

    asyncio.run(scenario())


@given(st.lists(st.binary(max_size=80), max_size=5))
@settings(by_examples, max_examples=30)
def test_noise_before_the_answer_is_ignored(noise: list[bytes]) -> None:
    def respond(query: Query) -> None:
        for piece in noise:
            query.reply(piece)
        query.reply(query.answered(f"{WEB}. A 10.1.0.3"))

    async def scenario() -> None:
        async with scripted(respond) as nameserver, asking(nameserver) as ask:
            assert (await ask()).addresses == ("10.1.0.3",)

    asyncio.run(scenario())


@in_loop
async def test_targets_that_change_for_ever_do_not_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fc_frontend.discovery.client.MAX_QUESTIONS", 50)
    count = 0

    def respond(query: Query) -> None:
        nonlocal count
        count += 1
        name = query.message.question[0].name
        query.reply(query.answered(f"{name} CNAME n{count}.example."))

    before = count_of(Question)
    async with scripted(respond) as nameserver, asking(nameserver) as ask:
        for _ in range(20):
            await ask("start.example")
        assert count == 160
        assert count_of(Question) - before <= 50


# Sockets


@in_loop
async def test_closing_leaves_no_socket_open_and_the_client_can_go_on() -> None:
    process = psutil.Process()
    async with ClusterDns([SERVICE, CROWD]) as dns_server:
        before = process.num_fds()
        async with asking(dns_server, closed_place()) as ask:
            for _ in range(3):
                await ask()
                await ask(f"crowd.{ZONE}")
                ask.client.close()
            assert (await ask()).outcome is ReplyOutcome.ANSWER
        # The server closes its ends of TCP in its own time.
        await until_in_loop(lambda: process.num_fds() <= before)


@in_loop
async def test_questions_under_way_fail_when_the_client_is_closed() -> None:
    arrived = asyncio.Event()
    async with (
        scripted(lambda _query: arrived.set()) as nameserver,
        asking(nameserver, tries=1) as ask,
    ):
        task = asyncio.create_task(ask())
        await arrived.wait()
        ask.client.close()
        assert (await task).outcome is ReplyOutcome.FAILURE


@in_loop
async def test_questions_from_before_the_client_was_closed_open_no_socket_again() -> None:
    process = psutil.Process()
    arrived = asyncio.Event()
    async with scripted(lambda _query: arrived.set()) as nameserver, asking(nameserver) as ask:
        before = process.num_fds()
        # More than may be under way at the same time: the others wait for their turn.
        tasks = [asyncio.create_task(ask(f"s{i}.{ZONE}")) for i in range(100)]
        await arrived.wait()
        ask.client.close()
        replies = await asyncio.gather(*tasks)
        assert {reply.outcome for reply in replies} == {ReplyOutcome.FAILURE}
        assert all("closed" in reply.detail for reply in replies)
        assert process.num_fds() == before


@in_loop
async def test_a_cancelled_question_leaves_nothing_behind() -> None:
    arrived = asyncio.Event()
    held: list[Query] = []

    def respond(query: Query) -> None:
        held.append(query)
        arrived.set()
        if len(held) > 1:
            held[0].reply(held[0].answered(f"{WEB}. A {FORGED}"))
            query.reply(query.answered(f"{WEB}. A 10.1.0.3"))

    async with scripted(respond) as nameserver, asking(nameserver) as ask:
        task = asyncio.create_task(ask())
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await ask()).addresses == ("10.1.0.3",)


# What is read without dnspython


def made_message(rng: random.Random) -> tuple[RecordType, dns.message.Message, bytes]:
    """A question, and an answer to it as any server might encode it."""
    rdtype: RecordType = rng.choice(["A", "AAAA"])
    name = dns.name.from_text(rng.choice([WEB, f"*.{WEB}", "x.", f"{'a' * 63}.{WEB}"]))
    query = dns.message.make_query(name, rdtype)
    if rng.random() < 0.6:
        query.use_edns(0, payload=8192)
    response = dns.message.make_response(query)
    owner = name
    if rng.random() < 0.1:
        response.set_rcode(dns.rcode.Rcode.make(rng.choice([2, 3, 5, 16, 32])))
    if rng.random() < 0.2:
        target = dns.name.from_text(f"target.{ZONE}")
        response.answer.append(dns.rrset.from_text(owner, 5, "IN", "CNAME", target.to_text()))
        owner = target if rng.random() < 0.8 else owner
    for _ in range(rng.choice([0, 1, 1, 2, 3, 5, 20])):
        own_type = rdtype if rng.random() < 0.97 else ("AAAA" if rdtype == "A" else "A")
        data = rng.randbytes(4 if own_type == "A" else 16)
        holder = owner if rng.random() < 0.98 else dns.name.from_text(f"other.{ZONE}")
        record = dns.rrset.from_text(holder, rng.randrange(2**31), "IN", own_type, str(ip(data)))
        response.answer.append(record)
    if rng.random() < 0.2:
        soa = "ns.dns.cluster.local. h.cluster.local. 1 2 3 4 5"
        response.authority.append(dns.rrset.from_text("cluster.local.", 5, "IN", "SOA", soa))
    if rng.random() < 0.1:
        response.additional.append(dns.rrset.from_text(f"ns.{ZONE}.", 5, "IN", "A", FORGED))
    if rng.random() < 0.7:
        return rdtype, query, response.to_wire()
    return rdtype, query, uncompressed(response, rng)


def ip(data: bytes) -> object:
    return ip_address(data)


def uncompressed(response: dns.message.Message, rng: random.Random) -> bytes:
    """The message with some names in full and some as pointers to the question's."""
    head = bytearray(response.to_wire()[:12])
    question = (response.question[0].name.to_wire() or b"") + struct.pack(
        "!HH", response.question[0].rdtype, 1
    )
    sections = (response.answer, response.authority, response.additional)
    body = b""
    for place, section in zip((6, 8, 10), sections, strict=True):
        head[place : place + 2] = len(section).to_bytes(2, "big")
        for rrset in section:
            owner = rrset.name.to_wire() or b""
            if rrset.name == response.question[0].name and rng.random() < 0.5:
                owner = b"\xc0\x0c"
            data = rrset[0].to_wire() or b""
            body += owner + struct.pack("!HHIH", rrset.rdtype, 1, rrset.ttl, len(data)) + data
    return bytes(head) + question + body


def damaged(wire: bytes, rng: random.Random) -> bytes:
    """`wire` with some bytes changed, or cut, or with more after its end."""
    changed = bytearray(wire)
    for _ in range(rng.choice([0, 1, 1, 2, 4])):
        # Half of them where it matters most: the header, and the records' own heads.
        limit = 12 if rng.random() < 0.3 else len(changed)
        changed[rng.randrange(limit)] = rng.choice([0, 1, 0xFF, 0xC0, 0x0C, rng.randrange(256)])
    match rng.randrange(4):
        case 0:
            return bytes(changed[: rng.randrange(len(changed) + 1)])
        case 1:
            return bytes(changed) + rng.randbytes(rng.randrange(20))
    return bytes(changed)


def read_by_dnspython(wire: bytes, rdtype: RecordType) -> list[bytes] | None:
    """The addresses of an answer without error, sorted; None if there is no such answer."""
    try:
        message = dns.message.from_wire(wire, ignore_trailing=True)
        if not isinstance(message, dns.message.QueryMessage) or message.rcode():
            return None
        answer = message.resolve_chaining().answer
    except (dns.exception.DNSException, ValueError):
        return None
    if answer is None or answer.rdtype != dns.rdatatype.from_text(rdtype):
        return None
    return sorted({ip_address(record.address).packed for record in answer})


def test_what_is_read_without_dnspython_is_what_dnspython_reads() -> None:
    rng = random.Random(2308)
    read = whole = 0
    for number in range(MESSAGES):
        rdtype, query, wire = made_message(rng)
        question = query.question[0].name.to_wire() or b""
        section = len(question) + 4
        if number % 3:
            wire = damaged(wire, rng)
        asked = question + struct.pack("!HH", query.question[0].rdtype, 1)
        if len(wire) >= 12 and wire[12 : 12 + section].lower() != asked.lower():
            continue  # the client drops these before it reads them
        records = plain_records(wire, section, rdtype)
        if records is None:
            continue
        read += 1
        whole += number % 3 == 0
        assert sorted(set(records)) == read_by_dnspython(wire, rdtype), (number, wire.hex())
    # Most messages without damage and aliases must go this way, or it is no use.
    assert read > MESSAGES / 10
    assert whole > MESSAGES / 30


@pytest.mark.parametrize("rdtype", ["A", "AAAA"])
@in_loop
async def test_the_cluster_dns_own_answers_are_read_without_dnspython(rdtype: RecordType) -> None:
    loop = asyncio.get_running_loop()
    async with ClusterDns([SERVICE]) as dns_server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect(dns_server.address)
            query = dns.message.make_query(WEB, rdtype, use_edns=0, payload=8192)
            await loop.sock_sendall(sock, query.to_wire())
            wire = await asyncio.wait_for(loop.sock_recv(sock, 65535), PATIENCE)
    section = len(query.question[0].name.to_wire() or b"") + 4
    records = plain_records(wire, section, rdtype)
    pods = V4 if rdtype == "A" else V6
    assert records == tuple(sorted(ip_address(pod).packed for pod in pods))
    assert plain_records(wire, section, "SRV") is None
