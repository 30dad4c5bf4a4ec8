"""The state of a service, for every output: one function of what is known of it at one moment.

    unknown    HAProxy cannot be asked, or nothing was ever heard of the service
    down       no server is up: nobody is served
    empty      there are no endpoints: nobody is served
    degraded   some servers are down, or some endpoints get no traffic
    stale      the endpoints are older than they should be: discovery gives no answer
    withheld   what the files declare is not deployed; it runs as before
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
    """Nobody listens at its runtime socket."""
    UNKNOWN = "unknown"
    """It cannot be asked, for want of permission or because it gives no answer."""


class Health(StrEnum):
    """What HAProxy does with a server."""

    UP = "up"
    DOWN = "down"
    DRAINED = "drained"
    MAINTENANCE = "maintenance"
    FREE = "free"
    """A slot without a pod."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many servers of a service are in which state.

    `standby` counts those that are up and take requests only while no other server is.
    """

    up: int = 0
    down: int = 0
    drained: int = 0
    maintenance: int = 0
    free: int = 0
    standby: int = 0

    @property
    def with_pod(self) -> int:
        """The servers that have a pod."""
        return self.up + self.down + self.drained + self.maintenance


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceView:
    """What a service's state follows from.

    `counts` is None if HAProxy does not have the service; `endpoints` is how many discovery found,
    None if it never gave an answer.
    """

    haproxy: HaproxyState
    counts: Counts | None
    endpoints: int | None
    without_slot: int = 0
    """Endpoints for which HAProxy has no server."""
    rejected: int = 0
    """Addresses that get no traffic, as they are outside of the cluster's networks."""
    is_current: bool = True
    """True if discovery's last answer is a good one."""
    is_withheld: bool = False


def service_state(view: ServiceView) -> ServiceState:
    """The state of a service."""
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
