"""The cost of a query to cluster DNS, beside dnspython, against an authoritative server (Knot).

Names have five addresses each.  `first` is the sweep that determines the kind of each service,
`steady` is each sweep after that.  CPU is that of the querying process alone, without the server's.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from ipaddress import ip_address, ip_network
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dns.asyncresolver
import dns.message

from fc_frontend.discovery.client import DnsClient, Exchange
from fc_frontend.discovery.resolve import resolve_all
from fc_frontend.discovery.unchanged import UnchangedAnswers
from fc_frontend.plan.model import Answer, Bind, Cluster, Discovery, Nameserver, ServiceSpec
from tests.bench.options import Options
from tests.conftest import free_port
from tests.support.knot import Knot

COUNTS = (100, 1000, 5000)
ADDRESSES = 5
AT_ONCE = 64


def rows(options: Options) -> list[dict[str, object]]:
    """Return a row for each number of names."""
    rounds = 5 if options.quick else 20
    counts = options.services_or(COUNTS, quick=COUNTS[:2])
    found = []
    for count in counts:
        with TemporaryDirectory(prefix="fcb-") as name, knot(Path(name), count) as server:
            # In a process of its own: leftovers of earlier work would be measured as well.
            arguments = map(str, (server.address[1], count, rounds))
            done = subprocess.run(
                [sys.executable, "-m", "tests.bench.sweep", *arguments],
                check=True,
                stdout=subprocess.PIPE,
            )
            found.append(json.loads(done.stdout))
    return found


def knot(directory: Path, count: int) -> Knot:
    server = Knot("127.0.0.1", directory, port=free_port())
    server.fill({f"s{n}": tuple(addresses(n)) for n in range(count)})
    return server


def addresses(number: int) -> list[str]:
    first = number * ADDRESSES
    return [f"10.1.{n // 250 % 250}.{n % 250 + 1}" for n in range(first, first + ADDRESSES)]


async def measure(port: int, count: int, rounds: int) -> dict[str, object]:
    """Return all figures for one number of names."""
    specs = [
        ServiceSpec(
            name=f"s{n}",
            service=f"s{n}",
            binds=(Bind("ip", "127.0.0.1", 10000 + n),),
            port=8080,
            discovery=Discovery.HEADLESS,
        )
        for n in range(count)
    ]
    cluster = Cluster(
        nameservers=(Nameserver(ip_address("127.0.0.1"), port),),
        pod_networks=(ip_network("10.1.0.0/16"),),
        service_networks=(ip_network("10.0.0.0/24"),),
    )
    asked: list[Exchange] = []
    client = DnsClient(cluster.nameservers, observe=asked.append)
    unchanged, answers = UnchangedAnswers(), dict[str, Answer]()

    async def sweep() -> None:
        nonlocal answers
        answers = await resolve_all(specs, cluster, client, answers, unchanged=unchanged)

    names = [f"s{n}.default.svc.cluster.local" for n in range(min(count, 500))]
    wall, cpu = await timed(lambda: by_dnspython(port, names))
    theirs = cpu / len(names)
    first_wall, first_cpu = await timed(sweep)
    asked.clear()
    took = [await timed(sweep) for _ in range(rounds)]
    client.close()
    assert all(len(answer.endpoints) == ADDRESSES for answer in answers.values())
    answered = sum(len(exchange.durations) for exchange in asked)
    steady_cpu = statistics.median(cpu for _, cpu in took) / count
    return {
        "names": count,
        "dnspython µs": round(theirs * 1e6),
        "first µs": round(first_cpu / count * 1e6),
        "steady µs": round(steady_cpu * 1e6, 1),
        "aim µs": 15,
        "× dnspython": round(steady_cpu / theirs, 3),
        "dnspython s": round(wall * count / len(names), 3),
        "first s": round(first_wall, 3),
        "steady s": round(statistics.median(wall for wall, _ in took), 3),
        "slowest s": round(max(wall for wall, _ in took), 3),
        "lost": rounds * count - answered,
    }


async def by_dnspython(port: int, names: list[str]) -> None:
    """Resolve names with dnspython's own resolver, at the concurrency where it is fastest."""
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers = ["127.0.0.1"]
    resolver.port = port
    room = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> None:
        async with room:
            await resolver.resolve(name, "A")

    await asyncio.gather(*map(one, names))


async def timed(work: Callable[[], Coroutine[Any, Any, None]]) -> tuple[float, float]:
    """Return wall time and CPU time, in seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    await work()
    return time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    port, count, rounds = map(int, sys.argv[1:])
    print(json.dumps(asyncio.run(measure(port, count, rounds))))
