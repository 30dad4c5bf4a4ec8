"""Count the daemon's work for a fixed script of changes, and compare it with expectations.

`python -m tests.bench.counted` runs the script with the real daemon, HAProxy and DNS, and prints
the differences to `expectations.json`; `--write` makes the counts the expectation.  Work is counted
from within (`census`) and at cluster DNS, not timed, so that a busy machine counts the same.
HAProxy queries another DNS server with the same content.

These counts are exact: services rendered, programs executed, reloads, writes of haproxy.cfg and of
the history, and the queries of a sweep.  The latter is the minimum of several sweeps, as on a busy
machine a response may arrive too late, and the query is repeated.  Bytes may differ by a tenth, as
ids and paths do.  These counts are upper limits: service files read, as each scan of all files
reads those written in the last two seconds again; and work that depends on timers, such as saving
answers and the servers' state, summed over the script.  Where a timer causes further turns (a retry
of a rejected change, files that are touched one after the other), work is counted for each of the
reconciler's turns.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from fc_frontend.config.templates import packaged_templates
from fc_frontend.demo.dns import ClusterDns, KubernetesService
from tests.conftest import BINARIES, binary_of
from tests.support.census import VARIABLE, Census, census
from tests.support.frontend import Frontend

EXPECTATIONS = Path(__file__).with_name("expectations.json")
REMEDY = "if this is meant: python -m tests.bench.counted --write, and commit expectations.json"
SERVICES = 50
FIRST_PORT = 10000
GRAIN = 2.2
"""Seconds after which a file that changes again certainly has a different modification time."""
QUIET_SWEEPS = 5
IDLE_SWEEPS = 12
LAUNCHER = (sys.executable, "-m", "tests.support.census")
BYTES = 0.1
"""The share by which bytes may differ."""
RUNS = 3
"""The number of runs of the script when expectations are written."""
MANY = 500
MANY_SWEPT = "400ms"
"""From a hundred services on, sweeps are spared while cluster DNS does not change."""
MANY_IDLE = f"{MANY} services: nothing"
MANY_TOUCHED = f"{MANY} services: touch all in one go, by turn"
SPARED = 3
IDLE = "nothing"
REFUSED = "one that HAProxy refuses, by turn"
BROKEN = "break a file, by turn"
MENDED = "mend the file, by turn"
RETRIED = (REFUSED, BROKEN, MENDED)
"""A timer retries a rejected change, and rereads all files written in the last seconds."""
READ_AGAIN = 10
"""Service files that a turn may read in addition; fewer than all."""
BY_TURN = (*RETRIED, MANY_TOUCHED)
WHOLE = "whole script, at most"
ROOM = 1.5
"""The factor by which work that depends on timers may exceed the count."""

Counts = dict[str, int]
Counted = dict[str, Counts]
"""The counts by step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """All counts at the beginning of a step."""

    census: Census
    reloads: int


class Script:
    """The fixed script of changes; `counted` contains the counts of each step."""

    def __init__(self, frontend: Frontend, *, services: int, resolve: str) -> None:
        self.frontend = frontend
        self.services = services
        self.counted: Counted = {}
        self._whole: dict[str, list[int]] = {}
        self._opened = 0
        frontend.launcher = LAUNCHER
        self._socket = str(frontend.directory / "census.sock")
        frontend.environ = {VARIABLE: self._socket}
        # A scan of all files by timer would read recently written files again.
        frontend.settings["intervals"] = {"resolve": resolve, "reload": 0, "rescan": "1h"}
        self._resolver = ClusterDns(address=f"127.{frontend.octet}.255.54")

    def __enter__(self) -> Self:
        self.frontend.call(self._resolver.start())
        self._divert_haproxy()
        for number in range(self.services):
            self._write(number)
            self._pods(number, 3)
        written = time.monotonic()
        # Files that were just written are read again in any case.
        self.frontend.until(lambda: time.monotonic() > written + GRAIN)
        return self

    def __exit__(self, *_exc: object) -> None:
        self.frontend.stop_daemon()
        self.frontend.end_haproxy()
        self.frontend.call(self._resolver.stop())

    def run_many(self) -> None:
        """Run the steps with many services, where sweeps are spared."""
        self.start(f"{MANY} services: start")
        # Sweeps are spared no earlier than two seconds after the last change of the serial.
        began = time.monotonic()
        self.step(MANY_IDLE, lambda: None, lambda: self._spares() or time.monotonic() > began + 30)
        self.step(f"{MANY} services: touch one", lambda: os.utime(self._file(1)), self._stepped())
        self.step(MANY_TOUCHED, self._touch_all, self._stepped())
        self.step(
            f"{MANY} services: change a port", lambda: self._write(3, port=20003), self._stepped()
        )

    def run(self) -> None:
        """Run all steps, one after the other."""
        self.start("start")
        self.step(IDLE, lambda: None, self._swept(IDLE_SWEEPS))
        # Once pods are found, the plan differs from the one before the first answer.
        self.step("touch a file", lambda: os.utime(self._file(1)), self._stepped())
        self.step("touch it again", lambda: os.utime(self._file(1)), self._stepped())
        self.step("change a comment", lambda: self._write(2, comment="new"), self._stepped())
        self.step("change a port", lambda: self._write(3, port=20003), self._stepped())
        self.step("more pods, slots suffice", lambda: self._pods(4, 6), self._has_pods(4, 6))
        self.step("fewer pods", lambda: self._pods(4, 2), self._has_pods(4, 2))
        self.step("more pods than slots", lambda: self._pods(5, 14), self._stepped())
        self._pods(SERVICES, 3)
        self.step("add a service", lambda: self._write(SERVICES), self._stepped())
        self.step("remove a service", lambda: self._file(6).unlink(), self._stepped())
        self.step("break a service", lambda: self._write(7, pod_port="no port"), self._stepped())
        self.step("mend it", lambda: self._write(7, port=20007), self._stepped())
        self.step(BROKEN, lambda: self._replace(9, "{"), self._stepped())
        self.step(MENDED, lambda: self._write(9), self._stepped())
        self.step(
            REFUSED,
            lambda: self._write(8, extra_config="no-such-word"),
            lambda: self.frontend.status()["withheld"] and True,
            then=(lambda: self._write(8, port=20008), self._mended),
        )
        self.step("SIGHUP", self._hang_up, self._stepped())
        self._sum_up()
        self.frontend.stop_daemon()
        self.start("start again")
        self._sum_up()
        self.counted[WHOLE] = {
            f"{name} {what}": number
            for name, numbers in sorted(self._whole.items())
            for what, number in zip(("writes", "bytes"), numbers, strict=True)
        }
        self.counted[WHOLE]["other files opened for writing"] = self._opened

    # Steps

    def start(self, name: str) -> None:
        """Start the daemon; a new one starts counting at zero."""
        self.frontend.start()
        asked = self._settle()
        counts = work(None, self._now())
        # With many services, some sweeps may already be spared.
        self.counted[name] = (
            counts if self.services == MANY else {"queries a sweep": asked, **counts}
        )

    def step(
        self,
        name: str,
        change: Callable[[], object],
        seen: Callable[[], bool],
        then: tuple[Callable[[], object], Callable[[], bool]] | None = None,
    ) -> None:
        """Make a change, wait until the daemon has processed it and is idle, and count.

        With `then`, a second change belongs to the step.
        """
        before = self._now()
        change()
        self.frontend.until(seen, 60)
        if then is not None:
            then[0]()
            self.frontend.until(then[1], 60)
        asked = self._settle()
        after = self._now()
        counts = {"queries a sweep": asked, **work(before, after, by_turn=name in BY_TURN)}
        if name in (IDLE, MANY_IDLE):
            for call in ("steps", "plans", "renders"):
                counts[call] = after.census.calls[call] - before.census.calls[call]
        self.counted[name] = counts

    def _settle(self) -> int:
        """Wait until the reconciler was idle for some sweeps; return the queries of a sweep.

        The minimum is returned: a query is repeated if its response is late.
        """
        turns = -1
        looks: list[tuple[int, int]] = []

        def is_quiet() -> bool:
            nonlocal turns, looks
            before = self._census()
            asked = self._asked()
            after = self._census()
            if after.under_way["steps"] or after.calls["steps"] != turns:
                turns, looks = after.calls["steps"], []
            swept = after.calls["sweeps"]
            if before.under_way["sweeps"] or before.calls["sweeps"] != swept:
                return False
            if after.under_way["sweeps"]:
                return False
            if not looks or looks[-1][0] != swept:
                looks.append((swept, asked))
            return len(looks) > QUIET_SWEEPS and self.frontend.ready()

        self.frontend.until(is_quiet, 60)
        return min(
            -(-(asked - asked_before) // (swept - swept_before))
            for (swept_before, asked_before), (swept, asked) in pairwise(looks)
        )

    def _stepped(self) -> Callable[[], bool]:
        """Return a condition: whether the reconciler has had another turn since now."""
        return lambda: self._census().calls["steps"] > self._steps

    def _swept(self, count: int) -> Callable[[], bool]:
        return lambda: self._census().calls["sweeps"] >= self._sweeps + count

    def _has_pods(self, number: int, count: int) -> Callable[[], bool]:
        def has() -> bool:
            services = {each["name"]: each for each in self.frontend.status()["services"]}
            return len(services[f"s{number}"]["endpoints"]) == count

        return has

    def _spares(self) -> bool:
        return self.frontend.metric("fc_frontend_dns_sweeps_total", kind="spared") >= SPARED

    def _mended(self) -> bool:
        return not self.frontend.status()["withheld"]

    # Changes

    def _file(self, number: int) -> Path:
        return self.frontend.services_d / f"s{number:03}.yaml"

    def _write(self, number: int, *, comment: str = "", port: int = 0, **fields: Any) -> None:
        """Declare a service in a file of its own, which is renamed into place."""
        name = f"s{number}"
        declared = self.frontend.service(name, port or FIRST_PORT + number, check=False, **fields)
        self._replace(number, f"# {comment}\nservices: {json.dumps({name: declared})}\n")

    def _replace(self, number: int, text: str) -> None:
        new = self.frontend.directory / ".service.new"
        new.write_text(text)
        new.rename(self._file(number))

    def _pods(self, number: int, count: int) -> None:
        """Set this number of pods in DNS; they do not run."""
        network, first = f"127.{self.frontend.octet}.{number % 100}", 1 + number // 100 * 40
        service = KubernetesService(
            f"s{number}",
            ports={"http": 8080},
            endpoints=tuple(f"{network}.{first + pod}" for pod in range(count)),
        )

        async def publish() -> None:
            self.frontend.dns.set_service(service)
            self._resolver.set_service(service)

        self.frontend.call(publish())

    def _touch_all(self) -> None:
        for number in range(self.services):
            os.utime(self._file(number))

    def _divert_haproxy(self) -> None:
        """Let HAProxy query another DNS server, so that only the daemon's queries are counted."""
        templates = self.frontend.directory / "templates"
        templates.mkdir()
        usual = packaged_templates()["resolvers.cfg.j2"]
        host, port = self._resolver.address
        own = re.sub(
            r"(?s){% for .*?{% endfor %}", f"    nameserver own udp@{host}:{port}", usual, count=1
        )
        assert own != usual
        (templates / "resolvers.cfg.j2").write_text(own)
        self.frontend.settings["haproxy"]["templates"] = str(templates)

    def _hang_up(self) -> None:
        assert self.frontend.daemon is not None
        self.frontend.daemon.send_signal(signal.SIGHUP)

    # Counts

    def _census(self) -> Census:
        return census(self._socket)

    def _asked(self) -> int:
        """Return the number of queries that the daemon has sent to cluster DNS so far."""

        async def asked() -> int:
            return self.frontend.dns.queries.total()

        return self.frontend.call(asked())

    def _now(self) -> Before:
        now = self._census()
        self._steps, self._sweeps = now.calls["steps"], now.calls["sweeps"]
        return Before(census=now, reloads=int(self.frontend.metric("fc_frontend_reloads_total")))

    def _sum_up(self) -> None:
        now = self._census()
        self._opened += sum(now.opened.values())
        for path, numbers in now.replaced.items():
            known = self._whole.setdefault(path, [0, 0])
            self._whole[path] = [a + b for a, b in zip(known, numbers, strict=True)]


def work(before: Before | None, after: Before, *, by_turn: bool = False) -> Counts:
    """Return the work done between two counts."""
    then, now = before.census if before else None, after.census

    def more(name: str) -> Counts:
        """Return the counts of this kind that increased, and the increase."""
        old = getattr(then, name) if then else {}
        return {
            key: rise
            for key, value in getattr(now, name).items()
            if (rise := value - old.get(key, 0))
        }

    old = then.replaced if then else {}
    written = {
        path: (count - old.get(path, [0, 0])[0], size - old.get(path, [0, 0])[1])
        for path, (count, size) in now.replaced.items()
    }
    executed, rendered, read = more("executed"), more("templates"), more("read")
    counts = {
        "services rendered": rendered.get("service.cfg.j2", 0),
        "service files read": sum(n for path, n in read.items() if path.startswith("services.d/")),
        "haproxy -c": executed.get("haproxy -c", 0),
        "other programs": sum(executed.values()) - executed.get("haproxy -c", 0),
        "reloads": after.reloads - (before.reloads if before else 0),
        "haproxy.cfg written": written.get("haproxy.cfg", (0, 0))[0],
        "haproxy.cfg bytes": written.get("haproxy.cfg", (0, 0))[1],
        "history written": sum(n for path, (n, _) in written.items() if "history/" in path),
        "history bytes": sum(n for path, (_, n) in written.items() if "history/" in path),
    }
    if by_turn:
        turns = now.calls["steps"] - (then.calls["steps"] if then else 0)
        for name in ("services rendered", "service files read", "haproxy -c", "other programs"):
            counts[name] = -(-counts[name] // turns)
    return counts


# Comparison


def differences(expected: Counted, counted: Counted) -> list[tuple[str, str, str, str]]:
    """Return step, count, expected and counted value for all differences."""
    return [
        (step, what, shown(wanted.get(what)), shown(seen.get(what)))
        for step in [*expected, *(step for step in counted if step not in expected)]
        for wanted, seen in [(expected.get(step, {}), counted.get(step, {}))]
        for what in [*wanted, *(what for what in seen if what not in wanted)]
        if not agrees(step, what, wanted.get(what), seen.get(what))
    ]


def agrees(step: str, what: str, expected: int | None, counted: int | None) -> bool:
    """Return whether a count is as expected."""
    if step == WHOLE:
        return (counted or 0) <= (expected or 0) * ROOM
    if expected is None or counted is None:
        return False
    if what.endswith(" bytes"):
        return abs(counted - expected) <= BYTES * expected
    if what == "service files read":
        return counted <= expected + (READ_AGAIN if step in RETRIED else 0)
    if what in ("services rendered", "haproxy -c") and step in BY_TURN:
        return counted <= expected
    return counted == expected


def shown(count: int | None) -> str:
    return "-" if count is None else str(count)


def report(found: Sequence[tuple[str, str, str, str]]) -> str:
    """Return a table of differences, and the remedy."""
    lines = [("step", "count", "expected", "counted"), *found]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join(["The daemon does not do the work that is expected:", *table, REMEDY])


def expectations() -> Counted:
    """Return the committed expectations."""
    found: Counted = json.loads(EXPECTATIONS.read_text())
    return found


def count(version: str) -> Counted:
    """Run the script with one HAProxy."""
    counted: Counted = {}
    with Frontend(binary_of(version)) as frontend:
        with Script(frontend, services=SERVICES, resolve="100ms") as script:
            script.run()
        counted |= script.counted
    with Frontend(binary_of(version)) as frontend:
        with Script(frontend, services=MANY, resolve=MANY_SWEPT) as script:
            script.run_many()
        counted |= script.counted
    return counted


def ceilings(runs: Sequence[Counted]) -> Counted:
    """Return expectations that hold for all runs, with the maximum where counts may differ.

    Raises ValueError if runs differ in counts that must be equal.
    """
    first = runs[0]
    found: Counted = {}
    for step, counts in first.items():
        found[step] = {what: max(run[step].get(what, 0) for run in runs) for what in counts}
    for run in runs:
        if differs := [each for each in differences(found, run) if each[0] != WHOLE]:
            raise ValueError(report(differs))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.counted", description=__doc__)
    parser.add_argument("--write", action="store_true", help="expect what is counted now")
    parser.add_argument("--json", action="store_true", help="print what was counted")
    parser.add_argument("--version", choices=list(BINARIES), default=next(iter(BINARIES)))
    given = parser.parse_args(arguments)
    runs = [count(given.version) for _ in range(RUNS if given.write else 1)]
    if given.json:
        print(json.dumps(runs, indent=1))
    if given.write:
        EXPECTATIONS.write_text(json.dumps(ceilings(runs), indent=1) + "\n")
        return 0
    found = differences(expectations(), runs[0])
    print(report(found) if found else "as expected")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
