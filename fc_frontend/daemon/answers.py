"""The daemon's answers about services, from DNS sweeps and from events of the API."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from fc_frontend.config.declare import Declaration, running_specs
from fc_frontend.daemon import transitions
from fc_frontend.daemon.servers import ServerUpkeep
from fc_frontend.daemon.tracker import Tracker
from fc_frontend.discovery.source import PodDiscovery
from fc_frontend.errors import Problem, Unavailable
from fc_frontend.haproxy import runtime
from fc_frontend.observe.log import Log
from fc_frontend.observe.metrics import Metrics
from fc_frontend.pipeline import Base, is_same_cluster
from fc_frontend.plan import planner
from fc_frontend.plan.addresses import is_within
from fc_frontend.plan.model import (
    Answer,
    Cluster,
    Plan,
    Resolution,
    ServicePlan,
    ServiceSpec,
    Settings,
)
from fc_frontend.plan.planner import plan
from fc_frontend.stored import question, stored_answers

_MOST_DISAGREEMENTS = 20
_NOT_DEPLOYED_PAUSE = 1.0
"""Seconds before endpoints are looked at again while nothing is deployed."""


class Answers:
    """Looks services up, and caches the answers for declared services that do not run."""

    def __init__(
        self,
        tracker: Tracker,
        servers: ServerUpkeep,
        discovery: PodDiscovery,
        log: Log,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._tracker = tracker
        self._servers = servers
        self._discovery = discovery
        self._log = log
        self._metrics = metrics
        self._clock = clock
        self._asked_of: Cluster | None = None
        self._declared: dict[str, Answer] = {}
        """Question → answer, of declared services, withheld or not."""
        self._foreign: dict[str, frozenset[str]] = {}
        """Question → addresses outside the networks that HAProxy's resolver gave to servers."""
        self._disagreements: dict[str, Problem] = {}
        self._memo = planner.PlanMemo()

    @property
    def disagreements(self) -> tuple[Problem, ...]:
        """The problems of services on which nameservers disagree."""
        # The status reads this from another thread.
        return tuple(self._disagreements.values())[:_MOST_DISAGREEMENTS]

    def forget_empty(self) -> None:
        """Drop cached answers without pods, so that these services are looked up again."""
        self._declared = {
            text: answer for text, answer in self._declared.items() if answer.endpoints
        }

    async def of(self, declaration: Declaration, base: Base) -> dict[str, Answer]:
        """Return the answers for declared services; look up services without an answer."""
        specs, settings = declaration.services, declaration.settings
        if self._asked_of is not None and self._asked_of != settings.cluster:
            # Answers of another cluster are not valid for this one.
            self._discovery.close()
            self._declared = {}
        if self._tracker.state.declaration is None and not self._declared:
            stored = {}
            if is_same_cluster(base, settings, declaration.settings_file):
                stored = stored_answers(settings, specs)
            self._declared = {
                question(spec): stored[spec.name] for spec in specs if spec.name in stored
            }
            pending: tuple[ServiceSpec, ...] = specs
        elif self._asked_of != settings.cluster:
            pending = specs
        else:
            known = self._known(settings.cluster)
            pending = tuple(s for s in specs if question(s) not in known)
        self._asked_of = settings.cluster
        known = self._known(settings.cluster)
        answers = {s.name: known[q] for s in specs if (q := question(s)) in known}
        ways_back = _ways_back(base)
        back = [s for s in ways_back.values() if question(s) not in known]
        if back:
            found = await self._discovery.ask(tuple(back), settings, {})
            self._declared |= {question(s): found[s.name] for s in back if s.name in found}
        if pending:
            asked = {spec.name: answers[spec.name] for spec in pending if spec.name in answers}
            found = await self._discovery.ask(pending, settings, asked)
            kept = {question(s) for s in ways_back.values()}
            self._declared = {
                text: answer for text, answer in self._declared.items() if text in kept
            } | {
                question(spec): found.get(spec.name) or answers[spec.name]
                for spec in specs
                if spec.name in found or spec.name in answers
            }
            answers.update(found)
        return answers

    def running(self, base: Base, settings: Settings) -> Resolution:
        """Return the answers for services in their running form."""
        state = self._tracker.state
        if state.deployed is None:
            return stored_answers(settings, running_specs(base.declarations).values())
        back = _ways_back(base)
        if not back:
            return state.resolution
        known = self._known(settings.cluster)
        found = {name: answer for name, answer in state.resolution.items() if name not in back}
        found |= {n: known[q] for n, spec in back.items() if (q := question(spec)) in known}
        return found

    def _known(self, cluster: Cluster) -> Mapping[str, Answer]:
        """Return question → answer of `cluster`, for all declared or running services."""
        state = self._tracker.state
        is_running = state.deployed is not None and state.deployed.settings.cluster == cluster
        running = {
            question(planned.spec): state.resolution[planned.spec.name]
            for planned in (state.deployed.services if state.deployed and is_running else ())
            if planned.spec.name in state.resolution
        }
        return {**self._declared, **running}

    async def sweep(self) -> bool:
        """Look all services up; return whether the answers change the plan."""
        declaration, before = self._tracker.state.declaration, self._tracker.state.resolution
        if declaration is None:
            return False
        settings, specs = declaration.settings, declaration.services
        found = await self._discovery.sweep(specs, settings, before)
        if found is None:
            return False
        found = self._without_foreign(specs, found)
        self._tracker.log(transitions.answers(before, found))
        # During a hold, the plan changes with the step that ends the hold.
        state = self._tracker.state
        answers = _updated(state.resolution, before, found)
        self._tracker.become(replace(state, resolution=answers))
        self._servers.touch()
        deployed, declaration = state.deployed, state.declaration
        if deployed is None or declaration is None or state.held is not None:
            return False
        planned = plan(
            settings,
            specs,
            declaration.fragments,
            answers,
            frontends=declaration.frontends,
            memo=self._memo,
        )
        self._metrics.planned(deployed, answers)
        return _shape(planned.services) != _shape(deployed.services)

    async def follow(self) -> bool:
        """Wait for changed endpoints, and put them into HAProxy's slots.

        Only the changed services are touched.  Returns whether a step is due, for example for more
        slots.
        """
        await self._discovery.changed()
        state = self._tracker.state
        if state.declaration is None or state.deployed is None:
            # The first step looks the services up itself.
            await asyncio.sleep(_NOT_DEPLOYED_PAUSE)
            return False
        settings, before = state.declaration.settings, state.resolution
        news = self._discovery.news(state.declaration.services, settings, before)
        if not news.answers:
            return False
        answers = dict(news.answers)
        self._tracker.log(transitions.answers(before, answers))
        self._tracker.become(replace(state, resolution=_updated(before, before, answers)))
        if state.held is None and _changes_plan(state.declaration, state.deployed, answers):
            self._servers.touch()
            return True
        done = await self._servers.assign(only=answers.keys())
        if done and news.since is not None:
            self._metrics.endpoints_followed(self._clock() - news.since)
        return False

    def _without_foreign(
        self, specs: Iterable[ServiceSpec], answers: Resolution
    ) -> dict[str, Answer]:
        """Return `answers` that also list HAProxy's addresses outside the networks as rejected."""
        found = dict(answers)
        for spec in specs if self._foreign else ():
            foreign, answer = self._foreign.get(question(spec)), found.get(spec.name)
            if foreign and answer is not None and not foreign <= set(answer.rejected):
                rejected = tuple(sorted({*answer.rejected, *foreign}))
                found[spec.name] = replace(answer, rejected=rejected)
        return found

    async def look_at_servers(self) -> bool:
        """Return whether HAProxy has servers outside the pod network.

        fc-frontend fills their slots from then on.  For an SRV record's target with A and AAAA
        records, HAProxy takes the first additional record, whichever network that is in.
        """
        state = self._tracker.state
        if state.deployed is None or not state.is_in_sync or state.held is not None:
            return False
        cluster = state.deployed.settings.cluster
        services = {
            each.spec.name: each.spec
            for each in state.deployed.services
            if each.has_pods and not each.by_runtime
        }
        if not services:
            return False
        path = state.deployed.settings.haproxy.runtime_socket
        try:
            servers = await asyncio.to_thread(runtime.servers_with_address, path)
        except Unavailable:
            return False
        found: dict[str, set[str]] = {}
        for server in servers:
            if (
                server.proxy in services
                and server.server.startswith("pod")
                and server.address is not None
                and not is_within(server.address, cluster.pod_networks)
            ):
                found.setdefault(server.proxy, set()).add(server.address)
        for name, addresses in found.items():
            text = question(services[name])
            self._foreign[text] = self._foreign.get(text, frozenset()) | addresses
            self._log.limited(f"foreign-servers {name}").warning(
                "foreign-servers",
                service=name,
                addresses=",".join(sorted(addresses)[:3]),
                effect="its slots are filled by fc-frontend",
            )
        if found:
            state = self._tracker.state
            resolution = self._without_foreign(services.values(), state.resolution)
            self._tracker.become(replace(state, resolution=resolution))
        return bool(found)

    async def look_at_nameservers(self) -> None:
        """Compare the answers of all nameservers for the next few services."""
        declaration = self._tracker.state.declaration
        if declaration is None or len(declaration.settings.cluster.nameservers) < 2:
            self._disagreements = {}
            return
        found = await self._discovery.disagreements(declaration.services, declaration.settings)
        located = {name: declaration.located(problem) for name, problem in found.items()}
        for name in sorted(located.keys() - self._disagreements.keys()):
            self._log.limited(f"disagreement {name}").warning(
                "nameservers-disagree",
                service=name,
                said=located[name].message,
                remedy=located[name].remedy,
            )
        self._disagreements = located


def _changes_plan(declaration: Declaration, deployed: Plan, answers: Resolution) -> bool:
    """Return whether these answers change the text of haproxy.cfg."""
    planned = plan(declaration.settings, declaration.named(answers), (), answers).services
    return _shape(planned) != _shape(deployed.named(answers))


def _ways_back(base: Base) -> dict[str, ServiceSpec]:
    """Return the services that are being reverted, in the form they are reverted to."""
    ways = base.declarations.ways_back()
    return running_specs(replace(base.declarations, services=ways)) if ways else {}


def _updated(now: Resolution, before: Resolution, answers: Resolution) -> dict[str, Answer]:
    """Return `now`, updated by the `answers` of a sweep that began with `before`.

    A step may have replaced some in the meantime.  An unchanged answer remains the same object, so
    that nothing that depends on it is computed again.
    """
    found = dict(now)
    for name, answer in answers.items():
        old, current = before.get(name), now.get(name)
        if answer == old or (current is None and old is not None):
            continue
        has_moved = current is not None and current is not old
        found[name] = (
            replace(answer, slots=current.slots, by_runtime=current.by_runtime)
            if current is not None and has_moved
            else answer
        )
    return found


def _shape(services: Iterable[ServicePlan]) -> list[tuple[object, ...]]:
    """Return the parts of a plan that depend on discovery and are in haproxy.cfg."""
    return [
        (
            s.spec.name,
            s.kind,
            s.query,
            s.slots,
            s.fallback_query,
            s.by_runtime,
            s.standby,
            s.is_h2c,
        )
        for s in services
    ]
