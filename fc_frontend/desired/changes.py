"""Which changes can go together: conflicts, removals that must wait, changes that are linked.

Every function here is about a *composition*: the running sections, with each change either
applied or withheld.  A withheld change leaves its unit exactly as it runs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from fc_frontend.errors import Problem
from fc_frontend.model.units import NONE, ChangeKind, Resource, Section, UnitId

Sections = Mapping[UnitId, Section]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file or directory that could not be read as a whole: nothing in it counts as removed.

    `text` is as much of it as could be read, empty for a directory.
    """

    path: str
    problems: tuple[Problem, ...]
    text: str = ""

    def covers(self, file: str) -> bool:
        """True if `file` is this file, or directly in this directory."""
        return file == self.path or file.rpartition("/")[0] == self.path


@dataclass(frozen=True, slots=True)
class Change:
    """One unit's step from its running section to its declared one."""

    unit: UnitId
    before: Section | None
    after: Section | None

    @property
    def kind(self) -> ChangeKind:
        """Whether the unit is added, edited or removed."""
        if self.before is None:
            return ChangeKind.ADDED
        return ChangeKind.REMOVED if self.after is None else ChangeKind.EDITED

    @property
    def links(self) -> frozenset[Resource]:
        """What may link this change with another one."""
        return frozenset().union(*(side.links for side in (self.before, self.after) if side))

    @property
    def files(self) -> frozenset[str]:
        """The files that declare it, before and after."""
        return frozenset(side.file for side in (self.before, self.after) if side and side.file)


def changes_between(running: Sections, declared: Sections) -> dict[UnitId, Change]:
    """The changes from `running` to `declared`, by unit, in order of units."""
    found: dict[UnitId, Change] = {}
    for unit in sorted(running.keys() | declared.keys()):
        before, after = running.get(unit), declared.get(unit)
        if before is None or after is None or before.text != after.text:
            found[unit] = Change(unit, before, after)
    return found


def compose(running: Sections, declared: Sections, withheld: Collection[UnitId]) -> Sections:
    """The sections with every change applied, but for those of the `withheld` units."""
    composed: dict[UnitId, Section] = {}
    for unit in sorted(running.keys() | declared.keys()):
        section = (running if unit in withheld else declared).get(unit)
        if section is not None:
            composed[unit] = section
    return composed


def conflicts(running: Sections, composed: Sections) -> dict[UnitId, Problem]:
    """The units whose change takes something that another section holds, each with a problem.

    What runs wins; between two changes, the unit that comes first in order.
    """
    holders: dict[Resource, UnitId] = {}
    losers: dict[UnitId, Problem] = {}
    for is_kept in (True, False):
        for unit, section in composed.items():
            kept = section.holds & running[unit].holds if unit in running else NONE
            for resource in sorted(kept if is_kept else section.holds - kept, key=str):
                holder = holders.setdefault(resource, unit)
                if holder != unit:
                    losers.setdefault(unit, _taken(unit, resource, holder))
    return losers


def unmet_needs(running: Sections, declared: Sections, composed: Sections) -> dict[UnitId, Problem]:
    """The changes to withhold because a section would use a name that nobody defines.

    A change that takes a name away from a unit that runs with it is withheld, and so is a change
    that needs a name which only a withheld change defines.  A name that nobody ever defined is
    for HAProxy to report.
    """
    defined = {resource for section in composed.values() for resource in section.holds}
    lost = {r: u for u, s in running.items() for r in s.holds if r not in defined}
    promised = {r: u for u, s in declared.items() for r in s.holds if r not in defined}
    found: dict[UnitId, Problem] = {}
    for unit, section in composed.items():
        former = running.get(unit)
        for resource in sorted(section.uses - defined, key=str):
            if resource in lost and former is not None and resource in former.uses:
                found.setdefault(lost[resource], _still_used(lost[resource], resource, unit))
            elif resource in promised:
                found.setdefault(unit, _needs(unit, resource, promised[resource]))
    return found


def blocked_removals(
    running: Sections,
    declared: Sections,
    faulty: Mapping[UnitId, frozenset[Resource]],
    withheld: Collection[UnitId],
    unreadable: Iterable[Unreadable],
) -> dict[UnitId, tuple[Problem, ...]]:
    """The removals that may be mistakes, each with what suggests that.

    `faulty` are the units with errors of their own, with what they would hold and publish as far
    as it could be read.  A site must not disappear because its new form has a typo.
    """
    found: dict[UnitId, tuple[Problem, ...]] = {}
    claims = dict(faulty)
    for unit in withheld:
        if unit in declared and unit not in claims:
            claims[unit] = declared[unit].holds | declared[unit].publishes
    files = tuple(unreadable)
    for unit, section in running.items():
        if unit in declared or unit in faulty:
            continue
        own = section.holds | section.publishes
        rival = next((other for other, claimed in claims.items() if claimed & own), None)
        if hiding := next((file for file in files if file.covers(section.file)), None):
            found[unit] = hiding.problems
        elif rival is not None:
            found[unit] = (_claimed(unit, rival, min(claims[rival] & own, key=str)),)
        elif mention := next((file for file in files if _mentions(file.text, section)), None):
            found[unit] = (_mentioned(unit, mention),)
    return found


def groups(changes: Iterable[Change]) -> list[tuple[UnitId, ...]]:
    """The changes in groups that belong together: linked by a resource, or in the same file."""
    listed = list(changes)
    leader = list(range(len(listed)))

    def find(index: int) -> int:
        while leader[index] != index:
            leader[index] = leader[leader[index]]
            index = leader[index]
        return index

    first_with: dict[object, int] = {}
    for index, change in enumerate(listed):
        for link in (*change.links, *change.files):
            one, other = sorted((find(first_with.setdefault(link, index)), find(index)))
            leader[other] = one
    members: dict[int, list[UnitId]] = {}
    for index, change in enumerate(listed):
        members.setdefault(find(index), []).append(change.unit)
    return [tuple(group) for group in members.values()]


def _mentions(text: str, section: Section) -> bool:
    if not text:
        return False
    words = [section.unit.name, *(r.name for r in section.holds if r.kind == "bind")]
    return any(word in text for word in words if word)


def _taken(unit: UnitId, resource: Resource, holder: UnitId) -> Problem:
    return Problem(
        message=f"{resource} is taken by {holder}",
        remedy=f"give one of the two another {resource.kind}",
        service=unit.name or None,
    )


def _still_used(unit: UnitId, resource: Resource, user: UnitId) -> Problem:
    return Problem(
        message=f"{resource} is still used by {user}",
        remedy=f"change {user} first, or in the same step",
        service=unit.name or None,
    )


def _needs(unit: UnitId, resource: Resource, definer: UnitId) -> Problem:
    return Problem(
        message=f"needs {resource}, which {definer} defines, and that change is withheld",
        remedy=f"fix {definer}",
        service=unit.name or None,
    )


def _claimed(unit: UnitId, rival: UnitId, resource: Resource) -> Problem:
    return Problem(
        message=f"not removed: {rival} has {resource} as well, and cannot be deployed",
        remedy=f"fix {rival}",
        service=unit.name or None,
    )


def _mentioned(unit: UnitId, file: Unreadable) -> Problem:
    return Problem(
        message=f"not removed: {file.path} cannot be read, and its text mentions this unit",
        remedy=f"fix {file.path}",
        service=unit.name or None,
    )
