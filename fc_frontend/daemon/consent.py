"""A foreign haproxy.cfg that the daemon may not replace: reported once, and watched."""

from __future__ import annotations

import asyncio

from fc_frontend import files
from fc_frontend.errors import Problem
from fc_frontend.haproxy import consent
from fc_frontend.observe.log import Log
from fc_frontend.observe.metrics import Metrics
from fc_frontend.plan.model import Settings

_Signature = tuple[object, object]


class ConsentWatch:
    """Tracks whether consent is missing, and whether that may have changed."""

    def __init__(self, log: Log, metrics: Metrics) -> None:
        self._log = log
        self._metrics = metrics
        self._seen: _Signature | None = None
        self._places: tuple[str, str] = ("", "")
        self.problem: Problem | None = None
        """The reason why haproxy.cfg is not replaced, with a remedy; None if it may be."""

    async def missing(self, settings: Settings, problem: Problem | None) -> None:
        """Record `problem`, which reports missing consent; None if it is not missing."""
        if problem is not None and problem != self.problem:
            self._log.warning(
                "needs-consent",
                file=problem.file,
                reason=problem.message,
                remedy=problem.remedy,
                effect="the file and HAProxy stay as they are",
            )
        elif problem is None and self.problem is not None:
            self._log.info("consent-given", file=self.problem.file)
        self.problem = problem
        self._metrics.needs_consent(problem is not None)
        self._places = (settings.haproxy.config_file, consent.path(settings.state_directory))
        self._seen = None if problem is None else await asyncio.to_thread(self._signature)

    async def changed(self) -> bool:
        """Return True, once, if the file or the record changed while consent is missing."""
        if self._seen is None:
            return False
        before, self._seen = self._seen, await asyncio.to_thread(self._signature)
        return self._seen != before

    def _signature(self) -> _Signature:
        file, record = self._places
        return files.signature(file), files.signature(record)
