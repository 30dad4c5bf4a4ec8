"""A hold set by an operator, and restarts of a supervised HAProxy without a new configuration."""

from __future__ import annotations

import asyncio

from fc_frontend.daemon import decide
from fc_frontend.daemon.consent import ConsentWatch
from fc_frontend.daemon.tracker import Tracker
from fc_frontend.errors import Unavailable
from fc_frontend.haproxy import hold, rollback
from fc_frontend.haproxy.deploy import Deployment, Outcome, revive
from fc_frontend.haproxy.hold import Hold
from fc_frontend.haproxy.lock import deploying
from fc_frontend.observe.log import Log
from fc_frontend.plan.model import Haproxy, Settings


class HoldWatch:
    """Watches the record of a hold, and keeps HAProxy on the held configuration."""

    def __init__(
        self, tracker: Tracker, lock: asyncio.Lock, consent: ConsentWatch, log: Log
    ) -> None:
        self._tracker = tracker
        self._lock = lock
        self._consent = consent
        self._log = log

    async def look(self, directory: str) -> bool:
        """Read the record of a hold; return whether it changed."""
        found = await asyncio.to_thread(hold.load, directory)
        before = self._tracker.state
        after = decide.after_hold(before, found)
        self._tracker.become(after)
        if after.held == before.held:
            return False
        if after.held is not None and after.deployed is not None:
            await self._consent.missing(after.deployed.settings, None)
        return True

    async def go_on(self, settings: Settings) -> Deployment | None:
        """Deploy the held configuration if HAProxy runs another one."""
        state = self._tracker.state
        held = state.held
        if held is None or state.running == held.hash:
            return None
        async with self._lock:
            deployment = await asyncio.to_thread(rollback.go_on_holding, settings, held)
        if deployment is None:
            return None
        if deployment.ok:
            self._log.warning(
                "held-again",
                entry=held.id,
                hash=held.hash,
                reason="HAProxy ran another configuration",
            )
        else:
            said = deployment.problems[0]
            self._log.limited("not-held").error(
                "held-not-deployed", hash=held.hash, error=said.message, remedy=said.remedy
            )
        return deployment

    async def revive(self) -> Deployment | None:
        """Start a supervised HAProxy that is down, with the last good configuration."""
        state = self._tracker.state
        declaration = state.declaration or state.read
        if declaration is None:
            return None
        settings = declaration.settings
        deployment = await asyncio.to_thread(
            _revive, settings.state_directory, settings.haproxy, state.held
        )
        if deployment is None:
            return None
        if deployment.ok:
            self._log.info(
                "haproxy-revived", hash=deployment.hash, effect="it runs the last good one"
            )
        else:
            said = deployment.problems[0]
            self._log.limited("not-revived").error(
                "haproxy-not-revived", error=said.message, remedy=said.remedy
            )
        return deployment


def _revive(directory: str, haproxy: Haproxy, held: Hold | None) -> Deployment | None:
    if not haproxy.supervise:
        return None
    try:
        with deploying(directory, haproxy.check_timeout + haproxy.reload_timeout):
            return revive(haproxy, held)
    except Unavailable as exc:
        return Deployment(outcome=Outcome.FAILED, hash="", problems=exc.problems)
