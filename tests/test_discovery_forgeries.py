"""The DNS client among forged and damaged answers, and the messages it reads without dnspython."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import socket
import struct
from ipaddress import ip_address

import dns.exception
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fc_frontend.demo.dns import ClusterDns
from fc_frontend.discovery.channel import Question
from fc_frontend.discovery.client import Reply, ReplyOutcome
from fc_frontend.discovery.scan import RecordType, plain_records
from tests.conftest import PATIENCE
from tests.support.nameservers import (
    SERVICE,
    V4,
    V6,
    WEB,
    ZONE,
    Query,
    asking,
    damaged,
    in_loop,
    scripted,
    scripted_tcp,
)
from tests.support.objects import count_of

SOON = 0.1
"""Timeout in seconds for an answer that never arrives."""
MESSAGES = int(os.environ.get("FC_FRONTEND_DNS_MESSAGES", "2500"))

FORGED = "10.66.66.66"

by_examples = settings(max_examples=100, suppress_health_check=list(HealthCheck))


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
    """Return the bytes around the question of an answer: any flags, counts and records."""
    flags = draw(st.integers(0, 0xFFFF)) | 0x8000
    counts = draw(st.tuples(*[st.integers(0, 3) | st.integers(0, 0xFFFF)] * 3))
    return struct.pack("!HHHHH", flags & ~0x0200, 1, *counts), draw(st.binary(max_size=60))


def readable(wire: bytes) -> bool:
    """Return whether dnspython reads `wire` as an answer that reports no failure."""
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


# Messages read without dnspython


def made_message(rng: random.Random) -> tuple[RecordType, dns.message.Message, bytes]:
    """Return a question, and an answer to it as any server might encode it."""
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
    """Return the message with some names in full and some as pointers to the question's name."""
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


def read_by_dnspython(wire: bytes, rdtype: RecordType) -> list[bytes] | None:
    """Return the sorted addresses of an answer without error; None for any other message."""
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
    # The fast path is useless unless it reads most messages without damage and aliases.
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
