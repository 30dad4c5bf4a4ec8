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
from fc_frontend.balancer.declare import declarations, served_at
from fc_frontend.balancer.wording import problems_of
from fc_frontend.config.cluster_source import cluster_raws
from fc_frontend.config.host import bindable_addresses
from fc_frontend.config.loader import Sources
from fc_frontend.config.running import RunningDeclarations
from fc_frontend.discovery.source import PodDiscovery
from fc_frontend.errors import Cause, Problem, Severity
from fc_frontend.model.load_balancers import LoadBalancerRequest, LoadBalancerSettings
from fc_frontend.plan.cluster_objects import ObjectKey
from fc_frontend.plan.model import Settings

_MIN_EMPTIED = 2
"""A single Service that is deleted is removed at once."""


class LoadBalancerSource:
    """Adds the declarations of the cluster's Services to those of the files."""

    def __init__(self, discovery: PodDiscovery, clock: Callable[[], float]) -> None:
        self._discovery = discovery
        self._clock = clock
        self._believed_at: float | None = None
        """When an empty list of Services takes effect; None while it is not empty."""
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
        return self._without_emptied(found, settings, running, known)

    def _without_emptied(
        self,
        sources: Sources,
        settings: Settings,
        running: RunningDeclarations,
        known: LoadBalancers,
    ) -> Sources:
        """Return `sources` that keep Services as they run for a while after all have vanished."""
        gone = served_at((form.file, form.value) for form in running.services.values())
        if gone.keys() & known.services.keys() or self.services or len(gone) < _MIN_EMPTIED:
            self._believed_at = None
            return sources
        now, wait = self._clock(), settings.intervals.emptied
        if self._believed_at is None:
            self._believed_at = now + wait
        if now >= self._believed_at:
            return sources
        problem = Problem(
            f"all {len(gone)} Services of type LoadBalancer are suddenly gone; they are served on",
            f"see `kubectl get services -A`; the daemon believes it after {wait / 60:g} min",
            severity=Severity.WARNING,
            cause=Cause.EMPTIED,
        )
        return replace(sources, cluster=None, cluster_problems=(problem,))

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
        if cluster == sources.cluster and problems == sources.cluster_problems:
            return sources
        return replace(sources, cluster=cluster, cluster_problems=problems)
