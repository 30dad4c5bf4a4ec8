"""`fc-frontend resume`: what is declared counts again."""

from __future__ import annotations

import click

from fc_frontend.cli.common import Exit, config_option, fail, settings_in_force
from fc_frontend.errors import Unavailable


@click.command("resume")
@config_option
def command(config: str) -> None:
    """End what `fc-frontend rollback` began: what is declared is deployed again.

    The daemon sees to it within a second; without a daemon, use `fc-frontend apply`.

    \b
    0  nothing is held any more
    3  the hold cannot be removed
    """
    from fc_frontend.haproxy import hold
    from fc_frontend.haproxy.lock import deploying

    settings = settings_in_force(config)
    directory = settings.state_directory
    if hold.load(directory) is None:
        click.echo("nothing is held")
        return
    try:
        # Whoever goes back just now gets its hold first.
        with deploying(directory, settings.haproxy.check_timeout + settings.haproxy.reload_timeout):
            held = hold.load(directory)
            hold.remove(directory)
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)
    what = f"entry {held.id}" if held and held.id else "what HAProxy has"
    click.echo(f"{what} is not held any more: what is declared is deployed again")
