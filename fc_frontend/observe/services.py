"""The metrics of services, computed on request.

prometheus_client keeps about 700 bytes for each sample of a gauge: with thousands of services, that
was most of the daemon's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from fc_frontend.model.service_state import (
    Counts,
    HaproxyState,
    ServiceState,
    ServiceView,
    service_state,
)
from fc_frontend.plan import slots
from fc_frontend.plan.model import Answer, Freshness, Plan, Resolution, ServicePlan

_LABELS = ("service", "namespace")
_SERVER_STATES = ("up", "down", "drained", "maintenance")
_Value = Callable[[ServicePlan, Answer | None], float]


class Services(Collector):
    """Metrics of the plan and the state of each service."""

    def __init__(self) -> None:
        self.plan: tuple[ServicePlan, ...] = ()
        self.resolution: Resolution = {}
        self.withheld: frozenset[str] = frozenset()
        self.drained: Mapping[str, int] = {}
        self.haproxy = HaproxyState.UNKNOWN
        self.counts: Mapping[str, Counts] = {}
        """The servers of HAProxy, by service."""
        self.answered: dict[str, float] = {}
        """The time of cluster DNS's last good answer, on the monotonic clock."""
        self.now = 0.0

    def planned(self, plan: Plan, resolution: Resolution) -> None:
        """Record the present or intended plan of HAProxy for each service."""
        self.plan, self.resolution = plan.services, resolution
        if len(self.answered) > len(resolution):
            names = {service.spec.name for service in plan.services} | resolution.keys()
            self.answered = {name: at for name, at in self.answered.items() if name in names}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield one family at a time for the registry, as each has thousands of samples."""
        for name, words, value in self._gauges():
            family = GaugeMetricFamily(name, words, labels=_LABELS)
            for service in self.plan:
                labels = (service.spec.name, service.spec.namespace)
                family.add_metric(labels, value(service, self.resolution.get(service.spec.name)))
            yield family
        yield self._ages()
        yield self._servers()
        yield self._states()

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Yield the families, without samples yet, for the registry, which refuses duplicates."""
        return self.collect()

    def _gauges(self) -> tuple[tuple[str, str, _Value], ...]:
        return (
            (
                "fc_frontend_service_endpoints",
                "Pods that cluster DNS names.",
                lambda _service, answer: len(answer.endpoints) if answer else 0,
            ),
            (
                "fc_frontend_service_slots",
                "Servers that HAProxy has for pods.",
                lambda service, _answer: service.slots,
            ),
            (
                "fc_frontend_service_slots_short",
                "Pods that have no slot and get no traffic.",
                lambda service, answer: slot_room(service, answer)[0],
            ),
            (
                "fc_frontend_service_slots_scarce",
                "1 if little room is left: fewer free slots than a quarter of the pods, or than "
                "two.",
                lambda service, answer: slot_room(service, answer)[1],
            ),
            (
                "fc_frontend_service_rejected_addresses",
                "Addresses that cluster DNS named outside of the cluster's networks.",
                lambda _service, answer: len(answer.rejected) if answer else 0,
            ),
            (
                "fc_frontend_service_lookups_exceeded",
                "1 if the DNS lookups of the service exceed a limit: its last good answer is kept.",
                lambda _service, answer: answer is not None and answer.exceeded is not None,
            ),
            (
                "fc_frontend_service_drained",
                "Pods that `fc-frontend drain` keeps from new traffic.",
                lambda service, _answer: self.drained.get(service.spec.name, 0),
            ),
        )

    def _ages(self) -> GaugeMetricFamily:
        family = GaugeMetricFamily(
            "fc_frontend_service_answer_age_seconds",
            "Time since cluster DNS last gave a good answer.",
            labels=_LABELS,
        )
        for service in self.plan:
            at = self.answered.get(service.spec.name)
            if at is not None:
                labels = (service.spec.name, service.spec.namespace)
                family.add_metric(labels, max(0.0, self.now - at))
        return family

    def _states(self) -> GaugeMetricFamily:
        family = GaugeMetricFamily(
            "fc_frontend_service_state",
            "1 for the state of the service.",
            labels=(*_LABELS, "state"),
        )
        for service in self.plan:
            name = service.spec.name
            state = self.state(service)
            for other in ServiceState:
                family.add_metric((name, service.spec.namespace, other.value), other is state)
        return family

    def _servers(self) -> GaugeMetricFamily:
        family = GaugeMetricFamily(
            "fc_frontend_service_servers",
            "Servers of the service in HAProxy, by state; none are told while it does not answer.",
            labels=(*_LABELS, "state"),
        )
        for service in self.plan:
            name = service.spec.name
            counts = self.counts.get(name)
            for state in _SERVER_STATES if counts else ():
                labels = (name, service.spec.namespace, state)
                family.add_metric(labels, getattr(counts, state))
        return family

    def state(self, service: ServicePlan) -> ServiceState:
        """Return the state of a service."""
        name = service.spec.name
        answer = self.resolution.get(name)
        return service_state(
            ServiceView(
                haproxy=self.haproxy,
                counts=self.counts.get(name),
                endpoints=endpoints_of(answer),
                without_slot=slot_room(service, answer)[0],
                rejected=len(answer.rejected) if answer else 0,
                is_current=is_current(answer),
                is_withheld=name in self.withheld,
            )
        )


def slot_room(service: ServicePlan, answer: Answer | None) -> tuple[int, bool]:
    """Return how many pods have no slot now, and whether little room is left for more."""
    if answer is None or not service.has_pods:
        return 0, False
    pods = len(answer.endpoints)
    return slots.short(pods, service.slots), slots.scarce(pods, service.slots)


def endpoints_of(answer: Answer | None) -> int | None:
    """Return the number of endpoints found by discovery; None if it never gave an answer."""
    if answer is None or (answer.freshness is Freshness.UNKNOWN and not answer.endpoints):
        return None
    return len(answer.endpoints)


def is_current(answer: Answer | None) -> bool:
    """Return whether the last answer is a good one, and not kept because fewer or no pods came."""
    return answer is not None and answer.freshness is Freshness.FRESH and answer.lost_at is None
