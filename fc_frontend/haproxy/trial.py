"""What keeps HAProxy from a configuration that its own check accepts."""

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
"""What one socket occupies: kind, network namespace, address or path, and port."""


@dataclass(frozen=True, slots=True)
class Taker:
    """The HAProxy that is to take the listeners.

    `hash` is that of the configuration that it runs, None if it is not one of ours.  `pids` are its
    processes, and `master` the one that binds; both are unknown while it does not run.
    """

    hash: str | None = None
    pids: frozenset[int] = frozenset()
    master: int | None = None

    def rights(self, haproxy: Haproxy) -> Rights | None:
        """What the process that binds may do, None if that is not known."""
        if self.master is not None:
            return rights_of(self.master)
        # A supervised one is started by us.
        return rights_of(os.getpid()) if haproxy.supervise and not self.pids else None


def trial(
    haproxy: Haproxy, config: Config, taker: Taker, *, plan: Plan | None = None
) -> tuple[Problem, ...]:
    """What HAProxy's check does not see: listeners that cannot be taken, too few descriptors.

    With `plan`, problems have the units and places of their listeners.
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
    """The listeners of `wanted` that HAProxy cannot take, and does not have yet."""
    known = known_seats(haproxy, taker)
    new: dict[ListenEndpoint, Owned] = {}
    for owned in wanted:
        endpoint = owned.listener.endpoint
        seats = list(seats_of(endpoint))
        missing = [port for port, seat in seats if seat not in known]
        if not missing:
            # HAProxy has the address; other options make it bind anew.
            if (obstacle := missing_interface(endpoint)) is not None:
                yield owned, obstacle
        elif len(missing) == len(seats):
            new[endpoint] = owned
        else:
            new |= {replace(endpoint, port=port, last_port=port): owned for port in missing}
    for obstacle in find_obstacles(new, owned_by=taker.pids, rights=taker.rights(haproxy)):
        yield new[obstacle.endpoint], obstacle


def known_seats(haproxy: Haproxy, taker: Taker) -> frozenset[Seat]:
    """What HAProxy occupies with the configuration that it runs, as far as that is installed."""
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
    """What the sockets of an endpoint occupy, each with its port."""
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
