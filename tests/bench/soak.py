"""Whether anything grows while services and pods change, for an hour or less.

One turn adds services with new names and pods; changes a port; scales pods within the slots and
beyond; breaks a service in two ways and fixes it; sends SIGHUP; lets cluster DNS fail; requests the
pages, and aborts connections; and removes what it added.  After each turn the state is as before,
and once the daemon is idle, it is measured: each figure is the minimum of several looks, as the
work of every second takes a descriptor or a task for a moment.  The verdict depends on the second
half of the turns: in the first half caches fill, and the history reaches the fifty entries that it
keeps.  A figure grows if its increase over that half, by the median of the slopes between any two
looks, exceeds `BOUNDS`; quarters are medians.  `--minutes` or `--seconds` shorten the run.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import psutil

from fc_frontend.demo.dns import Fault, KubernetesService
from fc_frontend.haproxy.master import show_proc
from tests.bench.options import Options
from tests.conftest import binary_of
from tests.support.census import VARIABLE, Census, census, types
from tests.support.frontend import Frontend

SERVICES = 100
FIRST_PORT = 10000
NEW_PORTS = 20000
CHANGED_PORTS = 30000
ADDRESSES = 200
LOOKS = 8
PAUSE = 0.05
"""Seconds between looks: temporary objects of a sweep do not exist at each of them."""
QUIET_SWEEPS = 4
MOST_POINTS = 400
"""The maximum number of points of a slope, sampled evenly."""
SHOWN = 12
LAUNCHER = (sys.executable, "-m", "tests.support.census")


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The daemon's resources at the end of a turn, and those of HAProxy and the state directory."""

    turn: int
    seconds: float
    rss: int
    """In kB, like `uss`."""
    uss: int
    blocks: int
    tasks: int
    threads: int
    descriptors: int
    metrics: int
    """Lines on the metrics page."""
    files: int
    """Files in the state directory, at all depths."""
    kilobytes: float
    """The size of these files."""
    workers: int
    """HAProxy's workers, including old ones."""
    master: int
    """File descriptors of HAProxy's master."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The maximum increase over the second half; a figure that exceeds it grows."""

    least: float
    share: float = 0.0
    """The maximum increase as a share of the value."""


BOUNDS = {
    "rss": Bound(1000, 0.01),
    "uss": Bound(1000, 0.01),
    "blocks": Bound(2000, 0.005),
    "tasks": Bound(0.5),
    "threads": Bound(0.5),
    "descriptors": Bound(0.5),
    "metrics": Bound(5),
    "files": Bound(2),
    "kilobytes": Bound(50, 0.01),
    "workers": Bound(0.5),
    "master": Bound(0.5),
}


class Churn:
    """A frontend with changing services and pods, and looks at its daemon."""

    def __init__(self, frontend: Frontend, services: int = SERVICES) -> None:
        self.frontend = frontend
        self.services = services
        self.looks: list[Look] = []
        self._began = time.monotonic()
        self._socket = str(frontend.directory / "census.sock")
        frontend.launcher = LAUNCHER
        frontend.environ = {VARIABLE: self._socket}
        frontend.settings["intervals"] = {
            "resolve": "200ms", "reload": 0, "debounce": "50ms", "rescan": "1s", "hold": "1s",
        }  # fmt: skip

    def start(self) -> None:
        """Start the daemon with all permanent services."""
        for number in range(self.services):
            self._declare(number)
            self._pods(f"s{number}", 3)
        self.frontend.start()
        self._began = time.monotonic()

    def turn(self, number: int) -> None:
        """Make each kind of change once, and undo it."""
        one, other = number % self.services, (number * 7 + 3) % self.services
        if one == other:
            other = (other + 1) % self.services
        name = f"s{other}"

        def begin() -> None:
            self._add(number)
            self._declare(one, port=CHANGED_PORTS + number % 5000)
            self._pods(name, 5 + number % 3)

        def grow_and_break() -> None:
            self._pods(name, 12)
            self._declare(one, pod_port="no port")

        def mend() -> None:
            self._declare(one)
            self._fail_dns()
            self._ask(number)
            self._hang_up()

        def end() -> None:
            self._pods(name, 3)
            self._remove(number)

        self._after(begin, lambda: self._endpoints(name) == 5 + number % 3)
        self._after(grow_and_break, lambda: self._withheld() == 1 and self._slots(name) > 10)
        self._after(
            lambda: self._declare(one, extra_config="no-such-word"),
            lambda: self._withheld() == 1,
        )
        self._after(mend, lambda: self._withheld() == 0)
        self._after(
            end,
            lambda: self._endpoints(name) == 3 and self._endpoints(f"n{number}") is None,
        )

    def look(self, number: int) -> Look:
        """Measure once the daemon is idle."""
        self.quiet()
        assert self.frontend.daemon is not None
        process = psutil.Process(self.frontend.daemon.pid)
        counts, descriptors = [self._census()], [process.num_fds()]
        for _ in range(LOOKS - 1):
            time.sleep(PAUSE)
            counts.append(self._census())
            descriptors.append(process.num_fds())
        memory = process.memory_full_info()
        state = self.frontend.directory / "state"
        sizes = [path.stat().st_size for path in state.rglob("*") if path.is_file()]
        master = show_proc(self.frontend.settings["haproxy"]["master_socket"], 5.0)
        look = Look(
            turn=number,
            seconds=round(time.monotonic() - self._began, 1),
            rss=memory.rss // 1000,
            uss=memory.uss // 1000,
            blocks=min(each.blocks for each in counts),
            tasks=min(each.tasks for each in counts),
            threads=min(each.threads for each in counts),
            descriptors=min(descriptors),
            metrics=self.frontend.get("/metrics")[1].count(b"\n"),
            files=len(sizes),
            kilobytes=round(sum(sizes) / 1000, 1),
            workers=len(master.pids) - 1,
            master=psutil.Process(master.master).num_fds() if master.master else 0,
        )
        self.looks.append(look)
        return look

    def quiet(self) -> None:
        """Wait until HAProxy runs the declared configuration and the daemon is idle.

        Idle means that the reconciler has had no turn for some sweeps.
        """
        since = self._census()

        def is_quiet() -> bool:
            nonlocal since
            now = self._census()
            if now.under_way["steps"] or now.calls["steps"] != since.calls["steps"]:
                since = now
            swept = now.calls["sweeps"] - since.calls["sweeps"]
            return swept >= QUIET_SWEEPS and self.frontend.ready() and self._workers() == 1

        self.frontend.until(is_quiet, 120)

    def types(self) -> dict[str, int]:
        """Return the number of objects by type; the daemon must be idle."""
        return types(self._socket)

    # Changes

    def _file(self, name: str) -> Path:
        return self.frontend.services_d / f"{name}.yaml"

    def _declare(self, number: int, *, port: int = 0, **fields: Any) -> None:
        self._write(f"s{number}", port or FIRST_PORT + number, **fields)

    def _write(self, name: str, port: int, **fields: Any) -> None:
        declared = self.frontend.service(name, port, check=False, **fields)
        new = self.frontend.directory / ".service.new"
        new.write_text(json.dumps({"services": {name: declared}}))
        new.rename(self._file(name))

    def _pods(self, name: str, count: int) -> None:
        """Set this number of pods in DNS, with other addresses each time; they do not run."""
        octet, first = self.frontend.octet, int(time.monotonic() * 10)
        addresses = (
            f"127.{octet}.{1 + n // 20}.{1 + n % 20}"
            for n in ((first + pod) % ADDRESSES for pod in range(count))
        )
        service = KubernetesService(name, ports={"http": 8080}, endpoints=tuple(addresses))

        async def publish() -> None:
            self.frontend.dns.set_service(service)

        self.frontend.call(publish())

    def _add(self, number: int) -> None:
        self._pods(f"n{number}", 2)
        self._write(f"n{number}", NEW_PORTS + number % 5000)

    def _remove(self, number: int) -> None:
        self._file(f"n{number}").unlink()

        async def remove() -> None:
            self.frontend.dns.remove_service(f"n{number}")

        self.frontend.call(remove())

    def _fail_dns(self) -> None:
        for fault in (Fault.SERVFAIL, Fault.NXDOMAIN, Fault.NONE):
            sweeps = self._census().calls["sweeps"]
            self.frontend.dns.fault = fault
            self.frontend.until(lambda then=sweeps: self._census().calls["sweeps"] > then + 1, 60)

    def _ask(self, number: int) -> None:
        """Request all pages, including that of a service of this turn, and abort connections."""
        of_services = (f"/services/n{number}", "/services/s0", "/services/nobody")
        for path in ("/", *of_services, "/status.json", "/metrics", "/healthz", "/nothing-here"):
            self.frontend.get(path)
        for data in (b"", b"GET /", b"\x16\x03\x01\x00", b"GET /metrics HTTP/1.1\r\n"):
            with (
                contextlib.suppress(OSError),
                socket.create_connection((self.frontend.host, 9484), timeout=5) as connection,
            ):
                connection.sendall(data)

    def _hang_up(self) -> None:
        assert self.frontend.daemon is not None
        self.frontend.daemon.send_signal(signal.SIGHUP)

    # Observation

    def _census(self) -> Census:
        return census(self._socket)

    def _after(self, change: Callable[[], None], found: Callable[[], bool]) -> None:
        """Make a change, and wait until the daemon has had a turn since and `found` is true."""
        steps = self._census().calls["steps"]
        change()
        self.frontend.until(lambda: self._census().calls["steps"] > steps and found(), 120)

    def _service(self, name: str) -> dict[str, Any] | None:
        services: list[dict[str, Any]] = self.frontend.status()["services"]
        return next((each for each in services if each["name"] == name), None)

    def _endpoints(self, name: str) -> int | None:
        service = self._service(name)
        return None if service is None else len(service["endpoints"])

    def _slots(self, name: str) -> int:
        service = self._service(name)
        return 0 if service is None else int(service["slots"])

    def _withheld(self) -> int:
        return len(self.frontend.status()["withheld"])

    def _workers(self) -> int:
        return len(show_proc(self.frontend.settings["haproxy"]["master_socket"], 5.0).pids) - 1


def rows(options: Options) -> list[dict[str, object]]:
    """Return a row for each figure."""
    seconds = options.given_seconds or options.minutes * 60
    services = options.services_or((SERVICES,), quick=(SERVICES // 2,))[0]
    with Frontend(binary_of(options.versions[0])) as frontend:
        churn = Churn(frontend, services)
        churn.start()
        before: dict[str, int] = {}
        while not churn.looks or churn.looks[-1].seconds < seconds:
            number = len(churn.looks)
            churn.turn(number)
            look = churn.look(number)
            if not before and look.seconds >= seconds / 2:
                before = churn.types()
            print(json.dumps({**asdict(look), "load": os.getloadavg()[0]}), file=sys.stderr)
        told = judged(churn.looks)
        if any(row["verdict"] == "GROWS" for row in told):
            more = {name: n - before.get(name, 0) for name, n in churn.types().items()}
            most = sorted(more.items(), key=lambda item: -item[1])[:SHOWN]
            print(f"more objects than at half the time: {most}", file=sys.stderr)
    return told


def judged(looks: Sequence[Look]) -> list[dict[str, object]]:
    """Return the course of each figure, and whether it grows."""
    half, quarter = looks[len(looks) // 2 :], max(1, len(looks) // 4)
    minutes = (half[-1].seconds - half[0].seconds) / 60
    found = []
    for name, bound in BOUNDS.items():
        all_values = [float(getattr(look, name)) for look in looks]
        values = all_values[len(looks) // 2 :]
        rise = slope(values) * (len(values) - 1)
        allowed = max(bound.least, bound.share * values[0])
        found.append(
            {
                "figure": name,
                "turns": len(looks),
                "first": all_values[0],
                "first quarter": statistics.median(all_values[:quarter]),
                "last quarter": statistics.median(all_values[-quarter:]),
                "most": max(all_values),
                "a minute": round(rise / minutes, 2) if minutes else 0.0,
                "in second half": round(rise, 2),
                "allowed": round(allowed, 2),
                "verdict": "GROWS" if rise > allowed else "no growth",
            }
        )
    return found


def slope(values: Sequence[float]) -> float:
    """Return the median of the slopes between any two points (Theil–Sen), robust to outliers."""
    step = max(1, len(values) // MOST_POINTS)
    points = list(enumerate(values))[::step]
    slopes = [(b - a) / (y - x) for (x, a), (y, b) in combinations(points, 2)]
    return statistics.median(slopes) if slopes else 0.0
