"""Reloads under load, beside plain HAProxy with the platform documentation's configuration.

Clients keep their connections, open new ones, or hold long ones over TCP.  Each reload is caused by
a real change: fc-frontend starts from a changed file, plain HAProxy is reloaded through its master
socket, as often and at the same pace.  `pace` is the mean time from one reload to the next; where
0.3 s do not suffice, they follow each other as fast as possible.  `gap` is the longest time without
a response to any client, `slowest` the longest wait for one response; `clients' lag` shows how long
the machine delayed the clients themselves.
"""

from __future__ import annotations

import json
import sys
import time

from fc_frontend.demo.dns import Fault
from tests.bench.options import Options
from tests.conftest import binary_of
from tests.support.contenders import (
    HTTP,
    TCP,
    Contender,
    FcFrontend,
    PlainHaproxy,
    cluster,
    tell_failures,
)
from tests.support.frontend import Frontend
from tests.support.load import Clients

PERIOD = 0.3
DNS = ("healthy", "2 s late", "down")
TAKEN = "bind taken"


def rows(options: Options) -> list[dict[str, object]]:
    """Return a row for each HAProxy, number of services, state of DNS and contender."""
    found = []
    for version in options.versions:
        for services in options.services:
            for state in (*DNS, *([TAKEN] if services == min(options.services) else [])):
                ours = measure(
                    FcFrontend, version, services, state, options, options.reloads, PERIOD
                )
                # Plain HAProxy is reloaded as often, at the same pace.
                made, pace = ours["reloads"], ours["pace s"]
                assert isinstance(made, int)
                assert isinstance(pace, float)
                theirs = measure(PlainHaproxy, version, services, state, options, made, pace)
                found += [ours, theirs]
    return found


def measure(
    kind: type[FcFrontend | PlainHaproxy],
    version: str,
    services: int,
    state: str,
    options: Options,
    count: int,
    pace: float,
) -> dict[str, object]:
    """Count requests sent and failed during `count` reloads, one each `pace` seconds."""
    scenario = f"{version}, {kind.name}, {services} services, {state}"
    print(scenario, file=sys.stderr, flush=True)
    with cluster(binary_of(version), services) as frontend:
        frontend.scale("shop", 4)
        contender: Contender = kind(frontend, services)
        contender.start()
        share = options.clients * 9 // 20
        crowd = Clients(
            frontend.host,
            http=HTTP,
            tcp=TCP,
            keep=share,
            new=share,
            long=options.clients - 2 * share,
        )
        before = contender.reloads()
        with crowd:
            fail_dns(frontend, state)
            time.sleep(1)
            phases = [(time.monotonic(), "the clients' start")]
            started = time.monotonic()
            if state == TAKEN:
                phases.append((started, "the reload into a taken bind"))
                contender.take(2.5)
            else:
                repeat(contender, count, pace, started + options.seconds, phases)
            took = time.monotonic() - started
            made = contender.reloads() - before
            if state == TAKEN:
                assert made == (0 if kind is FcFrontend else 1)
            # Late failures, of requests that wait for their timeout, count as well.
            time.sleep(1)
            loaded = crowd.end()
        crashes = contender.crashes()
        if kind is FcFrontend:
            tell_failures(scenario, loaded, phases, frontend)
    row = {
        "HAProxy": version,
        "services": services,
        "DNS": state,
        "contender": kind.name,
        "reloads": made,
        "pace s": round(took / max(1, made), 2),
        "requests": loaded.requests,
        "failed": loaded.failed,
        "gap ms": round(loaded.gap * 1000),
        "slowest ms": round(loaded.slowest * 1000),
        "clients' lag ms": round(loaded.lag * 1000),
        "closed": loaded.closed,
        "crashes": crashes,
        "kinds": loaded.kinds,
    }
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def repeat(
    contender: Contender,
    count: int,
    pace: float,
    deadline: float,
    phases: list[tuple[float, str]],
) -> None:
    """Reload repeatedly; add the time of each change and reload to `phases`."""
    for number in range(count):
        started = time.monotonic()
        if started > deadline:
            return
        phases.append((started, f"the change for reload {number + 1}"))
        contender.reload(number)
        phases.append((time.monotonic(), f"reload {number + 1} was seen"))
        time.sleep(max(0.0, started + pace - time.monotonic()))


def fail_dns(frontend: Frontend, state: str) -> None:
    """Set the state of cluster DNS."""
    frontend.dns.delay = 2.0 if state == "2 s late" else 0.0
    frontend.dns.fault = Fault.SILENT if state == "down" else Fault.NONE
