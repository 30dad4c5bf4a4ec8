"""Sections that are kept as HAProxy text: their groups, and the text of each fragment.

A fragment is self-contained: it includes the `defaults` of its sections, with a name, because
they must not depend on another fragment's `defaults`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fc_frontend.migrate.sections import OldSection
from fc_frontend.syntax.lines import Line
from fc_frontend.syntax.sections import PROXIES

_ROUTING = frozenset("use_backend default_backend".split())
_REFERRING = frozenset(
    """
    table resolvers peers mailers cache cache-use cache-store use-fcgi-app errorfiles userlist
    """.split()
)
_INNER = re.compile(r"\(([^()]*)\)")
_NAME = re.compile(r"[A-Za-z0-9_.:-]+")
_COMPUTED = re.compile(r"%\[.*\]")
_BACKENDS = ("backend", "listen")


class Mention(NamedTuple):
    """A reference to another section by name.

    `is_route` is True if requests are sent to it, which only a backend accepts.  A part of its name
    that is computed for each request is `*`.
    """

    name: str
    is_route: bool = False

    @property
    def is_computed(self) -> bool:
        """Whether the name depends on the request."""
        return "*" in self.name


class References:
    """The references between sections."""

    def __init__(self, sections: Sequence[OldSection]) -> None:
        by_name: dict[str, list[OldSection]] = {}
        for section in sections:
            by_name.setdefault(section.name, []).append(section)
        backends = [section for section in sections if section.kind in _BACKENDS]
        self._users: dict[int, list[OldSection]] = {}
        self._named: dict[int, list[OldSection]] = {}
        computed: list[tuple[OldSection, Mention]] = []
        for section in sections:
            for mention in sorted(_mentions_of(section)):
                if mention.is_computed:
                    computed.append((section, mention))
                    continue
                for other in by_name.get(mention.name, ()):
                    if other is not section and (not mention.is_route or other.kind in _BACKENDS):
                        self._add(section, other)
        self._computed: dict[int, list[OldSection]] = {}
        named = set(self._users)
        for section, mention in computed:
            pattern = re.compile(".*".join(re.escape(part) for part in mention.name.split("*")))
            for other in backends:
                if other is section or not pattern.fullmatch(other.name):
                    continue
                if id(other) in named:
                    self._computed.setdefault(id(other), []).append(section)
                else:
                    self._add(section, other)

    def _add(self, section: OldSection, other: OldSection) -> None:
        users = self._users.setdefault(id(other), [])
        if not any(user is section for user in users):
            users.append(section)
            self._named.setdefault(id(section), []).append(other)

    def users(self, section: OldSection) -> list[OldSection]:
        """Return the sections that refer to it.

        These include sections with a computed name that matches it, if no section refers to it by
        name.
        """
        return self._users.get(id(section), [])

    def possible_users(self, section: OldSection) -> list[OldSection]:
        """Return the sections, besides its users, that may select it by a computed name."""
        return self._computed.get(id(section), [])

    def named(self, section: OldSection) -> list[OldSection]:
        """Return the sections to which it refers."""
        return self._named.get(id(section), [])


def _mentions_of(section: OldSection) -> set[Mention]:
    found: set[Mention] = set()
    for line in [*section.statements, *(one for base in section.lineage() for one in base.lines)]:
        found |= _mentions(line)
    return found


def _mentions(line: Line) -> set[Mention]:
    found: set[Mention] = set()
    before = ""
    for word in line.words:
        text = word.text
        if before in _ROUTING:
            name = "*" if word.variable else _COMPUTED.sub("*", text)
            found.add(Mention(name, is_route=True))
        if before in _REFERRING or (before == "group" and line.keyword == "user"):
            found.add(Mention(text.replace("*", "")))
        if before == "track":
            found.add(Mention(text.partition("/")[0].replace("*", "")))
        if text.startswith("@"):
            found.add(Mention(text[1:].partition("/")[0].replace("*", "")))
        if text.startswith("ring@"):
            found.add(Mention(text.removeprefix("ring@").replace("*", "")))
        for inner in _INNER.findall(text):
            found.update(Mention(name) for name in _NAME.findall(inner.replace("/", " ")))
        before = text
    return found


def together(sections: Sequence[OldSection], references: References) -> list[list[OldSection]]:
    """Return the sections in groups that refer to each other, in their order.

    A section that several groups of proxies use (`resolvers`, `userlist`, `peers`…) is a group of
    its own.
    """
    positions = {id(section): index for index, section in enumerate(sections)}
    leaders = list(range(len(sections)))

    def leader(index: int) -> int:
        while leaders[index] != index:
            leaders[index] = leaders[leaders[index]]
            index = leaders[index]
        return index

    def join(one: int, two: int) -> None:
        first, second = sorted((leader(one), leader(two)))
        leaders[second] = first

    shared: list[OldSection] = []
    for section in sections:
        users = [positions[id(user)] for user in references.users(section) if id(user) in positions]
        if section.kind in PROXIES:
            for user in users:
                join(positions[id(section)], user)
        elif users:
            shared.append(section)
    # The proxies are in their groups: a section used by only one of these joins it.
    for section in reversed(shared):
        users = [positions[id(user)] for user in references.users(section) if id(user) in positions]
        if len({leader(user) for user in users}) == 1:
            join(positions[id(section)], users[0])
    groups: dict[int, list[OldSection]] = {}
    for index, section in enumerate(sections):
        groups.setdefault(leader(index), []).append(section)
    return list(groups.values())


def fragment_name(group: Sequence[OldSection], taken: Iterable[str]) -> str:
    """Return a file name for a group, based on its first proxy, that is not in `taken`."""
    named = next((s for s in group if s.kind in PROXIES), group[0])
    base = re.sub(r"[^A-Za-z0-9._-]", "-", named.name or named.kind)[:80].lstrip("._-") or "raw"
    name, number, used = base, 2, set(taken)
    while name in used:
        name, number = f"{base}-{number}", number + 1
    return name


def fragment_text(name: str, group: Sequence[OldSection]) -> str:
    """Return the text of a fragment: each section unchanged, with its `defaults`."""
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
