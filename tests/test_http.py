"""The HTTP listener on real sockets, with well-behaved and misbehaving clients."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import struct
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fc_frontend.errors import Unavailable
from fc_frontend.observe.http import Handler, HttpServer, Request, Response
from tests.conftest import PATIENCE, until_in_loop

LARGE = b"x" * 20_000_000


class Broken(Exception):
    pass


def hello(request: Request) -> Response:
    return Response(200, f"hello {request.path} {request.query}\n".encode())


def broken(_request: Request) -> Response:
    raise Broken("secret")


async def later(request: Request) -> Response:
    await asyncio.sleep(0)
    return Response(200, f"{request.path}\n".encode(), headers={"Content-Language": "en"})


async def broken_later(_request: Request) -> Response:
    await asyncio.sleep(0)
    raise Broken("secret")


ROUTES: dict[str, Handler] = {
    "/": hello,
    "/later/": later,
    "/broken-later": broken_later,
    "/a b": hello,
    "/large": lambda _request: Response(200, LARGE, "application/octet-stream"),
    "/not-ready": lambda _request: Response(503, b"not ready\n"),
    "/broken": broken,
}


class Listener:
    """An `HttpServer` on a free port, and all errors that occurred in the loop."""

    def __init__(self, host: str = "127.0.0.1", **options: Any) -> None:
        self.errors: list[Exception] = []
        self.unexpected: list[dict[str, Any]] = []
        self.begun = asyncio.Semaphore(0)
        routes = {**ROUTES, "/never": self._never}
        self.server = HttpServer(host, 0, routes, on_error=self.errors.append, **options)

    async def _never(self, _request: Request) -> Response:
        self.begun.release()
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def __aenter__(self) -> Listener:
        asyncio.get_running_loop().set_exception_handler(
            lambda _loop, context: self.unexpected.append(context)
        )
        await self.server.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.server.stop()
        assert self.unexpected == []
        assert asyncio.all_tasks() == {asyncio.current_task()}

    async def connect(self) -> Connection:
        reader, writer = await asyncio.open_connection(*self.server.address)
        return Connection(reader, writer)

    async def ask(self, request: bytes) -> list[Answer]:
        """Send a request; return all answers until the server closes the connection."""
        connection = await self.connect()
        try:
            connection.send(request)
            return await connection.rest()
        finally:
            await connection.close()


@dataclass
class Answer:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


class Connection:
    """A client that sends arbitrary bytes and parses answers with h11."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._received = b""

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def receive(self) -> bytes:
        """Return more bytes, or none at the end of the connection."""
        try:
            async with asyncio.timeout(PATIENCE):
                return await self.reader.read(1 << 20)
        except ConnectionError:
            return b""

    async def answer(self, method: str = "GET") -> Answer:
        """Return the next answer, which must be well-formed."""
        http = h11.Connection(h11.CLIENT)
        http.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        http.send(h11.EndOfMessage())
        if self._received:
            http.receive_data(self._received)
        found: Answer | None = None
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                data = await self.receive()
                if not data and found is None and not http.trailing_data[0]:
                    raise EOFError
                http.receive_data(data)
            elif isinstance(event, h11.Response):
                headers = {name.decode(): value.decode() for name, value in event.headers}
                found = Answer(event.status_code, b"", headers)
            elif isinstance(event, h11.Data):
                assert found is not None
                found.body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert found is not None
                self._received = http.trailing_data[0]
                return found
            else:
                raise EOFError

    async def rest(self, method: str = "GET") -> list[Answer]:
        answers = []
        with contextlib.suppress(EOFError):
            while True:
                answers.append(await self.answer(method))
        return answers

    async def status(self, request: bytes) -> int:
        self.send(request)
        return (await self.answer()).status

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def has_ended(self) -> bool:
        return await self.receive() == b""


def get(path: str = "/", *headers: str, method: str = "GET", host: str = "127.0.0.1") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode(
        "latin-1"
    )


def last(path: str = "/", *headers: str, method: str = "GET", host: str = "127.0.0.1") -> bytes:
    return get(path, *headers, "Connection: close", method=method, host=host)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def run_and_collect(scenario: Coroutine[Any, Any, None]) -> None:
    """Run garbage collection: unclosed resources raise warnings, and warnings are errors."""
    gc.collect()
    asyncio.run(scenario)
    gc.collect()


# Well-behaved clients


def test_get_is_answered_by_the_route_of_its_path() -> None:
    async def scenario() -> None:
        async with Listener() as listener:
            (answer,) = await listener.ask(last("/?a=1&b=%20"))
            assert answer.status == 200
            assert answer.body == b"hello / a=1&b=%20\n"
            assert answer.headers["content-type"] == "text/plain; charset=utf-8"
            assert answer.headers["content-length"] == str(len(answer.body))
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store"
            (answer,) = await listener.ask(last("/a%20b"))
            assert answer.body == b"hello /a b \n"

    run(scenario())


def test_head_has_the_headers_of_get_and_no_body() -> None:
    async def scenario() -> None:
        async with Listener() as listener:
            connection = await listener.connect()
            for path in ("/", "/nowhere", "/broken", "/not-ready"):
                connection.send(get(path, method="HEAD"))
                head = await connection.answer("HEAD")
                connection.send(get(path))
                whole = await connection.answer()
                assert (head.status, head.headers) == (whole.status, whole.headers)
                assert (head.body, bool(whole.body)) == (b"", True)
            await connection.close()

    run(scenario())


def test_a_connection_serves_many_requests() -> None:
    async def scenario() -> None:
        async with Listener() as listener:
            connection = await listener.connect()
            for number in range(20):
                connection.send(get(f"/?{number}"))
                assert (await connection.answer()).body == f"hello / {number}\n".encode()
            connection.send(get("/nowhere"))
            assert (await connection.answer()).status == 404
            connection.send(last())
            answer = await connection.answer()
            assert answer.headers["connection"] == "close"
            assert await connection.has_ended()
            await connection.close()

    run(scenario())


def test_pipelined_requests_are_answered_in_order() -> None:
    async def scenario() -> None:
        async with Listener() as listener:
            many = b"".join(get(f"/?{number}") for number in range(200))
            answers = await listener.ask(many + last("/nowhere"))
            assert [a.body for a in answers[:-1]] == [f"hello / {n}\n".encode() for n in range(200)]
            assert answers[-1].status == 404

    run(scenario())


def test_a_request_may_come_byte_by_byte() -> None:
    async def scenario() -> None:
        async with Listener() as listener:
            connection = await listener.connect()
            for number in range(2):
                for byte in get(f"/?{number}"):
                    connection.send(bytes([byte]))
                    await asyncio.sleep(0)
                assert (await connection.answer()).body == f"hello / {number}\n".encode()
            await connection.close()

    run(scenario())


def test_a_client_that_only_reads_on_after_its_request_is_answered() -> None:
    async def scenario() -> None:
        async with Listener() as listener:
            connection = await listener.connect()
            connection.send(get())
            connection.writer.write_eof()
            assert [answer.status for answer in await connection.rest()] == [200]
            await connection.close()

    run(scenario())


def test_http_1_0_is_answered_and_ended() -> None:
    async def scenario() -> None:
        async with Listener() as listener:
            (answer,) = await listener.ask(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
            assert answer.status == 200

    run(scenario())


def test_a_hundred_requests_at_once_are_answered() -> None:
    async def scenario() -> None:
        async with Listener(max_connections=128) as listener:
            answers = await asyncio.gather(*(listener.ask(last(f"/?{n}")) for n in range(100)))
            assert [answer.body for (answer,) in answers] == [
                f"hello / {number}\n".encode() for number in range(100)
            ]

    run(scenario())


def test_ipv6_is_listened_on() -> None:
    async def scenario() -> None:
        async with Listener("::1") as listener:
            host, port = listener.server.address
            assert host == "::1"
            (answer,) = await listener.ask(last(host=f"[::1]:{port}"))
            assert answer.status == 200

    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this host has no IPv6")
    run(scenario())


# Refused requests


def test_unknown_paths_are_not_found() -> None:
    async def scenario() -> None:
        async with Listener() as listener:
            for path in ("/nowhere", "/../", "//", "*", "http://127.0.0.1/", "/%ff", "/%00"):
                answers = await listener.ask(last(path))
                assert [answer.status for answer in answers] == [404], path

    run(scenario())


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get"])
def test_other_methods_are_refused_with_those_allowed(method: str) -> None:
    async def scenario() -> None:
        async with Listener() as listener:
            (answer,) = await listener.ask(get(method=method))
            assert answer.status == 405
            assert answer.headers["allow"] == "GET, HEAD"
            assert answer.headers["connection"] == "close"

    run(scenario())


@pytest.mark.parametrize("body", ["Content-Length: 5", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_bodies_are_refused(method: str, body: str) -> None:
    async def scenario() -> None:
        async with Listener() as listener:
            connection = await listener.connect()
            connection.send(get("/", body, method=method) + b"x" * 100_000)
            assert [answer.status for answer in await connection.rest(method)] == [413]
            await connection.close()
            (answer,) = await listener.ask(last("/", "Content-Length: 0"))
            assert answer.status == 200

    run(scenario())


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LocalHost:9100", 200),
        ("127.0.0.1", 200),
        ("127.0.0.1:9100", 200),
        ("203.0.113.9", 200),
        ("[::1]", 200),
        ("[::1]:9100", 200),
        ("[2001:db8::1]:9100", 200),
        ("frontend.example.org", 200),
        ("Frontend.Example.Org:9100", 200),
        ("evil.example.org", 421),
        ("evil.example.org:9100", 421),
        ("localhost.evil.example.org", 421),
        ("127.0.0.1.evil.example.org", 421),
        ("evil.example.org:127.0.0.1", 421),
        ("[evil.example.org]", 421),
        ("[::1]evil", 421),
        ("[::1", 421),
        ("user@localhost", 421),
        ("127.0.0.256", 421),
        ("", 421),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_only_names_of_this_host_are_answered(host: str, status: int, method: str) -> None:
    async def scenario() -> None:
        async with Listener(allowed_hosts=["Frontend.example.org"]) as listener:
            connection = await listener.connect()
            connection.send(last(host=host, method=method))
            assert [answer.status for answer in await connection.rest(method)] == [status]
            await connection.close()

    run(scenario())


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n folded: x\r\nBad Header: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_garbage_is_a_bad_request(head: bytes) -> None:
    async def scenario() -> None:
        async with Listener() as listener:
            (answer,) = await listener.ask(head)
            assert answer.status == 400
            assert answer.body == b"bad request\n"
            assert answer.headers["connection"] == "close"

    run(scenario())


@pytest.mark.parametrize("size", [17_000, 60_000, 1_000_000])
@pytest.mark.parametrize("form", ["one header", "many headers", "path", "no end of line"])
def test_a_head_that_is_too_large_is_refused(size: int, form: str) -> None:
    head = {
        "one header": get("/", "X: " + "x" * size),
        "many headers": get("/", *["X: y"] * (size // 6)),
        "path": get("/" + "x" * size),
        "no end of line": b"x" * size,
    }[form]

    async def scenario() -> None:
        async with Listener() as listener:
            answers = await listener.ask(head)
            assert [answer.status for answer in answers] == [431]

    run(scenario())


def test_a_large_head_within_the_limit_is_answered() -> None:
    async def scenario() -> None:
        async with Listener() as listener:
            (answer,) = await listener.ask(last("/", "X: " + "x" * 15_000))
            assert answer.status == 200

    run(scenario())


PIECES = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n",
        b"HEAD /large HTTP/1.1\r\n",
        b"GET /broken HTTP/1.1\r\n",
        b"POST / HTTP/1.1\r\n",
        b"Host: localhost\r\n",
        b"Host: evil\r\n",
        b"Connection: close\r\n",
        b"Connection: upgrade\r\nUpgrade: h2c\r\n",
        b"Expect: 100-continue\r\n",
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"\r\n",
        b"3\r\nabc\r\n0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\n",
    ]
)


@pytest.fixture(scope="module")
def listening() -> Iterator[tuple[asyncio.Runner, Listener]]:
    """Yield one listener for many examples."""
    with asyncio.Runner() as runner:
        listener = Listener()
        runner.run(listener.__aenter__())
        yield runner, listener
        runner.run(listener.__aexit__())


@settings(max_examples=150)
@given(data=st.lists(PIECES | st.binary(max_size=60), max_size=8).map(b"".join))
def test_nothing_that_a_client_sends_ends_the_listener(
    listening: tuple[asyncio.Runner, Listener], data: bytes
) -> None:
    runner, listener = listening

    async def scenario() -> None:
        connection = await listener.connect()
        connection.send(data)
        connection.writer.write_eof()
        received = b""
        while chunk := await connection.receive():
            received += chunk
        assert received == b"" or received.startswith(b"HTTP/1.1 ")
        await connection.close()
        (answer,) = await listener.ask(last())
        assert answer.status == 200
        assert listener.unexpected == []

    runner.run(scenario())


# Handlers


def test_an_exception_in_a_handler_is_reported_here_and_not_there() -> None:
    async def scenario() -> None:
        async with Listener() as listener:
            connection = await listener.connect()
            connection.send(get("/broken"))
            answer = await connection.answer()
            assert answer.status == 500
            assert b"secret" not in answer.body
            assert "secret" not in str(answer.headers)
            (error,) = listener.errors
            assert isinstance(error, Broken)
            connection.send(get())
            assert (await connection.answer()).status == 200, "the connection goes on"
            await connection.close()

    run(scenario())


def test_a_route_with_a_slash_answers_for_names_right_below_it() -> None:
    async def scenario() -> None:
        async with Listener() as listener:
            for path in ("/later/", "/later/x", "/later/a%20b?c=d", "/later/.."):
                (answer,) = await listener.ask(last(path))
                assert answer.status == 200, path
            (answer,) = await listener.ask(last("/later/%3Cb%3E"))
            assert answer.body == b"/later/<b>\n"
            assert answer.headers["content-language"] == "en"
            assert answer.headers["cache-control"] == "no-store"
            for path in ("/later", "/later/x/y", "/later/x%2Fy", "/x"):
                (answer,) = await listener.ask(last(path))
                assert answer.status == 404, path

    run(scenario())


def test_a_handler_that_waits_keeps_nobody_else_waiting() -> None:
    async def scenario() -> None:
        async with Listener() as listener:
            waiting = await listener.connect()
            waiting.send(get("/never"))
            (answer,) = await listener.ask(last("/"))
            assert answer.status == 200
            (answer,) = await listener.ask(last("/broken-later"))
            assert answer.status == 500
            assert isinstance(listener.errors[0], Broken)
            await waiting.close()

    run(scenario())


def test_a_handler_chooses_its_status() -> None:
    async def scenario() -> None:
        async with Listener() as listener:
            (answer,) = await listener.ask(last("/not-ready"))
            assert (answer.status, answer.body) == (503, b"not ready\n")
            assert listener.errors == []

    run(scenario())


# Slow clients, and many


@pytest.mark.parametrize("begin", [b"G", b"GET / HTTP/1.1\r\nHost: localhost\r\n"])
def test_a_slow_head_is_given_up(begin: bytes) -> None:
    async def scenario() -> None:
        async with Listener(header_timeout=0.1) as listener:
            connection = await listener.connect()
            connection.send(begin)
            assert [answer.status for answer in await connection.rest()] == [408]
            await connection.close()

    run(scenario())


def test_a_slow_head_is_given_up_on_a_connection_that_served_before() -> None:
    async def scenario() -> None:
        async with Listener(header_timeout=0.1) as listener:
            connection = await listener.connect()
            connection.send(get() + b"GET / HT")
            assert (await connection.answer()).status == 200
            assert [answer.status for answer in await connection.rest()] == [408]
            await connection.close()

    run(scenario())


def test_a_head_that_drips_is_given_up_as_a_whole() -> None:
    async def scenario() -> None:
        async with Listener(header_timeout=0.5) as listener:
            for before in (b"", get()):
                connection = await listener.connect()
                if before:
                    connection.send(before)
                    assert (await connection.answer()).status == 200
                dripping = asyncio.create_task(drip(connection))
                assert [answer.status for answer in await connection.rest()] == [408]
                assert not dripping.done()
                dripping.cancel()
                await asyncio.gather(dripping, return_exceptions=True)
                await connection.close()

    async def drip(connection: Connection) -> None:
        connection.send(b"GET / HTTP/1.1\r\nX: ")
        while True:
            connection.send(b"x")
            await asyncio.sleep(0.2)

    run(scenario())


def test_a_silent_client_is_let_go_without_a_word() -> None:
    async def scenario() -> None:
        async with Listener(header_timeout=0.1) as listener:
            connection = await listener.connect()
            assert await connection.has_ended()
            await connection.close()

    run(scenario())


def test_an_idle_connection_ends_after_its_time() -> None:
    async def scenario() -> None:
        async with Listener(header_timeout=5, idle_timeout=0.1) as listener:
            connection = await listener.connect()
            connection.send(get())
            assert (await connection.answer()).status == 200
            assert await connection.has_ended()
            await connection.close()

    run(scenario())


def test_an_idle_connection_may_be_silent_for_longer_than_a_head_may_take() -> None:
    async def scenario() -> None:
        async with Listener(header_timeout=0.1, idle_timeout=60) as listener:
            connection = await listener.connect()
            connection.send(get())
            assert (await connection.answer()).status == 200
            silent = await listener.connect()
            assert await silent.has_ended(), "the time for a head has passed"
            await silent.close()
            connection.send(get())
            assert (await connection.answer()).status == 200
            await connection.close()

    run(scenario())


async def never_answered(listener: Listener) -> Connection:
    """Return a connection whose request is in progress and is never answered."""
    connection = await listener.connect()
    connection.send(get("/never"))
    async with asyncio.timeout(PATIENCE):
        await listener.begun.acquire()
    return connection


def test_requests_beyond_the_limit_are_refused_and_others_go_on() -> None:
    async def scenario() -> None:
        async with Listener(max_connections=4) as listener:
            busy = [await never_answered(listener) for _ in range(3)]
            # A quarter of the connections is reserved for answers that are available at once.
            for _ in range(5):
                assert (await listener.ask(last()))[0].status == 200
                (answer,) = await listener.ask(last("/later/x"))
                assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            for connection in busy:
                await connection.close()

    run(scenario())


def test_connections_beyond_the_limit_are_refused_if_none_gives_way() -> None:
    async def scenario() -> None:
        async with Listener(max_connections=1) as listener:
            busy = await never_answered(listener)
            for _ in range(10):
                connection = await listener.connect()
                assert [answer.status for answer in await connection.rest()] == [503]
                await connection.close()
            await busy.close()

    run(scenario())


@pytest.mark.parametrize("sent", [b"", b"GET / HT", get()])
def test_idle_connections_give_way_to_new_ones(sent: bytes) -> None:
    """Idle: nothing sent, part of a head sent, or already answered; the longest idle goes first."""

    async def scenario() -> None:
        async with Listener(max_connections=8, header_timeout=60) as listener:
            held = [await listener.connect() for _ in range(8)]
            for connection in held:
                connection.send(sent)
                if sent == get():
                    assert (await connection.answer()).status == 200
            new = [await listener.connect() for _ in range(8)]
            for connection in new:
                assert await connection.status(get()) == 200
            for connection in held:
                await connection.rest()
                await connection.close()
            for connection in new:
                assert await connection.status(get()) == 200
                await connection.close()

    run(scenario())


def test_a_thousand_connections_lock_nobody_out() -> None:
    async def scenario() -> None:
        async with Listener() as listener:
            held = [await listener.connect() for _ in range(1000)]
            for number, connection in enumerate(held):
                connection.send((b"", b"GET / HT", get(), get("/large"))[number % 4])
            for _ in range(20):
                (answer,) = await listener.ask(last())
                assert answer.status == 200
            for connection in held:
                connection.writer.transport.abort()

    run(scenario())


def test_clients_that_do_not_read_their_answers_give_way() -> None:
    async def scenario() -> None:
        async with Listener(max_connections=4) as listener:
            slow = [await listener.connect() for _ in range(4)]
            for connection in slow:
                connection.send(get("/large"))
                assert await connection.receive()
            async with asyncio.timeout(PATIENCE):
                while (await listener.ask(last()))[0].status != 200:
                    pass
            for connection in slow:
                connection.writer.transport.abort()

    run(scenario())


def test_many_busy_clients_of_one_address_do_not_displace_another_address() -> None:
    async def scenario() -> None:
        async with Listener(max_connections=8, header_timeout=60) as listener:
            reader, writer = await asyncio.open_connection(
                *listener.server.address, local_addr=("127.0.0.2", 0)
            )
            other = Connection(reader, writer)
            many = [await listener.connect() for _ in range(30)]
            assert await other.status(get()) == 200
            for connection in (other, *many):
                await connection.close()

    run(scenario())


def test_a_slow_reader_does_not_keep_others_waiting() -> None:
    async def scenario() -> None:
        async with Listener() as listener:
            slow = [await listener.connect() for _ in range(3)]
            for connection in slow:
                connection.send(get("/large"))
            for _ in range(20):
                # The slow clients have not read a byte yet.
                (answer,) = await listener.ask(last())
                assert answer.status == 200
            large = await slow[0].answer()
            assert large.body == LARGE
            for connection in slow:
                connection.writer.transport.abort()

    run(scenario())


def test_clients_that_reset_their_connections_do_no_harm() -> None:
    def reset(address: tuple[str, int], data: bytes) -> None:
        with socket.create_connection(address) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(data)

    async def scenario() -> None:
        async with Listener() as listener:
            for data in (b"", b"GET", get(), get("/large"), get() * 50):
                for _ in range(5):
                    await asyncio.to_thread(reset, listener.server.address, data)
            (answer,) = await listener.ask(last())
            assert answer.status == 200

    run(scenario())


# Start and stop


@pytest.mark.parametrize(
    ("host", "port", "remedy"),
    [("127.0.0.1", "taken", "stop what holds it"), ("203.0.113.7", "free", "of this host")],
)
def test_an_address_that_cannot_be_had_is_unavailable(host: str, port: str, remedy: str) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        number = holder.getsockname()[1] if port == "taken" else 0
        server = HttpServer(host, number, ROUTES)
        with pytest.raises(Unavailable) as caught:
            asyncio.run(server.start())
    (problem,) = caught.value.problems
    assert remedy in problem.remedy
    assert problem.field == "listen"
    assert problem.message.startswith(f"{host}:{number} cannot be listened on: ")
    assert problem.message.count(host) == 1
    asyncio.run(server.stop())


def test_a_name_that_is_no_host_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="cannot be listened on"):
        asyncio.run(HttpServer("no host", 0, ROUTES).start())


def test_the_address_is_only_known_while_it_listens() -> None:
    async def scenario() -> None:
        server = HttpServer("127.0.0.1", 0, ROUTES)
        with pytest.raises(RuntimeError):
            _ = server.address
        await server.start()
        assert server.address[1] > 0
        await server.stop()
        with pytest.raises(RuntimeError):
            _ = server.address
        await server.stop()

    run_and_collect(scenario())


def test_stop_ends_all_connections_at_once() -> None:
    async def scenario() -> None:
        async with Listener(idle_timeout=60, header_timeout=60) as listener:
            silent, idle, midway, reading = [await listener.connect() for _ in range(4)]
            idle.send(get())
            assert (await idle.answer()).status == 200
            midway.send(b"GET / HT")
            reading.send(get("/large"))
            received = len(await reading.receive())
            async with asyncio.timeout(PATIENCE):
                await listener.server.stop()
            for connection in (silent, idle, midway):
                assert await connection.has_ended()
            while chunk := await reading.receive():
                received += len(chunk)
            assert received < len(LARGE)
            for connection in (silent, idle, midway, reading):
                await connection.close()

    run_and_collect(scenario())


def test_stop_loses_no_connection_that_just_came() -> None:
    """This covers connections in the kernel's queue and those that the loop has just accepted."""

    async def scenario() -> None:
        for turns in range(6):
            async with Listener() as listener:
                clients = []
                for _ in range(10):
                    client = socket.socket()
                    client.connect(listener.server.address)
                    clients.append(client)
                for _ in range(turns):
                    await asyncio.sleep(0)
                await listener.server.stop()
            for client in clients:
                client.settimeout(PATIENCE)
                with contextlib.suppress(ConnectionError):
                    assert client.recv(1) == b""
                client.close()

    run_and_collect(scenario())


def test_the_port_is_free_after_stop() -> None:
    async def scenario() -> None:
        first = HttpServer("127.0.0.1", 0, ROUTES)
        await first.start()
        port = first.address[1]
        for _ in range(5):
            connection = Connection(*await asyncio.open_connection("127.0.0.1", port))
            connection.send(get())
            assert (await connection.answer()).status == 200
            await first.stop()
            await connection.close()
            first = HttpServer("127.0.0.1", port, ROUTES)
            await first.start()
        await first.stop()

    run_and_collect(scenario())


def test_stop_leaves_no_descriptor() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - as the kernel lists them

    async def scenario() -> None:
        before = descriptors()
        async with Listener() as listener:
            connections = [await listener.connect() for _ in range(10)]
            for connection in connections:
                connection.send(get("/large"))
                assert await connection.receive()
            await listener.server.stop()
            for connection in connections:
                connection.writer.transport.abort()
        await until_in_loop(lambda: descriptors() == before)

    run_and_collect(scenario())
