"""Query cluster DNS for all services as the daemon does, and print the cost of each sweep.

`python -m tests.bench.sweeps SETTINGS_FILE SWEEPS`, in a process of its own: JSON, a list of wall
time and CPU time in seconds.  The first sweep determines the kind of each service.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from fc_frontend.config.declare import load
from fc_frontend.discovery.client import DnsClient
from fc_frontend.discovery.resolve import resolve_all
from fc_frontend.discovery.unchanged import UnchangedAnswers
from fc_frontend.plan.model import Answer, Freshness


async def sweeps(settings_file: str, count: int) -> list[tuple[float, float]]:
    """Return the wall time and CPU time of each of `count` sweeps."""
    declaration = load(settings_file)
    settings = declaration.settings
    client = DnsClient(settings.cluster.nameservers)
    unchanged = UnchangedAnswers()
    answers: dict[str, Answer] = {}
    took = []
    for _ in range(count):
        wall, cpu = time.perf_counter(), time.process_time()
        answers = await resolve_all(
            declaration.services,
            settings.cluster,
            client,
            answers,
            now=time.monotonic(),
            hold=settings.intervals.hold,
            unchanged=unchanged,
        )
        took.append((time.perf_counter() - wall, time.process_time() - cpu))
    client.close()
    fresh = sum(answer.freshness is Freshness.FRESH for answer in answers.values())
    assert fresh == len(declaration.services), f"{fresh} of {len(declaration.services)} answered"
    return took


if __name__ == "__main__":
    print(json.dumps(asyncio.run(sweeps(sys.argv[1], int(sys.argv[2])))))
