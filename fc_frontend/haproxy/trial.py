"""Find obstacles to a configuration that HAProxy's own check accepts."""

from __future__ import annotations

import os
import socket
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, replace

from fc_frontend.errors import Problem, Severity, Unavailable
from fc_frontend.haproxy import install
from fc_frontend.haproxy.descriptors import (
    check_file_descriptors,
    descriptor_limit,
    file_descriptors_needed,
)
from fc_frontend.haproxy.holders import place
from fc_frontend.haproxy.listener_places import ListenerPlaces
from fc_frontend.haproxy.preflight import Obstacle, find_obstacles, missing_interface
from fc_frontend.haproxy.rights import Rights, rights_of
from fc_frontend.plan.model import Haproxy, Plan
from fc_frontend.render.config import Config, config_hash, sections_in
from fc_frontend.render.listeners import listeners_of
from fc_frontend.syntax.binds import Owned
from fc_frontend.syntax.demand import demand_of
from fc_frontend.syntax.endpoints import Family, ListenEndpoint

Seat = tuple[Hashable, ...]
"""The resource that one socket occupies: kind, network namespace, address or path, and port."""


@dataclass(frozen=True, slots=True)
class Taker:
    """The HAProxy that is to take over the listeners.

    `hash` is that of its running configuration, None if fc-frontend did not write it.  `pids` are
    its processes, and `master` the one that binds; both are unknown while it does not run.
    """

    hash: str | None = None
    pids: frozenset[int] = frozenset()
    master: int | None = None

    def rights(self, haproxy: Haproxy) -> Rights | None:
        """Return the rights of the process that binds, or None if unknown."""
        if self.master is not None:
            return rights_of(self.master)
        # fc-frontend itself starts a supervised HAProxy.
        return rights_of(os.getpid()) if haproxy.supervise and not self.pids else None


def trial(
    haproxy: Haproxy, config: Config, taker: Taker, *, plan: Plan | None = None
) -> tuple[Problem, ...]:
    """Return problems outside HAProxy's check: unavailable listeners, too few descriptors.

    With `plan`, problems include the units and places of their listeners.
    """
    wanted, _ = listeners_of(config, socket.gethostname())
    problems = [
        _problem(owned, obstacle, plan, config)
        for owned, obstacle in new_obstacles(haproxy, wanted, taker)
    ]
    count = sum(len(listener.endpoint.ports) for _, listener in wanted)
    too_few = check_file_descriptors(
        file_descriptors_needed(demand_of(config.text), count), descriptor_limit(taker.master)
    )
    return (*problems, *([too_few] if too_few else []))


def new_obstacles(
    haproxy: Haproxy, wanted: Iterable[Owned], taker: Taker
) -> Iterator[tuple[Owned, Obstacle]]:
    """Yield the listeners of `wanted` that HAProxy cannot bind, and does not have yet."""
    known = known_seats(haproxy, taker)
    new: dict[ListenEndpoint, Owned] = {}
    for owned in wanted:
        endpoint = owned.listener.endpoint
        seats = list(seats_of(endpoint))
        missing = [port for port, seat in seats if seat not in known]
        if not missing:
            # HAProxy has the address; with other options it binds again.
            if (obstacle := missing_interface(endpoint)) is not None:
                yield owned, obstacle
        elif len(missing) == len(seats):
            new[endpoint] = owned
        else:
            new |= {replace(endpoint, port=port, last_port=port): owned for port in missing}
    for obstacle in find_obstacles(new, owned_by=taker.pids, rights=taker.rights(haproxy)):
        yield new[obstacle.endpoint], obstacle


def known_seats(haproxy: Haproxy, taker: Taker) -> frozenset[Seat]:
    """Return the seats of HAProxy's running configuration, if that is the installed one."""
    try:
        installed = install.read(haproxy.config_file)
    except Unavailable:
        return frozenset()
    text = (installed or b"").decode("utf-8", "surrogateescape")
    if taker.hash is None or config_hash(text) != taker.hash:
        return frozenset()
    found, _ = listeners_of(Config(text, taker.hash, sections_in(text)), socket.gethostname())
    return frozenset(seat for _, listener in found for _, seat in seats_of(listener.endpoint))


def seats_of(endpoint: ListenEndpoint) -> Iterator[tuple[int, Seat]]:
    """Yield the seats of an endpoint's sockets, each with its port."""
    kind = endpoint.family, endpoint.is_datagram, endpoint.namespace
    if endpoint.family is Family.UNIX:
        yield 0, (*kind, place(endpoint.host))
    else:
        for port in endpoint.ports:
            yield port, (*kind, endpoint.host, port)


def _problem(owned: Owned, obstacle: Obstacle, plan: Plan | None, config: Config) -> Problem:
    severity = Severity.ERROR if obstacle.is_certain else Severity.WARNING
    if plan is None:
        return Problem(obstacle.message, obstacle.remedy, severity=severity)
    places = ListenerPlaces(plan, config)
    return places.about(owned, obstacle.message, obstacle.remedy, severity)
