"""Which pod has which slot, where HAProxy's resolver does not decide it.

Pods of services found by the Kubernetes API have slots without a resolver, and so have those with
more pods than an answer of cluster DNS carries (some 4,090 addresses; HAProxy throws a truncated
one away whole).  Their addresses come from here, through the runtime API (Management Guide 9.3,
`set server`).  HAProxy itself remembers who is where: what to do follows from what its worker says
now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fc_frontend.haproxy import runtime
from fc_frontend.haproxy.drain import NOTHING, Drained
from fc_frontend.haproxy.runtime import ServerState
from fc_frontend.plan.model import FREE_ADDRESS, Endpoint, Haproxy, Kind, ServicePlan

GONE_AFTER = 30
"""Seconds of failed checks after which a pod that DNS may have left out for want of room is gone.

A pod that is not ready leaves DNS within seconds; this only has to outlast a restart.
"""
_ONE_BY_ONE = 16
"""Services that are asked for one by one; with more, all servers are asked for at once."""
_DRAIN = 8
_MAINTENANCE = 1


@dataclass(frozen=True, slots=True)
class Assigned:
    """What was done: how many slots changed, and which addresses are gone, by service.

    `leaving` are the services with slots whose pods are gone and still have sessions.
    """

    changed: int
    gone: dict[str, frozenset[str]]
    leaving: frozenset[str]


def assign(
    haproxy: Haproxy, services: Sequence[ServicePlan], drained: Drained = NOTHING
) -> Assigned:
    """Give the services' endpoints to their slots in the running worker.  Raises `Unavailable`."""
    by_proxy = _servers(haproxy.runtime_socket, services)
    wanted: list[str] = []
    gone: dict[str, frozenset[str]] = {}
    leaving: set[str] = set()
    for service in services:
        name = service.spec.name
        servers = by_proxy.get(name, [])
        gone[name] = silent(servers)
        sessions: Mapping[str, int] = {}
        if any((server.admin or 0) & _DRAIN and not is_free(server) for server in servers):
            sessions = runtime.current_sessions(haproxy.runtime_socket, name)
        found = changes(service, servers, sessions, drained)
        wanted += found.commands
        if found.is_leaving:
            leaving.add(name)
    runtime.commands(haproxy.runtime_socket, wanted)
    return Assigned(len(wanted), gone, frozenset(leaving))


def _servers(path: str, services: Sequence[ServicePlan]) -> dict[str, list[ServerState]]:
    found: dict[str, list[ServerState]] = {}
    if len(services) > _ONE_BY_ONE:
        for server in runtime.servers(path):
            found.setdefault(server.proxy, []).append(server)
        return found
    for service in services:
        name = service.spec.name
        found[name] = list(runtime.servers_of(path, name))
    return found


@dataclass(frozen=True, slots=True)
class SlotChanges:
    """Commands, one text a slot, and whether a slot waits for the sessions of a pod that left."""

    commands: tuple[str, ...]
    is_leaving: bool


def changes(
    service: ServicePlan,
    servers: Iterable[ServerState],
    sessions: Mapping[str, int],
    drained: Drained = NOTHING,
) -> SlotChanges:
    """The commands that bring the slots to the service's endpoints.

    Slots of pods that stay are not touched, whatever state an operator gave them: that is in
    `drained`, and any other drain is what a daemon left that was killed.  A pod that leaves gets
    nothing new, and its slot is free once it has no `sessions`, by server, or another pod needs it.
    What has no free slot is left out.
    """
    # The cluster IP that is a backup beside the pods is left to HAProxy's resolver.
    own = "service" if service.kind is Kind.SERVICE else "pod"
    slots = [server for server in servers if server.server.startswith(own)]
    slots.sort(key=lambda server: (len(server.server), server.server))
    missing = {(each.address, each.port): each for each in service.endpoints}
    leaving = {(each.address, each.port) for each in service.draining}
    free = [slot for slot in slots if is_free(slot)]
    commands: list[str] = []
    left: list[ServerState] = []
    for slot in slots:
        place = (slot.address or "", slot.port or 0)
        if is_free(slot):
            continue
        if missing.pop(place, None) is not None:
            if _is_left_drained(slot, drained):
                commands.append(_set(slot, "state ready"))
        elif place in leaving:
            commands += _drain(slot)
        else:
            left.append(slot)
    waiting: list[ServerState] = []
    moved = {endpoint.address: endpoint for endpoint in missing.values()}
    for slot in left:
        endpoint = moved.pop(slot.address or "", None)
        if endpoint is not None:
            # A pod whose port changed keeps its slot, and its sessions.
            del missing[endpoint.address, endpoint.port]
            commands.append(_set(slot, f"addr {endpoint.address} port {endpoint.port}"))
        elif _takes_nothing(slot) and not sessions.get(slot.server, 0):
            commands.append(_freed(slot))
            free.append(slot)
        else:
            commands += _drain(slot)
            waiting.append(slot)
    # Pods that came need the slots more than what is left of those that went.
    short = max(0, len(missing) - len(free))
    free += waiting[:short]
    for slot, endpoint in zip(free, missing.values(), strict=False):
        commands.append(_filled(slot, endpoint, drained))
    return SlotChanges(tuple(commands), bool(waiting[short:]))


def _takes_nothing(slot: ServerState) -> bool:
    return bool((slot.admin or 0) & (_DRAIN | _MAINTENANCE))


def _drain(slot: ServerState) -> list[str]:
    return [] if _takes_nothing(slot) else [_set(slot, "state drain")]


def _is_left_drained(slot: ServerState, drained: Drained) -> bool:
    """True if nobody who is on record has drained this slot."""
    if not (slot.admin or 0) & _DRAIN or (slot.proxy, slot.server) in drained.slots:
        return False
    return not drained.covers(slot.proxy, slot.address)


def _set(slot: ServerState, what: str) -> str:
    return f"set server {slot.proxy}/{slot.server} {what}"


def _freed(slot: ServerState) -> str:
    return f"{_set(slot, 'state maint')};{_set(slot, f'addr {FREE_ADDRESS} port 1')}"


def _filled(slot: ServerState, endpoint: Endpoint, drained: Drained) -> str:
    # In one line: a slot with an address that is not ready would look like an operator's wish.
    state = "drain" if drained.covers(slot.proxy, endpoint.address) else "ready"
    place = f"addr {endpoint.address} port {endpoint.port}"
    before = [] if is_free(slot) else [_set(slot, "state maint")]
    after = ["state ready"] if state == "ready" else ["state ready", "state drain"]
    return ";".join([*before, _set(slot, place), *(_set(slot, each) for each in after)])


def silent(servers: Iterable[ServerState]) -> frozenset[str]:
    """The addresses whose checks have failed for `GONE_AFTER` seconds."""
    return frozenset(
        server.address
        for server in servers
        if server.address is not None
        and not is_free(server)
        and server.operational == 0
        and not (server.admin or 0) & 1
        and (server.changed_ago or 0) >= GONE_AFTER
    )


def is_free(server: ServerState) -> bool:
    """True for a slot without a pod."""
    return server.address in (None, FREE_ADDRESS)
