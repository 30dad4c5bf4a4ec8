"""`fc-frontend apply`: the whole way, once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

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
    user,
)
from fc_frontend.cli.progress import step
from fc_frontend.errors import Problem, Severity, Unavailable, errors_in
from fc_frontend.plurals import counted

if TYPE_CHECKING:
    from fc_frontend.haproxy.consent import Consent
    from fc_frontend.plan.model import Settings


@click.command("apply")
@common_options
@click.option(
    "--force",
    "is_forced",
    is_flag=True,
    help="Try again what failed at a reload and has not changed since.",
)
@click.option(
    "--take-over",
    "takes_over",
    is_flag=True,
    help="Replace a haproxy.cfg that fc-frontend did not write.",
)
@format_options("text", "json")
def command(config: str, is_forced: bool, takes_over: bool, shape: str) -> None:
    """Ask cluster DNS, check, install, reload and confirm, once.

    Does what the daemon does on a change. What fails leaves HAProxy and haproxy.cfg as they were.

    A reload that fails may stop all listeners for 2 seconds. What made one fail is tried again only
    when its text or what blocked it changes, or with --force.

    A haproxy.cfg that fc-frontend did not write, and that has proxies, is replaced only with
    --take-over. That is consent to replace this very text; it is recorded, so that the daemon acts
    on it as well. The text is kept: `fc-frontend history` shows the entry, `rollback` restores it.

    \b
    0  HAProxy has the configuration, or will have it when it is started
    1  refused, or the reload failed, or a former configuration is held (see rollback), or
       haproxy.cfg needs --take-over
    3  cannot tell, e.g. no haproxy found
    """
    from fc_frontend.config.loader import load
    from fc_frontend.haproxy import hold
    from fc_frontend.haproxy.binary import find_binary
    from fc_frontend.haproxy.deploy import Outcome, deploy, forget_refused
    from fc_frontend.pipeline import (
        lost_settings,
        prepare,
        record,
        resolve,
        save_answers,
        with_slots,
    )

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
    given = _take_over(declaration.settings, shape) if takes_over else None
    # HAProxy outlives this command: it must not hold the pipe that our output goes to.
    with step("checking, installing and reloading"):
        deployment = deploy(
            prepared.plan,
            prepared.config,
            resolution,
            located=declaration.located,
            output=os.devnull,
            is_forced=is_forced,
            given=given,
        )
    if deployment.outcome in (Outcome.HELD, Outcome.NEEDS_CONSENT):
        fail(deployment.problems, Exit.PROBLEMS)
    lost = lost_settings(prepared, deployment)
    problems = (*prepared.problems, *deployment.problems, *lost)
    problems += _unless_unavailable(lambda: record(prepared, deployment, ("apply",)))
    if not deployment.ok:
        refuse(problems)
    forget_refused(declaration.settings.haproxy)
    answers = with_slots(prepared.plan, resolution)
    problems += _unless_unavailable(lambda: save_answers(declaration, answers))
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
    replaced = deployment.replaced
    if replaced is not None and replaced.entry is not None:
        told(f"the former haproxy.cfg is kept: fc-frontend rollback {replaced.entry.id}")


def _unless_unavailable(act: Callable[[], None]) -> tuple[Problem, ...]:
    """Do what HAProxy does not depend on; what hindered that, as warnings."""
    try:
        act()
    except Unavailable as exc:
        return tuple(replace(problem, severity=Severity.WARNING) for problem in exc.problems)
    return ()


def _take_over(settings: Settings, shape: str) -> Consent:
    """Show what will be replaced; returns consent to it."""
    from fc_frontend.haproxy import take_over
    from fc_frontend.haproxy.consent import Consent

    try:
        judged = take_over.present(settings)
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)
    if shape == "text" and judged.decision.allowed:
        told("nothing to take over: haproxy.cfg may be replaced without consent")
    elif shape == "text":
        told(f"takes over {judged.path}:")
        for served in judged.found.proxies or judged.worker.proxies:
            told(f"    {served}")
    return Consent(judged.decision.needed, user())
