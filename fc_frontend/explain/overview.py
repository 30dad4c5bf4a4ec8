"""The status of the whole frontend: one row per service, and the findings, worst first.

Pure.  A finding is critical if requests fail or if a declared service is not served.  It is a
warning if that is about to happen, or if an operator has chosen the state and may have forgotten
it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from fc_frontend.balancer.declare import key_of_origin
from fc_frontend.errors import Cause, Problem, Severity, errors_in
from fc_frontend.explain.facts import (
    Daemon,
    DaemonService,
    Held,
    LastReload,
    NameserverAnswer,
    Worker,
)
from fc_frontend.model.api_state import EXPIRY_WARNING
from fc_frontend.model.service_state import (
    Counts,
    HaproxyState,
    ServiceState,
    ServiceView,
    service_state,
)
from fc_frontend.plan.cluster_health import ClusterHealth
from fc_frontend.plurals import counted
from fc_frontend.text import one_line


class StatusLevel(IntEnum):
    """The levels of Nagios, which are the exit codes of `--format nagios`."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


class Rank(IntEnum):
    """The order of findings, the most urgent first."""

    HAPROXY = 0
    NOBODY_SERVED = 1
    CONFIGURATION = 2
    DEGRADED = 3
    WITHHELD = 4
    OTHER = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """All collected facts.  `services` come from the daemon, or from files without a daemon."""

    daemon: Daemon | None = None
    daemon_problem: Problem | None = None
    haproxy: HaproxyState = HaproxyState.UNKNOWN
    worker: Worker | None = None
    worker_problem: Problem | None = None
    counts: Mapping[str, Counts] = field(default_factory=dict)
    """The numbers of HAProxy's servers, by proxy."""
    last_reload: LastReload | None = None
    nameservers: tuple[NameserverAnswer, ...] = ()
    cluster: ClusterHealth | Problem | None = None
    """The API server's health, or why it cannot be queried; None if no API is configured."""
    services: tuple[DaemonService, ...] = ()
    withheld: tuple[Held, ...] = ()
    problems: tuple[Problem, ...] = ()
    wanted_hash: str | None = None
    held_id: int | None = None
    held_by: str = ""
    now: float | None = None
    """Unix time.  If None, nothing is reported as expired."""
    take_over: Problem | None = None
    """Set if haproxy.cfg is not replaced because consent is missing."""

    @property
    def in_sync(self) -> bool:
        """Whether the running worker has the wanted configuration."""
        return self.running_hash is not None and self.running_hash == self.wanted_hash

    @property
    def running_hash(self) -> str | None:
        """The hash of the running worker's configuration.

        Without access to HAProxy, it is the hash that the daemon reports.
        """
        if self.worker is not None:
            return self.worker.hash
        is_told = self.haproxy is HaproxyState.RUNNING and self.daemon is not None
        return self.daemon.running_hash if is_told and self.daemon else None

    def state(self, service: DaemonService) -> ServiceState:
        """Return the state of a service."""
        return service_state(
            ServiceView(
                haproxy=self.haproxy,
                counts=self.counts.get(service.name),
                endpoints=service.pods,
                without_slot=service.slots_short,
                rejected=len(service.rejected),
                is_current=service.is_current,
                is_withheld=service.name in self.withheld_services,
            )
        )

    @property
    def withheld_services(self) -> dict[str, Held]:
        """The services with a withheld change of their own, by name."""
        return {held.name: held for held in self.withheld if held.kind == "service"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusFinding:
    """One problem that was found."""

    level: StatusLevel
    subject: str
    message: str
    rank: Rank = Rank.OTHER
    remedy: str = ""
    file: str | None = None
    line: int | None = None
    service: str | None = None
    """The service it concerns, if it concerns only one."""
    is_withheld: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the finding in the format of all JSON output."""
        return {
            "level": self.level.name.lower(),
            "subject": self.subject,
            "message": self.message,
            "remedy": self.remedy,
            "file": self.file,
            "line": self.line,
        }

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        return f"{where}{self.subject}: {self.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One service; counts are None if HAProxy does not answer."""

    name: str
    state: ServiceState
    pods: int | None = None
    slots: int | None = None
    counts: Counts | None = None
    binds: tuple[str, ...] = ()
    namespace: str | None = None
    source: str = ""
    """The file that declares it, or `Service NAMESPACE/NAME` for type LoadBalancer."""
    why: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the service in the format of all JSON output."""
        counts = self.counts
        return {
            "name": self.name,
            "namespace": self.namespace,
            "state": self.state.value,
            "pods": self.pods,
            "slots": self.slots,
            "up": counts.up if counts else None,
            "down": counts.down if counts else None,
            "drained": counts.drained if counts else None,
            "maintenance": counts.maintenance if counts else None,
            "binds": list(self.binds),
            "source": self.source,
            "why": self.why,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The output of `status`."""

    level: StatusLevel
    summary: str
    rows: tuple[Row, ...]
    findings: tuple[StatusFinding, ...]
    seen: Seen = field(repr=False)

    @property
    def last_reload(self) -> LastReload | None:
        """The last known reload, start or rollback."""
        return self.seen.last_reload

    def as_json(self) -> dict[str, Any]:
        """Return the document for scripts.  All keys are always present."""
        seen, last = self.seen, self.last_reload
        balancers = seen.daemon.load_balancers if seen.daemon else None
        return {
            "version": 1,
            "status": self.level.name.lower(),
            "summary": self.summary,
            "in_sync": seen.in_sync,
            "wanted_hash": seen.wanted_hash,
            "running_hash": seen.running_hash,
            "daemon": {"version": seen.daemon.version} if seen.daemon else None,
            "haproxy_state": seen.haproxy.value,
            "haproxy": {
                "version": seen.worker.version,
                "pid": seen.worker.pid,
                "seconds": seen.worker.seconds,
            }
            if seen.worker
            else None,
            "api": seen.daemon.api.as_json() if seen.daemon and seen.daemon.api else None,
            "cluster": _cluster_json(seen.cluster),
            "load_balancers": balancers.as_json() if balancers else None,
            "frontends": [
                each.as_json() for each in (seen.daemon.frontends if seen.daemon else ())
            ],
            "certificates": [
                each.as_json() for each in (seen.daemon.certificates if seen.daemon else ())
            ],
            "held": {"id": seen.held_id, "by": seen.held_by} if seen.held_id is not None else None,
            "last_reload": {
                "at": last.at,
                "reasons": list(last.reasons),
                "outcome": last.outcome,
                "seconds": last.seconds,
            }
            if last
            else None,
            "dns": [
                {"nameserver": n.name, "ok": not n.said, "said": n.said, "seconds": n.seconds}
                for n in seen.nameservers
            ],
            "services": [row.as_json() for row in self.rows],
            "withheld": [
                {
                    "kind": held.kind,
                    "name": held.name,
                    "effect": held.effect,
                    "is_kept": held.is_kept,
                    "is_known": held.is_known,
                    "problems": [problem.as_json() for problem in held.problems],
                }
                for held in seen.withheld
            ],
            "findings": [finding.as_json() for finding in self.findings],
        }


def _cluster_json(cluster: ClusterHealth | Problem | None) -> dict[str, Any] | None:
    """Return the basic health of the cluster; `said` is why it is not ready or not reachable."""
    if cluster is None:
        return None
    if isinstance(cluster, Problem):
        return {"server": None, "ready": None, "said": cluster.message, "nodes": None}
    return {
        "server": cluster.server,
        "ready": cluster.is_ready,
        "said": unready_reason(cluster),
        "nodes": None if cluster.nodes is None else [node.as_json() for node in cluster.nodes],
    }


def unready_reason(cluster: ClusterHealth) -> str:
    """Return why the API server is not ready; empty if it is, or if readiness is unknown."""
    status, said = cluster.ready.status, cluster.ready.said
    if cluster.is_ready is not False:
        return ""
    if status is None:
        return f"no answer from {cluster.server}: {said}"
    if status == 401:
        return f"{cluster.server} does not accept the credentials (401)"
    return f"{cluster.server} is not ready ({status}): {said}"


_ORDER = {state: number for number, state in enumerate(ServiceState)}


def overview(seen: Seen) -> Overview:
    """Return the rows, the findings, and the resulting level."""
    findings = sorted(_findings(seen), key=lambda finding: (finding.rank, -finding.level))
    rows = tuple(sorted(_rows(seen), key=lambda row: (_ORDER[row.state], row.name)))
    level = max((finding.level for finding in findings), default=StatusLevel.OK)
    if seen.daemon is None and seen.haproxy is HaproxyState.UNKNOWN:
        level = StatusLevel.UNKNOWN
    return Overview(
        level=level,
        summary=_summary(seen, level, findings),
        rows=rows,
        findings=tuple(findings),
        seen=seen,
    )


def _summary(seen: Seen, level: StatusLevel, findings: list[StatusFinding]) -> str:
    services = counted(len(seen.services), "service")
    if level is StatusLevel.UNKNOWN:
        problem = seen.worker_problem or seen.daemon_problem
        return f"neither the daemon nor HAProxy answers: {problem.message if problem else ''}"
    if not findings:
        said = f"{services}, all served" if seen.services else "no service is declared"
        return f"{said}, HAProxy in sync"
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    return f"{findings[0].subject}: {findings[0].message}{more}"


def _rows(seen: Seen) -> Iterator[Row]:
    known = set()
    held = seen.withheld_services
    for service in seen.services:
        known.add(service.name)
        why = service.error or service.reason
        if service.rejected and not service.pods:
            why = f"{_who(service)} names only addresses outside of the cluster's networks"
        if service.name in held and held[service.name].problems:
            why = held[service.name].problems[0].message
        counts = None
        if seen.haproxy is HaproxyState.RUNNING:
            counts = seen.counts.get(service.name, Counts())
        yield Row(
            name=service.name,
            state=seen.state(service),
            pods=service.pods,
            slots=service.slots,
            counts=counts,
            binds=service.binds,
            namespace=service.namespace,
            source=_source(service.file),
            why=one_line(why),
        )
    for name, change in held.items():
        if name not in known:
            said = change.problems[0].message if change.problems else change.effect
            file = next((problem.file for problem in change.problems if problem.file), None)
            yield Row(
                name=name,
                state=ServiceState.WITHHELD,
                source=_source(file),
                why=one_line(said),
            )


def _source(file: str | None) -> str:
    """Return what declares a service, in readable form."""
    key = key_of_origin(file or "")
    return f"Service {key.namespace}/{key.name}" if key else one_line(file or "")


def _findings(seen: Seen) -> Iterator[StatusFinding]:
    yield from _of_processes(seen)
    for held in seen.withheld:
        for problem in held.problems[:1]:
            yield StatusFinding(
                level=StatusLevel.WARNING if held.is_kept else StatusLevel.CRITICAL,
                rank=Rank.WITHHELD,
                subject=str(held),
                message=f"withheld, {held.effect}: "
                + _whose(held, problem)
                + (f"{problem.field}: " if problem.field else "")
                + problem.message,
                remedy=problem.remedy,
                file=problem.file,
                line=problem.line,
                service=held.name if held.kind == "service" else None,
                is_withheld=True,
            )
    # Before the services that fail because of it.
    yield from _of_nameservers(seen)
    for service in seen.services:
        yield from _of_service(seen, service)
    api = seen.daemon.api if seen.daemon else None
    if api is not None and not api.is_current:
        said = f"cannot be watched: {api.failure or 'no answer yet'}"
        yield _api_finding(said, "the last known pods stay; see `fc-frontend doctor`")
    if api is not None and api.held:
        yield StatusFinding(
            level=StatusLevel.CRITICAL,
            subject="Kubernetes API",
            message=f"{counted(len(api.held), 'service')} lost all ready pods at once; "
            "their last pods stay for a while",
            remedy="see whether the nodes reach the API server: `kubectl get nodes`",
        )
    for problem in seen.daemon.problems if seen.daemon else ():
        is_gone = problem.cause is Cause.EMPTIED and problem.severity is Severity.WARNING
        if problem.cause is Cause.DISAGREEMENT or is_gone:
            yield StatusFinding(
                level=StatusLevel.WARNING,
                subject=problem.service or ("Kubernetes API" if is_gone else "cluster DNS"),
                message=problem.message,
                remedy=problem.remedy,
                service=problem.service,
            )
    yield from _of_cluster(seen)
    yield from _of_credentials(seen)


def _whose(held: Held, problem: Problem) -> str:
    """Return the service whose problem withholds another change, such as that of the settings."""
    is_other = problem.service is not None and held.kind != "service"
    return f"service {problem.service}: " if is_other else ""


def _of_cluster(seen: Seen) -> Iterator[StatusFinding]:
    """Judge whether API server and nodes are ready (`kubectl cluster-info`, `get nodes`)."""
    is_watched = seen.daemon is None or seen.daemon.api is None or seen.daemon.api.is_current
    if isinstance(seen.cluster, Problem):
        # The daemon has access of its own, which this user may lack.
        if seen.daemon is None and seen.cluster.cause is not Cause.FORBIDDEN:
            yield _api_finding(seen.cluster.message, seen.cluster.remedy)
    elif seen.cluster is not None:
        said = unready_reason(seen.cluster)
        if said and is_watched:
            yield _api_finding(said, "HAProxy keeps its servers; see `fc-frontend doctor`")
        if seen.cluster.nodes is not None:
            yield from _of_nodes(seen.cluster)


def _of_nodes(cluster: ClusterHealth) -> Iterator[StatusFinding]:
    unready, ready = cluster.unready_nodes, cluster.ready_nodes
    if unready or not ready:
        count = len(cluster.nodes or ())
        said = f"not ready: {unready}" if unready else "the cluster has none"
        yield StatusFinding(
            level=StatusLevel.WARNING if ready else StatusLevel.CRITICAL,
            subject="nodes",
            message=f"{len(ready)} of {count} ready; {said}" if ready else said,
            remedy="`kubectl describe node` says why; their pods leave within minutes",
        )


def _api_finding(message: str, remedy: str) -> StatusFinding:
    return StatusFinding(
        level=StatusLevel.WARNING, subject="Kubernetes API", message=message, remedy=remedy
    )


def _of_credentials(seen: Seen) -> Iterator[StatusFinding]:
    """Report that the token or client certificate of the API expires soon or has expired."""
    expires = seen.daemon.api.expires if seen.daemon and seen.daemon.api else None
    if expires is None or seen.now is None or expires - seen.now >= EXPIRY_WARNING:
        return
    days = max(0, round((expires - seen.now) / 86400))
    has_expired = expires <= seen.now
    yield StatusFinding(
        level=StatusLevel.CRITICAL if has_expired else StatusLevel.WARNING,
        subject="Kubernetes API",
        message="the token or client certificate "
        + ("has expired" if has_expired else f"expires in {counted(days, 'day')}"),
        remedy="make a new kubeconfig: `contrib/kubernetes/kubeconfig`",
    )


def _of_nameservers(seen: Seen) -> Iterator[StatusFinding]:
    failed = [nameserver for nameserver in seen.nameservers if nameserver.said]
    for nameserver in failed:
        yield StatusFinding(
            level=StatusLevel.WARNING,
            subject=f"cluster DNS {nameserver.name}",
            message=nameserver.said,
            remedy="HAProxy keeps its servers; check CoreDNS, and the route and firewalls to it"
            if len(failed) == len(seen.nameservers)
            else "the other nameservers are used",
        )


def _of_processes(seen: Seen) -> Iterator[StatusFinding]:
    if seen.worker is None and seen.worker_problem is not None:
        problem = seen.worker_problem
        is_stopped = seen.haproxy is HaproxyState.STOPPED
        is_hidden = problem.cause is Cause.FORBIDDEN
        yield StatusFinding(
            level=StatusLevel.WARNING if is_hidden and not is_stopped else StatusLevel.CRITICAL,
            rank=Rank.OTHER if is_hidden and not is_stopped else Rank.HAPROXY,
            subject="HAProxy",
            message=f"not running: {problem.message}" if is_stopped else problem.message,
            remedy=problem.remedy,
        )
    if seen.daemon is None and seen.daemon_problem is not None:
        yield StatusFinding(
            level=StatusLevel.WARNING,
            subject="daemon",
            message=seen.daemon_problem.message,
            remedy=seen.daemon_problem.remedy,
        )
    if seen.held_id is not None:
        yield StatusFinding(
            level=StatusLevel.WARNING,
            subject="hold",
            message=f"rolled back to #{seen.held_id} by {one_line(seen.held_by)}; deployments are "
            "paused",
            remedy="`fc-frontend resume` resumes normal deployments",
        )
    if seen.take_over is not None:
        yield StatusFinding(
            level=StatusLevel.WARNING if seen.in_sync else StatusLevel.CRITICAL,
            rank=Rank.CONFIGURATION,
            subject="take-over",
            message=one_line(seen.take_over.message),
            remedy=seen.take_over.remedy,
        )
    elif seen.worker is not None and not seen.in_sync:
        yield _out_of_sync(seen, seen.worker)


def _out_of_sync(seen: Seen, worker: Worker) -> StatusFinding:
    has = f"HAProxy has {worker.hash}" if worker.hash else "HAProxy's configuration is not ours"
    errors = errors_in(seen.problems)
    if seen.wanted_hash is None and errors:
        first = errors[0]
        return StatusFinding(
            level=StatusLevel.CRITICAL,
            rank=Rank.CONFIGURATION,
            subject="configuration",
            message=f"refused, {has}: {first.message}",
            remedy=first.remedy,
            file=first.file,
            line=first.line,
        )
    remedy = "see the daemon's log (`reload-failed`, `config-refused`)"
    if seen.daemon is None:
        remedy = "see `fc-frontend diff`; start the daemon, or run `fc-frontend apply`"
    return StatusFinding(
        level=StatusLevel.CRITICAL,
        rank=Rank.CONFIGURATION,
        subject="configuration",
        message=f"not in sync: {has}, and {seen.wanted_hash or 'none'} is wanted",
        remedy=remedy,
    )


def _of_service(seen: Seen, service: DaemonService) -> Iterator[StatusFinding]:
    counts = seen.counts.get(service.name)
    is_running = seen.haproxy is HaproxyState.RUNNING
    if is_running and counts is None and seen.held_id is not None:
        yield _about(
            service, StatusLevel.WARNING, "not in the configuration that was rolled back to"
        )
        return
    yield from _of_its_servers(seen, service, counts)
    yield from _of_its_slots(service)
    if not service.is_current and service.pods and seen.daemon is not None:
        yield _about(
            service,
            StatusLevel.WARNING,
            _without_answer(service),
            f"the last good answer stays in use; see {_look(service)}",
        )
    drained = counts.drained if counts else len(service.drained)
    if drained:
        remedy = f"to end it: `fc-frontend undrain {service.name}`"
        yield _about(service, StatusLevel.WARNING, f"{drained} drained", remedy)


def _who(service: DaemonService) -> str:
    return "the Kubernetes API" if service.by_api else "cluster DNS"


def _without_answer(service: DaemonService) -> str:
    if service.by_api and service.error:
        return service.error
    return f"cluster DNS gives no answer: {service.error or 'none yet'}"


def _of_its_servers(
    seen: Seen, service: DaemonService, counts: Counts | None
) -> Iterator[StatusFinding]:
    """Report that a service has no server up, or not all of them.

    If HAProxy does not run, all services are affected: that is reported only once.
    """
    state = seen.state(service)
    is_running = seen.haproxy is HaproxyState.RUNNING
    if service.rejected:
        is_empty = state is ServiceState.EMPTY
        yield _about(
            service,
            StatusLevel.CRITICAL if is_empty else StatusLevel.WARNING,
            f"{_who(service)} names addresses outside of the cluster's networks: "
            + ", ".join(service.rejected[:3]),
            service.remedy,
            Rank.NOBODY_SERVED if is_empty else Rank.DEGRADED,
        )
    said = ""
    is_new = counts is None and not seen.in_sync
    if is_running and state is ServiceState.DOWN and not is_new:
        said = _no_server_up(service, counts)
    elif is_running and state is ServiceState.UNKNOWN:
        said = f"{_who(service)} never gave an answer: {service.error or 'none yet'}"
    elif state is ServiceState.EMPTY and not service.rejected:
        said = f"{_who(service)} names no pod: {service.error or 'no addresses'}"
    if said:
        yield _about(service, StatusLevel.CRITICAL, said, rank=Rank.NOBODY_SERVED)
    elif state is ServiceState.DEGRADED and counts and counts.down:
        said = f"{counts.down} of {counted(counts.with_pod, 'server')} down"
        said += "" if counts.up else "; the cluster IP serves"
        yield _about(service, StatusLevel.WARNING, said, rank=Rank.DEGRADED)


def _of_its_slots(service: DaemonService) -> Iterator[StatusFinding]:
    room = f"{counted(service.pods or 0, 'pod')} in {counted(service.slots, 'slot')}"
    if service.slots_short:
        verb = "gets" if service.slots_short == 1 else "get"
        said = f"{room}: {counted(service.slots_short, 'pod')} {verb} no traffic"
        yield _about(service, StatusLevel.WARNING, said, rank=Rank.DEGRADED)
    elif service.slots_scarce:
        remedy = "use slots: auto, or a larger number"
        yield _about(service, StatusLevel.WARNING, f"{room}: little room is left", remedy)


def _look(service: DaemonService) -> str:
    return f"`fc-frontend explain {service.name}`"


def _about(
    service: DaemonService,
    level: StatusLevel,
    message: str,
    remedy: str = "",
    rank: Rank = Rank.OTHER,
) -> StatusFinding:
    return StatusFinding(
        level=level,
        rank=rank,
        subject=service.name,
        message=one_line(message),
        remedy=one_line(remedy or _look(service)),
        service=service.name,
    )


def _no_server_up(service: DaemonService, counts: Counts | None) -> str:
    if counts is None:
        return "not in HAProxy's configuration"
    parts = (
        (counts.down, "down"),
        (counts.drained, "drained"),
        (counts.maintenance, "in maintenance"),
    )
    states = ", ".join(f"{number} {word}" for number, word in parts if number)
    pods = counted(service.pods or counts.with_pod, "pod")
    return f"{pods}, and no server up" + (f" ({states})" if states else "")
