"""Changes of servers at runtime: pods in slots, drains, ended sessions, and the liveness entry."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from fc_frontend import files
from fc_frontend.daemon import transitions
from fc_frontend.daemon.tracker import Tracker
from fc_frontend.discovery.source import PodDiscovery
from fc_frontend.errors import Unavailable
from fc_frontend.haproxy import drain_record, install, runtime
from fc_frontend.haproxy.assign import Assigned, assign
from fc_frontend.haproxy.deploy import save_running, server_state_now
from fc_frontend.haproxy.old_sessions import proxies_that_shut, shut_left_sessions
from fc_frontend.haproxy.server_state import servers_in
from fc_frontend.observe.log import Log
from fc_frontend.observe.metrics import Metrics
from fc_frontend.plan.model import Haproxy, Plan, Resolution, ServicePlan, Settings
from fc_frontend.render.render import ALIVE_KEY, ALIVE_TABLES

_FRAGMENT_SERVERS_INTERVAL = 5.0
"""Seconds between two looks at the servers of fragments."""
_SAVE_SHARE = 20
"""Saving servers that change continuously takes at most 1/20 of the time."""
_VERIFIED_AT_ONCE = 16
"""Services whose slots are compared at each look; all 1,000 at once take half a second."""


class ServerUpkeep:
    """Updates HAProxy's servers at runtime.  `lock` excludes concurrent reloads."""

    def __init__(
        self,
        tracker: Tracker,
        lock: asyncio.Lock,
        discovery: PodDiscovery,
        log: Log,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._tracker = tracker
        self._lock = lock
        self._discovery = discovery
        self._log = log
        self._metrics = metrics
        self._clock = clock
        self._is_due = True
        self._leaving: frozenset[str] = frozenset()
        """Services with slots that wait for the last sessions of removed pods."""
        self._verified = 0
        """The position of the next service whose slots are verified."""
        self._saved: Resolution | None = None
        """The answers at the time the servers were last saved."""
        self._save_due = 0.0
        self._fragments_due = 0.0
        self._drain_record: object = None
        self._drains = False

    def touch(self) -> None:
        """Look at all slots next time, because answers or HAProxy's text changed."""
        self._is_due = True

    async def assign(self, *, anew: bool = False, only: Collection[str] | None = None) -> bool:
        """Give pods to the slots of services that HAProxy's resolver does not fill.

        Does nothing if neither answers nor configuration changed; with `anew`, the next few
        services are verified nevertheless.  With `only`, just these services are looked at.
        Returns whether HAProxy has the known endpoints.
        """
        state = self._tracker.state
        if state.deployed is None or not state.is_in_sync:
            return False
        if only is None and not self._is_due:
            verified = self._next_to_verify(state.deployed) if anew else frozenset()
            only = self._leaving | verified
        services = _slots_to_fill(state.deployed, state.resolution, only)
        if only is None:
            self._is_due = False
        if services and state.held is not None:
            haproxy = state.deployed.settings.haproxy
            services = await asyncio.to_thread(_as_installed, haproxy, services)
        if not services:
            return True
        try:
            async with self._lock:
                # The deployed plan may be newer by now, and name another socket of HAProxy.
                deployed = self._tracker.state.deployed or state.deployed
                done = await asyncio.to_thread(_assign, deployed.settings, tuple(services))
        except Unavailable as exc:
            self._is_due = True
            self._log.limited("not-assigned").warning(
                "pods-not-assigned", error=exc.problems[0].message, remedy=exc.problems[0].remedy
            )
            return False
        looked = {service.spec.name for service in services}
        self._leaving = (self._leaving - looked) | done.leaving
        if only is None:
            await self.give_sign_of_life()
        if done.changed:
            self._log.info("pods-assigned", slots=done.changed, services=len(services))
        self._forget_gone(done)
        return True

    def _forget_gone(self, done: Assigned) -> None:
        """Remove addresses that no slot has any more from truncated answers."""
        state = self._tracker.state
        resolution = dict(state.resolution)
        for name, gone in done.gone.items():
            answer = resolution.get(name)
            if answer is not None and answer.is_cut and gone:
                endpoints = tuple(e for e in answer.endpoints if e.address not in gone)
                self._is_due |= endpoints != answer.endpoints
                resolution[name] = replace(answer, endpoints=endpoints)
        if resolution != state.resolution:
            self._tracker.become(replace(state, resolution=resolution))

    def _next_to_verify(self, deployed: Plan) -> frozenset[str]:
        names = [each.spec.name for each in deployed.services if each.by_runtime]
        start = self._verified % len(names) if names else 0
        self._verified = start + _VERIFIED_AT_ONCE
        return frozenset((names[start:] + names[:start])[:_VERIFIED_AT_ONCE])

    async def give_sign_of_life(self) -> None:
        """Report to HAProxy that its slots are maintained; standbys are unused until this expires.

        This requires slots that match the API; a daemon that has just started has not read it yet.
        """
        state = self._tracker.state
        if (
            state.deployed is None
            or not state.is_in_sync
            or self._is_due
            or state.deployed.settings.cluster.api is None
            or not self._discovery.may_fill
        ):
            return
        path = state.deployed.settings.haproxy.runtime_socket
        commands = [f"set table {table} key {ALIVE_KEY} data.gpc0 1" for table in ALIVE_TABLES]
        try:
            async with self._lock:
                await asyncio.to_thread(runtime.commands, path, commands)
        except Unavailable as exc:
            self._log.limited("no-sign-of-life").warning(
                "no-sign-of-life", error=exc.problems[0].message, effect="standbys may serve"
            )

    async def save(self) -> None:
        """Save HAProxy's servers with their addresses, if answers have changed.

        With the saved file, a HAProxy that others reload or start has servers at once.  HAProxy
        alone resolves the servers of fragments: with fragments, servers are saved every
        `_FRAGMENT_SERVERS_INTERVAL`.
        """
        state, began = self._tracker.state, self._clock()
        deployed, answers = state.deployed, state.resolution
        if deployed is None or not state.is_in_sync:
            return
        are_fragments_due = bool(deployed.fragments) and began >= self._fragments_due
        if answers == self._saved and not are_fragments_due:
            return
        if began < self._save_due:
            return
        try:
            if state.held is not None:
                async with self._lock:
                    await asyncio.to_thread(_save_as_it_runs, deployed.settings)
            else:
                # Thousands of servers take a while; changed endpoints must not wait for this.
                text = await asyncio.to_thread(server_state_now, deployed, dict(answers))
                async with self._lock:
                    now = self._tracker.state
                    if now.deployed is not deployed or not now.is_in_sync:
                        return
                    await asyncio.to_thread(
                        files.write_own, deployed.settings.server_state_file, text
                    )
            self._saved = answers
            self._fragments_due = began + _FRAGMENT_SERVERS_INTERVAL
            ended = self._clock()
            self._save_due = ended + _SAVE_SHARE * (ended - began)
        except Unavailable as exc:
            self._metrics.state_not_written("server-state")
            self._log.limited("server-state").warning(
                "server-state-not-saved",
                error=exc.problems[0].message,
                remedy=exc.problems[0].remedy,
            )

    async def drain(self) -> None:
        """Apply the drains of operators to the running worker; return at once if there are none.

        DNS assigns slots of drained pods to others, and empty slots to pods of drained services.
        """
        state = self._tracker.state
        if state.deployed is None or state.running is None:
            return
        settings = state.deployed.settings
        signature = drain_record.signature(settings)
        if signature == self._drain_record and not self._drains:
            return
        declared = [service.spec.name for service in state.deployed.services]
        try:
            held = await asyncio.to_thread(
                drain_record.keep, settings, dict(state.resolution), declared
            )
        except Unavailable as exc:
            self._log.limited("not-drained").warning(
                "drain-failed", error=exc.problems[0].message, remedy=exc.problems[0].remedy
            )
            return
        self._drain_record = signature
        self._drains = bool(held.record)
        drained = {
            name: found for name in sorted(held.record.names) if (found := held.drained(name))
        }
        self._tracker.become(replace(self._tracker.state, drained=drained))
        self._tracker.log(transitions.drains(held))

    async def shut_left_sessions(self) -> int:
        """End sessions of removed pods in old workers if services request it; return the count."""
        state = self._tracker.state
        if state.deployed is None or state.config is None or not state.is_in_sync:
            return 0
        haproxy = state.deployed.settings.haproxy
        proxies = proxies_that_shut(state.config.text)
        if not proxies:
            return 0
        try:
            return await asyncio.to_thread(
                shut_left_sessions, haproxy.master_socket, haproxy.runtime_socket, proxies
            )
        except Unavailable:
            return 0


def _slots_to_fill(
    deployed: Plan, answers: Resolution, only: Collection[str] | None
) -> list[ServicePlan]:
    """Return the services whose slots are filled here, with their newest endpoints."""
    return [
        replace(service, endpoints=answer.endpoints, draining=answer.draining)
        for service in (deployed.services if only is None else deployed.named(only))
        if service.by_runtime and (answer := answers.get(service.spec.name)) is not None
    ]


def _as_installed(haproxy: Haproxy, services: Iterable[ServicePlan]) -> list[ServicePlan]:
    """Return the services whose slots in haproxy.cfg use the runtime API for the same pods."""
    try:
        text = (install.read(haproxy.config_file) or b"").decode("utf-8", "replace")
    except Unavailable:
        return []
    found = servers_in(text)
    return [
        service
        for service in services
        if any(
            servers.is_disabled and servers.target == service.query
            for servers in found.get(service.spec.name, ())
        )
    ]


def _assign(settings: Settings, services: tuple[ServicePlan, ...]) -> Assigned:
    drained, _ = drain_record.load(settings)
    return assign(settings.haproxy, services, drained)


def _save_as_it_runs(settings: Settings) -> None:
    installed = install.read(settings.haproxy.config_file) or b""
    text = installed.decode("utf-8", "replace")
    running = runtime.servers_with_address(settings.haproxy.runtime_socket)
    save_running(settings, text, text, running)
