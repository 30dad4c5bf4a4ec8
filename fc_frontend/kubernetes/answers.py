"""Endpoints of services from the Kubernetes API: from a continuous watch or a single query."""

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
"""Maximum duration of a single query; 5,000 slices take one second."""


def key_of(spec: ServiceSpec) -> ObjectKey:
    """Return the object that determines the endpoints of a service: a Service, or the nodes."""
    if spec.target is Target.NODE:
        return ANY_NODE
    return ObjectKey(spec.namespace, spec.service)


def is_of_api(
    spec: ServiceSpec, cluster: Cluster, watch: ClusterWatch, previous: Resolution
) -> bool:
    """Return whether the API is the source of the pods of `spec`.

    It is if `uses_api`, and if the watch is synced, the last answer came from the API, or no other
    source applies.
    """
    if not uses_api(spec, cluster):
        return False
    before = previous.get(spec.name)
    is_known = before is not None and before.kind is Kind.API
    is_alone = spec.discovery is Discovery.API or spec.target is Target.NODE
    return watch.is_synced or is_known or is_alone


def answers_from(
    watch: ClusterWatch, specs: Iterable[ServiceSpec], cluster: Cluster, previous: Resolution
) -> dict[str, Answer]:
    """Return the answers for those `specs` that `is_of_api`.

    They are stale while the watch is not current.
    """
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
    """Return the current answers from the API; services to be resolved by cluster DNS are left out.

    Takes at most `LOOK_SECONDS`.  Failures of the API never raise.
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
