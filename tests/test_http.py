"""The HTTP listener: what it answers, what it refuses, and that nobody can hold it up."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fc_frontend.errors import Unavailable
from fc_frontend.observe.http import HttpServer, Request, Response


def broken(_request: Request) -> Response:
    raise RuntimeError("a secret detail")


ROUTES: dict[str, Callable[[Request], Response]] = {
    "/": lambda request: Response(200, f"hello {request.query}\n".encode()),
    "/broken": broken,
    "/large": lambda _request: Response(200, b"x" * 5_000_000),
}


@contextmanager
def serving(**options: Any) -> Iterator[tuple[str, int]]:
    """A server in a thread of its own."""
    started = threading.Event()
    stop: list[Any] = []
    address: list[tuple[str, int]] = []

    async def main() -> None:
        server = HttpServer("127.0.0.1", 0, ROUTES, **options)
        await server.start()
        address.append(server.address)
        ended = asyncio.Event()
        stop.append((asyncio.get_running_loop(), ended))
        started.set()
        await ended.wait()
        await server.stop()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert started.wait(10)
    try:
        yield address[0]
    finally:
        loop, ended = stop[0]
        loop.call_soon_threadsafe(ended.set)
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, int]]:
    with serving(header_timeout=1.0, max_connections=1000) as address:
        yield address


def request(
    address: tuple[str, int], method: str = "GET", path: str = "/", **headers: str
) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(*address, timeout=10)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    response.body = response.read()  # type: ignore[attr-defined]
    connection.close()
    return response


def raw(address: tuple[str, int], data: bytes) -> bytes:
    with socket.create_connection(address, 10) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while part := sock.recv(65536):
            answer += part
        return answer


def test_get_and_head(server: tuple[str, int]) -> None:
    got = request(server, path="/?a=b")
    assert (got.status, got.body) == (200, b"hello a=b\n")  # type: ignore[attr-defined]
    assert got.headers["X-Content-Type-Options"] == "nosniff"
    assert got.headers["Cache-Control"] == "no-store"
    head = request(server, "HEAD", "/?a=b")
    assert (head.status, head.body) == (200, b"")  # type: ignore[attr-defined]
    assert head.headers["Content-Length"] == got.headers["Content-Length"]


def test_connections_are_kept(server: tuple[str, int]) -> None:
    connection = http.client.HTTPConnection(*server, timeout=10)
    for method in ("GET", "HEAD", "GET", "GET"):
        connection.request(method, "/")
        assert connection.getresponse().read() == (b"" if method == "HEAD" else b"hello \n")
        assert connection.sock is not None
    connection.close()


def test_pipelined_requests_are_answered_in_order(server: tuple[str, int]) -> None:
    one = b"GET /?n=%d HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = raw(server, b"".join(one % n for n in range(3)))
    assert [answer.find(b"hello n=%d" % n) > 0 for n in range(3)] == [True] * 3


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/nothing", {}, 404),
        ("POST", "/", {}, 405),
        ("DELETE", "/", {}, 405),
        ("GET", "/", {"Content-Length": "5"}, 413),
        ("GET", "/", {"Host": "evil.example"}, 421),
        ("GET", "/", {"Host": "127.0.0.1.evil.example:80"}, 421),
        ("GET", "/", {"Host": "localhost:9484"}, 200),
        ("GET", "/", {"Host": "192.0.2.1"}, 200),
        ("GET", "/", {"Host": "[2001:db8::1]:9484"}, 200),
        ("GET", "/", {"X": "y" * 20000}, 431),
        ("GET", "/broken", {}, 500),
    ],
)
def test_statuses(
    server: tuple[str, int], method: str, path: str, headers: dict[str, str], status: int
) -> None:
    response = request(server, method, path, **headers)
    assert response.status == status
    assert b"secret" not in response.body  # type: ignore[attr-defined]
    if status == 405:
        assert response.headers["Allow"] == "GET, HEAD"


def test_an_error_in_a_handler_is_told_and_ends_nothing() -> None:
    errors: list[Exception] = []
    with serving(on_error=errors.append) as address:
        assert request(address, path="/broken").status == 500
        assert request(address).status == 200
    assert [str(error) for error in errors] == ["a secret detail"]


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=100).map(lambda t: f"GET {t}\r\n\r\n".encode()))
def test_garbage_is_refused_or_ignored(data: bytes) -> None:
    with socket.create_connection(garbage_address(), 10) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        answer = sock.recv(65536)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")


_garbage: list[tuple[str, int]] = []


def garbage_address() -> tuple[str, int]:
    return _garbage[0]


@pytest.fixture(autouse=True)
def _serve_garbage(server: tuple[str, int]) -> None:
    _garbage[:] = [server]


def test_a_slow_head_is_cut_off(server: tuple[str, int]) -> None:
    with socket.create_connection(server, 10) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: loc")
        assert sock.recv(65536).startswith(b"HTTP/1.1 408 ")
        assert sock.recv(65536) == b""


def test_slow_readers_and_silent_clients_hold_up_nobody(server: tuple[str, int]) -> None:
    sockets = [socket.create_connection(server, 10) for _ in range(20)]
    for sock in sockets[:10]:
        sock.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
    with ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(lambda _n: request(server).status, range(100)))
    assert statuses == [200] * 100
    for sock in sockets:
        sock.close()


def test_connections_are_bounded() -> None:
    with serving(max_connections=3, header_timeout=5.0) as address:
        held = [http.client.HTTPConnection(*address, timeout=10) for _ in range(3)]
        for connection in held:
            connection.request("GET", "/")
            assert connection.getresponse().read() == b"hello \n"
        assert request(address).status == 503
        for connection in held:
            connection.close()


def test_a_taken_address_is_said_with_a_remedy() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            server = HttpServer("127.0.0.1", taken.getsockname()[1], ROUTES)
            with pytest.raises(Unavailable) as caught:
                await server.start()
            assert "another port" in caught.value.problems[0].remedy
        server = HttpServer("192.0.2.1", 1, ROUTES)
        with pytest.raises(Unavailable) as caught:
            await server.start()
        assert "address of this host" in caught.value.problems[0].remedy

    asyncio.run(main())
