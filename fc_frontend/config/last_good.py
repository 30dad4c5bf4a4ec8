"""What was last accepted, as it was declared, piece by piece: what a faulty piece goes back to.

A piece is a service, a fragment, the settings or the operator's templates.  Forms are kept as they
stood in their files, so that they go through all checks again when they are used.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from fc_frontend import files
from fc_frontend.config.trust import Level
from fc_frontend.errors import Problem
from fc_frontend.plan.addresses import PATH_LETTERS, SAFE_PATH
from fc_frontend.text import is_printable

VERSION = 3
_HASH = re.compile(r"[0-9a-f]{64}")
_MOST_BYTES = 64 * 1024 * 1024
MAX_FORMER_AGE = 60.0
"""Seconds for which former forms are valid on disk: the guard watches services for less."""


class Piece(StrEnum):
    """What can be faulty for itself."""

    SERVICE = "service"
    FRAGMENT = "fragment"
    FILE = "file"
    """A file that cannot be read as a whole: all that it declared before."""
    DUPLICATE = "duplicate"
    """A definition of a service that does not count, because another file defines it as well."""
    SETTINGS = "settings"
    TEMPLATES = "templates"


@dataclass(frozen=True, slots=True, order=True)
class Unit:
    """One piece by its name: a service's, a fragment's, a file's path."""

    piece: Piece
    name: str = ""

    def __str__(self) -> str:
        return f"{self.piece} {self.name}".strip()


@dataclass(frozen=True, slots=True)
class Form:
    """A service's fields or a fragment's text as they were in `file`.

    `level` is the trust level of the file when the form was accepted.  The form keeps it: what was
    written by a trusted user stays acceptable if others may write the file later.
    """

    file: str
    value: Any
    level: Level = Level.TRUSTED


@dataclass(frozen=True, slots=True)
class Written:
    """A form as JSON, and what in it may be a path."""

    form: Form
    text: str
    paths: tuple[str, ...]


@dataclass(slots=True)
class Memo:
    """What was written of forms before: a form that is the very same is not written again."""

    services: Mapping[str, Written] = field(default_factory=dict)
    fragments: Mapping[str, Written] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LastGood:
    """The forms of everything that was in force when HAProxy last accepted it."""

    settings: Mapping[str, Any] | None = None
    services: Mapping[str, Form] = field(default_factory=dict)
    fragments: Mapping[str, Form] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, tuple[Form, ...]] = field(default_factory=dict)
    """Forms of services that lost all their servers: not tried again until another form runs.

    In these, `file` is the evidence.
    """
    former: Mapping[str, tuple[Form, ...]] = field(default_factory=dict)
    """Earlier forms of services that the guard watches, oldest first; see `daemon.guard`."""
    files: Mapping[str, str] = field(default_factory=dict)
    """The files that sections name, and the hashes of what they held."""
    hash: str | None = field(default=None, compare=False)
    """The configuration in which they are being deployed; None once HAProxy confirmed it."""

    def differing(self, other: LastGood) -> frozenset[Unit]:
        """The units whose form here is not the one that they have in `other`.

        A service that only moved to another file is the same.
        """
        found = {
            Unit(piece, name)
            for piece, mine, theirs in (
                (Piece.SERVICE, self.services, other.services),
                (Piece.FRAGMENT, self.fragments, other.fragments),
            )
            for name, form in mine.items()
            if (former := theirs.get(name)) is not form
            and (former is None or former.value != form.value)
        }
        if self.settings != other.settings:
            found.add(Unit(Piece.SETTINGS))
        if self.templates != other.templates:
            found.add(Unit(Piece.TEMPLATES))
        return frozenset(found)

    def with_former(self, former: LastGood, units: Iterable[Unit]) -> LastGood:
        """Return these forms, and the `former` ones of `units` that are left out here.

        A unit that had to be left out may come back in the form that it had.  A form that failed
        is not good: its service keeps its former one.
        """
        services, fragments = dict(self.services), dict(self.fragments)
        for name, forms in former.failed.items():
            running = services.get(name)
            if running and name in former.services and running.value in [f.value for f in forms]:
                services[name] = former.services[name]
        for unit in units:
            if unit.piece is Piece.SERVICE and unit.name in former.services:
                services.setdefault(unit.name, former.services[unit.name])
            if unit.piece is Piece.FRAGMENT and unit.name in former.fragments:
                fragments.setdefault(unit.name, former.fragments[unit.name])
        return replace(
            self,
            services=services,
            fragments=fragments,
            failed=former.failed,
            files=former.files,
        )

    def named_files(self, memo: Memo | None = None) -> dict[str, str]:
        """The files, with their hashes, that these forms and former ones still name."""
        if not self.files:
            return {}
        services, fragments = self.written(memo)
        former = [_write(form) for forms in self.former.values() for form in forms]
        named = {
            path
            for each in (*services.values(), *fragments.values(), *former)
            for path in each.paths
        }
        return {path: digest for path, digest in self.files.items() if path in named}

    def written(self, memo: Memo | None = None) -> tuple[dict[str, Written], dict[str, Written]]:
        """The forms of services and of fragments, as they are kept on disk."""
        memo = memo or Memo()
        services = _written(self.services, memo.services)
        fragments = _written(self.fragments, memo.fragments)
        memo.services, memo.fragments = services, fragments
        return services, fragments

    def with_paths(self, substitutes: Mapping[str, str]) -> LastGood:
        """These forms with other paths in the place of some."""
        if not substitutes:
            return self
        return replace(
            self,
            services={
                n: replace(f, value=_replaced(f.value, substitutes))
                for n, f in self.services.items()
            },
            fragments={
                n: replace(f, value=_replaced(f.value, substitutes))
                for n, f in self.fragments.items()
            },
        )


@dataclass(frozen=True, slots=True)
class Quarantine:
    """A unit that is not taken as it is declared, and why.

    With `kept`, what was last good goes on; otherwise it is left out until it is mended.
    """

    unit: Unit
    problems: tuple[Problem, ...]
    kept: bool

    def as_json(self) -> dict[str, Any]:
        """The quarantine in the shape of all JSON output."""
        return {
            "piece": self.unit.piece.value,
            "name": self.unit.name,
            "effect": self.effect,
            "is_kept": self.kept,
            "problems": [problem.as_json() for problem in self.problems],
        }

    @property
    def effect(self) -> str:
        """What happens meanwhile, in words."""
        return "the last good form goes on" if self.kept else "it is left out"


def load_last_good(path: str) -> LastGood:
    """What `dump_last_good` wrote; nothing where the file is missing, damaged or foreign.

    Former forms are dropped if the file is older than `MAX_FORMER_AGE`.
    """
    try:
        content, seen = files.read_own(path, _MOST_BYTES), files.signature(path)
        if content is None or seen is None:
            return LastGood()
        last_good = _last_good(json.loads(content))
        age = time.time() - seen[2] / 1e9
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return LastGood()
    return last_good if abs(age) < MAX_FORMER_AGE else replace(last_good, former={})


def dump_last_good(last_good: LastGood, memo: Memo | None = None) -> bytes:
    """The forms as `load_last_good` reads them."""
    services, fragments = last_good.written(memo)
    members = {
        "version": _json(VERSION),
        "settings": _json(last_good.settings),
        "services": _object({name: each.text for name, each in services.items()}),
        "fragments": _object({name: each.text for name, each in fragments.items()}),
        "templates": _json(dict(last_good.templates)),
        "files": _json(dict(last_good.files)),
        "failed": _json(_lists(last_good.failed)),
        "former": _json(_lists(last_good.former)),
        "hash": _json(last_good.hash),
    }
    return _object(members).encode() + b"\n"


def _written(forms: Mapping[str, Form], known: Mapping[str, Written]) -> dict[str, Written]:
    return {
        name: was if (was := known.get(name)) is not None and was.form is form else _write(form)
        for name, form in forms.items()
    }


def _write(form: Form) -> Written:
    value = _json(form.value)
    text = f"[{_json(form.file)},{value},{_json(form.level)}]"
    return Written(form, text, tuple(SAFE_PATH.findall(value)))


def _object(members: Mapping[str, str]) -> str:
    """A JSON object, of members that are JSON already."""
    return "{" + ",".join(f"{_json(name)}:{text}" for name, text in members.items()) + "}"


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _last_good(document: Any) -> LastGood:
    """Raises KeyError, TypeError or ValueError for what `dump_last_good` would not write."""
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
    if not all(_HASH.fullmatch(digest) for digest in files.values()):
        raise ValueError
    hash_ = document["hash"]
    if hash_ is not None and not isinstance(hash_, str):
        raise TypeError
    return LastGood(settings, services, fragments, templates, failed, former, files, hash_)


def _replaced(value: Any, substitutes: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for path, substitute in substitutes.items():
            value = re.sub(rf"{re.escape(path)}(?![{PATH_LETTERS}])", substitute, value)
        return value
    if isinstance(value, list):
        return [_replaced(item, substitutes) for item in value]
    if isinstance(value, dict):
        return {key: _replaced(item, substitutes) for key, item in value.items()}
    return value


def _forms(entries: Any) -> dict[str, Form]:
    return {name: _form(entry) for name, entry in entries.items() if is_printable(name)}


def _tuples(entries: Any) -> dict[str, tuple[Form, ...]]:
    return {name: tuple(map(_form, listed)) for name, listed in entries.items()}


def _form(entry: Any) -> Form:
    file, value, level = entry
    if not isinstance(file, str):
        raise TypeError
    return Form(file, value, Level(level))


def _lists(forms: Mapping[str, tuple[Form, ...]]) -> dict[str, list[tuple[str, Any, Level]]]:
    return {name: [(f.file, f.value, f.level) for f in listed] for name, listed in forms.items()}
