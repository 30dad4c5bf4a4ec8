"""The demo's pods, queried over real connections."""

from __future__ import annotations

import asyncio
import concurrent.futures
import http.client
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from fc_frontend.demo.pods import Pod, PodSet
from tests.conftest import PATIENCE, until_in_loop

_T = TypeVar("_T")
POOL = concurrent.futures.ThreadPoolExecutor(8)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 4 * PATIENCE))


async def thread(function: Callable[..., _T], *args: Any) -> _T:
    return await asyncio.get_running_loop().run_in_executor(POOL, function, *args)


def connect(pod: Pod) -> http.client.HTTPConnection:
    host, port = pod.address
    return http.client.HTTPConnection(host, port, timeout=PATIENCE)


def request(
    connection: http.client.HTTPConnection,
    path: str = "/",
    method: str = "GET",
    body: Any = None,
    **arguments: Any,
) -> tuple[http.client.HTTPResponse, str]:
    connection.request(method, path, body, **arguments)
    response = connection.getresponse()
    return response, response.read().decode()


def talk(pod: Pod, sent: bytes) -> bytes:
    """Send bytes on a new connection, close the sending side, and return all bytes received."""
    with socket.create_connection(pod.address, timeout=PATIENCE) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as stream:
            return stream.read()


@contextmanager
def ended_connection() -> Iterator[None]:
    with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
        yield


def test_a_pod_says_who_it_is_and_keeps_the_connection() -> None:
    async def scenario() -> None:
        async with Pod("web-1") as pod:
            with closing(connect(pod)) as client:
                for _ in range(3):
                    response, body = await thread(request, client, "/any?thing=1")
                    assert response.status == 200
                    assert response.getheader("X-Pod") == "web-1"
                    assert response.getheader("Connection") is None
                    assert "web-1" in body
                assert pod.requests == 3
                assert pod.connections == 1
            await until_in_loop(lambda: pod.connections == 0)

    run(scenario())


def test_bodies_are_read_and_counted() -> None:
    async def scenario() -> None:
        async with Pod("web-1") as pod:
            with closing(connect(pod)) as client:
                _, body = await thread(request, client, "/", "POST", b"x" * 1000)
                assert body == "pod web-1\nreceived 1000 bytes\n"
                _, body = await thread(request, client, "/", "POST", b"")
                assert body == "pod web-1\nreceived 0 bytes\n"
                _, body = await thread(request, client, "/", "PUT", iter([b"abc", b"de"]))
                assert body == "pod web-1\nreceived 5 bytes\n"
                response, body = await thread(request, client, "/", "POST", b"x" * (1 << 20))
                assert body == "pod web-1\nreceived 1048576 bytes\n"
                response, body = await thread(request, client, "/", "HEAD")
                assert (response.status, body) == (200, "")
                assert pod.connections == 1
                response, body = await thread(request, client, "/", "POST", b"x" * (2 << 20))
                assert response.status == 413
                assert response.getheader("Connection") == "close"
                assert "web-1" in body

    run(scenario())


def test_a_client_may_wait_for_continue() -> None:
    async def scenario() -> None:
        async with Pod("web-1") as pod:
            reader, writer = await asyncio.open_connection(*pod.address)
            writer.write(
                b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
            )
            async with asyncio.timeout(PATIENCE):
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
                writer.write(b"abc")
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
                assert b"received 3" in await reader.readuntil(b"bytes\n")
            writer.close()
            await writer.wait_closed()

    run(scenario())


@pytest.mark.parametrize(
    ("sent", "status", "requests"),
    [
        (b"nonsense\r\n\r\n", b"400", 0),
        (b"GET / HTTP/1.1\r\n\r\n", b"400", 0),
        (b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n", b"400", 1),
        (b"GET /slow?seconds=-1 HTTP/1.1\r\nHost: x\r\n\r\n", b"400", 1),
        (b"GET /slow?seconds=nan HTTP/1.1\r\nHost: x\r\n\r\n", b"400", 1),
        (b"GET /slow?seconds=soon HTTP/1.1\r\nHost: x\r\n\r\n", b"400", 1),
        (b"GET /slow?seconds=0 HTTP/1.1\r\nHost: x\r\n\r\n", b"200", 1),
        (b"GET //[ HTTP/1.1\r\nHost: x\r\n\r\n", b"200", 1),
        (b"GET / HTTP/1.0\r\n\r\n", b"200", 1),
        (b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n", b"405", 1),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400", 1),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000, b"431", 0),
    ],
)
def test_odd_requests(sent: bytes, status: bytes, requests: int) -> None:
    async def scenario() -> None:
        async with Pod("web-1") as pod:
            answer = await thread(talk, pod, sent)
            assert answer.split(b" ")[1] == status
            assert pod.requests == requests
            await until_in_loop(lambda: pod.connections == 0)

    run(scenario())


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"POST / HTTP/1.1\r\nHost: x\r\nContent-"
                                  b"Length: 9\r\n\r\nabc"])  # fmt: skip
def test_a_client_that_leaves_is_no_error(sent: bytes) -> None:
    async def scenario() -> None:
        async with Pod("web-1") as pod:
            answer = await thread(talk, pod, sent)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
            await until_in_loop(lambda: pod.connections == 0)
            with closing(connect(pod)) as client:
                response, _ = await thread(request, client)
                assert response.status == 200

    run(scenario())


def test_slow_answers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fc_frontend.demo.pods.MAX_SECONDS", 0.05)

    async def scenario() -> None:
        async with Pod("web-1") as pod:
            loop = asyncio.get_running_loop()
            with closing(connect(pod)) as client:
                for seconds in ("3600", "inf", "0.05"):
                    before = loop.time()
                    response, _ = await thread(request, client, f"/slow?seconds={seconds}")
                    assert response.status == 200
                    assert loop.time() - before >= 0.05

    run(scenario())


def test_idle_connections_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fc_frontend.demo.pods.IDLE_TIMEOUT", 0.02)

    async def scenario() -> None:
        async with Pod("web-1") as pod:
            reader, writer = await asyncio.open_connection(*pod.address)
            async with asyncio.timeout(PATIENCE):
                assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()

    run(scenario())


def test_stopping_with_grace_ends_requests_in_flight() -> None:
    async def scenario() -> None:
        pod = Pod("web-1")
        await pod.start()
        with closing(connect(pod)) as busy, closing(connect(pod)) as idle:
            await thread(request, idle)
            slow = asyncio.ensure_future(thread(request, busy, "/slow?seconds=0.1"))
            await until_in_loop(lambda: pod.requests == 2)
            stopping = asyncio.ensure_future(pod.stop(grace=PATIENCE))
            await asyncio.sleep(0)
            with pytest.raises(ConnectionRefusedError):
                await thread(request, connect(pod))
            response, _ = await slow
            assert response.status == 200
            assert response.getheader("Connection") == "close"
            assert not stopping.done(), "an idle connection is left to its client"
            response, _ = await thread(request, idle)
            assert response.getheader("Connection") == "close"
            await stopping
            assert pod.connections == 0

    run(scenario())


@pytest.mark.parametrize("grace", [0.0, 0.05])
def test_after_the_grace_connections_are_closed(grace: float) -> None:
    async def scenario() -> None:
        pod = Pod("web-1")
        await pod.start()
        with closing(connect(pod)) as client:
            slow = asyncio.ensure_future(thread(request, client, "/slow?seconds=10"))
            await until_in_loop(lambda: pod.requests == 1)
            await pod.stop(grace)
            assert pod.connections == 0
            with ended_connection():
                await slow

    run(scenario())


def test_a_cancelled_stop_leaves_no_connection() -> None:
    async def scenario() -> None:
        pod = Pod("web-1")
        await pod.start()
        with closing(connect(pod)) as client:
            await thread(request, client)
            stopping = asyncio.ensure_future(pod.stop(grace=3600))
            await until_in_loop(lambda: pod.stopping)
            stopping.cancel()
            with pytest.raises(asyncio.CancelledError):
                await stopping
            await until_in_loop(lambda: pod.connections == 0)

    run(scenario())


def test_killing_resets_every_connection() -> None:
    async def scenario() -> None:
        pod = Pod("web-1")
        await pod.start()
        with closing(connect(pod)) as busy, closing(connect(pod)) as idle:
            await thread(request, idle)
            slow = asyncio.ensure_future(thread(request, busy, "/slow?seconds=10"))
            await until_in_loop(lambda: pod.requests == 2)
            pod.kill()
            with pytest.raises(ConnectionResetError):
                await slow
            with pytest.raises(ConnectionResetError):
                await thread(idle.sock.recv, 1)
            with pytest.raises(ConnectionRefusedError):
                await thread(request, connect(pod))
            await until_in_loop(lambda: pod.connections == 0)
        await pod.stop()

    run(scenario())


def test_a_connection_that_arrives_while_the_pod_stops_is_closed() -> None:
    async def scenario() -> None:
        for end in ("stop", "kill"):
            pod = Pod("web-1")
            await pod.start()
            client = socket.create_connection(pod.address, timeout=PATIENCE)
            pod.kill() if end == "kill" else await pod.stop()
            with closing(client), pytest.raises(ConnectionResetError):
                assert await thread(client.recv, 1) == b""
                raise ConnectionResetError

    run(scenario())


def test_restart_on_the_same_address() -> None:
    async def scenario() -> None:
        pod = Pod("web-1", "127.99.1.2")
        with pytest.raises(RuntimeError, match="not started"):
            _ = pod.address
        await pod.start()
        address = pod.address
        assert address[0] == "127.99.1.2"
        with pytest.raises(RuntimeError, match="already started"):
            await pod.start()
        for end in (pod.stop, pod.kill):
            with closing(connect(pod)) as client:
                await thread(request, client)
                stopped = end()
                if stopped is not None:
                    await stopped
                await pod.start()
                assert pod.address == address
            with closing(connect(pod)) as client:
                response, _ = await thread(request, client)
                assert response.getheader("Connection") is None
        assert pod.requests == 4
        with pytest.raises(OSError, match="in use"):
            await Pod("other", *address).start()
        await pod.stop()

    run(scenario())


def test_ipv6() -> None:
    async def scenario() -> None:
        async with Pod("web-1", "::1") as pod:
            with closing(connect(pod)) as client:
                assert (await thread(request, client))[0].getheader("X-Pod") == "web-1"

    run(scenario())


def test_only_loopback() -> None:
    with pytest.raises(ValueError, match="loopback"):
        Pod("web-1", "0.0.0.0")
    with pytest.raises(ValueError, match="loopback"):
        PodSet("web", "10.1.0.0/16")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    openssl = shutil.which("openssl")
    assert openssl, "apt install openssl"
    path = tmp_path_factory.mktemp("tls") / "pod.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-subj", "/CN=pod.test", "-addext", "subjectAltName=IP:127.0.0.1",
         "-days", "2", "-keyout", path, "-out", path.with_suffix(".crt")],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_text(path.read_text() + path.with_suffix(".crt").read_text())
    return path


def test_tls(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=str(certificate.with_suffix(".crt")))

    async def scenario() -> None:
        pod = Pod("web-1", tls=context)
        await pod.start()
        host, port = pod.address

        def client() -> http.client.HTTPSConnection:
            return http.client.HTTPSConnection(host, port, timeout=PATIENCE, context=trusting)

        with closing(client()) as first, closing(client()) as second, closing(client()) as third:
            for connection in (first, second, third):
                response, _ = await thread(request, connection, "/", "POST", b"abc")
                assert response.getheader("X-Pod") == "web-1"
            with closing(client()) as fourth:
                response, _ = await thread(request, fourth, "/slow")
                assert response.status == 400
            stopping = asyncio.ensure_future(pod.stop(PATIENCE))
            await asyncio.sleep(0)
            response, _ = await thread(request, first)
            assert response.getheader("Connection") == "close"
            second.close()
            slow = asyncio.ensure_future(thread(request, third, "/slow?seconds=10"))
            await until_in_loop(lambda: pod.connections == 1 and pod.requests == 6)
            pod.kill()
            with pytest.raises((OSError, http.client.HTTPException)):
                await slow
            await stopping

    run(scenario())


def test_a_set_grows_and_shrinks() -> None:
    async def scenario() -> None:
        async with PodSet("web", "127.98.0.0/24") as pods:
            assert list(pods.addresses) == []
            with pytest.raises(RuntimeError, match="not known"):
                _ = pods.port
            await pods.scale(3)
            assert pods.addresses == ("127.98.0.1", "127.98.0.2", "127.98.0.3")
            assert [pod.name for pod in pods.pods] == ["web-1", "web-2", "web-3"]
            assert {pod.address[1] for pod in pods.pods} == {pods.port}
            for pod in pods.pods:
                with closing(connect(pod)) as client:
                    assert pod.name in (await thread(request, client))[1]
            leaving = pods.pods[2]
            await pods.scale(2)
            with pytest.raises(ConnectionRefusedError):
                await thread(request, connect(leaving))
            await pods.scale(3)
            assert pods.addresses == ("127.98.0.1", "127.98.0.2", "127.98.0.4"), "never again"
            await pods.remove(pods.pods[0])
            assert list(pods.addresses) == ["127.98.0.2", "127.98.0.4"]
            with pytest.raises(ValueError, match="not in list"):
                await pods.remove(leaving)
            await pods.scale(0)
            assert list(pods.addresses) == []
            await pods.scale(1)
            last = pods.pods[0]
        assert list(pods.addresses) == []
        with pytest.raises(ConnectionRefusedError):
            await thread(request, connect(last))

    run(scenario())


def test_a_leaving_pod_is_not_listed_while_it_drains() -> None:
    async def scenario() -> None:
        async with PodSet("web", "127.98.0.0/24") as pods:
            await pods.scale(2)
            leaving = pods.pods[1]
            with closing(connect(leaving)) as client:
                slow = asyncio.ensure_future(thread(request, client, "/slow?seconds=0.05"))
                await until_in_loop(lambda: leaving.requests == 1)
                scaling = asyncio.ensure_future(pods.scale(1, grace=PATIENCE))
                await until_in_loop(lambda: leaving.stopping)
                assert pods.addresses == ("127.98.0.1",)
                assert not scaling.done()
                assert (await slow)[0].status == 200
                await scaling

    run(scenario())


def test_scaling_at_the_same_time_does_not_overshoot() -> None:
    async def scenario() -> None:
        async with PodSet("web", "127.98.0.0/24") as pods:
            await asyncio.gather(pods.scale(4), pods.scale(4), pods.scale(4))
            assert len(pods.addresses) == 4

    run(scenario())


def test_a_network_without_addresses_left() -> None:
    async def scenario() -> None:
        async with PodSet("web", "127.98.0.0/30") as pods:
            with pytest.raises(RuntimeError, match="no address left"):
                await pods.scale(3)
            assert pods.addresses == ("127.98.0.1", "127.98.0.2")

    run(scenario())
