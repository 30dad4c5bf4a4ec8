"""The record of drains on disk, and its application to the running worker.

The command and the daemon both change the record: each holds a lock on the state directory from
reading it to the last command.  A slot is recorded as fc-frontend's own before the worker drains
it, so that a process killed in between leaves no drained slot that is never freed.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from fc_frontend import files
from fc_frontend.errors import Problem, Severity, Unavailable
from fc_frontend.haproxy import drain, runtime
from fc_frontend.haproxy.drain import NOTHING, Drained
from fc_frontend.haproxy.lock import directory_locked
from fc_frontend.haproxy.runtime import ServerState
from fc_frontend.plan.model import Resolution, Settings

FILE = "drained.json"
_ANEW = "remove it, `undrain` its services, and drain again what is to be drained"
_MOST_BACKENDS = 16
"""Up to this many services are queried one by one; beyond it, all servers are queried at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainOutcome:
    """The result of applying `record` to the worker; `before` is the former record.

    `servers` are those of the services concerned, afterwards.  `sent` are the commands sent.
    """

    before: Drained = NOTHING
    record: Drained = NOTHING
    servers: tuple[ServerState, ...] = ()
    sent: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    def drained(self, service: str) -> tuple[str, ...]:
        """Return the addresses of the pods of `service` drained for the record, in slot order."""
        return tuple(
            server.address
            for server in self.servers
            if server.proxy == service
            and server.address
            and (server.proxy, server.server) in self.record.slots
            and self.record.covers(service, server.address)
        )


def path(settings: Settings) -> str:
    """Return the path of the record."""
    return f"{settings.state_directory}/{FILE}"


def signature(settings: Settings) -> tuple[int, int, int] | None:
    """Return a value that changes when the record does, or None if there is no record."""
    return files.signature(path(settings))


def load(settings: Settings) -> tuple[Drained, tuple[Problem, ...]]:
    """Return the record; if it cannot be read, return an empty one and a warning."""
    file = path(settings)
    try:
        content = files.read_own(file, drain.MOST_BYTES)
        return (NOTHING, ()) if content is None else (drain.parse(content), ())
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = "let this user read it"
        if error.errno != errno.EACCES:
            remedy = _ANEW
    except ValueError as error:
        reason = str(error)
        remedy = _ANEW
    warning = Problem(
        f"what was drained is not known: {file} cannot be used: {reason}",
        remedy,
        severity=Severity.WARNING,
        file=file,
    )
    return NOTHING, (warning,)


def change(
    settings: Settings,
    changed: Callable[[Drained, tuple[ServerState, ...]], Drained],
    services: Iterable[str] = (),
) -> DrainOutcome:
    """Update the record by `changed`, and apply it to the running worker.

    `changed` gets the record and the servers of its services and of `services`, and may raise.
    Raises `Unavailable` if HAProxy does not answer, with the record as before, or if the record
    cannot be written.
    """
    socket = settings.haproxy.runtime_socket
    runtime.info(socket)
    files.make_directory(settings.state_directory, mode=0o750)
    with directory_locked(Path(settings.state_directory)):
        before, problems = load(settings)
        names = before.names | set(services)
        servers = _servers(socket, names)
        record = changed(before, servers)
        saved = before
        sent = drain.commands(record, servers)
        if sent or record != before:
            record = replace(record, slots=record.slots | drain.covered(record, servers))
            save(settings, before, record)
            saved = record
            # A server that a reload has just removed is not an error: the next pass handles it.
            runtime.commands(socket, sent)
            servers = _servers(socket, names)
        settled = drain.marked(record, servers)
        save(settings, saved, settled)
    return DrainOutcome(
        before=before, record=settled, servers=servers, sent=tuple(sent), problems=problems
    )


def keep(settings: Settings, resolution: Resolution, declared: Iterable[str]) -> DrainOutcome:
    """Apply the record to the running worker, after removing pods that are gone for good.

    Does nothing if nothing is recorded.  Raises `Unavailable`.
    """
    record, problems = load(settings)
    if not record:
        return DrainOutcome(problems=problems)
    names = tuple(declared)
    return change(
        settings,
        lambda before, servers: drain.without_gone(before, resolution, names, servers),
    )


def save(settings: Settings, before: Drained | None, record: Drained) -> None:
    """Write `record` unless it equals `before`.  Raises `Unavailable`."""
    if record == before:
        return
    data = drain.dump(record)
    if len(data) > drain.MOST_BYTES:
        raise Unavailable.of(
            f"too much is drained to be recorded: {len(data)} bytes",
            "drain whole services, or undrain some",
        )
    files.write_own(path(settings), data)


def _servers(socket: str, names: frozenset[str]) -> tuple[ServerState, ...]:
    if len(names) > _MOST_BACKENDS:
        return tuple(server for server in runtime.servers(socket) if server.proxy in names)
    return tuple(
        server
        for name in sorted(names)
        if drain.is_name(name)
        for server in runtime.servers_of(socket, name)
    )
