"""The contents of the pages, derived from the collected facts.

Board     the whole frontend: one line per service, worst first
Detail    one service, with the steps of `explain`
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fc_frontend.errors import Problem
from fc_frontend.explain.facts import DaemonService, Facts, Held, Server
from fc_frontend.explain.overview import Overview, Rank, Row, StatusFinding, StatusLevel
from fc_frontend.explain.steps import Explanation
from fc_frontend.haproxy.traffic import Rates
from fc_frontend.model.service_state import Counts, Health, ServiceState

EACH_PAGE = 100
"""The number of services on one page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PastDeployment:
    """A deployment in the history.  `at` is Unix time, `seconds` its duration."""

    id: int
    at: float
    outcome: str
    accepted: bool
    reasons: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TableLine:
    """One service in the table."""

    name: str
    namespace: str
    binds: tuple[str, ...]
    level: StatusLevel
    word: str
    pods: int | None
    slots: int | None
    counts: Counts | None
    rates: Rates | None
    findings: tuple[StatusFinding, ...]

    def matches(self, text: str) -> bool:
        """Return whether name, namespace, binds or state contain `text`, given in lower case."""
        return any(
            text in part.lower() for part in (self.name, self.namespace, self.word, *self.binds)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The totals of all services."""

    pods: int
    counts: Counts | None
    rates: Rates | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """The whole frontend at one moment.

    `traffic_problem` is why there are no traffic figures.  `queries` counts the answers of each
    nameserver since the daemon's start, by response code.  `changes` lists the newest first.  `at`
    is Unix time.
    """

    overview: Overview
    lines: tuple[TableLine, ...]
    totals: Totals
    findings: tuple[StatusFinding, ...]
    """Findings about services that are down or degraded, and those about no single service."""
    withheld: tuple[Held, ...]
    traffic_problem: Problem | None
    seconds: float | None
    """The period of the rates; None if requests are those of HAProxy's last second."""
    changes: tuple[PastDeployment, ...]
    queries: Mapping[str, Mapping[str, int]]
    host: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """One service.  Without an explanation, `problem` is why there is none."""

    name: str
    board: Board
    line: TableLine | None
    withheld: tuple[Held, ...]
    explanation: Explanation | None = None
    facts: Facts | None = None
    problem: Problem | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The lines that one page shows; pages are numbered from 1."""

    text: str
    lines: tuple[TableLine, ...]
    page: int
    pages: int
    found: int
    total: int

    @property
    def first(self) -> int:
        """The number of the first line on the page, from 1."""
        return (self.page - 1) * EACH_PAGE + 1


def board(
    overview: Overview,
    *,
    rates: Mapping[str, Rates] | None,
    traffic_problem: Problem | None,
    seconds: float | None,
    changes: Iterable[PastDeployment],
    queries: Mapping[str, Mapping[str, int]],
    host: str,
    at: float,
) -> Board:
    """Return the contents of the page; `rates` are by proxy, None if HAProxy reports none."""
    by_service: dict[str, list[StatusFinding]] = {}
    for finding in overview.findings:
        if finding.service is not None:
            by_service.setdefault(finding.service, []).append(finding)
    services = {service.name: service for service in overview.seen.services}
    lines = [
        _line(
            row,
            services.get(row.name),
            tuple(by_service.get(row.name, ())),
            rates.get(row.name) if rates is not None else None,
        )
        for row in overview.rows
    ]
    return Board(
        overview=overview,
        lines=tuple(lines),
        totals=_totals(lines),
        findings=tuple(
            finding
            for finding in overview.findings
            if not finding.is_withheld
            and (finding.service is None or finding.rank <= Rank.DEGRADED)
        ),
        # Changes without a running former version first.
        withheld=tuple(sorted(overview.seen.withheld, key=lambda held: held.is_kept)),
        traffic_problem=traffic_problem,
        seconds=seconds,
        changes=tuple(changes),
        queries=queries,
        host=host,
        at=at,
    )


_LEVELS = {
    ServiceState.UNKNOWN: StatusLevel.UNKNOWN,
    ServiceState.DOWN: StatusLevel.CRITICAL,
    ServiceState.EMPTY: StatusLevel.CRITICAL,
    ServiceState.DEGRADED: StatusLevel.WARNING,
    ServiceState.STALE: StatusLevel.WARNING,
    ServiceState.WITHHELD: StatusLevel.WARNING,
    ServiceState.OK: StatusLevel.OK,
}


def _line(
    row: Row,
    service: DaemonService | None,
    findings: tuple[StatusFinding, ...],
    rates: Rates | None,
) -> TableLine:
    level = max((_LEVELS[row.state], *(finding.level for finding in findings)))
    return TableLine(
        name=row.name,
        namespace=row.namespace or "",
        binds=row.binds,
        level=level,
        word=_word(row, service),
        pods=row.pods,
        slots=row.slots,
        counts=row.counts,
        rates=rates,
        findings=findings,
    )


def _word(row: Row, service: DaemonService | None) -> str:
    """Return the state of a service, or for a healthy one that it is drained or short of slots."""
    if row.state is not ServiceState.OK:
        return row.state.value
    if row.counts and row.counts.drained:
        return "drained"
    return "little room" if service is not None and service.slots_scarce else row.state.value


def _totals(lines: Iterable[TableLine]) -> Totals:
    lines = tuple(lines)
    counts = [line.counts for line in lines if line.counts is not None]
    rates = [line.rates for line in lines if line.rates is not None]
    errors = [one.errors for one in rates if one.errors is not None]
    return Totals(
        pods=sum(line.pods or 0 for line in lines),
        counts=Counts(
            up=sum(count.up for count in counts),
            down=sum(count.down for count in counts),
            drained=sum(count.drained for count in counts),
            maintenance=sum(count.maintenance for count in counts),
            free=sum(count.free for count in counts),
        )
        if counts
        else None,
        rates=Rates(
            requests=sum(one.requests for one in rates),
            errors=sum(errors) if errors else None,
            sessions=sum(one.sessions for one in rates),
        )
        if rates
        else None,
    )


def select(lines: tuple[TableLine, ...], text: str, page: int) -> Selection:
    """Return one page of the lines that contain `text`; the last page if `page` is too large."""
    wanted = text.lower()
    found = tuple(line for line in lines if line.matches(wanted)) if wanted else lines
    pages = max(1, -(-len(found) // EACH_PAGE))
    page = min(max(1, page), pages)
    return Selection(
        text=text,
        lines=found[(page - 1) * EACH_PAGE : page * EACH_PAGE],
        page=page,
        pages=pages,
        found=len(found),
        total=len(lines),
    )


def bar(line: TableLine) -> tuple[tuple[str, float, float], ...]:
    """Return the parts of a service's slot bar: kind, start and width, in percent."""
    whole = line.slots or 0
    counts = line.counts
    if not counts:
        parts = [("unknown", line.pods or 0)]
    else:
        away = counts.drained + counts.maintenance
        parts = [("up", counts.up), ("away", away), ("down", counts.down)]
        whole = max(whole, counts.up + away + counts.down)
    found, begin = [], 0.0
    for word, number in parts:
        if number and whole:
            width = min(100.0 - begin, 100 * number / whole)
            found.append((word, round(begin, 2), round(width, 2)))
            begin += width
    return tuple(found)


_WORST_FIRST = (Health.DOWN, Health.MAINTENANCE, Health.DRAINED, Health.UP)


def servers(facts: Facts) -> tuple[Server, ...]:
    """Return the servers that have a pod, those that are down first."""
    if facts.proxy is None:
        return ()
    own = [server for server in facts.proxy.servers if server.health is not Health.FREE]
    return tuple(sorted(own, key=lambda server: _WORST_FIRST.index(server.health)))
