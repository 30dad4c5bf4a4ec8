"""`fc-frontend status`: show the status of the frontend."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
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
from fc_frontend.errors import Problem, Unavailable
from fc_frontend.plurals import counted

if TYPE_CHECKING:
    from fc_frontend.explain.overview import Overview, Row
    from fc_frontend.plan.cluster_health import ClusterHealth

_COLORS = {"OK": "green", "WARNING": "yellow", "CRITICAL": "red", "UNKNOWN": "yellow"}
_SHOWN = 50
_MOST_FRONTENDS = 20
_WATCH_EVERY = 2.0
"""Seconds between two refreshes of --watch."""
_NARROWEST = 40
"""The width in columns below which tables are not made narrower."""
_CODES = {"OK": Exit.GOOD, "WARNING": Exit.PROBLEMS, "CRITICAL": Exit.PROBLEMS}

EPILOG = """\
\b
Examples:
  fc-frontend status                  overall status, most urgent first
  fc-frontend status -o wide --watch  all columns, refreshed every 2 s
  fc-frontend status -o json          for scripts
  fc-frontend status -o nagios        for Nagios, Icinga and Sensu
"""


@click.command("status", epilog=EPILOG)
@common_options
@click.option("-w", "--watch", "is_watching", is_flag=True, help="Refresh every 2 s.")
@format_options("table", "wide", "json", "nagios")
def command(config: str, is_watching: bool, shape: str) -> None:
    """Show the overall status: HAProxy, services, withheld changes, the last reload, the cluster.

    Queries the daemon, HAProxy, each nameserver and, with cluster.api, the API server for its
    readiness and its nodes. Without the daemon it uses the files, the stored answers of cluster
    DNS, and HAProxy. The most urgent comes first: HAProxy down, services that are down, degraded
    services, withheld changes.

    \b
    The state of a service is the first of these that applies:
    unknown    HAProxy does not answer, or cluster DNS never answered
    down       no server is up
    empty      it has no pods
    degraded   some servers are down, or some pods get no traffic
    stale      cluster DNS does not answer; the last answer stays in use
    withheld   the declared change is not deployed; it runs as before
    ok         all servers are up

    \b
    Exit code  table, wide, json, yaml               nagios
    0          good                                  good
    1          problems                              warning
    2          wrong usage                           critical
    3          neither the daemon nor HAProxy answers
    """
    while True:
        found = _found(config)
        if is_watching and sys.stdout.isatty():
            click.clear()
        if shape == "json":
            emit(found.as_json())
        elif shape == "nagios":
            print_nagios(found)
        else:
            if not is_quiet():
                print_status(found, is_wide=shape == "wide")
            print_findings(found)
        if not is_watching:
            break
        time.sleep(_WATCH_EVERY)
    is_nagios = shape == "nagios"
    sys.exit(found.level if is_nagios else _CODES.get(found.level.name, Exit.CANNOT_TELL))


def _found(config: str) -> Overview:
    from fc_frontend.explain.collect import look
    from fc_frontend.explain.overview import overview

    try:
        with step("querying the daemon, HAProxy and cluster DNS"):
            return overview(look(config))
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)


def print_nagios(found: Overview) -> None:
    """Print the status as a Nagios plugin does: one line with performance data, then details."""
    counts = [row.counts for row in found.rows if row.counts]
    from fc_frontend.model.service_state import ServiceState

    states = [row.state for row in found.rows]
    figures = {
        "services": len(found.rows),
        **{f"services_{state}": states.count(state) for state in ServiceState},
        "up": sum(count.up for count in counts),
        "down": sum(count.down for count in counts),
        "drained": sum(count.drained for count in counts),
        "withheld": len(found.seen.withheld),
    }
    cluster = found.seen.cluster
    if cluster is not None and not isinstance(cluster, Problem) and cluster.nodes is not None:
        figures["nodes"] = len(cluster.nodes)
        figures["nodes_ready"] = len(cluster.ready_nodes)
    performance = " ".join(f"{name}={value}" for name, value in figures.items())
    lines = [
        f"{finding.level.name}: {finding}{f' → {finding.remedy}' if finding.remedy else ''}"
        for finding in found.findings
    ]
    nagios(found.level.name, found.summary, performance, lines)


def print_status(found: Overview, *, is_wide: bool) -> None:
    """Print the summary and a table of services."""
    level = found.level.name
    say(f"{style(level.lower(), _COLORS[level])}: {found.summary}")
    say()
    about = _about(found)
    width = max(12, *(len(name) for name, _ in about))
    for name, said in about:
        say(f"{name:{width}} {said}")
    if found.rows and is_wide:
        say()
        header = ("SERVICE", "NAMESPACE", "STATE", "PODS", "SLOTS", "UP", "DOWN", "DRAINED")
        table((*header, "BINDS", "SOURCE", "WHY"), [_wide_cells(row) for row in found.rows])
    elif found.rows:
        say()
        _narrow_table(found.rows)
    if found.findings:
        say()


def _narrow_table(rows: Sequence[Row]) -> None:
    """Print one line per service that fits the terminal; ports are never cut."""
    header = ("SERVICE", "STATE", "UP", "PODS", "BINDS")
    cells = [_cells(row) for row in rows]
    widths = [max(len(each[i]) for each in (header, *cells)) for i in range(len(header) - 1)]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    room = max(_NARROWEST, width) - sum(widths) - 2 * len(widths)
    for row, each in zip((None, *rows), (header, *cells), strict=True):
        *first, binds = each
        line = "  ".join(cell.ljust(size) for cell, size in zip(first, widths, strict=True))
        shown = binds if row is None else _binds(row.binds, room)
        say(f"{line}  {shown}".rstrip())


def _binds(binds: Sequence[str], room: int) -> str:
    """Return as many binds as fit into `room` columns, and the number of further ones."""
    shown: list[str] = []
    for number, bind in enumerate(binds):
        left = len(binds) - number - 1
        more = f" +{left}" if left else ""
        if shown and len(", ".join((*shown, bind))) + len(more) > room:
            return f"{', '.join(shown)} +{left + 1}"
        shown.append(_shortened(bind, room - len(more)))
    return ", ".join(shown) or "-"


def _shortened(bind: str, room: int) -> str:
    """Shorten a bind to `room` columns: its address is cut in the middle, its port never."""
    if len(bind) <= room:
        return bind
    host, colon, port = bind.rpartition(":")
    keep = max(3, room - len(colon + port) - 1)
    head = keep - keep // 2
    return f"{host[:head]}…{host[len(host) - keep // 2 :]}{colon}{port}"


def print_findings(found: Overview) -> None:
    """Print the findings, most urgent first."""
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
        since = f" for {duration(seen.worker.seconds)}" if seen.worker.seconds else ""
        sync = "in sync" if seen.in_sync else "not in sync"
        lines.append(
            ("HAProxy", f"{seen.worker.version}, {sync}{since} ({seen.worker.hash or 'not ours'})")
        )
    else:
        words = {
            "stopped": "not running",
            "running": "runs; this user has no access to its socket",
        }
        lines.append(("HAProxy", words.get(seen.haproxy.value, "does not answer")))
    lines.append(("daemon", f"fc-frontend {seen.daemon.version}" if seen.daemon else "not running"))
    if last:
        when = datetime.fromtimestamp(last.at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        ago = duration(max(0.0, time.time() - last.at))
        more = f"; and {len(last.reasons) - 5} more" if len(last.reasons) > 5 else ""
        why = "; ".join(last.reasons[:5]) + more
        lines.append(
            ("last reload", f"{when} ({ago} ago), {last.outcome} in {last.seconds:.2f} s: {why}")
        )
    if seen.daemon and (api := seen.daemon.api):
        heard = "never heard" if api.age is None else f"last heard {duration(api.age)} ago"
        state = "watched" if api.is_current else f"not watched: {api.failure or 'no answer yet'}"
        left = None if api.expires is None else max(0.0, api.expires - time.time())
        valid = "" if left is None else f", credentials valid for {duration(left)}"
        lines.append(("Kubernetes API", f"{state}, {heard}{valid}"))
    lines += _cluster(seen.cluster)
    if seen.daemon and (balancers := seen.daemon.load_balancers):
        writer = "this frontend" if balancers.is_leader else balancers.holder or "nobody yet"
        with_address = sum(bool(each.addresses) for each in balancers.services)
        said = f"{with_address} of {len(balancers.services)} Services have an address"
        lines.append(("LoadBalancer", f"{said}; {writer} writes their status"))
    for frontend in seen.daemon.frontends[:_MOST_FRONTENDS] if seen.daemon else ():
        routes = counted(frontend.route_count, "route")
        services = counted(len(frontend.services), "service")
        tls = " (TLS)" if frontend.has_tls else ""
        said = f"{frontend.name}, {', '.join(frontend.binds)}{tls}: {routes} to {services}"
        lines.append(("frontend", said))
    if seen.daemon and (certificates := seen.daemon.certificates):
        first = min(certificates, key=lambda each: each.certificate.not_after)
        name = next(iter(first.certificate.names), first.path)
        ends = f"the first to end is {name} on {first.ends_on}"
        lines.append(("certificates", f"{len(certificates)}, {ends}"))
    for nameserver in seen.nameservers:
        said = nameserver.said or f"answers in {nameserver.seconds * 1000:.0f} ms"
        lines.append(("cluster DNS", f"{nameserver.name}: {said}"))
    return lines


def _cluster(cluster: ClusterHealth | Problem | None) -> list[tuple[str, str]]:
    """Return the basic health of the cluster (`kubectl cluster-info`, `kubectl get nodes`)."""
    from fc_frontend.explain.overview import unready_reason

    if cluster is None:
        return []
    if isinstance(cluster, Problem):
        return [("API server", f"not asked: {cluster.message}")]
    state = "is ready" if cluster.is_ready else "answers; /readyz may not be asked (403)"
    lines = [("API server", unready_reason(cluster) or f"{cluster.server} {state}")]
    if cluster.nodes is not None:
        lines.append(("nodes", f"{len(cluster.ready_nodes)} of {len(cluster.nodes)} ready"))
    elif cluster.ready.status is not None:
        reason = cluster.listed.status or cluster.listed.said
        lines.append(("nodes", f"cannot be listed ({reason})"))
    return lines


def _cells(row: Row) -> tuple[str, ...]:
    counts = row.counts
    up = "-" if counts is None else str(counts.up)
    if counts is not None and counts.with_pod != counts.up:
        up = f"{counts.up}/{counts.with_pod}"
    return row.name, row.state.value, up, _number(row.pods), ""


def _wide_cells(row: Row) -> tuple[str, ...]:
    counts = row.counts
    return (
        row.name,
        row.namespace or "-",
        row.state.value,
        _number(row.pods),
        _number(row.slots),
        _number(counts.up if counts else None),
        _number(counts.down if counts else None),
        _number(counts.drained if counts else None),
        ", ".join(row.binds) or "-",
        row.source or "-",
        row.why,
    )


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)
