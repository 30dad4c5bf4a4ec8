"""From a change in DNS to the first request to a new pod, and to the last one to a removed pod.

fc-frontend and plain HAProxy with the platform documentation's configuration follow the same DNS
server, one contender at a time, each with all services; a few of the services, the lanes, change
concurrently and receive requests continuously.  `limit` is the best possible result of a client
that queries DNS every second: a uniform distribution from 0 to 1 s, and a round trip.  All services
but the lanes are unchecked, as checks of thousands of pods would dominate the measurement.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from fc_frontend.plan.model import Bind
from tests.bench.options import Options
from tests.conftest import RealHaproxy, binary_of
from tests.support.contenders import SLOTS
from tests.support.frontend import Frontend
from tests.support.knot import Knot
from tests.support.many import FIRST_PORT, many_services

LANES = 6
POOL = 8
"""Addresses of a lane, used in turn."""
PAUSE = 0.01
QUIET = 2.5
"""Seconds without a request after which a pod counts as unused."""
PATIENCE = 20.0
INTERVAL = 1.0
"""Seconds between two DNS queries of HAProxy and of fc-frontend."""
HOLD = 60
OURS, PLAIN = "fc-frontend", "plain HAProxy"


@dataclass(slots=True)
class Seen:
    """Observations on the lanes of one contender, in seconds after each change."""

    first: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    change: list[float] = field(default_factory=list)
    """The time that the DNS server took for each change."""
    never: int = 0
    failed: int = 0
    asked: int = 0


@dataclass(frozen=True, slots=True)
class Lane:
    """A service, or a part of one, with changing pods, and the pods' addresses."""

    service: str
    host: str
    port: int
    stays: str
    pool: tuple[str, ...]


@dataclass(slots=True)
class Sighting:
    """The time of a pod's first response, and of the last request that it answered."""

    first: float | None = None
    last: float = float("-inf")


def rows(options: Options) -> list[dict[str, object]]:
    """Return a row for each number of services, kind of change and contender."""
    found = []
    for count in options.services_or((1, 100, 5000), quick=(1, 100)):
        seen = {}
        for name in (OURS, PLAIN):
            print(f"{options.versions[0]}, {name}, {count} services", file=sys.stderr, flush=True)
            load = os.getloadavg()[0]
            seen[name] = measure(options.versions[0], count, name, options.changes // 2)
            for change, took in (("added", seen[name].first), ("removed", seen[name].last)):
                row = told(count, change, name, took, seen[name], load)
                found.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
    return found


def told(
    count: int, change: str, contender: str, took: list[float], seen: Seen, load: float
) -> dict[str, object]:
    """Return a row: the distribution of one kind of change."""
    return {
        "services": count,
        "change": change,
        "contender": contender,
        "n": len(took),
        "p50 s": round(quantile(took, 0.5), 3),
        "p90 s": round(quantile(took, 0.9), 3),
        "p99 s": round(quantile(took, 0.99), 3),
        "max s": round(max(took, default=float("nan")), 3),
        "limit p50": INTERVAL * 0.5,
        "limit p99": INTERVAL * 0.99,
        "never": seen.never,
        "failed": seen.failed,
        "requests": seen.asked,
        "DNS ms": round(quantile(seen.change, 0.5) * 1000, 1),
        "load": round(load, 1),
    }


def quantile(values: list[float], share: float) -> float:
    """Return the value below which this share lies; NaN if there are no values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def measure(version: str, count: int, contender: str, cycles: int) -> Seen:
    """Add and remove pods `cycles` times with one contender."""
    binary = binary_of(version)
    with many_services(binary, count) as (frontend, knot):
        lanes = made_lanes(frontend, count)
        with pods_of(lanes, frontend), serving(frontend, contender, count, lanes):
            for lane in lanes:
                knot.change_now(lane.service, [lane.stays])
            frontend.until(lambda: all(frontend.ask(lane.port) == lane.stays for lane in lanes), 60)
            return asyncio.run(follow(lanes, knot, cycles))


def made_lanes(frontend: Frontend, count: int) -> list[Lane]:
    """Return lanes spread over all services; with few services, several lanes share one."""
    base = f"127.{frontend.octet}.110"
    number = min(LANES, count)
    lanes = []
    for index in range(LANES):
        service = index % number * count // number
        lanes.append(
            Lane(
                service=f"s{service}",
                host=frontend.host,
                port=FIRST_PORT + service,
                stays=f"{base}.{1 + index % number}",
                pool=tuple(f"{base}.{LANES + 1 + n + index * POOL}" for n in range(POOL)),
            )
        )
    return lanes


@contextlib.contextmanager
def pods_of(lanes: list[Lane], frontend: Frontend) -> Iterator[None]:
    """Run the lanes' pods: one HAProxy that returns the destination address of each request."""
    directory = frontend.directory / "pods"
    directory.mkdir()
    pod = RealHaproxy(frontend.binary, directory)
    addresses = {address for lane in lanes for address in (lane.stays, *lane.pool)}
    binds = tuple(Bind("ip", address, 8080) for address in sorted(addresses))
    answer = "backend pods\n  mode http\n  http-request return status 200 hdr X-Pod %[dst]"
    try:
        pod.start(pod.configuration(answer, binds=binds).replace("mode tcp", "mode http"))
        yield
    finally:
        pod.end()


@contextlib.contextmanager
def serving(frontend: Frontend, contender: str, count: int, lanes: list[Lane]) -> Iterator[None]:
    """Run one of the contenders, with all services."""
    if contender == OURS:
        if count > LANES:
            checked = {int(lane.service[1:]) for lane in lanes}
            for number in checked:
                redeclare(frontend, number, count)
        frontend.start(wait=False)
        frontend.until(frontend.ready, 600)
        yield
        return
    directory = frontend.directory / "plain"
    directory.mkdir()
    plain = RealHaproxy(frontend.binary, directory)
    try:
        plain.start(documented(frontend, plain, count, {lane.service for lane in lanes}))
        yield
    finally:
        plain.end()


def redeclare(frontend: Frontend, number: int, count: int) -> None:
    """Enable checks of one service, in a file that otherwise keeps its content."""
    file = next(
        path
        for path in frontend.services_d.iterdir()
        if f"s{number}" in json.loads(path.read_text())["services"]
    )
    document = json.loads(file.read_text())
    document["services"][f"s{number}"]["check"] = True
    file.write_text(json.dumps(document))


def documented(frontend: Frontend, plain: RealHaproxy, count: int, checked: set[str]) -> str:
    """Return the documentation's configuration for all services."""
    host, port = frontend.settings["cluster"]["nameservers"][0].split(":")
    lines = [
        "global",
        f"  stats socket {plain.runtime_socket} level admin expose-fd listeners",
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
    for number in range(count):
        name = f"s{number}"
        check = "check " if name in checked else ""
        lines += [
            f"listen {name}",
            f"  bind {frontend.host}:{FIRST_PORT + number}",
            f"  server-template pod {SLOTS} *.{name}.default.svc.cluster.local:8080 {check}"
            "resolvers cluster init-addr none",
        ]
    return "\n".join(lines) + "\n"


async def follow(lanes: list[Lane], knot: Knot, cycles: int) -> Seen:
    """Change each lane independently, until `cycles` pods have been added and removed."""
    watch = Watch(knot)
    left = iter(range(cycles))

    async def run(lane: Lane) -> None:
        for turn, _ in enumerate(left):
            await watch.cycle(lane, lane.pool[turn % POOL])

    await asyncio.gather(*(run(lane) for lane in lanes))
    return watch.seen


class Watch:
    """The addresses in DNS, and the pods that respond."""

    def __init__(self, knot: Knot) -> None:
        self.seen = Seen()
        self._knot = knot
        self._extra: dict[str, set[str]] = {}
        self._sightings: dict[str, Sighting] = {}

    async def cycle(self, lane: Lane, pod: str) -> None:
        """Add one pod, and remove it again."""
        # Changes happen at random times, not at a fixed one after HAProxy's last query.
        await asyncio.sleep(random.random() * INTERVAL)
        sighting = self._sightings[pod] = Sighting()
        self._extra.setdefault(lane.service, set()).add(pod)
        changed = await self._publish(lane)
        while sighting.first is None and time.monotonic() < changed + PATIENCE:
            await self._ask(lane)
        if sighting.first is None:
            self.seen.never += 1
        else:
            self.seen.first.append(max(0.0, sighting.first - changed))
        await asyncio.sleep(random.random() * INTERVAL)
        self._extra[lane.service].remove(pod)
        changed = await self._publish(lane)
        while (now := time.monotonic()) < max(sighting.last, changed) + QUIET:
            if now > changed + HOLD:
                self.seen.never += 1
                return
            await self._ask(lane)
        self.seen.last.append(max(0.0, sighting.last - changed))

    async def _publish(self, lane: Lane) -> float:
        """Set the lane's pods in DNS; return the time of the change."""
        began = time.monotonic()
        extra = sorted(self._extra[lane.service])
        changed = await self._knot.change(lane.service, [lane.stays, *extra])
        self.seen.change.append(changed - began)
        return changed

    async def _ask(self, lane: Lane) -> None:
        sent = time.monotonic()
        pod = await asked(lane)
        self.seen.asked += 1
        self.seen.failed += pod is None
        if pod in self._sightings:
            sighting = self._sightings[pod]
            sighting.first = sighting.first or time.monotonic()
            sighting.last = max(sighting.last, sent)
        await asyncio.sleep(PAUSE)


async def asked(lane: Lane) -> str | None:
    """Send a request over a new connection; return the pod that responds, None on failure."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection(lane.host, lane.port)
            try:
                writer.write(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
                answer = (await reader.read()).decode("latin-1").lower()
            finally:
                writer.close()
        if answer.startswith("http/1.1 200"):
            return answer.partition("x-pod: ")[2].partition("\r\n")[0]
    return None
