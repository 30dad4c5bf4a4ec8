"""Prometheus metrics in one registry, which the daemon fills.

The status document and the pages read two values back: the age of a service's last good DNS answer
and the number of queries by nameserver.  No decision depends on a metric.

Names and labels are a contract (see the README's list); cardinality is bounded by the number of
declared services, nameservers and DNS response codes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.process_collector import ProcessCollector

from fc_frontend import __version__
from fc_frontend.certificates.served import Served
from fc_frontend.model.api_state import ApiState
from fc_frontend.model.load_balancer_state import LoadBalancerState
from fc_frontend.model.service_state import Counts, HaproxyState, ServiceState
from fc_frontend.observe.api import ApiCollector
from fc_frontend.observe.durations import DurationCounts, Durations
from fc_frontend.observe.load_balancers import LoadBalancerCollector
from fc_frontend.observe.services import Services
from fc_frontend.plan.model import Freshness, Plan, Resolution, ServicePlan

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
KINDS = ("service", "fragment", "file", "settings", "templates")
WORK = ("step", "sweep", "rescan", "look")
STATE_FILES = ("history", "answers", "server-state", "files")
"""Files in the state directory that HAProxy can do without."""
_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_SLOW = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """fc-frontend's metrics.  Methods are named after what happened."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        build = Info("fc_frontend_build", "fc-frontend's version.", registry=self.registry)
        build.info({"version": __version__})
        self._config = Gauge(
            "fc_frontend_config_hash_info",
            "1 for the hash of the configuration that is wanted, and of the one that runs.",
            ("which", "hash"),
            registry=self.registry,
        )
        self._reloads = Counter(
            "fc_frontend_reloads",
            "Reloads and starts of HAProxy.",
            ("reason", "result"),
            registry=self.registry,
        )
        self._reload_duration = Histogram(
            "fc_frontend_reload_duration_seconds",
            "From the request to the confirmation by the new worker.",
            buckets=_SLOW,
            registry=self.registry,
        )
        self._last_success = Gauge(
            "fc_frontend_last_reload_success_timestamp_seconds",
            "When the running worker was last found to have the wanted configuration.",
            registry=self.registry,
        )
        self._in_sync = Gauge(
            "fc_frontend_config_in_sync",
            "1 if the running worker has the configuration that is declared, else 0.",
            registry=self.registry,
        )
        self._checks = Counter(
            "fc_frontend_checks",
            "Configurations given to HAProxy to judge.",
            ("result",),
            registry=self.registry,
        )
        self._problems = Gauge(
            "fc_frontend_config_problems",
            "What is wrong with the declared configuration.",
            ("severity",),
            registry=self.registry,
        )
        self._queries = Counter(
            "fc_frontend_dns_queries",
            "Questions to cluster DNS, by answer.",
            ("nameserver", "transport", "rcode"),
            registry=self.registry,
        )
        self._sweeps = Counter(
            "fc_frontend_dns_sweeps",
            "Times that all services were to be asked about; spared while nothing moves.",
            ("kind",),
            registry=self.registry,
        )
        # A rate is only seen of what was there at zero.
        for kind in ("whole", "spared"):
            self._sweeps.labels(kind)
        self._disagreements = Gauge(
            "fc_frontend_dns_disagreements",
            "Services of which the nameservers of the cluster say different things.",
            registry=self.registry,
        )
        self._query_durations = Durations(
            "fc_frontend_dns_query_duration_seconds",
            "From question to answer of cluster DNS.",
            "nameserver",
            _FAST,
        )
        self.registry.register(self._query_durations)
        self._api = ApiCollector()
        self.registry.register(self._api)
        self._load_balancers = LoadBalancerCollector()
        self.registry.register(self._load_balancers)
        self._event_durations = Histogram(
            "fc_frontend_api_event_duration_seconds",
            "From a change that the API told of until HAProxy has it.",
            buckets=_FAST,
            registry=self.registry,
        )
        self._certificates = Gauge(
            "fc_frontend_certificate_expiry_timestamp_seconds",
            "When a certificate of a frontend ends.",
            ("frontend", "certificate", "name"),
            registry=self.registry,
        )
        self._services = Services()
        self.registry.register(self._services)
        self._haproxy = Gauge(
            "fc_frontend_haproxy_up",
            "1 if HAProxy's worker answers at its runtime socket, else 0.",
            registry=self.registry,
        )
        self._withheld_units = Gauge(
            "fc_frontend_withheld",
            "Withheld changes: services, fragments, files, settings, templates.",
            ("kind",),
            registry=self.registry,
        )
        self._convergence = Histogram(
            "fc_frontend_convergence_seconds",
            "Time from a detected change until a worker has it.",
            buckets=_SLOW,
            registry=self.registry,
        )
        self._old_workers = Gauge(
            "fc_frontend_old_workers",
            "HAProxy workers that end their last connections.",
            registry=self.registry,
        )
        self._old_workers_age = Gauge(
            "fc_frontend_old_workers_oldest_age_seconds",
            "Age of the oldest of these workers; 0 if there is none.",
            registry=self.registry,
        )
        self._old_workers_ended = Counter(
            "fc_frontend_old_workers_ended",
            "Former workers that were ended with their connections, as there were too many.",
            registry=self.registry,
        )
        self._state_failures = Counter(
            "fc_frontend_state_write_failures",
            "Times that something could not be kept in the state directory.",
            ("what",),
            registry=self.registry,
        )
        for what in STATE_FILES:
            self._state_failures.labels(what)
        self._held = Gauge(
            "fc_frontend_held",
            "1 while an operator holds a configuration (`rollback`), until `resume`.",
            registry=self.registry,
        )
        self._stuck = Gauge(
            "fc_frontend_stuck",
            "1 for work of the daemon that has made no progress for longer than its time limits.",
            ("work",),
            registry=self.registry,
        )
        self.stuck(None)
        self._drift = Gauge(
            "fc_frontend_config_drift",
            "1 if haproxy.cfg was changed by others and is left so.",
            registry=self.registry,
        )
        self._needs_consent = Gauge(
            "fc_frontend_take_over_needs_consent",
            "1 if haproxy.cfg is not replaced, as fc-frontend did not write it.",
            registry=self.registry,
        )
        self._drifts = Counter(
            "fc_frontend_config_drifts",
            "Times that haproxy.cfg was found to be changed by others.",
            registry=self.registry,
        )
        self._old_workers_memory = Gauge(
            "fc_frontend_old_workers_memory_bytes",
            "Resident memory of these workers, pages that they share counted for each.",
            registry=self.registry,
        )
        self.withheld(())
        for severity in ("error", "warning"):
            self._problems.labels(severity).set(0)
        for result in ("accepted", "refused", "unavailable"):
            self._checks.labels(result)
        self._exchanges: dict[tuple[str, str, str], tuple[Counter, DurationCounts]] = {}

    def exposition(self, now: float) -> bytes:
        """Everything in Prometheus' text format; `now` is the monotonic clock in seconds."""
        self._services.now = now
        return generate_latest(self.registry)

    def answer_age(self, name: str, now: float) -> float | None:
        """Seconds since the last good answer about a service, None if there was none."""
        answered = self._services.answered.get(name)
        return None if answered is None else max(0.0, now - answered)

    def queries(
        self, nameserver: str, transport: str, rcode: str, durations: Sequence[float]
    ) -> None:
        """Exchanges with a nameserver that ended alike; `durations` in seconds."""
        key = (nameserver, transport, rcode)
        children = self._exchanges.get(key)
        if children is None:
            # Looking labels up costs more than counting, and this happens for every query.
            children = self._exchanges[key] = (
                self._queries.labels(*key),
                self._query_durations.of(nameserver),
            )
        children[0].inc(len(durations))
        children[1].observe(durations)

    def swept(self, kind: str) -> None:
        """Count a sweep: "whole", or "spared" because the zone's serial had not changed."""
        self._sweeps.labels(kind).inc()

    def disagreed(self, services: int) -> None:
        """Of so many services nameservers say different things."""
        self._disagreements.set(services)

    def answered(self) -> dict[str, dict[str, int]]:
        """How many questions each nameserver was asked since the start, by the answer's code."""
        found: dict[str, dict[str, int]] = {}
        for sample in next(iter(self._queries.collect())).samples:
            if sample.name.endswith("_total"):
                by_code = found.setdefault(sample.labels["nameserver"], {})
                code = sample.labels["rcode"]
                by_code[code] = by_code.get(code, 0) + int(sample.value)
        return found

    def resolved(self, resolution: Resolution, now: float) -> None:
        """What cluster DNS said in a sweep that ended at `now` on the monotonic clock."""
        for name, answer in resolution.items():
            if answer.freshness is Freshness.FRESH:
                self._services.answered[name] = now

    def planned(self, plan: Plan, resolution: Resolution) -> None:
        """What HAProxy has, or should have, for each service."""
        self._services.planned(plan, resolution)

    def api(self, state: ApiState | None) -> None:
        """The watch of the API was looked at; None where no API is set."""
        self._api.state = state

    def load_balancers(self, state: LoadBalancerState | None) -> None:
        """Services of type LoadBalancer were looked at; None if the settings have none."""
        self._load_balancers.state = state

    def endpoints_followed(self, seconds: float) -> None:
        """HAProxy has what the API told of; `seconds` is the time since then."""
        self._event_durations.observe(seconds)

    def certificates(self, served: Iterable[Served]) -> None:
        """The certificates that frontends have."""
        self._certificates.clear()
        for each in served:
            name = each.certificate.names[0] if each.certificate.names else ""
            gauge = self._certificates.labels(each.frontend, each.path, name)
            gauge.set(each.certificate.not_after)

    def withheld(self, units: Iterable[tuple[str, str]]) -> None:
        """What is withheld, as kind and name."""
        listed = tuple(units)
        self._services.withheld = frozenset(name for kind, name in listed if kind == "service")
        for kind in KINDS:
            self._withheld_units.labels(kind).set(sum(kind == other for other, _ in listed))

    def haproxy(self, state: HaproxyState, counts: Mapping[str, Counts]) -> None:
        """Whether HAProxy runs, and the servers that it has, by service."""
        self._services.haproxy, self._services.counts = state, counts
        self._haproxy.set(state is HaproxyState.RUNNING)

    def state(self, service: ServicePlan) -> ServiceState:
        """The state of a service, as all outputs show it."""
        return self._services.state(service)

    def drained(self, pods: Mapping[str, int]) -> None:
        """How many pods of each service are drained; none of those that are not named."""
        self._services.drained = pods

    def checked(self, result: str) -> None:
        """HAProxy judged a configuration: accepted, refused or unavailable."""
        self._checks.labels(result).inc()

    def problems(self, errors: int, warnings: int) -> None:
        """How much is wrong with what is declared."""
        self._problems.labels("error").set(errors)
        self._problems.labels("warning").set(warnings)

    def reloaded(self, reason: str, result: str, duration: float) -> None:
        """A reload or start ended; `duration` in seconds."""
        self._reloads.labels(reason, result).inc()
        self._reload_duration.observe(duration)

    def converged(self, seconds: float) -> None:
        """A change was routable `seconds` after it was seen."""
        self._convergence.observe(seconds)

    def synced(self, wanted: str | None, running: str | None) -> None:
        """Which configuration is wanted, and which one the running worker has."""
        in_sync = wanted is not None and wanted == running
        self._in_sync.set(1 if in_sync else 0)
        if in_sync:
            self._last_success.set(time.time())
        self._config.clear()
        for which, value in (("wanted", wanted), ("running", running)):
            if value:
                self._config.labels(which, value).set(1)

    def ended_old_workers(self, count: int) -> None:
        """Former workers were ended, as there were too many."""
        self._old_workers_ended.inc(count)

    def state_not_written(self, what: str) -> None:
        """One of `STATE_FILES` could not be kept."""
        self._state_failures.labels(what).inc()

    def held(self, value: bool) -> None:
        """Whether an operator holds a configuration."""
        self._held.set(value)

    def stuck(self, work: str | None) -> None:
        """Which of `WORK` is stuck, None if none is."""
        for each in WORK:
            self._stuck.labels(each).set(each == work)

    def drifted(self, value: bool) -> None:
        """Whether haproxy.cfg was changed by others and is left so."""
        self._drift.set(value)

    def needs_consent(self, value: bool) -> None:
        """Whether haproxy.cfg is not replaced, as fc-frontend did not write it."""
        self._needs_consent.set(value)

    def drift_seen(self) -> None:
        """haproxy.cfg was changed by others."""
        self._drifts.inc()

    def old_workers(self, count: int, oldest: float, memory: int) -> None:
        """How many former workers still serve, the oldest's age in seconds, and bytes in all."""
        self._old_workers.set(count)
        self._old_workers_age.set(oldest)
        self._old_workers_memory.set(memory)
