"""`fc-frontend resolve`: show the current answers of the Kubernetes API and cluster DNS."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable

import click

from fc_frontend.cli import completion
from fc_frontend.cli.common import (
    Exit,
    common_options,
    emit,
    fail,
    format_options,
    print_problems,
    say,
    table,
)
from fc_frontend.cli.progress import is_quiet, step
from fc_frontend.errors import Problem, errors_in
from fc_frontend.plan.model import Answer, Freshness, Kind
from fc_frontend.plurals import counted

_NO_NAMESERVER = Problem(
    "no nameserver is declared, and /etc/resolv.conf has none",
    "set cluster.nameservers to the cluster's DNS, such as 10.0.0.254:53",
)

EPILOG = """\
\b
Examples:
  fc-frontend resolve       query all services
  fc-frontend resolve shop  query one service
"""


@click.command("resolve", epilog=EPILOG)
@common_options
@format_options("text", "json")
@click.argument("services", nargs=-1, metavar="[SERVICE]...", shell_complete=completion.service)
def command(config: str, shape: str, services: tuple[str, ...]) -> None:
    """Query the API or cluster DNS for the declared services and show the answers.

    Exits 1 if a service got no answer or has no pods, or if nameservers say different things of it,
    3 if the settings cannot be read.
    """
    from dataclasses import replace

    from fc_frontend.config.declare import load
    from fc_frontend.discovery.agreement import ask_each
    from fc_frontend.pipeline import resolve

    with step("reading the configuration"):
        declaration = load(config)
    problems = errors_in(declaration.problems)
    known = {spec.name for spec in declaration.services}
    unknown = [name for name in services if name not in known]
    if unknown:
        raise click.UsageError(
            f"no service {', '.join(unknown)} (declared are: {', '.join(sorted(known)) or 'none'})"
        )
    if services:
        chosen = tuple(spec for spec in declaration.services if spec.name in services)
        declaration = replace(declaration, services=chosen)
    cluster = declaration.settings.cluster
    if not cluster.nameservers and not cluster.api:
        fail(problems or [_NO_NAMESERVER], Exit.CANNOT_TELL)
    number = counted(len(declaration.services), "service")
    with step(f"asking about {number}"):
        answers = asyncio.run(resolve(declaration, {}, hold=False))
        by_dns = [spec for spec in declaration.services if answers[spec.name].kind is not Kind.API]
        found = asyncio.run(ask_each(by_dns, cluster))
    differ = [declaration.located(each.problem(name)) for name, each in found.items()]
    problems = (*problems, *differ)
    wrong = {name: answer for name, answer in answers.items() if not _is_good(answer)}
    if shape == "json":
        emit(answers_document(answers, problems))
    else:
        print_problems(problems)
        shown = wrong if is_quiet() else answers
        if shown:
            print_answers(shown)
        elif not is_quiet():
            say("no service is declared")
    sys.exit(Exit.GOOD if not wrong and not problems else Exit.PROBLEMS)


def _is_good(answer: Answer) -> bool:
    return answer.freshness is Freshness.FRESH and bool(answer.endpoints)


def answers_document(answers: dict[str, Answer], problems: Iterable[Problem]) -> dict[str, object]:
    """Return the document that `resolve --json` prints."""
    return {
        "version": 1,
        "services": {
            name: {
                "discovery": answer.kind.value,
                "reason": answer.reason,
                "endpoints": [
                    {"address": endpoint.address, "port": endpoint.port}
                    for endpoint in answer.endpoints
                ],
                "freshness": answer.freshness.value,
                "rejected": list(answer.rejected),
                "error": answer.error,
                "remedy": answer.remedy,
            }
            for name, answer in sorted(answers.items())
        },
        "problems": [problem.as_json() for problem in problems],
    }


def print_answers(answers: dict[str, Answer]) -> None:
    """Print a table of answers."""
    rows = [
        (
            name,
            answer.kind.value,
            # Without an answer, the number of pods is unknown.
            str(len(answer.endpoints)) if answer.freshness is Freshness.FRESH else "?",
            _addresses(answer),
            answer.error or answer.reason,
        )
        for name, answer in sorted(answers.items())
    ]
    header = ("SERVICE", "DISCOVERY", "PODS", "ADDRESSES", "WHY")
    table(header, rows)
    for name, answer in sorted(answers.items()):
        if answer.remedy:
            say(f"{name}: {answer.remedy}")
        if answer.rejected:
            say(
                f"{name}: left out, outside the cluster's networks: "
                f"{', '.join(answer.rejected[:10])}"
            )


def _addresses(answer: Answer) -> str:
    shown = [
        f"{e.address}:{e.port}" if ":" not in e.address else f"[{e.address}]:{e.port}"
        for e in answer.endpoints[:4]
    ]
    more = len(answer.endpoints) - len(shown)
    return ", ".join(shown) + (f" +{more}" if more else "") if shown else "-"
