"""Count the servers of each proxy by state, as the running worker reports them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fc_frontend.errors import Cause, Problem, Unavailable
from fc_frontend.haproxy import runtime
from fc_frontend.haproxy.assign import is_free
from fc_frontend.haproxy.runtime import ServerState
from fc_frontend.model.service_state import Counts, HaproxyState, Health

_MAINTENANCE = 0b11
_DRAIN = 0b11000
_NO_ADDRESS = 0b100000
_BACKUP = "service"
"""The server for the cluster IP: a backup if the service also has servers for pods."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """The servers that HAProxy reports; `counts` is by proxy, and empty without an answer."""

    state: HaproxyState
    counts: Mapping[str, Counts] = field(default_factory=dict)
    problem: Problem | None = None
    """The reason why HAProxy did not answer."""


def servers_now(runtime_socket: str, timeout: float = runtime.TIMEOUT) -> Servers:
    """Return the servers of the running worker; a failure of HAProxy is returned, not raised."""
    try:
        counts = counted(runtime.each_server(runtime_socket, timeout))
    except Unavailable as exc:
        return Servers(state=state_without(exc.problem), problem=exc.problem)
    return Servers(state=HaproxyState.RUNNING, counts=counts)


def state_without(problem: Problem) -> HaproxyState:
    """Return HAProxy's state, given the `problem` that prevented an answer."""
    is_stopped = problem.cause is Cause.NOT_LISTENING
    return HaproxyState.STOPPED if is_stopped else HaproxyState.UNKNOWN


def counted(servers: Iterable[ServerState]) -> dict[str, Counts]:
    """Count the servers of each proxy by state."""
    found: dict[str, dict[Health, int]] = {}
    backups: dict[str, Health] = {}
    for server in servers:
        by_health = found.setdefault(server.proxy, dict.fromkeys(Health, 0))
        if server.server == _BACKUP:
            backups[server.proxy] = health_of(server)
        else:
            by_health[health_of(server)] += 1
    standby: dict[str, int] = {}
    for proxy, health in backups.items():
        if any(found[proxy].values()):
            standby[proxy] = int(health is Health.UP)
        else:
            found[proxy][health] += 1
    return {
        proxy: Counts(
            up=by_health[Health.UP],
            down=by_health[Health.DOWN],
            drained=by_health[Health.DRAINED],
            maintenance=by_health[Health.MAINTENANCE],
            free=by_health[Health.FREE],
            standby=standby.get(proxy, 0),
        )
        for proxy, by_health in found.items()
    }


def health_of(server: ServerState) -> Health:
    """Return the health of a server."""
    admin = server.admin or 0
    if is_free(server) or admin & _NO_ADDRESS:
        return Health.FREE
    if admin & _MAINTENANCE:
        return Health.MAINTENANCE
    if admin & _DRAIN:
        return Health.DRAINED
    return Health.UP if server.up else Health.DOWN
