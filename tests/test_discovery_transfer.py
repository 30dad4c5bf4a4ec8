"""A transferred zone says what questions say, and is believed for nothing that is not in it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from ipaddress import ip_address

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from fc_frontend.demo.dns import ClusterDns, KubernetesService
from fc_frontend.discovery import transfer as module
from fc_frontend.discovery.resolve import resolve_all, resolve_service
from fc_frontend.discovery.transfer import NotTransferred, Transferred, Transfers, Zone, transfer
from fc_frontend.plan.model import Discovery, Kind, Nameserver, Target, Transport
from tests.frontend import Frontend
from tests.test_discovery_resolve import BARE, HEADLESS, SPEC, V4, WITH_IP, frontend, in_loop

ZONE = "cluster.local"
SOA = f"{ZONE}. 5 IN SOA ns.dns.{ZONE}. hostmaster.{ZONE}. {{}} 7200 1800 86400 5"
POD = f"{BARE}. 5 IN A 10.1.0.3"
SPECS = tuple(
    replace(
        SPEC, name=f"{target}-{discovery}-{port}", target=target, discovery=discovery, port=port
    )
    for target in (Target.POD, Target.SERVICE)
    for discovery in Discovery
    for port in (8080, "http")
)


@pytest.mark.parametrize("service", [HEADLESS, WITH_IP, replace(HEADLESS, endpoints=())])
@pytest.mark.parametrize("networks", [("10.1.0.0/16",), ("10.1.0.0/16", "fd00::/8"), ("fd00::/8",)])
@pytest.mark.parametrize("wildcards", [True, False])
@in_loop
async def test_a_zone_says_what_questions_say(
    service: KubernetesService, networks: tuple[str, ...], wildcards: bool
) -> None:
    other = replace(HEADLESS, name="other", endpoints=("10.1.0.9",))
    async with frontend(service, other, pods=networks, transfers=True, wildcards=wildcards) as made:
        zone = await transfer(made.client.preferred, ZONE)
        for spec in SPECS:
            if spec.target is Target.SERVICE and isinstance(spec.port, str):
                continue
            asked = await resolve_service(spec, made.cluster, made.client, None)
            told = await resolve_service(spec, made.cluster, Transferred(zone, made.client), None)
            assert told == asked


@in_loop
async def test_what_is_in_the_zone_is_not_asked_for() -> None:
    async with frontend(HEADLESS, pods=("10.1.0.0/16",), transfers=True) as made:
        source = Transferred(await transfer(made.client.preferred, ZONE), made.client)
        named = replace(SPEC, name="named", port="http")
        made.asked()
        answers = await resolve_all([SPEC, named], made.cluster, made.client, {}, zone=source)
        assert not made.asked()
        assert [endpoint.address for endpoint in answers["web"].endpoints] == list(V4)
        assert [endpoint.address for endpoint in answers["named"].endpoints] == list(V4)
        assert answers["named"].kind is Kind.SRV
        # What is not in it may be there all the same, as wildcards are.
        await resolve_all(
            [replace(SPEC, service="gone")], made.cluster, made.client, {}, zone=source
        )
        assert made.asked() == {("gone.default.svc.cluster.local", "A")}


@in_loop
async def test_more_records_than_an_answer_is_sure_to_carry_are_asked_for() -> None:
    many = replace(HEADLESS, endpoints=tuple(f"10.1.1.{n}" for n in range(1, 251)))
    async with frontend(many, transfers=True) as made:
        source = Transferred(await transfer(made.client.preferred, ZONE), made.client)
        made.asked()
        answer = await resolve_service(SPEC, made.cluster, source, None)
        assert len(answer.endpoints) == 250
        assert made.asked() == {(BARE, "A")}


@in_loop
async def test_a_refusal_is_told_in_the_words_of_dns() -> None:
    async with frontend(HEADLESS) as made:
        with pytest.raises(NotTransferred, match="REFUSED"):
            await transfer(made.client.preferred, ZONE)


@in_loop
async def test_without_tcp_there_is_no_transfer() -> None:
    only_udp = Nameserver(ip_address("127.0.0.1"), 53, (Transport.UDP,))
    for nameserver in (None, only_udp):
        with pytest.raises(NotTransferred, match="over TCP"):
            await transfer(nameserver, ZONE)


Script = Callable[[dns.message.Message], list[bytes | None]]


@contextlib.asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[Nameserver]:
    """A nameserver that answers a query with the messages of `script`; None leaves it open."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = int.from_bytes(await reader.readexactly(2))
        query = dns.message.from_wire(await reader.readexactly(length))
        for wire in script(query):
            if wire is None:
                await reader.read()
                break
            writer.write(len(wire).to_bytes(2) + wire)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Nameserver(ip_address("127.0.0.1"), server.sockets[0].getsockname()[1])


def message(query: dns.message.Message, *records: str, bare: bool = False) -> bytes:
    """A message of a transfer; a `bare` one does not repeat the question."""
    response = dns.message.make_response(query)
    if bare:
        response.question = []
    for record in records:
        owner, ttl, rdclass, rdtype, rdata = record.split(maxsplit=4)
        response.answer.append(dns.rrset.from_text(owner, int(ttl), rdclass, rdtype, rdata))
    return response.to_wire(max_size=65535)


BEGIN, END = SOA.format(7), SOA.format(7)


@in_loop
async def test_a_zone_may_come_in_many_messages() -> None:
    def script(query: dns.message.Message) -> list[bytes | None]:
        return [
            message(query, BEGIN, POD),
            message(query, f"{BARE.upper()}. 5 IN A 10.1.0.4", "else.where. 5 IN A 10.1.0.9"),
            message(query, f"{BARE}. 5 IN AAAA fd00::3", bare=True),
            message(query, f"_http._tcp.{BARE}. 5 IN SRV 0 100 0 {BARE}.", bare=True),
            message(query, END, bare=True),
        ]

    async with scripted(script) as nameserver:
        zone = await transfer(nameserver, ZONE)
    assert zone == Zone(
        {(BARE, "A"): {"10.1.0.3", "10.1.0.4"}, (BARE, "AAAA"): {"fd00::3"}},
        {f"_http._tcp.{BARE}": set()},
    )


def other_id(query: dns.message.Message) -> bytes:
    wire = message(query, BEGIN, POD, END)
    return bytes([wire[0] ^ 1]) + wire[1:]


def other_question(query: dns.message.Message) -> bytes:
    other = dns.message.make_query("evil.example", "AXFR", id=query.id)
    return message(other, BEGIN, POD, END)


def no_answer(query: dns.message.Message) -> bytes:
    wire = bytearray(message(query, BEGIN, POD, END))
    wire[2] &= 0x7F
    return bytes(wire)


SCRIPTS: dict[str, tuple[Script, str]] = {
    "another id": (lambda q: [other_id(q)], "not an answer"),
    "another question": (lambda q: [other_question(q)], "not an answer"),
    "a question": (lambda q: [no_answer(q)], "not an answer"),
    "another question, later": (
        lambda q: [message(q, BEGIN, POD), other_question(q)],
        "not an answer",
    ),
    "no question at first": (lambda q: [message(q, BEGIN, POD, END, bare=True)], "not an answer"),
    "no SOA": (lambda q: [message(q, POD, END)], "does not begin with its SOA"),
    "another SOA": (lambda q: [message(q, BEGIN, POD, SOA.format(8))], "changed on the way"),
    "more after the end": (lambda q: [message(q, BEGIN, END, POD)], "after its end"),
    "nothing": (lambda q: [message(q)], "without records"),
    "only the half": (lambda q: [message(q, BEGIN, POD)], "connection was closed"),
    "garbage": (lambda q: [b"\xff" * 40], "malformed|not an answer"),
    "a short header": (lambda q: [b"\x00"], "malformed"),
    "silence": (lambda q: [message(q, BEGIN, POD), None], "more than 1 s"),
    "no end": (lambda q: [message(q, BEGIN), *[message(q, POD)] * 50], "more than 0 MiB"),
}


@pytest.mark.parametrize("what", SCRIPTS)
@in_loop
async def test_what_is_no_zone_is_told_and_not_believed(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, said = SCRIPTS[what]
    monkeypatch.setattr(module, "_LARGEST", 2048)
    async with scripted(script) as nameserver:
        with pytest.raises(NotTransferred, match=said) as caught:
            await transfer(nameserver, ZONE, patience=1)
    assert str(nameserver) in str(caught.value)


@in_loop
async def test_a_server_that_is_not_there_is_told() -> None:
    async with scripted(lambda _query: []) as nameserver:
        pass
    with pytest.raises(NotTransferred, match=r"[Cc]onnect"):
        await transfer(nameserver, ZONE)


@in_loop
async def test_transfers_rest_ten_times_as_long_as_they_take() -> None:
    now = 0.0

    def script(query: dns.message.Message) -> list[bytes | None]:
        nonlocal now
        now += 2.0
        return [message(query, BEGIN, POD, END)]

    transfers = Transfers(lambda: now)
    async with scripted(script) as nameserver:
        assert transfers.may_begin()
        await transfers.zone(nameserver, ZONE)
        now += 19.0
        assert not transfers.may_begin()
        now += 1.0
        assert transfers.may_begin()
    with pytest.raises(NotTransferred):
        await transfers.zone(nameserver, ZONE)
    now += 599.0
    assert not transfers.may_begin()
    now += 1.0
    assert transfers.may_begin()


@pytest.mark.parametrize("allowed", [True, False])
def test_the_daemon_takes_the_zone_or_says_why_it_cannot(
    haproxy_binary: str, allowed: bool
) -> None:
    made = Frontend(haproxy_binary)
    made.dns = ClusterDns(address=f"127.{made.octet}.255.53", transfers=allowed)
    with made as frontend:
        frontend.scale("shop", 2)
        frontend.settings["cluster"]["discovery"] = "transfer"
        frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
        frontend.start()

        def swept(kind: str) -> float:
            return frontend.metric("fc_frontend_dns_sweeps_total", kind=kind)

        frontend.scale("shop", 4)
        frontend.until(
            lambda: frontend.metric("fc_frontend_service_endpoints", service="shop") == 4
        )
        frontend.until(lambda: swept("spared") >= 2)
        if allowed:
            assert swept("transfer") >= 1
            assert not frontend.events("zone-not-transferred")
        else:
            assert swept("refused") == 1
            assert swept("transfer") == 0
            assert "REFUSED" in frontend.events("zone-not-transferred")[0]
            (problem,) = frontend.status()["problems"]
            assert problem["field"] == "cluster.discovery"
            assert "REFUSED" in problem["message"]
            assert problem["severity"] == "warning"
