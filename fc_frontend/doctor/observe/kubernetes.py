"""Ask the API server with the credentials of a kubeconfig or of the settings, never shown.

Nothing is followed elsewhere: no redirects.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import socket
import ssl
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fc_frontend.doctor.judge.kubernetes import (
    ApiResponse,
    KubernetesFacts,
    Node,
    Right,
    ServiceFacts,
    ahead,
    parse_nodes,
)
from fc_frontend.kubernetes.client import ApiClient, ApiReply
from fc_frontend.kubernetes.cluster_watch import read_access
from fc_frontend.kubernetes.failures import ApiFailure
from fc_frontend.plan.cluster_objects import parse_service
from fc_frontend.plan.model import ApiSettings, ServiceSpec, Target
from fc_frontend.text import one_line

RESOURCES = (("", "services"), ("discovery.k8s.io", "endpointslices"))
VERBS = ("list", "watch")
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_MOST_SERVICES = 20
"""Services whose Kubernetes Service is looked at: one request each."""


@dataclass(frozen=True, slots=True)
class _Response:
    response: ApiResponse
    body: bytes = b""
    days: float | None = None


def observe_kubernetes(api: ApiSettings, timeout: float) -> KubernetesFacts:
    """What the API server says of itself and its nodes, within `timeout` seconds a request.

    Raises `Unavailable` if the credentials cannot be used.
    """
    return asyncio.run(_observe(api, (), timeout, is_own=False))


def observe_api(api: ApiSettings, specs: Iterable[ServiceSpec], timeout: float) -> KubernetesFacts:
    """As `observe_kubernetes`, and whether the daemon's access is enough for the services."""
    return asyncio.run(_observe(api, tuple(specs), timeout, is_own=True))


async def _observe(
    api: ApiSettings, specs: tuple[ServiceSpec, ...], seconds: float, *, is_own: bool
) -> KubernetesFacts:
    client = ApiClient(lambda: read_access(api))
    credential = await client.access.credentials.get()
    # Credentials that do not fit are said as such, and not as a failed connection.
    client.access.tls(credential)
    ready = await _get(client, "/readyz", seconds)
    listed, nodes = ready.response, None
    rights: tuple[Right, ...] = ()
    services: tuple[ServiceFacts, ...] = ()
    if ready.response.status is not None:
        said = await _get(client, "/api/v1/nodes?limit=500", seconds)
        listed, nodes = _nodes(said.response, said.body)
        if is_own:
            with_nodes = any(spec.target is Target.NODE for spec in specs)
            rights = await _rights(client, seconds, with_nodes=with_nodes)
            services = await _services(client, specs, seconds)
    return KubernetesFacts(
        server=client.access.server,
        ready=ready.response,
        listed=listed,
        nodes=nodes,
        readable_by_others=any(map(_is_readable_by_others, _secrets(api))),
        verified=client.access.is_verified,
        certificate_days=ready.days,
        credential_days=_days(client.expires),
        rights=rights,
        services=services,
    )


def _secrets(api: ApiSettings) -> list[str]:
    files = (api.kubeconfig, api.token_file, api.client_key)
    return [path for path in files if path is not None]


def _is_readable_by_others(path: str) -> bool:
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return False
    return bool(stat.S_ISREG(mode) and stat.S_IMODE(mode) & 0o077)


def _days(until: float | None) -> float | None:
    return None if until is None else (until - time.time()) / 86400


def _nodes(listed: ApiResponse, body: bytes) -> tuple[ApiResponse, tuple[Node, ...] | None]:
    if listed.status != 200:
        return listed, None
    try:
        return listed, parse_nodes(json.loads(body))
    except (ValueError, RecursionError):
        return ApiResponse(200, "it is not JSON"), None


async def _get(client: ApiClient, path: str, seconds: float) -> _Response:
    """The response to GET `path`, and how many days the server's certificate is good for."""
    sent = time.time()
    days = None
    try:
        async with asyncio.timeout(seconds), client.connect() as connection:
            until = connection.expires
            days = _days(ssl.cert_time_to_seconds(until)) if until else None
            reply = await connection.request("GET", path)
    except TimeoutError:
        return _Response(ApiResponse(None, "it timed out"), days=days)
    except ApiFailure as failure:
        return _Response(ApiResponse(None, failure.message), days=days)
    received = time.time()
    there = _date(reply)
    difference = ahead(there, sent, received) if there is not None else None
    text = one_line(reply.body[:200].decode("utf-8", "replace")) if reply.status != 200 else ""
    return _Response(ApiResponse(reply.status, text, difference), reply.body, days)


def _date(reply: ApiReply) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(reply.headers.get("date", "")).timestamp()
    except ValueError:
        return None


async def _rights(client: ApiClient, seconds: float, *, with_nodes: bool) -> tuple[Right, ...]:
    """What the credentials may do of what is needed (SelfSubjectAccessReview)."""
    resources = (*RESOURCES, *((("", "nodes"),) if with_nodes else ()))
    found: list[Right] = []
    for group, resource in resources:
        for verb in VERBS:
            attributes = {"group": group, "resource": resource, "verb": verb}
            review = {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": attributes},
            }
            allowed: bool | None = None
            try:
                async with asyncio.timeout(seconds), client.connect() as connection:
                    answer = await connection.post(_REVIEWS, review)
                status = answer.get("status")
                if isinstance(status, dict):
                    allowed = status.get("allowed") is True
            except (TimeoutError, ApiFailure):
                pass
            found.append(Right(verb, f"{resource}.{group}".rstrip("."), allowed))
    return tuple(found)


async def _services(
    client: ApiClient, specs: tuple[ServiceSpec, ...], seconds: float
) -> tuple[ServiceFacts, ...]:
    """The Kubernetes Services of the first `_MOST_SERVICES` declared services."""
    found: list[ServiceFacts] = []
    for spec in [each for each in specs if each.target is not Target.NODE][:_MOST_SERVICES]:
        path = f"/api/v1/namespaces/{spec.namespace}/services/{spec.service}"
        said = await _get(client, path, seconds)
        if said.response.status == 404:
            found.append(ServiceFacts(spec.name, spec.service, spec.namespace, exists=False))
        if said.response.status != 200:
            continue
        try:
            service = parse_service(json.loads(said.body))
        except (ValueError, RecursionError):
            continue
        place = None
        if service is not None and service.cluster_ips and service.ports:
            place = (service.cluster_ips[0], service.ports[0].number)
        is_reached = await asyncio.to_thread(_connects, place, seconds) if place else None
        found.append(
            ServiceFacts(
                spec.name,
                spec.service,
                spec.namespace,
                exists=service is not None,
                cluster_ip=place[0] if place else None,
                is_reached=is_reached,
            )
        )
    return tuple(found)


def _connects(place: tuple[str, int], timeout: float) -> bool:
    """True if a TCP connection is accepted or refused: then packets arrive."""
    try:
        socket.create_connection(place, min(timeout, 2.0)).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True
