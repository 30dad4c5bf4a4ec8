"""Derive answers for services from EndpointSlices.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from fc_frontend.plan.addresses import NotAnAddress, parse_address
from fc_frontend.plan.cluster_objects import KubeNode, KubeService, Slice
from fc_frontend.plan.model import (
    Address,
    Answer,
    Cluster,
    Endpoint,
    Family,
    Freshness,
    Kind,
    ServiceSpec,
)
from fc_frontend.plan.slices import SliceAnswer, SliceGap, endpoints_from_slices, standby_of

MASS_WINDOW = 60.0
"""Seconds in which most services lose their endpoints if the API server loses the nodes.

It waits 40 s for each node (node-monitor-grace-period), and nodes renew their leases every 10 s.
"""
MASS_HELD = 600.0
"""The maximum time for which their last pods are kept, in seconds."""
_MIN_EMPTIED = 2

_GAPS = {
    SliceGap.NO_SERVICE: (
        "the Kubernetes API has no Service {service} in namespace {namespace}",
        "create it, or correct `service` and `namespace`",
    ),
    SliceGap.EXTERNAL_NAME: (
        "the Service {service} is of type ExternalName and has no pods",
        "name the Service that has the pods",
    ),
    SliceGap.NO_ENDPOINTS: (
        "the Service {service} has no endpoints",
        "see whether its selector matches pods: `kubectl -n {namespace} get endpointslices`",
    ),
    SliceGap.NO_PORT: (
        "the Service {service} has no TCP port {port}",
        "name a port of the Service's spec.ports",
    ),
    SliceGap.NOT_READY: (
        "none of the pods of the Service {service} is ready",
        "see why: `kubectl -n {namespace} get pods`",
    ),
    SliceGap.FOREIGN_NETWORK: (
        "all pods of the Service {service} are outside of the pod networks",
        "add their network to cluster.pod_network",
    ),
    SliceGap.LOOP: (
        "all endpoints of the Service {service} are this service's own binds",
        "bind another address or port than the endpoints have: `kubectl -n {namespace} get "
        "endpointslices`",
    ),
}


def answer_of(
    spec: ServiceSpec,
    service: KubeService | None,
    slices: Iterable[Slice],
    cluster: Cluster,
    previous: Answer | None,
) -> Answer:
    """Return the answer for a service from a complete and current copy of Services and slices."""
    listed = tuple(slices)
    families = cluster.families(cluster.pod_networks)
    found = endpoints_from_slices(spec, service, listed, cluster.pod_networks, families)
    error, remedy = _explained(spec, found)
    reason = f"EndpointSlices of {spec.service} in {spec.namespace}"
    if found.terminating:
        reason += "; its last pods terminate and still serve"
    return Answer(
        kind=Kind.API,
        reason=reason,
        endpoints=found.active,
        draining=found.draining,
        freshness=Freshness.FRESH,
        rejected=found.rejected,
        error=error,
        remedy=remedy,
        slots=previous.slots if previous else 0,
        by_runtime=previous.by_runtime if previous else False,
        is_h2c=found.is_h2c,
        standby=standby_of(spec, service, listed, cluster),
    )


def answer_of_nodes(
    spec: ServiceSpec, nodes: Iterable[KubeNode], cluster: Cluster, previous: Answer | None
) -> Answer:
    """Return a port of each node, preferably at an address of a family of the pods."""
    assert isinstance(spec.port, int)
    families = cluster.families(cluster.pod_networks)
    found: set[Endpoint] = set()
    for node in nodes:
        parsed = [str(address) for text in node.addresses if (address := _address(text))]
        parsed.sort(key=lambda text: _rank(text, families))
        found.update(Endpoint(text, spec.port) for text in parsed[:1])
    return Answer(
        kind=Kind.API,
        reason="the cluster's nodes",
        endpoints=tuple(sorted(found)),
        freshness=Freshness.FRESH,
        error=None if found else "the Kubernetes API shows no node that load balancers may use",
        remedy="" if found else "see `kubectl get nodes -o wide --show-labels`",
        slots=previous.slots if previous else 0,
        by_runtime=previous.by_runtime if previous else False,
    )


def _address(text: str) -> Address | None:
    try:
        return parse_address(text)
    except NotAnAddress:
        return None


def _rank(text: str, families: tuple[Family, ...]) -> int:
    family: Family = "ipv6" if ":" in text else "ipv4"
    return families.index(family) if family in families else len(families)


def _explained(spec: ServiceSpec, found: SliceAnswer) -> tuple[str | None, str]:
    if found.gap is None:
        return None, ""
    message, remedy = _GAPS[found.gap]
    names = {"service": spec.service, "namespace": spec.namespace, "port": spec.port}
    return message.format(**names), remedy.format(**names)


def as_stale(spec: ServiceSpec, previous: Answer | None, error: str, remedy: str) -> Answer:
    """Return the last answer as stale, while the API server is not available."""
    if previous is None or previous.freshness is Freshness.UNKNOWN:
        return Answer(
            kind=Kind.API,
            reason=f"EndpointSlices of {spec.service} in {spec.namespace}",
            error=error,
            remedy=remedy,
        )
    return replace(previous, freshness=Freshness.STALE, error=error, remedy=remedy)


def _has_pods(answer: Answer) -> bool:
    """Return whether the API listed these pods, and they are not merely kept."""
    return answer.kind is Kind.API and bool(answer.endpoints) and answer.lost_at is None


@dataclass(slots=True)
class MassEmptying:
    """Detects that most services lose all pods at once, and keeps these pods for a while.

    If nodes cannot reach the API server, all their pods become NotReady while they still serve
    (kubernetes#77864, #105617).  HAProxy's health checks decide then.
    """

    share: float
    _last: dict[str, tuple[Endpoint, ...]] = field(default_factory=dict)
    _emptied: dict[str, float] = field(default_factory=dict)
    _held: dict[str, float] = field(default_factory=dict)

    def looked(
        self, answers: Mapping[str, Answer], before: Mapping[str, Answer], now: float
    ) -> dict[str, Answer]:
        """Return `answers`, with the last pods of services that became empty with most others.

        `before` are the previous answers, after a start the stored ones.  Answers for services that
        are already held must be included.  `now` is on the monotonic clock.
        """
        for name, answer in answers.items():
            if answer.endpoints or answer.draining:
                self._last[name] = answer.endpoints
                self._emptied.pop(name, None)
                self._held.pop(name, None)
                continue
            old = before.get(name)
            if name not in self._last and old is not None and _has_pods(old):
                self._last[name] = old.endpoints
            if name in self._last and name not in self._emptied:
                self._emptied[name] = now
        recent = [name for name, at in self._emptied.items() if now - at <= MASS_WINDOW]
        if len(recent) >= _MIN_EMPTIED and len(recent) > self.share * len(self._last):
            self._held.update({name: self._emptied[name] for name in recent})
        over = [name for name, at in self._held.items() if now - at > MASS_HELD]
        for name in over:
            del self._held[name], self._last[name]
        return {name: self._kept(name, answer) for name, answer in answers.items()}

    def _kept(self, name: str, answer: Answer) -> Answer:
        at = self._held.get(name)
        if at is None:
            return answer
        return replace(answer, endpoints=self._last[name], lost_at=at)

    @property
    def held(self) -> frozenset[str]:
        """The services whose last pods are kept."""
        return frozenset(self._held)

    def overdue(self, now: float) -> frozenset[str]:
        """Return the services whose last pods have been kept for the maximum time."""
        return frozenset(name for name, at in self._held.items() if now - at > MASS_HELD)

    def keep(self, names: Iterable[str], now: float) -> None:
        """Forget all services except `names`, which are declared, and those still held.

        The file of a held service may be invalid for a moment.
        """
        held = self._held.keys() - self.overdue(now)
        for name in self._last.keys() - set(names) - held:
            del self._last[name]
            self._emptied.pop(name, None)
            self._held.pop(name, None)
