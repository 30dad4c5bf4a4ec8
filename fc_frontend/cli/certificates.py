"""`fc-frontend certificates`: bring renewed certificates to HAProxy, or list them."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from fc_frontend.cli.common import (
    Exit,
    common_options,
    echo_unless_quiet,
    emit,
    fail,
    format_options,
    print_problems,
    table,
)
from fc_frontend.cli.progress import step
from fc_frontend.errors import Unavailable
from fc_frontend.plurals import counted

if TYPE_CHECKING:
    from fc_frontend.haproxy.certificates.bring import Brought
    from fc_frontend.plan.model import Settings

EPILOG = """\
\b
Examples:
  fc-frontend certificates sync    in a deploy hook of an ACME client, as root
  fc-frontend certificates list    names and ends of all certificates
"""


@click.command("certificates", epilog=EPILOG)
@common_options
@format_options("text", "json")
@click.argument("action", type=click.Choice(["sync", "list"]))
def command(config: str, shape: str, action: str) -> None:
    """Bring the certificates of `tls.certificates` to HAProxy (sync), or list them (list).

    `sync` copies each complete pair of certificate and key to the state directory and swaps it in
    the running HAProxy, without a reload. The daemon does so by itself for all files that it may
    read; run `sync` as root for those that only root may read. An incomplete or unusable pair is
    reported, and the former one keeps being served.

    \b
    0  done; there may be warnings
    1  a certificate cannot be used
    3  HAProxy or the state directory cannot be reached
    """
    from fc_frontend.certificates.served import uncovered_problems
    from fc_frontend.haproxy.certificates.bring import Keeper, tls_hosts
    from fc_frontend.haproxy.lock import deploying
    from fc_frontend.pipeline import prepare_offline

    plan = prepare_offline(config).plan
    settings, keeper = plan.settings, Keeper()
    try:
        if action == "list":
            brought = keeper.look(settings, plan.frontends)
        else:
            patience = settings.haproxy.check_timeout + settings.haproxy.reload_timeout
            with (
                step("bringing certificates to HAProxy"),
                deploying(settings.state_directory, patience),
            ):
                brought = keeper.bring(settings, plan.frontends)
                _reload(settings, brought)
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)
    uncovered = uncovered_problems(brought.served, tls_hosts(plan))
    brought = replace(brought, problems=(*brought.problems, *uncovered))
    print_problems(brought.problems)
    _show(shape, brought, is_sync=action == "sync")
    sys.exit(Exit.PROBLEMS if brought.failed else Exit.GOOD)


def _reload(settings: Settings, brought: Brought) -> None:
    """Reload HAProxy if certificates are too large to be swapped.  Raises `Unavailable`."""
    from fc_frontend.haproxy.deploy import reload_again

    if brought.unswapped:
        deployment = reload_again(settings, output=None)
        if not deployment.ok:
            raise Unavailable(*deployment.problems)
        echo_unless_quiet(f"reloaded: too large to be swapped: {', '.join(brought.unswapped)}")


def _show(shape: str, brought: Brought, *, is_sync: bool) -> None:
    if shape == "json":
        emit(
            {
                "version": 1,
                "status": "good",
                "certificates": [each.as_json() for each in brought.served],
                "swapped": list(brought.swapped),
                "problems": [each.as_json() for each in brought.problems],
            }
        )
    elif is_sync:
        count = counted(len(brought.served), "certificate")
        echo_unless_quiet(f"{count}, {len(brought.swapped)} swapped")
    elif brought.served:
        rows = [
            (each.frontend, each.ends_on, ", ".join(each.certificate.names), each.path)
            for each in brought.served
        ]
        table(("FRONTEND", "ENDS", "NAMES", "FILE"), rows)
    else:
        echo_unless_quiet("there is no certificate")
