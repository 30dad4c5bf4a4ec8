"""How the daemon asks cluster DNS: about everything, about what is new, or only whether it moved.

What a sweep asks is for the modules of `discovery`; what the answers lead to, for the reconciler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fc_frontend.discovery.client import DnsClient, Exchange
from fc_frontend.discovery.hint import WORTHWHILE, Hint
from fc_frontend.discovery.resolve import resolve_all
from fc_frontend.discovery.steady import Steady
from fc_frontend.observe.log import Log
from fc_frontend.observe.metrics import Metrics
from fc_frontend.plan.model import Answer, Freshness, Resolution, ServiceSpec, Settings


class ClusterDns:
    """The sockets to cluster DNS, and what earlier sweeps say of when and how to ask next.

    Nothing that DNS does is raised: it is in the answers, the log and the metrics.
    """

    def __init__(self, log: Log, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._log = log
        self._metrics = metrics
        self._clock = clock
        self._client: DnsClient | None = None
        self._steady = Steady()
        self._hint = Hint()

    async def ask(
        self, specs: Sequence[ServiceSpec], settings: Settings, before: Resolution
    ) -> dict[str, Answer]:
        """The answers about these services; the next sweep comes in any case."""
        self._hint = Hint()
        return await self._answers(specs, settings, before)

    async def sweep(
        self, specs: Sequence[ServiceSpec], settings: Settings, before: Resolution
    ) -> dict[str, Answer] | None:
        """The answers about all services; None if they are those of `before`, or need no asking."""
        began = self._clock()
        serial = await self._serial(settings, len(specs))
        if not self._hint.is_due(serial, began, settings.intervals.resolve):
            self._metrics.swept("spared")
            return None
        self._metrics.swept("whole")
        answers = await self._answers(specs, settings, before, steady=self._steady)
        changed = answers != before
        is_quiet = not changed and all(
            answer.freshness is Freshness.FRESH and answer.lost_at is None
            for answer in answers.values()
        )
        after = await self._serial(settings, len(specs)) if changed else serial
        self._hint = self._hint.after(serial, after, began, changed=changed, is_quiet=is_quiet)
        return answers if changed else None

    def close(self) -> None:
        """Close the sockets; whoever asks next opens others, to the nameservers of then."""
        if self._client is not None:
            self._client.close()
            self._client = None

    async def _answers(
        self,
        specs: Sequence[ServiceSpec],
        settings: Settings,
        before: Resolution,
        *,
        steady: Steady | None = None,
    ) -> dict[str, Answer]:
        answers = await resolve_all(
            specs,
            settings.cluster,
            self._dns(settings),
            before,
            now=self._clock(),
            hold=settings.intervals.hold,
            steady=steady,
        )
        self._metrics.resolved(answers, self._clock())
        return answers

    async def _serial(self, settings: Settings, services: int) -> int | None:
        """The serial of the cluster's zone, where asking for it may save more than it costs."""
        if services < WORTHWHILE:
            return None
        return await self._dns(settings).serial(settings.cluster.domain)

    def _dns(self, settings: Settings) -> DnsClient:
        if self._client is None:
            self._client = DnsClient(settings.cluster.nameservers, observe=self._exchanged)
        return self._client

    def _exchanged(self, exchange: Exchange) -> None:
        self._metrics.queries(
            exchange.nameserver, exchange.transport, exchange.rcode, exchange.durations
        )
