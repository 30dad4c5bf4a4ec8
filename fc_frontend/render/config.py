"""haproxy.cfg as sections of units, with a digest that identifies the text that HAProxy runs.

Every section except the first follows a comment that names its unit, so the sections of an
installed text can be determined without any other state.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from fc_frontend.model.units import SETTINGS, Section, UnitId, UnitKind
from fc_frontend.syntax.keywords import SECTIONS
from fc_frontend.syntax.routes import (
    ALLOW_ENDING,
    ALLOW_MARK,
    ROUTE_MARK,
    Match,
    allow_path,
    allowed_in,
    map_entries,
    map_path,
    map_text,
    without_routes,
)

HASH_PREFIX = "fc-frontend:"
HASH_LENGTH = 16
BLANK_DESCRIPTION = HASH_PREFIX + "0" * HASH_LENGTH
"""The placeholder for the digest while the digest is computed."""
MARK = "# fc-frontend unit: "
_MARK_LINE = re.compile(rf"^{MARK}(frontend|service|fragment) (\S+)$", re.MULTILINE)
_ANY_MARK = re.compile(
    rf"^[ \t]*(?:{MARK.strip()}|{ROUTE_MARK.strip()}|{ALLOW_MARK.strip()})", re.MULTILINE
)
_UNIT_MARK = re.compile(rf"^[ \t]*{MARK.strip()}", re.MULTILINE)
_HEADER_OR_DESCRIPTION = re.compile(
    rf"^[ \t]*(?:({'|'.join(sorted(SECTIONS))})(?![^ \t\n#])"
    rf"|description[ \t]+({HASH_PREFIX}[0-9a-f]{{{HASH_LENGTH}}})[ \t]*$)",
    re.MULTILINE,
)


class SectionPlace(NamedTuple):
    """The lines of a unit's section: the first one, and the one after the last, counted from 1."""

    unit: UnitId
    first: int
    end: int


@dataclass(frozen=True)
class Config:
    """The text of haproxy.cfg, its digest, and its sections.

    `sections` is empty if only the text is known.
    """

    text: str
    hash: str
    sections: tuple[Section, ...] = ()

    @cached_property
    def places(self) -> tuple[SectionPlace, ...]:
        """The lines of each section except the settings section."""
        if not self.sections:
            return ()
        head, *others = self.sections
        line = head.text.count("\n") + 2
        places = []
        for section in others:
            first = line + 2
            line = first + section.text.count("\n") + 1
            places.append(SectionPlace(section.unit, first, line))
        return tuple(places)

    def unit_at(self, line: int) -> UnitId | None:
        """Return the frontend, service or fragment whose section contains `line`, from 1."""
        for place in self.places:
            if place.first <= line < place.end:
                return place.unit
        return None

    def unit_named(self, name: str) -> UnitId | None:
        """Return the frontend, service or fragment named `name`, if there is one."""
        return next((place.unit for place in self.places if place.unit.name == name), None)

    @property
    def unit_text(self) -> str:
        """The text of all sections except the settings section."""
        return "\n\n".join(s.text for s in self.sections if s.unit != SETTINGS)

    def section_text(self, name: str) -> str:
        """Return the section text of the unit named `name`; empty if there is none."""
        return next((s.text for s in self.sections if s.unit.name == name), "")


def assemble(sections: Iterable[Section]) -> Config:
    """Return the configuration that consists of `sections`; the settings section must be first."""
    head, *others = sections
    assert head.unit == SETTINGS
    parts = [head.text, "\n"]
    for section in others:
        parts += ["\n", MARK, section.unit.kind, " ", section.unit.name, "\n", section.text, "\n"]
    text = "".join(parts)
    digest = _digest(text)
    place = _description(text)
    assert place is not None
    text = text[: place.start] + HASH_PREFIX + digest + text[place.stop :]
    return Config(text, digest, (head, *others))


def sections_in(text: str) -> tuple[Section, ...]:
    """Return the sections of a text that `assemble` produced; the inverse of `assemble`.

    If the text was edited by others, everything that follows a unit's comment belongs to its
    section.
    """
    marks = list(_MARK_LINE.finditer(text))
    starts = [mark.start() for mark in marks]
    head = text[: starts[0] if starts else len(text)].rstrip("\n")
    sections = [Section(SETTINGS, _blank(head))]
    for mark, end in zip(marks, [*starts[1:], len(text)], strict=False):
        body = text[mark.end() : end].strip("\n")
        sections.append(Section(UnitId(UnitKind(mark[1]), mark[2]), body))
    return tuple(sections)


def has_mark(text: str) -> bool:
    """Return whether a line of `text` looks like a comment for a unit, route or allowed address."""
    return _ANY_MARK.search(text) is not None


def has_unit_mark(text: str) -> bool:
    """Return whether a line of `text` looks like the comment that names a unit."""
    return _UNIT_MARK.search(text) is not None


def maps_in(config_file: str, text: str) -> dict[str, str]:
    """Return the maps that the configuration `text` needs beside `config_file`: path → content.

    All maps that a frontend names are included, even if they are empty.  Lists of allowed addresses
    of frontends and services are included too.
    """
    if f"{MARK}{UnitKind.FRONTEND}" not in text and ALLOW_ENDING not in text:
        return {}
    directory = config_file.rpartition("/")[0]
    sections = sections_in(text)
    entries = map_entries(
        (section.unit.name, section.text)
        for section in sections
        if section.unit.kind is UnitKind.SERVICE
    )
    found: dict[str, str] = {}
    for section in sections:
        name = section.unit.name
        if section.unit.kind is UnitKind.FRONTEND:
            for match in Match:
                if (path := map_path(directory, name, match)) in section.text:
                    found[path] = map_text(entries.get((name, match), {}))
        elif section.unit.kind is not UnitKind.SERVICE:
            continue
        if ALLOW_ENDING in section.text and (path := allow_path(directory, name)) in section.text:
            networks = dict.fromkeys(allowed_in(section.text))
            found[path] = "".join(f"{network}\n" for network in networks)
    return found


def description_of(text: str) -> str | None:
    """Return the description that contains the digest of `text`; None if there is none."""
    place = _description(text)
    return text[place] if place else None


def config_hash(text: str) -> str | None:
    """Return the digest in `text` if it matches the text; None if the text was edited."""
    stated = description_of(text)
    if stated is None or stated != HASH_PREFIX + _digest(_blank(text)):
        return None
    return stated.removeprefix(HASH_PREFIX)


def _blank(text: str) -> str:
    """Return `text` with the placeholder in place of its digest."""
    place = _description(text)
    return text[: place.start] + BLANK_DESCRIPTION + text[place.stop :] if place else text


def _description(text: str) -> slice | None:
    """Locate the description with the digest: the first one in a `global` section.

    The same words in a service's section or in a comment are ignored.
    """
    kind = ""
    for match in _HEADER_OR_DESCRIPTION.finditer(text):
        if match[1]:
            kind = match[1]
        elif kind == "global":
            return slice(*match.span(2))
    return None


def _digest(text: str) -> str:
    # Routes and allowed addresses change at runtime, and are verified by reading them back.
    return hashlib.sha256(without_routes(text).encode()).hexdigest()[:HASH_LENGTH]
