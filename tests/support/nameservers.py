"""A DNS client for tests, and nameservers with scripted behavior."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, ParamSpec

import dns.message
import dns.rcode
import dns.rrset

from fc_frontend.demo.dns import ClusterDns, KubernetesService
from fc_frontend.discovery.client import (
    DnsClient,
    Exchange,
    Reply,
)
from fc_frontend.discovery.scan import RecordType
from fc_frontend.plan.model import Nameserver, Transport

P = ParamSpec("P")

ANSWER_TIMEOUT = 10.0
"""Seconds before a query is sent again: a busy host loses datagrams and responds slowly."""
ZONE = "default.svc.cluster.local"
WEB = f"web.{ZONE}"
PODS = ("10.1.0.3", "10.1.0.4", "10.1.0.5", "fd00::3", "fd00::4")
V4 = PODS[:3]
V6 = PODS[3:]
SERVICE = KubernetesService("web", ports={"http": 8080}, endpoints=PODS)


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Return the coroutine test as an ordinary function, run in its own event loop."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def server(place: tuple[str, int], *transports: Transport, host: str | None = None) -> Nameserver:
    """Return the nameserver at `place`, as from settings."""
    both = transports or (Transport.UDP, Transport.TCP)
    return Nameserver(ip_address(host or place[0]), place[1], both)


class Asking:
    """A client, the exchanges it observed, and a clock that stands still unless it is moved."""

    def __init__(
        self,
        nameservers: Sequence[Nameserver],
        *,
        timeout: float = ANSWER_TIMEOUT,
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
        """Return nameserver, transport and code of each exchange since the last call."""
        said = [(e.nameserver, e.transport, e.rcode) for e in self.exchanges]
        self.exchanges.clear()
        return said


@contextlib.asynccontextmanager
async def asking(
    *servers: ClusterDns | Nameserver | tuple[str, int], **options: Any
) -> AsyncIterator[Asking]:
    """Provide a client of `servers`, closed at the end."""
    places = [s.address if isinstance(s, ClusterDns) else s for s in servers]
    known = [place if isinstance(place, Nameserver) else server(place) for place in places]
    asked = Asking(known, **options)
    try:
        yield asked
    finally:
        asked.client.close()


def closed_place() -> tuple[str, int]:
    """Return an address without a listener."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return "127.0.0.1", port


def text(place: tuple[str, int]) -> str:
    return f"[{place[0]}]:{place[1]}" if ":" in place[0] else f"{place[0]}:{place[1]}"


# Servers with behavior that the embedded one does not have


@dataclass(frozen=True)
class Query:
    """A query as received, and the two addresses from which it may be answered."""

    wire: bytes
    reply: Callable[[bytes], None]
    reply_from_elsewhere: Callable[[bytes], None]

    @property
    def message(self) -> dns.message.Message:
        return dns.message.from_wire(self.wire)

    def answered(self, *lines: str, rcode: dns.rcode.Rcode = dns.rcode.NOERROR) -> bytes:
        """Return a response with records in zone file syntax."""
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
    """Discard a value."""


@contextlib.asynccontextmanager
async def scripted(respond: Callable[[Query], None]) -> AsyncIterator[Nameserver]:
    """Run a UDP-only server whose every response the test decides."""
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
    """Run a TCP-only server: it sends the result of `respond` for a query, and closes."""

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


def damaged(wire: bytes, rng: random.Random) -> bytes:
    """Return `wire` with some bytes changed, and possibly truncated or extended."""
    changed = bytearray(wire)
    for _ in range(rng.choice([0, 1, 1, 2, 4])):
        # Half of the changes affect the critical parts: the header and the records' heads.
        limit = 12 if rng.random() < 0.3 else len(changed)
        changed[rng.randrange(limit)] = rng.choice([0, 1, 0xFF, 0xC0, 0x0C, rng.randrange(256)])
    match rng.randrange(4):
        case 0:
            return bytes(changed[: rng.randrange(len(changed) + 1)])
        case 1:
            return bytes(changed) + rng.randbytes(rng.randrange(20))
    return bytes(changed)
