"""`fc-frontend apply`: the whole way, once."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace

import click

from fc_frontend.cli.common import Exit, config_option, fail, print_problems, style, summary
from fc_frontend.errors import Problem, Severity, Unavailable, errors_in


@click.command("apply")
@config_option
def command(config: str) -> None:
    """Ask cluster DNS, check, install, reload and confirm, once.

    Does what the daemon does on a change. What fails leaves HAProxy and haproxy.cfg as they were.

    \b
    0  HAProxy has the configuration, or will have it when it is started
    1  refused, or the reload failed
    3  cannot tell, e.g. no haproxy found
    """
    import time

    from fc_frontend.config.loader import load
    from fc_frontend.haproxy import history, hold
    from fc_frontend.haproxy.binary import find_binary
    from fc_frontend.haproxy.deploy import Outcome, deploy, forget_refused
    from fc_frontend.pipeline import prepare, resolve, save_answers, with_slots

    declaration = load(config)
    if errors_in(declaration.problems):
        click.echo(style(summary(declaration.problems), "red"), err=True)
        fail(declaration.problems, Exit.PROBLEMS)
    try:
        find_binary(declaration.settings.haproxy.binary)
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)
    state = declaration.settings.state_directory
    held = hold.load(state)
    if held is not None:
        problem = Problem(
            message=f"configuration {held.id} is held since it was gone back to, by {held.by}",
            remedy="run `fc-frontend resume` to go on with what is declared",
        )
        fail((problem,), Exit.PROBLEMS)
    resolution = asyncio.run(resolve(declaration))
    prepared = prepare(declaration, resolution)
    if prepared.config is None or not prepared.ok:
        click.echo(style(summary(prepared.problems), "red"), err=True)
        fail(prepared.problems, Exit.PROBLEMS)
    # HAProxy outlives this command: it must not hold the pipe that our output goes to.
    deployment = deploy(
        prepared.plan,
        prepared.config,
        resolution,
        located=declaration.located,
        output=os.devnull,
    )
    problems = (*prepared.problems, *deployment.problems)
    if deployment.outcome is not Outcome.IN_SYNC:
        try:
            history.record(
                state,
                at=time.time(),
                hash=deployment.hash,
                outcome=deployment.outcome.value,
                reasons=["apply"],
                services=len(prepared.plan.services),
                slots=prepared.plan.slot_count,
                seconds=deployment.duration,
                text=prepared.config.text if deployment.ok else None,
            )
        except Unavailable as exc:
            problems = (*problems, *(replace(p, severity=Severity.WARNING) for p in exc.problems))
    if not deployment.ok:
        click.echo(style(summary(problems), "red"), err=True)
        print_problems(problems)
        sys.exit(Exit.PROBLEMS)
    print_problems(problems)
    forget_refused(declaration.settings.haproxy)
    try:
        save_answers(declaration, with_slots(prepared.plan, resolution))
    except Unavailable as exc:
        print_problems(exc.problems)
    words = {
        Outcome.IN_SYNC: "nothing to do: HAProxy has this configuration",
        Outcome.RELOADED: f"reloaded in {deployment.duration:.2f} s",
        Outcome.STARTED: f"HAProxy started in {deployment.duration:.2f} s",
        Outcome.INSTALLED: "installed",
    }
    click.echo(f"{style('good', 'green')}: {words[deployment.outcome]} ({deployment.hash})")
