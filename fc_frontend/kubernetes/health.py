"""Single requests to the API server: its readiness, the nodes, and one Service."""

from __future__ import annotations

import asyncio
import email.utils
import json
import ssl
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from fc_frontend.errors import Unavailable
from fc_frontend.kubernetes.client import ApiClient, ApiReply
from fc_frontend.kubernetes.cluster_watch import read_access
from fc_frontend.kubernetes.failures import ApiFailure, FailureKind
from fc_frontend.plan.cluster_health import ApiResponse, ClusterHealth, Node, parse_nodes
from fc_frontend.plan.cluster_objects import KubeService, ObjectKey, parse_service
from fc_frontend.plan.model import ApiSettings
from fc_frontend.plan.untyped import as_list, as_mapping, as_text
from fc_frontend.text import one_line

_PAGE = 500
"""Nodes in one page: each has some 10 KB."""
_SEE_DOCTOR = "see `fc-frontend doctor`"
_MOST_PAGES = 20
"""Twice the limit that Kubernetes is designed for, 5,000 nodes."""


@dataclass(frozen=True, slots=True)
class _Asked:
    response: ApiResponse
    body: bytes = b""
    certificate_days: float | None = None


async def cluster_health(api: ApiSettings, seconds: float) -> ClusterHealth:
    """Return the readiness and the nodes, with the credentials of `api`.

    `seconds` is the timeout of each request.  Raises `Unavailable` if the credentials are unusable.
    """
    return await ask_health(ApiClient(lambda: read_access(api)), seconds)


async def ask_health(client: ApiClient, seconds: float) -> ClusterHealth:
    """Like `cluster_health`, with a client whose access has been read."""
    access = client.access
    # Report unusable credentials as such, not as a failed connection.
    access.tls(await access.credentials.get())
    ready = await _get(client, "/readyz", seconds)
    listed, nodes = ready.response, None
    if ready.response.status is not None:
        listed, nodes = await _nodes(client, seconds)
    return ClusterHealth(
        server=access.server,
        ready=ready.response,
        listed=listed,
        nodes=nodes,
        certificate_days=ready.certificate_days,
    )


async def find_service(api: ApiSettings, key: ObjectKey, seconds: float) -> KubeService | None:
    """Return the Service `key`; None if there is none.

    Raises `Unavailable` if the request fails, or takes longer than `seconds`.
    """
    client = ApiClient(lambda: read_access(api))
    path = f"/api/v1/namespaces/{quote(key.namespace, safe='')}/services/{quote(key.name, safe='')}"
    try:
        async with asyncio.timeout(seconds), client.connect() as connection:
            return parse_service(await connection.get(path))
    except TimeoutError:
        raise Unavailable.of("the API server does not answer in time", _SEE_DOCTOR) from None
    except ApiFailure as failure:
        if failure.kind is FailureKind.MISSING:
            return None
        raise Unavailable.of(failure.message, _SEE_DOCTOR) from None


async def _nodes(client: ApiClient, seconds: float) -> tuple[ApiResponse, tuple[Node, ...] | None]:
    items: list[Any] = []
    query = {"limit": str(_PAGE)}
    for _ in range(_MOST_PAGES):
        asked = await _get(client, f"/api/v1/nodes?{urlencode(query)}", seconds)
        if asked.response.status != 200:
            return asked.response, None
        try:
            document = as_mapping(json.loads(asked.body))
        except (ValueError, RecursionError):
            return ApiResponse(200, "it is not JSON"), None
        items += as_list(document.get("items"))
        query["continue"] = as_text(as_mapping(document.get("metadata")).get("continue"))
        if not query["continue"]:
            break
    return asked.response, parse_nodes(items)


async def _get(client: ApiClient, path: str, seconds: float) -> _Asked:
    """Return the response to GET `path`, and the days until the server's certificate expires."""
    sent = time.time()
    days = None
    try:
        async with asyncio.timeout(seconds), client.connect() as connection:
            until = connection.expires
            if until:
                days = (ssl.cert_time_to_seconds(until) - sent) / 86400
            reply = await connection.request("GET", path)
    except TimeoutError:
        return _Asked(ApiResponse(None, "it timed out"), certificate_days=days)
    except ApiFailure as failure:
        return _Asked(ApiResponse(None, failure.message), certificate_days=days)
    received = time.time()
    there = _date(reply)
    difference = ahead(there, sent, received) if there is not None else None
    text = one_line(reply.body[:200].decode("utf-8", "replace")) if reply.status != 200 else ""
    return _Asked(ApiResponse(reply.status, text, difference), reply.body, days)


def _date(reply: ApiReply) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(reply.headers.get("date", "")).timestamp()
    except ValueError:
        return None


def ahead(date_header: float, sent: float, received: float) -> float:
    """Return how far a server's clock is ahead of the local one, in seconds.

    `date_header` is the Date of its response, `sent` and `received` are the local times around it.
    A difference within the duration of the request, plus one second since the date has no
    fractions, counts as none.
    """
    if sent - 1 <= date_header <= received:
        return 0.0
    return date_header - (sent + received) / 2
