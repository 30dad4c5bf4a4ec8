"""`fc-frontend resume`: end the hold."""

from __future__ import annotations

import click

from fc_frontend.cli.common import Exit, config_option, fail
from fc_frontend.errors import Unavailable


@click.command("resume")
@config_option
def command(config: str) -> None:
    """End the hold of `rollback`: go on with what is declared.

    The daemon sees it within a second. Without a daemon, `fc-frontend apply` does the rest.

    \b
    0  nothing is held any more
    1  the hold cannot be ended
    """
    from fc_frontend.config.loader import load
    from fc_frontend.haproxy import hold

    state = load(config).settings.state_directory
    held = hold.load(state)
    try:
        hold.remove(state)
    except Unavailable as exc:
        fail(exc.problems, Exit.PROBLEMS)
    if held is None:
        click.echo("nothing was held")
    else:
        click.echo(f"{held.id} is not held any more: the daemon, or `fc-frontend apply`, goes on")
