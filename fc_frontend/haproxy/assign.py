"""Assign pods to server slots where HAProxy's resolver does not.

Two kinds of service have slots without a resolver: services found through the Kubernetes API, and
services with more pods than a cluster DNS answer can carry (some 4,090 addresses; HAProxy discards
a truncated answer entirely).  This module sets the addresses of these slots through the runtime API
(Management Guide 9.3, `set server`).  It keeps no state of its own: each change is computed from
the current state of the worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fc_frontend.haproxy import runtime
from fc_frontend.haproxy.drain import NOTHING, Drained
from fc_frontend.haproxy.runtime import ServerState
from fc_frontend.plan.model import FREE_ADDRESS, Endpoint, Haproxy, Kind, ServicePlan

GONE_AFTER = 30
"""Seconds of failed checks after which a pod that a truncated answer may lack counts as gone.

A pod that is not ready leaves DNS within seconds, so this only has to outlast a restart.
"""
_ONE_BY_ONE = 16
"""Up to this many services are queried one by one; beyond it, all servers are queried at once."""
_DRAIN = 8
_MAINTENANCE = 1


@dataclass(frozen=True, slots=True)
class Assigned:
    """The result of an assignment: the number of changed slots, and silent addresses by service.

    `leaving` contains the services with slots whose pods are gone but still have sessions.
    """

    changed: int
    gone: dict[str, frozenset[str]]
    leaving: frozenset[str]


def assign(
    haproxy: Haproxy, services: Sequence[ServicePlan], drained: Drained = NOTHING
) -> Assigned:
    """Assign the services' endpoints to slots in the running worker.  Raises `Unavailable`."""
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
    """Commands, one string per slot, and whether a slot waits for a departed pod's sessions."""

    commands: tuple[str, ...]
    is_leaving: bool


def changes(
    service: ServicePlan,
    servers: Iterable[ServerState],
    sessions: Mapping[str, int],
    drained: Drained = NOTHING,
) -> SlotChanges:
    """Return the commands that assign the service's endpoints to the slots.

    The slot of a pod that remains keeps the state that an operator gave it, as recorded in
    `drained`.  Any other drain is left over from a daemon that was killed, and is removed.  A pod
    that leaves receives no new sessions.  Its slot becomes free when it has no `sessions` (by
    server) left, or when another pod needs it.  Endpoints without a free slot are left out.
    """
    # HAProxy's resolver sets the address of the cluster IP, which is a backup beside the pods.
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
            # A pod whose port changed keeps its slot and its sessions.
            del missing[endpoint.address, endpoint.port]
            commands.append(_set(slot, f"addr {endpoint.address} port {endpoint.port}"))
        elif _takes_nothing(slot) and not sessions.get(slot.server, 0):
            commands.append(_freed(slot))
            free.append(slot)
        else:
            commands += _drain(slot)
            waiting.append(slot)
    # New pods take precedence over the remaining sessions of departed pods.
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
    """Return whether this slot is drained although the record does not ask for it."""
    if not (slot.admin or 0) & _DRAIN or (slot.proxy, slot.server) in drained.slots:
        return False
    return not drained.covers(slot.proxy, slot.address)


def _set(slot: ServerState, what: str) -> str:
    return f"set server {slot.proxy}/{slot.server} {what}"


def _freed(slot: ServerState) -> str:
    return f"{_set(slot, 'state maint')};{_set(slot, f'addr {FREE_ADDRESS} port 1')}"


def _filled(slot: ServerState, endpoint: Endpoint, drained: Drained) -> str:
    # In one line: otherwise a slot with an address that is not ready would look like an operator's
    # drain.
    state = "drain" if drained.covers(slot.proxy, endpoint.address) else "ready"
    place = f"addr {endpoint.address} port {endpoint.port}"
    before = [] if is_free(slot) else [_set(slot, "state maint")]
    after = ["state ready"] if state == "ready" else ["state ready", "state drain"]
    return ";".join([*before, _set(slot, place), *(_set(slot, each) for each in after)])


def silent(servers: Iterable[ServerState]) -> frozenset[str]:
    """Return the addresses whose checks have failed for at least `GONE_AFTER` seconds."""
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
    """Return whether the slot has no pod."""
    return server.address in (None, FREE_ADDRESS)
