"""Services and EndpointSlices of the Kubernetes API, reduced to the fields that a frontend needs.

Tuples instead of objects: 5,000 slices take a third of the memory.  The API's schema is not relied
on: hand-made objects and other implementations omit fields, so every malformed value counts as
absent.
"""

from __future__ import annotations

from enum import IntEnum
from sys import intern
from typing import Any, Literal, NamedTuple

from fc_frontend.model.load_balancers import LoadBalancerRequest
from fc_frontend.plan.load_balancer_objects import parse_load_balancer
from fc_frontend.plan.model import Family
from fc_frontend.plan.untyped import as_list, as_mapping, as_text, is_port, is_text

SERVICE_LABEL = "kubernetes.io/service-name"
"""The label of a slice with the name of its Service, whatever manages it (discovery.k8s.io/v1)."""
NOT_BALANCED = "node.kubernetes.io/exclude-from-external-load-balancers"
"""The label of nodes that are excluded from load balancers."""
HEADLESS = "None"
"""The `clusterIP` of a headless Service."""


class ObjectKey(NamedTuple):
    """The identity of an object of one resource."""

    namespace: str
    name: str


class Condition(IntEnum):
    """The condition of an endpoint, derived from three conditions (KEP-1672), best first."""

    READY = 0
    """It receives new connections."""
    DRAINING = 1
    """Its pod terminates but still serves: it keeps its connections and receives no new ones."""
    NOT_READY = 2
    """It receives no traffic."""


class SlicePort(NamedTuple):
    """A port of all endpoints of one slice."""

    name: str
    number: int
    app_protocol: str


class SliceEndpoint(NamedTuple):
    """One endpoint: `pod` is the name of its Pod, empty if it is not a pod."""

    address: str
    condition: Condition
    pod: str


class Slice(NamedTuple):
    """An EndpointSlice: addresses and TCP ports of one Service in one address family."""

    key: ObjectKey
    service: str
    family: Family
    ports: tuple[SlicePort, ...]
    endpoints: tuple[SliceEndpoint, ...]


class ServicePort(NamedTuple):
    """A TCP port of a Service.  `target` is a number, or the name of a container's port."""

    name: str
    number: int
    target: int | str


class KubeService(NamedTuple):
    """A Service.  `cluster_ips` is empty if it is headless or has no address yet.

    `load_balancer` is None unless the type is LoadBalancer, or the status still contains one.
    """

    key: ObjectKey
    type: Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]
    is_headless: bool
    cluster_ips: tuple[str, ...]
    ports: tuple[ServicePort, ...]
    load_balancer: LoadBalancerRequest | None = None


class KubeNode(NamedTuple):
    """A node that load balancers may use, with its internal addresses."""

    name: str
    addresses: tuple[str, ...]


def parse_key(item: Any) -> ObjectKey | None:
    """Return the namespace and name of any object; None if it has no name."""
    metadata = as_mapping(as_mapping(item).get("metadata"))
    name = metadata.get("name")
    if not is_text(name) or not name:
        return None
    return ObjectKey(intern(as_text(metadata.get("namespace"))), name)


def parse_slice(item: Any) -> Slice | None:
    """Return the slice in `item`; None if it has no Service, or is not of type IPv4 or IPv6."""
    key = parse_key(item)
    if key is None:
        return None
    service = as_text(as_mapping(item["metadata"].get("labels")).get(SERVICE_LABEL))
    family: Family
    match item.get("addressType"):
        case "IPv4":
            family = "ipv4"
        case "IPv6":
            family = "ipv6"
        case _:
            return None
    if not service:
        return None
    ports = [
        port for entry in as_list(item.get("ports")) if (port := _slice_port(as_mapping(entry)))
    ]
    endpoints = [
        endpoint
        for entry in as_list(item.get("endpoints"))
        if (endpoint := _endpoint(as_mapping(entry)))
    ]
    return Slice(key, intern(service), family, tuple(ports), tuple(endpoints))


def parse_service(item: Any) -> KubeService | None:
    """Return the Service in `item`; None if it is malformed."""
    key = parse_key(item)
    if key is None:
        return None
    spec = as_mapping(item.get("spec"))
    kind = spec.get("type", "ClusterIP")
    if kind not in ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"):
        return None
    first = as_text(spec.get("clusterIP"))
    addresses = [text for text in as_list(spec.get("clusterIPs")) or [first] if is_text(text)]
    ports = [port for entry in as_list(spec.get("ports")) if (port := _port(as_mapping(entry)))]
    return KubeService(
        key,
        kind,
        first == HEADLESS,
        tuple(text for text in addresses if text and text != HEADLESS),
        tuple(ports),
        parse_load_balancer(item),
    )


def parse_node(item: Any) -> KubeNode | None:
    """Return the node in `item`; None if it is excluded from load balancers (KEP-1143)."""
    key = parse_key(item)
    if key is None or NOT_BALANCED in as_mapping(item["metadata"].get("labels")):
        return None
    found = [
        address
        for entry in as_list(as_mapping(item.get("status")).get("addresses"))
        if (known := as_mapping(entry)).get("type") == "InternalIP"
        and is_text(address := known.get("address"))
    ]
    return KubeNode(key.name, tuple(found))


def _slice_port(entry: dict[str, Any]) -> SlicePort | None:
    """Return None for another protocol, and for `port: null`, which means all ports."""
    number = entry.get("port")
    if entry.get("protocol", "TCP") not in ("TCP", None) or not is_port(number):
        return None
    return SlicePort(
        intern(as_text(entry.get("name"))), number, intern(as_text(entry.get("appProtocol")))
    )


def _endpoint(entry: dict[str, Any]) -> SliceEndpoint | None:
    """Return an endpoint with its first address: consumers ignore the others (discovery/v1)."""
    addresses = as_list(entry.get("addresses"))
    if not addresses or not is_text(addresses[0]):
        return None
    target = as_mapping(entry.get("targetRef"))
    pod = as_text(target.get("name")) if target.get("kind") == "Pod" else ""
    return SliceEndpoint(addresses[0], _condition(as_mapping(entry.get("conditions"))), pod)


def _condition(conditions: dict[str, Any]) -> Condition:
    """Return the condition.

    A condition that is absent or null means ready, serving, or not terminating (discovery/v1).
    """
    if conditions.get("ready") in (True, None):
        # This includes terminating pods of a Service with publishNotReadyAddresses.
        return Condition.READY
    if conditions.get("terminating") is True and conditions.get("serving") in (True, None):
        return Condition.DRAINING
    return Condition.NOT_READY


def _port(entry: dict[str, Any]) -> ServicePort | None:
    number = entry.get("port")
    if entry.get("protocol", "TCP") not in ("TCP", None) or not is_port(number):
        return None
    target = entry.get("targetPort")
    if not is_port(target):
        target = as_text(target) or number
    return ServicePort(as_text(entry.get("name")), number, target)
