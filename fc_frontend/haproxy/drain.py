"""Draining: pods that finish their sessions and receive no new ones.

HAProxy's drain bit belongs to a server, which is a slot: when DNS assigns the slot to another pod,
that pod inherits the bit.  So operators' requests are recorded separately, by pod address, and the
state of the servers is derived from them.  Pure; no text from an operator reaches a command.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

from fc_frontend.errors import Refused
from fc_frontend.haproxy.runtime import ServerState
from fc_frontend.plan.model import (
    STANDBY_SUFFIX,
    Endpoint,
    Freshness,
    Resolution,
    standby_name,
)

VERSION = 1
MOST_BYTES = 4 * 1024 * 1024
"""Largest record on disk: 15,000 drained servers take 0.3 MB."""

_MAINTENANCE = 1
_DRAIN = 8
_NAME = re.compile(r"[A-Za-z0-9._:-]{1,256}")
"""The names that HAProxy accepts for a proxy or server (manual 2.3)."""

_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """The drains that operators requested, and the servers that are drained for them.

    `pods` are (service, address); `services` are drained entirely, including pods that are added
    later; `slots` are (service, server) whose drain bit fc-frontend set and may clear again.
    """

    pods: frozenset[tuple[str, str]] = frozenset()
    services: frozenset[str] = frozenset()
    slots: frozenset[tuple[str, str]] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.pods or self.services or self.slots)

    @property
    def names(self) -> frozenset[str]:
        """The services that the record mentions."""
        return (
            self.services
            | {standby_name(name) for name in self.services}
            | {name for name, _ in self.pods | self.slots}
        )

    def covers(self, service: str, address: str | None) -> bool:
        """Return whether to drain a pod of `service` with this address, or a slot without a pod."""
        if service.removesuffix(STANDBY_SUFFIX) in self.services:
            return True
        # Usually there are no drained pods, and `canonical` is slow.
        return (
            bool(self.pods) and address is not None and (service, canonical(address)) in self.pods
        )

    def admin(self, service: str, address: str, server: ServerState | None) -> int:
        """Return the administrative state that `server` is to have, where None is a new server."""
        state = (server.admin or 0) if server else 0
        if self.covers(service, address):
            return state if state & _MAINTENANCE else state | _DRAIN
        if server is not None and (service, server.server) in self.slots:
            return state & ~_DRAIN
        return state


NOTHING = Drained()


def canonical(address: str) -> str:
    """Return the canonical form of an address; return other text unchanged."""
    try:
        return str(ip_address(address))
    except ValueError:
        return address


def commands(wanted: Drained, servers: Iterable[ServerState]) -> list[str]:
    """Return the commands that drain `servers` as wanted, and undo fc-frontend's other drains.

    Servers in maintenance are skipped: they receive nothing new, and draining would end
    maintenance.
    """
    freed: list[str] = []
    drained: list[str] = []
    for server in servers:
        name = f"{server.proxy}/{server.server}"
        state = server.admin or 0
        if not is_name(server.proxy) or not is_name(server.server):
            continue
        if wanted.covers(server.proxy, server.address):
            if not state & (_MAINTENANCE | _DRAIN):
                drained.append(f"set server {name} state drain")
        elif state & _DRAIN and (server.proxy, server.server) in wanted.slots:
            freed.append(f"set server {name} state ready")
    return freed + drained


def covered(wanted: Drained, servers: Iterable[ServerState]) -> frozenset[tuple[str, str]]:
    """Return the servers to drain."""
    return frozenset(
        (server.proxy, server.server)
        for server in servers
        if wanted.covers(server.proxy, server.address)
    )


def marked(wanted: Drained, servers: Iterable[ServerState]) -> Drained:
    """Return `wanted` with the slots that have the drain bit for it, or could not be freed."""
    found = tuple(servers)
    ours = covered(wanted, found) | wanted.slots
    bits = {(server.proxy, server.server) for server in found if (server.admin or 0) & _DRAIN}
    return replace(wanted, slots=ours & bits)


def without_gone(
    wanted: Drained,
    resolution: Resolution,
    declared: Iterable[str],
    servers: Iterable[ServerState],
) -> Drained:
    """Return `wanted` without pods and services that are gone: pod addresses are reassigned.

    A pod is gone when a fresh answer does not contain it and no server has its address: HAProxy may
    see the answer up to a second later, and must not send anything to the pod in its last moment.
    A service is gone when it is not declared and HAProxy does not have it.
    """
    known = set(declared)
    held: set[tuple[str, str]] = set()
    for server in servers:
        known.add(server.proxy)
        if server.address:
            held.add((server.proxy, canonical(server.address)))
    named = {
        name: {endpoint.address for endpoint in answer.endpoints}
        for name, answer in resolution.items()
        if answer.freshness is Freshness.FRESH and name in wanted.names
    }
    pods = {
        (name, address)
        for name, address in wanted.pods
        if name in known
        and ((name, address) in held or name not in named or address in named[name])
    }
    services = wanted.services & known
    return replace(wanted, pods=frozenset(pods), services=services)


def pod_address(
    service: str,
    pod: str,
    servers: Iterable[ServerState],
    endpoints: Iterable[Endpoint],
    recorded: Drained = NOTHING,
) -> str:
    """Return the address of the pod that an operator names by address, slot or endpoint name.

    An endpoint's name is the one from its SRV record, in full or up to the first dot.  Raises
    `Refused`, with a list of the pods, if none or more than one matches.
    """
    labels: dict[str, set[str]] = {}
    empty: set[str] = set()
    for server in servers:
        if server.proxy == service and server.address:
            labels.setdefault(canonical(server.address), set()).add(server.server)
        elif server.proxy == service:
            empty.add(server.server)
    for endpoint in endpoints:
        names = {endpoint.name, endpoint.name.partition(".")[0]} - {""}
        labels.setdefault(endpoint.address, set()).update(names)
    for name, address in recorded.pods:
        if name == service:
            labels.setdefault(address, set())
    wanted = canonical(pod.strip("[]"))
    found = [address for address, names in labels.items() if address == wanted or pod in names]
    if len(found) == 1:
        return found[0]
    if found:
        message = f"{pod} means more than one pod of {service}: {', '.join(sorted(found))}"
        raise Refused.of(message, "give the pod's address")
    if pod in empty:
        message = f"the slot {pod} of {service} has no pod"
    else:
        message = f"{service} has no pod {pod[:80]!r}"
    raise Refused.of(message, f"its pods are: {_listed(labels)}")


def _listed(labels: Mapping[str, set[str]]) -> str:
    shown = [
        " ".join([*sorted(names, key=lambda name: (len(name), name))[:1], address])
        for address, names in sorted(labels.items(), key=lambda item: (len(item[0]), item[0]))
    ]
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return (", ".join(shown[:_SHOWN]) + more) if shown else "none"


def is_name(text: str) -> bool:
    """Return whether a runtime command can name a proxy or server `text`."""
    return _NAME.fullmatch(text) is not None


def dump(drained: Drained) -> bytes:
    """Return the record in the format of `parse`, sorted so that equal records have equal bytes."""
    slots: dict[str, list[str]] = {}
    for name, server in sorted(drained.slots):
        slots.setdefault(name, []).append(server)
    document = {
        "version": VERSION,
        "services": sorted(drained.services),
        "pods": sorted(drained.pods),
        "slots": slots,
    }
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def parse(content: bytes) -> Drained:
    """Parse a record from untrusted bytes.  Raises ValueError, with the reason, if damaged."""
    if len(content) > MOST_BYTES:
        raise ValueError(f"it is longer than {MOST_BYTES} bytes")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise ValueError(f"it is not of version {VERSION}")
    try:
        return Drained(
            pods=frozenset(
                (_checked(name), str(ip_address(_checked(address))))
                for name, address in document["pods"]
            ),
            services=frozenset(_checked(name) for name in document["services"]),
            slots=frozenset(
                (_checked(name), _checked(server))
                for name, servers in document["slots"].items()
                for server in servers
            ),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError("its entries are not as fc-frontend writes them") from None


def _checked(name: Any) -> str:
    if not isinstance(name, str) or not is_name(name):
        raise ValueError
    return name
