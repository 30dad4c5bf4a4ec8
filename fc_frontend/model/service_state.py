"""The state of a service, for every output: a function of its view at one moment.

    unknown    HAProxy cannot be queried, or discovery never had an answer
    down       no server is up: no requests are served
    empty      there are no endpoints: no requests are served
    degraded   some servers are down, or some endpoints receive no traffic
    stale      the endpoints are outdated: discovery returns no answer
    withheld   the declared configuration is not deployed; the service runs as before
    ok

The first one that applies counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ServiceState(StrEnum):
    """The state of a service, the worst first."""

    UNKNOWN = "unknown"
    DOWN = "down"
    EMPTY = "empty"
    DEGRADED = "degraded"
    STALE = "stale"
    WITHHELD = "withheld"
    OK = "ok"


class HaproxyState(StrEnum):
    """Whether HAProxy runs."""

    RUNNING = "running"
    STOPPED = "stopped"
    """No process listens at its runtime socket."""
    UNKNOWN = "unknown"
    """It cannot be queried, for lack of permission or because it does not respond."""


class Health(StrEnum):
    """The state of a server in HAProxy."""

    UP = "up"
    DOWN = "down"
    DRAINED = "drained"
    MAINTENANCE = "maintenance"
    FREE = "free"
    """A slot without a pod."""


@dataclass(frozen=True, slots=True)
class Counts:
    """The number of servers of a service in each state.

    `standby` counts those that are up and receive requests only while no other server is up.
    """

    up: int = 0
    down: int = 0
    drained: int = 0
    maintenance: int = 0
    free: int = 0
    standby: int = 0

    @property
    def with_pod(self) -> int:
        """The number of servers that have a pod."""
        return self.up + self.down + self.drained + self.maintenance


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceView:
    """The values that determine a service's state.

    `counts` is None if HAProxy does not have the service; `endpoints` is the number of discovered
    endpoints, None if discovery never had an answer.
    """

    haproxy: HaproxyState
    counts: Counts | None
    endpoints: int | None
    without_slot: int = 0
    """Endpoints for which HAProxy has no server."""
    rejected: int = 0
    """Addresses that receive no traffic, as they are outside of the cluster's networks."""
    is_current: bool = True
    """Whether discovery's last query succeeded."""
    is_withheld: bool = False


def service_state(view: ServiceView) -> ServiceState:
    """Return the state of a service."""
    counts = view.counts
    if view.haproxy is HaproxyState.UNKNOWN:
        return ServiceState.UNKNOWN
    if view.haproxy is HaproxyState.STOPPED:
        return ServiceState.DOWN
    if counts is None:
        return ServiceState.WITHHELD if view.is_withheld else ServiceState.DOWN
    if not counts.up and not counts.standby:
        if view.endpoints or counts.with_pod:
            return ServiceState.DOWN
        return ServiceState.UNKNOWN if view.endpoints is None else ServiceState.EMPTY
    if view.endpoints == 0:
        return ServiceState.EMPTY
    if counts.down or view.without_slot or view.rejected or not counts.up:
        return ServiceState.DEGRADED
    if not view.is_current:
        return ServiceState.STALE
    return ServiceState.WITHHELD if view.is_withheld else ServiceState.OK
