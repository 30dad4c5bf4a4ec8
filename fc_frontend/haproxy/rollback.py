"""Roll back to an entry of the history, and hold it.

The daemon deploys nothing while there is a hold, and nobody deploys meanwhile, so that no step of
the daemon comes between.  If anything fails, file and hold are as before.

A text that fc-frontend did not write has no digest that the worker could report.  What proves it is
that the reload worked, that another worker serves since, and that the text is still on disk.
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
    """The hash that the running worker has; else the one that it will be started with.

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
    """The hash of what HAProxy runs; None if it does not answer, or runs what is not known."""
    try:
        running = runtime.running_hash(haproxy.runtime_socket)
    except Unavailable:
        if held is None:
            return None
        try:
            # What is held may have its sockets elsewhere.
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
    """The hash of what HAProxy runs, which answers and reports the digest `running`.

    Of a held text that is not ours, HAProxy reports none, or the one of the text that it was made
    of.  Raises `Unavailable`.
    """
    if held is None or not held.hash or running == held.hash:
        return running
    installed = install.read(haproxy.config_file) or b""
    if history.digest_of(installed) != held.hash:
        return running
    sections = read_sections(installed.decode("utf-8", "surrogateescape"))
    return held.hash if running in (None, stated_in(sections)) else running


def present(entries: Iterable[Entry], digest: str | None, held: Hold | None) -> Entry | None:
    """The entry that HAProxy has now: the one that is held, else the newest one with this hash."""
    same = [entry for entry in entries if entry.has_text and entry.hash == digest]
    chosen = [entry for entry in same if held is not None and entry.id == held.id]
    return next(reversed(chosen or same), None)


def choice(
    entries: tuple[Entry, ...], digest: str | None, held: Hold | None, wanted: int | None
) -> Entry:
    """The entry to go back to: `wanted`, else the one before that served before what runs now.

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
        # Only routes may differ from what has the same hash.
        is_other = entry.hash != digest or (now is not None and now.outcome == Outcome.ROUTED)
        if entry.has_served and is_before and is_other:
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
    """Make HAProxy have what is held, if it has something else.

    As after a `go_back` that was killed half-way, or a HAProxy that others started.  None if there
    is nothing to do, or nothing that could be done.
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
    """Let `resume` replace a text that is not ours: consent to that was given once."""
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
    """Keep in the history how `entry` was deployed again; what hindered that, as warnings."""
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
