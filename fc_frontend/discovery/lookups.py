"""Look up many services, so that slow lookups do not delay the answers of others.

A sweep returns the answers so far; lookups that still wait for cluster DNS continue in the
background.  Their services keep their previous answers until a later sweep returns the new ones.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from fc_frontend.discovery.agreement import united
from fc_frontend.discovery.budget import SERVICES_AT_ONCE, ServiceLookups
from fc_frontend.discovery.client import DnsClient
from fc_frontend.discovery.resolve import held, resolve_within_limits
from fc_frontend.discovery.unchanged import UnchangedAnswers
from fc_frontend.plan.model import Answer, Cluster, Freshness, Resolution, ServiceSpec

SWEEP_QUIET = 0.3
"""Seconds without an answer for any service, after which a sweep ends."""
NEW_QUIET = 1.2
"""The same for new services: a lost query is repeated after a second."""
LONGEST = 2.0
"""The maximum duration of a sweep in seconds, and as much again for each `_EACH` services."""
_EACH = 1000
_GRACE = 0.2
"""Seconds that the other nameservers have to respond after the first one."""
_SLOW_AT_ONCE = 16
_SLOW_FOR = 60.0
"""Seconds for which a service is looked up separately after its lookups failed or were slow."""


@dataclass(frozen=True, slots=True)
class Clients:
    """The clients for cluster DNS.

    `slow` has sockets and limits of its own, for services whose lookups failed or took too long:
    even many of them do not affect the others.  `each` has one client per nameserver if there are
    several: it is for services whose slots fc-frontend fills.
    """

    usual: DnsClient
    slow: DnsClient
    each: tuple[DnsClient, ...] = ()

    def close(self) -> None:
        """Close all sockets."""
        for client in (self.usual, self.slow, *self.each):
            client.close()


@dataclass(frozen=True, slots=True)
class _Answered:
    """The answers of one nameserver or of each, and the lookups of the first."""

    answers: tuple[Answer, ...]
    lookups: ServiceLookups


@dataclass(slots=True)
class _UnderWay:
    spec: ServiceSpec
    previous: Answer | None
    task: asyncio.Task[_Answered]


class Lookups:
    """The lookups in progress, for the same clients and cluster settings."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._for: tuple[Clients, Cluster] | None = None
        self._lane = asyncio.Semaphore(SERVICES_AT_ONCE)
        self._slow_lane = asyncio.Semaphore(_SLOW_AT_ONCE)
        self._unchanged = UnchangedAnswers()
        self._turn = asyncio.Lock()
        self._under_way: dict[str, _UnderWay] = {}
        self._running = 0
        self._progress = asyncio.Event()
        self._slow_until: dict[str, float] = {}
        self._differing_since: dict[str, float] = {}

    @property
    def pending(self) -> frozenset[str]:
        """The services whose lookups are still in progress."""
        return frozenset(self._under_way)

    async def answers(
        self,
        specs: Iterable[ServiceSpec],
        cluster: Cluster,
        clients: Clients,
        previous: Resolution,
        *,
        hold: float,
        is_new: bool = False,
    ) -> dict[str, Answer]:
        """Return the answers that arrived in time, by service; equal ones mean no change.

        With `is_new`, these services have no answers yet, and the sweep waits a little longer.
        A sudden loss is ignored for `hold` seconds.
        """
        async with self._turn:
            return await self._answers(
                {spec.name: spec for spec in specs}, cluster, clients, previous, hold, is_new=is_new
            )

    async def _answers(
        self,
        listed: dict[str, ServiceSpec],
        cluster: Cluster,
        clients: Clients,
        previous: Resolution,
        hold: float,
        *,
        is_new: bool,
    ) -> dict[str, Answer]:
        if self._for is None or self._for[0] is not clients or self._for[1] != cluster:
            self.close()
            self._for = clients, cluster
        for name, each in tuple(self._under_way.items()):
            if name in listed and listed[name] != each.spec:
                self._cancel(name)
        idle = [spec for spec in listed.values() if spec.name not in self._under_way]
        settled = {}
        if not is_new:
            of_one = [spec for spec in idle if not _asks_each(clients, previous.get(spec.name))]
            settled = await self._unchanged.settled(of_one, cluster, clients.usual, previous)
        for spec in idle:
            if spec.name not in settled:
                self._begin(spec, cluster, clients, previous.get(spec.name))
        await self._wait(NEW_QUIET if is_new else SWEEP_QUIET, len(listed))
        if not is_new:
            for name in [n for n, each in self._under_way.items() if each.task.done()]:
                if name not in listed:
                    del self._under_way[name]
        found = self._collected(listed, previous, cluster, hold)
        return {name: answer for name in listed if (answer := settled.get(name) or found.get(name))}

    def close(self) -> None:
        """Cancel all lookups in progress."""
        for name in tuple(self._under_way):
            self._cancel(name)

    def _begin(
        self, spec: ServiceSpec, cluster: Cluster, clients: Clients, previous: Answer | None
    ) -> None:
        is_slow = self._slow_until.get(spec.name, 0.0) > self._clock()
        lane = self._slow_lane if is_slow else self._lane
        asked = clients.each
        if not _asks_each(clients, previous):
            asked = (clients.slow if is_slow else clients.usual,)

        async def resolved() -> _Answered:
            async with lane:
                return await _resolved(spec, cluster, asked, previous)

        task = asyncio.create_task(resolved())
        task.add_done_callback(self._ended)
        self._running += 1
        self._under_way[spec.name] = _UnderWay(spec, previous, task)

    def _ended(self, _task: asyncio.Task[_Answered]) -> None:
        self._running -= 1
        self._progress.set()

    async def _wait(self, quiet: float, services: int) -> None:
        """Wait for answers, but not for services that do not respond."""
        deadline = self._clock() + LONGEST * (1 + services / _EACH)
        while self._running and (remaining := deadline - self._clock()) > 0:
            self._progress.clear()
            try:
                async with asyncio.timeout(min(quiet, remaining)):
                    await self._progress.wait()
            except TimeoutError:
                return

    def _collected(
        self,
        listed: dict[str, ServiceSpec],
        previous: Resolution,
        cluster: Cluster,
        hold: float,
    ) -> dict[str, Answer]:
        """Return the answers of completed lookups, for services that are still listed."""
        now = self._clock()
        found: dict[str, Answer] = {}
        for name, each in tuple(self._under_way.items()):
            if name not in listed or not each.task.done():
                continue
            del self._under_way[name]
            answered = each.task.result()
            answer = self._agreed(name, answered.answers, now, hold)
            if answer.freshness is not Freshness.FRESH:
                self._slow_until[name] = now + _SLOW_FOR
            before = previous.get(name)
            if before is not each.previous and before is not None:
                # HAProxy has received other slots in the meantime.
                answer = replace(answer, slots=before.slots, by_runtime=before.by_runtime)
            found[name] = held(before, answer, cluster.sudden_loss, now, hold)
            if len(answered.answers) == 1:
                self._unchanged.learn(each.spec, found[name], answered.lookups)
        self._slow_until = {n: until for n, until in self._slow_until.items() if until > now}
        return found

    def _agreed(self, name: str, answers: Sequence[Answer], now: float, hold: float) -> Answer:
        """Return the union of all nameservers' answers for `hold` seconds, then the first one."""
        first = next((a for a in answers if a.freshness is Freshness.FRESH), answers[0])
        union = united(answers)
        if union is first:
            self._differing_since.pop(name, None)
            return first
        since = self._differing_since.setdefault(name, now)
        return union if now - since < hold else first

    def _cancel(self, name: str) -> None:
        self._under_way.pop(name).task.cancel()


async def _resolved(
    spec: ServiceSpec, cluster: Cluster, clients: Sequence[DnsClient], previous: Answer | None
) -> _Answered:
    """Return the answers of each client; after a good one, the others have `_GRACE` to respond."""
    tasks = [
        asyncio.create_task(resolve_within_limits(spec, cluster, client, previous))
        for client in clients
    ]
    waiting = set(tasks)
    try:
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if any(task.result()[0].freshness is Freshness.FRESH for task in done):
                break
        if waiting:
            _, waiting = await asyncio.wait(waiting, timeout=_GRACE)
    finally:
        for task in waiting:
            task.cancel()
    found = [task.result() for task in tasks if task not in waiting]
    return _Answered(tuple(answer for answer, _ in found), found[0][1])


def _asks_each(clients: Clients, previous: Answer | None) -> bool:
    """Return whether to query all nameservers: several exist, and fc-frontend fills the slots."""
    return bool(clients.each) and previous is not None and previous.by_runtime
