"""Deploy a configuration to HAProxy: install, reload and confirm it, or change nothing.

If any step fails, the last good file is restored on disk, and HAProxy continues to run its current
configuration.  `rollout` decides what to deploy; a rollback deploys a text that is already known.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from fc_frontend import files
from fc_frontend.errors import Problem, Refused, Severity, Unavailable, errors_in
from fc_frontend.files import Attributes
from fc_frontend.haproxy import (
    drain_record,
    history,
    install,
    kept_files,
    maps,
    runtime,
    supervise,
    take_over,
)
from fc_frontend.haproxy.binary import find_binary
from fc_frontend.haproxy.certificates.bring import Keeper
from fc_frontend.haproxy.failed_reloads import Attempt
from fc_frontend.haproxy.history import own_hash
from fc_frontend.haproxy.hold import Hold
from fc_frontend.haproxy.judge import judge
from fc_frontend.haproxy.master import Processes, show_proc
from fc_frontend.haproxy.reload import (
    ReloadOutcome,
    confirm,
    confirm_foreign,
    reload_by_command,
    reload_by_master,
    unconfirmed,
)
from fc_frontend.haproxy.server_state import server_state, state_of_running
from fc_frontend.haproxy.socket import NoListener
from fc_frontend.haproxy.take_over import NeedsConsent, Replaced
from fc_frontend.haproxy.trial import Taker, trial
from fc_frontend.haproxy.version import binary_version, parse_version
from fc_frontend.plan.model import Haproxy, Plan, Resolution, Settings
from fc_frontend.render.config import Config, config_hash
from fc_frontend.text import whole_number


class Outcome(StrEnum):
    """The outcome of a deployment; the values are labels of a metric."""

    IN_SYNC = "in-sync"
    """The running worker already has the configuration: nothing was done."""
    ROUTED = "routed"
    """Only routes and addresses of the running worker differed; updated without a reload."""
    RELOADED = "reloaded"
    STARTED = "started"
    """A supervised HAProxy was started with the configuration."""
    INSTALLED = "installed"
    """HAProxy does not run; it loads the configuration when it is started."""
    REFUSED = "refused"
    """HAProxy's check failed, or a trial of what it does not cover.  Nothing was changed."""
    FAILED = "failed"
    """The installation failed, or the running worker did not load it.  Everything was restored."""
    HELD = "held"
    """An operator holds another configuration: nothing was done."""
    NEEDS_CONSENT = "needs-consent"
    """haproxy.cfg was not written by fc-frontend and may serve clients.  Nothing was changed."""


_OK = (Outcome.IN_SYNC, Outcome.ROUTED, Outcome.RELOADED, Outcome.STARTED, Outcome.INSTALLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """The result of a deployment.  `duration` is that of the reload or start, in seconds."""

    outcome: Outcome
    hash: str
    problems: tuple[Problem, ...] = ()
    duration: float = 0.0
    checked: bool = False
    refused_file: str | None = None
    had_up: frozenset[str] = frozenset()
    """Proxies that had a server up just before."""
    reload: ReloadOutcome | None = None
    """The result of the failed reload, if HAProxy was asked for one."""
    replaced: Replaced | None = None
    """The former haproxy.cfg, if it was replaced."""
    consent: Problem | None = None
    """Why haproxy.cfg was not replaced without consent, whether HAProxy needs it or not."""

    @property
    def ok(self) -> bool:
        """Whether HAProxy has the configuration, or loads it when it is started."""
        return self.outcome in _OK


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """The current state of HAProxy, as far as it answers."""

    hash: str | None = None
    processes: Processes | None = None
    worker: int | None = None
    servers: tuple[runtime.ServerState, ...] = ()
    """The servers that have an address."""

    @property
    def is_alive(self) -> bool:
        """Whether a HAProxy answers on one of its sockets."""
        return self.worker is not None or self.processes is not None

    @property
    def pids(self) -> frozenset[int]:
        """The processes that hand their sockets over in a reload."""
        known = self.processes.pids if self.processes else frozenset()
        return known | ({self.worker} if self.worker else frozenset())

    @property
    def taker(self) -> Taker:
        """The HAProxy that is to take over the listeners of another configuration."""
        master = self.processes.master if self.processes else None
        return Taker(self.hash, self.pids, master)


def observe(haproxy: Haproxy) -> Running:
    """Return the current state of HAProxy; fields are empty where it does not answer."""
    worker_hash = worker = None
    servers: tuple[runtime.ServerState, ...] = ()
    processes = None
    with contextlib.suppress(Unavailable):
        info = runtime.info(haproxy.runtime_socket)
        worker_hash = runtime.hash_in(info)
        worker = whole_number(info.get("Pid"))
        servers = runtime.servers_with_address(haproxy.runtime_socket)
    with contextlib.suppress(Unavailable):
        processes = show_proc(haproxy.master_socket)
    return Running(hash=worker_hash, processes=processes, worker=worker, servers=servers)


def proxies_up(servers: Iterable[runtime.ServerState]) -> frozenset[str]:
    """Return the proxies that have a server which accepts new connections."""
    return frozenset(server.proxy for server in servers if server.up)


def deploy_text(
    settings: Settings,
    config: Config,
    *,
    output: str | None,
    first: Callable[[], None],
    is_forced: bool = False,
    attributes: Attributes | None = None,
) -> Deployment:
    """Deploy a configuration of which only the text is known.

    Pods that the worker knows keep their addresses; the declaration is not used.  `first` is called
    once HAProxy has accepted the text, before anything is changed; it may raise `Unavailable`.
    haproxy.cfg gets `attributes` if they are given.  Callers must hold the `deploying` lock.
    """
    haproxy = settings.haproxy

    def write_state(running: Running) -> tuple[Problem, ...]:
        before = _text_of(running, haproxy)
        said = save_running(settings, config.text, before, running.servers)
        first()
        return said

    try:
        running = observe(haproxy)
        if running.hash == config.hash:
            first()
        return _bring_text(
            settings,
            config,
            running,
            write_state=write_state,
            output=output,
            is_forced=is_forced,
            attributes=attributes,
        )
    except (Unavailable, Refused) as exc:
        return Deployment(outcome=Outcome.FAILED, hash=config.hash, problems=exc.problems)


def execute(
    plan: Plan,
    config: Config,
    resolution: Resolution,
    running: Running,
    attempt: Attempt,
    *,
    output: str | None,
    keeper: Keeper | None = None,
) -> Deployment:
    """Install `config`, which passed all checks, and make HAProxy reload or start with it.

    Callers must hold the `deploying` lock and pass the observed state in `running`.  `output` is
    the file to which a supervised HAProxy writes if it has to be started; without it, HAProxy
    inherits standard output.  `keeper` caches certificates.  Raises `Refused` and `Unavailable`.
    """
    # The new worker loads the certificates; the running worker checks them first.
    (keeper or Keeper()).bring(plan.settings, plan.frontends)
    deployment = _install_and_activate(
        plan.settings,
        config,
        running,
        attempt,
        write_state=lambda running: _write_server_state(plan, resolution, running, config.text),
        output=output,
    )
    if deployment.outcome in (Outcome.RELOADED, Outcome.STARTED):
        said = _drain_again(plan, resolution)
        return replace(deployment, problems=(*deployment.problems, *said))
    return deployment


def look_for_obstacles(plan: Plan, config: Config, running: Running) -> tuple[Problem, ...]:
    """Return the obstacles to a reload with `config` that HAProxy's own check does not report."""
    return trial(plan.settings.haproxy, config, running.taker, plan=plan)


def stay(settings: Settings, config: Config, running: Running) -> Deployment:
    """Update the routes and haproxy.cfg of a HAProxy that already runs `config`.

    Raises `Unavailable`, with haproxy.cfg as before.
    """
    data = config.text.encode("utf-8", "surrogateescape")
    worker = take_over.worker_of(settings, running.hash, (config.hash,))
    in_sync = Deployment(outcome=Outcome.IN_SYNC, hash=config.hash)
    try:
        replaced = take_over.install(settings, data, worker, known=(config.hash,))
    except NeedsConsent as exc:
        warning = replace(exc.problem, severity=Severity.WARNING)
        return replace(in_sync, problems=(warning,), consent=warning)
    started = time.monotonic()
    try:
        if maps.follow(settings, config.text):
            duration = time.monotonic() - started
            in_sync = replace(in_sync, outcome=Outcome.ROUTED, duration=duration)
    except Unavailable:
        take_over.undo(settings, replaced, data)
        raise
    return replace(in_sync, replaced=replaced, problems=take_over.finish(settings, data))


def missing_consent(settings: Settings, config: Config, running: Running) -> Problem | None:
    """Return why haproxy.cfg may not become `config`, or None.  Raises `Unavailable`."""
    data = config.text.encode("utf-8", "surrogateescape")
    worker = take_over.worker_of(settings, running.hash, (config.hash,))
    return take_over.obstacle(settings, data, worker, (config.hash,))


def _bring_text(
    settings: Settings,
    config: Config,
    running: Running,
    *,
    write_state: Callable[[Running], tuple[Problem, ...]],
    output: str | None,
    is_forced: bool,
    attributes: Attributes | None,
) -> Deployment:
    """Check, try, install and activate a text."""
    haproxy = settings.haproxy
    if running.hash == config.hash:
        return stay(settings, config, running)
    if (problem := missing_consent(settings, config, running)) is not None:
        return needs_consent(config, problem)
    kept = kept_files.directory(settings.state_directory)
    judgement = judge(haproxy, config, kept=kept)
    said = judgement.problems
    if not judgement.accepted:
        return refused(haproxy, config, said)
    attempt = Attempt(settings, config, is_forced=is_forced)
    found = trial(haproxy, config, running.taker)
    found = (*found, *attempt.rejected(running.taker))
    if errors_in(found):
        return replace(refused(haproxy, config, (*found, *said)), refused_file=None)
    return _install_and_activate(
        settings,
        config,
        running,
        attempt,
        write_state=write_state,
        output=output,
        attributes=attributes,
        said=said,
    )


def _install_and_activate(
    settings: Settings,
    config: Config,
    running: Running,
    attempt: Attempt,
    *,
    write_state: Callable[[Running], tuple[Problem, ...]],
    output: str | None,
    attributes: Attributes | None = None,
    said: tuple[Problem, ...] = (),
) -> Deployment:
    haproxy, data = settings.haproxy, config.text.encode("utf-8", "surrogateescape")
    known = (config.hash,)
    worker = take_over.worker_of(settings, running.hash, known)
    said = (*said, *write_state(running))
    try:
        replaced = take_over.install(settings, data, worker, known=known, attributes=attributes)
    except NeedsConsent as exc:
        return needs_consent(config, exc.problem)
    try:
        deployment = _activate(haproxy, config, running, output)
    except Unavailable as exc:
        deployment = Deployment(outcome=Outcome.FAILED, hash=config.hash, problems=exc.problems)
    if deployment.outcome is not Outcome.FAILED:
        said = (*said, *attempt.succeeded(), *take_over.finish(settings, data))
    else:
        take_over.undo(settings, replaced, data)
        if deployment.reload is not None:
            said = (*said, *attempt.failed(observe(haproxy).taker, deployment.reload))
    return replace(
        deployment,
        checked=True,
        problems=(*deployment.problems, *said),
        had_up=proxies_up(running.servers),
        replaced=replaced,
    )


def needs_consent(config: Config, problem: Problem) -> Deployment:
    """Return the outcome that haproxy.cfg may not be replaced without consent."""
    return Deployment(
        outcome=Outcome.NEEDS_CONSENT, hash=config.hash, problems=(problem,), consent=problem
    )


def revive(
    haproxy: Haproxy, held: Hold | None = None, *, output: str | None = None
) -> Deployment | None:
    """Start a supervised HAProxy that does not run, with the installed configuration.

    Used when the declared configuration is refused: the last good configuration is on disk, and
    HAProxy must serve with it.  Returns None if HAProxy runs, if fc-frontend does not supervise it,
    or if the installed configuration is neither written by fc-frontend nor `held`.
    """
    if not haproxy.supervise:
        return None
    try:
        installed = install.read(haproxy.config_file) or b""
        digest = own_hash(installed.decode("utf-8", "surrogateescape"))
        proof = digest
        if held is not None and held.hash == history.digest_of(installed):
            digest = held.hash
        if digest is None or supervise.running(haproxy.master_socket) is not None:
            return None
        started = time.monotonic()
        _start(haproxy, proof, output)
    except Unavailable as exc:
        return Deployment(outcome=Outcome.FAILED, hash="", problems=exc.problems)
    duration = time.monotonic() - started
    return Deployment(outcome=Outcome.STARTED, hash=digest, duration=duration)


def reload_again(settings: Settings, *, output: str | None) -> Deployment:
    """Make HAProxy reload, to load changed files that the installed configuration names.

    The configuration itself does not change; a worker that runs another one is left alone.  Callers
    must hold the `deploying` lock.  Raises `Unavailable`.
    """
    haproxy = settings.haproxy
    text = (install.read(haproxy.config_file) or b"").decode("utf-8", "surrogateescape")
    running, digest = observe(haproxy), config_hash(text)
    if digest is None or running.hash != digest:
        raise Unavailable.of(
            "HAProxy does not run the installed configuration", "see `fc-frontend status`"
        )
    said = save_running(settings, text, text, running.servers)
    deployment = _activate(haproxy, Config(text, digest), running, output)
    return replace(deployment, problems=(*deployment.problems, *said))


def _start(haproxy: Haproxy, digest: str | None, output: str | None) -> None:
    supervise.start(
        find_binary(haproxy.binary),
        haproxy.config_file,
        haproxy.master_socket,
        timeout=haproxy.reload_timeout,
        expected_hash=digest,
        runtime_socket=haproxy.runtime_socket,
        output=output,
    )


def refused(haproxy: Haproxy, config: Config, said: tuple[Problem, ...]) -> Deployment:
    """Return the outcome that `config` is refused; keep its text beside haproxy.cfg."""
    refused_file: str | None = None
    try:
        refused_file = install.write_refused(haproxy.config_file, config.text)
    except Unavailable as exc:
        said = (*said, *(replace(p, severity=Severity.WARNING) for p in exc.problems))
    return Deployment(
        outcome=Outcome.REFUSED,
        hash=config.hash,
        problems=said,
        checked=True,
        refused_file=refused_file,
    )


def forget_refused(haproxy: Haproxy) -> None:
    """Remove the saved refused text, once nothing is refused any more."""
    # An old refused file does no harm: it contains its own hash.
    with contextlib.suppress(Unavailable):
        install.clear_refused(haproxy.config_file)


def server_state_now(plan: Plan, resolution: Resolution) -> bytes:
    """Return the state of the running worker's servers, for a start outside fc-frontend.

    Raises `Unavailable`.
    """
    socket = plan.settings.haproxy.runtime_socket
    servers = runtime.servers_with_address(socket)
    installed = install.read(plan.settings.haproxy.config_file)
    text = installed.decode("utf-8", "replace") if installed else ""
    drained, _ = drain_record.load(plan.settings)
    state = server_state(plan, resolution, servers, drained=drained, text=text, before=text)
    return state.encode()


def save_running(
    settings: Settings, text: str, before: str, servers: Iterable[runtime.ServerState]
) -> tuple[Problem, ...]:
    """Save `servers`, which run with the text `before`, for a start with `text`.

    Returns the problems of reading the record of drains.  Raises `Unavailable`.
    """
    drained, problems = drain_record.load(settings)
    state = state_of_running(text, before, servers, drained=drained)
    files.write_own(settings.server_state_file, state.encode())
    return problems


def _write_server_state(
    plan: Plan, resolution: Resolution, running: Running, text: str
) -> tuple[Problem, ...]:
    """Write the state file for `text`; return the problems of reading the record of drains."""
    files.make_directory(plan.settings.state_directory, mode=0o750)
    drained, problems = drain_record.load(plan.settings)
    before = _text_of(running, plan.settings.haproxy)
    state = server_state(
        plan, resolution, running.servers, drained=drained, text=text, before=before
    )
    files.write_own(plan.settings.server_state_file, state.encode())
    return problems


def _text_of(running: Running, haproxy: Haproxy) -> str:
    """Return the text that the worker runs, or an empty one if it is not known."""
    installed = install.read(haproxy.config_file)
    text = installed.decode("utf-8", "replace") if installed else ""
    return text if config_hash(text) == running.hash else ""


def _drain_again(plan: Plan, resolution: Resolution) -> tuple[Problem, ...]:
    """Drain what the state file cannot express: the empty slots of entirely drained services."""
    declared = [service.spec.name for service in plan.services]
    try:
        drain_record.keep(plan.settings, resolution, declared)
    except Unavailable as exc:
        return tuple(replace(p, severity=Severity.WARNING) for p in exc.problems)
    return ()


def _activate(haproxy: Haproxy, config: Config, running: Running, output: str | None) -> Deployment:
    started = time.monotonic()
    outcome = Outcome.RELOADED
    # A text that fc-frontend did not write has no digest for its worker to report.
    proof = config.hash if own_hash(config.text) == config.hash else None
    if haproxy.reload_command:
        result = reload_by_command(haproxy.reload_command, haproxy.reload_timeout)
    elif running.processes is not None:
        version = parse_version(running.processes.version or _binary_version(haproxy))
        result = reload_by_master(haproxy.master_socket, version, haproxy.reload_timeout)
    elif haproxy.supervise:
        _start(haproxy, proof, output)
        outcome = Outcome.STARTED
        result = ReloadOutcome(True, "", time.monotonic() - started)
    else:
        return _without_master(haproxy, config, running)
    left = haproxy.reload_timeout - (time.monotonic() - started)
    if not result.ok:
        confirmed = False
    elif proof is None:
        confirmed = confirm_foreign(haproxy, running.processes, left)
    else:
        master = running.processes.master if running.processes else None
        confirmed = confirm(haproxy.runtime_socket, proof, left, master)
    duration = time.monotonic() - started
    if confirmed:
        return Deployment(outcome=outcome, hash=config.hash, duration=duration)
    if result.ok:
        problem = unconfirmed(config.hash, observe(haproxy).hash, haproxy.reload_timeout)
    else:
        problem = Problem(
            message=f"the reload failed: {result.message}",
            remedy="see HAProxy's log; it is tried again when its text or what blocked it changes, "
            "or by `fc-frontend apply --force`",
        )
    return Deployment(
        outcome=Outcome.FAILED,
        hash=config.hash,
        problems=(problem,),
        duration=duration,
        reload=result if result.is_known and _was_asked(haproxy, running) else None,
    )


def _was_asked(haproxy: Haproxy, before: Running) -> bool:
    """Return False if HAProxy was certainly not asked to reload.

    This is so if a reload command fails at once.
    """
    if not haproxy.reload_command or before.processes is None:
        return True
    with contextlib.suppress(Unavailable):
        now = show_proc(haproxy.master_socket)
        return (now.master, now.reloads) != (before.processes.master, before.processes.reloads)
    return True


def _binary_version(haproxy: Haproxy) -> str:
    return str(binary_version(find_binary(haproxy.binary)))


def _without_master(haproxy: Haproxy, config: Config, running: Running) -> Deployment:
    if running.worker is None:
        remedy = "start it, for example with `systemctl start haproxy`"
        return Deployment(
            outcome=Outcome.INSTALLED,
            hash=config.hash,
            problems=(
                Problem(
                    message="HAProxy is not running; it loads the configuration when it starts",
                    remedy=f"{remedy}, or set haproxy.supervise: true",
                    severity=Severity.WARNING,
                ),
            ),
        )
    try:
        show_proc(haproxy.master_socket)
    except NoListener as exc:
        why = exc.problems[0].message
    except Unavailable as exc:
        why = exc.problems[0].message
    else:
        why = "it answers again"
    raise Unavailable(
        Problem(
            message=f"HAProxy runs, but its master socket cannot be asked for a reload: {why}",
            remedy=f"start HAProxy with `-W -S {haproxy.master_socket}`, or set "
            "haproxy.reload_command: [systemctl, reload, haproxy]",
            field="haproxy.master_socket",
        )
    )
