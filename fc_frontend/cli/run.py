"""`fc-frontend run`: the daemon."""

from __future__ import annotations

import asyncio
import os
import sys

import click

from fc_frontend.cli.common import common_options
from fc_frontend.cli.progress import volume


@click.command("run")
@common_options
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="[default: info; with --quiet warning, with --verbose debug]",
)
def command(config: str, log_level: str | None) -> None:
    """Run the daemon: deploy every change of the declared services and of their pods.

    Watches the settings file and services.d, finds pods by cluster DNS or the Kubernetes API, and
    reloads HAProxy only when haproxy.cfg changes. A change that is refused is withheld; its
    service keeps running as before.

    \b
    SIGHUP   read all files again
    SIGTERM  stop the daemon; HAProxy keeps serving

    Under systemd use Type=notify; readiness, reload and watchdog notifications are sent.
    """
    from fc_frontend.daemon.memory import return_what_is_free

    # Call it before anything large is read.
    return_what_is_free()
    from fc_frontend.daemon.service import Service
    from fc_frontend.observe.log import configure

    level = log_level or {-1: "warning", 0: "info", 1: "debug"}[volume()]
    log = configure(sys.stderr, level=level, journal="JOURNAL_STREAM" in os.environ)
    service = Service(config, log, os.environ)
    sys.exit(asyncio.run(service.run()))
