"""Services of type LoadBalancer as a source of declarations, beside the files.

    Services, pools, addresses of this host, what runs ─► assign ─► declarations ─► Sources.cluster

Nothing is assigned before the list of Services is complete; until then they stay as they run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from fc_frontend.balancer.assign import Assignment, LoadBalancers, assign
from fc_frontend.balancer.declare import declarations, served_at
from fc_frontend.balancer.wording import problems_of
from fc_frontend.config.cluster_source import cluster_raws
from fc_frontend.config.host import bindable_addresses
from fc_frontend.config.loader import Sources
from fc_frontend.config.running import RunningDeclarations
from fc_frontend.discovery.source import PodDiscovery
from fc_frontend.model.load_balancers import LoadBalancerRequest, LoadBalancerSettings
from fc_frontend.plan.cluster_objects import ObjectKey
from fc_frontend.plan.model import Settings


class LoadBalancerSource:
    """Adds what the cluster's Services declare to what the files do."""

    def __init__(self, discovery: PodDiscovery) -> None:
        self._discovery = discovery
        self.is_on = False
        """Whether `load_balancer` is set."""
        self._used: int | None = None
        self.services: Mapping[ObjectKey, LoadBalancerRequest] = {}
        """The Services whose load balancer is this one, as they were last looked at."""
        self.assignments: Mapping[ObjectKey, Assignment] = {}

    @property
    def has_changed(self) -> bool:
        """True if Services changed since `applied` was called last."""
        known = self._discovery.load_balancers
        return self.is_on and known is not None and known.version != self._used

    async def applied(
        self, sources: Sources, settings: Settings, running: RunningDeclarations
    ) -> Sources:
        """`sources` with what Services declare now; the very same if that has not changed."""
        balancer, known = settings.load_balancer, self._discovery.load_balancers
        self.is_on = balancer is not None
        if balancer is None:
            self.services, self.assignments = {}, {}
        if balancer is None or known is None:
            self._used = None
            return sources
        # Events may change Services in the meantime.
        known = LoadBalancers(known.version, dict(known.services))
        found = await asyncio.to_thread(self._applied, sources, balancer, known, running)
        self._used = known.version
        return found

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
