"""What the daemon answers over HTTP: the pages, metrics, health and status."""

from __future__ import annotations

import asyncio
import difflib
import json
import time
from dataclasses import dataclass
from typing import Any

from fc_frontend import __version__
from fc_frontend.config.last_good import Piece, Unit
from fc_frontend.daemon.reconciler import Reconciler
from fc_frontend.errors import Problem
from fc_frontend.explain.collect import Declared
from fc_frontend.explain.daemon import parse_status
from fc_frontend.observe.http import Handler, Request, Response
from fc_frontend.observe.metrics import CONTENT_TYPE, Metrics, service_state, slot_room
from fc_frontend.page import render
from fc_frontend.page.look import Known, Looker

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
SERVICES = "/services/"
_NOT_YET = Problem(
    message="nothing has been read yet",
    remedy="if this lasts, see the daemon's log, and run `fc-frontend check`",
)


def routes(
    settings_file: str, reconciler: Reconciler, metrics: Metrics, looker: Looker
) -> dict[str, Handler]:
    """The paths that are served, each with what answers it."""

    pages = _Pages(settings_file, reconciler, metrics, looker)

    def exposition(_request: Request) -> Response:
        return Response(200, metrics.exposition(time.monotonic()), CONTENT_TYPE)

    def healthz(_request: Request) -> Response:
        return Response(200, b"ok\n", TEXT)

    def readyz(_request: Request) -> Response:
        if reconciler.in_sync:
            return Response(200, b"ok\n", TEXT)
        return Response(503, b"the running HAProxy does not have what is declared\n", TEXT)

    def status(_request: Request) -> Response:
        body = json.dumps(status_document(reconciler, metrics), ensure_ascii=False, indent=2)
        return Response(200, body.encode() + b"\n", JSON)

    return {
        "/": pages.overview,
        SERVICES: pages.service,
        "/metrics": exposition,
        "/healthz": healthz,
        "/readyz": readyz,
        "/status.json": status,
    }


@dataclass(frozen=True, slots=True)
class _Pages:
    """What browsers are shown."""

    settings_file: str
    reconciler: Reconciler
    metrics: Metrics
    looker: Looker

    async def overview(self, request: Request) -> Response:
        """The page at `/`."""
        known = self._known()
        if known is None:
            return self._not_yet()
        board = await self.looker.board(known)
        wanted = render.asked(request.query)
        return _page(200, await asyncio.to_thread(render.overview_page, board, wanted))

    async def service(self, request: Request) -> Response:
        """The page of one service."""
        known = self._known()
        if known is None:
            return self._not_yet()
        name = request.path.removeprefix(SERVICES)
        board = await self.looker.board(known)
        fragments = {fragment.name for fragment in known.declared.declaration.fragments}
        names = {line.name for line in board.lines} | known.declared.names | fragments
        if name not in names:
            near = next(iter(difflib.get_close_matches(name, names, 1)), None)
            return _page(404, render.missing_page(board, name, near))
        return _page(200, render.service_page(await self.looker.detail(known, name)))

    def _not_yet(self) -> Response:
        problem = next(iter(self.reconciler.problems), _NOT_YET)
        return _page(503, render.not_yet_page(problem, self.looker.host))

    def _known(self) -> Known | None:
        declaration, prepared = self.reconciler.declaration, self.reconciler.prepared
        if declaration is None or prepared is None:
            return None
        daemon = parse_status(status_document(self.reconciler, self.metrics))
        return Known(
            settings_file=self.settings_file,
            declared=Declared(
                declaration=declaration,
                daemon=daemon,
                daemon_problem=None,
                quarantined=daemon.quarantined,
                names=self.reconciler.names,
            ),
            prepared=prepared,
            queries=self.metrics.answered(),
        )


def _page(status: int, body: bytes) -> Response:
    return Response(status, body, render.CONTENT_TYPE, render.headers())


def status_document(reconciler: Reconciler, metrics: Metrics) -> dict[str, Any]:
    """The daemon's view of everything, in a stable shape (`version` 1)."""
    last = reconciler.last_reload
    held = {quarantine.unit: quarantine for quarantine in reconciler.quarantined}
    services = []
    now = time.monotonic()
    for planned in reconciler.deployed.services if reconciler.deployed else ():
        answer = reconciler.resolution.get(planned.spec.name)
        endpoints = answer.endpoints if answer else ()
        short, is_scarce = slot_room(planned, answer)
        services.append(
            {
                "name": planned.spec.name,
                "service": planned.spec.service,
                "namespace": planned.spec.namespace,
                "binds": [str(bind) for bind in planned.spec.binds],
                "discovery": planned.kind.value,
                "reason": planned.reason,
                "query": planned.query,
                "state": service_state(
                    answer, quarantined=Unit(Piece.SERVICE, planned.spec.name) in held
                ),
                "freshness": answer.freshness.value if answer else "unknown",
                "answer_age": metrics.answer_age(planned.spec.name, now),
                "file": planned.spec.origin.file if planned.spec.origin else None,
                "error": answer.error if answer else None,
                "remedy": answer.remedy if answer else "",
                "endpoints": [f"{e.address} {e.port}" for e in endpoints],
                "rejected": list(answer.rejected) if answer else [],
                "slots": planned.slots,
                "drained": list(reconciler.drained.get(planned.spec.name, ())),
                "slots_short": short,
                "slots_scarce": is_scarce,
                "addresses_by": "runtime" if planned.by_runtime else "resolver",
            }
        )
    return {
        "version": 1,
        "fc_frontend": __version__,
        "in_sync": reconciler.in_sync,
        "drifted": reconciler.drifted,
        "held": reconciler.held.as_json() if reconciler.held else None,
        "wanted_hash": reconciler.wanted,
        "running_hash": reconciler.running,
        "problems": [problem.as_json() for problem in reconciler.problems],
        "quarantined": [quarantine.as_json() for quarantine in held.values()],
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
