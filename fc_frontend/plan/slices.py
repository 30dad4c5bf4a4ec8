"""Derive the servers of a service from the EndpointSlices of its Kubernetes Service.

Rules: discovery.k8s.io/v1; KEP-1672 (conditions); KEP-1669 (all endpoints terminate);
kubernetes#93374 and #135266 (an endpoint may be in several slices, in different states).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from fc_frontend.plan.addresses import NotAnAddress, is_within, parse_address
from fc_frontend.plan.cluster_objects import Condition, KubeService, Slice, SliceEndpoint, SlicePort
from fc_frontend.plan.model import (
    Cluster,
    Endpoint,
    Family,
    Network,
    ServiceSpec,
    Standby,
    Target,
)
from fc_frontend.plan.names import headless_name

H2C = "kubernetes.io/h2c"
"""The `appProtocol` of HTTP/2 without TLS (KEP-3726)."""


class SliceGap(StrEnum):
    """Why a service has no servers according to the API."""

    NO_SERVICE = "no-service"
    """The Service does not exist."""
    EXTERNAL_NAME = "external-name"
    """The Service is an alias of a DNS name, and has no pods."""
    NO_ENDPOINTS = "no-endpoints"
    """No slice has an endpoint for it."""
    NO_PORT = "no-port"
    """Neither the Service nor its slices have the port."""
    NOT_READY = "not-ready"
    """No endpoint is ready."""
    FOREIGN_NETWORK = "foreign-network"
    """All endpoints are outside of the networks where pods are expected."""
    LOOP = "loop"
    """All endpoints are the service's own binds."""


@dataclass(frozen=True, slots=True)
class SliceAnswer:
    """The endpoints of a service in the API.  They are sorted and unique.

    `active` endpoints receive traffic, `draining` ones complete their connections.  `rejected` are
    addresses outside of the networks: they are never used.  `is_h2c` is set if all endpoints use
    HTTP/2 without TLS.  `terminating` is set if `active` are the last endpoints, which terminate
    but still serve.
    """

    active: tuple[Endpoint, ...] = ()
    draining: tuple[Endpoint, ...] = ()
    rejected: tuple[str, ...] = ()
    is_h2c: bool = False
    terminating: bool = False
    gap: SliceGap | None = None


API_NAMESPACE, API_SERVICE = "default", "kubernetes"
"""The Service of the API servers, which maintain its endpoints themselves."""


def is_of_api_servers(spec: ServiceSpec) -> bool:
    """Return whether the endpoints of `spec` are API servers: on nodes, not in the pod networks."""
    return (spec.namespace, spec.service) == (API_NAMESPACE, API_SERVICE)


def endpoints_from_slices(
    spec: ServiceSpec,
    service: KubeService | None,
    slices: Iterable[Slice],
    networks: tuple[Network, ...],
    families: tuple[Family, ...],
) -> SliceAnswer:
    """Return the servers of `spec`, whose Kubernetes Service is `service`, with these `slices`.

    Pods must be in `networks`; API servers may have any unicast address except loopback and
    link-local ones.  A pod with addresses in several families counts once, with its address of the
    first matching family in `families`.
    """
    if service is None:
        return SliceAnswer(gap=SliceGap.NO_SERVICE)
    if service.type == "ExternalName":
        return SliceAnswer(gap=SliceGap.EXTERNAL_NAME)
    relevant = [item for item in slices if item.endpoints and item.family in families]
    if not relevant:
        return SliceAnswer(gap=SliceGap.NO_ENDPOINTS)
    relevant.sort(key=lambda item: families.index(item.family))
    states, rejected, protocols = _states(spec, service, relevant, networks)
    own = [each for each in states if any(b.is_at(each.address, each.port) for b in spec.binds)]
    if own and len(own) == len(states):
        return SliceAnswer(rejected=rejected, gap=SliceGap.LOOP)
    for endpoint in own:
        # HAProxy would connect to itself: an API server that advertises the frontend's address.
        del states[endpoint]
    if not states:
        gap = SliceGap.FOREIGN_NETWORK if rejected else SliceGap.NO_PORT
        return SliceAnswer(rejected=rejected, gap=gap)
    active = tuple(sorted(e for e, state in states.items() if state is Condition.READY))
    draining = tuple(sorted(e for e, state in states.items() if state is Condition.DRAINING))
    is_h2c = protocols == {H2C}
    if active:
        return SliceAnswer(active, draining, rejected, is_h2c)
    if draining:
        return SliceAnswer(draining, (), rejected, is_h2c, terminating=True)
    return SliceAnswer(rejected=rejected, is_h2c=is_h2c, gap=SliceGap.NOT_READY)


def _states(
    spec: ServiceSpec,
    service: KubeService,
    slices: list[Slice],
    networks: tuple[Network, ...],
) -> tuple[dict[Endpoint, Condition], tuple[str, ...], set[str]]:
    """Return the best condition of each endpoint, the rejected addresses, and the protocols."""
    states: dict[Endpoint, Condition] = {}
    rejected: set[str] = set()
    protocols: set[str] = set()
    family_of_pod: dict[tuple[str, str], Family] = {}
    for item in slices:
        ports = _ports(spec, service, item)
        if not ports:
            continue
        for entry in item.endpoints:
            address = _accepted(entry.address, networks)
            if address is None and is_of_api_servers(spec):
                address = _of_another_host(entry.address)
            if address is None:
                rejected.add(entry.address)
                continue
            if _has_other_family(item, entry, family_of_pod):
                continue
            for port in ports:
                endpoint = Endpoint(address, port.number)
                states[endpoint] = min(entry.condition, states.get(endpoint, Condition.NOT_READY))
                protocols.add(port.app_protocol)
    return states, tuple(sorted(rejected)), protocols


def _has_other_family(
    item: Slice, entry: SliceEndpoint, family_of_pod: dict[tuple[str, str], Family]
) -> bool:
    """Return whether this endpoint's pod already has an address of a preferred family."""
    if not entry.pod:
        return False
    return family_of_pod.setdefault((item.key.namespace, entry.pod), item.family) != item.family


def _ports(spec: ServiceSpec, service: KubeService, item: Slice) -> tuple[SlicePort, ...]:
    """Return the port of `item`'s endpoints that `spec` refers to; at most one.

    A number is that port of each pod, whether the slice lists it or not.  A name is the slice's
    port of that name, whose number may differ between slices.  A Service's port is the
    slice's port of the same name.
    """
    if spec.target is Target.POD and isinstance(spec.port, int):
        listed = [port for port in item.ports if port.number == spec.port]
        return (listed[0] if listed else SlicePort("", spec.port, ""),)
    name = str(spec.port)
    if spec.target is not Target.POD:
        names = [port.name for port in service.ports if spec.port in (port.number, port.name)]
        if not names:
            return ()
        name = names[0]
    return tuple(port for port in item.ports if port.name == name)[:1]


def _of_another_host(text: str) -> str | None:
    """Return a unicast address, neither loopback nor link-local, in canonical form, else None."""
    try:
        address = parse_address(text)
    except NotAnAddress:
        return None
    is_odd = address.is_loopback or address.is_link_local or address.is_multicast
    return None if is_odd or address.is_unspecified else str(address)


def _accepted(text: str, networks: tuple[Network, ...]) -> str | None:
    """Return an address within `networks` in canonical form; None for any other text."""
    try:
        address = str(parse_address(text))
    except NotAnAddress:
        return None
    return address if is_within(address, networks) else None


def standby_of(
    spec: ServiceSpec, service: KubeService | None, slices: Iterable[Slice], cluster: Cluster
) -> Standby | None:
    """Return the standby of `spec`: the pods in cluster DNS, or the cluster IP.

    None if no port of the Service maps to the port of `spec`, if the pods' port numbers differ,
    or if the cluster IP is outside of the service networks.
    """
    if service is None or service.type == "ExternalName":
        return None
    name = headless_name(spec, cluster.domain)
    listed = list(slices)
    if service.is_headless:
        numbers = {port.number for each in listed for port in _ports(spec, service, each)}
        if spec.target is Target.POD and isinstance(spec.port, int):
            numbers = {spec.port}
        if len(numbers) != 1 or not cluster.nameservers:
            return None
        return Standby(name, numbers.pop())
    number = _service_port(spec, service, listed)
    addresses = (_accepted(text, cluster.service_networks) for text in service.cluster_ips)
    address = next((address for address in addresses if address), None)
    return Standby(name, number, address) if number and address else None


def _service_port(spec: ServiceSpec, service: KubeService, slices: list[Slice]) -> int | None:
    """Return the Service's port that maps to the port of the pods in `spec`."""
    if spec.target is not Target.POD:
        wanted = [port for port in service.ports if spec.port in (port.number, port.name)]
    elif isinstance(spec.port, str):
        wanted = [port for port in service.ports if port.name == spec.port]
    else:
        names = {port.name for each in slices for port in each.ports if port.number == spec.port}
        wanted = [port for port in service.ports if port.target == spec.port] or [
            port for port in service.ports if port.name in names
        ]
    return wanted[0].number if wanted else None
