"""Select among several definitions of one service: an untrusted file cannot take over a name."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol, TypeVar

from fc_frontend.errors import Problem
from fc_frontend.model.units import UnitId, UnitKind


class Definition(Protocol):
    """A definition of a service in a file."""

    @property
    def name(self) -> str:
        """The service's name."""

    @property
    def file(self) -> str:
        """The path of the file."""

    @property
    def line(self) -> int:
        """The line where it begins, from 1; 0 if unknown."""

    def problem(self, field: str, message: str, remedy: str) -> Problem:
        """Return a problem located in the file."""


D = TypeVar("D", bound=Definition)


def settle(
    definitions: Sequence[D], trusted: Collection[str], running: str | None
) -> tuple[D, dict[UnitId, tuple[Problem, ...]]]:
    """Return the effective definition, and the problems of the others, by unit.

    `definitions` are in the order of the files, `trusted` contains paths, and `running` is the file
    of the definition that HAProxy runs.  Definitions in trusted files take precedence.  If several
    trusted files define the service, the service itself is at fault, because the choice would be
    arbitrary.  Faults of other definitions do not affect the service; if all files are untrusted,
    the running definition takes precedence.
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
