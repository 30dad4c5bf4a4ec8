"""The sources of pods: the Kubernetes API if it is set, cluster DNS otherwise."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter

from fc_frontend.balancer.assign import LoadBalancers
from fc_frontend.discovery.slices import MassEmptying
from fc_frontend.discovery.source import News, PodDiscovery
from fc_frontend.errors import Problem
from fc_frontend.kubernetes.answers import LOOK_SECONDS, answers_from, is_of_api, key_of
from fc_frontend.kubernetes.cluster_watch import ClusterWatch
from fc_frontend.kubernetes.failures import FailureKind
from fc_frontend.model.api_state import ApiState
from fc_frontend.model.memo import Memo
from fc_frontend.observe.log import Log
from fc_frontend.observe.metrics import Metrics
from fc_frontend.plan.cluster_objects import ObjectKey
from fc_frontend.plan.model import (
    Answer,
    ApiSettings,
    Discovery,
    Kind,
    Resolution,
    ServiceSpec,
    Settings,
    Target,
    by_name,
)
from fc_frontend.plan.planner import uses_api


class PodSources:
    """Asks the API or cluster DNS about each service.  Failures are part of the answers."""

    def __init__(
        self, dns: PodDiscovery, log: Log, metrics: Metrics, clock: Callable[[], float]
    ) -> None:
        self._dns = dns
        self._log = log
        self._metrics = metrics
        self._clock = clock
        self._api: ApiSettings | None = None
        self._watch: ClusterWatch | None = None
        self._event = asyncio.Event()
        self._waited = False
        self._was_current = False
        self._emptying: MassEmptying | None = None
        self._said: str | None = None
        self._stood_in: dict[str, Answer] = {}
        self._names_by_key: Memo[dict[ObjectKey, list[str]]] = Memo()
        """The names of declared services by the object that their endpoints depend on."""
        self.state: ApiState | None = None
        """The last observed state of the watch of the API; None if no API is set."""

    @property
    def is_current(self) -> bool:
        """Whether the watches of the API are open; True without an API."""
        return self._watch is None or self._watch.is_current

    @property
    def load_balancers(self) -> LoadBalancers | None:
        """The cluster's Services of type LoadBalancer; None while they are unknown."""
        return self._watch.load_balancers if self._watch is not None else None

    @property
    def may_fill(self) -> bool:
        """Whether the API has listed all endpoints: slots do not rely on stored answers alone."""
        return self._watch is not None and self._watch.is_synced

    async def ask(
        self, specs: Sequence[ServiceSpec], settings: Settings, before: Resolution
    ) -> dict[str, Answer]:
        """Return the early answers about new services, by service; sweeps return the others."""
        self._follow(settings, specs)
        watch = self._watch
        if watch is not None and not self._waited:
            self._waited = True
            await watch.synced(LOOK_SECONDS)
            self._look_at(watch)
        answers = self._from_api(specs, settings, before)
        others = [spec for spec in specs if spec.name not in answers]
        if others:
            answers |= await self._dns.ask(others, settings, before)
        return answers

    async def sweep(
        self, specs: Sequence[ServiceSpec], settings: Settings, before: Resolution
    ) -> dict[str, Answer] | None:
        """Return the answers that arrived in time for all services; None if all equal `before`."""
        self._follow(settings, specs)
        found: dict[str, Answer] = {}
        watch = self._watch
        if self._emptying is not None:
            self._emptying.keep((spec.name for spec in specs), self._clock())
        if watch is not None:
            self._look_at(watch)
            is_current = watch.is_current
            if is_current != self._was_current:
                # The freshness of all answers changes; this includes changes made meanwhile.
                self._was_current = is_current
                self._stood_in = {}
                found = self._from_api(specs, settings, before)
            elif self._emptying is not None and self._emptying.overdue(self._clock()):
                # All other changes set the event on their own, without waiting for cluster DNS.
                self._event.set()
            if not is_current:
                found |= await self._from_dns_instead(specs, settings, {**before, **found})
        others = [spec for spec in specs if not self._is_api(spec, settings, before)]
        if others:
            found |= await self._dns.sweep(others, settings, before) or {}
        changed = {name: each for name, each in found.items() if before.get(name) != each}
        return changed or None

    async def changed(self) -> None:
        """Return once there is news."""
        await self._event.wait()

    def news(self, specs: Sequence[ServiceSpec], settings: Settings, before: Resolution) -> News:
        """Return the answers about services that changed in the API since the last call."""
        watch = self._watch
        if watch is None:
            self._event.clear()
            return News({}, None)
        keys, since = watch.take()
        overdue = self._emptying.overdue(self._clock()) if self._emptying else frozenset()
        if (not keys and not overdue) or not watch.is_synced:
            return News({}, since)
        by_key = self._names_by_key.of("specs", tuple(specs), lambda: _names_by_key(specs))
        changed = overdue.union(*(by_key.get(key, ()) for key in keys))
        answers = self._from_api(_named(specs, changed), settings, before)
        late = [
            spec
            for spec in _named(specs, self._held - answers.keys())
            if (old := before.get(spec.name)) and old.lost_at is None
        ]
        answers |= self._from_api(late, settings, before)
        different = {name: each for name, each in answers.items() if before.get(name) != each}
        return News(different, since)

    async def disagreements(
        self, specs: Sequence[ServiceSpec], settings: Settings
    ) -> dict[str, Problem]:
        """Return the disagreements of nameservers about services left to cluster DNS."""
        others = [spec for spec in specs if not self._is_api(spec, settings, {})]
        return await self._dns.disagreements(others, settings)

    def close(self) -> None:
        """Close sockets and watches; the next call opens them again, with its settings."""
        self._dns.close()
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        self._api = None

    @property
    def _held(self) -> frozenset[str]:
        return self._emptying.held if self._emptying else frozenset()

    def _follow(self, settings: Settings, specs: Sequence[ServiceSpec]) -> None:
        """Watch the cluster of these settings, and its nodes if a service needs them."""
        api = settings.cluster.api
        if api != self._api:
            self._watch_anew(settings)
        if self._watch is not None and any(
            spec.target is Target.NODE and uses_api(spec, settings.cluster) for spec in specs
        ):
            self._watch.follow_nodes()

    def _watch_anew(self, settings: Settings) -> None:
        api = settings.cluster.api
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        self._api, self._waited, self._was_current = api, False, False
        self._emptying = MassEmptying(settings.cluster.sudden_loss)
        self.state = None
        self._metrics.api(None)
        if api is not None:
            # All watches share one event, so that waiters need not follow a change of cluster.
            self._watch = ClusterWatch(api, self._clock, self._event)
            self._watch.start()

    def _is_api(self, spec: ServiceSpec, settings: Settings, before: Resolution) -> bool:
        return self._watch is not None and is_of_api(spec, settings.cluster, self._watch, before)

    def _from_api(
        self, specs: Iterable[ServiceSpec], settings: Settings, before: Resolution
    ) -> dict[str, Answer]:
        watch, emptying = self._watch, self._emptying
        if watch is None or emptying is None:
            return {}
        answers = answers_from(watch, specs, settings.cluster, before)
        # Also while the watches are not open or have just been opened again: the pods that the API
        # listed last are kept, not an empty list that it returned first.
        return emptying.looked(answers, before, self._clock()) if watch.is_synced else answers

    def _look_at(self, watch: ClusterWatch) -> None:
        self.state = self._state(watch)
        self._metrics.api(self.state)
        self._report(watch)

    def _state(self, watch: ClusterWatch) -> ApiState:
        lists: Counter[str] = Counter()
        # Every kind is present, so that a rate includes the first failure.
        failures = Counter({str(kind): 0 for kind in FailureKind})
        for status in watch.statuses.values():
            lists.update({str(kind or "first"): n for kind, n in status.lists.items()})
            failures.update({str(kind): n for kind, n in status.failures.items()})
        failure = watch.failure
        return ApiState(
            is_synced=watch.is_synced,
            is_current=watch.is_current,
            age=watch.age,
            events=sum(status.events for status in watch.statuses.values()),
            lists=dict(lists),
            failures=dict(failures),
            failure=failure.message if failure else None,
            held=self._held,
            expires=watch.expires,
        )

    def _report(self, watch: ClusterWatch) -> None:
        failure = watch.failure
        said = str(failure.kind) if failure is not None and not watch.is_current else None
        if said == self._said:
            return
        self._said = said
        if failure is not None and said is not None:
            self._log.warning(
                "api-not-watched",
                reason=failure.message,
                effect="the last known pods stay",
                remedy="see `fc-frontend doctor`",
            )
        else:
            self._log.info("api-watched")

    async def _from_dns_instead(
        self, specs: Sequence[ServiceSpec], settings: Settings, now: Mapping[str, Answer]
    ) -> dict[str, Answer]:
        """Return answers extended by pods from cluster DNS while the API is unavailable.

        Only headless Services have their pods in DNS.  Pods are added, never removed.
        """
        headless = {
            spec.name: _by_dns(spec)
            for spec in specs
            if (old := now.get(spec.name))
            and old.kind is Kind.API
            and old.standby is not None
            and old.standby.address is None
        }
        if not headless:
            return {}
        said = await self._dns.sweep(tuple(headless.values()), settings, self._stood_in)
        self._stood_in |= said or {}
        found: dict[str, Answer] = {}
        for name in headless:
            answer = self._stood_in.get(name)
            if answer is None or not answer.kind.names_pods:
                continue
            old = now[name]
            known = {endpoint.address for endpoint in (*old.endpoints, *old.draining)}
            more = tuple(
                replace(each, name="") for each in answer.endpoints if each.address not in known
            )
            if more:
                found[name] = replace(old, endpoints=tuple(sorted((*old.endpoints, *more))))
        return found


def _named(specs: Sequence[ServiceSpec], names: Iterable[str]) -> list[ServiceSpec]:
    return by_name(specs, names, attrgetter("name"))


def _names_by_key(specs: Iterable[ServiceSpec]) -> dict[ObjectKey, list[str]]:
    found: dict[ObjectKey, list[str]] = {}
    for spec in specs:
        found.setdefault(key_of(spec), []).append(spec.name)
    return found


def _by_dns(spec: ServiceSpec) -> ServiceSpec:
    kind = Discovery.SRV if isinstance(spec.port, str) else Discovery.HEADLESS
    return replace(spec, discovery=kind)
