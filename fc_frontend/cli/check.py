"""`fc-frontend check`: validate the configuration."""

from __future__ import annotations

import sys
from dataclasses import replace
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
    refused_line,
    say,
    style,
    summary,
)
from fc_frontend.cli.progress import step
from fc_frontend.errors import Problem, Severity, Unavailable, errors_in, warnings_in
from fc_frontend.plurals import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fc_frontend.config.trust import Verdict
    from fc_frontend.plan.model import Plan

_MAX_SHOWN = 20
"""The number of untrusted files that are shown."""

EPILOG = """\
\b
Examples:
  fc-frontend check                     validate /etc/fc-frontend/config.yaml and services.d
  fc-frontend check -c new/config.yaml  validate another configuration before it is installed
  fc-frontend check --strict -o nagios  for monitoring: withheld changes count as well
"""


@click.command("check", epilog=EPILOG)
@common_options
@click.option(
    "--strict",
    "is_strict",
    is_flag=True,
    help="Treat changes that are already withheld as errors.",
)
@format_options("text", "json", "nagios")
def command(config: str, is_strict: bool, shape: str) -> None:
    """Validate the configuration without changing anything.

    Loads settings, services and fragments, generates haproxy.cfg and validates it with `haproxy
    -c`. If the daemon would withhold a change and deploy the others, `check` lists it and exits 1.
    A change that is already withheld is a warning, so that an old mistake does not block new
    changes; with --strict it is an error. `check` needs no network, no daemon and no write access,
    so it can be used in ExecStartPre= and ExecReload=. Services without DNS data are validated
    with 10 slots. Files that users other than root, the daemon's user and trust.users may change
    are listed: they may declare values only.

    \b
    Exit code  text, json                            nagios
    0          good; there may be warnings           good
    1          refused                               warnings
    2          wrong usage                           refused
    3          unknown, e.g. no haproxy found        unknown
    """
    from fc_frontend.haproxy import take_over
    from fc_frontend.pipeline import haproxy_check, prepare_offline

    unknown: tuple[Problem, ...] = ()
    try:
        with step("validating with HAProxy"):
            prepared = prepare_offline(config, haproxy_check())
    except Unavailable as exc:
        unknown = exc.problems
        prepared = prepare_offline(config)
    held = prepared.withheld
    found = (
        replace(problem, severity=Severity.WARNING) if each.is_known and not is_strict else problem
        for each in held
        for problem in each.problems
    )
    problems = tuple(dict.fromkeys((*found, *prepared.problems, *_of_certificates(prepared.plan))))
    settings = prepared.declaration.settings
    problems = (*problems, *take_over.missing_consent(settings, asks_haproxy=False))
    refused = bool(errors_in(problems))
    code = Exit.PROBLEMS if refused else Exit.CANNOT_TELL if unknown else Exit.GOOD
    verdicts = prepared.declaration.verdicts
    services = len(prepared.plan.services)
    fragments = len(prepared.plan.fragments)
    if shape == "json":
        document = {
            "version": 1,
            "status": {0: "good", 1: "refused", 3: "unknown"}[code],
            "config": config,
            "hash": prepared.config.hash if prepared.config else None,
            "services": services,
            "fragments": fragments,
            "problems": [problem.as_json() for problem in (*problems, *unknown)],
            "withheld": [each.as_json() for each in held],
            "base": prepared.base.origin.value,
            "files": [{"path": path, **verdict.as_json()} for path, verdict in verdicts.items()],
        }
        emit(document)
        sys.exit(code)
    if shape == "nagios":
        sys.exit(_nagios(problems, unknown, services))
    if refused:
        say(style(refused_line(problems), "red"), err=True)
    print_problems((*problems, *unknown))
    for each in held:
        what = "already withheld" if each.is_known else "would be withheld"
        say(f"{each.unit}: {what}; {each.effect}", err=True)
    if code is Exit.GOOD:
        slots = prepared.plan.slot_count
        said = f"{counted(services, 'service')}, {counted(slots, 'slot')}"
        said += f", {counted(fragments, 'fragment')}" if fragments else ""
        said += ", accepted by HAProxy"
        if all(verdict.is_trusted for verdict in verdicts.values()):
            said += ", all files are trusted"
        echo_unless_quiet(f"{style('good', 'green')}: {said}")
        if not services and not fragments and not prepared.plan.frontends:
            echo_unless_quiet(f"no service is declared: {_where(config)}")
    elif unknown and not refused:
        say(f"cannot tell: {unknown[0].message}", err=True)
    _tell_levels(verdicts)
    sys.exit(code)


def _of_certificates(plan: Plan) -> tuple[Problem, ...]:
    """Return warnings about certificates, and about hosts without one."""
    if not any(frontend.tls for frontend in plan.frontends):
        return ()
    from fc_frontend.certificates.served import uncovered_problems
    from fc_frontend.haproxy.certificates.bring import Keeper, tls_hosts

    found = Keeper().look(plan.settings, plan.frontends)
    return (*found.problems, *uncovered_problems(found.served, tls_hosts(plan)))


def _tell_levels(verdicts: Mapping[str, Verdict]) -> None:
    """Print the untrusted files, with the reason."""
    untrusted = [(path, each) for path, each in verdicts.items() if not each.is_trusted]
    for path, verdict in untrusted[:_MAX_SHOWN]:
        echo_unless_quiet(f"untrusted: {path}: {verdict.reason}")
    if len(untrusted) > _MAX_SHOWN:
        echo_unless_quiet(f"untrusted: {len(untrusted) - _MAX_SHOWN} more, see --json")


def _where(config: str) -> str:
    from fc_frontend.config.loader import services_directory

    return f"declare one in {config}, or in a file {services_directory(config)}/NAME.yaml"


def _nagios(problems: tuple[Problem, ...], unknown: tuple[Problem, ...], services: int) -> int:
    errors, warnings = errors_in(problems), warnings_in(problems)
    if errors:
        word, code, said = "CRITICAL", 2, summary(problems)
    elif unknown:
        word, code, said = "UNKNOWN", 3, unknown[0].message
    elif warnings:
        more = f" (and {len(warnings) - 1} more)" if len(warnings) > 1 else ""
        word, code, said = "WARNING", 1, f"{warnings[0].message}{more}"
    else:
        word, code, said = "OK", 0, f"{counted(services, 'service')}, accepted by HAProxy"
    figures = f"errors={len(errors)} warnings={len(warnings)}"
    nagios(word, said, figures, [str(problem) for problem in (*errors, *warnings, *unknown)])
    return code
