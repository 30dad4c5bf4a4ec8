"""Failed reloads, which are not retried, because each attempt may pause all listeners.

    reload fails ─► blame units ─► record ─► the trial of the next deployment rejects these units

A unit is retried when its text changes, when something that may have blocked it changes, or by
force.  A failure that cannot be attributed to a unit is recorded for the entire text.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fc_frontend import files
from fc_frontend.errors import Problem, Severity, Unavailable
from fc_frontend.haproxy.holders import Holders, final_name, place, takes
from fc_frontend.haproxy.listener_places import ListenerPlaces
from fc_frontend.haproxy.preflight import find_obstacles, first_bind_error
from fc_frontend.haproxy.reload import ReloadOutcome
from fc_frontend.haproxy.trial import Taker, known_seats, seats_of
from fc_frontend.model.units import SETTINGS, UnitId, UnitKind
from fc_frontend.plan.model import Plan, Settings
from fc_frontend.render.config import Config
from fc_frontend.render.listeners import listeners_of
from fc_frontend.syntax.binds import Owned
from fc_frontend.syntax.endpoints import Family, ListenEndpoint

FILE = "failed-reloads.json"
VERSION = 1
MAX_BYTES = 1024 * 1024
MAX_FAILURES = 200
MAX_WORDS = 500
"""Maximum number of characters of a message that are recorded."""
_SERVER_LINES = (["server"], ["server-template"])
"""The first words of lines that depend on the pods: they are left out of a text's digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A unit that is not retried, or the entire text if `kind` is empty.

    `text` is the digest of the unit's section, or of the entire text; `circumstances` that of
    all known conditions that may have blocked it.  `binds` names the listeners that HAProxy could
    not bind, and `message` is its message.  `is_suspected` marks one of several units that may
    be the cause.  `at` is Unix time.
    """

    kind: str
    name: str
    text: str
    circumstances: str
    binds: str
    message: str
    at: float
    is_suspected: bool = False

    @property
    def unit(self) -> UnitId | None:
        """The unit that is blamed, or None for the entire text."""
        return UnitId(UnitKind(self.kind), self.name) if self.kind else None


def path(state_directory: str) -> str:
    """Return the path of the record of failures."""
    return f"{state_directory}/{FILE}"


def load(state_directory: str) -> tuple[Failure, ...]:
    """Return the recorded failures, or none if they cannot be read."""
    try:
        content = files.read_own(path(state_directory), MAX_BYTES)
        document = json.loads(content) if content else {}
        if not isinstance(document, dict) or document.get("version") != VERSION:
            return ()
        return tuple(_failure(each) for each in document["failures"])
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ):
        return ()


def _failure(value: dict[str, Any]) -> Failure:
    """Parse a failure; raise an error that `load` catches if `save` did not write it."""
    failure = Failure(**value)
    if failure.kind:
        UnitKind(failure.kind)
    texts = failure.name, failure.text, failure.binds, failure.message
    if not all(isinstance(each, str) for each in texts):
        raise TypeError
    time.gmtime(failure.at)
    return failure


def save(state_directory: str, failures: Iterable[Failure]) -> None:
    """Replace the recorded failures by these.  Raises `Unavailable`."""
    kept = sorted(failures, key=lambda failure: failure.at)[-MAX_FAILURES:]
    document = {"version": VERSION, "failures": [asdict(failure) for failure in kept]}
    files.write_own(path(state_directory), json.dumps(document).encode() + b"\n")


class Attempt:
    """One deployment of `config`, checked against the failures of earlier ones."""

    def __init__(
        self, settings: Settings, config: Config, plan: Plan | None = None, *, is_forced: bool
    ) -> None:
        self._settings = settings
        self._config = config
        self._plan = plan
        self._before = load(settings.state_directory)
        self._is_forced = is_forced

    def rejected(self, taker: Taker) -> tuple[Problem, ...]:
        """Return problems for units, or the text, that failed at a reload and would fail again."""
        if self._is_forced or not self._before:
            return ()
        relevant = [failure for failure in self._before if self._is_same(failure, taker)]
        if sum(failure.is_suspected for failure in self._before) > 1:
            # Trying one unit at a time identifies the cause; the last one left needs no attempt.
            # Others may already be withheld from this text, so a single one here is not necessarily
            # the last.
            first = next((failure for failure in relevant if failure.is_suspected), None)
            relevant = [failure for failure in relevant if failure is not first]
        return tuple(self._problem(failure) for failure in relevant)

    def failed(self, taker: Taker, outcome: ReloadOutcome) -> tuple[Problem, ...]:
        """Record that HAProxy failed to load the configuration; return problems of recording.

        `taker` is the current state of HAProxy.
        """
        blamed, is_certain = self._blamed(taker, outcome)
        units = {owned.owner for owned in blamed if owned.owner in self._texts}
        now = time.time()
        message = " ".join(outcome.message.split())[:MAX_WORDS]

        def failure(unit: UnitId | None) -> Failure:
            return Failure(
                kind=unit.kind if unit else "",
                name=unit.name if unit else "",
                text=self._texts[unit],
                circumstances=self._circumstances(unit, taker),
                binds=", ".join(
                    str(each.listener.endpoint) for each in blamed if each.owner == unit
                )[:MAX_WORDS],
                message=message,
                at=now,
                is_suspected=not is_certain and len(units) > 1,
            )

        fresh = [failure(unit) for unit in most_suspicious_last(units, blamed, self._plan)]
        fresh = fresh or [failure(None)]
        # A unit that fails alone is the cause, which clears the units suspected with it.
        is_settled = is_certain or len(fresh) == 1
        others = [
            each
            for each in self._before
            if each.unit not in {one.unit for one in fresh}
            and not (is_settled and each.is_suspected)
        ]
        return self._saved((*others, *fresh))

    def succeeded(self) -> tuple[Problem, ...]:
        """Forget the failures of units that HAProxy now runs; return problems of recording."""
        kept = tuple(
            failure
            for failure in self._before
            if failure.unit is not None and self._texts.get(failure.unit) != failure.text
        )
        return self._saved(kept) if kept != self._before else ()

    @cached_property
    def _wanted(self) -> list[Owned]:
        """The listeners of the configuration."""
        return listeners_of(self._config, socket.gethostname())[0]

    @cached_property
    def _texts(self) -> dict[UnitId | None, str]:
        """The digests of the units' sections, with that of the entire text under None."""
        sections = {section.unit: section.text for section in self._config.sections}
        texts: dict[UnitId | None, str] = {unit: _digest(text) for unit, text in sections.items()}
        texts[None] = _digest("\n".join(sections.values())) if sections else self._config.hash
        return texts

    def _is_same(self, failure: Failure, taker: Taker) -> bool:
        return self._texts.get(failure.unit) == failure.text and (
            self._circumstances(failure.unit, taker) == failure.circumstances
        )

    def _blamed(self, taker: Taker, outcome: ReloadOutcome) -> tuple[list[Owned], bool]:
        """Return the listeners that caused the failure, and whether that is certain.

        HAProxy 2.7 and later report them.  Otherwise the cause is one of the new listeners, most
        likely one that fc-frontend could not try.  The list is empty if there are no new listeners:
        the cause lies elsewhere.
        """
        file = Path(self._settings.haproxy.config_file).name
        lines = {line for path, line in outcome.refused_binds if Path(path).name == file}
        named = [owned for owned in self._wanted if lines and self._line(owned) in lines]
        if named:
            return named, True
        known = known_seats(self._settings.haproxy, taker)
        new = [
            owned
            for owned in self._wanted
            if any(seat not in known for _, seat in seats_of(owned.listener.endpoint))
        ]
        found = find_obstacles(
            (owned.listener.endpoint for owned in new),
            owned_by=taker.pids,
            rights=taker.rights(self._settings.haproxy),
        )
        for is_certain in (True, False):
            culprits = {each.endpoint for each in found if each.is_certain is is_certain}
            if culprits:
                return [owned for owned in new if owned.listener.endpoint in culprits], is_certain
        return new, False

    def _line(self, owned: Owned) -> int:
        """Return the line of a listener in the entire text."""
        for each in self._config.places:
            if each.unit == owned.owner:
                return each.first + owned.listener.line - 1
        return owned.listener.line

    def _circumstances(self, unit: UnitId | None, taker: Taker) -> str:
        """Return a digest of possible obstacles to a unit, or of HAProxy's processes for a text."""
        endpoints = [listener.endpoint for owner, listener in self._wanted if owner == unit]
        facts: list[object] = [taker.master]
        if unit is None:
            facts += sorted(taker.pids)
        holders = Holders(taker.pids)
        facts += [_surroundings(endpoint, holders) for endpoint in endpoints]
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def _problem(self, failure: Failure) -> Problem:
        when = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(failure.at))
        did = f"could not take {failure.binds}" if failure.binds else "failed to reload with this"
        problem = Problem(
            f"HAProxy {did} at the reload of {when}: {failure.message}",
            remedy="correct it, or remove what blocks it; `fc-frontend apply --force` tries it "
            "again unchanged",
            unit=failure.unit,
        )
        unit = failure.unit
        if unit is None or self._plan is None:
            return problem
        places = ListenerPlaces(self._plan, self._config)
        if unit == SETTINGS:
            return replace(problem, field=places.setting(None))
        return replace(problem, service=unit.name, file=places.file(unit))

    def _saved(self, failures: tuple[Failure, ...]) -> tuple[Problem, ...]:
        try:
            if failures:
                save(self._settings.state_directory, failures)
            else:
                files.remove(path(self._settings.state_directory))
        except Unavailable as exc:
            return tuple(replace(each, severity=Severity.WARNING) for each in exc.problems)
        return ()


def most_suspicious_last(
    units: Iterable[UnitId], blamed: Iterable[Owned], plan: Plan | None
) -> list[UnitId]:
    """Return the units in the order in which they may be retried one by one.

    Declared binds come first, because they are checked more closely than raw text.
    """
    declared = {
        (service.spec.name, str(bind))
        for service in (plan.services if plan else ())
        for bind in service.spec.binds
    }
    raw = {
        owned.owner
        for owned in blamed
        if (owned.owner.name, str(owned.listener.endpoint)) not in declared
    }
    return sorted(sorted(units), key=lambda unit: unit in raw)


def _digest(text: str) -> str:
    """Return a digest of a text that does not change with the pods alone."""
    lines = [line for line in text.split("\n") if line.split()[:1] not in _SERVER_LINES]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _surroundings(endpoint: ListenEndpoint, holders: Holders) -> object:
    """Return the visible state, other than HAProxy's, that may prevent binding an endpoint."""
    foreign = sorted(
        (one.name, one.port, one.inode)
        for one in holders.foreign(holders.on(endpoint))
        if one.name == final_name(one)
        and (endpoint.family is not Family.IP or takes(endpoint, one.name))
    )
    facts: list[object] = [str(endpoint), foreign]
    if endpoint.family is Family.IP:
        facts.append(first_bind_error(endpoint) is None)
        if endpoint.interface:
            facts.append(_index(endpoint.interface))
        if endpoint.namespace:
            facts.append(_identity(f"/run/netns/{endpoint.namespace}"))
    elif endpoint.family is Family.UNIX:
        facts += [place(endpoint.host), _identity(os.path.dirname(endpoint.host))]  # noqa: PTH120
    return facts


def _index(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        return 0


def _identity(file: str) -> tuple[int, ...]:
    try:
        status = Path(file).stat()
    except OSError:
        return ()
    flags = os.statvfs(file).f_flag
    return status.st_dev, status.st_ino, status.st_mode, status.st_uid, status.st_gid, flags
