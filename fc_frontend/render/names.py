"""The names that each unit defines in a rendered configuration, and conflicts between units.

HAProxy reports a conflict for the later section, whichever unit is new.
"""

from __future__ import annotations

from collections.abc import Collection

from fc_frontend.errors import Problem
from fc_frontend.model.units import SETTINGS, Resource, Section, UnitId, UnitKind
from fc_frontend.render.config import Config
from fc_frontend.syntax.names import defined_names

_SPARE = 1000
"""Removed units that may stay in the cache."""
_NOT_EXCLUSIVE = frozenset(("table",))
"""Kinds of names that are derived from other names."""

_known: dict[UnitId, tuple[str, frozenset[Resource]]] = {}
"""The names of the sections that were read last, with their texts."""


def name_problems(config: Config, newcomers: Collection[UnitId]) -> tuple[Problem, ...]:
    """Return problems for names that more than one unit defines, each with the unit at fault.

    `newcomers` are the units that HAProxy does not run in this form; they are at fault.  Among
    newcomers, the unit that follows in the configuration is at fault: a fragment rather than a
    service, then the later one by name.
    """
    if len(_known) > 2 * len(config.sections) + _SPARE:
        _known.clear()
    found_names: set[Resource] = set()
    count = 0
    for section in config.sections:
        names = _names(section)
        count += len(names)
        found_names |= names
    if len(found_names) == count:
        # The usual case, in which `newcomers` need not be examined.
        return ()
    order = sorted(
        config.sections,
        key=lambda section: (
            section.unit.kind is not UnitKind.SETTINGS and 1 + (section.unit in newcomers)
        ),
    )
    holders: dict[Resource, UnitId] = {}
    taken: dict[tuple[UnitId, UnitId], Resource] = {}
    for section in order:
        for name in _names(section):
            holder = holders.setdefault(name, section.unit)
            if holder is not section.unit and holder != section.unit:
                found = taken.setdefault((section.unit, holder), name)
                taken[section.unit, holder] = min(found, name, key=str)
    return tuple(_problem(unit, holder, name) for (unit, holder), name in taken.items())


def _names(section: Section) -> frozenset[Resource]:
    known = _known.get(section.unit)
    if known is None or known[0] != section.text:
        names = (name for name in defined_names(section.text) if name.kind not in _NOT_EXCLUSIVE)
        known = _known[section.unit] = section.text, frozenset(names)
    return known[1]


def _problem(unit: UnitId, holder: UnitId, name: Resource) -> Problem:
    owner = "fc-frontend itself" if holder == SETTINGS else str(holder)
    subject = "the section" if unit.kind is UnitKind.FRAGMENT else f"the {unit.kind}"
    return Problem(
        f"{name} is already defined by {owner}",
        f"rename {subject}",
        service=unit.name or None,
        unit=unit,
    )
