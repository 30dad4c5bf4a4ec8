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
from fc_frontend.haproxy.lock import deploying
from fc_frontend.plan.model import Haproxy, Settings
from fc_frontend.render.config import Config, config_hash


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
    raise _none(
        "there is nothing to go back to: the history has nothing from before what HAProxy has now"
    )


def go_back(
    settings: Settings, wanted: int | None, *, by: str, output: str | None
) -> tuple[Entry, Deployment]:
    """Make HAProxy have a former configuration, and hold it; which one, and how that went.

    Raises `Refused` if there is no such one, and `Unavailable`.
    """
    directory = settings.state_directory
    with deploying(directory, _patience(settings.haproxy)) as unlocked:
        before = hold.load(directory)
        raw = install.read(hold.path(directory)) if before is not None else None
        known = history.entries(directory)
        entry = choice(known, present_hash(settings.haproxy), before, wanted)
        config = Config(history.text(directory, entry), entry.hash)

        def set_hold() -> None:
            hold.save(directory, Hold(id=entry.id, hash=entry.hash, since=time.time(), by=by))

        deployment = None
        try:
            deployment = deploy_text(
                settings, config, output=output, first=set_hold, is_forced=True
            )
        finally:
            if deployment is None or not deployment.ok:
                install.restore(hold.path(directory), raw)
    said = (*unlocked, *_record(directory, entry, deployment, config, f"rollback to {entry.id}"))
    return entry, replace(deployment, problems=(*deployment.problems, *said))


def go_on_holding(settings: Settings, held: Hold) -> Deployment | None:
    """Make HAProxy have what is held, if it has something else.

    As after a `go_back` that was killed half-way, or a HAProxy that others started.  None if there
    is nothing to do, or nothing that could be done.
    """
    directory = settings.state_directory
    try:
        with deploying(directory, _patience(settings.haproxy)) as unlocked:
            running = observe(settings.haproxy).hash
            if hold.load(directory) != held or not held.hash or running in (None, held.hash):
                return None
            same = [e for e in history.entries(directory) if e.accepted and e.hash == held.hash]
            if not same:
                return None
            entry = same[-1]
            config = Config(history.text(directory, entry), entry.hash)
            deployment = deploy_text(settings, config, output=None, first=lambda: None)
    except (Refused, Unavailable) as exc:
        return Deployment(outcome=Outcome.FAILED, hash=held.hash, problems=exc.problems)
    said = (*unlocked, *_record(directory, entry, deployment, config, f"held: {held.id}"))
    return replace(deployment, problems=(*deployment.problems, *said))


def _record(
    directory: str, entry: Entry, deployment: Deployment, config: Config, reason: str
) -> tuple[Problem, ...]:
    """Keep in the history how `entry` was deployed again; what hindered that, as warnings."""
    if deployment.outcome is Outcome.IN_SYNC:
        return ()
    done = replace(
        entry,
        at=time.time(),
        outcome=deployment.outcome.value,
        reasons=(reason,),
        seconds=round(deployment.duration, 3),
    )
    try:
        history.record(directory, done, config.text)
    except Unavailable as exc:
        return tuple(replace(problem, severity=Severity.WARNING) for problem in exc.problems)
    return ()


def _patience(haproxy: Haproxy) -> float:
    return haproxy.check_timeout + haproxy.reload_timeout


def _none(message: str) -> Refused:
    return Refused(Problem(message=message, remedy="see what there is: fc-frontend history"))
