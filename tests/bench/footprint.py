"""The daemon's memory, and its CPU while nothing changes.

Services have three pods each and are asked about every second; HAProxy is a process of its own and
does not count.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from fc_frontend.demo.dns import KubernetesService
from tests.bench.options import Options
from tests.conftest import binary_of
from tests.frontend import Frontend

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def rows(options: Options) -> list[dict[str, object]]:
    """A row a number of services."""
    return [
        measure(count, 10 if options.quick else 30)
        for count in ((1, 100) if options.quick else (1, 100, 500))
    ]


def measure(count: int, seconds: int) -> dict[str, object]:
    with Frontend(binary_of("2.6-debian")) as frontend:
        frontend.settings["intervals"]["resolve"] = "1s"
        for number in range(count):
            name = f"s{number}"
            addresses = tuple(
                f"127.{frontend.octet}.{number // 80}.{n + number % 80 * 3}" for n in (1, 2, 3)
            )

            async def publish(name: str = name, addresses: tuple[str, ...] = addresses) -> None:
                frontend.dns.set_service(KubernetesService(name, endpoints=addresses))

            frontend.call(publish())
            frontend.settings["services"][name] = frontend.service(
                name, 10000 + number, check=False
            )
        daemon = frontend.start()
        time.sleep(3)
        before, started = cpu(daemon.pid), time.monotonic()
        time.sleep(seconds)
        share = (cpu(daemon.pid) - before) / (time.monotonic() - started)
        pages = int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1])
        queries = frontend.metric("fc_frontend_dns_queries_total")
        return {
            "services": count,
            "RSS MB": f"{pages * PAGE / 1e6:.1f}",
            "idle CPU %": f"{share * 100:.2f}",
            "queries so far": int(queries),
            "aim": "≤ 60 MB, ≤ 1 %" if count == 100 else "",
        }


def cpu(pid: int) -> float:
    """User and system time of a process, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK
