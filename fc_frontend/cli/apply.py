"""`fc-frontend apply`: the whole way, once."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

import click

from fc_frontend.cli.common import (
    Exit,
    common_options,
    deployed,
    emit,
    fail,
    format_options,
    print_problems,
    refuse,
    style,
    told,
)
from fc_frontend.cli.progress import step
from fc_frontend.errors import Severity, Unavailable, errors_in
from fc_frontend.plurals import counted


@click.command("apply")
@common_options
@click.option(
    "--force",
    "is_forced",
    is_flag=True,
    help="Try again what failed at a reload and has not changed since.",
)
@format_options("text", "json")
def command(config: str, is_forced: bool, shape: str) -> None:
    """Ask cluster DNS, check, install, reload and confirm, once.

    Does what the daemon does on a change. What fails leaves HAProxy and haproxy.cfg as they were.

    A reload that fails may stop all listeners for 2 seconds. What made one fail is tried again only
    when its text or what blocked it changes, or with --force.

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

    with step("reading what is declared"):
        declaration = load(config)
    if errors_in(declaration.problems):
        refuse(declaration.problems)
    try:
        find_binary(declaration.settings.haproxy.binary)
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)
    # Told before cluster DNS is asked; what counts is the look of `deploy`.
    unseen = hold.unseen(declaration.settings.state_directory)
    if unseen is not None:
        fail([unseen], Exit.CANNOT_TELL)
    held = hold.load(declaration.settings.state_directory)
    if held is not None:
        fail([hold.problem(held)], Exit.PROBLEMS)
    with step(f"asking cluster DNS about {counted(len(declaration.services), 'service')}"):
        resolution = asyncio.run(resolve(declaration))
    with step("rendering what is declared"):
        prepared = prepare(declaration, resolution)
    if prepared.config is None or not prepared.ok:
        refuse(prepared.problems)
    # HAProxy outlives this command: it must not hold the pipe that our output goes to.
    with step("checking, installing and reloading"):
        deployment = deploy(
            prepared.plan,
            prepared.config,
            resolution,
            located=declaration.located,
            output=os.devnull,
            is_forced=is_forced,
        )
    if deployment.outcome is Outcome.HELD:
        fail(deployment.problems, Exit.PROBLEMS)
    problems = (*prepared.problems, *deployment.problems)
    try:
        record(prepared, deployment, ("apply",))
    except Unavailable as exc:
        problems = (*problems, *(replace(p, severity=Severity.WARNING) for p in exc.problems))
    if not deployment.ok:
        refuse(problems)
    forget_refused(declaration.settings.haproxy)
    try:
        save_answers(declaration, with_slots(prepared.plan, resolution))
    except Unavailable as exc:
        problems = (*problems, *(replace(p, severity=Severity.WARNING) for p in exc.problems))
    if shape == "json":
        emit(deployed(deployment, problems))
        return
    print_problems(problems)
    words = {
        Outcome.IN_SYNC: "nothing to do: HAProxy has this configuration",
        Outcome.RELOADED: f"reloaded in {deployment.duration:.2f} s",
        Outcome.STARTED: f"HAProxy started in {deployment.duration:.2f} s",
        Outcome.INSTALLED: "installed; HAProxy does not run, and will have it when it is started",
    }
    told(f"{style('good', 'green')}: {words[deployment.outcome]} ({deployment.hash})")
