"""Collect what the pages show, once for all simultaneous requests.

Everything that waits for HAProxy or the disk runs in a thread, with timeouts.  Requests that arrive
meanwhile share the result.
"""

from __future__ import annotations

import asyncio
import difflib
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ParamSpec, TypeVar

from fc_frontend.config.declare import Declaration
from fc_frontend.errors import Problem, Unavailable
from fc_frontend.explain.collect import DeclaredView, ask_nameservers, facts_of, seen_of
from fc_frontend.explain.daemon import parse_status
from fc_frontend.explain.facts import NameserverAnswer
from fc_frontend.explain.overview import Seen, overview
from fc_frontend.explain.steps import explain
from fc_frontend.haproxy import history, runtime
from fc_frontend.haproxy.traffic import Sample, rates
from fc_frontend.page.render import LONGEST_TEXT, Asked, missing_page, overview_page, service_page
from fc_frontend.page.values import Board, Detail, PastDeployment, board
from fc_frontend.pipeline import Prepared

P = ParamSpec("P")
T = TypeVar("T")

_FRESH = 1.0
"""Seconds that a result is shown for; at least `_REST` times as long as it took to collect."""
_REST = 4
_LONGEST_REST = 1.0
"""Seconds that one of `_AT_ONCE` lookups pauses afterwards, at most.

The pause is otherwise `_REST` times as long as the lookup.
"""
_TIMEOUT = 2.0
"""Timeout in seconds for each answer of HAProxy."""
_AT_ONCE = 3
_MOST_KEPT = 64
_CHANGES = 10
_WINDOW = 10.0
"""Seconds over which rates are averaged, if the page is requested at least that often."""
_LONGEST_WINDOW = 120.0
"""The age in seconds at which a sample is too old for current rates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonView:
    """The data that the daemon holds; `status` is the document of /status.json."""

    settings_file: str
    declaration: Declaration
    prepared: Prepared
    names: frozenset[str]
    status: Mapping[str, Any]
    queries: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class _Found:
    """The result of one lookup."""

    known: DaemonView
    declared: DeclaredView
    board: Board


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
        return now < self.ended + self.lasts

    @property
    def lasts(self) -> float:
        """Seconds that the result is shown for, once the task has ended."""
        return max(_FRESH, _REST * ((self.ended or self.began) - self.began))


class PageCache:
    """The pages of one frontend, each cached while it is fresh; `host` is the VM's name.

    `know` returns the daemon's view, or None if nothing has been read yet.  Simultaneous requests
    share one call of it, in a thread, and one query of HAProxy and cluster DNS.
    """

    def __init__(self, host: str, know: Callable[[], DaemonView | None]) -> None:
        self.host = host
        self._know = know
        self._entries: dict[str, _Entry] = {}
        self._samples: list[Sample] = []
        self._room = asyncio.Semaphore(_AT_ONCE)
        # Separate threads: if HAProxy hangs, it does not block those of the daemon.
        self._threads = ThreadPoolExecutor(_AT_ONCE, "page")

    async def overview(self, wanted: Asked) -> bytes | None:
        """Return the page at `/`, or None as long as there is nothing to show."""
        found = await self._all()
        if found is None:
            return None
        page: bytes = await self._shared(
            f"?{wanted.page} {wanted.text}",
            partial(self._in_thread, overview_page, found.board, wanted),
        )
        return page

    async def service(self, name: str) -> tuple[bool, bytes] | None:
        """Return whether the service exists, and its page; None as for `overview`."""
        found = await self._all()
        if found is None:
            return None
        known, of_all = found.known, found.board
        fragments = {fragment.name for fragment in known.declaration.fragments}
        names = {line.name for line in of_all.lines} | known.names | fragments
        is_known = name in names
        name = name[:LONGEST_TEXT]
        look = partial(self._in_thread, self._service_page, found, name)
        if not is_known:
            look = partial(self._in_thread, _missing, of_all, name, names)
        page: bytes = await self._shared(f"/{name}", look)
        return is_known, page

    async def close(self) -> None:
        """Cancel all running lookups."""
        tasks = [entry.task for entry in self._entries.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _shared(self, key: str, look: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        now = time.monotonic()
        entry = self._entries.get(key)
        if entry is None or not entry.is_fresh(now):
            if len(self._entries) >= _MOST_KEPT:
                self._entries = {k: e for k, e in self._entries.items() if e.ended is None}
            entry = self._entries[key] = _Entry(asyncio.create_task(self._bounded(look)), now)
            entry.task.add_done_callback(partial(self._done, key, entry))
        # A client that disconnects must not cancel the lookup for the others.
        return await asyncio.shield(entry.task)

    def _done(self, key: str, entry: _Entry, _task: asyncio.Task[Any]) -> None:
        entry.ended = time.monotonic()
        # It is not shown any more after that: with thousands of services, it is tens of megabytes.
        asyncio.get_running_loop().call_later(entry.lasts, self._forget, key, entry)

    def _forget(self, key: str, entry: _Entry) -> None:
        if self._entries.get(key) is entry:
            del self._entries[key]

    async def _bounded(self, look: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        await self._room.acquire()
        began = time.monotonic()
        try:
            return await look()
        finally:
            # A client that requests ever new pages must not keep the daemon busy.
            rest = min(_LONGEST_REST, _REST * (time.monotonic() - began))
            asyncio.get_running_loop().call_later(rest, self._room.release)

    async def _all(self) -> _Found | None:
        found: _Found | None = await self._shared("", self._look)
        return found

    async def _in_thread(
        self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs
    ) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(function, *arguments, **named))

    async def _look(self) -> _Found | None:
        known = await self._in_thread(self._know)
        if known is None:
            return None
        settings = known.declaration.settings
        nameservers, (declared, asked) = await asyncio.gather(
            ask_nameservers(settings.cluster), self._in_thread(_ask_haproxy, known)
        )
        return await self._in_thread(self._board, known, declared, asked, nameservers)

    def _board(
        self,
        known: DaemonView,
        declared: DeclaredView,
        asked: _Haproxy,
        nameservers: tuple[NameserverAnswer, ...],
    ) -> _Found:
        of_traffic, seconds = None, None
        if asked.sample is not None:
            of_traffic, seconds = rates(asked.sample, self._before(asked.sample))
        of_all = board(
            overview(replace(asked.seen, nameservers=nameservers)),
            rates=of_traffic,
            traffic_problem=asked.problem,
            seconds=seconds,
            changes=_changes(known.declaration.settings.state_directory),
            queries=known.queries,
            host=self.host,
            at=time.time(),
        )
        return _Found(replace(known, status={}), declared, of_all)

    def _before(self, sample: Sample) -> Sample | None:
        """Return the sample to compute rates from, if any; keep `sample` for later ones."""
        samples = [one for one in self._samples if sample.at - one.at <= _WINDOW]
        # With only one request every few minutes, the last sample is the only one.
        self._samples = [*(samples or self._samples[-1:]), sample]
        before = self._samples[0]
        is_recent = before is not sample and sample.at - before.at <= _LONGEST_WINDOW
        return before if is_recent and before.pid == sample.pid else None

    def _service_page(self, found: _Found, name: str) -> bytes:
        of_all, declared = found.board, found.declared
        line = next((line for line in of_all.lines if line.name == name), None)
        held = declared.held(name)
        try:
            facts = facts_of(
                found.known.settings_file, name, declared, found.known.prepared, timeout=_TIMEOUT
            )
        except Unavailable as exc:
            problem = exc.problem
            detail = Detail(name=name, board=of_all, line=line, withheld=held, problem=problem)
        else:
            detail = Detail(
                name=name,
                board=of_all,
                line=line,
                withheld=held,
                explanation=explain(facts),
                facts=facts,
            )
        return service_page(detail)


@dataclass(frozen=True, slots=True)
class _Haproxy:
    """HAProxy's answers; `problem` is set if there is no sample of its traffic."""

    seen: Seen
    sample: Sample | None = None
    problem: Problem | None = None


def _ask_haproxy(known: DaemonView) -> tuple[DeclaredView, _Haproxy]:
    daemon = parse_status(known.status)
    declared = DeclaredView(
        declaration=known.declaration,
        prepared=known.prepared,
        daemon=daemon,
        daemon_problem=None,
        withheld=daemon.withheld,
        names=known.names,
    )
    seen = seen_of(declared, (), timeout=_TIMEOUT)
    try:
        traffic = runtime.traffic(
            known.declaration.settings.haproxy.runtime_socket, _TIMEOUT, backends=True
        )
    except Unavailable as exc:
        return declared, _Haproxy(seen, problem=exc.problem)
    pid = seen.worker.pid if seen.worker else None
    return declared, _Haproxy(seen, Sample(at=time.monotonic(), pid=pid, traffic=traffic))


def _missing(of_all: Board, name: str, names: set[str]) -> bytes:
    near = next(iter(difflib.get_close_matches(name, names, 1)), None)
    return missing_page(of_all, name, near)


def _changes(state_directory: str) -> tuple[PastDeployment, ...]:
    """Return the last deployments, newest first."""
    entries = history.entries(state_directory)[-_CHANGES:]
    return tuple(
        PastDeployment(
            id=entry.id,
            at=entry.at,
            outcome=entry.outcome,
            accepted=entry.accepted,
            reasons=entry.reasons,
            seconds=entry.seconds,
        )
        for entry in reversed(entries)
    )
