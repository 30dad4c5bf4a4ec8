"""Scaling of pods under load, beside plain HAProxy with the documentation's 20 slots.

Pods that leave are removed from DNS 5 s before they stop.  `settled` is the time from the change in
DNS until each pod has received a request, or until the last request to a pod that leaves.  Shares
are counted by the pods from 3 s after the change on, over at least 100 requests for each pod: 1.00
is an even share.  If requests were distributed at random, 100 each would spread by ±10 % (one
standard deviation), and the extremes of 300 pods by some ±28 %; a result within ±20 % is therefore
no coincidence.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from fc_frontend.demo.dns import KubernetesService
from fc_frontend.demo.pods import Pod, PodSet
from fc_frontend.haproxy.master import show_proc
from tests.bench.options import Options
from tests.conftest import binary_of
from tests.support.contenders import HTTP, PlainHaproxy, cluster, tell_failures
from tests.support.frontend import Frontend
from tests.support.load import Clients

STEPS = (3, 40, 5, 300)
SHORT_STEPS = (3, 40, 5, 60)
EACH = 100
"""Requests for each pod, on average."""
LEAVING = 5.0
PATIENCE = 8.0
LONGEST = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The results of one step.  `began` is of the monotonic clock."""

    began: float
    before: int
    pods: int
    served: int
    settled: float | None
    reloads: int
    shares: tuple[float, ...]
    each: float


def rows(options: Options) -> list[dict[str, object]]:
    """Return a row for each HAProxy, contender and step."""
    found = []
    for version in options.versions:
        for contender, balance in (
            ("fc-frontend", "leastconn"),
            ("fc-frontend", "roundrobin"),
            ("plain HAProxy", "leastconn"),
        ):
            found += measure(version, contender, balance, options)
    return found


def measure(
    version: str, contender: str, balance: str, options: Options
) -> list[dict[str, object]]:
    """Return a row for each step."""
    scenario = f"{version}, {contender}, {balance}"
    print(scenario, file=sys.stderr, flush=True)
    counts = SHORT_STEPS if options.quick else STEPS
    with cluster(binary_of(version)) as frontend:
        pods = frontend.scale("shop", counts[0])
        ours = contender == "fc-frontend"
        reloads = (start_ours if ours else start_plain)(frontend, balance)
        half = options.clients // 2
        with Clients(frontend.host, http=HTTP, keep=half, new=half, pause=0.2) as crowd:
            steps = [step(frontend, pods, count, reloads) for count in counts[1:]]
            loaded = crowd.end()
        if ours:
            phases = [(each.began, f"{each.before} → {each.pods}") for each in steps]
            tell_failures(scenario, loaded, phases, frontend)
    found: list[dict[str, object]] = []
    ends = [each.began for each in steps[1:]] + [float("inf")]
    for each, end in zip(steps, ends, strict=True):
        failed = sum(each.began <= at < end for at, _ in loaded.failed_at)
        row: dict[str, object] = {
            "HAProxy": version,
            "contender": contender,
            "balance": balance,
            "pods": f"{each.before} → {each.pods}",
            "served": each.served,
            "settled s": "never" if each.settled is None else f"{each.settled:.2f}",
            "reloads": each.reloads,
            "failed": failed,
            "least share": f"{min(each.shares):.2f}",
            "largest share": f"{max(each.shares):.2f}",
            "requests a pod": round(each.each),
        }
        found.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    print(f"{loaded.requests} requests, {loaded.kinds or 'none failed'}", file=sys.stderr)
    return found


def start_ours(frontend: Frontend, balance: str) -> Callable[[], int]:
    """Start the daemon with default intervals and slots; return a function that counts reloads."""
    frontend.settings["intervals"] = {}
    frontend.settings["services"]["shop"] = frontend.service("shop", HTTP, balance=balance)
    frontend.start()
    socket = frontend.settings["haproxy"]["master_socket"]
    return lambda: show_proc(socket, patience=5).reloads


def start_plain(frontend: Frontend, balance: str) -> Callable[[], int]:
    """Start the documentation's configuration, which balances by leastconn."""
    assert balance == "leastconn"
    plain = PlainHaproxy(frontend)
    plain.start()
    return plain.reloads


def step(frontend: Frontend, pods: PodSet, count: int, reloads: Callable[[], int]) -> Step:
    """Scale to `count` pods and record the distribution of requests."""
    before, reloaded = len(pods.pods), reloads()
    began = time.monotonic()
    if count > before:
        frontend.call(pods.scale(count))
        changed = publish(frontend, pods.pods)
        settled = until_all_are_asked(pods, changed)
    else:
        changed = publish(frontend, pods.pods[:count])
        settled = until_none_is_asked(pods.pods[count:], changed)
        frontend.call(pods.scale(count, grace=5.0))
    time.sleep(max(0.0, changed + 3.0 - time.monotonic()))
    asked = dict(zip(pods.pods, requests(pods.pods), strict=True))
    deadline = time.monotonic() + LONGEST
    while sum(requests(pods.pods)) - sum(asked.values()) < EACH * count:
        assert time.monotonic() < deadline, "the load is too small"
        time.sleep(0.1)
    got = [pod.requests - asked[pod] for pod in pods.pods]
    even = sum(got) / count
    return Step(
        began=began,
        before=before,
        pods=count,
        served=sum(map(bool, got)),
        settled=settled,
        reloads=reloads() - reloaded,
        shares=tuple(each / even for each in got),
        each=even,
    )


def requests(pods: tuple[Pod, ...]) -> list[int]:
    """Return the number of requests that each pod has received."""
    return [pod.requests for pod in pods]


def publish(frontend: Frontend, pods: tuple[Pod, ...]) -> float:
    """Set the pods in cluster DNS; return the time of the change."""
    endpoints = tuple(pod.address[0] for pod in pods)

    async def change() -> float:
        frontend.dns.set_service(
            KubernetesService("shop", ports={"http": 8080}, endpoints=endpoints)
        )
        return time.monotonic()

    return frontend.call(change())


def until_all_are_asked(pods: PodSet, since: float) -> float | None:
    """Return the seconds from `since` until each pod has received a request; None on timeout."""
    before = {pod: pod.requests for pod in pods.pods}
    missing = list(pods.pods)
    while missing := [pod for pod in missing if pod.requests == before[pod]]:
        if time.monotonic() > since + PATIENCE:
            return None
        time.sleep(0.01)
    return time.monotonic() - since


def until_none_is_asked(leaving: tuple[Pod, ...], since: float) -> float:
    """Return the seconds from `since` to the last request, within the time before the pods stop."""
    last, seen = since, sum(requests(leaving))
    while time.monotonic() < since + LEAVING:
        time.sleep(0.01)
        if (now := sum(requests(leaving))) != seen:
            last, seen = time.monotonic(), now
    return last - since
