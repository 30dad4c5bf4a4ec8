"""The declarations of what HAProxy runs, as they are in their files, kept for the next start.

The text of the running sections is in haproxy.cfg and in the history; these say what it was made
of.  Declarations are kept unchecked, and go through all checks again when they are used.
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
"""As JSON writes a line's end or a tab."""
_COPY = re.compile(r"[0-9a-f]{64}(\.list)?")
_MOST_BYTES = 64 * 1024 * 1024
MAX_FORMER_AGE = 60.0
"""Seconds for which former forms are valid on disk: the guard watches services for less."""


@dataclass(frozen=True, slots=True)
class RawDeclaration:
    """A service's fields or a fragment's text as they are in `file`.

    `level` is the trust level of the file when HAProxy accepted it, and stays: what a trusted user
    wrote stays acceptable if others may write the file later.
    """

    file: str
    value: Any
    level: Level = Level.TRUSTED


@dataclass(frozen=True, slots=True)
class RunningDeclarations:
    """What the running configuration was made of.

    `files` has the files that its sections name, each with the name of its copy.  `failed` has
    the declarations of services that lost all their servers after a reload; there, `file` is the
    evidence.  `former` has the earlier declarations of services that the guard watches, oldest
    first.  `withheld` has the units whose change is not deployed, and `consents` those that an
    operator forced, both with a fingerprint of what the files said.  `hash` is the digest of the
    configuration, None if nothing was deployed yet.
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
        """The newest earlier declaration of a service that has not failed."""
        failed = [each.value for each in self.failed.get(name, ())]
        ways = (each for each in reversed(self.former.get(name, ())) if each.value not in failed)
        return next(ways, None)

    def ways_back(self) -> dict[str, RawDeclaration]:
        """The declarations that services go back to which lost all their servers as they run."""
        return {
            name: form
            for name in self.failed
            if (now := self.services.get(name)) is not None
            and self.has_failed(name, now.value)
            and (form := self.way_back(name)) is not None
        }

    def after_failure(self, name: str, evidence: str, back: RawDeclaration) -> RunningDeclarations:
        """These, once the running declaration of a service failed and it is to go `back`."""
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
        """The evidence against a declaration of a service, None if there is none."""
        return next((each for each in self.failed.get(name, ()) if each.value == value), None)

    def named_files(self) -> dict[str, str]:
        """The files, with their copies, whose names are in these declarations and former ones."""
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
    """What `dump_running` wrote; nothing where the file is missing, damaged or foreign.

    Former forms are dropped if the file is older than `MAX_FORMER_AGE`.
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
    """The forms as `load_running` reads them."""
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
    """Raises KeyError, TypeError or ValueError for what `dump_running` would not write."""
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
