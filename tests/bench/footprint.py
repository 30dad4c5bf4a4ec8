"""The daemon's memory, and its CPU while nothing changes, as ratios to HAProxy's worker.

Services have three to five pods each and are queried every second, by both.  Cluster DNS is a
process of its own.  RSS counts shared pages in full for each process, PSS its share of them.
"""

from __future__ import annotations

import json
import sys
import time

from tests.bench.options import Options
from tests.conftest import binary_of
from tests.support.many import cpu, many_services, memory, worker

AIMS = {100: (60, 1.0), 5000: (120, 10.0)}
"""Maximum MB, and maximum percent of a core, by number of services."""
SETTLING = 10.0


def rows(options: Options) -> list[dict[str, object]]:
    """Return a row for each number of services."""
    seconds = options.seconds_or(60.0, quick=15.0)
    counts = options.services_or((100, 1000, 5000), quick=(100, 1000))
    return [measure(options.versions[0], count, seconds) for count in counts]


def measure(version: str, count: int, seconds: float) -> dict[str, object]:
    print(f"{version}, {count} services", file=sys.stderr, flush=True)
    with many_services(binary_of(version), count) as (frontend, knot):
        began = time.monotonic()
        daemon = frontend.start(wait=False)
        frontend.until(frontend.ready, 600)
        ready = time.monotonic() - began
        time.sleep(SETTLING)
        pids = {"daemon": daemon.pid, "worker": worker(frontend), "dns": knot.pid}
        queries = frontend.metric("fc_frontend_dns_queries_total")
        before, started = {who: cpu(pid) for who, pid in pids.items()}, time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - started
        share = {who: (cpu(pid) - before[who]) / took * 100 for who, pid in pids.items()}
        asked = (frontend.metric("fc_frontend_dns_queries_total") - queries) / took
        ours, theirs = memory(daemon.pid), memory(pids["worker"])
    most_memory, most_cpu = AIMS.get(count, (None, None))
    row: dict[str, object] = {
        "services": count,
        "ready s": round(ready, 1),
        "RSS MB": round(ours.rss, 1),
        "PSS MB": round(ours.pss, 1),
        "USS MB": round(ours.uss, 1),
        "aim MB": most_memory or "",
        "HAProxy RSS MB": round(theirs.rss, 1),
        "× HAProxy RSS": round(ours.rss / theirs.rss, 2),
        "idle CPU %": round(share["daemon"], 2),
        "aim CPU %": most_cpu or "",
        "HAProxy CPU %": round(share["worker"], 2),
        "× HAProxy CPU": round(share["daemon"] / max(share["worker"], 0.01), 2),
        "DNS CPU %": round(share["dns"], 2),
        "queries/s": round(asked),
    }
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row
