"""What is wrong between declarations that are each fine for themselves.

Pure: the addresses of this host come in as values.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import combinations

from fc_frontend.errors import Problem, Severity
from fc_frontend.plan.model import Address, Bind, Network, ServiceSpec, Settings, Target

_WILDCARDS = frozenset(("*", "::"))


def settings_problems(settings: Settings, host: Sequence[Address] = ()) -> tuple[Problem, ...]:
    """Networks that overlap each other (errors) or addresses of this host (warnings), and more."""
    cluster, haproxy = settings.cluster, settings.haproxy
    found: list[Problem] = []
    for service in cluster.service_networks:
        found += [
            Problem(
                message=f"service network {service} and pod network {pod} overlap",
                remedy="give each its own range, as in the cluster's serviceClusterIpRange and "
                "clusterCidr",
                field="cluster.service_network",
            )
            for pod in cluster.pod_networks
            if _overlap(service, pod)
        ]
    for field, networks in (
        ("cluster.service_network", cluster.service_networks),
        ("cluster.pod_network", cluster.pod_networks),
    ):
        found += [
            Problem(
                message=f"{network} contains {address}, an address of this host",
                remedy="cluster networks must not overlap with existing ones, save for the "
                "cluster's own interface on this host",
                severity=Severity.WARNING,
                field=field,
            )
            for network in networks
            for address in host
            if address.version == network.version and address in network
        ]
    if haproxy.supervise and haproxy.reload_command:
        found.append(
            Problem(
                message="a supervised HAProxy is reloaded by fc-frontend itself",
                remedy="leave out reload_command or supervise",
                field="haproxy.reload_command",
            )
        )
    own = _own_binds(settings)
    found += [
        Problem(
            message=f"{first_bind} is {first} and {second}",
            remedy="give each its own address and port",
            field=first,
        )
        for (first, first_bind), (second, second_bind) in combinations(own, 2)
        if first_bind.overlaps(second_bind)
    ]
    return tuple(found)


def service_problems(settings: Settings, specs: Iterable[ServiceSpec]) -> tuple[Problem, ...]:
    """Binds that are taken twice or by fc-frontend's own listeners, and nodes that are missing."""
    found: list[Problem] = []
    taken: dict[tuple[str, str, int | None], tuple[Bind, ServiceSpec]] = {}
    own_ports = {bind.port for _, bind in _own_binds(settings)}
    for spec in specs:
        is_near = False
        for bind in spec.binds:
            # Nearly all have nothing in common with fc-frontend's own, and there may be thousands.
            is_near |= bind.port in own_ports or bind.kind == "unix"
            mine = (bind, spec)
            first = taken.setdefault((bind.kind, bind.host, bind.port), mine)
            if first is not mine:
                found.append(_taken_twice(spec, bind, first[1]))
        if is_near:
            found += _own_conflicts(settings, spec)
        if spec.target is Target.NODE and not settings.cluster.nodes:
            found.append(
                Problem(
                    message="lb_service_port needs the cluster's nodes, and none is known",
                    remedy="set cluster.nodes to a mapping of names and addresses",
                    service=spec.name,
                    field="lb_service_port",
                )
            )
    found += _partial_overlaps(taken.values())
    return tuple(found)


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def _own_binds(settings: Settings) -> list[tuple[str, Bind]]:
    own: list[tuple[str, Bind]] = []
    if settings.listen:
        own.append(("listen", settings.listen))
    if settings.haproxy.stats:
        own.append(("haproxy.stats", settings.haproxy.stats))
    return own


def _own_conflicts(settings: Settings, spec: ServiceSpec) -> Iterator[Problem]:
    for setting, own in _own_binds(settings):
        for index, bind in enumerate(spec.binds):
            if bind.overlaps(own):
                yield Problem(
                    message=f"{bind} is used by fc-frontend itself ({setting} is {own})",
                    remedy=f"choose another port, or change {setting}",
                    service=spec.name,
                    field=f"binds.{index}",
                )
    sockets = (settings.haproxy.runtime_socket, settings.haproxy.master_socket)
    for index, bind in enumerate(spec.binds):
        if bind.kind == "unix" and bind.host in sockets:
            yield Problem(
                message=f"{bind} is a socket that controls HAProxy",
                remedy="choose another path",
                service=spec.name,
                field=f"binds.{index}",
            )


def _taken_twice(spec: ServiceSpec, bind: Bind, holder: ServiceSpec) -> Problem:
    index = spec.binds.index(bind)
    if holder is spec:
        return Problem(
            message=f"{bind} stands twice in the same service",
            remedy="keep one of the two",
            service=spec.name,
            field=f"binds.{len(spec.binds) - 1 - spec.binds[::-1].index(bind)}",
        )
    where = f" ({holder.origin.file})" if holder.origin else ""
    return Problem(
        message=f"{bind} is taken by service {holder.name}{where}: HAProxy would share the "
        "connections between the two",
        remedy="give one of them another address or port",
        service=spec.name,
        field=f"binds.{index}",
    )


def _partial_overlaps(taken: Collection[tuple[Bind, ServiceSpec]]) -> Iterator[Problem]:
    wide = [(bind, spec) for bind, spec in taken if bind.host in _WILDCARDS]
    ports = {bind.port for bind, _ in wide}
    at: dict[int | None, list[tuple[Bind, ServiceSpec]]] = {}
    for bind, spec in taken if wide else ():
        if bind.port in ports:
            at.setdefault(bind.port, []).append((bind, spec))
    for bind, spec in wide:
        for other, holder in at[bind.port]:
            if holder is not spec and bind != other and bind.overlaps(other):
                yield Problem(
                    message=f"{bind} also covers {other} of service {holder.name}, which keeps "
                    "the connections to that address",
                    remedy="give addresses instead of the wildcard if that is not meant",
                    severity=Severity.WARNING,
                    service=spec.name,
                    field=f"binds.{spec.binds.index(bind)}",
                )
