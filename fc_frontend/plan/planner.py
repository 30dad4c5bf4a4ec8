"""Make a plan from declarations and answers.  Pure: the same input results in the same plan.

declared            answer of cluster DNS              planned
------------------  ---------------------------------  --------------------------------------
pod_port: 443       pods at the bare name              server-template over the bare name
pod_port: 443       cluster IP, pods at the wildcard   server-template over *.svc.ns.svc…
pod_port: 443       cluster IP, no wildcard            one server: the cluster IP
pod_port: 443       unknown                            server-template over the bare name
pod_port: https     (not needed)                       server-template over _https._tcp.svc…
any of these        EndpointSlices, with cluster.api   slots, filled by the daemon, and a standby
service_port: 443   (not needed)                       one server: the cluster IP
lb_service_port: …  (not needed)                       one server per node
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from operator import attrgetter

from fc_frontend.errors import Problem, Severity
from fc_frontend.model.memo import Memo
from fc_frontend.plan import slots
from fc_frontend.plan.model import (
    Answer,
    Cluster,
    Discovery,
    Family,
    Fragment,
    Freshness,
    FrontendSpec,
    Kind,
    Plan,
    Resolution,
    ServicePlan,
    ServiceSpec,
    Settings,
    Target,
    nodes_of,
)
from fc_frontend.plan.names import headless_name, query_name
from fc_frontend.plurals import counted


def plan(
    settings: Settings,
    services: Iterable[ServiceSpec],
    fragments: Sequence[Fragment],
    resolution: Resolution,
    *,
    frontends: Sequence[FrontendSpec] = (),
    shrink: bool = False,
    memo: PlanMemo | None = None,
) -> Plan:
    """Return the planned configuration of HAProxy.

    Services without an answer in `resolution` are planned from the declaration alone, with a
    warning. With `shrink`, automatic slot counts may fall below those of the running configuration.
    Unchanged services are taken from `memo` instead of being planned again.
    """
    specs = sorted(services, key=attrgetter("name"))
    plans, notices = _services(settings, specs, resolution, shrink, memo or PlanMemo())
    problems = list(notices)
    unasked = [
        planned.spec.name
        for planned in (plans if len(resolution) < len(plans) else ())
        if planned.query and planned.has_pods and planned.spec.name not in resolution
    ]
    if unasked:
        names = ", ".join(unasked[:5])
        if len(unasked) > 5:
            names += f" and {len(unasked) - 5} more"
        problems.append(
            Problem(
                f"no DNS data for {names} yet; assuming headless with {slots.DEFAULT} slots",
                remedy="nothing to do: the daemon and `fc-frontend apply` query cluster DNS",
                severity=Severity.WARNING,
            )
        )
    if not plans and not fragments and not frontends and settings.haproxy.stats is None:
        problems.append(
            Problem(
                "there is nothing to listen on: no service, no fragment and no stats",
                "declare a service, or set haproxy.stats",
            )
        )
    return Plan(
        settings=settings,
        services=plans,
        fragments=tuple(sorted(fragments, key=lambda fragment: fragment.name)),
        frontends=tuple(sorted(frontends, key=lambda frontend: frontend.name)),
        problems=tuple(problems),
    )


class PlanMemo:
    """The plans of unchanged services; those that may shrink are kept separately."""

    def __init__(self) -> None:
        self.plans: Memo[_Planned] = Memo()
        self.shrunken: Memo[_Planned] = Memo()


_Planned = tuple[ServicePlan, tuple[Problem, ...]]
"""The plan of a service, and the problems to report for it."""


def _services(
    settings: Settings,
    specs: Sequence[ServiceSpec],
    resolution: Resolution,
    shrink: bool,
    memo: PlanMemo,
) -> tuple[tuple[ServicePlan, ...], Sequence[Problem]]:
    known = memo.shrunken if shrink else memo.plans
    cluster, hold = settings.cluster, settings.intervals.hold
    plans: list[ServicePlan] = []
    notices: list[Problem] = []
    for spec in specs:
        answer = resolution.get(spec.name)

        def planned(spec: ServiceSpec = spec, answer: Answer | None = answer) -> _Planned:
            made = _service(settings, spec, answer, shrink)
            return made, tuple(_notices(made, answer, hold))

        # `origin` is excluded from comparisons of specs, but it is part of the plan.
        plan, said = known.of(spec.name, (spec, spec.origin, answer, cluster, hold), planned)
        plans.append(plan)
        if said:
            notices += said
    known.keep([spec.name for spec in specs])
    return tuple(plans), notices


def uses_api(spec: ServiceSpec, cluster: Cluster) -> bool:
    """Return whether the pods of `spec` are discovered through the Kubernetes API."""
    if spec.target is Target.NODE and nodes_of(spec, cluster):
        return False
    return cluster.api is not None and spec.discovery in (Discovery.AUTO, Discovery.API)


def assumed_kind(spec: ServiceSpec) -> Kind:
    """Return the kind of a service without an answer."""
    if spec.discovery is Discovery.API:
        return Kind.API
    if spec.target is Target.NODE:
        return Kind.NODES
    if spec.target is Target.SERVICE:
        return Kind.SERVICE
    if isinstance(spec.port, str):
        return Kind.SRV
    if spec.discovery is Discovery.AUTO:
        return Kind.HEADLESS
    return Kind(spec.discovery.value)


def _service(
    settings: Settings, spec: ServiceSpec, answer: Answer | None, shrink: bool
) -> ServicePlan:
    cluster = settings.cluster
    kind = answer.kind if answer else assumed_kind(spec)
    if answer is None and kind is Kind.NODES and uses_api(spec, cluster):
        kind = Kind.API
    reason = answer.reason if answer else "DNS not queried"
    endpoints = answer.endpoints if answer else ()
    draining = answer.draining if answer else ()
    if kind is Kind.NODES:
        count = len(nodes_of(spec, cluster))
    elif kind is Kind.SERVICE:
        count = 1
    elif spec.slots is not None:
        count = spec.slots
    else:
        # Answers that may be outdated never shrink a service.
        may_shrink = shrink and answer is not None and _is_sure(answer)
        have = 0 if may_shrink or not answer else answer.slots
        count = slots.automatic(len(endpoints) + len(draining), have, spec.max_slots)
    networks = cluster.service_networks if kind is Kind.SERVICE else cluster.pod_networks
    families: tuple[Family, ...] = cluster.families(networks) or ("ipv4",)
    has_fallback = spec.fallback and kind is Kind.WILDCARD
    planned = ServicePlan(
        spec=spec,
        kind=kind,
        reason=reason,
        query=query_name(spec, kind, cluster.domain),
        slots=count,
        prefer=families[0],
        endpoints=endpoints,
        fallback_query=headless_name(spec, cluster.domain) if has_fallback else None,
    )
    if kind is Kind.API:
        return replace(
            planned,
            by_runtime=True,
            draining=draining,
            is_h2c=answer is not None and answer.is_h2c and _may_be_h2c(spec),
            standby=answer.standby if answer else None,
        )
    if answer is None or planned.query is None:
        return planned
    # A return to HAProxy's resolver needs a reload: it waits for one, like shrinking.
    stays = answer.by_runtime and not (shrink and _is_sure(answer))
    # HAProxy's resolver accepts any address from DNS: it must not receive rejected ones.
    return replace(planned, by_runtime=answer.is_cut or bool(answer.rejected) or stays)


def _may_be_h2c(spec: ServiceSpec) -> bool:
    """Return whether the API may select HTTP/2 without TLS for the pods."""
    return spec.mode == "http" and not spec.tls and spec.protocol is None


def _is_sure(answer: Answer) -> bool:
    return answer.freshness is Freshness.FRESH and answer.lost_at is None


def _notices(planned: ServicePlan, answer: Answer | None, hold: float) -> Iterable[Problem]:
    spec = planned.spec
    if answer is None or planned.query is None:
        return

    def warning(message: str, remedy: str, field: str) -> Problem:
        return Problem(message, remedy, severity=Severity.WARNING, service=spec.name, field=field)

    pods = len(planned.endpoints)
    short = slots.short(pods, planned.slots)
    if planned.has_pods and short:
        yield warning(
            f"{counted(pods, 'pod')}, but {counted(planned.slots, 'slot')}: "
            f"{counted(short, 'pod gets', 'pods get')} no traffic",
            slots.remedy(pods, spec.max_slots),
            "slots",
        )
    elif planned.has_pods and slots.scarce(pods, planned.slots):
        yield warning(
            f"{counted(pods, 'pod')} in {counted(planned.slots, 'slot')}: little room is left",
            slots.remedy(pods, spec.max_slots),
            "slots",
        )
    if answer.is_cut and not spec.check:
        yield warning(
            f"{pods} pods are more than an answer of cluster DNS carries: without checks, pods "
            "that are gone keep their slots",
            "use check: true",
            "check",
        )
    if planned.kind is Kind.API:
        yield from _api_notices(spec, answer, warning)
        return
    if answer.lost_at is not None:
        yield warning(
            f"DNS no longer lists its pods: {answer.error or 'most are missing'}",
            f"they stay for {hold:g} s: nothing to do if it was scaled down",
            "discovery",
        )
    if answer.rejected:
        shown = ", ".join(answer.rejected[:3]) + (", …" if len(answer.rejected) > 3 else "")
        yield warning(
            f"{counted(len(answer.rejected), 'address', 'addresses')} outside of the cluster's "
            f"networks, left out: {shown}",
            answer.remedy or "add their network to cluster.pod_network if they are pods",
            "discovery",
        )
    elif answer.remedy:
        yield warning(answer.error or answer.reason, answer.remedy, "discovery")
    elif answer.error and answer.freshness is not Freshness.FRESH:
        yield warning(
            f"cluster DNS gave no answer: {answer.error}",
            "the last good answer stays in use"
            if answer.freshness is Freshness.STALE
            else f"see `fc-frontend explain {spec.name}`",
            "discovery",
        )
    if spec.fallback and planned.kind is Kind.HEADLESS:
        yield warning(
            "a headless service has no cluster IP to fall back to",
            "use fallback: none",
            "fallback",
        )


def _api_notices(
    spec: ServiceSpec, answer: Answer, warning: Callable[[str, str, str], Problem]
) -> Iterable[Problem]:
    if answer.lost_at is not None:
        yield warning(
            "the Kubernetes API shows no ready pods any more, as for most services at once: its "
            "last pods stay, and health checks decide",
            "see whether the cluster's nodes reach its API server: `kubectl get nodes`",
            "discovery",
        )
    elif answer.error:
        yield warning(answer.error, answer.remedy, "discovery")
    if not spec.check:
        yield warning(
            "without health checks, a pod that is dead gets requests while the daemon or the API "
            "is away, and nothing shows whether pods serve that the API calls not ready",
            "use check: true",
            "check",
        )
    if answer.rejected:
        shown = ", ".join(answer.rejected[:3]) + (", …" if len(answer.rejected) > 3 else "")
        yield warning(
            f"{counted(len(answer.rejected), 'address', 'addresses')} outside of the cluster's "
            f"pod networks, left out: {shown}",
            "add their network to cluster.pod_network if they are pods",
            "discovery",
        )
