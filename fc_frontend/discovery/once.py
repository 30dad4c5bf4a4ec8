"""Single lookups in cluster DNS, for commands; the daemon uses `daemon.cluster_dns`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from fc_frontend.discovery.client import DnsClient, ReplyOutcome
from fc_frontend.discovery.resolve import resolve_all, resolve_service
from fc_frontend.plan.model import Answer, Cluster, Resolution, ServiceSpec
from fc_frontend.plan.names import headless_name
from fc_frontend.plan.planner import assumed_kind
from fc_frontend.text import one_line

TIMEOUT = 2.0
"""The timeout for all answers about one service, in seconds."""
_TRY = 0.9
"""The timeout of one try of a query about one service, in seconds."""


class NameserverReply(NamedTuple):
    """The result of a query to one nameserver: `said` is the error, empty if there is none."""

    said: str = ""
    seconds: float = 0.0


async def resolve_once(
    specs: Sequence[ServiceSpec], cluster: Cluster, previous: Resolution, hold: float
) -> dict[str, Answer]:
    """Return the answers for `specs`; if DNS fails, `previous` ones are kept for `hold` seconds."""
    client = DnsClient(cluster.nameservers)
    try:
        return await resolve_all(specs, cluster, client, previous, hold=hold)
    finally:
        client.close()


async def explain_one(spec: ServiceSpec, cluster: Cluster) -> tuple[Answer, str]:
    """Return the answer for a service, and the part of its name that does not exist either.

    That is "domain", "namespace" or "port", empty if nothing else is missing or it is unknown.
    """
    client = DnsClient(cluster.nameservers, timeout=_TRY)
    try:
        try:
            answer = await asyncio.wait_for(resolve_service(spec, cluster, client, None), TIMEOUT)
        except TimeoutError:
            error = f"no answer within {TIMEOUT:g} s"
            return Answer(kind=assumed_kind(spec), reason=error, error=error), ""
        if answer.error is None or answer.endpoints or answer.rejected or answer.remedy:
            return answer, ""
        try:
            return answer, await asyncio.wait_for(_absent(spec, cluster, client), TIMEOUT)
        except TimeoutError:
            return answer, ""
    finally:
        client.close()


async def _absent(spec: ServiceSpec, cluster: Cluster, client: DnsClient) -> str:
    """Return domain, namespace or port if that does not exist; empty otherwise.

    CoreDNS returns NXDOMAIN for a namespace that does not exist, and NOERROR for one that does.
    """
    if isinstance(spec.port, str):
        bare = await client.ask(headless_name(spec, cluster.domain), "A")
        if bare.outcome in (ReplyOutcome.ANSWER, ReplyOutcome.PARTIAL):
            return "port"
    for what, name in (
        ("domain", f"svc.{cluster.domain}"),
        ("namespace", f"{spec.namespace}.svc.{cluster.domain}"),
    ):
        if (await client.ask(name, "A")).outcome is ReplyOutcome.NXDOMAIN:
            return what
    return ""


async def ask_nameserver(cluster: Cluster, index: int) -> NameserverReply:
    """Send a query to one nameserver that it can answer in every cluster."""
    nameserver = cluster.nameservers[index]
    seconds: list[float] = []
    client = DnsClient(
        [nameserver],
        timeout=1.0,
        tries=1,
        observe=lambda exchange: seconds.extend(exchange.durations),
    )
    try:
        reply = await asyncio.wait_for(client.ask(f"svc.{cluster.domain}", "A"), TIMEOUT)
    except TimeoutError:
        return NameserverReply(f"no answer within {TIMEOUT:g} s")
    finally:
        client.close()
    if reply.outcome is ReplyOutcome.FAILURE:
        return NameserverReply(one_line(reply.detail).removeprefix(f"{nameserver}: "))
    said = f"it does not know svc.{cluster.domain}"
    return NameserverReply(
        said if reply.outcome is ReplyOutcome.NXDOMAIN else "", seconds=sum(seconds)
    )
