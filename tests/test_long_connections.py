"""Long connections outlive reloads in the worker they began in, for a limited time."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import http.client
import os
import socket
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest

from fc_frontend.demo.dns import KubernetesService
from fc_frontend.demo.load import ask
from fc_frontend.haproxy import runtime
from fc_frontend.haproxy.master import show_proc
from tests.conftest import PATIENCE
from tests.faults.site import SERVICES, serving
from tests.support.contenders import takes
from tests.support.frontend import Frontend

RAW, UPGRADE = 8080, 8071
PORT = 9000


@pytest.fixture
def frontend(either_binary: str) -> Iterator[Frontend]:
    """A frontend with one pod that echoes, over plain TCP and after an upgrade to WebSocket."""
    with Frontend(either_binary) as made:
        address = f"127.{made.octet}.100.1"
        server = made.call(asyncio.start_server(echo, address, PORT))
        made.dns.set_service(KubernetesService("echo", endpoints=(address,)))
        for name, port, mode in (("raw", RAW, "tcp"), ("upgrade", UPGRADE, "http")):
            made.settings["services"][name] = made.service(
                name, port, mode=mode, service="echo", pod_port=PORT
            )
        yield made

        async def stop() -> None:
            server.close()

        made.call(stop())


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back all data; answer a request to upgrade first (RFC 6455, 4.2.2)."""
    with suppress(OSError):
        data = await reader.read(1000)
        if data.startswith(b"GET "):
            while not data.endswith(b"\r\n\r\n"):
                data += await reader.readexactly(1)
            headers = dict(line.split(b": ", 1) for line in data.split(b"\r\n")[1:-2])
            lowered = {name.lower(): value for name, value in headers.items()}
            writer.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept(lowered[b"sec-websocket-key"]) + b"\r\n\r\n"
            )
            data = await reader.read(1000)
        while data:
            writer.write(data)
            await writer.drain()
            data = await reader.read(1000)
    writer.close()


def accept(key: bytes) -> bytes:
    """Return the value by which a server confirms the upgrade."""
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    return base64.b64encode(digest)


def connect(frontend: Frontend, port: int) -> socket.socket:
    """Return a connection that echoes."""
    connection = socket.create_connection((frontend.host, port), 30)
    if port == UPGRADE:
        key = base64.b64encode(os.urandom(16))
        connection.sendall(
            b"GET /chat HTTP/1.1\r\nHost: echo\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n\r\n"
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += connection.recv(1)
        assert head.startswith(b"HTTP/1.1 101 ")
        assert accept(key) in head
    assert echoes(connection)
    return connection


def echoes(connection: socket.socket) -> bool:
    """Return whether sent data is echoed; False once the connection has ended."""
    sent = os.urandom(100)
    got = b""
    with suppress(ConnectionError):
        connection.sendall(sent)
        while len(got) < len(sent):
            data = connection.recv(len(sent) - len(got))
            if not data:
                return False
            got += data
    return got == sent


def reload(frontend: Frontend, number: int) -> None:
    """Reload by changing another service."""
    port = 9001 + number
    frontend.drop("other.json", {"other": frontend.service("other", port)})
    frontend.until(lambda: takes(frontend.host, port))


def connections_of_worker(frontend: Frontend) -> int:
    """Return the number of client connections to the current worker."""
    info = runtime.info(frontend.settings["haproxy"]["runtime_socket"])
    return int(info["CurrConns"]) - 1  # this request's own connection


def test_long_connections_outlive_reloads_and_are_told_of(frontend: Frontend) -> None:
    frontend.start()
    assert frontend.metric("fc_frontend_old_workers") == 0
    connections = []
    for number in range(3):
        connections += [connect(frontend, RAW), connect(frontend, UPGRADE)]
        # The previous worker may still accept for a moment; make sure that each worker has some.
        while connections_of_worker(frontend) < 2:
            connections.append(connect(frontend, RAW))
        reload(frontend, number)
        assert all(map(echoes, connections))
    # Each worker has at least two connections.
    frontend.until(lambda: frontend.metric("fc_frontend_old_workers") == 3)
    assert all(map(echoes, connections))
    for connection in connections:
        connection.close()
    frontend.until(lambda: frontend.metric("fc_frontend_old_workers") == 0)


@pytest.mark.extended
def test_many_old_workers_are_all_counted(frontend: Frontend) -> None:
    frontend.settings["haproxy"]["most_old_workers"] = 20
    frontend.settings["intervals"]["reload"] = 0
    frontend.start()
    connections = []
    for number in range(13):
        connections += [connect(frontend, RAW) for _ in range(3)]
        reload(frontend, number)
    path = frontend.settings["haproxy"]["master_socket"]
    master = show_proc(path, patience=PATIENCE).master
    children = psutil.Process(master).children

    def is_true() -> bool:
        # A reload may precede the worker's first connection.
        return frontend.metric("fc_frontend_old_workers") == len(children()) - 1 >= 10

    frontend.until(is_true)
    assert all(map(echoes, connections))
    for connection in connections:
        connection.close()


def test_connections_to_a_pod_that_left_end_in_old_workers_where_that_is_asked_for(
    frontend: Frontend,
) -> None:
    second = f"127.{frontend.octet}.100.2"
    server = frontend.call(asyncio.start_server(echo, second, PORT))
    shutting = "on-marked-down shutdown-sessions"
    frontend.settings["services"]["raw"]["server_options"] = shutting
    frontend.settings["services"]["raw"]["balance"] = "roundrobin"
    frontend.start()
    connections = {RAW: [connect(frontend, RAW)], UPGRADE: [connect(frontend, UPGRADE)]}
    reload(frontend, 0)
    first = f"127.{frontend.octet}.100.1"
    frontend.dns.set_service(KubernetesService("echo", endpoints=(second,)))
    # The pod is still running, but no longer belongs to the service.
    frontend.until(lambda: not echoes(connections[RAW][0]))
    assert echoes(connections[UPGRADE][0]), "this service does not ask for it"
    frontend.until(lambda: frontend.events("sessions-ended"))
    frontend.dns.set_service(KubernetesService("echo", endpoints=(first, second)))
    frontend.until(lambda: takes(frontend.host, RAW))
    kept = [connect(frontend, RAW) for _ in range(4)]
    reload(frontend, 1)
    looks = len(frontend.events("sessions-ended"))
    frontend.until(lambda: frontend.metric("fc_frontend_old_workers") >= 1)
    assert all(map(echoes, kept))
    assert len(frontend.events("sessions-ended")) == looks
    for connection in (*kept, *connections[RAW], *connections[UPGRADE]):
        connection.close()

    async def stop() -> None:
        server.close()

    frontend.call(stop())


def test_old_connections_end_when_an_old_worker_is_to_end(frontend: Frontend) -> None:
    frontend.settings["haproxy"]["hard_stop_after"] = "2s"
    frontend.start()
    connections = [connect(frontend, RAW), connect(frontend, UPGRADE)]
    reload(frontend, 0)
    assert all(map(echoes, connections))
    for connection in connections:
        frontend.until(lambda: not echoes(connection))  # noqa: B023
        connection.close()
    master = frontend.settings["haproxy"]["master_socket"]
    frontend.until(lambda: not show_proc(master).old_workers)
    with connect(frontend, RAW), connect(frontend, UPGRADE):
        pass


@pytest.mark.extended
def test_connections_to_a_pod_that_left_end_in_replaced_workers_only(either_binary: str) -> None:
    """Three workers have connections to the departing pod; requests continue throughout."""
    with serving(either_binary) as site:
        frontend = site.frontend
        first, leaving = frontend.pods["cart"].addresses
        site.declare(
            "long",
            RAW,
            mode="tcp",
            service="cart",
            server_options="on-marked-down shutdown-sessions",
        )
        frontend.until(lambda: takes(frontend.host, RAW))
        connections: dict[str, list[http.client.HTTPConnection]] = {"cart-1": [], "cart-2": []}

        def connect_some() -> None:
            for _ in range(6):
                connection = http.client.HTTPConnection(frontend.host, RAW, timeout=10)
                connection.connect()
                # A connection that has ended is not reopened.
                connection.auto_open = 0
                connections[ask(connection)[0]].append(connection)

        for slots in (12, 14):
            connect_some()
            site.declare("docs", SERVICES["docs"], slots=slots)
            frontend.until(lambda slots=slots: f"pod {slots} " in frontend.haproxy_cfg.read_text())
            frontend.until(frontend.ready)
        connect_some()
        frontend.until(lambda: frontend.metric("fc_frontend_old_workers") == 2)
        frontend.publish("cart", (first,))

        def answered(pod: str) -> list[bool]:
            return [ask(connection)[0] == pod for connection in connections[pod]]

        assert len(connections["cart-2"]) >= 6
        frontend.until(lambda: not any(answered("cart-2")))
        assert all(answered("cart-1"))
        site.still_serve()
        frontend.publish("cart", (first, leaving))
        site.all_serve()
        for connection in (*connections["cart-1"], *connections["cart-2"]):
            connection.close()
