"""Units: the things that can be wrong on their own, and what HAProxy runs of them.

    declared form ─┐
                   ├─► Change (added, edited, removed) ─► applied, or withheld
    running form ──┘

A unit's form is the text of its section in haproxy.cfg.  Comparing texts covers everything that
can change it: the declaration, DNS answers, settings, templates and another fc-frontend.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class UnitKind(StrEnum):
    """What a unit is."""

    SETTINGS = "settings"
    TEMPLATES = "templates"
    SERVICE = "service"
    FRAGMENT = "fragment"


@dataclass(frozen=True, slots=True)
class UnitId:
    """A unit's identity: its kind, its name, and the source that declares it.

    Units sort in the order of their sections in haproxy.cfg.
    """

    kind: UnitKind
    name: str = ""
    source: str = "files"

    def __lt__(self, other: UnitId) -> bool:
        return self._position < other._position

    @property
    def _position(self) -> tuple[int, str, str]:
        return _KINDS.index(self.kind), self.name, self.source

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".strip()


_KINDS = tuple(UnitKind)


SETTINGS = UnitId(UnitKind.SETTINGS)
"""Its section is everything before the first service: global, resolvers, defaults, statistics."""
TEMPLATES = UnitId(UnitKind.TEMPLATES)
"""Its section is the source of the operator's templates, which is not printed."""
ENVIRONMENT = frozenset((SETTINGS, TEMPLATES))
"""The units on which the text of all others depends."""


@dataclass(frozen=True, slots=True)
class Resource:
    """Something that sections share or compete for, such as a bind or the name of a backend.

    `kind` is one of "bind", "proxy", "userlist", "peers", "resolvers", "defaults", "cache" or
    "service" (a Kubernetes Service and port).
    """

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


NONE: frozenset[Resource] = frozenset()


@dataclass(frozen=True, slots=True)
class Section:
    """A unit's text in haproxy.cfg, and what links it with others.

    `holds` are resources that one section at most may have: binds, names.  `uses` are names that
    another section must define.  `publishes` are the Kubernetes Services and ports behind it: two
    sections may publish the same, and do so when a service is renamed.
    """

    unit: UnitId
    text: str
    holds: frozenset[Resource] = NONE
    uses: frozenset[Resource] = NONE
    publishes: frozenset[Resource] = NONE
    declaration: str = ""
    """What it was rendered from, as a digest: it stays the same where only templates change."""
    file: str = field(default="", compare=False)
    """The file that declares it."""

    @property
    def links(self) -> frozenset[Resource]:
        """Everything that may link a change of this section with another change."""
        return self.holds | self.uses | self.publishes


class ChangeKind(StrEnum):
    """How a unit's declared form differs from its running form."""

    ADDED = "added"
    EDITED = "edited"
    REMOVED = "removed"
