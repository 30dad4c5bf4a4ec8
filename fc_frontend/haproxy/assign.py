"""Which pod has which slot, where HAProxy's resolver cannot decide it.

An answer of cluster DNS carries some 4,090 addresses, and HAProxy throws a truncated one away
whole.  Services with more pods have slots without a resolver, and their addresses come from here,
through the runtime API (Management Guide 9.3, `set server`).  HAProxy itself remembers who is
where: what to do follows from what its worker says now.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fc_frontend.haproxy import runtime
from fc_frontend.haproxy.runtime import ServerState
from fc_frontend.plan.model import FREE_ADDRESS, Haproxy, Kind, ServicePlan

GONE_AFTER = 30
"""Seconds of failed checks after which a pod that DNS may have left out for want of room is gone.

A pod that is not ready leaves DNS within seconds; this only has to outlast a restart.
"""


@dataclass(frozen=True, slots=True)
class Assigned:
    """What was done: how many slots changed, and which addresses are gone, by service."""

    changed: int
    gone: dict[str, frozenset[str]]


def assign(haproxy: Haproxy, services: Iterable[ServicePlan]) -> Assigned:
    """Give the services' endpoints to their slots in the running worker.  Raises `Unavailable`."""
    by_proxy: dict[str, list[ServerState]] = {}
    for server in runtime.servers(haproxy.runtime_socket):
        by_proxy.setdefault(server.proxy, []).append(server)
    wanted: list[str] = []
    gone: dict[str, frozenset[str]] = {}
    for service in services:
        name = service.spec.name
        servers = by_proxy.get(name, [])
        gone[name] = silent(servers)
        wanted += changes(service, servers)
    runtime.commands(haproxy.runtime_socket, wanted)
    return Assigned(len(wanted), gone)


def changes(service: ServicePlan, servers: Iterable[ServerState]) -> list[str]:
    """The commands that bring the slots to the service's endpoints, one text a slot.

    Slots of pods that stay are not touched, whatever state an operator gave them.  What has no
    free slot is left out.
    """
    # The cluster IP that is a backup beside the pods is left to HAProxy's resolver.
    own = "service" if service.kind is Kind.SERVICE else "pod"
    slots = [server for server in servers if server.server.startswith(own)]
    slots.sort(key=lambda server: (len(server.server), server.server))
    endpoints = {endpoint.address: endpoint for endpoint in service.endpoints}
    commands: list[str] = []
    free: list[ServerState] = []
    for slot in slots:
        where = f"{slot.proxy}/{slot.server}"
        if is_free(slot):
            free.append(slot)
            continue
        endpoint = endpoints.pop(slot.address or "", None)
        if endpoint is None:
            commands.append(
                f"set server {where} state maint;set server {where} addr {FREE_ADDRESS} port 1"
            )
            free.append(slot)
        elif endpoint.port != slot.port:
            commands.append(f"set server {where} addr {endpoint.address} port {endpoint.port}")
    for slot, endpoint in zip(free, endpoints.values(), strict=False):
        where = f"{slot.proxy}/{slot.server}"
        # In one line: a slot with an address that is not ready would look like an operator's wish.
        commands.append(
            f"set server {where} addr {endpoint.address} port {endpoint.port};"
            f"set server {where} state ready"
        )
    return commands


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
