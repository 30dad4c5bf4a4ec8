"""`fc-frontend rollback`: go back to a configuration that HAProxy had, and hold it."""

from __future__ import annotations

import os
import sys
import time

import click

from fc_frontend.cli.common import Exit, config_option, fail, print_problems, style
from fc_frontend.errors import Problem, Unavailable


@click.command("rollback")
@config_option
@click.argument("number", metavar="[ID]", required=False, type=click.IntRange(min=1))
def command(config: str, number: int | None) -> None:
    """Go back to a configuration that HAProxy had, and hold it.

    ID is one that `fc-frontend history` lists; without it, the one before the one that runs.
    HAProxy judges it first; what fails leaves everything as it was. Until `fc-frontend resume`,
    neither the daemon nor `apply` changes HAProxy, whatever changes in files.

    \b
    0  HAProxy has it
    1  refused, or the reload failed, or there is no such configuration
    3  cannot tell, e.g. no haproxy found
    """
    from fc_frontend.config.loader import load
    from fc_frontend.haproxy import history, hold, runtime
    from fc_frontend.haproxy.binary import find_binary
    from fc_frontend.haproxy.deploy import Outcome, deploy_text

    settings = load(config).settings
    state = settings.state_directory
    try:
        find_binary(settings.haproxy.binary)
        running = runtime.running_hash(settings.haproxy.runtime_socket)
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)
    usable = [entry for entry in history.entries(state) if entry.has_text]
    if number is None:
        usable = usable[: max((i for i, e in enumerate(usable) if e.hash == running), default=None)]
        usable = [entry for entry in usable if entry.hash != running]
    else:
        usable = [entry for entry in usable if entry.id == number]
    text = history.text_of(state, usable[-1]) if usable else None
    if text is None:
        what = f"no configuration {number}" if number else "no configuration before the running one"
        fail(
            (
                Problem(
                    message=f"there is {what} to go back to", remedy="see `fc-frontend history`"
                ),
            ),
            Exit.PROBLEMS,
        )
    entry = usable[-1]
    by = (
        f"{os.environ.get('SUDO_USER') or os.environ.get('USER') or ''} (uid {os.getuid()})".strip()
    )
    before = hold.load(state)
    try:
        # First, so that the daemon does not go forward again at once.
        hold.save(state, hold.Hold(id=entry.id, hash=entry.hash, since=time.time(), by=by))
    except Unavailable as exc:
        fail(exc.problems, Exit.PROBLEMS)
    deployment = deploy_text(settings, text, output=os.devnull)
    if not deployment.ok:
        if before:
            hold.save(state, before)
        else:
            hold.remove(state)
        click.echo(style(f"not gone back to {entry.id}: all is as before", "red"), err=True)
        print_problems(deployment.problems)
        sys.exit(Exit.PROBLEMS)
    print_problems(deployment.problems)
    words = {
        Outcome.IN_SYNC: "HAProxy has it already",
        Outcome.RELOADED: f"reloaded in {deployment.duration:.2f} s",
        Outcome.STARTED: f"HAProxy started in {deployment.duration:.2f} s",
        Outcome.INSTALLED: "installed",
    }
    click.echo(f"{style('good', 'green')}: {entry.id} is held, {words[deployment.outcome]}")
    click.echo("`fc-frontend resume` goes on with what is declared")
