"""From the write of a service file to the first request that the new service answers.

The baseline is `haproxy -c` of the same configuration, which is a part of it.
"""

from __future__ import annotations

import statistics
import subprocess
import time

from tests.bench.options import Options
from tests.conftest import BINARIES, binary_of
from tests.support.frontend import Frontend


def rows(options: Options) -> list[dict[str, object]]:
    """Return a row for each HAProxy version."""
    return [measure(version, 10 if options.quick else 50) for version in BINARIES]


def measure(version: str, rounds: int) -> dict[str, object]:
    binary = binary_of(version)
    with Frontend(binary) as frontend:
        frontend.settings["intervals"] = {"resolve": "1s", "reload": 0}
        frontend.scale("new", 1)
        frontend.settings["services"]["shop"] = frontend.service("shop", 8080)
        frontend.start()
        took = []
        for number in range(rounds):
            port = 20000 + number
            name = f"n{number}"
            written = frontend.drop(
                f"{name}.json", {name: frontend.service(name, port, service="new")}
            )
            while frontend.ask(port) != "new-1":
                time.sleep(0.002)
            took.append(time.monotonic() - written)
            frontend.until(frontend.ready)
        judged = []
        for _ in range(10):
            started = time.perf_counter()
            subprocess.run(
                [binary, "-c", "-f", str(frontend.haproxy_cfg)], check=True, capture_output=True
            )
            judged.append(time.perf_counter() - started)
    took.sort()
    judge = statistics.median(judged)
    return {
        "HAProxy": version,
        "n": rounds,
        "median ms": f"{statistics.median(took) * 1000:.0f}",
        "p99 ms": f"{took[int(len(took) * 0.99)] * 1000:.0f}",
        "haproxy -c ms": f"{judge * 1000:.0f}",
        "aim ms": f"{400 + judge * 1000:.0f}",
    }
