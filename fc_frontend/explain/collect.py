"""Collect facts from files, the daemon, cluster DNS, HAProxy and the kernel.

Only queries, never changes anything.  Each source may be missing; the others are then used alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fc_frontend.config.declare import Declaration
from fc_frontend.config.loader import Sources, read
from fc_frontend.desired.isolate import Withheld
from fc_frontend.discovery.once import ask_nameserver, explain_one
from fc_frontend.errors import Problem, Unavailable
from fc_frontend.explain.daemon import ask_daemon
from fc_frontend.explain.facts import (
    BindFact,
    Daemon,
    DaemonService,
    Facts,
    Held,
    LastReload,
    Listening,
    NameserverAnswer,
    Proxy,
    Server,
    Worker,
)
from fc_frontend.explain.overview import Seen
from fc_frontend.haproxy import history, hold, install, rollback, runtime
from fc_frontend.haproxy.counts import counted, health_of, state_without
from fc_frontend.haproxy.drain import is_name
from fc_frontend.haproxy.holders import holding
from fc_frontend.haproxy.master import show_proc
from fc_frontend.haproxy.preflight import find_obstacles
from fc_frontend.haproxy.runtime import ServerState
from fc_frontend.haproxy.take_over import missing_consent
from fc_frontend.haproxy.traffic import NO_TRAFFIC, traffic_in, traffic_of
from fc_frontend.kubernetes.answers import ask_api
from fc_frontend.kubernetes.health import cluster_health
from fc_frontend.model.service_state import (
    Counts,
    HaproxyState,
    ServiceState,
    ServiceView,
    service_state,
)
from fc_frontend.model.units import SETTINGS, UnitId, UnitKind
from fc_frontend.pipeline import (
    Base,
    Prepared,
    declared_now,
    haproxy_check,
    no_check,
    prepare,
    served_binds,
    stored_base,
)
from fc_frontend.plan import slots
from fc_frontend.plan.cluster_health import ClusterHealth
from fc_frontend.plan.model import (
    Answer,
    ApiSettings,
    Cluster,
    FrontendSpec,
    Haproxy,
    Kind,
    ServicePlan,
    ServiceSpec,
    Settings,
)
from fc_frontend.plan.planner import plan
from fc_frontend.syntax.binds import read_listeners
from fc_frontend.syntax.endpoints import ListenEndpoint
from fc_frontend.text import one_line, whole_number

_API_SECONDS = 2.0
"""The timeout of each request to the API server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredView:
    """The configuration in force according to the files, and the daemon's report, if any."""

    declaration: Declaration
    prepared: Prepared
    daemon: Daemon | None
    daemon_problem: Problem | None
    withheld: tuple[Held, ...]
    names: frozenset[str]
    """The names of all declared services, withheld or not."""

    def held(self, name: str) -> tuple[Held, ...]:
        """Return the withheld changes that affect a service."""
        spec = _spec(self.declaration, name)
        file = spec.origin.file if spec and spec.origin else None
        return tuple(
            held
            for held in self.withheld
            if (held.kind == "service" and held.name == name)
            or (held.kind == "file" and file == held.name)
            # An unreadable file may contain a declaration that is found nowhere else.
            or (held.kind == "file" and spec is None and name not in self.names)
            or (held.kind in ("settings", "templates") and spec is not None)
        )


def declared(settings_file: str, *, judged: bool) -> DeclaredView:
    """Return the declared configuration that is in force.

    With `judged`, HAProxy checks it if there is no daemon.  Raises `Unavailable` without valid
    settings.
    """
    sources = read(settings_file)
    base = stored_base(sources)
    declaration = declared_now(sources, base)
    if SETTINGS in declaration.faults:
        raise Unavailable(*declaration.faults[SETTINGS])
    daemon: Daemon | None = None
    daemon_problem: Problem | None = None
    try:
        daemon = ask_daemon(declaration.settings.listen)
    except Unavailable as exc:
        daemon_problem = exc.problem if declaration.settings.listen is not None else None
    prepared = _prepared(sources, base, daemon, judged=judged)
    held = daemon.withheld if daemon else tuple(map(held_from, prepared.withheld))
    return DeclaredView(
        declaration=prepared.declaration,
        prepared=prepared,
        daemon=daemon,
        daemon_problem=daemon_problem,
        withheld=held,
        names=frozenset(sources.services),
    )


def _prepared(sources: Sources, base: Base, daemon: Daemon | None, *, judged: bool) -> Prepared:
    """Prepare the configuration without what the daemon withholds or HAProxy would refuse."""
    if daemon is None:
        if judged:
            with contextlib.suppress(Unavailable):
                return prepare(sources, haproxy_check(), base=base)
        return prepare(sources, no_check, base=base)
    units = {UnitId(UnitKind(held.kind), held.name): held.problems for held in daemon.withheld}
    withhold = {
        unit: problems
        for unit, problems in units.items()
        if unit.kind not in (UnitKind.FILE, UnitKind.DUPLICATE)
    }
    return prepare(sources, no_check, base=base, withhold=withhold)


def held_from(withheld: Withheld) -> Held:
    """Return a withheld change in the form that `status` and `explain` show."""
    return Held(
        kind=withheld.unit.kind.value,
        name=withheld.unit.name,
        effect=withheld.effect,
        is_kept=withheld.is_kept,
        is_known=withheld.is_known,
        problems=withheld.problems,
    )


def _spec(declaration: Declaration, name: str) -> ServiceSpec | None:
    return next((spec for spec in declaration.services if spec.name == name), None)


def collect(settings_file: str, name: str) -> Facts:
    """Collect the facts about one service, in a few seconds at most.  Raises `Unavailable`."""
    known = declared(settings_file, judged=True)
    return facts_of(settings_file, name, known, known.prepared)


def facts_of(
    settings_file: str,
    name: str,
    known: DeclaredView,
    prepared: Prepared,
    *,
    timeout: float = runtime.TIMEOUT,
) -> Facts:
    """Collect the facts about one service, given the declared configuration and `prepared`.

    Queries cluster DNS, HAProxy and the kernel; HAProxy has `timeout` seconds for each answer.
    Raises `Unavailable` for a frontend or a raw fragment.
    """
    declaration, daemon, answers = known.declaration, known.daemon, prepared.resolution
    if any(frontend.name == name for frontend in declaration.frontends):
        raise Unavailable(
            Problem(
                message=f"{name} is a frontend: pods are behind its services",
                remedy="name one of its services, or a URL: `fc-frontend explain https://HOST/PATH`",
            )
        )
    if any(fragment.name == name for fragment in declaration.fragments):
        raise Unavailable(
            Problem(
                message=f"{name} is a raw fragment: what it should do, only its author knows",
                remedy="see HAProxy's statistics page, and `fc-frontend status`",
            )
        )
    settings = declaration.settings
    spec = _spec(declaration, name)
    before = answers.get(name)
    now: Answer | None = None
    absent = ""
    planned: ServicePlan | None = None
    if spec is not None:
        now, absent = asyncio.run(_resolved(spec, settings.cluster))
        current = now if now.endpoints or now.rejected else before or now
        if before is not None:
            current = replace(current, slots=before.slots, by_runtime=before.by_runtime)
        (planned,) = plan(settings, (spec,), (), {name: current}).services
    worker, worker_problem = ask_worker(settings.haproxy, timeout)
    place = declaration.located(Problem(message="", service=name)).location if spec else ""
    service = daemon.service(name) if daemon else None
    wanted = daemon.wanted_hash if daemon else prepared.config.hash if prepared.config else None
    differs = None
    with contextlib.suppress(Unavailable):
        installed = install.read(settings.haproxy.config_file)
        if installed is not None and prepared.config is not None:
            section = prepared.config.section_text(name)
            differs = section not in installed.decode("utf-8", "surrogateescape")
    held = _on_hold(settings, daemon)
    near = difflib.get_close_matches(name, sorted(known.names), n=1, cutoff=0.6)
    return Facts(
        name=name,
        spec=spec,
        place=place,
        declared=tuple(near),
        withheld=known.held(name),
        cluster=settings.cluster,
        hold=settings.intervals.hold,
        planned=planned,
        now=now,
        absent=absent,
        before=before,
        age=service.age if service else None,
        worker=worker,
        worker_problem=worker_problem,
        proxy=_proxy(settings.haproxy, name, timeout) if worker else None,
        binds=_binds(settings.haproxy, spec, declaration.frontends, worker, timeout)
        if spec
        else (),
        wanted_hash=wanted,
        refused=daemon.problems if daemon else prepared.problems,
        daemon=daemon,
        daemon_problem=known.daemon_problem,
        held_id=held.id if held else None,
        held_by=held.by if held else "",
        settings_file=settings_file,
        section_differs=differs,
        state=_state(known, name, planned, now, worker, worker_problem),
    )


def _state(
    known: DeclaredView,
    name: str,
    planned: ServicePlan | None,
    now: Answer | None,
    worker: Worker | None,
    worker_problem: Problem | None,
) -> ServiceState:
    """Return the state of a service, as `status` shows it."""
    told = known.daemon.service(name) if known.daemon else None
    haproxy, counts = haproxy_of(known.daemon, worker, worker_problem)
    endpoints, short, is_current = None, 0, False
    rejected = 0
    if told is not None:
        endpoints, short, is_current = told.pods, told.slots_short, told.is_current
        rejected = len(told.rejected)
    elif planned is not None and now is not None:
        endpoints = len(planned.endpoints) if planned.endpoints or now.error is None else None
        short, rejected = _short(planned), len(now.rejected)
        is_current = now.error is None
    return service_state(
        ServiceView(
            haproxy=haproxy,
            counts=counts.get(name),
            endpoints=endpoints,
            without_slot=short,
            rejected=rejected,
            is_current=is_current,
            is_withheld=any(h.kind == "service" and h.name == name for h in known.withheld),
        )
    )


def haproxy_of(
    daemon: Daemon | None, worker: Worker | None, problem: Problem | None
) -> tuple[HaproxyState, dict[str, Counts]]:
    """Return whether HAProxy runs, and its servers by proxy.

    If this user has no access to HAProxy, the daemon's report is used.
    """
    if worker is not None:
        return HaproxyState.RUNNING, dict(worker.counts)
    found = state_without(problem) if problem else HaproxyState.UNKNOWN
    if found is HaproxyState.UNKNOWN and daemon is not None:
        return daemon.haproxy, {each.name: each.counts for each in daemon.services if each.counts}
    return found, {}


# Cluster DNS


async def _resolved(spec: ServiceSpec, cluster: Cluster) -> tuple[Answer, str]:
    """Query the API or cluster DNS; also return what is missing besides the service itself."""
    by_api = await ask_api((spec,), cluster, {})
    if spec.name in by_api:
        return by_api[spec.name], ""
    return await explain_one(spec, cluster)


async def ask_nameservers(cluster: Cluster) -> tuple[NameserverAnswer, ...]:
    """Send each nameserver a query that every cluster can answer, all at the same time."""
    replies = await asyncio.gather(
        *(ask_nameserver(cluster, index) for index in range(len(cluster.nameservers)))
    )
    return tuple(
        NameserverAnswer(name=str(nameserver), said=reply.said, seconds=reply.seconds)
        for nameserver, reply in zip(cluster.nameservers, replies, strict=True)
    )


# HAProxy


def ask_worker(
    haproxy: Haproxy, timeout: float = runtime.TIMEOUT
) -> tuple[Worker | None, Problem | None]:
    """Query the running worker; return its facts or the problem; `timeout` is for each answer."""
    try:
        info = runtime.info(haproxy.runtime_socket, timeout)
        counts = counted(runtime.each_server(haproxy.runtime_socket, timeout))
    except Unavailable as exc:
        return None, exc.problems[0]
    return (
        Worker(
            hash=runtime.hash_in(info),
            version=one_line(info.get("Version", "")),
            pid=whole_number(info.get("Pid")),
            seconds=whole_number(info.get("Uptime_sec")),
            counts=counts,
        ),
        None,
    )


def _proxy(haproxy: Haproxy, name: str, timeout: float) -> Proxy | None:
    """Return the section of a service in the running worker, or None if there is none."""
    if not is_name(name):
        return None
    try:
        states = runtime.servers_of(haproxy.runtime_socket, name, timeout)
        rows = runtime.statistics(haproxy.runtime_socket, name, timeout)
    except Unavailable:
        return None
    if not rows:
        return None
    by_name = {row["svname"]: row for row in rows}
    front = by_name.get("FRONTEND", {})
    has_template = any(state.server.startswith("pod") for state in states)
    return Proxy(
        servers=tuple(
            _server(
                state,
                by_name.get(state.server, {}),
                is_backup=has_template and state.server == "service",
            )
            for state in states
        ),
        status=one_line(front.get("status", "")),
        sessions=whole_number(front.get("scur")) or 0,
        most_sessions=whole_number(front.get("slim")) or 0,
        traffic=traffic_in(rows, backends=True).get(name, NO_TRAFFIC),
    )


def _server(state: ServerState, row: dict[str, str], *, is_backup: bool) -> Server:
    words = [one_line(row.get(column, "")) for column in ("check_desc", "last_chk")]
    code = one_line(row.get("check_status", "")).removeprefix("* ")
    http_status = whole_number(row.get("check_code"))
    status = "" if http_status is None else f" (HTTP {http_status})"
    return Server(
        name=one_line(state.server),
        health=health_of(state),
        address=state.address,
        port=state.port,
        code=code,
        check=": ".join(word for word in words if word) + status,
        seconds=state.changed_ago,
        is_backup=is_backup,
        traffic=traffic_of(row),
    )


def _binds(
    haproxy: Haproxy,
    spec: ServiceSpec,
    frontends: Iterable[FrontendSpec],
    worker: Worker | None,
    timeout: float,
) -> tuple[BindFact, ...]:
    """Find out which processes listen on the binds of the service, or of its frontend."""
    pids = {worker.pid} if worker and worker.pid else set()
    with contextlib.suppress(Unavailable):
        pids |= show_proc(haproxy.master_socket, timeout).pids
    owned_by = frozenset(pids)
    owner = next((each for each in frontends if each.name == spec.frontend), spec)
    text = "".join(f"  bind {bind} {owner.bind_options}\n" for bind in owner.binds)
    declared = read_listeners(f"listen {spec.name}\n{text}").listeners
    found = []
    endpoints = [listener.endpoint for _, listener in declared]
    for endpoint, held in holding(endpoints, owned_by=owned_by).items():
        who = ", ".join(one_line(other) for other in held.others)
        problem = None
        if held.by_haproxy:
            listening = Listening.HAPROXY
        elif who:
            listening = Listening.OTHER
        elif held.is_hidden:
            listening = Listening.HIDDEN
        else:
            listening = Listening.NOBODY
            problem = _obstacle(endpoint, owned_by)
        found.append(BindFact(bind=str(endpoint), listening=listening, who=who, problem=problem))
    return tuple(found)


def _obstacle(endpoint: ListenEndpoint, owned_by: frozenset[int]) -> Problem | None:
    """Return what keeps HAProxy from binding an endpoint on which no process listens."""
    for obstacle in find_obstacles([endpoint], owned_by=owned_by):
        return Problem(message=obstacle.message, remedy=obstacle.remedy)
    return None


def _on_hold(settings: Settings, daemon: Daemon | None) -> hold.Hold | None:
    """Return the hold from its file, or from the daemon if this user may not read the file."""
    if hold.unseen(settings.state_directory) is None:
        return hold.load(settings.state_directory)
    if daemon is None or daemon.held_id is None:
        return None
    return hold.Hold(id=daemon.held_id, hash=daemon.held_hash, by=daemon.held_by)


# The whole frontend


def look(settings_file: str) -> Seen:
    """Collect the facts about the frontend, in a few seconds at most.  Raises `Unavailable`."""
    known = declared(settings_file, judged=False)
    nameservers, health = asyncio.run(_ask_cluster(known.declaration.settings.cluster))
    return seen_of(known, nameservers, health)


async def _ask_cluster(
    cluster: Cluster,
) -> tuple[tuple[NameserverAnswer, ...], ClusterHealth | Problem | None]:
    """Query the nameservers and the API server, if one is configured, at the same time."""
    if cluster.api is None:
        return await ask_nameservers(cluster), None
    return await asyncio.gather(ask_nameservers(cluster), _ask_health(cluster.api))


async def _ask_health(api: ApiSettings) -> ClusterHealth | Problem:
    """Return the health of the cluster, or why the API server cannot be queried."""
    try:
        return await cluster_health(api, _API_SECONDS)
    except Unavailable as exc:
        return exc.problem


def seen_of(
    known: DeclaredView,
    nameservers: tuple[NameserverAnswer, ...],
    cluster: ClusterHealth | Problem | None = None,
    *,
    timeout: float = runtime.TIMEOUT,
) -> Seen:
    """Collect the facts about the frontend, given the declared configuration.

    Queries HAProxy, which has `timeout` seconds for each answer.
    """
    declaration, daemon = known.declaration, known.daemon
    settings = declaration.settings
    worker, worker_problem = ask_worker(settings.haproxy, timeout)
    held = _on_hold(settings, daemon)
    if worker is not None:
        with contextlib.suppress(Unavailable):
            running = rollback.identity(settings.haproxy, held, worker.hash)
            worker = replace(worker, hash=running)
    services, wanted, problems = _by_files(known.prepared) if daemon is None else ((), None, ())
    if daemon is not None:
        services, wanted, problems = daemon.services, daemon.wanted_hash, daemon.problems
    haproxy, counts = haproxy_of(daemon, worker, worker_problem)
    last = _last_reload(daemon, settings.state_directory)
    if held is not None:
        wanted = held.hash
        binds = served_binds(known.prepared.base)
        if known.prepared.base.hash == held.hash:
            services = tuple(replace(s, binds=binds.get(s.name, ())) for s in services)
    missing = daemon.take_over if daemon else next(iter(missing_consent(settings)), None)
    return Seen(
        daemon=daemon,
        daemon_problem=known.daemon_problem,
        haproxy=haproxy,
        worker=worker,
        worker_problem=worker_problem,
        counts=counts,
        last_reload=last,
        nameservers=nameservers,
        cluster=cluster,
        services=services,
        withheld=known.withheld,
        problems=problems,
        wanted_hash=wanted,
        held_id=held.id if held else None,
        held_by=one_line(held.by) if held else "",
        now=time.time(),
        take_over=missing if held is None else None,
    )


def _last_reload(daemon: Daemon | None, state_directory: str) -> LastReload | None:
    """Return the newest deployment in the daemon's report or, as after a rollback, the history."""
    told = daemon.last_reload if daemon else None
    newest = next(iter(reversed(history.deployments(state_directory))), None)
    if newest is None or (told is not None and told.at >= newest.at):
        return told
    return LastReload(
        at=newest.at,
        reasons=tuple(map(one_line, newest.reasons)),
        outcome=one_line(newest.outcome),
        seconds=newest.seconds,
    )


def _by_files(
    prepared: Prepared,
) -> tuple[tuple[DaemonService, ...], str | None, tuple[Problem, ...]]:
    """Return services from files and stored answers, the resulting hash, and the problems."""
    answers = prepared.resolution
    services = tuple(
        DaemonService(
            name=planned.spec.name,
            file=planned.spec.origin.file if planned.spec.origin else None,
            namespace=planned.spec.namespace,
            binds=planned.spec.places,
            is_current=False,
            by_api=planned.kind is Kind.API,
            reason="last stored answer: the daemon does not run",
            error=None,
            remedy="",
            pods=len(planned.endpoints) if planned.spec.name in answers else None,
            slots=planned.slots,
            slots_short=_short(planned),
            slots_scarce=planned.has_pods and slots.scarce(len(planned.endpoints), planned.slots),
            rejected=(),
            drained=(),
            age=None,
        )
        for planned in prepared.plan.services
    )
    return services, prepared.config.hash if prepared.config else None, prepared.problems


def _short(planned: ServicePlan) -> int:
    return slots.short(len(planned.endpoints), planned.slots) if planned.has_pods else 0
