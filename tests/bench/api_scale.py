"""The daemon's cost with a large cluster's API: memory after the first sync, CPU per event.

5,000 EndpointSlices with 100,000 endpoints, 100 services declared; 100 events a second, half of
them about declared services.  For comparison, 100 services with their own slices only.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import psutil

from tests.bench.options import Options
from tests.conftest import binary_of
from tests.support.api_cluster import READY, ApiFrontend
from tests.support.certificates import Certificates, make_certificates

DECLARED = 100
ENDPOINTS = 20
EVENTS_A_SECOND = 100


def rows(options: Options) -> list[dict[str, object]]:
    """Return a row for each number of slices."""
    numbers = (DECLARED, 1000) if options.quick else (DECLARED, 5000)
    seconds = options.seconds_or(10.0, quick=3.0)
    with tempfile.TemporaryDirectory() as directory:
        certificates = make_certificates(Path(directory))
        return [measure(slices, seconds, certificates) for slices in numbers]


def measure(slices: int, seconds: float, certificates: Certificates) -> dict[str, object]:
    with ApiFrontend(binary_of("2.8-wheel"), certificates) as frontend:
        names = [f"s{number}" for number in range(slices)]
        for number, name in enumerate(names):
            frontend.kube_service(name)
            frontend.endpoints(name, _states(frontend, number, ENDPOINTS))
        for number, name in enumerate(names[:DECLARED]):
            frontend.settings["services"][name] = frontend.service(
                name, 10000 + number, check=False, pod_port="http"
            )
        began = time.monotonic()
        daemon = frontend.start()
        synced = time.monotonic() - began
        frontend.until(lambda: frontend.metric("fc_frontend_api_synced") == 1)
        time.sleep(5)
        process = psutil.Process(daemon.pid)
        memory = process.memory_info().rss / 1e6
        before = sum(process.cpu_times()[:2])
        time.sleep(5)
        idle = (sum(process.cpu_times()[:2]) - before) / 5
        before = sum(process.cpu_times()[:2])
        events = _events(frontend, names, seconds)
        used = sum(process.cpu_times()[:2]) - before - idle * seconds
        return {
            "slices": slices,
            "endpoints": slices * ENDPOINTS,
            "ready after s": f"{synced:.1f}",
            "RSS MB": f"{memory:.0f}",
            "idle CPU %": f"{idle * 100:.1f}",
            "events": events,
            "CPU ms an event": f"{used / events * 1000:.1f}",
            "RSS MB after": f"{process.memory_info().rss / 1e6:.0f}",
        }


def _states(frontend: ApiFrontend, number: int, count: int) -> dict[str, dict[str, bool]]:
    first = number * 32
    return {
        f"127.{frontend.octet}.{(first + n) // 256 % 128}.{(first + n) % 256}": READY
        for n in range(count)
    }


def _events(frontend: ApiFrontend, names: list[str], seconds: float) -> int:
    """Change slices at a steady rate; return the number of changes."""
    count = int(seconds * EVENTS_A_SECOND)
    began = time.monotonic()
    for number in range(count):
        is_declared = number % 2 == 0 or len(names) == DECLARED
        at = number // 2 % DECLARED if is_declared else DECLARED + number % (len(names) - DECLARED)
        less = ENDPOINTS - 1 - number // (2 * DECLARED) % 2
        frontend.endpoints(names[at], _states(frontend, at, less))
        pause = began + (number + 1) / EVENTS_A_SECOND - time.monotonic()
        if pause > 0:
            time.sleep(pause)
    return count
