"""Real clients through reloads: curl, h2load, wrk, gRPC streams, WebSockets, Chromium."""

from __future__ import annotations

import contextlib
import re
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as websocket

from fc_frontend.haproxy.runtime import servers_with_address, serving
from tests.conftest import until
from tests.support.browser import chromium_with
from tests.support.certificates import Certificates
from tests.support.client_pods import CALL, RPC_SERVICE, STREAM, grpc_pod, websocket_pod
from tests.support.echo_pods import echo_pod
from tests.support.frontend import Frontend

pytestmark = pytest.mark.extended

HOST = "kubernetes"
"""The host name in the certificate."""
PORT = 8443
RELOADS = 4
SECRET = "$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a"


@pytest.fixture
def frontend(either_binary: str, certificates: Certificates) -> Iterator[Frontend]:
    """Run sites on one address with TLS: for plain requests, WebSockets and gRPC."""
    with Frontend(either_binary) as made, contextlib.ExitStack() as stack:
        pem = made.directory / "site.pem"
        parts = (certificates.path(f"server.{ending}") for ending in ("crt", "key"))
        pem.write_text("".join(part.read_text() for part in parts))
        made.settings["frontends"] = {
            "web": {
                "binds": f"{made.host}:{PORT}",
                "bind_options": f"ssl crt {pem} alpn h2,http/1.1",
            }
        }
        start = f"127.{made.octet}.120"
        shop = (f"{start}.1", f"{start}.2")
        for address in shop:
            stack.enter_context(echo_pod(address))
        stack.enter_context(websocket_pod(f"{start}.3"))
        stack.enter_context(grpc_pod(f"{start}.4"))
        made.publish("shop", shop)
        made.publish("chat", (f"{start}.3",))
        made.publish("rpc", (f"{start}.4",))
        shared = {"frontend": "web", "pod_port": 8080}
        made.settings["services"] = {
            "shop": {**shared},
            "chat": {**shared, "paths": "/chat"},
            "rpc": {**shared, "paths": f"/{RPC_SERVICE}", "protocol": "h2c"},
        }
        made.start()
        path = made.settings["haproxy"]["runtime_socket"]
        names = set(made.settings["services"])
        made.until(lambda: serving(servers_with_address(path)) >= names)
        yield made


def reload(frontend: Frontend) -> None:
    """Reload HAProxy by a change of the service `shop`."""
    before = frontend.reloads()
    shop = frontend.settings["services"]["shop"]
    shop["timeout"] = f"{int(shop.get('timeout', '60s')[:-1]) + 1}s"
    frontend.write()
    frontend.until(lambda: frontend.reloads() > before)


def program(name: str, package: str) -> str:
    found = shutil.which(name)
    assert found, f"apt install {package}"
    return found


def through_reloads(frontend: Frontend, command: list[str]) -> str:
    """Return the output of `command`, and reload HAProxy repeatedly until the command ends."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        count = 0
        with ThreadPoolExecutor(1) as reader:
            said = reader.submit(process.communicate)
            while process.poll() is None:
                reload(frontend)
                count += 1
            text = said.result()[0].decode()
        assert process.returncode == 0, text
    assert count >= RELOADS, text
    return text


@pytest.mark.parametrize(("option", "version"), [("--http1.1", "1.1"), ("--http2", "2")])
def test_curl_loses_no_request(
    frontend: Frontend, certificates: Certificates, option: str, version: str
) -> None:
    curl = program("curl", "curl")
    count = 800
    said = through_reloads(
        frontend,
        [
            *(curl, "--silent", "--show-error", option, "--rate", "100/s", "--max-time", "10"),
            *("--cacert", str(certificates.path("ca.crt"))),
            *("--resolve", f"{HOST}:{PORT}:{frontend.host}", "--output", "/dev/null"),
            *("--write-out", "%{http_code} %{http_version}\n"),
            f"https://{HOST}:{PORT}/[1-{count}]",
        ],
    )
    assert said.splitlines() == [f"200 {version}"] * count


def test_h2load_loses_no_request(frontend: Frontend) -> None:
    """Without a reload: h2load does not reconnect after a GOAWAY."""
    said = subprocess.run(
        [
            *(program("h2load", "nghttp2-client"), "--requests=2000", "--clients=8"),
            *("--max-concurrent-streams=4", "--threads=1"),
            f"https://{frontend.host}:{PORT}/",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert "2000 succeeded, 0 failed, 0 errored, 0 timeout" in said, said
    assert "Application protocol: h2" in said, said


def test_wrk_loses_no_request(frontend: Frontend) -> None:
    said = through_reloads(
        frontend,
        [
            *(program("wrk", "wrk"), "--duration=10s", "--connections=20", "--threads=1"),
            f"https://{frontend.host}:{PORT}/",
        ],
    )
    assert int(re.findall(r"(\d+) requests in", said)[0]) > 100, said
    assert "Socket errors" not in said, said
    assert "Non-2xx" not in said, said


class Numbers:
    """Messages for a stream, sent on demand until the stream is to end."""

    def __init__(self) -> None:
        self._sent = 0
        self._next = threading.Semaphore(0)
        self._has_ended = False

    def __iter__(self) -> Numbers:
        return self

    def __next__(self) -> bytes:
        self._next.acquire()
        if self._has_ended:
            raise StopIteration
        self._sent += 1
        return b"%d" % self._sent

    def send(self) -> bytes:
        """Release the next message, and return it."""
        self._next.release()
        return b"%d" % (self._sent + 1)

    def end(self) -> None:
        self._has_ended = True
        self._next.release()


def test_grpc_streams_live_through_reloads_and_calls_do_not_fail(
    frontend: Frontend, certificates: Certificates
) -> None:
    credentials = grpc.ssl_channel_credentials(certificates.path("ca.crt").read_bytes())
    options = (("grpc.ssl_target_name_override", HOST), ("grpc.use_local_subchannel_pool", 1))

    def channel() -> Any:
        return grpc.secure_channel(f"{frontend.host}:{PORT}", credentials, options)

    failures: list[str] = []
    calls = 0
    is_over = threading.Event()

    def call() -> None:
        nonlocal calls
        with channel() as own:
            ask = own.unary_unary(CALL)
            while not is_over.is_set():
                try:
                    assert ask(b"x" * 1000, timeout=10) == b"x" * 1000
                    calls += 1
                except grpc.RpcError as exc:
                    failures.append(f"{exc.code()}: {exc.details()}")

    with contextlib.ExitStack() as stack:
        thread = threading.Thread(target=call)
        thread.start()
        stack.callback(thread.join)
        stack.callback(is_over.set)
        streams = []
        for _ in range(RELOADS):
            own = stack.enter_context(channel())
            numbers = Numbers()
            stack.callback(numbers.end)
            streams.append((numbers, own.stream_stream(STREAM)(numbers, timeout=120)))
            for sent, answers in streams:
                assert sent.send() == next(answers)
            reload(frontend)
            for sent, answers in streams:
                assert sent.send() == next(answers)
        for sent, answers in streams:
            sent.end()
            assert list(answers) == []
            assert answers.code() is grpc.StatusCode.OK
    assert calls > RELOADS
    assert not failures


def test_websockets_live_through_reloads(frontend: Frontend, certificates: Certificates) -> None:
    context = ssl.create_default_context(cafile=str(certificates.path("ca.crt")))

    def connect() -> ClientConnection:
        place = f"wss://{frontend.host}:{PORT}/chat"
        return websocket(place, ssl=context, server_hostname=HOST, ping_interval=None)

    with contextlib.ExitStack() as stack:
        connections: list[ClientConnection] = []

        def all_echo() -> None:
            for number, connection in enumerate(connections):
                message = f"{number} " + "x" * 70_000
                connection.send(message)
                assert connection.recv(10) == message

        for _ in range(RELOADS):
            connections.append(stack.enter_context(connect()))
            all_echo()
            reload(frontend)
            all_echo()


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    with chromium_with(tmp_path) as browser:
        yield browser


def test_chromium_logs_in_and_stays_on_its_pod_through_reloads(
    frontend: Frontend, chromium: webdriver.Chrome
) -> None:
    users = frontend.directory / "users"
    users.write_text(f"alice:{SECRET}\n")
    web = frontend.settings["frontends"]["web"]
    web["bind_options"] = ""
    frontend.settings["services"]["shop"] |= {
        "basic_auth": {"users": str(users)},
        "sticky": True,
        "redirects": {"path": "/old", "to": "/new"},
    }
    reload(frontend)
    place = f"{frontend.host}:{PORT}"

    def shown(address: str) -> str:
        chromium.get(address)
        return str(chromium.find_element(By.TAG_NAME, "body").text)

    def fetched(path: str) -> dict[str, Any]:
        """Send a request from a script of the page, and return it as the pod received it."""
        found: dict[str, Any] = chromium.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            "fetch(location.origin + arguments[0])"
            ".then(r => r.json()).then(done, e => done({error: String(e)}))",
            path,
        )
        return found

    assert '"pod"' not in shown(f"http://{place}/")
    assert '"pod"' not in shown(f"http://alice:wrong@{place}/")
    assert '"path": "/new/x?q=1"' in shown(f"http://alice:secret@{place}/old/x?q=1")
    pod = fetched("/")["pod"]
    for _ in range(RELOADS):
        reload(frontend)
        for path in ("/a", "/b?c"):
            got = fetched(path)
            assert got["pod"] == pod
            assert got["path"] == path
            assert not {"authorization", "cookie"} & got["headers"].keys()
    # A password that is no longer valid is requested again.
    users.write_text(f"bob:{SECRET}\n")
    until(lambda: '"pod"' not in shown(f"http://{place}/"))
