"""The server state file: addresses of the servers before the new worker's first connection.

HAProxy reads it at each start (manual 3.1 `server-state-file`, management guide `show servers
state`).  Pure: the text is derived from the plan, the answers of cluster DNS and the state of the
running worker.  A single line that is too short would make HAProxy discard the entire file, so
every line is rendered here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from fc_frontend.haproxy.assign import is_free
from fc_frontend.haproxy.drain import NOTHING, Drained
from fc_frontend.haproxy.runtime import ServerState
from fc_frontend.plan.model import (
    Address,
    Answer,
    Endpoint,
    Freshness,
    Kind,
    Plan,
    Resolution,
    ServicePlan,
    Standby,
    nodes_of,
    standby_name,
)
from fc_frontend.syntax.lines import Line, LineKind, notable_lines

EMPTY = "1\n"
"""A state file without servers; HAProxy 2.6 warns about an empty one."""

_FORCED = 1 | 8
"""Administrative states that an operator set: maintenance and drain."""
_DISABLED = 4
"""For a server that is `disabled` in the configuration: it was enabled since."""
_MAKE_SERVERS = frozenset(("server", "server-template"))


@dataclass(frozen=True, slots=True)
class TextServers:
    """A line of a configuration that creates servers: their names, and their target.

    `port` is None if SRV records supply it.
    """

    names: tuple[str, ...]
    target: str
    port: int | None
    is_disabled: bool


def server_state(
    plan: Plan,
    resolution: Resolution,
    running: Iterable[ServerState],
    *,
    drained: Drained = NOTHING,
    text: str = "",
    before: str = "",
) -> str:
    """Return the text of the state file for `plan`, whose configuration is `text`.

    Servers of fragments keep their state in the worker, which runs the text `before`.

    Servers that the running worker has keep their state, and their slot if possible; pods that a
    fresh answer no longer contains are left out.  Pods that are `drained` are drained from the
    first connection on, whichever slot they get.
    """
    known: dict[str, list[ServerState]] = {}
    for server in running:
        if not is_free(server):
            known.setdefault(server.proxy, []).append(server)
    lines: list[str] = []
    for service in plan.services:
        if service.query is not None:
            answer = resolution.get(service.spec.name)
            lines += _service_lines(service, answer, known.get(service.spec.name, []), drained)
        else:
            nodes = nodes_of(service.spec, plan.settings.cluster)
            lines += _node_lines(service, nodes, known.get(service.spec.name, []), drained)
        if service.standby is not None and service.standby.address is None:
            others = known.get(standby_name(service.spec.name), [])
            lines += _standby_lines(service, service.standby, others, drained)
    names = {service.spec.name for service in plan.services}
    names |= {name for service in plan.services if (name := service.standby_name)}
    lines += _lines_of_others(text, before, known, drained, names) if plan.fragments else []
    return EMPTY + "".join(f"{line}\n" for line in lines)


def servers_in(text: str) -> dict[str, tuple[TextServers, ...]]:
    """Return the servers in a rendered text whose addresses come from cluster DNS, by proxy."""
    found: dict[str, list[TextServers]] = {}
    proxy = ""
    for line in notable_lines(text, _MAKE_SERVERS):
        if line.kind is LineKind.SECTION:
            is_backend = line.keyword in ("listen", "backend") and line.arguments
            proxy = line.arguments[0] if is_backend else ""
        elif proxy and line.kind is LineKind.STATEMENT and (servers := _text_servers(line)):
            found.setdefault(proxy, []).append(servers)
    return {name: tuple(servers) for name, servers in found.items()}


def _text_servers(line: Line) -> TextServers | None:
    """Return a statement's servers if cluster DNS has their addresses (manual 4.2)."""
    match line.keyword, line.arguments:
        case "server-template", (prefix, count, address, *options):
            low, dash, high = count.rpartition("-")
            if not _is_number(high) or (dash and not _is_number(low)):
                return None
            first = int(low) if dash else 1
            names = tuple(f"{prefix}{number}" for number in range(first, int(high) + 1))
        case "server", (name, address, *options) if name == "service" or "resolvers" in options:
            names = (name,)
        case _:
            return None
    if not names:
        return None
    target, _, port = address.rpartition(":")
    if not target or not _is_number(port):
        return None
    return TextServers(
        names, target, None if target.startswith("_") else int(port), "disabled" in options
    )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5


def state_of_running(
    text: str, before: str, running: Iterable[ServerState], *, drained: Drained = NOTHING
) -> str:
    """Return the text of the state file for a configuration of which only the text is known.

    Servers that the worker has, which runs the text `before`, keep their addresses if both texts
    query cluster DNS for the same name; all others wait for HAProxy's resolver.
    """
    known: dict[str, list[ServerState]] = {}
    for server in running:
        if not is_free(server):
            known.setdefault(server.proxy, []).append(server)
    lines = _lines_of_others(text, before, known, drained, frozenset())
    return EMPTY + "".join(f"{line}\n" for line in lines)


def _lines_of_others(
    text: str,
    before: str,
    known: Mapping[str, list[ServerState]],
    drained: Drained,
    services: AbstractSet[str],
) -> list[str]:
    """Return the lines of servers known only from the texts, except those of `services`."""
    former = servers_in(before)
    lines: list[str] = []
    for proxy, made in servers_in(text).items():
        if proxy in services:
            continue
        targets = {other.target for other in former.get(proxy, ())}
        for servers in made:
            if servers.target not in targets:
                continue
            own = servers.names[0].rstrip("0123456789")
            by_address = {
                server.address: server
                for server in known.get(proxy, [])
                if server.address and server.server.rstrip("0123456789") == own
            }
            names = list(servers.names[: len(by_address)])
            for name, address in _placed(names, list(by_address), by_address).items():
                server = by_address[address]
                admin = drained.admin(proxy, address, server) & _FORCED
                if servers.is_disabled:
                    admin |= _DISABLED
                port = servers.port or server.port
                if port:
                    lines.append(_text_line(proxy, name, Endpoint(address, port), server, admin))
    return lines


def _service_lines(
    service: ServicePlan, answer: Answer | None, known: list[ServerState], drained: Drained
) -> list[str]:
    names = (
        ["service"]
        if service.kind is Kind.SERVICE
        else [f"pod{number}" for number in range(1, service.slots + 1)]
    )
    is_fresh = answer is not None and answer.freshness is Freshness.FRESH and not answer.is_cut
    endpoints = {endpoint.address: endpoint for endpoint in service.endpoints}
    servers: dict[str, ServerState] = {}
    for server in known:
        if server.address is None or server.address in servers:
            continue
        if server.address not in endpoints and not is_fresh:
            endpoint = _endpoint(service, server)
            if endpoint is not None:
                endpoints[server.address] = endpoint
        if server.address in endpoints:
            servers[server.address] = server
    placed = _placed(names[: len(endpoints)], list(endpoints), servers)
    lines = [
        _line(service, name, endpoints[address], servers.get(address), drained)
        for name, address in placed.items()
    ]
    backup = next((server for server in known if server.server == "service"), None)
    if service.fallback_query and backup and backup.address and isinstance(service.spec.port, int):
        endpoint = Endpoint(backup.address, service.spec.port)
        lines.append(_line(service, "service", endpoint, backup, drained))
    return lines


def _standby_lines(
    service: ServicePlan, standby: Standby, known: list[ServerState], drained: Drained
) -> list[str]:
    """Return lines of servers that cluster DNS will list: known ones, else the API's pods."""
    servers = {server.address: server for server in known if server.address is not None}
    addresses = list(servers) or [endpoint.address for endpoint in service.endpoints]
    names = [f"pod{number}" for number in range(1, service.slots + 1)][: len(addresses)]
    proxy = standby_name(service.spec.name)
    return [
        _text_line(
            proxy,
            name,
            Endpoint(address, standby.port),
            servers.get(address),
            drained.admin(proxy, address, servers.get(address)) & _FORCED,
        )
        for name, address in _placed(names, addresses, servers).items()
    ]


def _placed(
    names: list[str], addresses: list[str], servers: dict[str, ServerState]
) -> dict[str, str]:
    """Assign a slot name to each address, as far as there are names.

    Servers keep their slot if that leaves no gap: HAProxy fills an empty slot from the first DNS
    answer before it checks the slots after it, and would move their addresses around.
    """
    kept = {
        server.server: address
        for address in addresses
        if (server := servers.get(address)) is not None and server.server in names
    }
    waiting = [address for address in addresses if address not in set(kept.values())]
    free = [name for name in names if name not in kept]
    placed = {**kept, **dict(zip(free, waiting, strict=False))}
    return {name: placed[name] for name in names if name in placed}


def _endpoint(service: ServicePlan, server: ServerState) -> Endpoint | None:
    port = service.spec.port if isinstance(service.spec.port, int) else server.port
    if server.address is None or not port:
        return None
    return Endpoint(server.address, port)


def _node_lines(
    service: ServicePlan,
    nodes: Mapping[str, Address],
    known: list[ServerState],
    drained: Drained,
) -> list[str]:
    """Return lines for nodes in maintenance or drain: the configuration has everything else."""
    assert isinstance(service.spec.port, int)
    servers = {server.server: server for server in known}
    lines: list[str] = []
    for name, node in nodes.items():
        server = servers.get(name)
        if drained.admin(service.spec.name, str(node), server) & _FORCED:
            endpoint = Endpoint(str(node), service.spec.port)
            lines.append(_line(service, name, endpoint, server, drained))
    return lines


def _line(
    service: ServicePlan,
    name: str,
    endpoint: Endpoint,
    server: ServerState | None,
    drained: Drained,
) -> str:
    admin = drained.admin(service.spec.name, endpoint.address, server) & _FORCED
    if service.by_runtime and (name != "service" or service.kind is Kind.SERVICE):
        admin |= _DISABLED
    return _text_line(service.spec.name, name, endpoint, server, admin)


def _text_line(
    proxy: str, name: str, endpoint: Endpoint, server: ServerState | None, admin: int
) -> str:
    # Results of checks on another port do not apply to this one.
    is_up = server is None or server.port != endpoint.port or server.operational in (1, 2)
    weight = server.weight if server and server.weight is not None else 1
    initial = server.initial_weight if server and server.initial_weight is not None else 1
    health = "3 3 6" if is_up else "2 0 6"
    # No fqdn and no SRV record, in SRV services too: 2.8 treats servers loaded with these as
    # outdated once DNS has been silent for `timeout resolve` + `resolve_retries` × `timeout retry`,
    # and would drop all of them.  A wildcard fqdn would make the line fail.
    return (
        f"0 {proxy} 0 {name} {endpoint.address} {2 if is_up else 0} {admin} "
        f"{weight} {initial} 0 6 {health} 0 0 0 - {endpoint.port} -"
    )
