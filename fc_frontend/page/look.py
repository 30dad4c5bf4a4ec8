"""Find out what the pages show, once for all who look at the same time.

Everything that waits for HAProxy or the disk runs in a thread, with time limits; whoever looks
meanwhile shares what is found.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fc_frontend.errors import Problem, Unavailable
from fc_frontend.explain.collect import Declared, ask_nameservers, facts_of, seen_of
from fc_frontend.explain.facts import Nameserver
from fc_frontend.explain.overview import Overview, overview
from fc_frontend.explain.steps import explain
from fc_frontend.haproxy import history, runtime
from fc_frontend.haproxy.traffic import Traffic
from fc_frontend.page.values import Board, Change, Detail, board, error_rates
from fc_frontend.pipeline import Prepared

_FRESH = 1.0
"""Seconds that what was found is shown for; if finding it took long, `_REST` times as long."""
_REST = 4
_TIMEOUT = 2.0
"""Seconds for each answer of HAProxy."""
_AT_ONCE = 4
_MOST_KEPT = 64
_CHANGES = 10
_LONGEST_SAMPLE = 120.0
"""Seconds after which an older sample tells nothing of now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the daemon has at hand."""

    settings_file: str
    declared: Declared
    prepared: Prepared
    queries: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    worker: int | None
    traffic: Mapping[str, Traffic]


@dataclass(slots=True)
class _Entry:
    task: asyncio.Task[Any]
    began: float
    ended: float | None = None

    def is_fresh(self, now: float) -> bool:
        if self.ended is None:
            return True
        if self.task.cancelled() or self.task.exception():
            return False
        return now < self.ended + max(_FRESH, _REST * (self.ended - self.began))


@dataclass(slots=True)
class Looker:
    """Looks for the pages of one frontend; `host` is the VM's name."""

    host: str
    _entries: dict[str, _Entry] = field(default_factory=dict)
    _sample: _Sample | None = None
    _room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    async def board(self, known: Known) -> Board:
        """How the whole frontend is."""
        found: Board = await self._shared("", partial(self._look, known))
        return found

    async def detail(self, known: Known, name: str) -> Detail:
        """How one service is."""
        of_all = await self.board(known)
        found: Detail = await self._shared(f"/{name}", partial(self._look_at, known, name, of_all))
        return found

    async def close(self) -> None:
        """End what is under way."""
        tasks = [entry.task for entry in self._entries.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _shared(self, key: str, look: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        now = time.monotonic()
        entry = self._entries.get(key)
        if entry is None or not entry.is_fresh(now):
            if len(self._entries) >= _MOST_KEPT:
                self._entries = {k: e for k, e in self._entries.items() if e.ended is None}
            entry = self._entries[key] = _Entry(asyncio.create_task(self._bounded(look)), now)
            entry.task.add_done_callback(lambda _task: setattr(entry, "ended", time.monotonic()))
        # Whoever goes away leaves the others theirs.
        return await asyncio.shield(entry.task)

    async def _bounded(self, look: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        async with self._room:
            return await look()

    async def _look(self, known: Known) -> Board:
        settings = known.declared.declaration.settings
        nameservers = await ask_nameservers(settings.cluster)
        of_all, traffic, problem = await asyncio.to_thread(_look_at_haproxy, known, nameservers)
        changes = await asyncio.to_thread(_changes, settings.state_directory)
        worker = of_all.seen.worker
        sample = None
        if traffic is not None:
            sample = _Sample(time.monotonic(), worker.pid if worker else None, traffic)
        errors, seconds = self._errors(sample)
        return board(
            of_all,
            traffic=traffic,
            traffic_problem=problem,
            errors=errors,
            seconds=seconds,
            changes=changes,
            queries=known.queries,
            host=self.host,
            at=time.time(),
        )

    def _errors(self, sample: _Sample | None) -> tuple[dict[str, float] | None, float | None]:
        """Errors a second since the last look, if the same worker was counting then."""
        before, self._sample = self._sample, sample
        if before is None or sample is None or before.worker != sample.worker:
            return None, None
        seconds = sample.at - before.at
        if not 0 < seconds <= _LONGEST_SAMPLE:
            return None, None
        return error_rates(before.traffic, sample.traffic, seconds), seconds

    async def _look_at(self, known: Known, name: str, of_all: Board) -> Detail:
        line = next((line for line in of_all.lines if line.name == name), None)
        held = known.declared.held(name)
        try:
            facts = await asyncio.to_thread(
                facts_of,
                known.settings_file,
                name,
                known.declared,
                known.prepared,
                timeout=_TIMEOUT,
            )
        except Unavailable as exc:
            problem = exc.problems[0]
            return Detail(name=name, board=of_all, line=line, quarantined=held, problem=problem)
        return Detail(
            name=name,
            board=of_all,
            line=line,
            quarantined=held,
            explanation=explain(facts),
            facts=facts,
        )


def _look_at_haproxy(
    known: Known, nameservers: tuple[Nameserver, ...]
) -> tuple[Overview, dict[str, Traffic] | None, Problem | None]:
    of_all = overview(seen_of(known.declared, nameservers, timeout=_TIMEOUT))
    haproxy = known.declared.declaration.settings.haproxy
    try:
        return of_all, runtime.traffic(haproxy.runtime_socket, _TIMEOUT), None
    except Unavailable as exc:
        return of_all, None, exc.problems[0]


def _changes(state_directory: str) -> tuple[Change, ...]:
    """The last deployments, the newest first."""
    entries = history.entries(state_directory)[-_CHANGES:]
    return tuple(
        Change(
            id=entry.id,
            at=entry.at,
            outcome=entry.outcome,
            accepted=entry.accepted,
            reasons=entry.reasons,
            seconds=entry.seconds,
        )
        for entry in reversed(entries)
    )
