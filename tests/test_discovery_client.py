"""The DNS client against real servers: every kind of answer, failover, and its sockets."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter

import dns.name
import dns.rcode
import psutil
import pytest

from fc_frontend.demo.dns import ClusterDns, Fault, KubernetesService
from fc_frontend.discovery.client import (
    Reply,
    ReplyOutcome,
    ServiceRecord,
)
from fc_frontend.plan.model import Transport
from tests.conftest import until_in_loop
from tests.support.nameservers import (
    PODS,
    SERVICE,
    V4,
    V6,
    WEB,
    ZONE,
    Query,
    asking,
    closed_place,
    in_loop,
    scripted,
    scripted_tcp,
    server,
    text,
    void,
)

SOON = 0.1
"""Timeout in seconds for an answer that never arrives."""
SPARE = 2.0
"""Timeout in seconds if one server is silent; on a busy host the next one answers within it."""
PREFERRED_FOR = 30.0
"""Seconds for which the server that answered last is asked before those ahead of it."""

FORGED = "10.66.66.66"


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
    # The server ends an answer after eight aliases.
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
        async with asking(first, second, timeout=SPARE) as ask:
            replies = await asyncio.gather(*(ask(f"s{i}.{ZONE}") for i in range(400)))
            assert {reply.outcome for reply in replies} == {ReplyOutcome.ANSWER}
            # At most the number of concurrent queries.
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
        # The server closes its ends of TCP connections with a delay.
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
        # More than the limit of concurrent queries: the others wait for their turn.
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
