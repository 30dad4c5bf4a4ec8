"""`fc-frontend status`: how the frontend is."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from fc_frontend.cli.common import (
    Exit,
    common_options,
    emit,
    fail,
    format_options,
    nagios,
    say,
    style,
    table,
)
from fc_frontend.cli.progress import is_quiet, step
from fc_frontend.errors import Unavailable

if TYPE_CHECKING:
    from fc_frontend.explain.overview import Overview, Row

_COLORS = {"OK": "green", "WARNING": "yellow", "CRITICAL": "red", "UNKNOWN": "yellow"}
_SHOWN = 50


@click.command("status")
@common_options
@format_options("text", "json", "nagios")
def command(config: str, shape: str) -> None:
    """Show how the frontend is: services, servers, withheld changes, the last reload, cluster DNS.

    Asks the daemon, HAProxy and each nameserver. Without the daemon it goes by the files, the
    stored answers of cluster DNS, and HAProxy.

    \b
    0  all is well
    1  warning: answers out of date, little room, no pods, drained, held, no daemon
    2  critical: withheld changes, too few slots, not in sync, pods but no server up, no HAProxy
    3  unknown: neither the daemon nor HAProxy answers
    """
    from fc_frontend.explain.collect import look
    from fc_frontend.explain.overview import overview

    try:
        with step("asking the daemon, HAProxy and cluster DNS"):
            found = overview(look(config))
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)
    if shape == "json":
        emit(found.as_json())
    elif shape == "nagios":
        _nagios(found)
    else:
        if not is_quiet():
            _print(found)
        _print_findings(found)
    sys.exit(found.level)


def _nagios(found: Overview) -> None:
    counts = [row.counts for row in found.rows if row.counts]
    figures = {
        "services": len(found.rows),
        "up": sum(count.up for count in counts),
        "down": sum(count.down for count in counts),
        "drained": sum(count.drained for count in counts),
        "withheld": len(found.seen.withheld),
    }
    performance = " ".join(f"{name}={value}" for name, value in figures.items())
    lines = [
        f"{finding.level.name}: {finding}{f' → {finding.remedy}' if finding.remedy else ''}"
        for finding in found.findings
    ]
    nagios(found.level.name, found.summary, performance, lines)


def _print(found: Overview) -> None:
    level = found.level.name
    say(f"{style(level.lower(), _COLORS[level])}: {found.summary}")
    say()
    for name, said in _about(found):
        say(f"{name:12} {said}")
    if found.rows:
        say()
        header = ("SERVICE", "STATE", "PODS", "SLOTS", "UP", "DOWN", "DRAINED", "BINDS", "WHY")
        table(header, [_cells(row) for row in found.rows])
    if found.findings:
        say()


def _print_findings(found: Overview) -> None:
    for finding in found.findings[:_SHOWN]:
        word = style(finding.level.name.lower(), _COLORS[finding.level.name])
        where = f"{finding.file}:{finding.line}: " if finding.line else ""
        where = where or (f"{finding.file}: " if finding.file else "")
        say(f"{where}{word}: {finding.subject}: {finding.message}")
        if finding.remedy:
            say(f"    → {finding.remedy}")
    if len(found.findings) > _SHOWN:
        say(f"and {len(found.findings) - _SHOWN} more")


def _about(found: Overview) -> list[tuple[str, str]]:
    from fc_frontend.explain.steps import duration

    seen, last = found.seen, found.last_reload
    lines = []
    if seen.worker:
        since = f", since {duration(seen.worker.seconds)}" if seen.worker.seconds else ""
        sync = "in sync" if seen.in_sync else "not in sync"
        lines.append(
            ("HAProxy", f"{seen.worker.version}, {sync} ({seen.worker.hash or 'not ours'}){since}")
        )
    else:
        lines.append(("HAProxy", "does not answer"))
    lines.append(("daemon", f"fc-frontend {seen.daemon.version}" if seen.daemon else "not there"))
    if last:
        when = datetime.fromtimestamp(last.at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        ago = duration(max(0.0, time.time() - last.at))
        more = f"; and {len(last.reasons) - 5} more" if len(last.reasons) > 5 else ""
        why = "; ".join(last.reasons[:5]) + more
        lines.append(
            ("last reload", f"{when} ({ago} ago), {last.outcome} in {last.seconds:.2f} s: {why}")
        )
    for nameserver in seen.nameservers:
        said = nameserver.said or f"answers in {nameserver.seconds * 1000:.0f} ms"
        lines.append(("cluster DNS", f"{nameserver.name}: {said}"))
    return lines


def _cells(row: Row) -> tuple[str, ...]:
    counts = row.counts
    binds = ", ".join(row.binds[:2]) + (f" +{len(row.binds) - 2}" if len(row.binds) > 2 else "")
    return (
        row.name,
        row.state,
        _number(row.pods),
        _number(row.slots),
        _number(counts.up if counts else None),
        _number(counts.down if counts else None),
        _number(counts.drained if counts else None),
        binds or "-",
        row.why,
    )


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)
