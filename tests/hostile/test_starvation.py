"""Clients, services and files that take all they can get: the others are served all the same."""

from __future__ import annotations

import contextlib
import resource
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.conftest import binary_of
from tests.frontend import Frontend

CONNECTIONS = 1000
PATHS = ("/healthz", "/readyz", "/metrics", "/status.json", "/")
OPENINGS = (b"", b"GET /metrics HT", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
"""What a client may send before it falls silent."""


@pytest.fixture(scope="module")
def frontend() -> Iterator[Frontend]:
    with Frontend(binary_of("2.8-wheel")) as frontend:
        frontend.settings["intervals"].update(debounce="20ms", reload="200ms")
        frontend.scale("shop", 2)
        frontend.drop("shop.json", {"shop": frontend.service("shop", 8081)})
        frontend.start()
        yield frontend


# The listener


def test_a_thousand_silent_connections_lock_nobody_out(frontend: Frontend) -> None:
    with enough_descriptors(), contextlib.ExitStack() as stack:
        for number in range(CONNECTIONS):
            client = stack.enter_context(socket.create_connection((frontend.host, 9484), 20))
            client.sendall(OPENINGS[number % len(OPENINGS)])
            if number % 200 == 0:
                for path in PATHS:
                    assert frontend.get(path)[0] == 200
        for path in PATHS:
            assert frontend.get(path)[0] == 200


def test_clients_that_ask_for_everything_do_not_delay_a_new_service(frontend: Frontend) -> None:
    ended = threading.Event()

    def ask(path: str) -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError):
                frontend.get(path)

    paths = [*PATHS, "/services/shop", "/services/none", "/?q=x"]
    threads = [threading.Thread(target=ask, args=(paths[n % len(paths)],)) for n in range(40)]
    for thread in threads:
        thread.start()
    try:
        frontend.drop("more.json", {"more": frontend.service("shop", 8082)})
        frontend.until(lambda: frontend.serves(8082, frontend.pods["shop"]))
        for path in PATHS:
            assert frontend.get(path)[0] == 200
    finally:
        ended.set()
        for thread in threads:
            thread.join()


@contextlib.contextmanager
def enough_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * CONNECTIONS)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
