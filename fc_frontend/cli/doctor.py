"""`fc-frontend doctor`: check this host's prerequisites"""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

import click

from fc_frontend.cli.common import (
    Exit,
    common_options,
    echo_unless_quiet,
    emit,
    format_options,
    nagios,
    print_problems,
    say,
    style,
)
from fc_frontend.cli.progress import is_quiet, step
from fc_frontend.doctor.findings import Finding, Group, Result, worst
from fc_frontend.errors import Problem, errors_in
from fc_frontend.plurals import counted
from fc_frontend.text import one_line

if TYPE_CHECKING:
    from fc_frontend.config.declare import Declaration
    from fc_frontend.doctor.examine import Probe

_COLORS = {
    Result.OK: "green",
    Result.WARNING: "yellow",
    Result.UNKNOWN: "magenta",
    Result.PROBLEM: "red",
}
_EXITS = {Result.PROBLEM: Exit.PROBLEMS, Result.UNKNOWN: Exit.CANNOT_TELL}
_NAGIOS = {
    Result.OK: ("OK", 0),
    Result.WARNING: ("WARNING", 1),
    Result.PROBLEM: ("CRITICAL", 2),
    Result.UNKNOWN: ("UNKNOWN", 3),
}

EPILOG = """\
\b
Examples:
  fc-frontend doctor  check this host's prerequisites
"""


@click.command("doctor", epilog=EPILOG)
@common_options
@click.option(
    "--kubeconfig",
    metavar="PATH",
    type=click.Path(readable=False),
    help="Check the API server and its nodes as well. The content of the file is never shown.",
)
@format_options("text", "json", "nagios")
def command(config: str, kubeconfig: str | None, shape: str) -> None:
    """Check this host's prerequisites.

    Checks all of this at once, within 15 seconds, and changes nothing:

    \b
    network         overlaps of the cluster's networks with this host's, routes to them,
                    rules of nftables and iptables that take connections to binds
    cluster DNS     each nameserver over UDP and TCP, response time, sizes, software,
                    kinds of record, the names of declared services
    HAProxy         version and end of life, features, sockets, binds, low ports,
                    file descriptors
    files, clock    write permissions of this user, who else may change declared files,
                    the time
    Kubernetes API  with cluster.api or --kubeconfig: the API server, nodes, the cluster's
                    networks, credentials; with cluster.api also the daemon's rights, the
                    declared services, and what serves them while the daemon is gone

    Run it as the user of fc-frontend, because it checks the permissions of the user who runs it.
    Only root may read the rules of nftables and iptables.
    Each finding that is not ok has a fix.

    \b
    Exit code  text, json                            nagios
    0          good; there may be warnings           good
    1          problems                              warnings
    2          wrong usage                           problems
    3          no problem, but something unknown     something unknown
    """
    from fc_frontend.doctor.examine import examine, probes
    from fc_frontend.pipeline import prepare_offline

    with step("reading and rendering the configuration"):
        prepared = prepare_offline(config)
    withheld = (problem for each in prepared.withheld for problem in each.problems)
    errors = tuple(dict.fromkeys(errors_in((*withheld, *prepared.problems))))
    if unread := _unread(prepared.declaration, errors):
        # Otherwise, this VM would be checked against defaults that were not declared.
        if shape == "nagios":
            nagios("UNKNOWN", unread[0].message)
        elif shape == "json":
            settings = Group("settings")
            _json(config, [settings.unknown("settings", e.message, e.remedy) for e in unread])
        else:
            print_problems(unread)
        sys.exit(Exit.CANNOT_TELL)
    every = probes(
        prepared.plan,
        prepared.config.text if prepared.config else None,
        verdicts=prepared.declaration.verdicts,
        kubeconfig=kubeconfig,
    )
    with step("checking this host") as looking:

        def seen(done: int, under_way: tuple[Probe, ...]) -> None:
            if under_way:
                total, first = done + len(under_way), under_way[0]
                looking.say(f"{done} of {total} done; now: {first.group} {first.check}")

        found = list(examine(every, told=seen))
        looking.say("checking this host")
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        found.insert(
            0,
            Group("settings").problem(
                "declaration", f"{errors[0].message}{more}", "`fc-frontend check` says all of it"
            ),
        )
    if not prepared.declaration.settings.cluster.nameservers:
        found.append(
            Group("cluster DNS").problem(
                "nameservers",
                "none is declared, and /etc/resolv.conf has none",
                "set cluster.nameservers to the cluster's DNS, such as 10.0.0.254:53",
            )
        )
    # A probe may return findings of two groups.
    found.sort(key=lambda finding: _order(finding.group))
    if shape == "json":
        _json(config, found)
    elif shape == "nagios":
        sys.exit(_nagios(found))
    else:
        print_findings(found)
    sys.exit(_EXITS.get(worst(found), Exit.GOOD))


def _unread(declaration: Declaration, errors: tuple[Problem, ...]) -> tuple[Problem, ...]:
    """Return the errors because of which the settings are not the declared ones."""
    from fc_frontend.plan.checks import settings_problems

    of_read = {declaration.located(each) for each in settings_problems(declaration.settings)}
    return tuple(
        error
        for error in errors
        if error.file == declaration.settings_file
        and error.service is None
        and replace(error, unit=None) not in of_read
    )


def _order(group: str) -> int:
    groups = ("settings", "network", "cluster DNS", "HAProxy", "files", "clock", "Kubernetes API")
    return groups.index(group) if group in groups else len(groups)


def _json(config: str, found: list[Finding]) -> None:
    document: dict[str, object] = {
        "version": 1,
        "status": worst(found).value,
        "config": config,
        "findings": [finding.as_json() for finding in found],
    }
    emit(document)


def print_findings(found: list[Finding]) -> None:
    """Print a table of findings."""
    words = max(len(result) for result in Result)
    checks = max(len(one_line(finding.check)) for finding in found)
    shown = [f for f in found if f.result is not Result.OK] if is_quiet() else found
    for group, findings in groupby(shown, key=lambda finding: finding.group):
        say(style(group))
        for finding in findings:
            word = style(finding.result.value.ljust(words), _COLORS[finding.result])
            check = one_line(finding.check).ljust(checks)
            say(f"  {word}  {check}  {one_line(finding.message)}")
            if finding.remedy:
                say(f"  {'':{words}}  → {one_line(finding.remedy)}")
    echo_unless_quiet(_summary(found))


def _count(found: list[Finding], result: Result) -> int:
    return sum(finding.result is result for finding in found)


def _summary(found: list[Finding]) -> str:
    counts = {result: _count(found, result) for result in Result}
    names = {
        Result.PROBLEM: ("problem", "problems"),
        Result.UNKNOWN: ("unknown", "unknown"),
        Result.WARNING: ("warning", "warnings"),
        Result.OK: ("ok", "ok"),
    }
    result = worst(found)
    verdict = {
        Result.OK: "ok",
        Result.WARNING: "ok, with warnings",
        Result.UNKNOWN: "unknown",
        Result.PROBLEM: "not ready",
    }[result]
    said = ", ".join(counted(counts[r], *forms) for r, forms in names.items() if counts[r])
    return f"{style(verdict, _COLORS[result])}: {said}"


def _nagios(found: list[Finding]) -> int:
    word, code = _NAGIOS[worst(found)]
    order = [Result.PROBLEM, Result.UNKNOWN, Result.WARNING]
    wrong = sorted((f for f in found if f.result in order), key=lambda f: order.index(f.result))
    said = counted(len(found), "check")
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        said = f"{wrong[0].check}: {wrong[0].message}{more}"
    figures = (
        f"problems={_count(found, Result.PROBLEM)} warnings={_count(found, Result.WARNING)} "
        f"unknown={_count(found, Result.UNKNOWN)}"
    )
    lines = [
        f"{finding.result}: {finding.group}: {finding.check}: {finding.message}"
        f"{f' → {finding.remedy}' if finding.remedy else ''}"
        for finding in wrong
    ]
    nagios(word, said, figures, lines)
    return code
