"""Write the status of Services, and events for them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple

from fc_frontend.balancer.status import ServiceStatus
from fc_frontend.kubernetes.client import ApiConnection
from fc_frontend.kubernetes.failures import ApiFailure, FailureKind
from fc_frontend.kubernetes.lease import micro_time
from fc_frontend.model.load_balancers import (
    SERVED,
    IngressAddress,
    LoadBalancerRequest,
    ServedCondition,
)
from fc_frontend.plan.cluster_objects import ObjectKey, parse_service
from fc_frontend.plan.untyped import as_list, as_mapping, as_text

CONTROLLER = "fc-frontend.io/frontend"
_MAX_NOTE = 1000


class EventReason(StrEnum):
    """The reason of an event; the names are those of Kubernetes' service controller and MetalLB."""

    ENSURED = "EnsuredLoadBalancer"
    UNAVAILABLE = "UnAvailableLoadBalancer"
    NO_ADDRESS = "AllocationFailed"
    ALLOCATED = "IPAllocated"
    FAILED = "SyncLoadBalancerFailed"

    @property
    def is_warning(self) -> bool:
        """Whether it is an event of type Warning."""
        return self not in (EventReason.ENSURED, EventReason.ALLOCATED)


class Written(NamedTuple):
    """A written status: the request before, and the one in the server's response."""

    before: LoadBalancerRequest | None
    after: LoadBalancerRequest | None


async def write_status(
    connection: ApiConnection, key: ObjectKey, status: ServiceStatus, expected: LoadBalancerRequest
) -> Written | None:
    """Write the status of a Service; return None if the Service is no longer as `expected`.

    The Service is read once more, and written with the resourceVersion read.  Raises `ApiFailure`.
    """
    path = f"/api/v1/namespaces/{key.namespace}/services/{key.name}"
    try:
        item = await connection.get(path)
    except ApiFailure as exc:
        if exc.kind is FailureKind.MISSING:
            return None
        raise
    service = parse_service(item)
    found = service.load_balancer if service else None
    if found != expected:
        return None
    try:
        answer = await connection.patch(f"{path}/status", _change(item, status))
    except ApiFailure as exc:
        if exc.kind in (FailureKind.CONFLICT, FailureKind.MISSING):
            return None
        raise
    after = parse_service(answer)
    return Written(found, after.load_balancer if after else None)


def _change(item: dict[str, Any], status: ServiceStatus) -> dict[str, Any]:
    ingress = [_ingress_entry(entry) for entry in status.ingress] or None
    change: dict[str, Any] = {"loadBalancer": {"ingress": ingress}}
    others = [
        entry
        for entry in as_list(as_mapping(item.get("status")).get("conditions"))
        if as_mapping(entry).get("type") != SERVED
    ]
    conditions = [*others, *_condition_entries(item, status.condition)]
    # A merge patch replaces the whole list; the resourceVersion prevents lost updates of others.
    change["conditions"] = conditions or None
    version = as_text(as_mapping(item.get("metadata")).get("resourceVersion"))
    return {"metadata": {"resourceVersion": version}, "status": change}


def _ingress_entry(entry: IngressAddress) -> dict[str, Any]:
    found: dict[str, Any] = {"ip": entry.address, "ipMode": entry.mode}
    if entry.ports:
        found["ports"] = [
            {"port": port.number, "protocol": port.protocol}
            | ({"error": port.error} if port.error else {})
            for port in entry.ports
        ]
    return found


def _condition_entries(
    item: dict[str, Any], condition: ServedCondition | None
) -> list[dict[str, Any]]:
    if condition is None:
        return []
    state = "True" if condition.is_served else "False"
    since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for entry in map(as_mapping, as_list(as_mapping(item.get("status")).get("conditions"))):
        if entry.get("type") == SERVED and entry.get("status") == state:
            since = as_text(entry.get("lastTransitionTime")) or since
    return [
        {
            "type": SERVED,
            "status": state,
            "reason": condition.cause,
            "message": condition.message,
            "lastTransitionTime": since,
        }
    ]


async def write_event(
    connection: ApiConnection, key: ObjectKey, reason: EventReason, note: str, instance: str
) -> None:
    """Create an event for a Service.  Raises `ApiFailure`."""
    encoded = json.dumps(note)
    event = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"generateName": f"{key.name}-"},
        "eventTime": micro_time(),
        "type": "Warning" if reason.is_warning else "Normal",
        "reason": reason.value,
        "action": "Balance",
        "note": note if len(encoded) < _MAX_NOTE else note[: _MAX_NOTE // 4],
        "reportingController": CONTROLLER,
        "reportingInstance": instance,
        "regarding": {
            "apiVersion": "v1",
            "kind": "Service",
            "namespace": key.namespace,
            "name": key.name,
        },
    }
    await connection.post(f"/apis/events.k8s.io/v1/namespaces/{key.namespace}/events", event)
