"""`fc-frontend history`: what HAProxy had, when, and why."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import click

from fc_frontend.cli.common import config_option, style


@click.command("history")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print a document for scripts.")
def command(config: str, as_json: bool) -> None:
    """List what HAProxy had, when, and why; the newest last.

    `*` marks the configuration that the running worker has. Those with an ID in front of a hash can
    be gone back to with `fc-frontend rollback ID`; what HAProxy refused is listed without.

    \b
    0  listed
    3  cannot tell, e.g. the state directory cannot be read
    """
    from fc_frontend.config.loader import load
    from fc_frontend.errors import Unavailable
    from fc_frontend.haproxy import history, hold, runtime

    settings = load(config).settings
    running = None
    try:
        running = runtime.running_hash(settings.haproxy.runtime_socket)
        said = None if running else "HAProxy has a configuration that is not ours"
    except Unavailable as exc:
        said = f"what HAProxy has cannot be told: {exc.problems[0].message}"
    found = history.entries(settings.state_directory)
    held = hold.load(settings.state_directory)
    if as_json:
        document = {
            "version": 1,
            "running_hash": running,
            "held": held.as_json() if held else None,
            "entries": [entry.as_json() for entry in found],
        }
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    newest = max((e.id for e in found if e.has_text and e.hash == running), default=None)
    for entry in found:
        when = datetime.fromtimestamp(entry.at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        mark = "*" if entry.id == newest else " "
        outcome = f"{entry.outcome:9}"
        outcome = outcome if entry.has_text else style(outcome, "red")
        why = "; ".join(entry.reasons[:3]) + ("; …" if len(entry.reasons) > 3 else "")
        hash_ = entry.hash if entry.has_text else "-" * 16
        click.echo(
            f"{mark}{entry.id:6}  {when}  {outcome}  {hash_}  {entry.services:5} services  {why}"
        )
    if not found:
        click.echo(f"nothing is recorded in {settings.state_directory}")
    if held:
        click.echo(f"{held.id} is held, by {held.by}: `fc-frontend resume` goes on")
    if said:
        click.echo(said, err=True)
