"""`fc-frontend run`: the daemon."""

from __future__ import annotations

import asyncio
import os
import sys

import click

from fc_frontend.cli.common import config_option


@click.command("run")
@config_option
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
)
def command(config: str, log_level: str) -> None:
    """Keep HAProxy in step with the declared services and with cluster DNS.

    Watches the settings file and services.d, asks cluster DNS, and reloads HAProxy when, and only
    when, haproxy.cfg changes. A change that is refused leaves everything as it was.

    \b
    SIGHUP   reads all files again
    SIGTERM  ends the daemon; HAProxy serves on

    Under systemd use Type=notify; the readiness, reload and watchdog protocols are spoken.
    """
    from fc_frontend.daemon.service import Service
    from fc_frontend.observe.log import configure

    log = configure(sys.stderr, level=log_level, journal="JOURNAL_STREAM" in os.environ)
    service = Service(config, log, os.environ)
    sys.exit(asyncio.run(service.run()))
