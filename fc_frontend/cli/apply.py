"""`fc-frontend apply`: the whole way, once."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace

import click

from fc_frontend.cli.common import Exit, config_option, fail, print_problems, style, summary
from fc_frontend.errors import Problem, Severity, Unavailable, errors_in

_HELD = Problem(
    message="an operator holds a former configuration",
    remedy="see fc-frontend history; end it with fc-frontend resume",
)


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
    from fc_frontend.haproxy import history, hold
    from fc_frontend.haproxy.binary import find_binary
    from fc_frontend.haproxy.deploy import Outcome, deploy, forget_refused
    from fc_frontend.pipeline import prepare, record, resolve, save_answers, with_slots

    declaration = load(config)
    if errors_in(declaration.problems):
        click.echo(style(summary(declaration.problems), "red"), err=True)
        fail(declaration.problems, Exit.PROBLEMS)
    if hold.load(declaration.settings.state_directory) is not None:
        fail([_HELD], Exit.PROBLEMS)
    try:
        find_binary(declaration.settings.haproxy.binary)
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)
    resolution = asyncio.run(resolve(declaration))
    prepared = prepare(declaration, resolution)
    if prepared.config is None or not prepared.ok:
        click.echo(style(summary(prepared.problems), "red"), err=True)
        fail(prepared.problems, Exit.PROBLEMS)
    directory = declaration.settings.state_directory
    try:
        with history.exclusive(directory):
            if hold.load(directory) is not None:
                fail([_HELD], Exit.PROBLEMS)
            # HAProxy outlives this command: it must not hold the pipe that our output goes to.
            deployment = deploy(
                prepared.plan,
                prepared.config,
                resolution,
                located=declaration.located,
                output=os.devnull,
            )
    except Unavailable as exc:
        fail(exc.problems, Exit.PROBLEMS)
    if deployment.outcome is not Outcome.IN_SYNC:
        try:
            record(prepared, deployment, ("apply",))
        except Unavailable as exc:
            print_problems(replace(p, severity=Severity.WARNING) for p in exc.problems)
    problems = (*prepared.problems, *deployment.problems)
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
