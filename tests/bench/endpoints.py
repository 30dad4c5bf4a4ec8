"""From a change in the API to the first, or last, request that a pod answers.

The baselines, in the same HAProxy under the same load, are a minimal script with the same purpose,
and HAProxy's own resolver with cluster DNS.
"""

from __future__ import annotations

import itertools
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.options import Options
from tests.conftest import binary_of
from tests.support.api_cluster import READY, TERMINATING, TOKEN, ApiFrontend
from tests.support.certificates import Certificates, make_certificates

PORT = 8080
CLIENTS = 4
_LONGEST = 10.0


def rows(options: Options) -> list[dict[str, object]]:
    """Return rows for each version and number of services."""
    found: list[dict[str, object]] = []
    changes = 20 if options.quick else options.changes
    with tempfile.TemporaryDirectory() as directory:
        certificates = make_certificates(Path(directory))
        numbers = options.services_or((1, 100, 1000), quick=(1, 100))
        for version, services in itertools.product(options.versions, numbers):
            found += measure(version, services, changes, certificates)
    return found


def measure(
    version: str, services: int, changes: int, certificates: Certificates
) -> list[dict[str, object]]:
    """Measure the daemon, then the bare script with the same HAProxy, then cluster DNS."""
    found = []
    with ApiFrontend(binary_of(version), certificates) as frontend:
        frontend.settings["intervals"] = {"resolve": "1s"}
        pods = frontend.scale("shop", 4)
        _declare(frontend, services)
        frontend.start()
        frontend.until(lambda: frontend.serves(PORT, pods))
        frontend.ready_endpoints("shop", pods.addresses[:3])
        before = frontend.metric("fc_frontend_reloads_total")
        ours = Series(frontend, changes)
        ours.run(frontend.endpoints)
        reloads = frontend.metric("fc_frontend_reloads_total") - before
        found.append({**ours.row(version, services, "fc-frontend"), "reloads": f"{reloads:.0f}"})
        frontend.stop_daemon()
        frontend.ready_endpoints("shop", pods.addresses[:3])
        with _bare_script(frontend):
            bare = Series(frontend, changes)
            bare.run(frontend.endpoints)
        found.append({**bare.row(version, services, "bare script"), "reloads": "0"})
        ratio = statistics.median(ours.added) / statistics.median(bare.added)
        found[0]["ratio to bare"] = f"{ratio:.2f}"
        found[1]["ratio to bare"] = "1"
    with ApiFrontend(binary_of(version), certificates) as frontend:
        frontend.settings["intervals"] = {"resolve": "1s"}
        del frontend.settings["cluster"]["api"]
        pods = frontend.scale("shop", 4)
        frontend.settings["services"]["shop"] = frontend.service("shop", PORT)
        frontend.start()
        frontend.until(lambda: frontend.serves(PORT, pods))
        dns = Series(frontend, max(5, changes // 5))
        dns.run(lambda name, states: _published(frontend, name, states))
        found.append({**dns.row(version, 1, "cluster DNS"), "reloads": "0", "ratio to bare": "-"})
    return found


def _published(frontend: ApiFrontend, name: str, states: dict[str, dict[str, bool]]) -> float:
    frontend.publish(name, tuple(each for each, state in states.items() if state["ready"]))
    return time.monotonic()


def _declare(frontend: ApiFrontend, services: int) -> None:
    """Declare `shop`, and other services with the same pods, without checks and requests."""
    pods = frontend.pods["shop"]
    frontend.kube_service("shop")
    frontend.ready_endpoints("shop", pods.addresses)
    frontend.settings["services"]["shop"] = frontend.service("shop", PORT)
    for number in range(1, services):
        name = f"s{number}"
        frontend.kube_service(name)
        frontend.ready_endpoints(name, pods.addresses[:2])
        frontend.settings["services"][name] = frontend.service(name, 10000 + number, check=False)


@contextmanager
def _bare_script(frontend: ApiFrontend) -> Iterator[None]:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.bench.bare_watch",
            "127.0.0.1",
            str(frontend.api.port),
            str(frontend.certificates.path("ca.crt")),
            TOKEN,
            "shop",
            frontend.settings["haproxy"]["runtime_socket"],
            "10",
        ]
    )
    try:
        pods = frontend.pods["shop"].pods[:3]
        frontend.until(lambda: set(frontend.answers(PORT, 20)) == {pod.name for pod in pods})
        yield
    finally:
        process.kill()
        process.wait()


class Series:
    """A pod that is added and removed; seconds from each change to its first or last response."""

    def __init__(self, frontend: ApiFrontend, changes: int) -> None:
        self._frontend = frontend
        self._changes = changes
        self.added: list[float] = []
        self.removed: list[float] = []
        self.requests = 0
        self.failed = 0

    def run(self, put: Callable[[str, dict[str, dict[str, bool]]], float]) -> None:
        """Make all changes, under load."""
        pods = self._frontend.pods["shop"]
        *stay, moving = pods.addresses
        name = pods.pods[-1].name
        base = dict.fromkeys(stay, READY)
        marks: list[tuple[float, bool]] = []
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "answers"
            put("shop", base)
            with self._load(path):
                for _ in range(self._changes):
                    marks.append((put("shop", {**base, moving: READY}), True))
                    self._wait(path, name, marks[-1][0], is_there=True)
                    marks.append((put("shop", {**base, moving: TERMINATING}), False))
                    self._wait(path, name, marks[-1][0], is_there=False)
                    put("shop", base)
                    time.sleep(0.02 + 0.03 * random.random())
            answers = [line.split() for line in path.read_text().splitlines()]
        self.requests = len(answers)
        self.failed = sum(said == "failed" for _, said in answers)
        times = [float(at) for at, said in answers if said == name]
        for (at, is_added), (until, _) in itertools.pairwise([*marks, (float("inf"), False)]):
            own = [each for each in times if at <= each < until]
            if is_added and own:
                self.added.append(own[0] - at)
            elif not is_added:
                self.removed.append(max(own) - at if own else 0.0)

    @contextmanager
    def _load(self, path: Path) -> Iterator[None]:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.bench.endpoint_load",
                self._frontend.host,
                str(PORT),
                str(CLIENTS),
                str(path),
            ],
            stdin=subprocess.PIPE,
        )
        try:
            self._frontend.until(lambda: path.exists() and path.stat().st_size > 2000)
            yield
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(10)

    def _wait(self, path: Path, name: str, since: float, *, is_there: bool) -> None:
        """Wait until the pod responds; or until it has not responded for a while."""
        quiet = 0.05 if is_there else 0.1
        deadline = time.monotonic() + _LONGEST
        with path.open() as file:
            file.seek(max(0, path.stat().st_size - 4000))
            last, text = since, ""
            while time.monotonic() < deadline:
                text += file.read()
                *lines, text = text.split("\n")
                for at, said in (line.split() for line in lines if len(line.split()) == 2):
                    if said == name and float(at) > since:
                        last = float(at)
                if is_there and last > since:
                    break
                if not is_there and time.monotonic() - last > quiet:
                    return
                time.sleep(0.002)
        time.sleep(quiet)

    def row(self, version: str, services: int, who: str) -> dict[str, object]:
        """Return one row of the table."""
        return {
            "HAProxy": version,
            "services": services,
            "who": who,
            "n": len(self.added),
            "added p50 ms": _milliseconds(self.added, 0.5),
            "p99": _milliseconds(self.added, 0.99),
            "removed p50 ms": _milliseconds(self.removed, 0.5),
            "removed p99": _milliseconds(self.removed, 0.99),
            "requests": self.requests,
            "failed": self.failed,
        }


def _milliseconds(values: list[float], share: float) -> str:
    values = sorted(values)
    return f"{values[min(len(values) - 1, int(len(values) * share))] * 1000:.1f}" if values else "-"
