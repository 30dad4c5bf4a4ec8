"""TLS that is passed through to some services and terminated for others, on one address."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.support.echo_pods import echo_pod
from tests.support.frontend import Frontend
from tests.support.issued import Authority
from tests.test_certificates_end_to_end import put

PORT = 8443
MAIL, SHOP = "mail.example.org", "shop.example.org"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("issued"))


async def received(connection: socket.socket, count: int) -> bytes:
    """Return `count` bytes, or fewer at the end of the connection."""
    data = b""
    loop = asyncio.get_running_loop()
    while len(data) < count and (more := await loop.sock_recv(connection, count - len(data))):
        data += more
    return data


async def serve_tls(server: socket.socket, context: ssl.SSLContext) -> None:
    """Serve as a pod that expects a PROXY header of version 2 and returns the client's address."""
    loop = asyncio.get_running_loop()

    async def answer(connection: socket.socket) -> None:
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        # Health checks end before the handshake.
        with connection, suppress(OSError, EOFError):
            header = await received(connection, 16)
            place = await received(connection, int.from_bytes(header[14:16]))
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, connection, ssl=context
            )
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
            with suppress(EOFError):
                await reader.readuntil(b"\r\n\r\n")
                body = json.dumps({"pod": "mail", "client": socket.inet_ntoa(place[:4])})
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write((head + body).encode())
                await writer.drain()
                await reader.read()
            writer.close()
            await writer.wait_closed()

    async with asyncio.TaskGroup() as tasks:
        while True:
            connection, _ = await loop.sock_accept(server)
            connection.setblocking(False)
            tasks.create_task(answer(connection))


async def begin(server: socket.socket, context: ssl.SSLContext) -> asyncio.Task[None]:
    return asyncio.create_task(serve_tls(server, context))


@pytest.fixture
def frontend(either_binary: str, authority: Authority) -> Iterator[Frontend]:
    """Frontend `web` terminates TLS for shop, and passes TLS for mail through."""
    with Frontend(either_binary) as made, ExitStack() as stack:
        (made.directory / "live").mkdir()
        put(made, authority.issue("*.example.org"))
        made.settings["frontends"] = {
            "web": {
                "binds": f"{made.host}:{PORT}",
                "tls": {"certificates": f"{made.directory}/live/*/", "passthrough": True},
            }
        }
        shop, mail = f"127.{made.octet}.120.1", f"127.{made.octet}.120.2"
        stack.enter_context(echo_pod(shop))
        issued, pem = authority.issue(MAIL), made.directory / "pod.pem"
        pem.write_bytes(issued.chain + issued.key)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(pem)
        server = stack.enter_context(socket.create_server((mail, PORT)))
        server.setblocking(False)
        serving = made.call(begin(server, context))
        made.publish("shop", (shop,))
        made.publish("mail", (mail,))
        made.settings["services"] = {
            "shop": {"frontend": "web", "hosts": [SHOP], "pod_port": 8080},
            "mail": {"frontend": "web", "sni": [MAIL], "pod_port": PORT, "proxy_protocol": "v2"},
        }
        made.start()
        yield made

        async def stop() -> None:
            serving.cancel()
            await asyncio.wait([serving])

        made.call(stop())


def asked(frontend: Frontend, sni: str, host: str = "", source: str = "") -> tuple[int, bytes, str]:
    """Return the status, the body and a hash of the certificate; raise OSError on failure."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    came_from = (source, 0) if source else None
    with (
        socket.create_connection((frontend.host, PORT), 10, came_from) as connection,
        context.wrap_socket(connection, server_hostname=sni or None) as tls,
    ):
        tls.sendall(f"GET / HTTP/1.1\r\nHost: {host or sni}\r\nConnection: close\r\n\r\n".encode())
        response = http.client.HTTPResponse(tls)
        response.begin()
        found = tls.getpeercert(binary_form=True)
        assert found
        return response.status, response.read(), str(hash(found))


def whom(frontend: Frontend, sni: str) -> str:
    """Return the service whose pod answers a client that requests `sni`."""
    return "mail" if json.loads(asked(frontend, sni)[1])["pod"] == "mail" else "shop"


def test_names_decide_who_terminates_tls(frontend: Frontend) -> None:
    frontend.until(lambda: whom(frontend, MAIL) == "mail" and whom(frontend, SHOP) == "shop")
    assert whom(frontend, MAIL.upper()) == "mail"
    assert asked(frontend, MAIL)[2] != asked(frontend, SHOP)[2]
    # Pods, and fc-frontend's own part, see the client's address.
    source = f"127.{frontend.octet}.77.7"
    assert json.loads(asked(frontend, MAIL, source=source)[1])["client"] == source
    shown = asked(frontend, SHOP, source=source)[1].decode().lower()
    assert source in shown
    assert "https" in shown
    # A client without SNI is refused, as on any frontend without a default certificate.
    with pytest.raises(OSError, match=r"(?i)unrecognized.name"):
        asked(frontend, "")
    # A connection for one name has no route for another.
    assert asked(frontend, SHOP, MAIL)[0] == 421
    assert asked(frontend, "none.example.org")[0] == 404
    # No other user may connect to the socket between the two parts.
    path = Path(frontend.settings["haproxy"]["runtime_socket"]).parent / "fc-frontend-web.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    told = frontend.run("explain", f"https://{MAIL}:{PORT}/").stdout
    assert "TLS passed to service mail" in told
    assert not frontend.status()["withheld"]
    # Passed-through TLS needs no certificate here.
    assert MAIL not in str(frontend.status()["problems"])


def test_both_serve_through_reloads_and_renewals(frontend: Frontend, authority: Authority) -> None:
    frontend.until(lambda: whom(frontend, MAIL) == "mail" and whom(frontend, SHOP) == "shop")
    failures: list[str] = []
    counts = {MAIL: 0, SHOP: 0}
    is_over = threading.Event()

    def ask_on(name: str) -> None:
        while not is_over.wait(0.02):
            try:
                if asked(frontend, name)[0] != 200:
                    failures.append(f"{name}: status")
            except OSError as exc:
                failures.append(f"{name}: {exc!r}")
            counts[name] += 1

    threads = [threading.Thread(target=ask_on, args=(name,)) for name in counts]
    for thread in threads:
        thread.start()

    def more() -> Callable[[], bool]:
        before = dict(counts)
        return lambda: all(counts[name] > before[name] + 10 for name in counts)

    for number in range(3):
        frontend.settings["services"]["shop"]["timeout"] = f"{20 + number}s"
        frontend.write()
        frontend.until(lambda number=number: f"server {20 + number}s" in cfg(frontend))
        frontend.until(lambda: frontend.ready() and not frontend.status()["withheld"])
        frontend.until(more())
    certificate = asked(frontend, SHOP)[2]
    put(frontend, authority.issue("*.example.org"))
    frontend.until(lambda: asked(frontend, SHOP)[2] != certificate)
    # Adding an SNI route to a running service takes no reload.
    reloads = len(frontend.events("config-reloaded"))
    frontend.settings["services"]["mail"]["sni"] = [MAIL, "imap.example.org"]
    frontend.write()
    frontend.until(lambda: whom(frontend, "imap.example.org") == "mail")
    assert len(frontend.events("config-reloaded")) == reloads
    frontend.until(more())
    is_over.set()
    for thread in threads:
        thread.join(15)
    assert not failures, failures[:5]


def cfg(frontend: Frontend) -> str:
    return frontend.haproxy_cfg.read_text()


def test_addresses_that_are_not_allowed_reach_neither_part(frontend: Frontend) -> None:
    frontend.until(lambda: whom(frontend, MAIL) == "mail")
    inside, outside = f"127.{frontend.octet}.77.7", f"127.{frontend.octet}.88.8"
    frontend.settings["frontends"]["web"]["allow"] = [inside]
    frontend.write()
    frontend.until(lambda: asked(frontend, SHOP, source=outside)[0] == 403)
    with pytest.raises(OSError, match=r"(?i)eof|reset"):
        asked(frontend, MAIL, source=outside)
    assert asked(frontend, SHOP, source=inside)[0] == 200
    assert asked(frontend, MAIL, source=inside)[0] == 200
