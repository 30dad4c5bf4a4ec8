"""`fc-frontend resume`: resume normal deployments."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fc_frontend.cli.common import (
    Exit,
    common_options,
    echo_unless_quiet,
    emit,
    fail,
    format_options,
    settings_in_force,
)
from fc_frontend.cli.progress import step
from fc_frontend.errors import Unavailable

if TYPE_CHECKING:
    from fc_frontend.haproxy.hold import Hold


@click.command("resume")
@common_options
@format_options("text", "json")
def command(config: str, shape: str) -> None:
    """Resume normal deployments after `fc-frontend rollback`.

    The daemon deploys the declared configuration within a second. Without the daemon, run
    `fc-frontend apply`.

    \b
    0  deployments are not paused any more
    3  the pause cannot be removed
    """
    from fc_frontend.haproxy import hold
    from fc_frontend.haproxy.lock import deploying

    settings = settings_in_force(config)
    directory = settings.state_directory
    if hold.load(directory) is None:
        _tell(shape, None, "there is no hold")
        return
    try:
        # A rollback that is in progress sets its hold first.
        patience = settings.haproxy.check_timeout + settings.haproxy.reload_timeout
        with step("waiting for another deployment to end"), deploying(directory, patience):
            held = hold.load(directory)
            hold.remove(directory)
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)
    what = f"entry {held.id}" if held and held.hash else "the running configuration"
    _tell(shape, held, f"the hold of {what} has ended; deployments resume")


def _tell(shape: str, held: Hold | None, said: str) -> None:
    if shape == "json":
        emit({"version": 1, "status": "good", "was_held": held.as_json() if held else None})
    else:
        echo_unless_quiet(said)
