"""Compare the answers of all nameservers for a service.

HAProxy's resolver queries all of them and uses the first answer, so servers appear and
disappear while one nameserver lags behind.  The serial of the zone proves nothing: each replica
of CoreDNS has its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fc_frontend.discovery.client import DnsClient
from fc_frontend.discovery.resolve import resolve_within_limits
from fc_frontend.errors import Cause, Problem, Severity
from fc_frontend.plan.model import Answer, Cluster, Freshness, Nameserver, ServiceSpec, Target
from fc_frontend.plurals import counted

_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Disagreement:
    """The number of addresses that each nameserver returns for a service."""

    named: tuple[tuple[Nameserver, int], ...]

    def problem(self, service: str) -> Problem:
        """Return the disagreement as a warning."""
        said = ", ".join(
            f"{nameserver} names {counted(count, 'pod')}" for nameserver, count in self.named
        )
        return Problem(
            f"the nameservers of the cluster do not agree: {said}",
            "see whether all replicas of CoreDNS reach the API server: "
            "`kubectl -n kube-system logs -l k8s-app=kube-dns`",
            severity=Severity.WARNING,
            service=service,
            field="discovery",
            cause=Cause.DISAGREEMENT,
        )


async def disagreements(
    specs: Iterable[ServiceSpec], cluster: Cluster, clients: Sequence[DnsClient]
) -> dict[str, Disagreement]:
    """Return the services for which nameservers disagree, by name; never raises.

    `clients` has one client for each of the cluster's nameservers, in their order.  A nameserver
    without an answer is not compared.
    """
    lane = asyncio.Semaphore(_AT_ONCE)

    async def compared(spec: ServiceSpec) -> Disagreement | None:
        async with lane:
            found = await asyncio.gather(
                *(resolve_within_limits(spec, cluster, client, None) for client in clients)
            )
        said = [
            (nameserver, {(each.address, each.port) for each in answer.endpoints})
            for nameserver, (answer, _) in zip(cluster.nameservers, found, strict=True)
            if answer.freshness is Freshness.FRESH
        ]
        if all(named == said[0][1] for _, named in said):
            return None
        return Disagreement(tuple((nameserver, len(named)) for nameserver, named in said))

    listed = [spec for spec in specs if spec.target is not Target.NODE]
    results = await asyncio.gather(*map(compared, listed))
    return {
        spec.name: result
        for spec, result in zip(listed, results, strict=True)
        if result is not None
    }


def united(answers: Sequence[Answer]) -> Answer:
    """Return the first fresh answer with the endpoints of all fresh ones; without any, the first.

    For services whose slots fc-frontend fills: while one nameserver lags behind, the new pods have
    slots, and health checks detect which of the old ones are gone.
    """
    fresh = [answer for answer in answers if answer.freshness is Freshness.FRESH]
    if not fresh:
        return answers[0]
    first = fresh[0]
    listed = (each for answer in reversed(fresh) for each in answer.endpoints)
    known = {(each.address, each.port): each for each in listed}
    if len(known) == len(first.endpoints):
        return first
    endpoints = tuple(sorted(known.values()))
    return replace(first, endpoints=endpoints, is_cut=any(answer.is_cut for answer in fresh))


async def ask_each(
    specs: Iterable[ServiceSpec],
    cluster: Cluster,
    timeout: float = 1.0,  # noqa: ASYNC109
) -> dict[str, Disagreement]:
    """Like `disagreements`, with sockets of its own; empty with fewer than two nameservers."""
    if len(cluster.nameservers) < 2:
        return {}
    clients = [DnsClient((each,), timeout=timeout) for each in cluster.nameservers]
    try:
        return await disagreements(specs, cluster, clients)
    finally:
        for client in clients:
            client.close()
