"""How the whole frontend is: a row a service, and what is wrong, the worst first.

Pure.  Critical is what costs requests or keeps declared things from being served; a warning is what
will, or what an operator has chosen and may have forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from fc_frontend.errors import Cause, Problem, errors_in
from fc_frontend.explain.facts import (
    Counts,
    Daemon,
    DaemonService,
    Held,
    LastReload,
    Nameserver,
    Worker,
)
from fc_frontend.plurals import counted
from fc_frontend.text import one_line

LEFT_OUT = "left out"


class StatusLevel(IntEnum):
    """Nagios' levels, which are the exit codes."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """All that was found out.  `services` come from the daemon, or without it from files."""

    daemon: Daemon | None = None
    daemon_problem: Problem | None = None
    worker: Worker | None = None
    worker_problem: Problem | None = None
    nameservers: tuple[Nameserver, ...] = ()
    services: tuple[DaemonService, ...] = ()
    withheld: tuple[Held, ...] = ()
    problems: tuple[Problem, ...] = ()
    wanted_hash: str | None = None
    held_id: int | None = None
    held_by: str = ""
    take_over: Problem | None = None
    """That haproxy.cfg is not replaced for want of consent."""

    @property
    def in_sync(self) -> bool:
        """True if the running worker has what is wanted."""
        return (
            self.worker is not None
            and self.worker.hash is not None
            and self.worker.hash == self.wanted_hash
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusFinding:
    """One thing that is wrong."""

    level: StatusLevel
    subject: str
    message: str
    remedy: str = ""
    file: str | None = None
    line: int | None = None
    service: str | None = None
    """The service that it is about, if it is about one alone."""
    is_withheld: bool = False

    def as_json(self) -> dict[str, Any]:
        """The finding in the shape of all JSON output."""
        return {
            "level": self.level.name.lower(),
            "subject": self.subject,
            "message": self.message,
            "remedy": self.remedy,
            "file": self.file,
            "line": self.line,
        }

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        return f"{where}{self.subject}: {self.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A service; counts are None where HAProxy does not answer."""

    name: str
    state: str
    pods: int | None = None
    slots: int | None = None
    counts: Counts | None = None
    binds: tuple[str, ...] = ()
    namespace: str | None = None
    why: str = ""

    def as_json(self) -> dict[str, Any]:
        """The service in the shape of all JSON output."""
        counts = self.counts
        return {
            "name": self.name,
            "namespace": self.namespace,
            "state": self.state,
            "pods": self.pods,
            "slots": self.slots,
            "up": counts.up if counts else None,
            "down": counts.down if counts else None,
            "drained": counts.drained if counts else None,
            "maintenance": counts.maintenance if counts else None,
            "binds": list(self.binds),
            "why": self.why,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """What `status` says."""

    level: StatusLevel
    summary: str
    rows: tuple[Row, ...]
    findings: tuple[StatusFinding, ...]
    seen: Seen = field(repr=False)

    @property
    def last_reload(self) -> LastReload | None:
        """The last reload, as far as the daemon tells."""
        return self.seen.daemon.last_reload if self.seen.daemon else None

    def as_json(self) -> dict[str, Any]:
        """The document for scripts: no key is ever missing."""
        seen, last = self.seen, self.last_reload
        return {
            "version": 1,
            "status": self.level.name.lower(),
            "summary": self.summary,
            "in_sync": seen.in_sync,
            "wanted_hash": seen.wanted_hash,
            "running_hash": seen.worker.hash if seen.worker else None,
            "daemon": {"version": seen.daemon.version} if seen.daemon else None,
            "haproxy": {
                "version": seen.worker.version,
                "pid": seen.worker.pid,
                "seconds": seen.worker.seconds,
            }
            if seen.worker
            else None,
            "held": {"id": seen.held_id, "by": seen.held_by} if seen.held_id is not None else None,
            "last_reload": {
                "at": last.at,
                "reasons": list(last.reasons),
                "outcome": last.outcome,
                "seconds": last.seconds,
            }
            if last
            else None,
            "dns": [
                {"nameserver": n.name, "ok": not n.said, "said": n.said, "seconds": n.seconds}
                for n in seen.nameservers
            ],
            "services": [row.as_json() for row in self.rows],
            "withheld": [
                {
                    "kind": held.kind,
                    "name": held.name,
                    "effect": held.effect,
                    "is_kept": held.is_kept,
                    "is_known": held.is_known,
                    "problems": [problem.as_json() for problem in held.problems],
                }
                for held in seen.withheld
            ],
            "findings": [finding.as_json() for finding in self.findings],
        }


def overview(seen: Seen) -> Overview:
    """Rows, findings and the level that follows from them."""
    findings = sorted(_findings(seen), key=lambda finding: -finding.level)
    rows = tuple(sorted(_rows(seen), key=lambda row: row.name))
    level = max((finding.level for finding in findings), default=StatusLevel.OK)
    if seen.daemon is None and seen.worker is None:
        level = StatusLevel.UNKNOWN
    return Overview(
        level=level,
        summary=_summary(seen, level, findings),
        rows=rows,
        findings=tuple(findings),
        seen=seen,
    )


def _summary(seen: Seen, level: StatusLevel, findings: list[StatusFinding]) -> str:
    services = counted(len(seen.services), "service")
    if level is StatusLevel.UNKNOWN:
        problem = seen.worker_problem or seen.daemon_problem
        return f"neither the daemon nor HAProxy answers: {problem.message if problem else ''}"
    if not findings:
        said = f"{services}, all served" if seen.services else "no service is declared"
        return f"{said}, HAProxy in sync"
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    return f"{findings[0].subject}: {findings[0].message}{more}"


def _rows(seen: Seen) -> Iterator[Row]:
    known = set()
    held = {h.name: h for h in seen.withheld if h.kind == "service"}
    for service in seen.services:
        known.add(service.name)
        why = service.error or service.reason
        if service.rejected and not service.pods:
            why = "cluster DNS names only addresses outside of the cluster's networks"
        if service.name in held and held[service.name].problems:
            why = held[service.name].problems[0].message
        counts = seen.worker.counts.get(service.name, Counts()) if seen.worker else None
        yield Row(
            name=service.name,
            state=service.state,
            pods=service.pods,
            slots=service.slots,
            counts=counts,
            binds=service.binds,
            namespace=service.namespace,
            why=one_line(why),
        )
    for name, change in held.items():
        if name not in known:
            said = change.problems[0].message if change.problems else change.effect
            yield Row(name=name, state=LEFT_OUT, why=one_line(said))


def _findings(seen: Seen) -> Iterator[StatusFinding]:
    yield from _of_processes(seen)
    for held in seen.withheld:
        for problem in held.problems[:1]:
            yield StatusFinding(
                level=StatusLevel.CRITICAL,
                subject=str(held),
                message=f"withheld, {held.effect}: "
                + (f"{problem.field}: " if problem.field else "")
                + problem.message,
                remedy=problem.remedy,
                file=problem.file,
                line=problem.line,
                service=held.name if held.kind == "service" else None,
                is_withheld=True,
            )
    for service in seen.services:
        yield from _of_service(seen, service)
    failed = [nameserver for nameserver in seen.nameservers if nameserver.said]
    for nameserver in failed:
        yield StatusFinding(
            level=StatusLevel.WARNING,
            subject=f"cluster DNS {nameserver.name}",
            message=nameserver.said,
            remedy="HAProxy keeps the servers that it has; see CoreDNS, and the way to it"
            if len(failed) == len(seen.nameservers)
            else "the others are asked meanwhile",
        )


def _of_processes(seen: Seen) -> Iterator[StatusFinding]:
    if seen.worker is None and seen.worker_problem is not None:
        problem = seen.worker_problem
        level = StatusLevel.WARNING if problem.cause is Cause.FORBIDDEN else StatusLevel.CRITICAL
        yield StatusFinding(
            level=level, subject="HAProxy", message=problem.message, remedy=problem.remedy
        )
    if seen.daemon is None and seen.daemon_problem is not None:
        yield StatusFinding(
            level=StatusLevel.WARNING,
            subject="daemon",
            message=seen.daemon_problem.message,
            remedy=seen.daemon_problem.remedy,
        )
    if seen.held_id is not None:
        yield StatusFinding(
            level=StatusLevel.WARNING,
            subject="hold",
            message=f"configuration {seen.held_id} is held, by {one_line(seen.held_by)}: what is "
            "declared does not reach HAProxy",
            remedy="`fc-frontend resume` goes on with what is declared",
        )
    if seen.take_over is not None:
        yield StatusFinding(
            level=StatusLevel.WARNING if seen.in_sync else StatusLevel.CRITICAL,
            subject="take-over",
            message=one_line(seen.take_over.message),
            remedy=seen.take_over.remedy,
        )
    elif seen.worker is not None and not seen.in_sync:
        yield _out_of_sync(seen, seen.worker)


def _out_of_sync(seen: Seen, worker: Worker) -> StatusFinding:
    has = f"HAProxy has {worker.hash}" if worker.hash else "HAProxy's configuration is not ours"
    errors = errors_in(seen.problems)
    if seen.wanted_hash is None and errors:
        first = errors[0]
        return StatusFinding(
            level=StatusLevel.CRITICAL,
            subject="configuration",
            message=f"refused, {has}: {first.message}",
            remedy=first.remedy,
            file=first.file,
            line=first.line,
        )
    remedy = "see the daemon's log (`reload-failed`, `config-refused`)"
    if seen.daemon is None:
        remedy = "see `fc-frontend diff`; start the daemon, or run `fc-frontend apply`"
    return StatusFinding(
        level=StatusLevel.CRITICAL,
        subject="configuration",
        message=f"not in sync: {has}, and {seen.wanted_hash or 'none'} is wanted",
        remedy=remedy,
    )


def _of_service(seen: Seen, service: DaemonService) -> Iterator[StatusFinding]:
    name = service.name
    look = f"`fc-frontend explain {name}`"

    def finding(level: StatusLevel, message: str, remedy: str = "") -> StatusFinding:
        return StatusFinding(
            level=level,
            subject=name,
            message=one_line(message),
            remedy=one_line(remedy),
            service=name,
        )

    counts = seen.worker.counts.get(name) if seen.worker else None
    if seen.held_id is not None and seen.worker is not None and counts is None:
        yield finding(StatusLevel.WARNING, "not in the configuration that is held", look)
        return
    if seen.worker is not None and service.pods and not (counts and counts.up):
        parts = (counts.down, counts.drained, counts.maintenance) if counts else (0, 0, 0)
        states = ", ".join(
            f"{number} {word}"
            for number, word in zip(parts, ("down", "drained", "in maintenance"), strict=True)
            if number
        )
        yield finding(
            StatusLevel.CRITICAL,
            f"{counted(service.pods, 'pod')}, and no server up"
            + (f" ({states})" if states else ""),
            look,
        )
    elif counts and counts.down:
        yield finding(
            StatusLevel.WARNING, f"{counts.down} of {counted(counts.with_pod, 'server')} down", look
        )
    if service.slots_short:
        yield finding(
            StatusLevel.CRITICAL,
            f"{counted(service.pods or 0, 'pod')} in {counted(service.slots, 'slot')}: "
            f"{service.slots_short} without a slot and traffic",
            look,
        )
    elif service.slots_scarce:
        yield finding(
            StatusLevel.WARNING,
            f"{counted(service.pods or 0, 'pod')} in {counted(service.slots, 'slot')}: little "
            "room is left",
            "use slots: auto, or a larger number",
        )
    if service.state == "empty" and not service.rejected:
        yield finding(
            StatusLevel.WARNING,
            f"cluster DNS names no pod: {service.error or 'no addresses'}",
            look,
        )
    elif service.state == "stale" and seen.daemon is not None:
        yield finding(
            StatusLevel.WARNING,
            f"cluster DNS gives no answer: {service.error or 'none yet'}",
            f"the last good answer stays in use; see {look}",
        )
    if service.rejected:
        yield finding(
            StatusLevel.WARNING,
            "cluster DNS names addresses outside of the cluster's networks: "
            + ", ".join(service.rejected[:3]),
            service.remedy or look,
        )
    drained = counts.drained if counts else len(service.drained)
    if drained:
        yield finding(
            StatusLevel.WARNING,
            f"{drained} drained",
            f"to end it: `fc-frontend undrain {name}`",
        )
