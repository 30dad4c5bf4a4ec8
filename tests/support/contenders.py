"""The contenders of benchmarks: fc-frontend's daemon, and plain HAProxy as documented.

The plain one follows the platform documentation.  Both have the same cluster, the same HAProxy and
the same services.  Each reload is caused by one more bind.
"""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import psutil

from fc_frontend.demo.dns import ClusterDns, KubernetesService
from fc_frontend.errors import Unavailable
from fc_frontend.haproxy.master import show_proc
from fc_frontend.haproxy.reload import reload_by_master
from fc_frontend.haproxy.version import binary_version
from fc_frontend.plan.model import Bind
from tests.conftest import RealHaproxy, until
from tests.support.frontend import Frontend
from tests.support.load import Loaded

SLOTS = 20
"""The number of slots in the documentation's `server-template`."""
OTHER_SLOTS = 10
"""Fewer, as each takes a file descriptor: 1,000 × 20 exceed the limit of many machines."""
HTTP, TCP, TOGGLED, TAKEN = 8080, 8081, 30000, 8099
OTHERS = 10000
CRASHED = re.compile(r"orker \(\d+\) exited with code 1[2-9]\d")


class Contender(Protocol):
    """A way to make HAProxy serve `shop`, `long` and other services of the cluster."""

    name: str

    def start(self) -> None:
        """Start serving; return when pods answer requests."""

    def reload(self, number: int) -> None:
        """Add one bind to HAProxy, which needs a reload; return when it accepts connections."""

    def take(self, seconds: float) -> None:
        """Try to add a bind that is in use; hold it for some seconds after the attempt."""

    def reloads(self) -> int:
        """Return the number of reloads of HAProxy's master."""

    def crashes(self) -> int:
        """Return the number of workers that were terminated by a signal.

        Seen only at the very end of old workers, without loss: 2.6.12 by SIGSEGV in its deinit,
        2.8.25 by SIGUSR1, when the next reload asks it again to end.
        """


@contextlib.contextmanager
def cluster(binary: str, services: int = 1) -> Iterator[Frontend]:
    """Provide a cluster with pods for `shop`, and a HAProxy as the pod of all other services.

    At the end it waits until no HAProxy is left: a remaining one would receive a part of the next
    one's connections.
    """
    frontend = Frontend(binary)
    frontend.dns = ClusterDns(address=f"127.{frontend.octet}.255.53", wildcards=True)
    directory = frontend.directory / "pod"
    directory.mkdir()
    pod = RealHaproxy(binary, directory)
    try:
        with frontend:
            address = f"127.{frontend.octet}.120.1"
            if services > 1:
                answer = "backend pods\n  mode http\n  http-request return status 200"
                pod.start(pod.configuration(answer, binds=(Bind("ip", address, 8080),)))

            async def publish() -> None:
                for number in range(1, services):
                    name = f"other{number}"
                    frontend.dns.set_service(KubernetesService(name, endpoints=(address,)))

            frontend.call(publish())
            yield frontend
            pod.end()
    finally:
        pod.end()
        _await_no_process_of(frontend.directory)


def _await_no_process_of(directory: Path) -> None:
    """Wait until every process with `directory` in its command line has ended."""
    until(
        lambda: (
            not any(
                str(directory) in " ".join(process.info["cmdline"] or ())
                for process in psutil.process_iter(["cmdline"])
            )
        )
    )


def takes(host: str, port: int) -> bool:
    """Return whether a server accepts connections."""
    with suppress(OSError), socket.create_connection((host, port), 1):
        return True
    return False


class FcFrontend:
    """The daemon, configured by files."""

    name = "fc-frontend"

    def __init__(self, frontend: Frontend, services: int = 1) -> None:
        self.frontend = frontend
        self.services = services

    def start(self) -> None:
        """Start the daemon without a pause between reloads; the default is at least 2 s."""
        frontend = self.frontend
        frontend.settings["intervals"] = {"resolve": "1s", "reload": 0, "debounce": "50ms"}
        declared = frontend.settings["services"]
        declared["shop"] = frontend.service("shop", HTTP, slots=SLOTS)
        declared["long"] = frontend.service("shop", TCP, slots=SLOTS, mode="tcp")
        for number in range(1, self.services):
            name = f"other{number}"
            declared[name] = frontend.service(name, OTHERS + number, slots=OTHER_SLOTS)
        self._toggle(TOGGLED)
        frontend.start(wait=False)
        frontend.until(frontend.ready, 60)
        frontend.until(lambda: frontend.ask(HTTP).startswith("shop-"))

    def reload(self, number: int) -> None:
        port = TOGGLED + 1 + number
        self._toggle(port)
        self._await(port)

    def take(self, seconds: float) -> None:
        with socket.create_server((self.frontend.host, TAKEN)):
            self._toggle(TAKEN)
            (held,) = self.frontend.until(lambda: self.frontend.status()["withheld"])
            assert "is in use by" in held["problems"][0]["message"]
            time.sleep(seconds)

    def reloads(self) -> int:
        return show_proc(self.frontend.settings["haproxy"]["master_socket"], patience=5).reloads

    def crashes(self) -> int:
        return len(CRASHED.findall(self.frontend.log_text()))

    def _toggle(self, port: int) -> None:
        service = self.frontend.service("shop", port, slots=SLOTS)
        self.frontend.drop("toggle.json", {"toggle": service})

    def _await(self, port: int) -> None:
        self.frontend.until(lambda: takes(self.frontend.host, port))


class PlainHaproxy:
    """The platform documentation's configuration, reloaded as by systemd."""

    name = "plain HAProxy"

    def __init__(self, frontend: Frontend, services: int = 1) -> None:
        self.frontend = frontend
        self.services = services
        self.haproxy = RealHaproxy(frontend.binary, frontend.directory)
        self.version = binary_version(frontend.binary)

    def start(self) -> None:
        self.frontend.external = self.haproxy
        self.haproxy.start(self.text(TOGGLED))
        self.frontend.until(lambda: self.frontend.ask(HTTP).startswith("shop-"))

    def reload(self, number: int) -> None:
        self.haproxy.write(self.text(TOGGLED + 1 + number))
        assert reload_by_master(self.haproxy.master_socket, self.version, 60).ok

    def take(self, seconds: float) -> None:
        with socket.create_server((self.frontend.host, TAKEN)):
            self.haproxy.write(self.text(TAKEN))
            with suppress(Unavailable):
                outcome = reload_by_master(self.haproxy.master_socket, self.version, 60)
                assert not outcome.ok
            time.sleep(seconds)

    def reloads(self) -> int:
        return show_proc(self.haproxy.master_socket, patience=5).reloads

    def crashes(self) -> int:
        return len(CRASHED.findall(self.haproxy.log.read_text(errors="replace")))

    def text(self, toggled: int) -> str:
        """Return the configuration; `server-template` and `balance` are the documentation's."""
        host, port = self.frontend.dns.address
        lines = [
            "global",
            f"  stats socket {self.haproxy.runtime_socket} level admin expose-fd listeners",
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
        proxies = [("shop", "shop", HTTP, "http"), ("long", "shop", TCP, "tcp")]
        others = range(1, self.services)
        proxies += [(f"other{n}", f"other{n}", OTHERS + n, "http") for n in others]
        proxies.append(("toggle", "shop", toggled, "http"))
        for name, service, listen, mode in proxies:
            slots = OTHER_SLOTS if service.startswith("other") else SLOTS
            lines += [
                f"listen {name}",
                f"  mode {mode}",
                f"  bind {self.frontend.host}:{listen}",
                f"  server-template pod {slots} *.{service}.default.svc.cluster.local:8080 check "
                "resolvers cluster init-addr none",
            ]
        return "\n".join(lines) + "\n"


def tell_failures(
    scenario: str, loaded: Loaded, phases: list[tuple[float, str]], frontend: Frontend
) -> None:
    """Report each failure on standard error, with the time since its phase began."""
    if not loaded.failed:
        return
    print(f"{scenario}: {loaded.failed} failed", file=sys.stderr)
    for at, why in loaded.failed_at[:40]:
        before = [phase for phase in phases if phase[0] <= at] or phases[:1]
        began, phase = before[-1]
        print(f"  {at - began:+.3f} s after {phase}: {why}", file=sys.stderr)
    for line in frontend.log_text().splitlines()[-60:]:
        print(f"  log: {line}", file=sys.stderr)
    sys.stderr.flush()
