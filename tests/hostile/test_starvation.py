"""Clients, services and files that exhaust resources: the others are served all the same."""

from __future__ import annotations

import contextlib
import itertools
import resource
import socket
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from fc_frontend.demo.dns import Fault, KubernetesService, endpoint_label
from tests.conftest import binary_of
from tests.support.frontend import Frontend

CONNECTIONS = 1000
PATHS = ("/healthz", "/readyz", "/metrics", "/status.json", "/")
OPENINGS = (b"", b"GET /metrics HT", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
"""The data that a client sends before it falls silent."""


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


# Files


def test_a_file_that_is_rewritten_all_the_time_delays_no_other(frontend: Frontend) -> None:
    ended = threading.Event()

    def rewrite() -> None:
        for number in itertools.count():
            if ended.wait(0.001):
                return
            # Valid, invalid in a new way each time, and not even YAML.
            fields = ("pod_port: 80", f"no_such_{number}: 1", "{")[number % 3]
            frontend.drop("busy.yaml", f"services: {{busy: {{{fields}, binds: []}}}}")

    thread = threading.Thread(target=rewrite)
    thread.start()
    try:
        frontend.drop("calm.json", {"calm": frontend.service("shop", 8084)})
        frontend.until(lambda: frontend.serves(8084, frontend.pods["shop"]))
        # The file still gets its own share of the log.
        frontend.until(lambda: len(frontend.events("withheld")) >= 3)
    finally:
        ended.set()
        thread.join()
        (frontend.services_d / "busy.yaml").unlink()
    frontend.until(lambda: frontend.ready() and not frontend.status()["withheld"])
    for event in ("withheld", "withheld-ended", "problem"):
        assert len(frontend.events(event)) <= 3 * 20, event


# Cluster DNS


def names_of(service: KubernetesService) -> tuple[str, list[str]]:
    """Return the SRV name of a service's port `http`, and its targets."""
    name = f"{service.name}.default.svc.cluster.local"
    targets = [f"{endpoint_label(address)}.{name}" for address in service.endpoints]
    return f"_http._tcp.{name}", targets


def test_a_service_with_silent_or_countless_names_delays_no_other(frontend: Frontend) -> None:
    network = f"127.{frontend.octet}.64"
    few = KubernetesService("evil", ports={"http": 8080}, endpoints=(f"{network}.1",))
    many = replace(
        few,
        endpoints=tuple(f"{network}.{n}" for n in range(1, 255))
        + tuple(f"127.{frontend.octet}.{65 + n // 250}.{1 + n % 250}" for n in range(646)),
    )
    srv, targets = names_of(many)
    publish(frontend, few)
    fields = {"pod_port": "http", "service": "evil", "check": False}
    frontend.drop("evil.json", {"evil": frontend.service("evil", 8083, **fields)})
    known = [f"{network}.1 8080"]
    frontend.until(lambda: service(frontend, "evil")["endpoints"] == known)

    frontend.dns.fault_for[srv] = Fault.NO_ADDITIONAL
    frontend.dns.fault_for.update(dict.fromkeys(targets, Fault.SILENT))
    publish(frontend, many)
    frontend.until(lambda: service(frontend, "evil")["freshness"] == "stale")
    for count in (3, 1, 2):
        pods = frontend.scale("shop", count)
        frontend.until(lambda pods=pods: seen(frontend, "shop") == set(pods.addresses))
    assert service(frontend, "evil")["endpoints"] == known

    for name in targets:
        del frontend.dns.fault_for[name]
    found = frontend.until(lambda: (evil := service(frontend, "evil"))["exceeded"] and evil)
    # On a busy machine, even the permitted lookups take too long.
    assert found["exceeded"] in ("queries", "seconds")
    assert found["endpoints"] == known
    problems = [p for p in frontend.status()["problems"] if p["service"] == "evil"]
    assert "DNS lookups" in problems[0]["message"]
    assert problems[0]["severity"] == "warning"
    assert frontend.metric("fc_frontend_service_lookups_exceeded", service="evil") == 1
    for count in (3, 2):
        pods = frontend.scale("shop", count)
        frontend.until(lambda pods=pods: seen(frontend, "shop") == set(pods.addresses))

    publish(frontend, few)
    frontend.until(lambda: service(frontend, "evil")["state"] == "ok")
    assert frontend.metric("fc_frontend_service_lookups_exceeded", service="evil") == 0


def publish(frontend: Frontend, *services: KubernetesService) -> None:
    async def change() -> None:
        for each in services:
            frontend.dns.set_service(each)

    frontend.call(change())


def service(frontend: Frontend, name: str) -> defaultdict[str, Any]:
    """Return a service of the daemon's status; without it, every value is empty."""
    found = (each for each in frontend.status()["services"] if each["name"] == name)
    return defaultdict(tuple, next(found, {}))


def seen(frontend: Frontend, name: str) -> set[str]:
    """Return the addresses of the pods that the daemon has discovered."""
    return {endpoint.split()[0] for endpoint in service(frontend, name)["endpoints"]}


@contextlib.contextmanager
def enough_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * CONNECTIONS)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
