"""Replace haproxy.cfg, with consent if fc-frontend did not write it, and keep the former text.

`foreign` decides.  Only the text that was checked is replaced, and it is in the history first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from fc_frontend import files
from fc_frontend.errors import Problem, Refused, Severity, Unavailable
from fc_frontend.files import Attributes, Content
from fc_frontend.haproxy import consent, history, maps, runtime
from fc_frontend.haproxy.binary import find_binary
from fc_frontend.haproxy.certificates import store
from fc_frontend.haproxy.foreign import (
    NOTHING,
    Decision,
    FileOrigin,
    FoundConfig,
    Name,
    OwnConfigs,
    ServingWorker,
    decide,
    look_at,
    proxies_in,
)
from fc_frontend.haproxy.history import Entry, Kept
from fc_frontend.haproxy.socket import ask
from fc_frontend.haproxy.traffic import parse_traffic
from fc_frontend.haproxy.validate import validate
from fc_frontend.plan.model import Haproxy, Settings
from fc_frontend.plurals import counted
from fc_frontend.render.sites import has_secrets

_SHOWN = 5
_MAX_ATTEMPTS = 5
_COMPARED = 2
"""Number of fc-frontend's newest texts with which an edited one is compared."""
_TIMEOUT = 5.0
"""Time limit for an answer of HAProxy, in seconds."""


class NeedsConsent(Exception):
    """The file may not be replaced; `problem` has the reason and the remedy."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Judged:
    """haproxy.cfg at the time of the decision, and the decision."""

    path: str
    content: Content | None
    found: FoundConfig
    worker: ServingWorker
    decision: Decision

    @property
    def problem(self) -> Problem | None:
        """Why it may not be replaced, with a remedy; None if it may."""
        return None if self.decision.allowed else _problem(self)


@dataclass(frozen=True, slots=True)
class Replaced:
    """haproxy.cfg before it was replaced.

    `entry` is its history entry, None for a text that need not be kept.
    """

    content: Content | None = None
    found: FoundConfig = NOTHING
    entry: Entry | None = None


def judge(settings: Settings, worker: ServingWorker, known: Collection[str] = ()) -> Judged:
    """Decide whether the current haproxy.cfg may be replaced.  Raises `Unavailable` if unreadable.

    `known` are digests of texts by fc-frontend that the history may lack.
    """
    path, directory = settings.haproxy.config_file, settings.state_directory
    content = files.read(path)

    data = content.data if content else None
    written = _Written(directory, known)
    found = look_at(data, OwnConfigs(written.has, written.proxies))
    is_refused = (
        found.origin is FileOrigin.UNREADABLE
        and worker.is_ours
        and data is not None
        and _is_refused(settings.haproxy, data)
    )
    decision = decide(
        found,
        worker,
        consent.given(directory),
        always=settings.haproxy.take_over == "always",
        is_refused=is_refused,
    )
    return Judged(path, content, found, worker, decision)


def present(settings: Settings) -> Judged:
    """Like `judge`, after a query for HAProxy's running configuration."""
    running = None
    with contextlib.suppress(Unavailable):
        running = runtime.running_hash(settings.haproxy.runtime_socket)
    return judge(settings, worker_of(settings, running))


def missing_consent(settings: Settings, *, asks_haproxy: bool = True) -> tuple[Problem, ...]:
    """Return a warning if `apply` will not replace haproxy.cfg; none if it is unreadable.

    Without `asks_haproxy`, only the file counts.
    """
    try:
        judged = present(settings) if asks_haproxy else judge(settings, ServingWorker())
    except Unavailable:
        return ()
    problem = judged.problem
    return () if problem is None else (replace(problem, severity=Severity.WARNING),)


def obstacle(
    settings: Settings, data: bytes, worker: ServingWorker, known: Collection[str]
) -> Problem | None:
    """Return why haproxy.cfg may not become `data`; None if it may or is.  Raises `Unavailable`."""
    judged = judge(settings, worker, known)
    is_there = judged.content is not None and judged.content.data == data
    return None if is_there else judged.problem


def install(
    settings: Settings,
    data: bytes,
    worker: ServingWorker,
    *,
    known: Collection[str] = (),
    attributes: Attributes | None = None,
) -> Replaced:
    """Write `data` to haproxy.cfg, after keeping a former text that exists nowhere else.

    The text that is kept is the one that is replaced: if the file changes meanwhile, the decision
    is made again.  The file keeps its permissions and owner unless `attributes` are given; if
    `data` contains secrets, others may not read it.  Callers must hold the `deploying` lock.
    Raises `NeedsConsent` and `Unavailable`, with nothing changed.
    """
    path = settings.haproxy.config_file
    for _ in range(_MAX_ATTEMPTS):
        judged = judge(settings, worker, known)
        content, found = judged.content, judged.found
        if content is not None and content.data == data:
            _write_companions(settings, data)
            return Replaced(content, found)
        if judged.problem is not None:
            raise NeedsConsent(judged.problem)
        entry = _keep(settings, judged, known)

        def is_same(now: Content | None, before: Content | None = content) -> bool:
            return (now and now.data) == (before and before.data)

        _write_companions(settings, data)
        given = attributes or (content.attributes if content else None)
        if given is not None and has_secrets(data):
            given = replace(given, mode=given.mode & ~0o007)
        if files.replace(path, data, attributes=given, expected=is_same):
            return Replaced(content, found, entry)
    raise Unavailable.of(
        f"{path} changes all the time",
        "stop what else writes it, or set haproxy.config_file to a file of its own",
        file=path,
    )


def _write_companions(settings: Settings, data: bytes) -> None:
    """Write the files that HAProxy needs to start with the configuration `data`."""
    maps.write(settings, data)
    text = data.decode("utf-8", "surrogateescape")
    store.require_lists(settings.state_directory, text)


def undo(settings: Settings, replaced: Replaced, data: bytes) -> None:
    """Restore the text that `install` replaced, unless the file has been changed since.

    Raises `Unavailable`.
    """
    path, before = settings.haproxy.config_file, replaced.content
    now = files.read(path)
    if now is None or now.data != data or (before is not None and before.data == data):
        return
    if before is not None:
        _write_companions(settings, before.data)
    if before is None:
        files.remove(path, follow=True)
        return
    files.replace(
        path,
        before.data,
        attributes=before.attributes,
        expected=lambda found: found is not None and found.data == data,
    )


def finish(settings: Settings, data: bytes) -> tuple[Problem, ...]:
    """Remove all consent after `data` was deployed, if fc-frontend wrote it; return warnings.

    After a rollback to a foreign text, consent is kept: `resume` replaces that text later.
    """
    if history.own_hash(data.decode("utf-8", "surrogateescape")) is None:
        return ()
    try:
        consent.end(settings.state_directory)
    except Unavailable as exc:
        return tuple(replace(problem, severity=Severity.WARNING) for problem in exc.problems)
    return ()


def worker_of(
    settings: Settings, running: str | None, known: Collection[str] = ()
) -> ServingWorker:
    """Return the running worker, which reports the digest `running`, as far as it answers.

    `known` are digests of texts by fc-frontend that the history may lack.
    """
    haproxy = settings.haproxy
    if running is not None and _Written(settings.state_directory, known).has(running):
        return ServingWorker(is_ours=True)
    with contextlib.suppress(Unavailable):
        return ServingWorker(proxies=tuple(runtime.traffic(haproxy.runtime_socket)))
    # A foreign configuration may have its sockets elsewhere; the master's is the same for all.
    with contextlib.suppress(Unavailable):
        answer = ask(haproxy.master_socket, "@1 show stat -1 3 -1", _TIMEOUT)
        return ServingWorker(proxies=tuple(parse_traffic(answer) or ()))
    return ServingWorker()


class _Written:
    """The texts that fc-frontend wrote on this host, by the history and `digests`; read lazily."""

    def __init__(self, directory: str, digests: Collection[str] = ()) -> None:
        self._directory = directory
        self._digests = digests

    @cached_property
    def accepted(self) -> tuple[Entry, ...]:
        """The deployments that HAProxy accepted."""
        return tuple(entry for entry in history.entries(self._directory) if entry.accepted)

    def has(self, digest: str) -> bool:
        """Return whether fc-frontend wrote a text with this digest."""
        return digest in self._digests or any(entry.hash == digest for entry in self.accepted)

    def proxies(self) -> frozenset[Name]:
        """Return the proxies in the newest texts."""
        found: frozenset[Name] = frozenset()
        for entry in self.accepted[-_COMPARED:]:
            with contextlib.suppress(Refused, Unavailable):
                found |= proxies_in(history.text(self._directory, entry))
        return found


def _is_refused(haproxy: Haproxy, data: bytes) -> bool:
    """Return whether HAProxy itself refuses a text."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        binary = find_binary(haproxy.binary)
        return not validate(binary, text, timeout=haproxy.check_timeout).accepted
    except Unavailable:
        return False


def _keep(settings: Settings, judged: Judged, known: Collection[str]) -> Entry | None:
    """Keep the text that is about to be lost in the history.  Raises `Unavailable`."""
    content, kind = judged.content, judged.decision.kept
    if content is None:
        return None
    directory, found = settings.state_directory, judged.found
    if kind is not None:
        return history.keep(directory, content, kind, proxies=len(found.proxies))
    written = _Written(directory, known)
    if found.origin is FileOrigin.OURS and not written.has(found.hash):
        # fc-frontend can render its own text again, so a failure here must not stop a deployment.
        with contextlib.suppress(Unavailable):
            if not written.accepted:
                return history.keep_installed(directory, content)
            reason = "written by another fc-frontend, or before the history was lost"
            return history.keep(directory, content, Kept.EDITED, reason=reason)
    return None


def _problem(judged: Judged) -> Problem:
    found, worker = judged.found, judged.worker
    if found.origin is FileOrigin.UNREADABLE:
        what = "cannot be read as a configuration of HAProxy, so that it may serve something"
    elif found.digest in judged.decision.needed:
        number = counted(len(found.proxies), "proxy", "proxies")
        what = f"was not written by fc-frontend and has {number} ({_listed(found.proxies)})"
    else:
        number = counted(len(worker.proxies), "proxy", "proxies")
        what = (
            f"does not have what HAProxy runs, which fc-frontend did not write: {number} "
            f"({_listed(worker.proxies)})"
        )
    return Problem(
        f"{judged.path} {what}: it is replaced only with consent",
        remedy="`fc-frontend apply --take-over` replaces it, and keeps it in the history; "
        "`fc-frontend import` turns it into declarations first",
        file=judged.path,
        field="haproxy.take_over",
    )


def _listed(names: Iterable[object]) -> str:
    shown = [str(name) for name in names]
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more
