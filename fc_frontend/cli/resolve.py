"""`fc-frontend resolve`: what cluster DNS says now."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable

import click

from fc_frontend.cli.common import Exit, config_option, print_problems, table
from fc_frontend.errors import Problem, errors_in
from fc_frontend.plan.model import Answer, Freshness


@click.command("resolve")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("services", nargs=-1, metavar="[SERVICE]...")
def command(config: str, as_json: bool, services: tuple[str, ...]) -> None:
    """Ask cluster DNS about the declared services, now, and show the answers.

    Exits with 1 if a service got no answer or has no pods, with 3 if the settings cannot be read.
    """
    from dataclasses import replace

    from fc_frontend.config.loader import load
    from fc_frontend.pipeline import resolve

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
    if not declaration.settings.cluster.nameservers:
        print_problems(problems)
        sys.exit(Exit.CANNOT_TELL)
    answers = asyncio.run(resolve(declaration, {}, hold=False))
    if as_json:
        click.echo(json.dumps(_document(answers, problems), indent=2, ensure_ascii=False))
    else:
        print_problems(problems)
        _table(answers)
    is_good = all(
        answer.freshness is Freshness.FRESH and answer.endpoints for answer in answers.values()
    )
    sys.exit(Exit.GOOD if is_good and not problems else Exit.PROBLEMS)


def _document(answers: dict[str, Answer], problems: Iterable[Problem]) -> dict[str, object]:
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


def _table(answers: dict[str, Answer]) -> None:
    rows = [
        (
            name,
            answer.kind.value,
            str(len(answer.endpoints)),
            _addresses(answer),
            answer.error or answer.reason,
        )
        for name, answer in sorted(answers.items())
    ]
    header = ("SERVICE", "DISCOVERY", "PODS", "ADDRESSES", "WHY")
    table(header, rows)
    for name, answer in sorted(answers.items()):
        if answer.remedy:
            click.echo(f"{name}: {answer.remedy}")
        if answer.rejected:
            click.echo(
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
