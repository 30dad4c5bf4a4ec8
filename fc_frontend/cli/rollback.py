"""`fc-frontend rollback`: restore an earlier configuration, and hold it."""

from __future__ import annotations

import os

import click

from fc_frontend.cli import completion
from fc_frontend.cli.common import (
    Exit,
    common_options,
    deployed,
    echo_unless_quiet,
    emit,
    fail,
    format_options,
    print_problems,
    refuse,
    settings_in_force,
    style,
    user,
)
from fc_frontend.cli.progress import step
from fc_frontend.errors import Refused, Unavailable

EPILOG = """\
\b
Examples:
  fc-frontend rollback    restore the previous entry and pause deployments
  fc-frontend rollback 0  restore the haproxy.cfg from before fc-frontend
"""


@click.command("rollback", epilog=EPILOG)
@common_options
@format_options("text", "json")
@click.argument(
    "entry_id",
    metavar="[ID]",
    type=click.IntRange(min=0),
    required=False,
    shell_complete=completion.entry,
)
def command(config: str, shape: str, entry_id: int | None) -> None:
    """Restore an earlier haproxy.cfg and pause deployments.

    ID is an entry of `fc-frontend history`; the default is the one before the running
    configuration. HAProxy validates it as usual. Declared changes are not deployed until
    `fc-frontend resume`. HAProxy still follows cluster DNS.

    Entry 0 is the haproxy.cfg from before fc-frontend, with its permissions and owner.

    \b
    0  HAProxy runs it, and deployments are paused
    1  no such entry, HAProxy refuses it, or the reload failed: nothing was changed
    3  unknown, for example because haproxy is not installed: nothing was changed
    """
    from fc_frontend.haproxy.binary import find_binary
    from fc_frontend.haproxy.deploy import Outcome
    from fc_frontend.haproxy.rollback import go_back

    settings = settings_in_force(config)
    try:
        find_binary(settings.haproxy.binary)
        # HAProxy outlives this command, and must not keep the pipe of its output open.
        with step("checking, installing and reloading"):
            entry, deployment = go_back(settings, entry_id, by=user(), output=os.devnull)
    except Refused as exc:
        fail(exc.problems, Exit.PROBLEMS)
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)
    if not deployment.ok:
        refuse(deployment.problems)
    if shape == "json":
        emit({**deployed(deployment, deployment.problems), "id": entry.id})
        return
    print_problems(deployment.problems)
    words = {
        Outcome.IN_SYNC: "HAProxy has this configuration already",
        Outcome.ROUTED: f"changed at runtime in {deployment.duration:.2f} s, without a reload",
        Outcome.RELOADED: f"reloaded in {deployment.duration:.2f} s",
        Outcome.STARTED: f"HAProxy started in {deployment.duration:.2f} s",
        Outcome.INSTALLED: "installed; HAProxy is not running and loads it when it starts",
    }
    echo_unless_quiet(
        f"{style('good', 'green')}: entry {entry.id}: {words[deployment.outcome]} ({entry.hash})"
    )
    echo_unless_quiet("Deployments are paused until: fc-frontend resume")
