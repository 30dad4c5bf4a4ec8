"""Detects foreign changes of haproxy.cfg; restores or keeps them as `haproxy.drift` defines."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from fc_frontend import files
from fc_frontend.daemon import decide, transitions
from fc_frontend.daemon.consent import ConsentWatch
from fc_frontend.daemon.decide import Drift
from fc_frontend.daemon.tracker import Tracker
from fc_frontend.errors import Problem, Severity, Unavailable
from fc_frontend.haproxy import history, hold, install, take_over
from fc_frontend.haproxy.lock import deploying
from fc_frontend.haproxy.take_over import NeedsConsent, Replaced
from fc_frontend.observe.log import Log
from fc_frontend.observe.metrics import Metrics
from fc_frontend.plan.model import Settings
from fc_frontend.render.config import Config, config_hash


class DriftWatch:
    """Compares haproxy.cfg with the daemon's configuration.  `lock` prevents deployments."""

    def __init__(
        self,
        tracker: Tracker,
        lock: asyncio.Lock,
        consent: ConsentWatch,
        log: Log,
        metrics: Metrics,
        look_at_hold: Callable[[], Awaitable[bool]],
    ) -> None:
        self._tracker = tracker
        self._lock = lock
        self._consent = consent
        self._log = log
        self._metrics = metrics
        self._look_at_hold = look_at_hold
        self._seen: tuple[int, int, int] | None = None

    def look_anew(self) -> None:
        """Read the file at the next look, even if its signature is unchanged."""
        self._seen = None

    async def look(self) -> None:
        """Restore haproxy.cfg if others changed it, or keep the change with `drift: adopt`.

        HAProxy keeps its running configuration: a wrong file would take effect at its next start.
        """
        async with self._lock:
            state = self._tracker.state
            if state.config is None or state.deployed is None or state.held is not None:
                return
            settings, config = state.deployed.settings, state.config
            file = settings.haproxy.config_file
            signature = await asyncio.to_thread(files.signature, file)
            if signature is not None and signature == self._seen:
                return
            try:
                found = await asyncio.to_thread(install.read, file)
                self._seen = signature
                drift = decide.drift(state, found)
                self._left(drift is not Drift.NONE)
                # A rollback may have written the file since the last look at the hold.
                if drift is Drift.NONE:
                    if state.is_in_sync:
                        await self._consent.missing(settings, None)
                elif not await self._look_at_hold() and self._tracker.state.held is None:
                    await self._mend(settings, config, drift)
            except NeedsConsent as exc:
                problem = replace(exc.problem, severity=Severity.WARNING)
                await self._consent.missing(settings, problem)
            except Unavailable as exc:
                self._seen = None
                self._log.limited("drift").warning(
                    "drift-not-restored",
                    error=exc.problems[0].message,
                    remedy=exc.problems[0].remedy,
                )

    def _left(self, is_left: bool) -> None:
        self._tracker.become(replace(self._tracker.state, is_drift_left=is_left))

    async def _mend(self, settings: Settings, config: Config, drift: Drift) -> None:
        file, running = settings.haproxy.config_file, self._tracker.state.running
        if await asyncio.to_thread(_is_deployed_by_command, settings):
            # The next look at HAProxy detects the other configuration; a step handles it.
            self._seen = None
            self._left(False)
            return
        self._metrics.drift_seen()
        if drift is Drift.LEAVE:
            effect = "left until the configuration changes"
            self._log.warning("config-drift", file=file, effect=effect)
            return
        problem = await asyncio.to_thread(_obstacle, settings, config, running)
        if problem is not None:
            effect = "kept, because fc-frontend did not write it"
            self._log.warning("config-drift", file=file, effect=effect)
            raise NeedsConsent(problem)
        self._log.warning("config-drift", file=file, effect="restored")
        replaced = await asyncio.to_thread(_restore, settings, config, running)
        self._tracker.log(transitions.replaced(replaced))
        await self._consent.missing(settings, None)
        # The next look detects another edit made meanwhile.
        self._seen = None
        self._left(False)

    async def look_at_consent(self) -> bool:
        """Return whether a step is due: consent to replace haproxy.cfg may have been given."""
        if not await self._consent.changed():
            return False
        if not self._tracker.state.is_in_sync:
            return True
        self._seen = None
        await self.look()
        return False


def _obstacle(settings: Settings, config: Config, running: str | None) -> Problem | None:
    """Return why haproxy.cfg may not be written again, or None if it may.

    Raises `Unavailable`.
    """
    worker = take_over.worker_of(settings, running, (config.hash,))
    data = config.text.encode("utf-8", "surrogateescape")
    return take_over.obstacle(settings, data, worker, (config.hash,))


def _is_deployed_by_command(settings: Settings) -> bool:
    """Return whether haproxy.cfg is the last deployment in the history, as `apply` just made it.

    Waits for a running deployment.  Raises `Unavailable` if the file cannot be read.
    """
    haproxy, directory = settings.haproxy, settings.state_directory
    with deploying(directory, haproxy.check_timeout + haproxy.reload_timeout):
        installed = install.read(haproxy.config_file)
        newest = next(iter(reversed(history.deployments(directory))), None)
    if installed is None or newest is None or not newest.accepted:
        return False
    return config_hash(installed.decode("utf-8", "surrogateescape")) == newest.hash


def _restore(settings: Settings, config: Config, running: str | None) -> Replaced | None:
    """Write haproxy.cfg again; return None if something is held.

    Raises as `take_over.install` does.
    """
    haproxy, directory = settings.haproxy, settings.state_directory
    with deploying(directory, haproxy.check_timeout + haproxy.reload_timeout):
        if hold.load(directory) is not None:
            return None
        data = config.text.encode("utf-8", "surrogateescape")
        worker = take_over.worker_of(settings, running, (config.hash,))
        replaced = take_over.install(settings, data, worker, known=(config.hash,))
        take_over.finish(settings, data)
        return replaced
