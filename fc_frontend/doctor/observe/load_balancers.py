"""Find statuses of Services of type LoadBalancer that other programs have written."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from fc_frontend.balancer.assign import PROXY_MODE
from fc_frontend.doctor.judge.load_balancers import StatusFacts
from fc_frontend.kubernetes.client import USER_AGENT, ApiClient
from fc_frontend.kubernetes.failures import ApiFailure
from fc_frontend.model.load_balancers import LoadBalancerRequest, LoadBalancerSettings
from fc_frontend.plan.cluster_objects import ObjectKey
from fc_frontend.plan.untyped import as_list, as_mapping, as_text
from fc_frontend.text import one_line

_MOST_ASKED = 10
"""The number of Services whose writers are looked up."""


async def observe_statuses(
    client: ApiClient,
    balancer: LoadBalancerSettings,
    services: Mapping[ObjectKey, LoadBalancerRequest],
    seconds: float,
) -> tuple[StatusFacts, ...]:
    """Return the statuses of served Services that differ from what this frontend writes."""
    found = [
        (key, tuple(each.address for each in request.ingress if each.mode != PROXY_MODE))
        for key, request in sorted(services.items())
        if balancer.owns(request) and _is_strange(request)
    ]
    managers = await asyncio.gather(
        *(_managers(client, k, seconds) for k, _ in found[:_MOST_ASKED])
    )
    managers += [()] * (len(found) - len(managers))
    return tuple(
        StatusFacts(f"{key.namespace}/{key.name}", tuple(map(one_line, foreign)), by)
        for (key, foreign), by in zip(found, managers, strict=True)
    )


def _is_strange(request: LoadBalancerRequest) -> bool:
    """Return whether the status was changed by another program.

    Either it has addresses of others, or it has none although its condition, which this frontend
    writes, reports that the Service is served.
    """
    is_emptied = request.condition is not None and request.condition.is_served
    return any(e.mode != PROXY_MODE for e in request.ingress) or (
        is_emptied and not request.ingress
    )


async def _managers(client: ApiClient, key: ObjectKey, seconds: float) -> tuple[str, ...]:
    """Return other managers of `status.loadBalancer`; removed fields have no manager."""
    path = f"/api/v1/namespaces/{key.namespace}/services/{key.name}"
    try:
        async with asyncio.timeout(seconds), client.connect() as connection:
            item = await connection.get(path)
    except (TimeoutError, ApiFailure):
        return ()
    entries = as_list(as_mapping(item.get("metadata")).get("managedFields"))
    names = [as_text(entry.get("manager")) for entry in map(as_mapping, entries) if _writes(entry)]
    return tuple(one_line(name) for name in dict.fromkeys(names) if name != USER_AGENT)


def _writes(entry: dict[str, Any]) -> bool:
    status = as_mapping(as_mapping(entry.get("fieldsV1")).get("f:status"))
    return entry.get("subresource") == "status" and "f:loadBalancer" in status
