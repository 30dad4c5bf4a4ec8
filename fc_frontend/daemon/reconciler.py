"""Keep HAProxy in step with files and discovery: one step, run on every change.

    files ─► changes ─────┐
                          ├─► propose ─► the text that runs? nothing : roll out
    discovery ─► answers ─┘

The reconciler has no loop of its own; `daemon.service` decides when a step is due.  Refused changes
are withheld, and all other changes are deployed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from fc_frontend.config.declare import Declaration, declare
from fc_frontend.config.host import host_addresses
from fc_frontend.config.loader import Sources, is_unchanged, read, state_directory
from fc_frontend.daemon import decide, transitions
from fc_frontend.daemon.answers import Answers
from fc_frontend.daemon.certificates import CertificateUpkeep
from fc_frontend.daemon.cluster_dns import Sweeper, lookup_problems
from fc_frontend.daemon.consent import ConsentWatch
from fc_frontend.daemon.drift import DriftWatch
from fc_frontend.daemon.holding import HoldWatch
from fc_frontend.daemon.load_balancers import LoadBalancerSource
from fc_frontend.daemon.pod_sources import PodSources
from fc_frontend.daemon.records import Records
from fc_frontend.daemon.removal import RemovalWait
from fc_frontend.daemon.servers import ServerUpkeep
from fc_frontend.daemon.service_status import StatusWriter
from fc_frontend.daemon.state import NAMED, Attempted, DaemonState, Trigger
from fc_frontend.daemon.tracker import Tracker
from fc_frontend.desired.isolate import Withheld
from fc_frontend.discovery.source import PodDiscovery
from fc_frontend.errors import Cause, Problem
from fc_frontend.haproxy.deploy import Deployment, Outcome
from fc_frontend.haproxy.patience import Patience
from fc_frontend.model.api_state import ApiState
from fc_frontend.model.units import ENVIRONMENT, SETTINGS, UnitId, UnitKind
from fc_frontend.observe.log import Log
from fc_frontend.observe.metrics import Metrics
from fc_frontend.pipeline import (
    Base,
    Candidate,
    Check,
    Prepared,
    ProposalMemo,
    lost_settings,
    no_check,
    propose,
    settings_now,
    with_slots,
)
from fc_frontend.plan.model import Intervals, Resolution, Settings
from fc_frontend.plan.reasons import Reason, ReloadCause, reasons
from fc_frontend.render.file_marks import changed_files
from fc_frontend.rollout import Options, Rollout, roll_out
from fc_frontend.stored import question

_WITHOUT_FILES = NAMED - {Trigger.FILES}
_FILES_CHANGED = frozenset((Trigger.START, Trigger.FILES, Trigger.SIGHUP, Trigger.RESCAN))


class Reconciler:
    """The step that brings HAProxy to the declared configuration, and its helpers."""

    def __init__(
        self,
        settings_file: str,
        log: Log,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
        discovery: PodDiscovery | None = None,
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        """Create a reconciler.

        `discovery` finds pods; the default uses cluster DNS and the Kubernetes API.  `advance` is
        called, from any thread, whenever a step makes progress.
        """
        self._advance = advance
        self._log = log
        self._metrics = metrics
        self._clock = clock
        self._settings_file = settings_file
        self._discovery = discovery or PodSources(Sweeper(log, metrics, clock), log, metrics, clock)
        # A reload and changes through the runtime API must not overlap.
        self._haproxy = asyncio.Lock()
        self.tracker = Tracker(log, metrics)
        self.consent = ConsentWatch(log, metrics)
        self.servers = ServerUpkeep(
            self.tracker, self._haproxy, self._discovery, log, metrics, clock
        )
        self.answers = Answers(self.tracker, self.servers, self._discovery, log, metrics, clock)
        self.certificates = CertificateUpkeep(self.tracker, self._haproxy, log, metrics)
        self.drift = DriftWatch(
            self.tracker, self._haproxy, self.consent, log, metrics, self.look_at_hold
        )
        self._holding = HoldWatch(self.tracker, self._haproxy, self.consent, log)
        self.records = Records(self.tracker, log, metrics, clock)
        self.load_balancers = LoadBalancerSource(self._discovery, clock)
        self.statuses = StatusWriter(self.load_balancers, self._discovery, log, metrics, clock)
        self._removals = RemovalWait()
        self._sources: Sources | None = None
        self._refused: dict[UnitId, Withheld] = {}
        """The changes that a trial refused since the files were last read."""
        self._memo = ProposalMemo()
        self._patience = Patience()
        self._resumes = False

    @property
    def state(self) -> DaemonState:
        """The daemon's current state."""
        return self.tracker.state

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The problems of the declared configuration and of its discovery."""
        state = self.state
        return (
            *state.problems,
            *lookup_problems(dict(state.resolution)),
            *self.answers.disagreements,
            *self.certificates.problems,
        )

    @property
    def api(self) -> ApiState | None:
        """The state of the watch of the Kubernetes API; None if no API is set."""
        return self._discovery.state

    @property
    def names(self) -> frozenset[str]:
        """The names of all declared services, withheld or not."""
        sources = self._sources
        return frozenset((*sources.services, *(sources.cluster or ())) if sources else ())

    @property
    def refused(self) -> bool:
        """Whether HAProxy, a trial or the system has refused part of the declared configuration.

        An unreadable file may become readable without any sign of change, for example when more
        file descriptors are available.
        """
        withheld = self.state.withheld
        return bool(self._refused) or any(each.unit.kind is UnitKind.FILE for each in withheld)

    async def step(
        self, triggers: frozenset[Trigger], seen: float, changed: frozenset[str] | None = None
    ) -> Deployment | None:
        """Read the files that may have changed and bring HAProxy to the result.

        `seen` is the time of the first of `triggers`, on the monotonic clock.  If all `triggers`
        are `NAMED`, `changed` names the files of services.d that changed; None if any may have.
        Returns the deployment, or None if nothing had to be or could be deployed.
        """
        # If HAProxy was given another configuration, it may now accept the withheld changes, too.
        is_retry = Trigger.HAPROXY in triggers and self.refused
        if self._sources is None or not triggers <= _WITHOUT_FILES or is_retry:
            await self._read(
                changed if triggers <= NAMED else None, afresh=Trigger.SIGHUP in triggers
            )
        elif self.records.base.hash != self.state.running and not self.records.leaves_drift:
            await self.records.find_base(self._quick_settings(), self.state.running)
        if triggers & _FILES_CHANGED:
            self._removals.files_changed(self._clock())
        await self.look_at_hold()
        self._advance()
        try:
            is_held = self.state.held is not None
            prepared = await self._propose(no_check if is_held else _needs_check)
        except _CheckNeeded:
            prepared = None
        if self.state.held is not None:
            assert prepared is not None
            return await self._stay(prepared)
        assert self._sources is not None
        is_suspect = Trigger.HAPROXY in triggers
        if prepared is not None and decide.is_settled(self.state, prepared, is_suspect=is_suspect):
            self.tracker.become(self._accepting(prepared))
            self.records.promote(prepared, self._sources)
            if not self.records.known.is_saved:
                # `check` reads the recorded withheld changes.
                await self.records.save()
            return None
        async with self._haproxy:
            rollout = await self._roll_out()
        if rollout.prepared is None:
            return await self._not_rolled_out(rollout.deployment)
        prepared, deployment = rollout.prepared, rollout.deployment
        self._refused = {each.unit: each for each in prepared.withheld if each.is_refused}
        await self.consent.missing(prepared.plan.settings, deployment.consent)
        lost = await asyncio.to_thread(lost_settings, prepared, deployment)
        prepared = replace(prepared, problems=(*prepared.problems, *lost))
        why = self._conclude(prepared, deployment, seen)
        await self.records.keep(prepared, deployment, why, is_all=not self._refused)
        if deployment.ok and not self._refused:
            self._patience.relax()
        if deployment.outcome is Outcome.REFUSED and prepared.config is None:
            return await self._revive()
        await self.servers.assign()
        return deployment

    async def _not_rolled_out(self, deployment: Deployment) -> Deployment | None:
        """Handle a roll-out that prepared nothing: a new hold, or HAProxy cannot be queried."""
        if deployment.outcome is Outcome.HELD:
            await self.look_at_hold()
            return await self._stay(await self._propose(no_check))
        self._refuse(deployment.problems, deployment)
        return await self._revive() or deployment

    async def _read(self, changed: Collection[str] | None, *, afresh: bool) -> None:
        """Read the files, and give refused changes another chance.

        `changed` names the files of services.d that changed, None if any may have.  With `afresh`,
        results of earlier reads are ignored.
        """
        before = None if afresh else self._sources
        names = None if changed is None else frozenset(changed)
        sources = await asyncio.to_thread(read, self._settings_file, before, names)
        if self.state.prepared is None or self.state.prepared.is_complete:
            self._refused.clear()
        is_first = self._sources is None
        if self._sources is not None:
            known = self._sources
            sources = replace(
                sources, cluster=known.cluster, cluster_problems=known.cluster_problems
            )
        self._sources = sources
        self.answers.forget_empty()
        await self.records.open(state_directory(sources))
        if is_first:
            await self.records.resume(self._quick_settings())
        elif not self.records.leaves_drift:
            await self.records.find_base(self._quick_settings(), self.state.running)

    def _quick_settings(self) -> Settings:
        """Return the settings in force or, before there are any, the declared ones."""
        if self.state.declaration is not None:
            return self.state.declaration.settings
        assert self._sources is not None
        return settings_now(self._sources, self.records.known.confirmed)

    async def look_at_hold(self) -> bool:
        """Check whether an operator holds a configuration; return whether a hold has ended.

        Returns False until the settings have been read once.
        """
        if self._sources is None or not await self._holding.look(state_directory(self._sources)):
            return False
        if self.state.held is not None:
            self.records.guard.clear()
            return False
        self._resumes = True
        return True

    async def _stay(self, prepared: Prepared) -> Deployment | None:
        """Deploy nothing; show the declared state, and keep a supervised HAProxy serving."""
        state = self.state
        if state.declaration is None and prepared.config is not None:
            # HAProxy may run other services; discovery covers the declared ones.
            state = replace(state, declaration=prepared.declaration, deployed=prepared.plan)
        self.tracker.become(
            replace(
                state, prepared=prepared, withheld=prepared.withheld, problems=prepared.problems
            )
        )
        if (deployment := await self._revive()) is not None:
            return deployment
        settings = (self.state.declaration or prepared.declaration).settings
        deployment = await self._holding.go_on(settings)
        if deployment is not None and deployment.ok:
            self.observed(deployment.hash)
        return deployment

    async def _revive(self) -> Deployment | None:
        deployment = await self._holding.revive()
        if deployment is not None and deployment.ok:
            self.observed(deployment.hash)
        return deployment

    async def look_at_files(self) -> bool:
        """Return whether any file has changed since it was read."""
        sources = self._sources
        return sources is None or not await asyncio.to_thread(is_unchanged, sources)

    async def look_at_load_balancers(self) -> bool:
        """Return whether this host's addresses now lead to other load balancer assignments."""
        sources, read_ = self._sources, self.state.read
        if sources is None or read_ is None:
            return False
        now = replace(sources, host=await asyncio.to_thread(host_addresses))
        found = await self.load_balancers.applied(
            now, read_.settings, self.records.base.declarations
        )
        return found is not now

    async def write_statuses(self) -> None:
        """Write the statuses of Services of type LoadBalancer that are due."""
        read_ = self.state.read
        if read_ is not None:
            await self.statuses.look(read_.settings, self.state, self.records.base)

    async def look_at_contents(self) -> bool:
        """Return whether a file that the configuration names has changed since it was read."""
        memo = self._memo
        return await asyncio.to_thread(
            lambda: memo.contents.has_changed() or memo.site_files.has_changed()
        )

    async def _propose(self, check: Check) -> Prepared:
        """Apply the valid parts of the files to the running configuration.

        Raises whatever `check` raises.
        """
        assert self._sources is not None
        base = self.records.base
        declaration = await asyncio.to_thread(declare, self._sources, base.declarations)
        if SETTINGS in declaration.faults:
            declaration = declare(self._sources, base.declarations, ENVIRONMENT)
        balanced = await self.load_balancers.applied(
            self._sources, declaration.settings, base.declarations
        )
        if balanced is not self._sources:
            self._sources = balanced
            kept = ENVIRONMENT if SETTINGS in declaration.faults else frozenset[UnitId]()
            declaration = declare(self._sources, base.declarations, kept)
        declaration = self._without_emptied(declaration, base)
        self.tracker.become(replace(self.state, read=declaration))
        proposed = await self._proposer(declaration, shrink=False)
        return await asyncio.to_thread(proposed, base, check)

    async def _proposer(
        self, declaration: Declaration, *, shrink: bool
    ) -> Callable[[Base, Check], Prepared]:
        """Return a function that proposes the last read `declaration`; call it in a thread."""
        assert self._sources is not None
        sources, refused, waiting = self._sources, dict(self._refused), self._is_waiting
        answers = await self.answers.of(declaration, self.records.base)

        def proposed(base: Base, check: Check) -> Prepared:
            return propose(
                sources,
                base,
                answers,
                self.answers.running(base, declaration.settings),
                check,
                refused=refused,
                shrink=shrink,
                waiting=waiting,
                memo=self._memo,
            )

        return proposed

    def _without_emptied(self, declaration: Declaration, base: Base) -> Declaration:
        """Return `declaration`, or a new one if services.d has been empty for long enough."""
        assert self._sources is not None
        is_emptied = self._sources.believes_empty or any(
            problem.cause is Cause.EMPTIED
            for file in declaration.unreadable
            for problem in file.problems
        )
        intervals = declaration.settings.intervals
        believes = self._removals.believes_empty(is_emptied, intervals, self._clock())
        if not believes or self._sources.believes_empty:
            return declaration
        self._log.warning("services-removed", reason=f"{self._sources.directory} stays empty")
        self._sources = replace(self._sources, believes_empty=True)
        return declare(self._sources, base.declarations)

    @property
    def _is_waiting(self) -> bool:
        """Whether removals are still waiting."""
        declaration = self.state.read
        intervals = declaration.settings.intervals if declaration else Intervals()
        return not self._removals.is_over(intervals, self._clock())

    @property
    def removal_due(self) -> float | None:
        """The monotonic time at which a step for waiting removals is due; None if none waits."""
        declaration = self.state.read
        return self._removals.due(declaration.settings.intervals) if declaration else None

    async def _roll_out(self) -> Rollout:
        declaration = self.state.read
        sources = self._sources
        assert declaration is not None
        assert sources is not None
        # A reload is due anyway, so unused slots are removed with it.
        proposed = await self._proposer(declaration, shrink=self.state.running is not None)
        options = Options(
            patience=self._patience,
            advance=self._advance,
            keeper=self.certificates.keeper,
            checked=lambda accepted: self._metrics.checked("accepted" if accepted else "refused"),
        )
        return await asyncio.to_thread(
            roll_out,
            self._quick_settings(),
            self.records.known,
            proposed,
            lambda prepared: self.records.attempt(prepared, sources),
            options,
        )

    def observed(self, running: str | None) -> None:
        """Record the hash that the running worker reported; None if it did not answer."""
        if running != self.state.running:
            self.servers.touch()
        self.tracker.become(replace(self.state, running=running))
        if self.records.running_state is not None:
            self.records.known.confirm(running)

    def is_busy(self) -> bool:
        """Return whether HAProxy is being changed; its answers are provisional until this ends."""
        return self._haproxy.locked()

    def close(self) -> None:
        """Close the sockets of discovery."""
        self._discovery.close()

    def _conclude(
        self, prepared: Prepared, deployment: Deployment, seen: float
    ) -> tuple[Reason, ...]:
        """Record the result of a deployment; return its reasons."""
        before = prepared.base.config.text if prepared.base.config else ""
        after = prepared.config.text if prepared.config else ""
        files = changed_files(before, after)
        why = reasons(self.state.deployed, prepared.plan, files, is_same_text=before == after)
        if self._resumes:
            unexplained = (ReloadCause.TEMPLATES, ReloadCause.HAPROXY)
            others = (reason for reason in why if reason.cause not in unexplained)
            why = (Reason(ReloadCause.RESUMED), *others)
            self._resumes = not deployment.ok
        attempted = Attempted(at=time.time(), reasons=why, deployment=deployment)
        untried = (Outcome.IN_SYNC, Outcome.ROUTED, Outcome.REFUSED, Outcome.NEEDS_CONSENT)
        if deployment.outcome not in untried:
            self.tracker.become(replace(self.state, last_reload=attempted))
            result = "failed" if deployment.outcome is Outcome.FAILED else "ok"
            self._metrics.reloaded(why[0].cause, result, deployment.duration)
        problems = (*prepared.problems, *deployment.problems)
        if not deployment.ok:
            self.tracker.become(replace(self.state, prepared=prepared))
            self._refuse(problems, deployment)
            return why
        self.records.guard.watch(
            self.records.known.confirmed.services,
            prepared.declaration.raw.services,
            deployment.had_up,
            self._clock(),
        )
        is_installed = deployment.outcome is Outcome.INSTALLED
        accepted = self._accepting(replace(prepared, problems=problems))
        self.drift.look_anew()
        self.servers.touch()
        self.tracker.log(transitions.replaced(deployment.replaced))
        self.tracker.become(
            replace(
                accepted,
                prepared=prepared,
                config=prepared.config,
                is_drift_left=deployment.consent is not None,
                taken=attempted,
                running=None if is_installed else deployment.hash,
                resolution=with_slots(prepared.plan, accepted.resolution),
            )
        )
        self.records.known.confirm(self.state.running)
        assert self._sources is not None
        self.records.promote(prepared, self._sources)
        if deployment.outcome in (Outcome.RELOADED, Outcome.STARTED):
            self._metrics.converged(self._clock() - seen)
        return why

    def _accepting(self, prepared: Prepared) -> DaemonState:
        """Return the state in which HAProxy has, or is about to get, `prepared`."""
        assert prepared.config is not None
        self._removals.note(bool(prepared.waiting), self._clock())
        resolution = self._newest(prepared)
        self._metrics.planned(prepared.plan, resolution)
        return replace(
            self.state,
            prepared=prepared,
            declaration=prepared.declaration,
            deployed=prepared.plan,
            resolution=resolution,
            wanted=prepared.config.hash,
            waiting=prepared.waiting,
            withheld=prepared.withheld,
            problems=prepared.problems,
        )

    def _newest(self, prepared: Prepared) -> Resolution:
        """Return the answers for `prepared`, with newer ones that a sweep has found meanwhile."""
        state = self.state
        asked = {
            each.spec.name: question(each.spec)
            for each in (state.deployed.services if state.deployed else ())
        }
        found = dict(prepared.resolution)
        for spec in prepared.declaration.services:
            if asked.get(spec.name) == question(spec) and spec.name in state.resolution:
                found[spec.name] = state.resolution[spec.name]
        known = state.declaration.services if state.declaration else ()
        is_same = found == state.resolution and prepared.declaration.services == known
        return state.resolution if is_same else found

    def _refuse(self, problems: Iterable[Problem], deployment: Deployment) -> None:
        """Record that nothing changes, and why."""
        self.tracker.become(
            replace(self.state, wanted=None, refusal=deployment, problems=tuple(problems))
        )


class _CheckNeeded(Exception):
    """A candidate must be checked before it can be deployed."""


def _needs_check(_candidate: Candidate, _is_trial: bool) -> tuple[Problem, ...]:
    raise _CheckNeeded
