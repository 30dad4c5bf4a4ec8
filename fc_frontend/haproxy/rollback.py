"""Roll back to an entry of the history, and hold it.

The daemon deploys nothing while a hold exists, and the lock excludes other deployments meanwhile,
so that no step of the daemon interferes.  If anything fails, file and hold are restored.

A text that fc-frontend did not write has no digest that the worker could report.  It is confirmed
by a successful reload, by a new worker, and by the text still being on disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterable
from dataclasses import replace

from fc_frontend.errors import Problem, Refused, Severity, Unavailable
from fc_frontend.haproxy import consent, history, hold, install, runtime
from fc_frontend.haproxy.consent import Consent
from fc_frontend.haproxy.deploy import Deployment, Outcome, deploy_text, observe
from fc_frontend.haproxy.foreign import stated_in
from fc_frontend.haproxy.history import Entry
from fc_frontend.haproxy.hold import Hold
from fc_frontend.haproxy.lock import deploying
from fc_frontend.haproxy.master import show_proc
from fc_frontend.plan.model import Haproxy, Settings
from fc_frontend.render.config import Config
from fc_frontend.syntax.sections import read_sections


def present_hash(haproxy: Haproxy, held: Hold | None) -> str | None:
    """Return the hash of the running worker; if there is none, that of the installed text.

    Raises `Unavailable`.
    """
    running = identity(haproxy, held, observe(haproxy).hash)
    if running is not None:
        return running
    installed = install.read(haproxy.config_file)
    if not installed:
        return None
    text = installed.decode("utf-8", "surrogateescape")
    return history.own_hash(text) or history.digest_of(installed)


def running_hash(haproxy: Haproxy, held: Hold | None) -> str | None:
    """Return the hash of the running configuration; None if HAProxy does not report it."""
    try:
        running = runtime.running_hash(haproxy.runtime_socket)
    except Unavailable:
        if held is None:
            return None
        try:
            # The held configuration may have its sockets elsewhere.
            if show_proc(haproxy.master_socket).worker is None:
                return None
        except Unavailable:
            return None
        running = None
    try:
        return identity(haproxy, held, running)
    except Unavailable:
        return running


def identity(haproxy: Haproxy, held: Hold | None, running: str | None) -> str | None:
    """Return the hash of the running configuration, given the digest `running` that it reports.

    For a held text that fc-frontend did not write, HAProxy reports no digest, or that of the text
    from which it was derived.  Raises `Unavailable`.
    """
    if held is None or not held.hash or running == held.hash:
        return running
    installed = install.read(haproxy.config_file) or b""
    if history.digest_of(installed) != held.hash:
        return running
    sections = read_sections(installed.decode("utf-8", "surrogateescape"))
    return held.hash if running in (None, stated_in(sections)) else running


def present(entries: Iterable[Entry], digest: str | None, held: Hold | None) -> Entry | None:
    """Return the current entry: the one that is held, else the newest one with this hash."""
    same = [entry for entry in entries if entry.has_text and entry.hash == digest]
    chosen = [entry for entry in same if held is not None and entry.id == held.id]
    return next(reversed(chosen or same), None)


def choice(
    entries: tuple[Entry, ...], digest: str | None, held: Hold | None, wanted: int | None
) -> Entry:
    """Return the entry to roll back to: `wanted`, else the last one that served before the current.

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
        # With the same hash, only routes may differ.
        is_other = entry.hash != digest or (now is not None and now.outcome == Outcome.ROUTED)
        if entry.has_served and is_before and is_other:
            return entry
    raise _none(
        "there is nothing to go back to: the history has nothing from before what HAProxy has now"
    )


def go_back(
    settings: Settings, wanted: int | None, *, by: str, output: str | None
) -> tuple[Entry, Deployment]:
    """Roll back to a former configuration and hold it; return its entry and the deployment.

    Raises `Refused` if there is no such entry, and `Unavailable`.
    """
    directory = settings.state_directory
    with deploying(directory, _patience(settings.haproxy)) as unlocked:
        before = hold.load(directory)
        raw = install.read(hold.path(directory)) if before is not None else None
        known = history.entries(directory)
        entry = choice(known, present_hash(settings.haproxy, before), before, wanted)
        config = Config(history.text(directory, entry), entry.hash)

        def set_hold() -> None:
            hold.save(directory, Hold(id=entry.id, hash=entry.hash, since=time.time(), by=by))

        deployment = None
        try:
            deployment = deploy_text(
                settings,
                config,
                output=output,
                first=set_hold,
                is_forced=True,
                attributes=entry.attributes,
            )
        finally:
            if deployment is None or not deployment.ok:
                install.restore(hold.path(directory), raw)
        if deployment.ok:
            _consent_again(directory, config, by)
    done = _record(settings, entry, deployment, config, f"rollback to {entry.id}", by)
    said = (*unlocked, *done)
    return entry, replace(deployment, problems=(*deployment.problems, *said))


def go_on_holding(settings: Settings, held: Hold) -> Deployment | None:
    """Deploy the held configuration if HAProxy runs another one.

    This happens after a `go_back` that was killed half-way, or if HAProxy was started otherwise.
    Returns None if nothing is to be done, or nothing can be done.
    """
    directory = settings.state_directory
    try:
        with deploying(directory, _patience(settings.haproxy)) as unlocked:
            running = identity(settings.haproxy, held, observe(settings.haproxy).hash)
            if hold.load(directory) != held or not held.hash or running in (None, held.hash):
                return None
            same = [e for e in history.entries(directory) if e.has_text and e.hash == held.hash]
            if not same:
                return None
            entry = same[-1]
            config = Config(history.text(directory, entry), entry.hash)
            deployment = deploy_text(
                settings, config, output=None, first=lambda: None, attributes=entry.attributes
            )
    except (Refused, Unavailable) as exc:
        return Deployment(outcome=Outcome.FAILED, hash=held.hash, problems=exc.problems)
    said = (*unlocked, *_record(settings, entry, deployment, config, f"held: {held.id}"))
    return replace(deployment, problems=(*deployment.problems, *said))


def _consent_again(directory: str, config: Config, by: str) -> None:
    """Let `resume` replace a text that fc-frontend did not write, as consent was given before."""
    if history.own_hash(config.text) is None:
        data = config.text.encode("utf-8", "surrogateescape")
        with contextlib.suppress(Unavailable):
            digests = frozenset((hashlib.sha256(data).hexdigest(),))
            consent.give(directory, Consent(digests, by))


def _record(
    settings: Settings,
    entry: Entry,
    deployment: Deployment,
    config: Config,
    reason: str,
    by: str = "",
) -> tuple[Problem, ...]:
    """Record the repeated deployment of `entry` in the history; return failures as warnings."""
    if deployment.outcome in (Outcome.IN_SYNC, Outcome.NEEDS_CONSENT):
        return ()
    done = replace(
        entry,
        at=time.time(),
        outcome=deployment.outcome.value,
        reasons=(reason,),
        seconds=round(deployment.duration, 3),
        by=by,
        files=(),
    )
    try:
        mode = install.mode_of_copies(settings.haproxy.config_file)
        history.record(settings.state_directory, done, config.text, mode=mode)
    except Unavailable as exc:
        return tuple(replace(problem, severity=Severity.WARNING) for problem in exc.problems)
    return ()


def _patience(haproxy: Haproxy) -> float:
    return haproxy.check_timeout + haproxy.reload_timeout


def _none(message: str) -> Refused:
    return Refused.of(message, "see what there is: fc-frontend history")
