"""Reloads under load, beside plain HAProxy with the platform documentation's configuration.

200 clients over HTTP (half keep their connection) and 20 long TCP connections; each reload is
caused by a real change: fc-frontend goes its whole way, plain HAProxy is told so through its master
socket.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from fc_frontend.demo.dns import Fault, KubernetesService
from fc_frontend.errors import Unavailable
from fc_frontend.haproxy.reload import reload_by_master
from fc_frontend.haproxy.version import binary_version
from tests.conftest import BINARIES, RealHaproxy, binary_of
from tests.frontend import Frontend

CLIENTS = 200
SLOTS = 20
PORTS = (8080, 8081)


def rows(*, quick: bool) -> list[dict[str, object]]:
    """A row for each HAProxy, contender, number of services and state of DNS."""
    found = []
    count = 8 if quick else 100
    both = (fc_frontend_reloads, plain_reloads)
    for version in BINARIES:
        found += [
            measure(version, services, dns, contender, count)
            for services in (1, 100 if quick else 1000)
            for dns in ("healthy", "2 s late", "down")
            for contender in both
        ]
        found += [measure(version, 1, "healthy", each, 0, taken_bind=True) for each in both]
    return found


Reload = Callable[[Frontend, int, bool], None]
Contender = Callable[[Frontend, int], Reload]


def measure(
    version: str,
    services: int,
    dns: str,
    contender: Contender,
    count: int,
    *,
    taken_bind: bool = False,
) -> dict[str, object]:
    """Requests sent and failed while `count` reloads are made."""
    with Frontend(binary_of(version)) as frontend:
        pods = frontend.scale("shop", 4)

        async def publish() -> None:
            for number in range(1, services):
                frontend.dns.set_service(
                    KubernetesService(f"other{number}", endpoints=pods.addresses)
                )

        frontend.call(publish())
        reload = contender(frontend, services)
        if dns == "2 s late":
            frontend.dns.delay = 2.0
        elif dns == "down":
            frontend.dns.fault = Fault.SILENT
        period = 0.5 if services == 1 else 3.0
        seconds = int(max(6, count * period + 3))
        clients = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.clients", frontend.host]
            + [str(number) for number in (*PORTS, CLIENTS, seconds)],
            stdout=subprocess.PIPE,
            text=True,
        )
        time.sleep(1)
        if taken_bind:
            with socket.create_server((frontend.host, 8099)):
                reload(frontend, 0, True)
                time.sleep(2.5)
        for number in range(count):
            started = time.monotonic()
            reload(frontend, number, False)
            time.sleep(max(0.0, started + period - time.monotonic()))
        output, _ = clients.communicate(timeout=seconds + 60)
    result = json.loads(output)
    name = "fc-frontend" if contender is fc_frontend_reloads else "plain HAProxy"
    return {
        "HAProxy": version,
        "contender": name,
        "services": services,
        "DNS": "bind taken" if taken_bind else dns,
        "reloads": count,
        "requests": result["requests"],
        "failed": result["failed"],
        "longest gap ms": round(result["gap"] * 1000),
        "why": ", ".join(f"{n}× {why}" for why, n in result["why"].items())[:80],
    }


def fc_frontend_reloads(frontend: Frontend, services: int) -> Reload:
    """The daemon follows a service file that toggles."""
    frontend.settings["intervals"] = {"resolve": "1s", "reload": 0, "debounce": "50ms"}
    declared = frontend.settings["services"]
    declared["shop"] = frontend.service("shop", PORTS[0], slots=SLOTS)
    declared["tunnel"] = frontend.service("shop", PORTS[1], slots=SLOTS, mode="tcp")
    for number in range(1, services):
        name = f"other{number}"
        declared[name] = frontend.service(name, 10000 + number, slots=SLOTS)
    frontend.start(wait=False)
    frontend.until(frontend.ready, 60)

    def reload(frontend: Frontend, number: int, taken: bool) -> None:
        port = 8099 if taken else 8090 + number % 2
        frontend.drop("toggle.json", {"toggle": frontend.service("shop", port)})
        if taken:
            frontend.until(lambda: not frontend.ready())
            return
        text = f"{frontend.host}:{port}\n"
        frontend.until(lambda: text in frontend.haproxy_cfg.read_text(), 60)
        frontend.until(frontend.ready, 60)

    return reload


def plain_reloads(frontend: Frontend, services: int) -> Reload:
    """The platform documentation's configuration, reloaded through the master socket."""
    host, port = frontend.dns.address
    haproxy = RealHaproxy(frontend.binary, frontend.directory)
    frontend.external = haproxy

    def text(bind: str) -> str:
        lines = [
            "global",
            f"  stats socket {haproxy.runtime_socket} level admin",
            "  description fc-frontend:0123456789abcdef",
            "resolvers cluster",
            f"  nameserver dns {host}:{port}",
            "  accepted_payload_size 8192",
            "defaults",
            "  balance leastconn",
            "  mode http",
            "  timeout connect 5s",
            "  timeout client 60s",
            "  timeout server 60s",
        ]
        proxies = [
            ("shop", "shop", str(PORTS[0]), "http"),
            ("tunnel", "shop", str(PORTS[1]), "tcp"),
        ]
        proxies += [(f"other{n}", f"other{n}", str(10000 + n), "http") for n in range(1, services)]
        proxies += [("toggle", "shop", bind, "http")]
        for name, service, listen, mode in proxies:
            lines += [
                f"listen {name}",
                f"  mode {mode}",
                f"  bind {frontend.host}:{listen}",
                f"  server-template pod {SLOTS} {service}.default.svc.cluster.local:8080 check "
                "resolvers cluster init-addr none",
            ]
        return "\n".join(lines) + "\n"

    haproxy.start(text("8090"))
    frontend.until(lambda: frontend.ask(PORTS[0]).startswith("shop-"))
    version = binary_version(frontend.binary)

    def reload(frontend: Frontend, number: int, taken: bool) -> None:
        haproxy.write(text("8099" if taken else str(8091 - number % 2)))
        with suppress(Unavailable):
            reload_by_master(haproxy.master_socket, version, 30)

    return reload
