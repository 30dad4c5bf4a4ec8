"""The facts about a frontend at one moment, independent of how they were collected.

    Daemon      the status that the daemon reports over HTTP
    Worker      the status that HAProxy's running worker reports
    Facts       one service, from its declaration to its bind

A value that could not be determined is None, and the reason is given next to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from fc_frontend.certificates.served import Served
from fc_frontend.errors import Problem
from fc_frontend.haproxy.traffic import NO_TRAFFIC, Traffic
from fc_frontend.model.api_state import ApiState
from fc_frontend.model.load_balancer_state import LoadBalancerView
from fc_frontend.model.service_state import Counts, HaproxyState, Health, ServiceState
from fc_frontend.plan.frontend_views import FrontendView
from fc_frontend.plan.model import Answer, Cluster, ServicePlan, ServiceSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One server of a service.

    `check` is HAProxy's message about the last health check, empty without one.  `code` is
    HAProxy's short name of its result, such as L4CON (Management Guide 9.1).
    """

    name: str
    health: Health
    address: str | None = None
    port: int | None = None
    code: str = ""
    check: str = ""
    seconds: int | None = None
    """Seconds since the last change of its state."""
    is_backup: bool = False
    traffic: Traffic = NO_TRAFFIC

    @property
    def place(self) -> str:
        """ADDRESS:PORT, or ADDRESS if the port is unknown; empty without an address."""
        if not self.address or not self.port:
            return self.address or ""
        return (
            f"[{self.address}]:{self.port}"
            if ":" in self.address
            else f"{self.address}:{self.port}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """A service's section in the running worker.

    `status` is that of its frontend: OPEN, or STOP if it was disabled by hand.  `sessions` is the
    number of open sessions, `most_sessions` their limit.
    """

    servers: tuple[Server, ...]
    status: str = "OPEN"
    sessions: int = 0
    most_sessions: int = 0
    traffic: Traffic = NO_TRAFFIC


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """The running worker; `hash` is None if its configuration is not fc-frontend's own."""

    hash: str | None
    version: str = ""
    pid: int | None = None
    seconds: int | None = None
    """Seconds since its start."""
    counts: Mapping[str, Counts] = field(default_factory=dict)
    """The numbers of servers, by proxy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonService:
    """A service as the daemon reports it.

    `age` is in seconds since the last good answer about its pods.  With `by_api`, its pods are
    discovered through the Kubernetes API, else through cluster DNS.
    """

    name: str
    namespace: str
    binds: tuple[str, ...]
    is_current: bool
    """Whether the last answer about its pods is a good one."""
    reason: str
    error: str | None
    remedy: str
    pods: int | None
    """The number of discovered pods; None if there was never an answer."""
    slots: int
    slots_short: int
    slots_scarce: bool
    rejected: tuple[str, ...]
    drained: tuple[str, ...]
    age: float | None
    by_api: bool = False
    file: str | None = None
    """The file that declares it, or `kubernetes:NAMESPACE/NAME` if a Service does."""
    counts: Counts | None = None
    """HAProxy's servers, as last seen by the daemon; None if HAProxy has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A change that is withheld."""

    kind: str
    name: str
    effect: str
    problems: tuple[Problem, ...]
    is_kept: bool
    """Whether its last good form is kept."""
    is_known: bool = False
    """Whether the same change was withheld before."""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class LastReload:
    """The last reload; `at` is Unix time."""

    at: float
    reasons: tuple[str, ...]
    outcome: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """The status that the daemon reports."""

    version: str
    in_sync: bool
    wanted_hash: str | None
    running_hash: str | None
    problems: tuple[Problem, ...]
    withheld: tuple[Held, ...]
    last_reload: LastReload | None
    haproxy: HaproxyState
    services: tuple[DaemonService, ...]
    held_id: int | None = None
    held_by: str = ""
    held_hash: str = ""
    frontends: tuple[FrontendView, ...] = ()
    certificates: tuple[Served, ...] = ()
    """The certificates of frontends."""
    api: ApiState | None = None
    """The state of the watch of the Kubernetes API; None if no API is configured."""
    load_balancers: LoadBalancerView | None = None
    """The Services of type LoadBalancer; None if `load_balancer` is not set."""
    take_over: Problem | None = None
    """Set if haproxy.cfg is not replaced because consent is missing."""

    def service(self, name: str) -> DaemonService | None:
        """Return the service of that name, or None."""
        return next((service for service in self.services if service.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class NameserverAnswer:
    """The result of one query; `said` is the error, empty if it answered after `seconds`."""

    name: str
    said: str = ""
    seconds: float = 0.0


class Listening(StrEnum):
    """The process that accepts the connections to a bind."""

    HAPROXY = "haproxy"
    OTHER = "other"
    NOBODY = "nobody"
    HIDDEN = "hidden"
    """A process that this user may not see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BindFact:
    """A bind and its listener; `problem` is what keeps HAProxy from binding it."""

    bind: str
    listening: Listening
    who: str = ""
    problem: Problem | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The facts about one service.

    `spec` is the declaration in force, or None; `place` is its file and line.  `now` is the current
    answer of cluster DNS or the API, `before` the last good one.  `absent` is what cluster DNS
    lacks besides the service: `port`, `namespace` or `domain`; else it is empty.
    """

    name: str
    spec: ServiceSpec | None = None
    place: str = ""
    declared: tuple[str, ...] = ()
    withheld: tuple[Held, ...] = ()
    cluster: Cluster = field(default_factory=Cluster)
    hold: float = 30.0
    planned: ServicePlan | None = None
    now: Answer | None = None
    absent: str = ""
    before: Answer | None = None
    age: float | None = None
    worker: Worker | None = None
    worker_problem: Problem | None = None
    proxy: Proxy | None = None
    binds: tuple[BindFact, ...] = ()
    wanted_hash: str | None = None
    refused: tuple[Problem, ...] = ()
    """Why HAProxy does not run the declared configuration as a whole."""
    daemon: Daemon | None = None
    daemon_problem: Problem | None = None
    held_id: int | None = None
    held_by: str = ""
    settings_file: str = ""
    section_differs: bool | None = None
    """Whether the service's section differs from the installed one; None if unknown."""
    state: ServiceState = ServiceState.UNKNOWN
    """The state as in all outputs: by the daemon's last discovery if there is a daemon."""

    def as_json(self) -> dict[str, Any]:
        """Return the measured values behind the steps, for scripts."""
        return {
            "endpoints": [f"{e.address} {e.port}" for e in self.now.endpoints]
            if self.now
            else None,
            "rejected": list(self.now.rejected) if self.now else None,
            "query": self.planned.query if self.planned else None,
            "discovery": self.now.kind.value if self.now else None,
            "answer_age": self.age,
            "servers": [
                {
                    "name": server.name,
                    "address": server.address,
                    "port": server.port,
                    "health": server.health.value,
                    "check": server.check,
                    "code": server.code,
                    "seconds": server.seconds,
                }
                for server in self.proxy.servers
                if server.health is not Health.FREE
            ]
            if self.proxy
            else None,
            "slots": slots_of(self),
            "binds": [
                {"bind": bind.bind, "listening": bind.listening.value, "who": bind.who}
                for bind in self.binds
            ],
            "wanted_hash": self.wanted_hash,
            "running_hash": self.worker.hash if self.worker else None,
        }


def slots_of(facts: Facts) -> int | None:
    """Return the number of HAProxy's servers for pods, or the planned number if unknown."""
    if facts.proxy is not None:
        own = [server for server in facts.proxy.servers if not server.is_backup]
        return len(own)
    return facts.planned.slots if facts.planned else None
