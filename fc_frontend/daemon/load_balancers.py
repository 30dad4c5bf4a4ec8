"""Services of type LoadBalancer as a source of declarations, beside the files.

    Services, pools, addresses of this host, what runs ─► assign ─► declarations ─► Sources.cluster

Nothing is assigned before the list of Services is complete; until then they are kept as they run.
The same holds for `intervals.emptied` after all of them have vanished: an API server that lost its
data lists none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace

from fc_frontend.balancer.assign import Assignment, LoadBalancers, assign
from fc_frontend.balancer.declare import declarations, origin_of, served_at
from fc_frontend.balancer.wording import problems_of
from fc_frontend.config.cluster_source import cluster_raws, running_raws
from fc_frontend.config.host import bindable_addresses
from fc_frontend.config.loader import Sources
from fc_frontend.config.running import RunningDeclarations
from fc_frontend.discovery.source import PodDiscovery
from fc_frontend.errors import Cause, Problem, Severity
from fc_frontend.model.load_balancers import LoadBalancerRequest, LoadBalancerSettings
from fc_frontend.plan.cluster_objects import ObjectKey
from fc_frontend.plan.model import Settings
from fc_frontend.plurals import counted

_MIN_EMPTIED = 2
"""A single Service that is deleted is removed at once."""


class LoadBalancerSource:
    """Adds the declarations of the cluster's Services to those of the files."""

    def __init__(self, discovery: PodDiscovery, clock: Callable[[], float]) -> None:
        self._discovery = discovery
        self._clock = clock
        self._believed_at: float | None = None
        """When an empty list of Services takes effect; None while it is not empty."""
        self._believed: frozenset[ObjectKey] = frozenset()
        """The Services whose loss has been accepted, until they are removed."""
        self.is_on = False
        """Whether `load_balancer` is set."""
        self._used: int | None = None
        self.services: Mapping[ObjectKey, LoadBalancerRequest] = {}
        """The Services owned by this load balancer, as of the last look."""
        self.assignments: Mapping[ObjectKey, Assignment] = {}

    @property
    def has_changed(self) -> bool:
        """Whether Services changed since `applied` was called, or were gone for long enough."""
        known = self._discovery.load_balancers
        if not self.is_on or known is None:
            return False
        is_over = self._believed_at is not None and self._clock() >= self._believed_at
        return known.version != self._used or is_over

    async def applied(
        self, sources: Sources, settings: Settings, running: RunningDeclarations
    ) -> Sources:
        """Return `sources` with the declarations of Services; the same object if unchanged."""
        balancer, known = settings.load_balancer, self._discovery.load_balancers
        self.is_on = balancer is not None
        if balancer is None:
            self.services, self.assignments = {}, {}
        if balancer is None or known is None:
            self._used = None
            return sources
        # Events may change Services while this is computed.
        known = LoadBalancers(known.version, dict(known.services))
        found = await asyncio.to_thread(self._applied, sources, balancer, known, running)
        self._used = known.version
        found = self._with_lost(found, settings, running, known)
        is_same = found.cluster == sources.cluster
        return sources if is_same and found.cluster_problems == sources.cluster_problems else found

    def _with_lost(
        self,
        sources: Sources,
        settings: Settings,
        running: RunningDeclarations,
        known: LoadBalancers,
    ) -> Sources:
        """Return `sources` that keep lost Services as they run, if all vanished at once.

        This ends when all are back, or after `intervals.emptied`.
        """
        served = served_at((form.file, form.value) for form in running.services.values())
        lost = served.keys() - known.services.keys()
        if not lost or lost <= self._believed:
            self._believed_at = None
            self._believed &= lost
            return sources
        if self._believed_at is None and (lost != served.keys() or len(lost) < _MIN_EMPTIED):
            return sources
        now, wait = self._clock(), settings.intervals.emptied
        if self._believed_at is None:
            self._believed_at = now + wait
        if now >= self._believed_at:
            self._believed, self._believed_at = frozenset(lost), None
            return sources
        files = {origin_of(key) for key in lost}
        kept = {name: raw for name, raw in running_raws(running).items() if raw.file in files}
        count = counted(len(lost), "Service")
        problem = Problem(
            f"{count} of type LoadBalancer vanished together with all others; the addresses stay",
            f"see `kubectl get services -A`; the daemon accepts it after {wait / 60:g} min",
            severity=Severity.WARNING,
            cause=Cause.EMPTIED,
        )
        return replace(
            sources,
            cluster={**kept, **(sources.cluster or {})},
            cluster_problems=(*sources.cluster_problems, problem),
        )

    def _applied(
        self,
        sources: Sources,
        balancer: LoadBalancerSettings,
        known: LoadBalancers,
        running: RunningDeclarations,
    ) -> Sources:
        services = {key: each for key, each in known.services.items() if balancer.owns(each)}
        ranges = [each for pool in balancer.pools for each in pool.ranges]
        assignments = assign(
            services,
            balancer.pools,
            {key: each.ingress for key, each in services.items()},
            host=bindable_addresses(ranges, sources.host),
            served=served_at((form.file, form.value) for form in running.services.values()),
        )
        self.services, self.assignments = services, assignments
        declared = declarations(services, assignments, running.services)
        cluster = cluster_raws(declared, sources.cluster)
        problems = problems_of(services, assignments)
        return replace(sources, cluster=cluster, cluster_problems=problems)
