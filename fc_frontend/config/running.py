"""The raw declarations of the running configuration, kept for the next start.

The text of the running sections is in haproxy.cfg and in the history; these are the declarations
from which it was rendered.  They are stored unchecked, and validated again whenever they are used.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from posixpath import basename
from typing import Any

from fc_frontend import files
from fc_frontend.config.trust import Level
from fc_frontend.model.units import UnitId, UnitKind
from fc_frontend.plan.addresses import PATH_LETTERS
from fc_frontend.text import is_printable

VERSION = 6
_NAME = re.compile(rf"[{PATH_LETTERS.replace('/', '')}]+")
_BLANK = re.compile(r"\\[nrt]")
"""A line end or tab as JSON escapes it."""
_COPY = re.compile(r"[0-9a-f]{64}(\.list)?")
_MOST_BYTES = 64 * 1024 * 1024
MAX_FORMER_AGE = 60.0
"""Seconds for which former declarations on disk are valid: the guard watches services for less."""


@dataclass(frozen=True, slots=True)
class RawDeclaration:
    """A service's fields or a fragment's text as written in `file`.

    `level` is the trust level of the file when HAProxy accepted the declaration.  It is kept: a
    declaration by a trusted user remains acceptable if others may write the file later.
    """

    file: str
    value: Any
    level: Level = Level.TRUSTED


@dataclass(frozen=True, slots=True)
class RunningDeclarations:
    """The declarations from which the running configuration was rendered.

    - `files`: the files that its sections name, each with the name of its copy.
    - `failed`: the declarations of services that lost all their servers after a reload; their
      `file` contains the evidence.
    - `former`: the earlier declarations of services that the guard watches, oldest first.
    - `withheld`: the units whose change is not deployed, with fingerprints of their declarations.
    - `consents`: the units that an operator forced, with fingerprints of their declarations.
    - `hash`: the digest of the configuration; None if nothing has been deployed yet.
    """

    settings: Mapping[str, Any] | None = None
    services: Mapping[str, RawDeclaration] = field(default_factory=dict)
    fragments: Mapping[str, RawDeclaration] = field(default_factory=dict)
    frontends: Mapping[str, RawDeclaration] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, tuple[RawDeclaration, ...]] = field(default_factory=dict)
    former: Mapping[str, tuple[RawDeclaration, ...]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    withheld: Mapping[UnitId, str] = field(default_factory=dict)
    consents: Mapping[UnitId, str] = field(default_factory=dict)
    hash: str | None = field(default=None, compare=False)

    def way_back(self, name: str) -> RawDeclaration | None:
        """Return the newest earlier declaration of a service that has not failed."""
        failed = [each.value for each in self.failed.get(name, ())]
        ways = (each for each in reversed(self.former.get(name, ())) if each.value not in failed)
        return next(ways, None)

    def ways_back(self) -> dict[str, RawDeclaration]:
        """Return the declarations to restore for services whose running declaration has failed."""
        return {
            name: form
            for name in self.failed
            if (now := self.services.get(name)) is not None
            and self.has_failed(name, now.value)
            and (form := self.way_back(name)) is not None
        }

    def after_failure(self, name: str, evidence: str, back: RawDeclaration) -> RunningDeclarations:
        """Return a copy in which a service's running declaration has failed, to restore `back`."""
        running = self.services[name]
        failed = self.failed.get(name, ())
        if self.has_failed(name, running.value) is None:
            failed = (*failed, RawDeclaration(evidence, running.value))
        return replace(
            self,
            failed={**self.failed, name: failed},
            former={**self.former, name: (*self.former.get(name, ()), back)},
        )

    def has_failed(self, name: str, value: Any) -> RawDeclaration | None:
        """Return the evidence that a declaration of a service failed; None if it did not."""
        return next((each for each in self.failed.get(name, ()) if each.value == value), None)

    def named_files(self) -> dict[str, str]:
        """Return the files, with their copies, that current or former declarations name."""
        if not self.files:
            return {}
        forms = chain(
            self.services.values(),
            self.fragments.values(),
            self.frontends.values(),
            *self.former.values(),
        )
        text = "\n".join((_json(self.settings), *(_json(form.value) for form in forms)))
        names = set(_NAME.findall(_BLANK.sub(" ", text)))
        return {path: copy for path, copy in self.files.items() if basename(path) in names}


def load_running(path: str) -> RunningDeclarations:
    """Load what `dump_running` wrote; empty if the file is missing, damaged or not fc-frontend's.

    Former declarations are dropped if the file is older than `MAX_FORMER_AGE`.
    """
    try:
        content, seen = files.read_own(path, _MOST_BYTES), files.signature(path)
        if content is None or seen is None:
            return RunningDeclarations()
        running = _parsed(json.loads(content))
        age = time.time() - seen[2] / 1e9
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return RunningDeclarations()
    return running if abs(age) < MAX_FORMER_AGE else replace(running, former={})


def dump_running(running: RunningDeclarations) -> bytes:
    """Return the declarations in the format that `load_running` reads."""
    document = {
        "version": VERSION,
        "settings": running.settings,
        "services": _entries(running.services),
        "fragments": _entries(running.fragments),
        "frontends": _entries(running.frontends),
        "templates": dict(running.templates),
        "files": dict(running.files),
        "failed": _lists(running.failed),
        "former": _lists(running.former),
        "withheld": _by_unit(running.withheld),
        "consents": _by_unit(running.consents),
        "hash": running.hash,
    }
    return _json(document).encode() + b"\n"


def _entries(forms: Mapping[str, RawDeclaration]) -> dict[str, tuple[str, Any, Level]]:
    return {name: _entry(form) for name, form in forms.items()}


def _entry(form: RawDeclaration) -> tuple[str, Any, Level]:
    return form.file, form.value, form.level


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _parsed(document: Any) -> RunningDeclarations:
    """Parse a document.  Raises KeyError, TypeError or ValueError if the format is invalid."""
    if document["version"] != VERSION:
        raise ValueError
    settings = document["settings"]
    if settings is not None and not isinstance(settings, dict):
        raise TypeError
    fragments = _forms(document["fragments"])
    if not all(isinstance(form.value, str) for form in fragments.values()):
        raise TypeError
    templates = document["templates"]
    if not all(isinstance(text, str) for text in templates.values()):
        raise TypeError
    services = _forms(document["services"])
    failed, former = _tuples(document["failed"]), _tuples(document["former"])
    files = document["files"]
    if not all(_COPY.fullmatch(name) for name in files.values()):
        raise ValueError
    withheld, consents = _units(document["withheld"]), _units(document["consents"])
    hash_ = document["hash"]
    if hash_ is not None and not isinstance(hash_, str):
        raise TypeError
    return RunningDeclarations(
        settings,
        services,
        fragments,
        _forms(document["frontends"]),
        templates,
        failed,
        former,
        files,
        withheld,
        consents,
        hash_,
    )


def _by_unit(found: Mapping[UnitId, str]) -> list[tuple[str, str, str]]:
    return [(unit.kind, unit.name, text) for unit, text in sorted(found.items())]


def _units(entries: Any) -> dict[UnitId, str]:
    return {UnitId(UnitKind(kind), str(name)): str(text) for kind, name, text in entries}


def _forms(entries: Any) -> dict[str, RawDeclaration]:
    return {name: _form(entry) for name, entry in entries.items() if is_printable(name)}


def _tuples(entries: Any) -> dict[str, tuple[RawDeclaration, ...]]:
    return {name: tuple(map(_form, listed)) for name, listed in entries.items()}


def _form(entry: Any) -> RawDeclaration:
    file, value, level = entry
    if not isinstance(file, str):
        raise TypeError
    return RawDeclaration(file, value, Level(level))


def _lists(
    forms: Mapping[str, tuple[RawDeclaration, ...]],
) -> dict[str, list[tuple[str, Any, Level]]]:
    return {name: [_entry(form) for form in listed] for name, listed in forms.items()}
