"""Reloads that failed: what is not tried again, because each attempt may pause all listeners.

    reload fails ─► blame units ─► record ─► the trial of the next deployment rejects these units

A unit is tried again when its text changes, when what may have blocked it changes, or by force.  A
failure that no unit can be blamed for is recorded for the text as a whole.
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
"""Characters of a message that are recorded."""
_SERVER_LINES = (["server"], ["server-template"])
"""The first words of lines that follow the pods: they do not make a text another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What is not tried again: a unit, or the whole text if `kind` is empty.

    `text` is the digest of the unit's section, or of the whole text, and `circumstances` that of
    everything known that may have blocked it.  `binds` names the listeners that HAProxy could not
    take, and `message` is what HAProxy said.  `is_suspected` if it is one of several units that may
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
        """The unit that is blamed, None for the whole text."""
        return UnitId(UnitKind(self.kind), self.name) if self.kind else None


def path(state_directory: str) -> str:
    """Where failures are recorded."""
    return f"{state_directory}/{FILE}"


def load(state_directory: str) -> tuple[Failure, ...]:
    """The recorded failures; none where they cannot be read."""
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
    """Raises an error that `load` catches for what `save` did not write."""
    failure = Failure(**value)
    if failure.kind:
        UnitKind(failure.kind)
    texts = failure.name, failure.text, failure.binds, failure.message
    if not all(isinstance(each, str) for each in texts):
        raise TypeError
    time.gmtime(failure.at)
    return failure


def save(state_directory: str, failures: Iterable[Failure]) -> None:
    """Record these failures instead of all others.  Raises `Unavailable`."""
    kept = sorted(failures, key=lambda failure: failure.at)[-MAX_FAILURES:]
    document = {"version": VERSION, "failures": [asdict(failure) for failure in kept]}
    files.write_own(path(state_directory), json.dumps(document).encode() + b"\n")


class Attempt:
    """One deployment of `config`, with what earlier ones say about it."""

    def __init__(
        self, settings: Settings, config: Config, plan: Plan | None = None, *, is_forced: bool
    ) -> None:
        self._settings = settings
        self._config = config
        self._plan = plan
        self._before = load(settings.state_directory)
        self._is_forced = is_forced

    def rejected(self, taker: Taker) -> tuple[Problem, ...]:
        """The units, or the text, that failed at a reload before and would fail again."""
        if self._is_forced or not self._before:
            return ()
        relevant = [failure for failure in self._before if self._is_same(failure, taker)]
        if sum(failure.is_suspected for failure in self._before) > 1:
            # One at a time shows which one it is; the last one left needs no further attempt.
            # Others may be withheld from this text already: that does not make one the last.
            first = next((failure for failure in relevant if failure.is_suspected), None)
            relevant = [failure for failure in relevant if failure is not first]
        return tuple(self._problem(failure) for failure in relevant)

    def failed(self, taker: Taker, outcome: ReloadOutcome) -> tuple[Problem, ...]:
        """Record that HAProxy failed to take the configuration; returns what hindered that.

        `taker` is HAProxy as it is now.
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
        # The one that fails alone is the cause: those that were suspected with it are not.
        is_settled = is_certain or len(fresh) == 1
        others = [
            each
            for each in self._before
            if each.unit not in {one.unit for one in fresh}
            and not (is_settled and each.is_suspected)
        ]
        return self._saved((*others, *fresh))

    def succeeded(self) -> tuple[Problem, ...]:
        """Forget the failures of what HAProxy has now; returns what hindered that."""
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
        """The digests of the units' sections, and that of the whole text with None."""
        sections = {section.unit: section.text for section in self._config.sections}
        texts: dict[UnitId | None, str] = {unit: _digest(text) for unit, text in sections.items()}
        texts[None] = _digest("\n".join(sections.values())) if sections else self._config.hash
        return texts

    def _is_same(self, failure: Failure, taker: Taker) -> bool:
        return self._texts.get(failure.unit) == failure.text and (
            self._circumstances(failure.unit, taker) == failure.circumstances
        )

    def _blamed(self, taker: Taker, outcome: ReloadOutcome) -> tuple[list[Owned], bool]:
        """The listeners that are the cause, and whether that is certain.

        HAProxy names them from 2.7 on.  Otherwise it is one of the new ones, and rather one of
        those that we could not try.  None if there are none: then it was something else.
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
        """The line of a listener in the whole text."""
        for each in self._config.places:
            if each.unit == owned.owner:
                return each.first + owned.listener.line - 1
        return owned.listener.line

    def _circumstances(self, unit: UnitId | None, taker: Taker) -> str:
        """A digest of what may have blocked a unit, or of HAProxy's processes for the text."""
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
    """The units in the order in which they may be tried again one by one.

    Binds that are declared as such are checked more closely than raw text.
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
    """A digest of a text that stays the same when only pods come and go."""
    lines = [line for line in text.split("\n") if line.split()[:1] not in _SERVER_LINES]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _surroundings(endpoint: ListenEndpoint, holders: Holders) -> object:
    """What may keep HAProxy from an endpoint, as far as it can be seen, but for HAProxy itself."""
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
