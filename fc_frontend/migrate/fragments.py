"""Sections that stay HAProxy text: what belongs together, and the text of each fragment.

A fragment stands alone: the `defaults` that a section relied on go with it, under a name, because
another fragment's `defaults` must not reach into it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from fc_frontend.migrate.sections import OldSection
from fc_frontend.syntax.lines import Line
from fc_frontend.syntax.sections import PROXIES

_REFERRING = frozenset(
    """
    use_backend default_backend table resolvers peers mailers cache cache-use cache-store
    use-fcgi-app errorfiles userlist
    """.split()
)
_INNER = re.compile(r"\(([^()]*)\)")
_NAME = re.compile(r"[A-Za-z0-9_.:-]+")


def mentions(section: OldSection) -> set[str]:
    """The names of other sections that a section may refer to; `*` for any backend."""
    found: set[str] = set()
    for line in [*section.statements, *(one for base in section.lineage() for one in base.lines)]:
        found |= _mentions(line)
    return found - {section.name}


def _mentions(line: Line) -> set[str]:
    found: set[str] = set()
    before = ""
    for word in line.words:
        text = word.text
        if before in _REFERRING or (before == "group" and line.keyword == "user"):
            found.add(text)
            if before == "use_backend" and ("%[" in text or word.variable):
                found.add("*")
        if before == "track":
            found.add(text.partition("/")[0])
        if text.startswith("@"):
            found.add(text[1:].partition("/")[0])
        if text.startswith("ring@"):
            found.add(text.removeprefix("ring@"))
        for inner in _INNER.findall(text):
            found.update(_NAME.findall(inner.replace("/", " ")))
        before = text
    return found


def together(sections: Sequence[OldSection]) -> list[list[OldSection]]:
    """The sections in groups that refer to each other, in their order."""
    leaders = list(range(len(sections)))

    def leader(index: int) -> int:
        while leaders[index] != index:
            leaders[index] = leaders[leaders[index]]
            index = leaders[index]
        return index

    by_name: dict[str, list[int]] = {}
    for index, section in enumerate(sections):
        by_name.setdefault(section.name, []).append(index)
        if section.kind == "backend":
            by_name.setdefault("*", []).append(index)
    for index, section in enumerate(sections):
        # A frontend and a backend may share a name, and one means the other.
        for name in {*mentions(section), section.name}:
            for other in by_name.get(name, ()):
                if name != section.name or {section.kind, sections[other].kind} <= set(PROXIES):
                    one, two = sorted((leader(index), leader(other)))
                    leaders[two] = one
    groups: dict[int, list[OldSection]] = {}
    for index, section in enumerate(sections):
        groups.setdefault(leader(index), []).append(section)
    return list(groups.values())


def fragment_name(group: Sequence[OldSection], taken: Iterable[str]) -> str:
    """A file's name for a group, after its first proxy; one that is not in `taken`."""
    named = next((s for s in group if s.kind in PROXIES), group[0])
    base = re.sub(r"[^A-Za-z0-9._-]", "-", named.name or named.kind)[:80].lstrip("._-") or "raw"
    name, number, used = base, 2, set(taken)
    while name in used:
        name, number = f"{base}-{number}", number + 1
    return name


def fragment_text(name: str, group: Sequence[OldSection]) -> str:
    """The text of a fragment: each section as it was, with the `defaults` that it relied on."""
    text: list[str] = []
    names: dict[int, str] = {}

    def write_defaults(section: OldSection) -> str:
        if id(section) in names:
            return names[id(section)]
        parent = f" from {write_defaults(section.base)}" if section.base else ""
        own = f"{name}-defaults" + (f"-{len(names) + 1}" if names else "")
        names[id(section)] = own
        _write(text, section, f"defaults {own}{parent}")
        return own

    for section in group:
        header = section.header.source
        if section.kind in PROXIES:
            if section.base is None:
                if 0 not in names:
                    names[0] = f"{name}-no-defaults"
                    text.extend([f"defaults {names[0]}", ""])
                base = names[0]
            else:
                base = write_defaults(section.base)
            header = f"{section.kind} {section.header.words[1].source} from {base}"
        _write(text, section, header)
    return "\n".join(text).rstrip("\n") + "\n"


def _write(text: list[str], section: OldSection, header: str) -> None:
    text.extend(section.comment)
    text.append(header)
    text.extend(f"    {line.source}" if line.source else "" for line in section.lines)
    text.append("")
