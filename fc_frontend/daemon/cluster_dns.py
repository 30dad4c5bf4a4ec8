"""Queries of cluster DNS: for all services, for new ones, or only for the zone's serial.

The modules of `discovery` define the queries of a sweep; the reconciler acts on the answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import islice

from fc_frontend.discovery.agreement import ask_each
from fc_frontend.discovery.budget import EXPLANATIONS, REMEDIES
from fc_frontend.discovery.client import DnsClient, Exchange
from fc_frontend.discovery.hint import WORTHWHILE, Hint
from fc_frontend.discovery.lookups import Clients, Lookups
from fc_frontend.discovery.source import News
from fc_frontend.errors import Problem, Severity
from fc_frontend.model.api_state import ApiState
from fc_frontend.observe.log import Log
from fc_frontend.observe.metrics import Metrics
from fc_frontend.plan.model import Answer, Freshness, Resolution, ServiceSpec, Settings

_MAX_PROBLEMS = 20
_COMPARED_AT_ONCE = 50
"""Services about which all nameservers are asked at each look."""


class Sweeper:
    """The sockets to cluster DNS, and hints of earlier sweeps for the time and form of the next.

    Failures of DNS are not raised: they are in the answers, the log and the metrics.
    """

    def __init__(self, log: Log, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._log = log
        self._metrics = metrics
        self._clock = clock
        self._clients: Clients | None = None
        self._lookups = Lookups(clock)
        self._hint = Hint()
        self._compared = 0
        self._differed: set[str] = set()
        self._disagreed: dict[str, Problem] = {}

    async def ask(
        self, specs: Sequence[ServiceSpec], settings: Settings, before: Resolution
    ) -> dict[str, Answer]:
        """Return the early answers about new services; sweeps return the others."""
        self._hint = Hint()
        return await self._answers(specs, settings, before, is_new=True)

    async def sweep(
        self, specs: Sequence[ServiceSpec], settings: Settings, before: Resolution
    ) -> dict[str, Answer] | None:
        """Return the answers that arrived in time for all services; None if all equal `before`.

        If cluster DNS does not answer in time for a service, a later sweep has its answer.
        """
        began = self._clock()
        serial = await self._serial(settings, len(specs))
        if not self._hint.is_due(serial, began, settings.intervals.resolve):
            self._metrics.swept("spared")
            return None
        self._metrics.swept("whole")
        answers = await self._answers(specs, settings, before)
        changed = any(
            (old := before.get(name)) is not answer and old != answer
            for name, answer in answers.items()
        )
        is_whole = len(answers) == len(specs)
        is_quiet = is_whole and not changed and all(map(_is_settled, answers.values()))
        after = await self._serial(settings, len(specs)) if changed else serial
        self._hint = self._hint.after(serial, after, began, changed=changed, is_quiet=is_quiet)
        return answers if changed else None

    async def changed(self) -> None:
        """Wait forever: cluster DNS reports no changes on its own."""
        await asyncio.Event().wait()

    def news(self, specs: Sequence[ServiceSpec], settings: Settings, before: Resolution) -> News:  # noqa: ARG002
        """Return no news: sweeps return all answers."""
        return News({}, None)

    @property
    def state(self) -> ApiState | None:
        """None: this is not the API."""
        return None

    @property
    def load_balancers(self) -> None:
        """None: cluster DNS has no such information."""
        return None

    @property
    def may_fill(self) -> bool:
        """False: slots filled from DNS have no standby."""
        return False

    async def disagreements(
        self, specs: Sequence[ServiceSpec], settings: Settings
    ) -> dict[str, Problem]:
        """Return the services, of the next few, on which nameservers disagreed twice in a row.

        A change does not reach all nameservers at once: a difference that is gone at the second
        look is ignored.
        """
        names = [spec.name for spec in specs]
        start = self._compared % len(names) if names else 0
        chosen = (list(specs[start:]) + list(specs[:start]))[:_COMPARED_AT_ONCE]
        self._compared = start + len(chosen)
        found = await ask_each(chosen, settings.cluster)
        asked = {spec.name for spec in chosen}
        again = found.keys() & self._differed
        self._differed = {n for n in self._differed if n in names} - asked | found.keys()
        kept = {n: p for n, p in self._disagreed.items() if n in names and n not in asked}
        self._disagreed = kept | {name: found[name].problem(name) for name in again}
        self._metrics.disagreed(len(self._disagreed))
        return dict(self._disagreed)

    def close(self) -> None:
        """Close the sockets; the next query opens new ones, to the nameservers set by then."""
        self._lookups.close()
        if self._clients is not None:
            self._clients.close()
            self._clients = None

    async def _answers(
        self,
        specs: Sequence[ServiceSpec],
        settings: Settings,
        before: Resolution,
        *,
        is_new: bool = False,
    ) -> dict[str, Answer]:
        answers = await self._lookups.answers(
            specs,
            settings.cluster,
            self._dns(settings),
            before,
            hold=settings.intervals.hold,
            is_new=is_new,
        )
        self._metrics.resolved(answers, self._clock())
        return answers

    async def _serial(self, settings: Settings, services: int) -> int | None:
        """Return the serial of the cluster's zone, if asking for it may save more than it costs."""
        if services < WORTHWHILE:
            return None
        return await self._dns(settings).usual.serial(settings.cluster.domain)

    def _dns(self, settings: Settings) -> Clients:
        if self._clients is None:
            nameservers = settings.cluster.nameservers
            usual, slow = (DnsClient(nameservers, observe=self._exchanged) for _ in range(2))
            each = tuple(DnsClient((one,), observe=self._exchanged) for one in nameservers)
            self._clients = Clients(usual, slow, each if len(each) > 1 else ())
        return self._clients

    def _exchanged(self, exchange: Exchange) -> None:
        self._metrics.queries(
            exchange.nameserver, exchange.transport, exchange.rcode, exchange.durations
        )


def _is_settled(answer: Answer) -> bool:
    return answer.freshness is Freshness.FRESH and answer.lost_at is None


def lookup_problems(resolution: Resolution) -> tuple[Problem, ...]:
    """Return the services whose lookups exceed a limit, at most `_MAX_PROBLEMS` of them."""
    exceeding = (name for name, answer in resolution.items() if answer.exceeded is not None)
    return tuple(
        Problem(
            f"{EXPLANATIONS[limit]}; its last good answer is kept",
            REMEDIES[limit],
            severity=Severity.WARNING,
            service=name,
        )
        for name in islice(exceeding, _MAX_PROBLEMS)
        if (limit := resolution[name].exceeded) is not None
    )
