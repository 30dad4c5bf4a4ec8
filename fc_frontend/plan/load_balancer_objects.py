"""Read the load balancer's part of a Service from an object of the API.

Malformed values count as absent, except those that limit access: invalid source ranges are kept,
so that they are rejected later instead of ignored.
"""

from __future__ import annotations

from typing import Any

from fc_frontend.model.load_balancers import (
    SERVED,
    BalancedPort,
    FamilyPolicy,
    IngressAddress,
    IpFamily,
    LoadBalancerRequest,
    PortStatus,
    ServedCondition,
)
from fc_frontend.plan.untyped import as_list, as_mapping, as_text, is_port

ADDRESSES_ANNOTATION = "fc-frontend.io/addresses"
POOL_ANNOTATION = "fc-frontend.io/pool"
SHARING_ANNOTATION = "fc-frontend.io/sharing-key"
PROXY_PROTOCOL_ANNOTATION = "fc-frontend.io/proxy-protocol"
RANGES_ANNOTATION = "service.beta.kubernetes.io/load-balancer-source-ranges"
DEFAULT_AFFINITY = 10800
"""The default in seconds if `sessionAffinityConfig` is not set (core/v1, ClientIPConfig)."""
MAX_AFFINITY = 86400
MAX_TEXT = 1000
"""The maximum length of an annotation, in characters; the rest is cut off."""

_FAMILIES: dict[str, IpFamily] = {"IPv4": "ipv4", "IPv6": "ipv6"}


def parse_load_balancer(item: Any) -> LoadBalancerRequest | None:
    """Return the load balancer that a Service requests; None if neither spec nor status has one."""
    metadata, spec = as_mapping(item.get("metadata")), as_mapping(item.get("spec"))
    annotations = as_mapping(metadata.get("annotations"))
    class_name = spec.get("loadBalancerClass")
    ingress = tuple(_ingress(item))
    has_left = spec.get("type") != "LoadBalancer"
    if has_left and not ingress:
        return None
    return LoadBalancerRequest(
        created=as_text(metadata.get("creationTimestamp")),
        class_name=class_name if isinstance(class_name, str) else None,
        ports=tuple(_ports(spec)),
        families=_families(spec),
        policy=_policy(spec),
        requested=_annotation(annotations, ADDRESSES_ANNOTATION),
        load_balancer_ip=as_text(spec.get("loadBalancerIP")).strip()[:MAX_TEXT],
        pool=_annotation(annotations, POOL_ANNOTATION),
        sharing_key=_annotation(annotations, SHARING_ANNOTATION),
        source_ranges=_source_ranges(spec, annotations),
        affinity=_affinity(spec),
        proxy_protocol=_annotation(annotations, PROXY_PROTOCOL_ANNOTATION),
        ingress=ingress,
        condition=_condition(item),
        has_left=has_left,
    )


def _annotation(annotations: dict[str, Any], name: str) -> str:
    return as_text(annotations.get(name)).strip()[:MAX_TEXT]


def _ports(spec: dict[str, Any]) -> list[BalancedPort]:
    found = []
    for entry in map(as_mapping, as_list(spec.get("ports"))):
        number, protocol = entry.get("port"), entry.get("protocol")
        if is_port(number):
            found.append(
                BalancedPort(number, as_text(protocol) or "TCP", as_text(entry.get("name")))
            )
    return found


def _families(spec: dict[str, Any]) -> tuple[IpFamily, ...]:
    """Return the families in the Service's order.

    Without `ipFamilies`, they are those of its cluster IPs, else IPv4.
    """
    given = [_FAMILIES.get(as_text(entry)) for entry in as_list(spec.get("ipFamilies"))]
    found = [family for family in given if family is not None]
    if not found:
        addresses = as_list(spec.get("clusterIPs")) or [spec.get("clusterIP")]
        texts = [as_text(entry) for entry in addresses]
        found = ["ipv6" if ":" in text else "ipv4" for text in texts if ":" in text or "." in text]
    return tuple(dict.fromkeys(found)) or ("ipv4",)


def _policy(spec: dict[str, Any]) -> FamilyPolicy:
    try:
        return FamilyPolicy(as_text(spec.get("ipFamilyPolicy")))
    except ValueError:
        return FamilyPolicy.SINGLE


def _source_ranges(spec: dict[str, Any], annotations: dict[str, Any]) -> tuple[str, ...]:
    """Return the ranges of the spec, else those of the annotation; empty if there is no limit."""
    given = spec.get("loadBalancerSourceRanges")
    if given:
        return tuple(
            str(entry).strip() for entry in (given if isinstance(given, list) else [given])
        )
    written = annotations.get(RANGES_ANNOTATION)
    if not isinstance(written, str) or not written.strip():
        return ()
    return tuple(part.strip() for part in written.split(","))


def _affinity(spec: dict[str, Any]) -> int | None:
    if spec.get("sessionAffinity") != "ClientIP":
        return None
    config = as_mapping(as_mapping(spec.get("sessionAffinityConfig")).get("clientIP"))
    seconds = config.get("timeoutSeconds")
    if isinstance(seconds, int) and not isinstance(seconds, bool) and 0 < seconds <= MAX_AFFINITY:
        return seconds
    return DEFAULT_AFFINITY


def _ingress(item: dict[str, Any]) -> list[IngressAddress]:
    status = as_mapping(as_mapping(item.get("status")).get("loadBalancer"))
    entries = map(as_mapping, as_list(status.get("ingress")))
    return [
        IngressAddress(address, as_text(entry.get("ipMode")), tuple(_port_statuses(entry)))
        for entry in entries
        if (address := as_text(entry.get("ip")))
    ]


def _port_statuses(entry: dict[str, Any]) -> list[PortStatus]:
    return [
        PortStatus(number, as_text(port.get("protocol")), as_text(port.get("error")))
        for port in map(as_mapping, as_list(entry.get("ports")))
        if is_port(number := port.get("port"))
    ]


def _condition(item: dict[str, Any]) -> ServedCondition | None:
    for entry in map(as_mapping, as_list(as_mapping(item.get("status")).get("conditions"))):
        if entry.get("type") == SERVED:
            reason, message = as_text(entry.get("reason")), as_text(entry.get("message"))
            return ServedCondition(entry.get("status") == "True", reason, message)
    return None
