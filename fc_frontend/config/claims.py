"""Which of several definitions of one service counts: an untrusted file cannot take a name."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol, TypeVar

from fc_frontend.errors import Problem
from fc_frontend.model.units import UnitId, UnitKind


class Definition(Protocol):
    """A service as a file defines it."""

    @property
    def name(self) -> str:
        """The service's name."""

    @property
    def file(self) -> str:
        """The path of the file."""

    @property
    def line(self) -> int:
        """Where it begins, from 1; 0 if that is unknown."""

    def problem(self, field: str, message: str, remedy: str) -> Problem:
        """A problem at its place in the file."""


D = TypeVar("D", bound=Definition)


def settle(
    definitions: Sequence[D], trusted: Collection[str], running: str | None
) -> tuple[D, dict[UnitId, tuple[Problem, ...]]]:
    """The definition that counts, and what is wrong with the others, by unit.

    `definitions` are in the order of the files, `trusted` are paths, and `running` is the file of
    the definition that HAProxy has.  Definitions in trusted files come first.  If there are several
    of those, the service itself is at fault, because nobody can tell which one is meant.  Others
    cost nothing but themselves; among them, the running one counts.
    """
    is_contested = not any(each.file in trusted for each in definitions)
    ranked = sorted(
        definitions,
        key=lambda each: each.file != running if is_contested else each.file not in trusted,
    )
    first = ranked[0]
    faults: dict[UnitId, tuple[Problem, ...]] = {}
    for other in ranked[1:]:
        problem = other.problem(
            "",
            f"is also defined in {first.file}:{first.line}",
            "rename one of the two, or remove it",
        )
        unit = UnitId(UnitKind.SERVICE, other.name)
        if other.file not in trusted:
            unit = UnitId(UnitKind.DUPLICATE, f"{other.name} in {other.file}")
        faults[unit] = (*faults.get(unit, ()), problem)
    return first, faults
