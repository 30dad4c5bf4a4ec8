"""Bring HAProxy to the declared configuration: observe, isolate, decide, execute; under one lock.

    observe ─► base ─► isolate (checks, haproxy -c, obstacles) ─► decide ─► execute

The daemon and `apply` call the same function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from fc_frontend.config.loader import Sources
from fc_frontend.config.running import RawDeclaration, RunningDeclarations
from fc_frontend.decide import (
    FileState,
    Idle,
    Nothing,
    Observed,
    Policy,
    Refusal,
    Refuse,
    Restore,
    StartInstalled,
    State,
    decide,
)
from fc_frontend.errors import Problem, Refused, Unavailable, errors_in
from fc_frontend.haproxy import consent, hold, install, kept_files, runtime
from fc_frontend.haproxy.certificates.bring import Keeper
from fc_frontend.haproxy.consent import Consent
from fc_frontend.haproxy.deploy import (
    Deployment,
    Outcome,
    Running,
    execute,
    look_for_obstacles,
    missing_consent,
    needs_consent,
    observe,
    refused,
    stay,
)
from fc_frontend.haproxy.failed_reloads import Attempt
from fc_frontend.haproxy.judge import judge
from fc_frontend.haproxy.lock import deploying
from fc_frontend.haproxy.patience import Patience
from fc_frontend.model.units import UnitId
from fc_frontend.pipeline import Base, Candidate, Check, Prepared, find_base
from fc_frontend.plan.model import Settings
from fc_frontend.render.config import Config, config_hash
from fc_frontend.stored import RunningState
from fc_frontend.syntax.binds import read_listeners

Propose = Callable[[Base, Check], Prepared]
"""Returns the configuration to deploy, given the base of changes and the check of a candidate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """The prepared configuration, None if none was needed, and the result of its deployment."""

    prepared: Prepared | None
    deployment: Deployment


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of a rollout.

    `output` is the file to which a supervised HAProxy writes if it has to be started.  `patience`
    limits the duration of checks.  If `is_forced`, changes that failed at a reload are retried
    unchanged; if `is_strict`, nothing is deployed while a change is withheld.  `given`, the consent
    to replace haproxy.cfg, and `consents` to changes are recorded first.  `advance` is called
    whenever there is progress, and `checked` with each verdict of HAProxy.  `keeper` caches
    certificates.
    """

    output: str | None = None
    patience: Patience = field(default_factory=Patience)
    is_forced: bool = False
    is_strict: bool = False
    given: Consent | None = None
    consents: Mapping[UnitId, str] = field(default_factory=dict)
    advance: Callable[[], None] = lambda: None
    checked: Callable[[bool], None] = lambda _accepted: None
    keeper: Keeper | None = None


def roll_out(
    settings: Settings,
    state: RunningState,
    propose: Propose,
    attempt: Callable[[Prepared], None],
    options: Options,
) -> Rollout:
    """Deploy what `propose` returns to HAProxy; failures are returned, not raised.

    `settings` locate HAProxy and the lock.  `attempt` is called before anything changes.
    """
    wait = settings.haproxy.check_timeout + settings.haproxy.reload_timeout
    prepared: Prepared | None = None
    try:
        with deploying(settings.state_directory, wait) as unlocked:
            held = hold.load(settings.state_directory)
            if held is not None:
                problems = (hold.problem(held),)
                deployment = Deployment(outcome=Outcome.HELD, hash="", problems=problems)
                return Rollout(prepared=None, deployment=deployment)
            if options.given is not None:
                consent.give(settings.state_directory, options.given)
            running = observe(settings.haproxy)
            state.refresh()
            state.consent(settings, options.consents)
            state.confirm(running.hash)
            base = find_base(settings, state.confirmed, state.pending, running.hash)
            checks = _Checks(running, options)
            prepared = propose(base, checks.check)
            deployment = _deploy(prepared, running, checks, attempt, options)
            deployment = replace(deployment, problems=(*deployment.problems, *unlocked))
    except (Unavailable, Refused) as exc:
        digest = prepared.config.hash if prepared and prepared.config else ""
        deployment = Deployment(outcome=Outcome.FAILED, hash=digest, problems=exc.problems)
    if prepared is not None:
        located = map(prepared.declaration.located, deployment.problems)
        deployment = replace(deployment, problems=tuple(located))
    return Rollout(prepared=prepared, deployment=deployment)


def deployed_declarations(
    prepared: Prepared,
    confirmed: RunningDeclarations,
    sources: Sources,
    *,
    copies: Mapping[str, str] = MappingProxyType({}),
    former: Mapping[str, tuple[RawDeclaration, ...]] = MappingProxyType({}),
) -> RunningDeclarations:
    """Return the declarations that make up `prepared`, for the next start.

    `confirmed` are the declarations that ran before, `copies` are the files that the text names,
    each with the name of its copy, and `former` are the forms to which the guard can revert.  A
    failed declaration remains recorded until the service runs in another form that its file
    declares.  Consents remain until the files change.
    """
    assert prepared.config is not None
    raw, declared = prepared.declaration.raw, sources.services
    withheld = {each.unit.name for each in prepared.withheld}
    forced = {unit.name for unit in prepared.declaration.forced}

    def is_settled(name: str, forms: tuple[RawDeclaration, ...]) -> bool:
        running = raw.services[name].value
        has_failed = running in [each.value for each in forms]
        return name in declared and declared[name].value == running and not has_failed

    failed = {
        name: forms
        for name, forms in confirmed.failed.items()
        if name in withheld
        or (name in raw.services and name not in forced and not is_settled(name, forms))
    }
    return replace(
        raw,
        failed=failed,
        former=dict(former),
        files=dict(copies),
        withheld={each.unit: each.fingerprint for each in prepared.withheld},
        consents={
            unit: agreed
            for unit, agreed in confirmed.consents.items()
            if unit in prepared.declaration.forced
        },
        hash=prepared.config.hash,
    )


class _Checks:
    """All checks that can refuse a candidate, given the observed state of HAProxy."""

    def __init__(self, running: Running, options: Options) -> None:
        self._running = running
        self._options = options
        self._known_serving: frozenset[str] | None = None
        self.refused: tuple[Config, tuple[Problem, ...]] | None = None
        """The first text that HAProxy refused, and the reasons."""

    def _serving(self, settings: Settings) -> frozenset[str]:
        """Return the proxies that serve; for a HAProxy that is taken over, the binds as well."""
        if self._known_serving is None:
            found = runtime.serving(self._running.servers)
            if found and self._running.hash is None:
                found |= _binds_of_others(settings)
            self._known_serving = found
        return self._known_serving

    def check(self, candidate: Candidate, is_trial: bool) -> tuple[Problem, ...]:
        """Return the problems that refuse `candidate`, and warnings.  Raises `Unavailable`."""
        options, config = self._options, candidate.config
        options.advance()
        settings = candidate.plan.settings
        if left := candidate.left_without_server(self._serving(settings)):
            return left
        judgement = judge(
            settings.haproxy,
            config,
            candidate.plan,
            kept=kept_files.directory(settings.state_directory),
            patience=options.patience,
            is_trial=is_trial,
        )
        options.checked(judgement.accepted)
        found = judgement.problems
        if not judgement.accepted:
            self.refused = self.refused or (config, found)
            return found
        obstacles = look_for_obstacles(candidate.plan, config, self._running)
        attempt = Attempt(settings, config, candidate.plan, is_forced=options.is_forced)
        failed = [each for each in attempt.rejected(self._running.taker) if each.unit is not None]
        return (*found, *obstacles, *failed)


def _binds_of_others(settings: Settings) -> frozenset[str]:
    """Return the binds of a haproxy.cfg that fc-frontend did not write."""
    try:
        data = install.read(settings.haproxy.config_file)
    except Unavailable:
        return frozenset()
    text = data.decode("utf-8", "surrogateescape") if data else ""
    listeners = () if config_hash(text) else read_listeners(text).listeners
    return frozenset(str(found.endpoint) for _, found in listeners)


def _deploy(
    prepared: Prepared,
    running: Running,
    checks: _Checks,
    attempt: Callable[[Prepared], None],
    options: Options,
) -> Deployment:
    settings, config = prepared.plan.settings, prepared.config
    refused_file = _keep_refused(settings, checks)
    state = State(
        observed=_observed(settings, running),
        policy=Policy(supervises=settings.haproxy.supervise),
        desired=config,
        refused=errors_in(prepared.problems),
    )
    if config is None:
        action = decide(state)
        if isinstance(action, StartInstalled | Refuse):
            return Deployment(
                outcome=Outcome.REFUSED,
                hash="",
                problems=state.refused,
                checked=checks.refused is not None,
                refused_file=refused_file,
            )
        raise AssertionError(action)
    is_first = prepared.base.config is None and running.is_alive
    if prepared.withheld and (is_first or options.is_strict):
        # The running configuration is not replaced by less than the declared one.
        withheld = tuple(problem for each in prepared.withheld for problem in each.problems)
        return Deployment(
            outcome=Outcome.REFUSED,
            hash=config.hash,
            problems=withheld,
            checked=checks.refused is not None,
            refused_file=refused_file,
        )
    problem = missing_consent(settings, config, running)
    trying = Attempt(settings, config, prepared.plan, is_forced=options.is_forced)
    rejected = tuple(each for each in trying.rejected(running.taker) if each.unit is None)
    state = replace(state, has_consent=problem is None, failed=config.hash if rejected else None)
    action = decide(state)
    match action:
        case Refuse(Refusal.FOREIGN_FILE):
            assert problem is not None
            return needs_consent(config, problem)
        case Nothing(Idle.ALREADY_FAILED):
            return replace(refused(settings.haproxy, config, rejected), refused_file=None)
        case Nothing(Idle.IN_SYNC | Idle.DRIFT_LEFT) | Restore():
            return stay(settings, config, running)
    attempt(prepared)
    options.advance()
    deployment = execute(
        prepared.plan,
        config,
        prepared.resolution,
        running,
        trying,
        output=options.output,
        keeper=options.keeper,
    )
    return replace(deployment, refused_file=refused_file)


def _observed(settings: Settings, running: Running) -> Observed:
    data = None
    try:
        data = install.read(settings.haproxy.config_file)
    except Unavailable:
        return Observed(is_running=running.is_alive, running=running.hash, file=FileState.FOREIGN)
    digest = config_hash(data.decode("utf-8", "surrogateescape")) if data is not None else None
    file = FileState.MISSING
    if data is not None:
        file = FileState.OURS if digest else FileState.EDITED
    return Observed(is_running=running.is_alive, running=running.hash, file=file, installed=digest)


def _keep_refused(settings: Settings, checks: _Checks) -> str | None:
    """Keep the text that HAProxy refused beside haproxy.cfg, for the operator."""
    if checks.refused is None:
        return None
    return refused(settings.haproxy, *checks.refused).refused_file
