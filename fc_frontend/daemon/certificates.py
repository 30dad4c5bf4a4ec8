"""Certificates of frontends in the daemon: loaded into HAProxy when their files change."""

from __future__ import annotations

import asyncio
import time

from fc_frontend.certificates.served import uncovered_problems
from fc_frontend.daemon.tracker import Tracker
from fc_frontend.errors import Problem, Severity, Unavailable
from fc_frontend.haproxy.certificates.bring import Brought, Keeper, tls_hosts
from fc_frontend.haproxy.deploy import reload_again
from fc_frontend.haproxy.lock import deploying
from fc_frontend.observe.log import Log
from fc_frontend.observe.metrics import Metrics
from fc_frontend.plan.model import FrontendSpec, Plan, Settings
from fc_frontend.plan.reasons import ReloadCause

_LOCK_SECONDS = 10.0
_MAX_LOGGED = 20


class CertificateUpkeep:
    """Loads certificates into HAProxy.  `lock` excludes concurrent reloads."""

    def __init__(self, tracker: Tracker, lock: asyncio.Lock, log: Log, metrics: Metrics) -> None:
        self._tracker = tracker
        self._lock = lock
        self._log = log
        self._metrics = metrics
        self.keeper = Keeper()
        self.brought = Brought()
        """The result of the last look."""
        self.problems: tuple[Problem, ...] = ()
        self._reloaded: tuple[str, ...] = ()
        """Certificates for which HAProxy was last reloaded; the same ones cause no other reload."""

    async def bring(self) -> None:
        """Load changed certificates into HAProxy."""
        plan = self._tracker.state.deployed
        if plan is None or not (self.brought.served or _has_tls(plan)):
            return
        try:
            async with self._lock:
                brought = await asyncio.to_thread(self._bring, plan.settings, plan.frontends)
        except Unavailable as exc:
            self._report(exc.problems)
            return
        if brought.served != self.brought.served:
            self._metrics.certificates(brought.served)
        self.brought = brought
        if brought.swapped:
            names = ", ".join(brought.swapped[:_MAX_LOGGED])
            self._log.info("certificates-swapped", count=len(brought.swapped), certificates=names)
        self._report((*brought.problems, *uncovered_problems(brought.served, tls_hosts(plan))))
        await self._reload(plan.settings)

    def _bring(self, settings: Settings, frontends: tuple[FrontendSpec, ...]) -> Brought:
        with deploying(settings.state_directory, _LOCK_SECONDS):
            return self.keeper.bring(settings, frontends)

    def _report(self, problems: tuple[Problem, ...]) -> None:
        """Log new problems."""
        for problem in [each for each in problems if each not in self.problems][:_MAX_LOGGED]:
            write = self._log.error if problem.severity is Severity.ERROR else self._log.warning
            write("certificate-problem", error=problem.statement, remedy=problem.remedy)
        self.problems = problems

    async def _reload(self, settings: Settings) -> None:
        """Reload HAProxy for certificates that are too large to be swapped."""
        unswapped = self.brought.unswapped
        tried, self._reloaded = self._reloaded, unswapped
        if not unswapped or unswapped == tried:
            return

        def reload() -> tuple[bool, float, tuple[Problem, ...]]:
            with deploying(settings.state_directory, _LOCK_SECONDS):
                done = reload_again(settings, output=None)
            return done.ok, done.duration, done.problems

        started = time.monotonic()
        try:
            async with self._lock:
                is_ok, seconds, problems = await asyncio.to_thread(reload)
        except Unavailable as exc:
            is_ok, seconds, problems = False, time.monotonic() - started, exc.problems
        result = "ok" if is_ok else "failed"
        self._metrics.reloaded(ReloadCause.FILE_CHANGED, result, seconds)
        self._log.info(
            "reloaded",
            result=result,
            reason=f"certificates are too large to be swapped: {', '.join(unswapped)}",
        )
        if problems:
            self._report((*self.problems, *problems))


def _has_tls(plan: Plan) -> bool:
    return any(frontend.tls is not None for frontend in plan.frontends)
