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
"""Files in the state directory that HAProxy does not need."""
_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_SLOW = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """fc-frontend's metrics.  Methods are named after events."""

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
        # A rate is only visible for series that existed at zero.
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
        """Return all metrics in Prometheus' text format; `now` is the monotonic clock, in s."""
        self._services.now = now
        return generate_latest(self.registry)

    def answer_age(self, name: str, now: float) -> float | None:
        """Return the seconds since the last good answer about a service, None if there was none."""
        answered = self._services.answered.get(name)
        return None if answered is None else max(0.0, now - answered)

    def queries(
        self, nameserver: str, transport: str, rcode: str, durations: Sequence[float]
    ) -> None:
        """Count exchanges with a nameserver that had the same result; `durations` in seconds."""
        key = (nameserver, transport, rcode)
        children = self._exchanges.get(key)
        if children is None:
            # Finding labels costs more than counting, and this happens for every query.
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
        """Set the number of services about which nameservers disagree."""
        self._disagreements.set(services)

    def answered(self) -> dict[str, dict[str, int]]:
        """Return the number of questions to each nameserver since the start, by response code."""
        found: dict[str, dict[str, int]] = {}
        for sample in next(iter(self._queries.collect())).samples:
            if sample.name.endswith("_total"):
                by_code = found.setdefault(sample.labels["nameserver"], {})
                code = sample.labels["rcode"]
                by_code[code] = by_code.get(code, 0) + int(sample.value)
        return found

    def resolved(self, resolution: Resolution, now: float) -> None:
        """Record the answers of a sweep that ended at `now` on the monotonic clock."""
        for name, answer in resolution.items():
            if answer.freshness is Freshness.FRESH:
                self._services.answered[name] = now

    def planned(self, plan: Plan, resolution: Resolution) -> None:
        """Record the present or intended plan of HAProxy for each service."""
        self._services.planned(plan, resolution)

    def api(self, state: ApiState | None) -> None:
        """Record the state of the watch of the API; None if no API is set."""
        self._api.state = state

    def load_balancers(self, state: LoadBalancerState | None) -> None:
        """Record the state of Services of type LoadBalancer; None if the settings have none."""
        self._load_balancers.state = state

    def endpoints_followed(self, seconds: float) -> None:
        """Count an update of HAProxy, `seconds` after the API reported the change."""
        self._event_durations.observe(seconds)

    def certificates(self, served: Iterable[Served]) -> None:
        """Set the certificates of frontends."""
        self._certificates.clear()
        for each in served:
            name = each.certificate.names[0] if each.certificate.names else ""
            gauge = self._certificates.labels(each.frontend, each.path, name)
            gauge.set(each.certificate.not_after)

    def withheld(self, units: Iterable[tuple[str, str]]) -> None:
        """Set the withheld units, as kind and name."""
        listed = tuple(units)
        self._services.withheld = frozenset(name for kind, name in listed if kind == "service")
        for kind in KINDS:
            self._withheld_units.labels(kind).set(sum(kind == other for other, _ in listed))

    def haproxy(self, state: HaproxyState, counts: Mapping[str, Counts]) -> None:
        """Set the state of HAProxy, and its servers by service."""
        self._services.haproxy, self._services.counts = state, counts
        self._haproxy.set(state is HaproxyState.RUNNING)

    def state(self, service: ServicePlan) -> ServiceState:
        """Return the state of a service, as all outputs show it."""
        return self._services.state(service)

    def drained(self, pods: Mapping[str, int]) -> None:
        """Set the number of drained pods of each service; omitted services have none."""
        self._services.drained = pods

    def checked(self, result: str) -> None:
        """Count a check by HAProxy: accepted, refused or unavailable."""
        self._checks.labels(result).inc()

    def problems(self, errors: int, warnings: int) -> None:
        """Set the number of problems of the declarations."""
        self._problems.labels("error").set(errors)
        self._problems.labels("warning").set(warnings)

    def reloaded(self, reason: str, result: str, duration: float) -> None:
        """Count a reload or start; `duration` is in seconds."""
        self._reloads.labels(reason, result).inc()
        self._reload_duration.observe(duration)

    def converged(self, seconds: float) -> None:
        """Count a change that was routable `seconds` after it was seen."""
        self._convergence.observe(seconds)

    def synced(self, wanted: str | None, running: str | None) -> None:
        """Set the wanted configuration, and that of the running worker."""
        in_sync = wanted is not None and wanted == running
        self._in_sync.set(1 if in_sync else 0)
        if in_sync:
            self._last_success.set(time.time())
        self._config.clear()
        for which, value in (("wanted", wanted), ("running", running)):
            if value:
                self._config.labels(which, value).set(1)

    def ended_old_workers(self, count: int) -> None:
        """Count old workers that were ended because there were too many."""
        self._old_workers_ended.inc(count)

    def state_not_written(self, what: str) -> None:
        """Count a failure to write one of `STATE_FILES`."""
        self._state_failures.labels(what).inc()

    def held(self, value: bool) -> None:
        """Set whether an operator holds a configuration."""
        self._held.set(value)

    def stuck(self, work: str | None) -> None:
        """Set which of `WORK` is stuck, None if none is."""
        for each in WORK:
            self._stuck.labels(each).set(each == work)

    def drifted(self, value: bool) -> None:
        """Set whether haproxy.cfg was changed by others and is kept so."""
        self._drift.set(value)

    def needs_consent(self, value: bool) -> None:
        """Set whether haproxy.cfg is not replaced because fc-frontend did not write it."""
        self._needs_consent.set(value)

    def drift_seen(self) -> None:
        """Count a foreign change of haproxy.cfg."""
        self._drifts.inc()

    def old_workers(self, count: int, oldest: float, memory: int) -> None:
        """Set the number of old workers, the oldest's age in seconds, and their memory in bytes."""
        self._old_workers.set(count)
        self._old_workers_age.set(oldest)
        self._old_workers_memory.set(memory)
