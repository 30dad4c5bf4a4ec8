"""The daemon's HTTP responses: the pages, metrics, health and status."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from fc_frontend import __version__
from fc_frontend.daemon.progress import Stuck
from fc_frontend.daemon.reconciler import Reconciler
from fc_frontend.errors import Problem, errors_in
from fc_frontend.haproxy.counts import Servers, servers_now
from fc_frontend.model.service_state import Counts, HaproxyState
from fc_frontend.observe.http import Handler, Request, Response
from fc_frontend.observe.metrics import CONTENT_TYPE, Metrics
from fc_frontend.observe.services import is_current, slot_room
from fc_frontend.observe.shared import EVERY, Shared
from fc_frontend.page import render
from fc_frontend.page.look import DaemonView, PageCache
from fc_frontend.pipeline import served_binds
from fc_frontend.plan.frontend_views import frontend_views
from fc_frontend.plan.model import ServicePlan
from fc_frontend.text import json_text

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
SERVICES = "/services/"
_PATIENCE = 2.0
"""Seconds to wait for an answer of HAProxy."""
_AT_ONCE = 0.2
"""Seconds for which an output waits for this answer."""
_NOT_YET = Problem(
    "nothing has been read yet", "if this lasts, see the daemon's log, and run `fc-frontend check`"
)


class ServersNow:
    """The servers that HAProxy reports, queried at most once a second for all outputs.

    A hanging HAProxy does not block outputs: the last result is shown until the query times out.
    """

    def __init__(self, reconciler: Reconciler, metrics: Metrics) -> None:
        self._reconciler = reconciler
        self._metrics = metrics
        self._lock = threading.Lock()
        self._asked = float("-inf")
        self._asking: Future[Servers] | None = None
        self._found = Servers(state=HaproxyState.UNKNOWN)
        self._thread = ThreadPoolExecutor(1, "servers")

    def look(self) -> Servers:
        """Return the servers that HAProxy reports now, or reported last; update the metrics."""
        with self._lock:
            deployed = self._reconciler.state.deployed
            now = time.monotonic()
            if deployed is not None and self._asking is None and now >= self._asked + EVERY:
                path = deployed.settings.haproxy.runtime_socket
                self._asked = now
                self._asking = self._thread.submit(servers_now, path, _PATIENCE)
            if self._asking is not None:
                with contextlib.suppress(TimeoutError):
                    self._found = self._asking.result(_AT_ONCE)
                    self._asking = None
            self._metrics.haproxy(self._found.state, self._found.counts)
            return self._found

    def close(self) -> None:
        """Cancel queued queries."""
        self._thread.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class SharedAnswers:
    """The answers that take long to compute with many services."""

    exposition: Shared
    status: Shared
    servers: ServersNow

    @classmethod
    def of(
        cls, reconciler: Reconciler, metrics: Metrics, stuck: Callable[[], Stuck | None]
    ) -> SharedAnswers:
        """Return the answers of a daemon."""

        servers = ServersNow(reconciler, metrics)

        def exposition() -> bytes:
            servers.look()
            return metrics.exposition(time.monotonic())

        def status() -> bytes:
            document = status_document(reconciler, metrics, stuck(), servers.look())
            return json_text(document).encode() + b"\n"

        return cls(Shared(exposition), Shared(status), servers)

    async def close(self) -> None:
        """Stop computing answers."""
        await self.exposition.close()
        await self.status.close()
        self.servers.close()


def _counts(counts: Counts | None) -> dict[str, int] | None:
    return None if counts is None else asdict(counts)


def routes(
    reconciler: Reconciler,
    shared: SharedAnswers,
    cache: PageCache,
    stuck: Callable[[], Stuck | None],
) -> dict[str, Handler]:
    """Return the handler of each path."""

    async def overview(request: Request) -> Response:
        body = await cache.overview(render.asked(request.query))
        return not_yet() if body is None else _page(200, body)

    async def service(request: Request) -> Response:
        found = await cache.service(request.path.removeprefix(SERVICES))
        return not_yet() if found is None else _page(200 if found[0] else 404, found[1])

    def not_yet() -> Response:
        problem = next(iter(reconciler.problems), _NOT_YET)
        return _page(503, render.not_yet_page(problem, cache.host))

    async def exposition(_request: Request) -> Response:
        return Response(200, await shared.exposition.get(), CONTENT_TYPE)

    def healthz(_request: Request) -> Response:
        if found := stuck():
            return Response(503, f"{found}\n".encode(), TEXT)
        return Response(200, b"ok\n", TEXT)

    def readyz(_request: Request) -> Response:
        if found := stuck():
            return Response(503, f"{found}\n".encode(), TEXT)
        if reconciler.state.is_in_sync:
            return Response(200, b"ok\n", TEXT)
        return Response(503, _not_ready(reconciler).encode(), TEXT)

    async def status(_request: Request) -> Response:
        return Response(200, await shared.status.get(), JSON)

    return {
        "/": overview,
        SERVICES: service,
        "/metrics": exposition,
        "/healthz": healthz,
        "/readyz": readyz,
        "/status.json": status,
    }


def know(
    settings_file: str,
    reconciler: Reconciler,
    metrics: Metrics,
    stuck: Callable[[], Stuck | None],
    servers: ServersNow,
) -> DaemonView | None:
    """Return the data for the pages, or None if nothing has been read yet."""
    declaration, prepared = reconciler.state.declaration, reconciler.state.prepared
    if declaration is None or prepared is None:
        return None
    return DaemonView(
        settings_file=settings_file,
        declaration=declaration,
        prepared=prepared,
        names=reconciler.names,
        status=status_document(reconciler, metrics, stuck(), servers.look()),
        queries=metrics.answered(),
    )


def _not_ready(reconciler: Reconciler) -> str:
    """Return the reason why the daemon is not ready, in one line."""
    said = "the running HAProxy does not have what is declared"
    problem = reconciler.consent.problem or next(iter(errors_in(reconciler.problems)), None)
    return f"{said}: {problem.message} → {problem.remedy}\n" if problem else f"{said}\n"


def _page(status: int, body: bytes) -> Response:
    return Response(status, body, render.CONTENT_TYPE, render.headers())


def status_document(
    reconciler: Reconciler, metrics: Metrics, stuck: Stuck | None, servers: Servers
) -> dict[str, Any]:
    """Return the daemon's whole status, in a stable format (`version` 1)."""
    state = reconciler.state
    last = state.last_reload
    held = {each.unit: each for each in state.withheld}
    services = []
    now = time.monotonic()
    base = state.prepared.base if state.prepared else None
    is_held = state.held is not None and base is not None
    served = served_binds(base) if base is not None and is_held else {}

    def binds(planned: ServicePlan) -> tuple[str, ...]:
        if is_held and base is not None and base.hash == state.running:
            return served.get(planned.spec.name, ())
        return planned.spec.places

    for planned in state.deployed.services if state.deployed else ():
        answer = state.resolution.get(planned.spec.name)
        endpoints = answer.endpoints if answer else ()
        short, is_scarce = slot_room(planned, answer)
        services.append(
            {
                "name": planned.spec.name,
                "service": planned.spec.service,
                "namespace": planned.spec.namespace,
                "binds": list(binds(planned)),
                "discovery": planned.kind.value,
                "reason": planned.reason,
                "query": planned.query,
                "state": metrics.state(planned).value,
                "is_current": is_current(answer),
                "servers": _counts(servers.counts.get(planned.spec.name)),
                "freshness": answer.freshness.value if answer else "unknown",
                "answer_age": metrics.answer_age(planned.spec.name, now),
                "file": planned.spec.origin.file if planned.spec.origin else None,
                "error": answer.error if answer else None,
                "remedy": answer.remedy if answer else "",
                "endpoints": [f"{e.address} {e.port}" for e in endpoints],
                "exceeded": answer.exceeded if answer else None,
                "rejected": list(answer.rejected) if answer else [],
                "slots": planned.slots,
                "drained": list(state.drained.get(planned.spec.name, ())),
                "slots_short": short,
                "slots_scarce": is_scarce,
                "addresses_by": "runtime" if planned.by_runtime else "resolver",
            }
        )
    return {
        "version": 1,
        "fc_frontend": __version__,
        "haproxy": servers.state.value,
        "in_sync": state.is_in_sync,
        "drifted": state.is_drift_left,
        "stuck": str(stuck) if stuck else None,
        "take_over": reconciler.consent.problem.as_json() if reconciler.consent.problem else None,
        "held": state.held.as_json() if state.held else None,
        "wanted_hash": state.wanted,
        "running_hash": state.running,
        "problems": [problem.as_json() for problem in reconciler.problems],
        "withheld": [each.as_json() for each in held.values()],
        "api": reconciler.api.as_json() if reconciler.api else None,
        "load_balancers": view.as_json() if (view := reconciler.statuses.view) else None,
        "certificates": [each.as_json() for each in reconciler.certificates.brought.served],
        "frontends": [
            each.as_json()
            for each in frontend_views(state.deployed.frontends, state.deployed.services)
        ]
        if state.deployed
        else [],
        "last_reload": {
            "at": last.at,
            "reasons": [str(reason) for reason in last.reasons],
            "outcome": last.deployment.outcome.value,
            "seconds": last.deployment.duration,
        }
        if last
        else None,
        "services": services,
    }
