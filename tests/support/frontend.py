"""A whole frontend on loopback for end-to-end tests: cluster DNS, pods, files and the real daemon.

Nothing is imitated: the daemon is a process, HAProxy is real, and DNS uses sockets.  Each frontend
has its own /16 of loopback, so that tests do not interfere.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from fc_frontend.demo.dns import ClusterDns, KubernetesService
from fc_frontend.demo.load import ask
from fc_frontend.demo.pods import PodSet
from fc_frontend.errors import Unavailable
from fc_frontend.haproxy.deploy import observe
from fc_frontend.haproxy.master import show_proc
from fc_frontend.plan.model import Haproxy
from tests.conftest import PATIENCE, RealHaproxy, until

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

T = TypeVar("T")
_RESERVED_PORT = 65001
_LISTEN_PORT = 9484
_STATS_PORT = 8000


def _network() -> tuple[int, socket.socket]:
    """Return the second octet of an unused loopback network, and the socket that reserves it."""
    for octet in random.sample(range(129, 250), 121):
        reservation = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            reservation.bind((f"127.{octet}.255.254", _RESERVED_PORT))
            # A killed test may have left its HAProxy running.
            for port in (_LISTEN_PORT, _STATS_PORT):
                socket.create_server((f"127.{octet}.200.1", port)).close()
        except OSError:
            reservation.close()
        else:
            return octet, reservation
    raise RuntimeError("all loopback networks are in use")


def patiently(found: Callable[[], T], timeout: float = PATIENCE) -> T:
    """Wait until `found` returns something true, and return it; ignore errors of a startup."""

    def safely() -> T | None:
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            return found()
        return None

    found_at_last = until(safely, timeout)
    assert found_at_last is not None
    return found_at_last


@dataclass(frozen=True, slots=True)
class Metrics:
    """The samples of /metrics, which the daemon computes once a second."""

    samples: list[Sample]

    def sum(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples with these labels."""
        found = (s for s in self.samples if s.name == name and labels.items() <= s.labels.items())
        return sum(sample.value for sample in found)


def wrong_clock(ahead: float) -> dict[str, str]:
    """Return the environment of a process whose wall clock is `ahead` seconds ahead."""
    path = Path(__file__).with_name("wrong_clock")
    others = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": f"{path}:{path.parent.parent.parent}:{others}", "CLOCK_AHEAD": str(ahead)}


class Frontend:
    """One frontend; use as a context manager."""

    def __init__(self, binary: str) -> None:
        self.binary = binary
        self.octet, self._reservation = _network()
        self.host = f"127.{self.octet}.200.1"
        self.directory = Path(tempfile.mkdtemp(prefix="fcf-", dir="/tmp"))
        self.config = self.directory / "config.json"
        self.services_d = self.directory / "services.d"
        self.haproxy_cfg = self.directory / "haproxy.cfg"
        self.log = self.directory / "daemon.log"
        self.settings: dict[str, Any] = {
            "cluster": {
                "service_network": f"127.{self.octet}.128.0/18",
                "pod_network": f"127.{self.octet}.0.0/17",
            },
            "haproxy": {
                "binary": binary,
                "config_file": str(self.haproxy_cfg),
                "master_socket": str(self.directory / "master.sock"),
                "runtime_socket": str(self.directory / "admin.sock"),
                "supervise": True,
                "stats": f"{self.host}:{_STATS_PORT}",
                "log": None,
            },
            "state_directory": str(self.directory / "state"),
            "listen": f"{self.host}:{_LISTEN_PORT}",
            "intervals": {"resolve": "200ms", "reload": "500ms"},
            "services": {},
        }
        self.environ: dict[str, str] = {}
        self.launcher: tuple[str, ...] = ()
        """The command that executes the daemon, such as `unshare --mount`."""
        self.pods: dict[str, PodSet] = {}
        self.daemon: subprocess.Popen[bytes] | None = None
        self.external: RealHaproxy | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.dns = ClusterDns(address=f"127.{self.octet}.255.53")

    def __enter__(self) -> Self:
        self.services_d.mkdir()
        self._thread.start()
        self.call(self.dns.start())
        host, port = self.dns.address
        self.settings["cluster"]["nameservers"] = [f"{host}:{port}"]
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop_daemon()
        self.end_haproxy()
        if self.external:
            self.external.end()
        for pods in self.pods.values():
            self.call(pods.stop())
        self.call(self.dns.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        subprocess.run(["rm", "-rf", str(self.directory)], check=True)
        self._reservation.close()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the cluster's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)

    # The cluster

    def scale(self, name: str, count: int, *, publish: bool = True) -> PodSet:
        """Scale service `name` to `count` pods, and update DNS."""
        if name not in self.pods:
            network = f"127.{self.octet}.{len(self.pods) * 8}.0/21"
            self.pods[name] = PodSet(name, network=network, port=8080)
        pods = self.pods[name]
        if publish and count < len(pods.pods):
            self.publish(name, pods.addresses[:count])
        self.call(pods.scale(count))
        if publish:
            self.publish(name, pods.addresses)
        return pods

    def publish(self, name: str, addresses: tuple[str, ...]) -> None:
        """Set the addresses of service `name` in DNS."""

        async def publish() -> None:
            self.dns.set_service(
                KubernetesService(name, ports={"http": 8080}, endpoints=tuple(addresses))
            )

        self.call(publish())

    # Files

    def service(self, name: str, port: int, **fields: Any) -> dict[str, Any]:
        """Return the declaration of an HTTP service on `port` of the frontend's address."""
        defaults: dict[str, Any] = {
            "mode": "http",
            "pod_port": 8080,
            "binds": f"{self.host}:{port}",
            "service": name,
        }
        return {**defaults, **fields}

    def write(self) -> None:
        """Write the settings file, as an editor does."""
        new = self.directory / ".config.json.new"
        # Removals are not delayed, unless a test sets it so.
        intervals = {"removal": 0, **self.settings.get("intervals", {})}
        new.write_text(json.dumps({**self.settings, "intervals": intervals}, indent=1))
        new.rename(self.config)

    def drop(self, name: str, text: str | dict[str, Any]) -> float:
        """Write a file into services.d; return the time when it existed."""
        content = text if isinstance(text, str) else json.dumps({"services": text})
        (self.services_d / name).write_text(content)
        return time.monotonic()

    # Processes

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of fc-frontend to completion."""
        done = subprocess.run(
            [sys.executable, "-m", "fc_frontend", *arguments, "--config", str(self.config)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            check=False,
            env={**os.environ, **self.environ},
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def start(self, *, wait: bool = True) -> subprocess.Popen[bytes]:
        """Start the daemon, and wait until HAProxy runs the declared configuration."""
        assert self.daemon is None or self.daemon.poll() is not None, "one is running"
        if not self.config.exists():
            self.write()
        with self.log.open("ab") as log:
            self.daemon = subprocess.Popen(
                [
                    *self.launcher,
                    *(sys.executable, "-m", "fc_frontend", "run", "--config", str(self.config)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environ},
            )
        if wait:
            self.until(self.ready)
        return self.daemon

    def stop_daemon(self, number: int = signal.SIGTERM) -> int | None:
        """Stop the daemon with a signal; return its exit code."""
        if self.daemon is None:
            return None
        if self.daemon.poll() is None:
            self.daemon.send_signal(number)
        code = self.daemon.wait(PATIENCE)
        self.daemon = None
        return code

    def end_haproxy(self) -> None:
        """Kill the HAProxy that a daemon left running."""
        with contextlib.suppress(Unavailable, ProcessLookupError):
            master = show_proc(self.settings["haproxy"]["master_socket"], 2.0)
            for pid in master.pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    # Observation from outside

    def until(self, found: Any, timeout: float = PATIENCE) -> Any:
        """Return the result of `found` once it is true; on timeout, show the daemon's log."""

        try:
            return patiently(found, timeout)
        except AssertionError:
            raise AssertionError(self.log_text()[-5000:]) from None

    def log_text(self) -> str:
        """Return the log of the daemon and its HAProxy."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def events(self, name: str) -> list[str]:
        """Return the log lines of one event."""
        return [line for line in self.log_text().splitlines() if f" {name} " in f"{line} "]

    def get(self, path: str, port: int = 9484) -> tuple[int, bytes]:
        """Return status and body from one of the frontend's listeners."""
        connection = http.client.HTTPConnection(self.host, port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def ready(self) -> bool:
        """Return whether the daemon reports that HAProxy runs the declared configuration."""
        return self.get("/readyz")[0] == 200

    def status(self) -> dict[str, Any]:
        """Return the daemon's /status.json."""
        document: dict[str, Any] = json.loads(self.get("/status.json")[1])
        return document

    def metrics(self) -> Metrics:
        """Return all metrics at one moment."""
        from prometheus_client.parser import text_string_to_metric_families

        families = text_string_to_metric_families(self.get("/metrics")[1].decode())
        return Metrics([sample for family in families for sample in family.samples])

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples with these labels."""
        return self.metrics().sum(name, **labels)

    def ask(self, port: int) -> str:
        """Return the name of the pod that responds on `port`, or the failure."""
        connection = http.client.HTTPConnection(self.host, port, timeout=10)
        try:
            pod, failure = ask(connection)
        finally:
            connection.close()
        return failure or pod

    def answers(self, port: int, count: int = 30) -> Counter[str]:
        """Return the number of responses of each pod to `count` requests."""
        return Counter(self.ask(port) for _ in range(count))

    def serves(self, port: int, pods: PodSet) -> bool:
        """Return whether all of `pods` respond on `port`, and no others."""
        return set(self.answers(port, 6 * len(pods.pods))) == {pod.name for pod in pods.pods}

    def reloads(self) -> int:
        """Return the number of reloads of HAProxy's master."""
        return show_proc(self.settings["haproxy"]["master_socket"], patience=PATIENCE).reloads

    def running_hash(self) -> str | None:
        """Return the hash of the configuration that HAProxy's worker runs."""
        haproxy = self.settings["haproxy"]
        return observe(
            Haproxy(
                master_socket=haproxy["master_socket"], runtime_socket=haproxy["runtime_socket"]
            )
        ).hash
