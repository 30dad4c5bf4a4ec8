"""Go back to a configuration that HAProxy had before, and hold it.

The daemon deploys nothing while there is a hold, and nobody deploys while this goes on, so no step
of the daemon comes between.  Whatever fails, file and hold are as before.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace

from fc_frontend.errors import Problem, Refused, Severity, Unavailable
from fc_frontend.haproxy import history, hold, install
from fc_frontend.haproxy.deploy import Deployment, Outcome, deploy_text, observe
from fc_frontend.haproxy.history import Entry
from fc_frontend.haproxy.hold import Hold
from fc_frontend.plan.model import Haproxy, Settings
from fc_frontend.render.render import RenderedConfig, config_hash


def present_hash(haproxy: Haproxy) -> str | None:
    """The hash that the running worker has; else the one that it will be started with."""
    running = observe(haproxy).hash
    if running is not None:
        return running
    installed = install.read(haproxy.config_file)
    return config_hash(installed.decode("utf-8", "replace")) if installed else None


def present(entries: Iterable[Entry], digest: str | None, held: Hold | None) -> Entry | None:
    """The entry that HAProxy has now: the one that is held, else the newest one with this hash."""
    same = [entry for entry in entries if entry.accepted and entry.hash == digest]
    chosen = [entry for entry in same if held is not None and entry.id == held.id]
    return next(reversed(chosen or same), None)


def choice(
    entries: tuple[Entry, ...], digest: str | None, held: Hold | None, wanted: int | None
) -> Entry:
    """The entry to go back to: `wanted`, else the accepted one before what HAProxy has now.

    Raises `Refused` if there is none.
    """
    if wanted is not None:
        for entry in entries:
            if entry.id == wanted:
                return entry
        raise _none(f"there is no entry {wanted} in the history")
    now = present(entries, digest, held)
    for entry in reversed(entries):
        is_before = now is None or entry.id < now.id
        if entry.accepted and is_before and entry.hash != digest:
            return entry
    raise _none("the history has nothing from before what HAProxy has now")


def go_back(
    settings: Settings, wanted: int | None, *, by: str, output: str | None
) -> tuple[Entry, Deployment]:
    """Make HAProxy have a former configuration, and hold it; which one, and how that went.

    Raises `Refused` if there is no such one, and `Unavailable`.
    """
    directory = settings.state_directory
    with history.exclusive(directory):
        before = hold.load(directory)
        raw = install.read(hold.path(directory)) if before is not None else None
        known = history.entries(directory)
        entry = choice(known, present_hash(settings.haproxy), before, wanted)
        config = RenderedConfig(history.text(directory, entry), entry.hash, ())

        def set_hold() -> None:
            hold.save(directory, Hold(id=entry.id, hash=entry.hash, since=time.time(), by=by))

        deployment = None
        try:
            deployment = deploy_text(settings, config, output=output, first=set_hold)
        finally:
            if deployment is None or not deployment.ok:
                install.restore(hold.path(directory), raw)
    if deployment.outcome is not Outcome.IN_SYNC:
        done = replace(
            entry,
            at=time.time(),
            outcome=deployment.outcome.value,
            reasons=(f"rollback to {entry.id}",),
            seconds=round(deployment.duration, 3),
        )
        try:
            history.record(directory, done, config.text)
        except Unavailable as exc:
            said = (replace(problem, severity=Severity.WARNING) for problem in exc.problems)
            deployment = replace(deployment, problems=(*deployment.problems, *said))
    return entry, deployment


def _none(message: str) -> Refused:
    return Refused(Problem(message=message, remedy="see what there is: fc-frontend history"))
