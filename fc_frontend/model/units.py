"""Units: parts of the configuration that can be invalid on their own, with their running form.

    declared form ─┐
                   ├─► Change (added, edited, removed) ─► applied, or withheld
    running form ──┘

A unit's form is the text of its section in haproxy.cfg.  A comparison of texts covers everything
that can change it: the declaration, DNS answers, settings, templates and another fc-frontend.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class UnitKind(StrEnum):
    """The kind of a unit."""

    SETTINGS = "settings"
    TEMPLATES = "templates"
    FRONTEND = "frontend"
    SERVICE = "service"
    FRAGMENT = "fragment"
    FILE = "file"
    """A file, or services.d, that cannot be read as a whole: it has no section of its own."""
    DUPLICATE = "duplicate"
    """A definition of a service that is ignored, because another file defines it as well."""

    __hash__ = str.__hash__
    """The hash of its text: an enum's own hash is computed in Python each time."""


class UnitId(NamedTuple):
    """A unit's identity: its kind, its name, and the source that declares it.

    Units sort in the order of their sections in haproxy.cfg.
    """

    kind: UnitKind
    name: str = ""
    source: str = "files"

    def __lt__(self, other: object) -> bool:
        return self.position < other.position if isinstance(other, UnitId) else NotImplemented

    @property
    def position(self) -> tuple[int, str, str]:
        """The sort key of units."""
        return _POSITIONS[self.kind], self.name, self.source

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".strip()


_POSITIONS = {kind: number for number, kind in enumerate(UnitKind)}


SETTINGS = UnitId(UnitKind.SETTINGS)
"""Its section is everything before the first service: global, resolvers, defaults, statistics."""
TEMPLATES = UnitId(UnitKind.TEMPLATES)
"""Its section is the source of the operator's templates, which is not printed."""
ENVIRONMENT = frozenset((SETTINGS, TEMPLATES))
"""The units on which the text of all others depends."""


class Resource(NamedTuple):
    """Something that sections share or compete for, such as a bind or the name of a backend.

    `kind` is "bind", "service" (a Kubernetes Service and port), or HAProxy's keyword for a named
    object: "backend", "userlist", "peers", "resolvers" and so on.
    """

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Section:
    """A unit's text in haproxy.cfg.

    `declaration` is a digest of the source of the text: it does not change if only templates
    or DNS answers change.  `file` is the file that declares it, if known.
    """

    unit: UnitId
    text: str
    declaration: str = ""
    file: str = field(default="", compare=False)
    is_trusted: bool = field(default=True, compare=False)
    """Whether the file is trusted."""


class ChangeKind(StrEnum):
    """How a unit's declared form differs from its running form."""

    ADDED = "added"
    EDITED = "edited"
    REMOVED = "removed"
