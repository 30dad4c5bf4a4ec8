"""Derive the endpoints of services from answers of cluster DNS.

    bare name in pod network      → headless
    bare name in service network  → query the wildcard name
        pods                      → wildcard (CoreDNS before 1.9)
        NXDOMAIN, nothing         → the Service's cluster IP, and how to make it headless
    anything unclear              → as before

Absence is not evidence: a failure never removes known endpoints.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

from fc_frontend.discovery.budget import (
    EXPLANATIONS,
    MAX_AT_ONCE,
    MAX_SECONDS,
    REMEDIES,
    SERVICES_AT_ONCE,
    OverBudget,
    Resolver,
    ServiceLookups,
)
from fc_frontend.discovery.client import DnsClient, Reply, ReplyOutcome
from fc_frontend.discovery.scan import RecordType
from fc_frontend.discovery.unchanged import UnchangedAnswers
from fc_frontend.errors import Cause
from fc_frontend.plan.addresses import is_within
from fc_frontend.plan.model import (
    Answer,
    Cluster,
    Discovery,
    Endpoint,
    Family,
    Freshness,
    Kind,
    LookupLimit,
    Network,
    Resolution,
    ServiceSpec,
    Target,
    nodes_of,
)
from fc_frontend.plan.names import headless_name, srv_name, wildcard_name
from fc_frontend.plan.planner import assumed_kind
from fc_frontend.plan.slots import MOST

_EXISTS = (ReplyOutcome.ANSWER, ReplyOutcome.PARTIAL, ReplyOutcome.EMPTY)
_NOBODY = "no such service, or none of its pods is ready"
_MAKE_HEADLESS = (
    "CoreDNS 1.9 and later answer no wildcards: add `clusterIP: None` to the Service's spec to "
    "reach its pods directly"
)


@dataclass(frozen=True, slots=True)
class LookupResult:
    """The result for one name, over the address families queried.

    `failure` is empty unless there was no usable answer; `cause` is its cause.  `endpoints` are
    inside the accepted networks, `rejected` are not.  `is_cut` if an answer had no room for all
    records.
    """

    name: str
    exists: bool = False
    endpoints: tuple[Endpoint, ...] = ()
    rejected: tuple[str, ...] = ()
    failure: str = ""
    cause: Cause | None = None
    is_cut: bool = False


async def resolve_all(
    specs: Iterable[ServiceSpec],
    cluster: Cluster,
    client: DnsClient,
    previous: Resolution,
    *,
    now: float = 0.0,
    hold: float = 0.0,
    unchanged: UnchangedAnswers | None = None,
) -> dict[str, Answer]:
    """Return an answer for each service, by its name; equal answers mean that nothing changed.

    A sudden loss is ignored for `hold` seconds; `now` is on the monotonic clock.  `unchanged`
    contains, from an earlier call with the same client, the replies to compare.
    """
    listed = tuple(specs)
    unchanged = unchanged or UnchangedAnswers()
    settled = await unchanged.settled(listed, cluster, client, previous)
    others = [spec for spec in listed if spec.name not in settled]
    lane = asyncio.Semaphore(SERVICES_AT_ONCE)

    async def resolved(spec: ServiceSpec) -> Answer:
        before = previous.get(spec.name)
        async with lane:
            answer, lookups = await resolve_within_limits(spec, cluster, client, before)
        answer = held(before, answer, cluster.sudden_loss, now, hold)
        unchanged.learn(spec, answer, lookups)
        return answer

    answers = await asyncio.gather(*map(resolved, others))
    settled.update({spec.name: answer for spec, answer in zip(others, answers, strict=True)})
    return {spec.name: settled[spec.name] for spec in listed} if others else settled


async def resolve_within_limits(
    spec: ServiceSpec, cluster: Cluster, client: DnsClient, previous: Answer | None
) -> tuple[Answer, ServiceLookups]:
    """Return the answer for one service, and its lookups; takes at most `MAX_SECONDS`.

    A service whose lookups exceed a limit keeps its previous answer.
    """
    lookups = ServiceLookups(client)
    try:
        async with asyncio.timeout(MAX_SECONDS):
            return await resolve_service(spec, cluster, lookups, previous), lookups
    except TimeoutError:
        limit = LookupLimit.SECONDS
    except OverBudget as exc:
        limit = exc.limit
    kind = previous.kind if previous is not None else assumed_kind(spec)
    said = LookupResult(spec.service, failure=EXPLANATIONS[limit])
    answer = _answer(kind, "headless until cluster DNS says more", said, cluster, previous)
    return replace(answer, remedy=REMEDIES[limit], exceeded=limit), lookups


def held(
    previous: Answer | None, answer: Answer, sudden_loss: float, now: float, hold: float
) -> Answer:
    """Return `answer`, or the previous one for `hold` seconds after a sudden loss.

    Cluster DNS returns NXDOMAIN for a deleted service, and also for one whose pods are all unready
    for a moment.  An answer with some pods is used, as HAProxy's resolver does; if that resolver is
    not involved, only if it does not lose more than the share `sudden_loss`.
    """
    if previous is None or not previous.endpoints or answer.freshness is not Freshness.FRESH:
        return answer
    stay = len({*previous.endpoints} & {*answer.endpoints})
    is_few = answer.by_runtime and stay < len(previous.endpoints) * (1 - sudden_loss)
    fell_back = previous.kind is Kind.WILDCARD and answer.kind is Kind.SERVICE
    if answer.endpoints and not is_few and not fell_back:
        return answer
    since = now if previous.lost_at is None else previous.lost_at
    if now - since >= hold:
        return answer
    return replace(
        previous,
        freshness=Freshness.FRESH,
        error=answer.error,
        failure=answer.failure,
        rejected=answer.rejected,
        lost_at=since,
        exceeded=None,
    )


async def resolve_service(
    spec: ServiceSpec, cluster: Cluster, client: Resolver, previous: Answer | None
) -> Answer:
    """Return the current answer for one service; failures of DNS never raise."""
    if spec.target is Target.NODE:
        return nodes_answer(spec, cluster)
    if spec.target is Target.SERVICE:
        said = await _addresses(client, headless_name(spec, cluster.domain), spec, cluster)
        inside = _inside(said, cluster.service_networks)
        return _answer(
            Kind.SERVICE,
            "the Service's cluster IP, as service_port says",
            inside,
            cluster,
            previous,
        )
    if isinstance(spec.port, str):
        return srv_answer(await _services(client, spec, cluster), cluster, previous)
    if spec.discovery is Discovery.WILDCARD:
        wildcard = await _addresses(client, wildcard_name(spec, cluster.domain), spec, cluster)
        answer = _answer(
            Kind.WILDCARD,
            "as discovery: wildcard says",
            _inside(wildcard, cluster.pod_networks),
            cluster,
            previous,
        )
        if not wildcard.exists and not wildcard.failure:
            bare = await _addresses(client, headless_name(spec, cluster.domain), spec, cluster)
            if bare.exists:
                return replace(
                    answer,
                    error=f"{wildcard.name}: NXDOMAIN, but {bare.name} exists",
                    remedy="CoreDNS 1.9 and later answer no wildcards: use discovery: auto",
                    cause=Cause.NO_WILDCARDS,
                )
        return answer
    bare = await _addresses(client, headless_name(spec, cluster.domain), spec, cluster)
    if spec.discovery is Discovery.HEADLESS:
        inside = _inside(bare, cluster.pod_networks)
        return _answer(Kind.HEADLESS, "as discovery: headless says", inside, cluster, previous)
    wildcard_said = None
    if (
        _inside(bare, cluster.service_networks).endpoints
        and not _inside(bare, cluster.pod_networks).endpoints
    ):
        name = wildcard_name(spec, cluster.domain)
        wildcard_said = await _addresses(client, name, spec, cluster)
    return choose(spec, bare, wildcard_said, cluster, previous)


def choose(
    spec: ServiceSpec,
    bare: LookupResult,
    wildcard: LookupResult | None,
    cluster: Cluster,
    previous: Answer | None,
) -> Answer:
    """Return the answer for `discovery: auto`, from the bare name and the wildcard."""
    pods = _inside(bare, cluster.pod_networks)
    if pods.endpoints:
        return _answer(
            Kind.HEADLESS,
            f"{bare.name} answers with pods: a headless service",
            pods,
            cluster,
            previous,
        )
    cluster_ip = _inside(bare, cluster.service_networks)
    if wildcard is not None and cluster_ip.endpoints:
        behind = _inside(wildcard, cluster.pod_networks)
        if behind.endpoints or (wildcard.exists and not wildcard.failure):
            reason = f"{bare.name} is a cluster IP, {wildcard.name} answers with its pods"
            return _answer(Kind.WILDCARD, reason, behind, cluster, previous)
        if wildcard.failure and previous is not None and previous.kind is Kind.WILDCARD:
            return _answer(Kind.WILDCARD, previous.reason, wildcard, cluster, previous)
        if wildcard.failure:
            # This is independent of CoreDNS's version: earlier findings are kept.
            reason = f"{bare.name} is a cluster IP, used while {wildcard.name} cannot be asked"
            remedy, cause = "", None
            if previous is not None and previous.kind is Kind.SERVICE:
                reason, remedy, cause = previous.reason, previous.remedy, previous.cause
            return replace(
                _answer(Kind.SERVICE, reason, cluster_ip, cluster, previous),
                remedy=remedy,
                cause=cause,
            )
        reason = f"{bare.name} is a cluster IP and {wildcard.name} does not answer"
        remedy = (
            f"{_MAKE_HEADLESS}; until then kube-proxy balances, and {spec.port} must be a port of "
            "the Service"
        )
        return replace(
            _answer(Kind.SERVICE, f"{reason}: kube-proxy balances", cluster_ip, cluster, previous),
            remedy=remedy,
            cause=Cause.NO_WILDCARDS,
        )
    kind = previous.kind if previous is not None else assumed_kind(spec)
    reason = previous.reason if previous is not None else "headless until cluster DNS says more"
    return _answer(kind, reason, pods, cluster, previous)


def srv_answer(said: LookupResult, cluster: Cluster, previous: Answer | None) -> Answer:
    """Return the answer for a named port: pods, or the cluster IP with the Service's own port."""
    reason = f"the port's name is known by SRV at {said.name}"
    pods = _inside(said, cluster.pod_networks)
    if not pods.endpoints:
        behind = _inside(said, cluster.service_networks)
        if behind.endpoints:
            return replace(
                _answer(
                    Kind.SRV, f"{reason}, as the Service's cluster IP", behind, cluster, previous
                ),
                remedy="kube-proxy balances: add `clusterIP: None` to the Service's spec to reach "
                "its pods directly",
                cause=Cause.CLUSTER_IP,
            )
    return _answer(Kind.SRV, reason, pods, cluster, previous)


def nodes_answer(spec: ServiceSpec, cluster: Cluster) -> Answer:
    """Return the answer for lb_service_port: the declared nodes."""
    assert isinstance(spec.port, int)
    nodes = nodes_of(spec, cluster).values()
    endpoints = tuple(sorted(Endpoint(str(address), spec.port) for address in nodes))
    return Answer(
        kind=Kind.NODES,
        reason="the nodes, as declared",
        endpoints=endpoints,
        freshness=Freshness.FRESH,
    )


def _answer(
    kind: Kind, reason: str, said: LookupResult, cluster: Cluster, previous: Answer | None
) -> Answer:
    slots = previous.slots if previous else 0
    if said.failure:
        if previous is not None:
            # An answer that was unknown does not become stale.
            known = previous.freshness is not Freshness.UNKNOWN
            freshness = Freshness.STALE if known else Freshness.UNKNOWN
            return replace(
                previous,
                freshness=freshness,
                error=said.failure,
                failure=said.cause,
                exceeded=None,
            )
        return Answer(kind=kind, reason=reason, error=said.failure, failure=said.cause, slots=slots)
    error, remedy, cause = None, "", None
    endpoints = said.endpoints
    if said.is_cut and previous is not None:
        # The records in a truncated answer are arbitrary: the previous ones are as good.
        endpoints = tuple(sorted({*previous.endpoints, *endpoints}))[:MOST]
    if not said.endpoints and said.rejected:
        remedy, cause = _remedy(kind, said.rejected, cluster)
    elif not said.endpoints:
        error = f"{said.name}: {'no addresses' if said.exists else 'NXDOMAIN'}: {_NOBODY}"
    return Answer(
        kind=kind,
        reason=reason,
        endpoints=endpoints,
        freshness=Freshness.FRESH,
        rejected=said.rejected,
        error=error,
        remedy=remedy,
        cause=cause,
        slots=slots,
        is_cut=said.is_cut,
        by_runtime=previous is not None and previous.by_runtime,
    )


def _remedy(kind: Kind, rejected: tuple[str, ...], cluster: Cluster) -> tuple[str, Cause]:
    """Return the remedy if all addresses are in the other network, or in none, and the cause."""
    if kind is Kind.SERVICE:
        if any(is_within(address, cluster.pod_networks) for address in rejected):
            return "these are pods of a headless service: use pod_port", Cause.FOREIGN_NETWORK
        remedy = "add their network to cluster.service_network, if these are cluster IPs"
        return remedy, Cause.FOREIGN_NETWORK
    if any(is_within(address, cluster.service_networks) for address in rejected):
        remedy = "add `clusterIP: None` to the Service's spec, or use service_port"
        return f"this is a cluster IP: {remedy}", Cause.CLUSTER_IP
    remedy = "add their network to cluster.pod_network, if these are pods"
    return remedy, Cause.FOREIGN_NETWORK


def _inside(said: LookupResult, networks: tuple[Network, ...]) -> LookupResult:
    """Return `said` with the endpoints outside of `networks` rejected."""
    accepted = tuple([e for e in said.endpoints if is_within(e.address, networks)])
    if len(accepted) == len(said.endpoints):
        return said
    others = {e.address for e in said.endpoints} - {e.address for e in accepted}
    return replace(said, endpoints=accepted, rejected=tuple(sorted({*said.rejected, *others})))


def _families(spec: ServiceSpec, cluster: Cluster) -> tuple[Family, ...]:
    if spec.target is Target.SERVICE:
        return cluster.families(cluster.service_networks)
    return cluster.families(cluster.pod_networks)


async def _addresses(
    client: Resolver, name: str, spec: ServiceSpec, cluster: Cluster, port: int | None = None
) -> LookupResult:
    """Return the result of the address records of `name`, of one family, as in HAProxy.

    `port` is the endpoints' port if the declaration has only its name.
    """
    if port is None:
        assert isinstance(spec.port, int)
        port = spec.port
    replies = await _by_family(client, name, _families(spec, cluster))
    chosen = None
    for reply in replies:
        # The preferred family first: a transient failure must not select the other one.
        if reply.outcome is ReplyOutcome.FAILURE:
            return LookupResult(name, failure=reply.detail, cause=reply.cause)
        if reply.addresses:
            chosen = reply
            break
    return LookupResult(
        name,
        exists=any(reply.outcome in _EXISTS for reply in replies),
        endpoints=tuple(Endpoint(address, port) for address in chosen.addresses) if chosen else (),
        is_cut=chosen is not None and chosen.outcome is ReplyOutcome.PARTIAL,
    )


async def _by_family(
    client: Resolver, name: str, families: tuple[Family, ...]
) -> tuple[Reply, ...]:
    """Return replies until one is conclusive: further families count only without addresses."""
    replies: list[Reply] = []
    for family in families:
        rdtype: RecordType = "A" if family == "ipv4" else "AAAA"
        replies.append(await client.ask(name, rdtype))
        if replies[-1].addresses or replies[-1].outcome is ReplyOutcome.FAILURE:
            break
    return tuple(replies)


async def _services(client: Resolver, spec: ServiceSpec, cluster: Cluster) -> LookupResult:
    name = srv_name(spec, cluster.domain)
    reply = await client.ask(name, "SRV")
    if reply.outcome is ReplyOutcome.FAILURE:
        return LookupResult(name, failure=reply.detail, cause=reply.cause)
    families = _families(spec, cluster)
    is_cut = reply.outcome is ReplyOutcome.PARTIAL
    ports = {record.port for record in reply.services}
    if is_cut and len(ports) == 1:
        # SRV records are ten times as large as addresses, and are the same for each pod.
        bare = headless_name(spec, cluster.domain)
        pods = await _addresses(client, bare, spec, cluster, ports.pop())
        return replace(pods, is_cut=True)
    found: dict[str, tuple[Reply, ...]] = {}
    if not is_cut:
        without = dict.fromkeys(r.target for r in reply.services if not r.addresses)
        for targets in _batches(tuple(without), MAX_AT_ONCE):
            replies = await asyncio.gather(*(_by_family(client, t, families) for t in targets))
            found.update(zip(targets, replies, strict=True))
            for answer in (answer for each in replies for answer in each):
                # As in `_addresses`: a failure of the preferred family must not select the other.
                if answer.outcome is ReplyOutcome.FAILURE:
                    return LookupResult(name, failure=answer.detail, cause=answer.cause)
    endpoints: set[Endpoint] = set()
    for record in reply.services:
        more = (answer.addresses for answer in found.get(record.target, ()))
        wanted = _of_family(record.addresses or tuple(chain(*more)), families)
        endpoints |= {Endpoint(address, record.port, record.target) for address in wanted}
    return LookupResult(
        name,
        exists=reply.outcome in _EXISTS,
        endpoints=tuple(sorted(endpoints)),
        is_cut=is_cut,
    )


def _batches(items: tuple[str, ...], size: int) -> Iterator[tuple[str, ...]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _of_family(addresses: tuple[str, ...], families: tuple[Family, ...]) -> tuple[str, ...]:
    """Return the addresses of the first family that has any."""
    for family in families:
        found = tuple(a for a in addresses if (":" in a) == (family == "ipv6"))
        if found:
            return found
    return ()
