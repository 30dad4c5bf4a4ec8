"""What is known of a frontend at one moment: values that say nothing of how they were found.

    Daemon      what the daemon says of itself, by HTTP
    Worker      what HAProxy's running worker says
    Facts       one service's way from its declaration to its bind

What could not be found out is None, with the reason beside it.
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
    """One server of a service.  `check` has HAProxy's words on its last check, empty without one.

    `code` is HAProxy's short name of that check's outcome, as L4CON (Management Guide 9.1).
    """

    name: str
    health: Health
    address: str | None = None
    port: int | None = None
    code: str = ""
    check: str = ""
    seconds: int | None = None
    """How long it has been so."""
    is_backup: bool = False
    traffic: Traffic = NO_TRAFFIC

    @property
    def place(self) -> str:
        """ADDRESS:PORT, or ADDRESS where no port is known; empty without an address."""
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

    `status` is its frontend's: OPEN, or STOP where it was disabled by hand.  `sessions` of at most
    `most_sessions` are open.
    """

    servers: tuple[Server, ...]
    status: str = "OPEN"
    sessions: int = 0
    most_sessions: int = 0
    traffic: Traffic = NO_TRAFFIC


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """The running worker; `hash` is None if its configuration is not ours."""

    hash: str | None
    version: str = ""
    pid: int | None = None
    seconds: int | None = None
    """Since its start."""
    counts: Mapping[str, Counts] = field(default_factory=dict)
    """By proxy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonService:
    """A service as the daemon sees it; `age` in seconds since the last good answer about pods.

    With `by_api`, its pods are found by the Kubernetes API, else by cluster DNS.
    """

    name: str
    namespace: str
    binds: tuple[str, ...]
    is_current: bool
    """True if cluster DNS's last answer is a good one."""
    reason: str
    error: str | None
    remedy: str
    pods: int | None
    """That cluster DNS names; None if it never said."""
    slots: int
    slots_short: int
    slots_scarce: bool
    rejected: tuple[str, ...]
    drained: tuple[str, ...]
    age: float | None
    by_api: bool = False
    file: str | None = None
    """The file that declares it, or `kubernetes:NAMESPACE/NAME` for a Service that does."""
    counts: Counts | None = None
    """The servers that HAProxy has, as the daemon saw them last; None if it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A change that is withheld."""

    kind: str
    name: str
    effect: str
    problems: tuple[Problem, ...]
    is_kept: bool
    """True if its last good form keeps running."""
    is_known: bool = False
    """True if the very same change was withheld before."""

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
    """What the daemon says."""

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
    """Those of frontends."""
    api: ApiState | None = None
    """How the watch of the Kubernetes API is doing; None where no API is set."""
    load_balancers: LoadBalancerView | None = None
    """Services of type LoadBalancer; None where `load_balancer` is not set."""
    take_over: Problem | None = None
    """That haproxy.cfg is not replaced for want of consent."""

    def service(self, name: str) -> DaemonService | None:
        """The service of that name."""
        return next((service for service in self.services if service.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class NameserverAnswer:
    """A nameserver that was just asked; `said` is empty if it answered, after `seconds`."""

    name: str
    said: str = ""
    seconds: float = 0.0


class Listening(StrEnum):
    """Who takes the connections to a bind."""

    HAPROXY = "haproxy"
    OTHER = "other"
    NOBODY = "nobody"
    HIDDEN = "hidden"
    """Somebody, whom this user may not see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BindFact:
    """A bind and who listens there; `problem` says what keeps HAProxy from taking it."""

    bind: str
    listening: Listening
    who: str = ""
    problem: Problem | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that is known of one service.

    `spec` is what is in force, None if nothing is; `place` the file and line of its declaration.
    `now` is what cluster DNS says now, `before` what was last good.  `absent` names the name that
    is missing where more than the service is: its namespace or the whole domain.
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
    """Why what is declared as a whole is not what HAProxy has."""
    daemon: Daemon | None = None
    daemon_problem: Problem | None = None
    held_id: int | None = None
    held_by: str = ""
    settings_file: str = ""
    section_differs: bool | None = None
    """True if the service's own section is not the one that is installed."""
    state: ServiceState = ServiceState.UNKNOWN
    """As all outputs show it: by what the daemon, if there is one, last heard from cluster DNS."""

    def as_json(self) -> dict[str, Any]:
        """The measured values that steps are made of, for scripts."""
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
    """The servers that HAProxy has for pods; what is planned where that is not known."""
    if facts.proxy is not None:
        own = [server for server in facts.proxy.servers if not server.is_backup]
        return len(own)
    return facts.planned.slots if facts.planned else None
