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
    """Keep HAProxy in step with the declared services and with cluster DNS.

    Watches the settings file and services.d, asks cluster DNS, and reloads HAProxy when, and only
    when, haproxy.cfg changes. A change that is refused leaves everything as it was.

    \b
    SIGHUP   reads all files again
    SIGTERM  ends the daemon; HAProxy serves on

    Under systemd use Type=notify; the readiness, reload and watchdog protocols are spoken.
    """
    from fc_frontend.daemon.memory import return_what_is_free

    # Before anything large is read.
    return_what_is_free()
    from fc_frontend.daemon.service import Service
    from fc_frontend.observe.log import configure

    level = log_level or {-1: "warning", 0: "info", 1: "debug"}[volume()]
    log = configure(sys.stderr, level=level, journal="JOURNAL_STREAM" in os.environ)
    service = Service(config, log, os.environ)
    sys.exit(asyncio.run(service.run()))
