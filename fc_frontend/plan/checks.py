"""Find problems between declarations that are each valid on their own.

Pure: the addresses of this host are passed as values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

from fc_frontend.errors import Problem, Severity
from fc_frontend.plan.model import (
    Address,
    Bind,
    Discovery,
    Network,
    ServiceSpec,
    Settings,
    Target,
    nodes_of,
)


def settings_problems(settings: Settings, host: Sequence[Address] = ()) -> tuple[Problem, ...]:
    """Return the problems of the settings.

    Networks that overlap each other are errors, and those that contain addresses of this host are
    warnings.
    """
    cluster, haproxy = settings.cluster, settings.haproxy
    found: list[Problem] = []
    for service in cluster.service_networks:
        found += [
            Problem(
                f"service network {service} and pod network {pod} overlap",
                remedy="set each to the cluster's own range (--service-cluster-ip-range and "
                "--cluster-cidr)",
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
                f"{network} contains {address}, an address of this host",
                remedy="ignore this if it is the cluster's own interface on this host; otherwise "
                "correct the setting, or renumber this host",
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
                "a supervised HAProxy is reloaded by fc-frontend itself",
                "leave out reload_command or supervise",
                field="haproxy.reload_command",
            )
        )
    if settings.load_balancer is not None and cluster.api is None:
        found.append(
            Problem(
                "load_balancer needs access to the Kubernetes API, and there is none",
                "set cluster.api, or leave load_balancer out",
                field="load_balancer",
            )
        )
    own = _own_binds(settings)
    found += [
        Problem(
            f"{first_bind} is {first} and {second}",
            "give each its own address and port",
            field=first,
        )
        for (first, first_bind), (second, second_bind) in combinations(own, 2)
        if first_bind.overlaps(second_bind)
    ]
    return tuple(found)


def service_problems(settings: Settings, specs: Iterable[ServiceSpec]) -> tuple[Problem, ...]:
    """Return the problems of services.

    Services may lack the nodes or the API that they need, or have a node that is their own bind.
    """
    listed = tuple(specs)
    return (
        *_without_nodes(settings, listed),
        *_without_api(settings, listed),
        *_loops(settings, listed),
    )


def _loops(settings: Settings, specs: Iterable[ServiceSpec]) -> tuple[Problem, ...]:
    """Return nodes at which HAProxy would connect to itself in a loop."""
    return tuple(
        Problem(
            f"node {name} has the address and port of the bind {bind}: HAProxy would connect to "
            "itself",
            "bind another address or port, or correct the node's address",
            service=spec.name,
            field="nodes" if spec.nodes else "binds",
        )
        for spec in specs
        if spec.target is Target.NODE
        for name, address in nodes_of(spec, settings.cluster).items()
        for bind in spec.binds
        if isinstance(spec.port, int) and bind.is_at(str(address), spec.port)
    )


def _without_api(settings: Settings, specs: Iterable[ServiceSpec]) -> tuple[Problem, ...]:
    if settings.cluster.api is not None:
        return ()
    return tuple(
        Problem(
            "discovery: api needs access to the Kubernetes API, and there is none",
            "set cluster.api, or leave discovery out",
            service=spec.name,
            field="discovery",
        )
        for spec in specs
        if spec.discovery is Discovery.API
    )


def _without_nodes(settings: Settings, specs: Iterable[ServiceSpec]) -> tuple[Problem, ...]:
    if settings.cluster.nodes or settings.cluster.api:
        return ()
    return tuple(
        Problem(
            "lb_service_port needs the cluster's nodes, and none is known",
            "set cluster.nodes to a mapping of names and addresses, or cluster.api",
            service=spec.name,
            field="lb_service_port",
        )
        for spec in specs
        if spec.target is Target.NODE and not spec.nodes
    )


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def _own_binds(settings: Settings) -> list[tuple[str, Bind]]:
    own: list[tuple[str, Bind]] = []
    if settings.listen:
        own.append(("listen", settings.listen))
    if settings.haproxy.stats:
        own.append(("haproxy.stats", settings.haproxy.stats))
    return own
