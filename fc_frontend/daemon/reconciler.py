"""Keep HAProxy in step with files and cluster DNS: one step, run whenever something changed.

    files ─► changes ─────┐
                          ├─► propose ─► the text that runs? nothing : roll out
    cluster DNS ─► answers ┘

The reconciler has the daemon's state and no loop of its own; `daemon.service` decides when a step
is due.  What is refused is withheld, and all other changes are deployed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from fc_frontend import files, stored
from fc_frontend.config.declare import Declaration, declare, running_specs
from fc_frontend.config.loader import Sources, is_unchanged, read, state_directory
from fc_frontend.config.running import RawDeclaration, RunningDeclarations
from fc_frontend.daemon.cluster_dns import Sweeper, lookup_problems
from fc_frontend.daemon.consent import ConsentWatch
from fc_frontend.daemon.guard import Former, Guard, former_after
from fc_frontend.daemon.pod_sources import PodSources
from fc_frontend.daemon.removal import RemovalWait
from fc_frontend.daemon.report import Report
from fc_frontend.desired.isolate import Withheld
from fc_frontend.discovery.source import PodDiscovery
from fc_frontend.errors import Cause, Problem, Severity, Unavailable
from fc_frontend.haproxy import (
    drain_record,
    hold,
    install,
    kept_files,
    rollback,
    runtime,
    take_over,
)
from fc_frontend.haproxy.assign import Assigned, assign
from fc_frontend.haproxy.deploy import (
    Deployment,
    Outcome,
    forget_refused,
    proxies_up,
    revive,
    save_running,
    server_state_now,
)
from fc_frontend.haproxy.hold import Hold
from fc_frontend.haproxy.lock import deploying
from fc_frontend.haproxy.old_sessions import proxies_that_shut, shut_left_sessions
from fc_frontend.haproxy.patience import Patience
from fc_frontend.haproxy.runtime import ServerState
from fc_frontend.haproxy.server_state import servers_in
from fc_frontend.haproxy.take_over import NeedsConsent, Replaced
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
    base_of,
    find_base,
    is_same_cluster,
    lost_settings,
    no_check,
    propose,
    record,
    settings_now,
    with_slots,
)
from fc_frontend.plan import planner
from fc_frontend.plan.addresses import is_within
from fc_frontend.plan.model import (
    Answer,
    Cluster,
    Haproxy,
    Intervals,
    Plan,
    Resolution,
    ServicePlan,
    ServiceSpec,
    Settings,
)
from fc_frontend.plan.planner import plan
from fc_frontend.plan.reasons import Reason, ReloadCause, reasons
from fc_frontend.render.config import Config, config_hash
from fc_frontend.render.file_marks import changed_files
from fc_frontend.render.render import ALIVE_KEY, ALIVE_TABLES
from fc_frontend.rollout import Options, Rollout, deployed_declarations, roll_out
from fc_frontend.stored import RunningState, question, save_answers, stored_answers

_MOST_DISAGREEMENTS = 20
_SAVE_SHARE = 20
"""Servers that change all the time are kept for 1/20 of the time."""
_VERIFIED_AT_ONCE = 16
"""Services whose slots are compared at each look: all 1,000 at once take half a second."""
_NOT_DEPLOYED_PAUSE = 1.0
"""Seconds until endpoints are looked at again while nothing is deployed."""


class Trigger(StrEnum):
    """What makes a step due."""

    START = "start"
    FILES = "files"
    DNS = "dns"
    SIGHUP = "sighup"
    RESCAN = "rescan"
    HAPROXY = "haproxy"
    CONTENTS = "contents"
    """A file that the configuration names, such as a certificate."""
    RETRY = "retry"
    RESUME = "resume"
    REMOVAL = "removal"
    """What is gone from the files may be believed now."""


NAMED = frozenset((Trigger.FILES, Trigger.DNS, Trigger.HAPROXY, Trigger.CONTENTS))
"""With these alone, it is known which files changed."""
_WITHOUT_FILES = NAMED - {Trigger.FILES}
_FILES_CHANGED = frozenset((Trigger.START, Trigger.FILES, Trigger.SIGHUP, Trigger.RESCAN))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadResult:
    """The last reload, start or attempt at one.  `at` is Unix time, `duration` in seconds."""

    at: float
    reasons: tuple[Reason, ...]
    deployment: Deployment


class Reconciler:
    """The daemon's state, and the step that brings HAProxy to what is declared."""

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
        """`discovery` finds pods, by default by cluster DNS.

        `advance` is called, from any thread, whenever a step makes progress.
        """
        self._advance = advance
        self._log = log
        self._metrics = metrics
        self._report = Report(log, metrics)
        self._clock = clock
        self._discovery = discovery or PodSources(Sweeper(log, metrics, clock), log, metrics, clock)
        self.has_unsaved_answers = False
        self._settings_file = settings_file
        self._sources: Sources | None = None
        self.running_state: RunningState | None = None
        self._base = Base()
        self._refused: dict[UnitId, Withheld] = {}
        """What a trial refused since files were read last."""
        self._removals = RemovalWait()
        self._asked_of: Cluster | None = None
        self._declared_answers: dict[str, Answer] = {}
        """Question → answer, of declared services, withheld or not."""
        self._memo = ProposalMemo()
        self._written_answers = stored.WrittenAnswers()
        self._copies: Mapping[str, str] = {}
        self._patience = Patience()
        self._sweep_memo = planner.PlanMemo()
        self._guard = Guard()
        self._foreign: dict[str, frozenset[str]] = {}
        """Question → addresses outside of the networks that HAProxy's resolver took for pods."""
        self._disagreements: dict[str, Problem] = {}
        self._tidied = False
        self._unassigned = True
        self._leaving: frozenset[str] = frozenset()
        """Services with slots that wait for the last sessions of pods that left."""
        self._server_state_age: dict[str, Answer] | None = None
        self._server_state_due = 0.0
        self._verified = 0
        """How many services' slots were compared with what is known, round and round."""
        # Neither a reload nor the runtime API may meet the other half-way.
        self._haproxy = asyncio.Lock()
        self.declaration: Declaration | None = None
        """The one that HAProxy has."""
        self.read: Declaration | None = None
        """The last one that was read, with its errors."""
        self.resolution: dict[str, Answer] = {}
        self.deployed: Plan | None = None
        self.wanted: str | None = None
        """The hash of what is declared; None if that is refused or not known yet."""
        self.running: str | None = None
        self.last_reload: ReloadResult | None = None
        self.held: Hold | None = None
        """While it is there, nothing that is declared is deployed."""
        self.prepared: Prepared | None = None
        """What followed last from files and answers, whether HAProxy took it or not."""
        self._config: Config | None = None
        self._seen_file: tuple[int, int, int] | None = None
        self.drifted = False
        """True if others changed haproxy.cfg and it is left so."""
        self.drained: dict[str, tuple[str, ...]] = {}
        """Service name → addresses of the pods that are drained."""
        self._drain_record: object = None
        self._drains = False
        self._resumes = False
        self.consent = ConsentWatch(log, metrics)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with what is declared, and with what cluster DNS says of it."""
        # The status is computed in a thread.
        disagreed = tuple(self._disagreements.values())[:_MOST_DISAGREEMENTS]
        return (*self._report.problems, *lookup_problems(dict(self.resolution)), *disagreed)

    @property
    def withheld(self) -> tuple[Withheld, ...]:
        """The changes that are not deployed."""
        return self._report.withheld

    @property
    def api(self) -> ApiState | None:
        """How the watch of the Kubernetes API is doing; None where no API is set."""
        return self._discovery.state

    @property
    def names(self) -> frozenset[str]:
        """All services that are declared, withheld or not."""
        return frozenset(self._sources.services if self._sources else ())

    @property
    def in_sync(self) -> bool:
        """True if the running worker has what is declared."""
        return self.wanted is not None and self.wanted == self.running

    @property
    def refused(self) -> bool:
        """True if HAProxy, a trial or the system has refused something that is declared.

        A file that cannot be read may be mended without any sign of change, as by more descriptors.
        """
        return bool(self._refused) or any(each.unit.kind is UnitKind.FILE for each in self.withheld)

    async def step(
        self, triggers: frozenset[Trigger], seen: float, changed: frozenset[str] | None = None
    ) -> Deployment | None:
        """Read what may have changed and bring HAProxy there.

        `seen` is when the first of `triggers` was seen, on the monotonic clock.  `changed` names
        the files of services.d that changed, where `triggers` are `NAMED`; None if any may have.
        Returns what was deployed, None if nothing had to be or could be.
        """
        # Who made HAProxy take something else may have made it take what is withheld here.
        is_retry = Trigger.HAPROXY in triggers and self.refused
        if self._sources is None or not triggers <= _WITHOUT_FILES or is_retry:
            await self._read(
                changed if triggers <= NAMED else None, afresh=Trigger.SIGHUP in triggers
            )
        elif self._base.hash != self.running and not self._leaves_drift:
            await asyncio.to_thread(self._find_base, self.running)
        if triggers & _FILES_CHANGED:
            self._removals.files_changed(self._clock())
        await self.look_at_hold()
        self._advance()
        try:
            prepared = await self._propose(no_check if self.held is not None else _needs_check)
        except _CheckNeeded:
            prepared = None
        if self.held is not None:
            assert prepared is not None
            self.prepared = prepared
            return await self._stay(prepared)
        if prepared is not None and await self._is_nothing_to_do(prepared, triggers):
            self.prepared = prepared
            self._accept(prepared)
            self._promote(prepared)
            if not self._known.is_saved:
                # `check` goes by what is withheld already.
                await self.save()
            return None
        async with self._haproxy:
            rollout = await self._roll_out()
        if rollout.prepared is None:
            return await self._not_rolled_out(rollout.deployment)
        prepared, deployment = rollout.prepared, rollout.deployment
        self._refused = {each.unit: each for each in prepared.withheld if each.is_refused}
        await self.consent.missing(prepared.plan.settings, deployment.consent)
        lost = await asyncio.to_thread(lost_settings, prepared, deployment)
        prepared = self.prepared = replace(prepared, problems=(*prepared.problems, *lost))
        why = self._conclude(prepared, deployment, seen)
        await self._keep(prepared, deployment, why)
        if deployment.outcome is Outcome.REFUSED and prepared.config is None:
            return await self._revive()
        await self.assign()
        return deployment

    async def _is_nothing_to_do(self, prepared: Prepared, triggers: frozenset[Trigger]) -> bool:
        """True if HAProxy runs what is wanted, as far as is known without a look at it."""
        if prepared.config is None or not prepared.ok:
            return False
        is_known = prepared.config.hash == self.wanted == self.running
        # A file that others changed, and that is left so, may be what HAProxy has now.
        is_left = (
            self.drifted
            and prepared.plan.settings.haproxy.drift == "adopt"
            and prepared.config.hash == self.wanted
        )
        return is_left or (is_known and Trigger.HAPROXY not in triggers)

    async def _not_rolled_out(self, deployment: Deployment) -> Deployment | None:
        """Nothing could be prepared: a hold came in between, or HAProxy cannot be asked."""
        if deployment.outcome is Outcome.HELD:
            await self.look_at_hold()
            self.prepared = await self._propose(no_check)
            return await self._stay(self.prepared)
        self._refuse(deployment.problems, deployment)
        return await self._revive() or deployment

    async def _read(self, changed: Collection[str] | None, *, afresh: bool) -> None:
        """Read the files, and give what was refused another chance.

        `changed` names the files of services.d that changed, None if any may have.  With `afresh`,
        nothing that was read before counts.
        """
        before = None if afresh else self._sources
        names = None if changed is None else frozenset(changed)
        sources = await asyncio.to_thread(read, self._settings_file, before, names)
        if self.prepared is None or self.prepared.is_complete:
            self._refused.clear()
        is_first = self._sources is None
        self._sources = sources
        # Where nobody was found, somebody may be by now.
        self._declared_answers = {
            text: answer for text, answer in self._declared_answers.items() if answer.endpoints
        }
        if self.running_state is None:
            self.running_state = await asyncio.to_thread(RunningState, state_directory(sources))
        if is_first:
            await self._resume()
        elif not self._leaves_drift:
            await asyncio.to_thread(self._find_base, self.running)

    @property
    def _leaves_drift(self) -> bool:
        """True if HAProxy may have what others wrote to haproxy.cfg, and is left so."""
        return (
            self.drifted
            and self.deployed is not None
            and self.deployed.settings.haproxy.drift == "adopt"
            and self._base.hash == self.wanted
        )

    async def _resume(self) -> None:
        """Take up a deployment and a watch that the last daemon did not see the end of."""
        haproxy = self._quick_settings().haproxy
        running = await asyncio.to_thread(_hash_in_force, haproxy)
        if self._known.pending is not None:
            self._known.confirm(running)
        with contextlib.suppress(Unavailable):
            running = await asyncio.to_thread(runtime.running_hash, haproxy.runtime_socket)
        await asyncio.to_thread(self._find_base, running)
        self._guard.resume(self._known.confirmed.former, self._clock())

    @property
    def _known(self) -> RunningState:
        assert self.running_state is not None
        return self.running_state

    def _find_base(self, running: str | None) -> None:
        state = self._known
        state.refresh()
        self._base = find_base(self._quick_settings(), state.confirmed, state.pending, running)

    def _quick_settings(self) -> Settings:
        """Where HAProxy is, by the settings that are in force or, before that, declared."""
        if self.declaration is not None:
            return self.declaration.settings
        assert self._sources is not None
        return settings_now(self._sources, self._known.confirmed)

    async def look_at_hold(self) -> bool:
        """See whether an operator holds a configuration, or has ended that; True if it has ended.

        Settings must have been read once; False until then.
        """
        if self._sources is None:
            return False
        before = self.held
        directory = state_directory(self._sources)
        found = await asyncio.to_thread(hold.load, directory)
        if found is not None:
            # What cannot be read holds what HAProxy has, whichever that is.
            self.wanted = found.hash or self.running
        if found == before:
            return False
        self.held = found
        self._metrics.held(found is not None)
        if found is None:
            self._log.info("resumed", effect="normal deployments resume")
            self.wanted = None
            self._resumes = True
            return True
        self._log.warning(
            "held",
            entry=found.id,
            hash=found.hash or "unknown",
            by=found.by or None,
            effect="changes are not deployed",
            remedy="fc-frontend resume",
        )
        self._guard.clear()
        if self.deployed is not None:
            await self.consent.missing(self.deployed.settings, None)
        self._config = None
        self.drifted = False
        self._metrics.drifted(False)
        self._metrics.synced(self.wanted, self.running)
        return False

    async def _stay(self, prepared: Prepared) -> Deployment | None:
        """Deploy nothing, but show what is declared, and keep a supervised HAProxy serving."""
        if self.declaration is None and prepared.config is not None:
            # HAProxy may have other services; cluster DNS is asked about those that are declared.
            self.declaration, self.deployed = prepared.declaration, prepared.plan
        self._report.withhold(prepared.withheld)
        self._report.note(prepared.problems)
        self._metrics.synced(self.wanted, self.running)
        return await self._revive() or await self._go_on_holding(prepared.declaration)

    async def _go_on_holding(self, declaration: Declaration) -> Deployment | None:
        """Have HAProxy take what is held, if it has something else."""
        held = self.held
        if held is None or self.running == held.hash:
            return None
        settings = (self.declaration or declaration).settings
        async with self._haproxy:
            deployment = await asyncio.to_thread(rollback.go_on_holding, settings, held)
        if deployment is None:
            return None
        if deployment.ok:
            self.observed(deployment.hash)
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

    async def look_at_files(self) -> bool:
        """True if any file is another one than when it was read."""
        sources = self._sources
        return sources is None or not await asyncio.to_thread(is_unchanged, sources)

    async def look_at_contents(self) -> bool:
        """True if a file that the configuration names is another one than when it was read."""
        return await asyncio.to_thread(self._memo.contents.has_changed)

    async def _propose(
        self, check: Check, base: Base | None = None, *, shrink: bool = False
    ) -> Prepared:
        """Apply what can be had of the files to what HAProxy runs.

        Raises what `check` raises.
        """
        assert self._sources is not None
        base = base or self._base
        declaration = await asyncio.to_thread(declare, self._sources, base.declarations)
        if SETTINGS in declaration.faults:
            declaration = declare(self._sources, base.declarations, ENVIRONMENT)
        declaration = self._without_emptied(declaration, base)
        self.read = declaration
        answers = await self._answers(declaration)
        return await asyncio.to_thread(
            propose,
            self._sources,
            base,
            answers,
            self._running_answers(base, declaration.settings),
            check,
            refused=self._refused,
            shrink=shrink,
            waiting=self._is_waiting,
            memo=self._memo,
        )

    def _without_emptied(self, declaration: Declaration, base: Base) -> Declaration:
        """`declaration`, after a look at whether services.d has been empty for long enough."""
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
        """True while removals wait."""
        declaration = self.read
        intervals = declaration.settings.intervals if declaration else Intervals()
        return not self._removals.is_over(intervals, self._clock())

    @property
    def removal_due(self) -> float | None:
        """When a step is due for removals that wait, on the monotonic clock; None if none do."""
        return self._removals.due(self.read.settings.intervals) if self.read else None

    def _running_answers(self, base: Base, settings: Settings) -> Resolution:
        """The answers for services as they run."""
        if self.deployed is None:
            return stored_answers(settings, running_specs(base.declarations).values())
        back = self._ways_back(base)
        if not back:
            return self.resolution
        known = self._known_answers(settings.cluster)
        found = {name: answer for name, answer in self.resolution.items() if name not in back}
        found |= {n: known[q] for n, spec in back.items() if (q := question(spec)) in known}
        return found

    def _ways_back(self, base: Base) -> dict[str, ServiceSpec]:
        """The services that go back to an earlier form, in that form."""
        ways = base.declarations.ways_back()
        return running_specs(replace(base.declarations, services=ways)) if ways else {}

    async def _roll_out(self) -> Rollout:
        assert self._sources is not None
        # A reload is due anyway: slots that are not needed any more go along with it.
        shrink = self.running is not None
        declaration, sources, refused = self.read, self._sources, dict(self._refused)
        waiting = self._is_waiting
        assert declaration is not None
        answers = await self._answers(declaration)

        def proposed(base: Base, check: Check) -> Prepared:
            return propose(
                sources,
                base,
                answers,
                self._running_answers(base, declaration.settings),
                check,
                refused=refused,
                shrink=shrink,
                waiting=waiting,
                memo=self._memo,
            )

        options = Options(
            patience=self._patience,
            advance=self._advance,
            checked=lambda accepted: self._metrics.checked("accepted" if accepted else "refused"),
        )
        return await asyncio.to_thread(
            roll_out, self._quick_settings(), self._known, proposed, self._attempt, options
        )

    async def sweep(self) -> bool:
        """Ask cluster DNS about all services; True if the plan changes by what it says."""
        if self.declaration is None:
            return False
        settings, specs = self.declaration.settings, self.declaration.services
        before = self.resolution
        answers = await self._discovery.sweep(specs, settings, before)
        if answers is None:
            return False
        answers = self._without_foreign(specs, answers)
        self._report.answers(before, answers)
        # What follows from it for the plan is for the step that ends a hold.
        self.resolution = answers = _updated(self.resolution, before, answers)
        self.has_unsaved_answers = True
        self._unassigned = True
        if self.deployed is None or self.held is not None:
            return False
        planned = plan(settings, specs, self.declaration.fragments, answers, memo=self._sweep_memo)
        self._metrics.planned(self.deployed, answers)
        return _shape(planned.services) != _shape(self.deployed.services)

    def _without_foreign(
        self, specs: Iterable[ServiceSpec], answers: Resolution
    ) -> dict[str, Answer]:
        """`answers` that reject what HAProxy's resolver took from outside of the networks."""
        found = dict(answers)
        for spec in specs if self._foreign else ():
            foreign, answer = self._foreign.get(question(spec)), found.get(spec.name)
            if foreign and answer is not None and not foreign <= set(answer.rejected):
                rejected = tuple(sorted({*answer.rejected, *foreign}))
                found[spec.name] = replace(answer, rejected=rejected)
        return found

    async def look_at_servers(self) -> bool:
        """True if HAProxy has servers where no pod can be; their slots are filled by us then.

        Of an SRV record's target with A and AAAA records, HAProxy takes the first additional
        record, whichever network that is in.
        """
        if self.deployed is None or not self.in_sync or self.held is not None:
            return False
        cluster = self.deployed.settings.cluster
        services = {
            each.spec.name: each.spec
            for each in self.deployed.services
            if each.has_pods and not each.by_runtime
        }
        if not services:
            return False
        path = self.deployed.settings.haproxy.runtime_socket
        try:
            servers = await asyncio.to_thread(runtime.servers_with_address, path)
        except Unavailable:
            return False
        found: dict[str, set[str]] = {}
        for server in servers:
            if (
                server.proxy in services
                and server.server.startswith("pod")
                and server.address is not None
                and not is_within(server.address, cluster.pod_networks)
            ):
                found.setdefault(server.proxy, set()).add(server.address)
        for name, addresses in found.items():
            text = question(services[name])
            self._foreign[text] = self._foreign.get(text, frozenset()) | addresses
            self._log.limited(f"foreign-servers {name}").warning(
                "foreign-servers",
                service=name,
                addresses=",".join(sorted(addresses)[:3]),
                effect="its slots are filled by fc-frontend",
            )
        if found:
            self.resolution = self._without_foreign(services.values(), self.resolution)
        return bool(found)

    async def follow(self) -> bool:
        """Wait until discovery tells of changed endpoints, and give them to HAProxy's slots.

        Only the services that changed are touched.  True if a step is due, as for more slots.
        """
        await self._discovery.changed()
        if self.declaration is None or self.deployed is None:
            # What is deployed first is asked for then; what changes meanwhile is for later.
            await asyncio.sleep(_NOT_DEPLOYED_PAUSE)
            return False
        settings, before = self.declaration.settings, self.resolution
        news = self._discovery.news(self.declaration.services, settings, before)
        if not news.answers:
            return False
        answers = dict(news.answers)
        self._report.answers(before, answers)
        self.resolution = _updated(before, before, answers)
        self.has_unsaved_answers = True
        if self.held is None and self._changes_plan(answers):
            self._unassigned = True
            return True
        done = await self.assign(only=answers.keys())
        if done and news.since is not None:
            self._metrics.endpoints_followed(self._clock() - news.since)
        return False

    def _changes_plan(self, answers: Resolution) -> bool:
        """True if haproxy.cfg needs another text for services with these answers."""
        assert self.declaration is not None
        assert self.deployed is not None
        names = answers.keys()
        specs = [spec for spec in self.declaration.services if spec.name in names]
        planned = plan(self.declaration.settings, specs, (), answers).services
        deployed = [each for each in self.deployed.services if each.spec.name in names]
        return _shape(planned) != _shape(deployed)

    async def look_at_nameservers(self) -> None:
        """Compare what the nameservers say of the next few services."""
        if self.declaration is None or len(self.declaration.settings.cluster.nameservers) < 2:
            self._disagreements = {}
            return
        found = await self._discovery.disagreements(
            self.declaration.services, self.declaration.settings
        )
        for name in sorted(found.keys() - self._disagreements.keys()):
            problem = self.declaration.located(found[name])
            self._log.limited(f"disagreement {name}").warning(
                "nameservers-disagree",
                service=name,
                said=problem.message,
                remedy=problem.remedy,
            )
        self._disagreements = {n: self.declaration.located(p) for n, p in found.items()}

    async def shut_left_sessions(self) -> int:
        """End sessions of pods that left in old workers, where services ask for that; how many."""
        if self.deployed is None or self._config is None or not self.in_sync:
            return 0
        haproxy = self.deployed.settings.haproxy
        proxies = proxies_that_shut(self._config.text)
        if not proxies:
            return 0
        try:
            return await asyncio.to_thread(
                shut_left_sessions, haproxy.master_socket, haproxy.runtime_socket, proxies
            )
        except Unavailable:
            return 0

    async def assign(self, *, anew: bool = False, only: Collection[str] | None = None) -> bool:
        """Give pods to the slots of services that HAProxy's resolver does not fill.

        Does nothing if neither answers nor configuration changed, but for the next few services
        with `anew`.  With `only`, just these services are looked at.  True if HAProxy has what is
        known.
        """
        if self.deployed is None or not self.in_sync:
            return False
        if only is None and not self._unassigned:
            verified = self._next_to_verify(self.deployed) if anew else frozenset()
            only = self._leaving | verified
        services = self._slots_to_fill(self.deployed, only)
        if only is None:
            self._unassigned = False
        if services and self.held is not None:
            haproxy = self.deployed.settings.haproxy
            services = await asyncio.to_thread(_as_installed, haproxy, services)
        if not services:
            return True
        try:
            async with self._haproxy:
                done = await asyncio.to_thread(_assign, self.deployed.settings, tuple(services))
        except Unavailable as exc:
            self._unassigned = True
            self._log.limited("not-assigned").warning(
                "pods-not-assigned", error=exc.problems[0].message, remedy=exc.problems[0].remedy
            )
            return False
        looked = {service.spec.name for service in services}
        self._leaving = (self._leaving - looked) | done.leaving
        if only is None:
            await self.give_sign_of_life()
        if done.changed:
            self._log.info("pods-assigned", slots=done.changed, services=len(services))
        for name, gone in done.gone.items():
            answer = self.resolution.get(name)
            if answer is not None and answer.is_cut and gone:
                endpoints = tuple(e for e in answer.endpoints if e.address not in gone)
                self._unassigned |= endpoints != answer.endpoints
                self.resolution[name] = replace(answer, endpoints=endpoints)
        return True

    def _slots_to_fill(self, deployed: Plan, only: Collection[str] | None) -> list[ServicePlan]:
        """The services whose slots are filled here, with their newest endpoints."""
        if only is not None and not only:
            return []
        return [
            replace(service, endpoints=answer.endpoints, draining=answer.draining)
            for service in deployed.services
            if service.by_runtime
            and (only is None or service.spec.name in only)
            and (answer := self.resolution.get(service.spec.name)) is not None
        ]

    def _next_to_verify(self, deployed: Plan) -> frozenset[str]:
        names = [each.spec.name for each in deployed.services if each.by_runtime]
        start = self._verified % len(names) if names else 0
        self._verified = start + _VERIFIED_AT_ONCE
        return frozenset((names[start:] + names[:start])[:_VERIFIED_AT_ONCE])

    async def give_sign_of_life(self) -> None:
        """Tell HAProxy that its slots are kept: until that expires, their standbys stay aside.

        Only once the slots have what the API tells; a daemon that has just begun does not know.
        """
        plan_now = self.deployed
        if (
            plan_now is None
            or not self.in_sync
            or self._unassigned
            or plan_now.settings.cluster.api is None
            or not self._discovery.may_fill
        ):
            return
        path = plan_now.settings.haproxy.runtime_socket
        commands = [f"set table {table} key {ALIVE_KEY} data.gpc0 1" for table in ALIVE_TABLES]
        try:
            async with self._haproxy:
                await asyncio.to_thread(runtime.commands, path, commands)
        except Unavailable as exc:
            self._log.limited("no-sign-of-life").warning(
                "no-sign-of-life", error=exc.problems[0].message, effect="standbys may serve"
            )

    async def save_server_state(self) -> None:
        """Keep what HAProxy knows of its servers, if answers have changed, for a start of its own.

        A HAProxy that is started again by others, with cluster DNS away, serves by it at once.
        """
        plan_now, answers, began = self.deployed, self.resolution, self._clock()
        if plan_now is None or not self.in_sync or answers == self._server_state_age:
            return
        if began < self._server_state_due:
            return
        try:
            if self.held is not None:
                async with self._haproxy:
                    await asyncio.to_thread(_save_as_it_runs, plan_now.settings)
            else:
                # Thousands of servers take a while: endpoints that change do not wait for that.
                state = await asyncio.to_thread(server_state_now, plan_now, dict(answers))
                async with self._haproxy:
                    if self.deployed is not plan_now or not self.in_sync:
                        return
                    path = plan_now.settings.server_state_file
                    await asyncio.to_thread(files.write_own, path, state)
            self._server_state_age = answers
            now = self._clock()
            self._server_state_due = now + _SAVE_SHARE * (now - began)
        except Unavailable as exc:
            self._metrics.state_not_written("server-state")
            self._log.limited("server-state").warning(
                "server-state-not-saved",
                error=exc.problems[0].message,
                remedy=exc.problems[0].remedy,
            )

    def observed(self, running: str | None) -> None:
        """The running worker was asked for its configuration's hash; None if it did not answer."""
        if running != self.running:
            self._unassigned = True
            self._log.info(
                "running-config-changed", hash=running or "none", wanted=self.wanted or "none"
            )
        self.running = running
        if self.running_state is not None:
            self.running_state.confirm(running)
        self._metrics.synced(self.wanted, running)

    def is_busy(self) -> bool:
        """True while HAProxy is being given something: what it says now is not the last word."""
        return self._haproxy.locked()

    async def look_for_drift(self) -> None:
        """See whether others changed haproxy.cfg; put it right, or leave it, as the settings say.

        HAProxy keeps its running configuration: a wrong file takes effect at its next start.
        """
        async with self._haproxy:
            if self._config is None or self.deployed is None or self.held is not None:
                return
            settings, config = self.deployed.settings, self._config
            haproxy, text = settings.haproxy, config.text
            signature = await asyncio.to_thread(files.signature, haproxy.config_file)
            if signature is not None and signature == self._seen_file:
                return
            try:
                found = await asyncio.to_thread(install.read, haproxy.config_file)
                self.drifted = found != text.encode("utf-8", "surrogateescape")
                self._seen_file = signature
                # Somebody who goes back writes the file before the next look at the hold.
                if self.drifted and await self.look_at_hold() is False and self.held is None:
                    await self._mend_drift(settings, config, is_missing=found is None)
                elif not self.drifted and self.in_sync:
                    await self.consent.missing(settings, None)
            except NeedsConsent as exc:
                problem = replace(exc.problem, severity=Severity.WARNING)
                await self.consent.missing(settings, problem)
            except Unavailable as exc:
                self._seen_file = None
                self._log.limited("drift").warning(
                    "drift-not-restored",
                    error=exc.problems[0].message,
                    remedy=exc.problems[0].remedy,
                )
            self._metrics.drifted(self.drifted)

    async def _mend_drift(self, settings: Settings, config: Config, *, is_missing: bool) -> None:
        file = settings.haproxy.config_file
        self._metrics.drift_seen()
        if settings.haproxy.drift == "adopt" and not is_missing:
            effect = "left until the configuration changes"
            self._log.warning("config-drift", file=file, effect=effect)
            return
        problem = await asyncio.to_thread(_obstacle, settings, config, self.running)
        if problem is not None:
            effect = "kept, because fc-frontend did not write it"
            self._log.warning("config-drift", file=file, effect=effect)
            raise NeedsConsent(problem)
        self._log.warning("config-drift", file=file, effect="restored")
        self._report.replaced(await asyncio.to_thread(_restore, settings, config, self.running))
        await self.consent.missing(settings, None)
        # Who edits it again meanwhile is seen at the next look.
        self._seen_file = None
        self.drifted = False

    async def look_at_consent(self) -> bool:
        """True if a step is due, because consent to replace haproxy.cfg may not be missing now."""
        if not await self.consent.changed():
            return False
        if not self.in_sync:
            return True
        self._seen_file = None
        await self.look_for_drift()
        return False

    async def drain(self) -> None:
        """Hold the running worker to what operators have drained; costs nothing if that is nothing.

        DNS gives the slots of drained pods to others, and empty slots to pods of drained services.
        """
        if self.deployed is None or self.running is None:
            return
        settings = self.deployed.settings
        signature = drain_record.signature(settings)
        if signature == self._drain_record and not self._drains:
            return
        declared = [service.spec.name for service in self.deployed.services]
        try:
            held = await asyncio.to_thread(
                drain_record.keep, settings, dict(self.resolution), declared
            )
        except Unavailable as exc:
            self._log.limited("not-drained").warning(
                "drain-failed", error=exc.problems[0].message, remedy=exc.problems[0].remedy
            )
            return
        self._drain_record = signature
        self._drains = bool(held.record)
        self.drained = {
            name: found for name in sorted(held.record.names) if (found := held.drained(name))
        }
        self._metrics.drained({name: len(found) for name, found in self.drained.items()})
        self._report.drains(held)

    def close(self) -> None:
        """Close the sockets to cluster DNS."""
        self._discovery.close()

    async def save(self) -> None:
        """Keep the answers for the next start, if they changed since they were last kept."""
        state, declaration = self.running_state, self.declaration
        if (
            state is None
            or declaration is None
            or (not self.has_unsaved_answers and state.is_saved)
        ):
            return
        # What changes while this is written is for the next time.
        unsaved, self.has_unsaved_answers = self.has_unsaved_answers, False
        is_saved = not unsaved
        settings = declaration.settings
        try:
            if unsaved:
                specs, answers = declaration.services, dict(self.resolution)
                await asyncio.to_thread(
                    save_answers, settings, specs, answers, memo=self._written_answers
                )
                is_saved = True
            await asyncio.to_thread(state.save, settings)
        except Unavailable as exc:
            self._metrics.state_not_written("answers")
            self._log.limited("state-not-saved").warning(
                "state-not-saved", reason=exc.problems[0].message, remedy=exc.problems[0].remedy
            )
        finally:
            self.has_unsaved_answers |= not is_saved

    async def _answers(self, declaration: Declaration) -> dict[str, Answer]:
        """The answers for declared services; DNS is asked about what it was not asked before."""
        specs, settings = declaration.services, declaration.settings
        if self._asked_of is not None and self._asked_of != settings.cluster:
            # What another cluster, or another name of it, said is worth nothing.
            self._discovery.close()
            self._declared_answers = {}
        if self.declaration is None and not self._declared_answers:
            stored = {}
            if is_same_cluster(self._base, settings, declaration.settings_file):
                stored = stored_answers(settings, specs)
            self._declared_answers = {
                question(spec): stored[spec.name] for spec in specs if spec.name in stored
            }
            pending: tuple[ServiceSpec, ...] = specs
        elif self._asked_of != settings.cluster:
            pending = specs
        else:
            known = self._known_answers(settings.cluster)
            pending = tuple(s for s in specs if question(s) not in known)
        self._asked_of = settings.cluster
        known = self._known_answers(settings.cluster)
        answers = {s.name: known[q] for s in specs if (q := question(s)) in known}
        back = [s for s in self._ways_back(self._base).values() if question(s) not in known]
        if back:
            found = await self._discovery.ask(tuple(back), settings, {})
            self._declared_answers |= {question(s): found[s.name] for s in back if s.name in found}
        if pending:
            asked = {spec.name: answers[spec.name] for spec in pending if spec.name in answers}
            found = await self._discovery.ask(pending, settings, asked)
            kept = {question(s) for s in self._ways_back(self._base).values()}
            self._declared_answers = {
                text: answer for text, answer in self._declared_answers.items() if text in kept
            } | {
                question(spec): found.get(spec.name) or answers[spec.name]
                for spec in specs
                if spec.name in found or spec.name in answers
            }
            answers.update(found)
            self.has_unsaved_answers = True
        return answers

    def _known_answers(self, cluster: Cluster) -> Mapping[str, Answer]:
        """Question → answer of `cluster`, of all services that are declared or run."""
        is_running = self.deployed is not None and self.deployed.settings.cluster == cluster
        running = {
            question(planned.spec): self.resolution[planned.spec.name]
            for planned in (self.deployed.services if self.deployed and is_running else ())
            if planned.spec.name in self.resolution
        }
        return {**self._declared_answers, **running}

    async def _revive(self) -> Deployment | None:
        """Nothing new is to be had: a supervised HAProxy must serve with the last good one."""
        declaration = self.declaration or self.read
        if declaration is None:
            return None
        deployment = await asyncio.to_thread(
            _revive, declaration.settings.state_directory, declaration.settings.haproxy, self.held
        )
        if deployment is None:
            return None
        if deployment.ok:
            self.observed(deployment.hash)
            self._log.info(
                "haproxy-revived", hash=deployment.hash, effect="it runs the last good one"
            )
        else:
            said = deployment.problems[0]
            self._log.limited("not-revived").error(
                "haproxy-not-revived", error=said.message, remedy=said.remedy
            )
        return deployment

    def _attempt(self, prepared: Prepared) -> None:
        """Write down what is about to be deployed, with copies of the files that it names."""
        assert prepared.config is not None
        declaration, state = prepared.declaration, self._known
        settings = declaration.settings
        self._copies = dict(state.confirmed.files)
        try:
            self._copies = kept_files.keep(
                settings.state_directory,
                kept_files.paths_in(prepared.config.unit_text),
                state.confirmed.named_files(),
            )
        except Unavailable as exc:
            self._metrics.state_not_written("files")
            self._log.limited("files-not-kept").warning(
                "files-not-kept", error=exc.problem.message, remedy=exc.problem.remedy
            )
        before, after = state.confirmed.services, declaration.raw.services
        former = former_after(self._guard.former, before, after, had_up=before)
        # Where it cannot be written, nothing can be deployed either.
        with contextlib.suppress(Unavailable):
            state.attempt(settings, self._declarations(prepared, former))

    def _declarations(self, prepared: Prepared, former: Former) -> RunningDeclarations:
        """What `prepared` is made of, for the next start."""
        assert self._sources is not None
        return deployed_declarations(
            prepared,
            self._known.confirmed,
            self._sources,
            copies=self._copies,
            former=former,
        )

    def _conclude(
        self, prepared: Prepared, deployment: Deployment, seen: float
    ) -> tuple[Reason, ...]:
        """Note how a deployment went; returns its reasons."""
        before = prepared.base.config.text if prepared.base.config else ""
        after = prepared.config.text if prepared.config else ""
        why = reasons(self.deployed, prepared.plan, changed_files(before, after))
        if self._resumes:
            others = (reason for reason in why if reason.cause is not ReloadCause.TEMPLATES)
            why = (Reason(ReloadCause.RESUMED), *others)
            self._resumes = not deployment.ok
        untried = (Outcome.IN_SYNC, Outcome.REFUSED, Outcome.NEEDS_CONSENT)
        if deployment.outcome not in untried:
            self.last_reload = ReloadResult(at=time.time(), reasons=why, deployment=deployment)
            result = "failed" if deployment.outcome is Outcome.FAILED else "ok"
            self._metrics.reloaded(why[0].cause, result, deployment.duration)
        if not deployment.ok:
            self._refuse((*prepared.problems, *deployment.problems), deployment)
            return why
        self._guard.watch(
            self._known.confirmed.services,
            prepared.declaration.raw.services,
            deployment.had_up,
            self._clock(),
        )
        self._accept(replace(prepared, problems=(*prepared.problems, *deployment.problems)))
        self._config = prepared.config
        self._seen_file = None
        self.drifted = deployment.consent is not None
        self._metrics.drifted(self.drifted)
        self._report.replaced(deployment.replaced)
        if deployment.outcome is Outcome.INSTALLED:
            self.observed(None)
        else:
            self.observed(deployment.hash)
        self._promote(prepared)
        self._report.deployed(deployment, why, prepared.plan)
        if deployment.outcome in (Outcome.RELOADED, Outcome.STARTED):
            self._metrics.converged(self._clock() - seen)
        self.resolution = with_slots(prepared.plan, self.resolution)
        self._unassigned = True
        self.has_unsaved_answers = True
        return why

    async def _keep(
        self, prepared: Prepared, deployment: Deployment, why: tuple[Reason, ...]
    ) -> None:
        """Keep what was done in the history, and what is good now for the next start."""
        await self._record(prepared, deployment, why)
        if deployment.ok and self.declaration is not None:
            settings = self.declaration.settings
            await asyncio.to_thread(kept_files.forget, settings.state_directory, self._copies)
            await self.save()
            if not self._refused:
                self._patience.relax()
                await asyncio.to_thread(forget_refused, settings.haproxy)
            if not self._tidied:
                self._tidied = True
                places = (str(Path(settings.haproxy.config_file).parent), settings.state_directory)
                await asyncio.to_thread(files.remove_leftovers, places)

    async def _record(
        self, prepared: Prepared, deployment: Deployment, why: tuple[Reason, ...]
    ) -> None:
        if prepared.config is None:
            return
        try:
            await asyncio.to_thread(record, prepared, deployment, tuple(str(r) for r in why))
        except Unavailable as exc:
            self._metrics.state_not_written("history")
            self._log.limited("history-not-kept").warning(
                "history-not-kept", error=exc.problems[0].message, remedy=exc.problems[0].remedy
            )

    def _accept(self, prepared: Prepared) -> None:
        assert prepared.config is not None
        self.resolution = self._newest(prepared)
        self.declaration = prepared.declaration
        self.deployed = prepared.plan
        self.wanted = prepared.config.hash
        self._note_removals(prepared)
        self._report.withhold(prepared.withheld)
        self._report.note(prepared.problems)
        self._metrics.planned(prepared.plan, self.resolution)
        self._metrics.synced(self.wanted, self.running)

    def _note_removals(self, prepared: Prepared) -> None:
        self._removals.note(bool(prepared.waiting), self._clock())
        self._report.waiting(prepared.waiting)

    def _newest(self, prepared: Prepared) -> dict[str, Answer]:
        """The answers for what `prepared` has; a sweep may have brought newer ones meanwhile."""
        asked = {
            each.spec.name: question(each.spec)
            for each in (self.deployed.services if self.deployed else ())
        }
        found = dict(prepared.resolution)
        for spec in prepared.declaration.services:
            if asked.get(spec.name) == question(spec) and spec.name in self.resolution:
                found[spec.name] = self.resolution[spec.name]
        return found

    def _promote(self, prepared: Prepared) -> None:
        """Note that HAProxy has `prepared`, or will have it when it is started."""
        assert prepared.config is not None
        self._known.promote(self._declarations(prepared, self._guard.former))
        self._base = base_of(
            prepared,
            self._known.confirmed,
            is_running=prepared.config.hash == self.running or self._leaves_drift,
        )

    async def guard(self) -> bool:
        """Look at the services that reloads changed; True if one has to be reverted.

        A service that had servers up, and has none since it was changed, goes back to its former
        form, with the evidence.  It does not matter whether the files have a mistake by now.
        """
        if self._config is None or self._config.hash != self.running or not self._guard.former:
            return False
        assert self.deployed is not None
        try:
            servers = await asyncio.to_thread(
                runtime.servers_with_address, self.deployed.settings.haproxy.runtime_socket
            )
        except Unavailable:
            return False
        if self.is_busy():
            return False
        with_pods = {name for name, answer in self.resolution.items() if answer.endpoints}
        lost = self._guard.look(proxies_up(servers), with_pods, self._clock())
        reverted = [name for name, form in lost.items() if self._take_back(name, form, servers)]
        if not reverted:
            confirmed, former = self._known.confirmed, self._guard.former
            self._known.promote(replace(confirmed, former=dict(former)))
        await self.save()
        return bool(reverted)

    def _take_back(self, name: str, form: RawDeclaration, servers: tuple[ServerState, ...]) -> bool:
        """Revert a service to `form`; False if it is not deployed any more."""
        confirmed = self._known.confirmed
        if name not in confirmed.services:
            return False
        down = sum(server.proxy == name and bool(server.address) for server in servers)
        which = (
            "its only server failed its" if down == 1 else f"all of its {down} servers failed their"
        )
        evidence = f"{which} checks after the reload"
        watched = replace(confirmed, former=dict(self._guard.former))
        self._known.promote(watched.after_failure(name, evidence, form))
        self._base = replace(self._base, declarations=self._known.confirmed)
        self._log.error("service-reverted", service=name, reason=evidence)
        return True

    def _refuse(self, problems: Iterable[Problem], deployment: Deployment | None = None) -> None:
        """Nothing changes, and why."""
        self.wanted = None
        self._metrics.synced(None, self.running)
        self._report.refusal(problems, deployment)


class _CheckNeeded(Exception):
    """Something has to be checked before it can be deployed."""


def _needs_check(_candidate: Candidate, _is_trial: bool) -> tuple[Problem, ...]:
    raise _CheckNeeded


def _revive(directory: str, haproxy: Haproxy, held: Hold | None) -> Deployment | None:
    if not haproxy.supervise:
        return None
    try:
        with deploying(directory, haproxy.check_timeout + haproxy.reload_timeout):
            return revive(haproxy, held)
    except Unavailable as exc:
        return Deployment(outcome=Outcome.FAILED, hash="", problems=exc.problems)


def _hash_in_force(haproxy: Haproxy) -> str | None:
    """The hash of what HAProxy runs or, if it does not answer, of the file it would start with."""
    with contextlib.suppress(Unavailable):
        return runtime.running_hash(haproxy.runtime_socket)
    with contextlib.suppress(Unavailable):
        installed = install.read(haproxy.config_file)
        return config_hash(installed.decode("utf-8", "replace")) if installed else None
    return None


def _obstacle(settings: Settings, config: Config, running: str | None) -> Problem | None:
    """Why haproxy.cfg may not be written again; None if it may.  Raises `Unavailable`."""
    worker = take_over.worker_of(settings, running, (config.hash,))
    data = config.text.encode("utf-8", "surrogateescape")
    return take_over.obstacle(settings, data, worker, (config.hash,))


def _restore(settings: Settings, config: Config, running: str | None) -> Replaced | None:
    """Write haproxy.cfg again; None if something is held.  Raises as `take_over.install` does."""
    haproxy, directory = settings.haproxy, settings.state_directory
    with deploying(directory, haproxy.check_timeout + haproxy.reload_timeout):
        if hold.load(directory) is not None:
            return None
        data = config.text.encode("utf-8", "surrogateescape")
        worker = take_over.worker_of(settings, running, (config.hash,))
        replaced = take_over.install(settings, data, worker, known=(config.hash,))
        take_over.finish(settings, data)
        return replaced


def _as_installed(haproxy: Haproxy, services: Iterable[ServicePlan]) -> list[ServicePlan]:
    """Those whose slots are for the runtime API, and for the same pods, in haproxy.cfg too."""
    try:
        text = (install.read(haproxy.config_file) or b"").decode("utf-8", "replace")
    except Unavailable:
        return []
    found = servers_in(text)
    return [
        service
        for service in services
        if any(
            servers.is_disabled and servers.target == service.query
            for servers in found.get(service.spec.name, ())
        )
    ]


def _assign(settings: Settings, services: tuple[ServicePlan, ...]) -> Assigned:
    drained, _ = drain_record.load(settings)
    return assign(settings.haproxy, services, drained)


def _save_as_it_runs(settings: Settings) -> None:
    installed = install.read(settings.haproxy.config_file) or b""
    text = installed.decode("utf-8", "replace")
    running = runtime.servers_with_address(settings.haproxy.runtime_socket)
    save_running(settings, text, text, running)


def _updated(now: Resolution, before: Resolution, answers: Resolution) -> dict[str, Answer]:
    """`now` with what a sweep that began with `before` found to be different.

    A step may have brought others meanwhile.  What did not change stays the same object: what
    follows from it is not worked out again.
    """
    updated = dict(now)
    for name, answer in answers.items():
        old, current = before.get(name), now.get(name)
        if answer == old or (current is None and old is not None):
            continue
        has_moved = current is not None and current is not old
        updated[name] = (
            replace(answer, slots=current.slots, by_runtime=current.by_runtime)
            if current is not None and has_moved
            else answer
        )
    return updated


def _shape(services: Iterable[ServicePlan]) -> list[tuple[object, ...]]:
    """What of a plan reaches haproxy.cfg by way of DNS."""
    return [
        (
            s.spec.name,
            s.kind,
            s.query,
            s.slots,
            s.fallback_query,
            s.by_runtime,
            s.standby,
            s.is_h2c,
        )
        for s in services
    ]
