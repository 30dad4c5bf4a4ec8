"""What the Kubernetes API says of services: from a watch that goes on, or by one look."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fc_frontend.discovery.slices import answer_of, answer_of_nodes, as_stale
from fc_frontend.kubernetes.cluster_watch import ANY_NODE, ClusterWatch
from fc_frontend.plan.cluster_objects import ObjectKey
from fc_frontend.plan.model import (
    Answer,
    Cluster,
    Discovery,
    Freshness,
    Kind,
    Resolution,
    ServiceSpec,
    Target,
)
from fc_frontend.plan.planner import uses_api

LOOK_SECONDS = 5.0
"""For which one look waits; 5,000 slices take one second."""


def key_of(spec: ServiceSpec) -> ObjectKey:
    """What the endpoints of a declared service depend on: a Kubernetes Service, or the nodes."""
    if spec.target is Target.NODE:
        return ANY_NODE
    return ObjectKey(spec.namespace, spec.service)


def is_of_api(
    spec: ServiceSpec, cluster: Cluster, watch: ClusterWatch, previous: Resolution
) -> bool:
    """True if the API tells the pods of `spec`, told them last, or is the only one to ask."""
    if not uses_api(spec, cluster):
        return False
    before = previous.get(spec.name)
    is_known = before is not None and before.kind is Kind.API
    is_alone = spec.discovery is Discovery.API or spec.target is Target.NODE
    return watch.is_synced or is_known or is_alone


def answers_from(
    watch: ClusterWatch, specs: Iterable[ServiceSpec], cluster: Cluster, previous: Resolution
) -> dict[str, Answer]:
    """The answers about those of `specs` that `is_of_api`; stale ones while it is not current."""
    concerned = [spec for spec in specs if is_of_api(spec, cluster, watch, previous)]
    if not concerned:
        return {}
    is_current = watch.is_current
    failure = watch.failure
    said = failure.message if failure else "it has not answered yet"
    error = f"the Kubernetes API cannot be watched: {said}"
    remedy = "the last known pods stay; see `fc-frontend doctor`"
    answers: dict[str, Answer] = {}
    for spec in concerned:
        before = previous.get(spec.name)
        if not watch.is_synced:
            answers[spec.name] = as_stale(spec, before, error, remedy)
            continue
        answer = _answer(watch, spec, cluster, before)
        if not is_current:
            answer = replace(answer, freshness=Freshness.STALE, error=error, remedy=remedy)
        answers[spec.name] = answer
    return answers


def _answer(
    watch: ClusterWatch, spec: ServiceSpec, cluster: Cluster, before: Answer | None
) -> Answer:
    if spec.target is Target.NODE:
        return answer_of_nodes(spec, watch.nodes or (), cluster, before)
    key = key_of(spec)
    return answer_of(spec, watch.service(key), watch.slices(key), cluster, before)


async def ask_api(
    specs: Iterable[ServiceSpec], cluster: Cluster, previous: Resolution
) -> dict[str, Answer]:
    """What the API says now; nothing about services that cluster DNS is to be asked about.

    Takes `LOOK_SECONDS` at most, and never raises for what the API does.
    """
    concerned = [spec for spec in specs if uses_api(spec, cluster)]
    if cluster.api is None or not concerned:
        return {}
    watch = ClusterWatch(cluster.api)
    if any(spec.target is Target.NODE for spec in concerned):
        watch.follow_nodes()
    watch.start()
    try:
        await watch.synced(LOOK_SECONDS)
        return answers_from(watch, concerned, cluster, previous)
    finally:
        await watch.ended()
