"""A cluster of many services with a few pods each, and measurements of its processes.

Services are named `s0`, `s1`… and declared in files of a hundred each.  Their pods do not run, and
HAProxy does not check them: checks of 20,000 servers every two seconds would dominate the
measurement.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from fc_frontend.haproxy import runtime
from tests.support.frontend import Frontend
from tests.support.knot import Knot

FIRST_PORT = 10000
EACH_FILE = 100
_POD_ADDRESSES = 100 * 250
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """A process's memory in MB (10⁶ bytes): resident, proportional and unique."""

    rss: float
    pss: float
    uss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """The resources that a command and all its child processes used, in seconds."""

    wall: float
    cpu: float
    code: int
    said: str


@contextlib.contextmanager
def many_services(binary: str, count: int, **fields: Any) -> Iterator[tuple[Frontend, Knot]]:
    """Provide a frontend, not started, with `count` services in its files and in DNS.

    `fields` are added to each declaration.
    """
    with Frontend(binary) as frontend:
        frontend.settings["intervals"] = {"resolve": "1s"}
        knot = Knot(f"127.{frontend.octet}.255.54", frontend.directory / "knot")
        knot.fill({f"s{number}": pods(frontend, number) for number in range(count)})
        with knot:
            host, port = knot.address
            frontend.settings["cluster"]["nameservers"] = [f"{host}:{port}"]
            names = range(count)
            for first in names[::EACH_FILE]:
                declare(frontend, names[first : first + EACH_FILE], **fields)
            frontend.write()
            yield frontend, knot


def declare(
    frontend: Frontend,
    numbers: Sequence[int],
    changed: Mapping[int, int] | None = None,
    **fields: Any,
) -> float:
    """Write one file with these services; return the time when it existed.

    `changed` maps numbers of services to a port other than their own.
    """
    services = {
        f"s{number}": frontend.service(
            f"s{number}",
            (changed or {}).get(number, FIRST_PORT + number),
            **{"check": False, **fields},
        )
        for number in numbers
    }
    # Renamed into place, so that nobody reads a partial file.
    new = frontend.directory / ".services.json.new"
    new.write_text(json.dumps({"services": services}, indent=1))
    new.rename(frontend.services_d / f"s{numbers[0]:05}.json")
    return time.monotonic()


def pods(frontend: Frontend, number: int) -> tuple[str, ...]:
    """Return the addresses of a service's three to five pods; beyond 6,000, services share them."""
    first = number * 4
    found = ((first + n) % _POD_ADDRESSES for n in range(3 + number % 3))
    return tuple(f"127.{frontend.octet}.{n // 250}.{1 + n % 250}" for n in found)


def worker(frontend: Frontend) -> int:
    """Return the process ID of HAProxy's running worker."""
    return int(runtime.info(frontend.settings["haproxy"]["runtime_socket"])["Pid"])


def memory(pid: int) -> Memory:
    """Return the current memory of a process."""
    found = psutil.Process(pid).memory_full_info()
    return Memory(rss=found.rss / 1e6, pss=found.pss / 1e6, uss=found.uss / 1e6)


def cpu(pid: int) -> float:
    """Return user and system time of a process without its children, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def ran(argv: Sequence[str], log: Path) -> Ran:
    """Run a command to completion; its output is written to `log`."""
    with log.open("wb") as out:
        started = time.perf_counter()
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    return Ran(
        wall=wall,
        cpu=used.ru_utime + used.ru_stime,
        code=process.returncode,
        said=log.read_text(errors="replace"),
    )
