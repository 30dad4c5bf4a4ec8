"""`fc-frontend apply`: the whole way, once."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace

import click

from fc_frontend.cli.common import Exit, config_option, fail, print_problems, style, summary
from fc_frontend.errors import Severity, Unavailable, errors_in


@click.command("apply")
@config_option
def command(config: str) -> None:
    """Ask cluster DNS, check, install, reload and confirm, once.

    Does what the daemon does on a change. What fails leaves HAProxy and haproxy.cfg as they were.

    \b
    0  HAProxy has the configuration, or will have it when it is started
    1  refused, or the reload failed, or a former configuration is held (see rollback)
    3  cannot tell, e.g. no haproxy found
    """
    from fc_frontend.config.loader import load
    from fc_frontend.haproxy import hold
    from fc_frontend.haproxy.binary import find_binary
    from fc_frontend.haproxy.deploy import Outcome, deploy, forget_refused
    from fc_frontend.pipeline import prepare, record, resolve, save_answers, with_slots

    declaration = load(config)
    if errors_in(declaration.problems):
        click.echo(style(summary(declaration.problems), "red"), err=True)
        fail(declaration.problems, Exit.PROBLEMS)
    try:
        find_binary(declaration.settings.haproxy.binary)
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)
    # Told before cluster DNS is asked; what counts is the look of `deploy`.
    held = hold.load(declaration.settings.state_directory)
    if held is not None:
        fail([hold.problem(held)], Exit.PROBLEMS)
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
    if deployment.outcome is Outcome.HELD:
        fail(deployment.problems, Exit.PROBLEMS)
    problems = (*prepared.problems, *deployment.problems)
    try:
        record(prepared, deployment, ("apply",))
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
