"""How cost grows with the number of services, and HAProxy's own share of it.

Each figure of fc-frontend includes HAProxy's part in it; the column `of it HAProxy` is the time of
HAProxy alone for the same file: `haproxy -c`, and a reload, triggered by a bare command on the
master socket.  Checks and applies are commands, measured from start to end.  The change of one
service is a change of its bind's port, measured from the file to the first connection to the new
port, debounce (200 ms) included.  Sweeps are the second and following ones.  Figures that this
machine does not permit, such as more listeners than HAProxy may have file descriptors, are left
empty, with the reason in the last column.
"""

from __future__ import annotations

import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from fc_frontend.haproxy.reload import reload_by_master
from fc_frontend.haproxy.version import binary_version
from tests.bench.options import Options
from tests.conftest import RealHaproxy, binary_of
from tests.support.contenders import takes
from tests.support.frontend import Frontend
from tests.support.many import (
    EACH_FILE,
    FIRST_PORT,
    Ran,
    cpu,
    declare,
    many_services,
    memory,
    ran,
    worker,
)

COUNTS = (10, 100, 1000, 5000, 20000)
RESERVE = 500
"""File descriptors that HAProxy needs in addition to listeners."""
CURVES = {
    "check": "check s",
    "apply": "apply s",
    "sweep": "sweep CPU s",
    "one change": "one change s",
    "haproxy -c": "haproxy -c s",
    "reload": "HAProxy's reload s",
}
MEMORY_CURVES = {"daemon's RSS": "RSS MB", "HAProxy's RSS": "HAProxy RSS MB"}
WIDTH, HEIGHT = 60, 18


def rows(options: Options) -> list[dict[str, object]]:
    """Return a row for each number of services."""
    found = []
    rounds = 2 if options.quick else 5
    for count in options.services_or(COUNTS, quick=COUNTS[:3]):
        print(f"{options.versions[0]}, {count} services", file=sys.stderr, flush=True)
        row = measure(options.versions[0], count, rounds)
        print(json.dumps(row), file=sys.stderr, flush=True)
        found.append(row)
    return found


def measure(version: str, count: int, rounds: int) -> dict[str, object]:
    """Return all figures for one number of services."""
    binary = binary_of(version)
    load = os.getloadavg()[0]
    with many_services(binary, count) as (frontend, _):
        command = [sys.executable, "-m", "fc_frontend"]
        config = ["--config", str(frontend.config)]
        rendered = frontend.directory / "rendered.cfg"
        log = frontend.directory / "command.log"
        done = ran([*command, "render", *config, "--output", str(rendered)], log)
        assert done.code == 0, done.said
        checks = [ran([*command, "check", *config], log) for _ in range(min(3, rounds))]
        judged = [ran([binary, "-c", "-f", str(rendered)], log) for _ in range(min(3, rounds))]
        swept = json.loads(
            subprocess.run(
                [sys.executable, "-m", "tests.bench.sweeps", str(frontend.config), str(rounds + 1)],
                check=True,
                capture_output=True,
            ).stdout
        )[1:]
        check, judge = (median_run(runs) for runs in (checks, judged))
        row: dict[str, object] = {
            "services": count,
            "check s": check.wall,
            "check CPU s": check.cpu,
            "haproxy -c s": judge.wall,
            "haproxy -c CPU s": judge.cpu,
            "× haproxy -c": check.wall / judge.wall,
            "sweep s": statistics.median(wall for wall, _ in swept),
            "sweep CPU s": statistics.median(used for _, used in swept),
        }
        row |= dict.fromkeys(
            (
                "apply s", "HAProxy's reload s", "one change s", "of it HAProxy s",
                "one change CPU s", "RSS MB", "HAProxy RSS MB",
            )
        )  # fmt: skip
        row["load"] = load
        row["note"] = "" if all(r.code == 0 for r in (*checks, *judged)) else checks[0].said[-200:]
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if count + RESERVE > limit:
            row["note"] = f"HAProxy cannot start: {count} listeners, {limit} descriptors"
        else:
            row |= applied(
                frontend, [*command, "apply", "--take-over", *config], count, rounds, judge.wall
            )
    return {name: shown(value) for name, value in row.items()}


def shown(value: object) -> object:
    """Round to three significant digits."""
    if isinstance(value, float):
        return round(value, max(0, 2 - math.floor(math.log10(abs(value))))) if value else 0.0
    return "" if value is None else value


def median_run(runs: Sequence[Ran]) -> Ran:
    """Return the run of median wall time."""
    return sorted(runs, key=lambda run: run.wall)[len(runs) // 2]


def applied(
    frontend: Frontend, apply: Sequence[str], count: int, rounds: int, judge: float
) -> Mapping[str, object]:
    """Measure apply and the daemon, with a HAProxy that the benchmark started."""
    haproxy = RealHaproxy(frontend.binary, frontend.directory)
    frontend.settings["haproxy"]["supervise"] = False
    frontend.settings["intervals"]["reload"] = 0
    frontend.write()
    version = binary_version(frontend.binary)
    try:
        haproxy.start()
        done = ran(apply, frontend.directory / "apply.log")
        if done.code != 0:
            return {"note": "apply: " + " ".join(done.said.split())[-200:]}
        daemon = frontend.start(wait=False)
        frontend.until(frontend.ready, 600)
        time.sleep(3)
        before, idle = cpu(daemon.pid), 5.0
        time.sleep(idle)
        share = (cpu(daemon.pid) - before) / idle
        changes = [change(frontend, daemon.pid, count, turn, share) for turn in range(rounds)]
        ours, theirs = memory(daemon.pid), memory(worker(frontend))
        frontend.stop_daemon()
        reloads = []
        for _ in range(rounds):
            before = time.perf_counter()
            assert reload_by_master(haproxy.master_socket, version, 120).ok
            reloads.append(time.perf_counter() - before)
    finally:
        frontend.stop_daemon()
        haproxy.end()
    reload = statistics.median(reloads)
    return {
        "apply s": done.wall,
        "HAProxy's reload s": reload,
        "one change s": statistics.median(took for took, _ in changes),
        "of it HAProxy s": judge + reload,
        "one change CPU s": statistics.median(used for _, used in changes),
        "RSS MB": ours.rss,
        "HAProxy RSS MB": theirs.rss,
    }


def change(frontend: Frontend, pid: int, count: int, turn: int, idle: float) -> tuple[float, float]:
    """Change a service's port and wait for it; return the seconds and the daemon's CPU time.

    `idle` is the share of a core that the idle daemon uses, which is subtracted.
    """
    port = FIRST_PORT + count + 1 + turn
    names = range(min(count, EACH_FILE))
    before = cpu(pid)
    written = declare(frontend, names, changed={names[-1]: port})
    while not takes(frontend.host, port):
        assert time.monotonic() < written + 120, frontend.log_text()[-3000:]
        time.sleep(0.005)
    took = time.monotonic() - written
    frontend.until(frontend.ready, 60)
    # The daemon's work after the reload belongs to the change.
    time.sleep(0.5)
    used = cpu(pid) - before - idle * (time.monotonic() - written)
    time.sleep(2)
    return took, max(0.0, used)


def plot(rows: Sequence[Mapping[str, object]]) -> str:
    """Plot seconds, and MB, by number of services, with logarithmic axes."""
    return "\n\n".join(
        chart(rows, curves, unit) for curves, unit in ((CURVES, "s"), (MEMORY_CURVES, "MB"))
    )


def chart(rows: Sequence[Mapping[str, object]], curves: Mapping[str, str], unit: str) -> str:
    """Return a chart as text: a letter for each curve; `*` where two meet."""
    marks = "abcdefgh"
    points = [
        (mark, math.log10(x), math.log10(y))
        for mark, column in zip(marks, curves.values(), strict=False)
        for row in rows
        if isinstance(x := row["services"], int)
        and isinstance(y := row[column], (int, float))
        and y > 0
    ]
    if not points:
        return ""
    left, right = bounds([x for _, x, _ in points])
    low, high = bounds([y for _, _, y in points])
    grid = [[" "] * (WIDTH + 1) for _ in range(HEIGHT + 1)]
    place = scale(left, right, WIDTH), scale(low, high, HEIGHT)
    for mark, x, y in points:
        line, column = HEIGHT - place[1](y), place[0](x)
        grid[line][column] = mark if grid[line][column] in (" ", mark) else "*"
    ticks = {HEIGHT - place[1](power): f"{10.0**power:g} {unit}" for power in range(low, high + 1)}
    lines = [f"{ticks.get(n, ''):>10} |{''.join(line)}" for n, line in enumerate(grid)]
    below = [" "] * (WIDTH + 12)
    for power in range(left, right + 1):
        label = f"{10**power:,}"
        below[place[0](power) : place[0](power) + len(label)] = label
    lines += [f"{'':>10} +{'-' * (WIDTH + 1)}", f"{'':>12}{''.join(below).rstrip()} services"]
    lines += [
        f"{'':>12}" + ", ".join(f"{m} {name}" for m, name in zip(marks, curves, strict=False))
    ]
    return "\n".join(line.rstrip() for line in lines)


def bounds(values: Sequence[float]) -> tuple[int, int]:
    """Return the exponents of the powers of ten that enclose the values, given as logarithms."""
    low, high = math.floor(min(values)), math.ceil(max(values))
    return low, max(high, low + 1)


def scale(low: int, high: int, size: int) -> Callable[[float], int]:
    """Return a function that maps a value to its place on an axis."""
    return lambda value: round((value - low) / (high - low) * size)
