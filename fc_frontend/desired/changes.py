"""Which changes can be applied together: removals that must wait, needs, linked changes.

Every function here concerns a *composition*: the running sections, with each change either
applied or withheld.  A withheld change leaves its unit exactly as it runs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from fc_frontend.errors import Cause, Problem, Severity
from fc_frontend.model.units import ENVIRONMENT, SETTINGS, ChangeKind, Resource, Section, UnitId
from fc_frontend.syntax.links import links_in

Sections = Mapping[UnitId, Section]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file or directory that could not be read completely: nothing in it counts as removed.

    `text` is the part that could be read, empty for a directory.
    """

    path: str
    problems: tuple[Problem, ...]
    text: str = ""
    is_trusted: bool = True

    def covers(self, file: str) -> bool:
        """Return whether `file` is this file, or directly in this directory."""
        return file == self.path or file.rpartition("/")[0] == self.path


@dataclass(frozen=True, slots=True)
class Change:
    """The step of one unit from its running section to its declared one."""

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
        """The resources that may link it to other changes; none for settings, which all use."""
        if self.unit in ENVIRONMENT:
            return frozenset()
        sides = [links_in(side.text) for side in (self.before, self.after) if side]
        return frozenset().union(*(side.holds | side.uses | side.publishes for side in sides))

    @property
    def files(self) -> frozenset[str]:
        """The files that declare it, before and after."""
        return frozenset(side.file for side in (self.before, self.after) if side and side.file)


def is_changed(before: Section, after: Section) -> bool:
    """Return whether a unit's section has changed.

    Some settings, such as `listen`, are not in its text.
    """
    if before is after:
        return False
    is_same = before.text == after.text
    return not is_same or (after.unit == SETTINGS and before.declaration != after.declaration)


def changes_between(running: Sections, declared: Sections) -> dict[UnitId, Change]:
    """Return the changes from `running` to `declared`, by unit, in order of units."""
    found = [Change(unit, running[unit], None) for unit in running.keys() - declared.keys()]
    for unit, after in declared.items():
        before = running.get(unit)
        if before is None or is_changed(before, after):
            found.append(Change(unit, before, after))
    return {change.unit: change for change in sorted(found, key=lambda each: each.unit.position)}


def compose(
    running: Sections, declared: Sections, withheld: Collection[UnitId]
) -> dict[UnitId, Section]:
    """Return the sections with all changes applied, except those of the `withheld` units."""
    composed: dict[UnitId, Section] = {}
    for unit in sorted(running.keys() | declared.keys(), key=lambda unit: unit.position):
        section = (running if unit in withheld else declared).get(unit)
        if section is not None:
            composed[unit] = section
    return composed


def unmet_needs(running: Sections, declared: Sections, composed: Sections) -> dict[UnitId, Problem]:
    """Return the changes to withhold because a section would use an undefined name.

    A change is withheld if it removes a name that a running unit uses, or if it needs a name that
    only a withheld change defines.  HAProxy reports names that were never defined.
    """
    # HAProxy reports names that settings and templates no longer define.
    units = {unit: section for unit, section in running.items() if unit not in ENVIRONMENT}
    lost = _no_more_held(units, composed)
    promised = _no_more_held(declared, composed)
    if not lost and not promised:
        return {}
    defined = {name for section in composed.values() for name in links_in(section.text).holds}
    found: dict[UnitId, Problem] = {}
    for unit, section in composed.items():
        former = running.get(unit)
        for name in sorted(links_in(section.text).uses - defined, key=str):
            if name in lost and former is not None and name in links_in(former.text).uses:
                found.setdefault(lost[name], _still_used(lost[name], name, unit))
            elif name in promised:
                found.setdefault(unit, _needs(unit, name, promised[name]))
    return found


def _no_more_held(before: Sections, composed: Sections) -> dict[Resource, UnitId]:
    """Return the resources that units hold in `before` but not in `composed`, with the unit."""
    found: dict[Resource, UnitId] = {}
    for unit, section in before.items():
        now = composed.get(unit)
        if now is None or (now is not section and now.text != section.text):
            held = links_in(now.text).holds if now else frozenset()
            found.update(dict.fromkeys(links_in(section.text).holds - held, unit))
    return found


def blocked_removals(
    running: Sections,
    declared: Sections,
    faulty: Mapping[UnitId, frozenset[Resource]],
    withheld: Collection[UnitId],
    unreadable: Iterable[Unreadable],
    untrusted: Collection[UnitId] = (),
    forced: Collection[UnitId] = (),
    waiting: bool = False,
) -> dict[UnitId, tuple[Problem, ...]]:
    """Return the removals that may be mistakes, each with its evidence.

    `faulty` are the units with errors of their own, with the resources that they would hold and
    publish, as far as these could be read.  A site must not disappear because its new form has a
    typo.  Untrusted files, and `untrusted` units, cannot keep units that trusted files declared.
    An operator has consented to the removal of `forced` units.  With `waiting`, all other removals
    wait, except for units that are replaced by another one.
    """
    found: dict[UnitId, tuple[Problem, ...]] = {}
    claims = dict(faulty)
    for unit in withheld:
        if unit in declared and unit not in claims:
            claims[unit] = _claims(declared[unit])
    for unit in claims.keys() & running.keys():
        # Resources that the unit holds already are not taken from the removed unit.
        claims[unit] = claims[unit] - _claims(running[unit])
    every_file = tuple(unreadable)
    removed = running.keys() - declared.keys() - faulty.keys() - set(forced)
    replaced = _new_claims(running, declared, withheld) if waiting and removed else frozenset()
    for unit in removed:
        section = running[unit]
        own = _claims(section)
        files = [file for file in every_file if file.is_trusted or not section.is_trusted]
        rivals = (
            other
            for other, claimed in claims.items()
            if claimed & own and not (section.is_trusted and other in untrusted)
        )
        rival = next(rivals, None)
        if hiding := next((file for file in every_file if file.covers(section.file)), None):
            found[unit] = hiding.problems
        elif rival is not None:
            found[unit] = (_claimed(unit, rival, min(claims[rival] & own, key=str)),)
        elif mention := next((file for file in files if _mentions(file.text, section)), None):
            found[unit] = (_mentioned(unit, mention),)
        elif waiting and not own & replaced:
            found[unit] = (_NOT_YET,)
    return found


def _new_claims(
    running: Sections, declared: Sections, withheld: Collection[UnitId]
) -> frozenset[Resource]:
    """Return the resources of applied changes that their units do not hold or publish yet."""
    found: set[Resource] = set()
    for unit, section in declared.items():
        former = running.get(unit)
        if former is section or unit in withheld or unit in ENVIRONMENT:
            continue
        found |= _claims(section) - (_claims(former) if former else frozenset())
    return frozenset(found)


def groups(changes: Iterable[Change]) -> list[tuple[UnitId, ...]]:
    """Return the changes in groups: linked by a resource, or in the same file."""
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


_NOT_YET = Problem(
    message="is gone from the files, and is removed unless it comes back",
    severity=Severity.WARNING,
    cause=Cause.REMOVAL_WAITS,
)


def _claims(section: Section) -> frozenset[Resource]:
    links = links_in(section.text)
    return links.holds | links.publishes


def _mentions(text: str, section: Section) -> bool:
    if not text:
        return False
    words = [section.unit.name, *(r.name for r in links_in(section.text).holds if r.kind == "bind")]
    return any(word in text for word in words if word)


def _still_used(unit: UnitId, resource: Resource, user: UnitId) -> Problem:
    return Problem(
        message=f"{resource} is still used by {user}",
        remedy=f"change {user} first, or in the same step",
        service=unit.name or None,
        unit=unit,
    )


def _needs(unit: UnitId, resource: Resource, definer: UnitId) -> Problem:
    return Problem(
        message=f"needs {resource}, which {definer} defines, and that change is withheld",
        remedy=f"fix {definer}",
        service=unit.name or None,
        unit=unit,
    )


def _claimed(unit: UnitId, rival: UnitId, resource: Resource) -> Problem:
    return Problem(
        message=f"not removed: {rival} has {resource} as well, and cannot be deployed",
        remedy=f"fix {rival}",
        service=unit.name or None,
        unit=unit,
    )


def _mentioned(unit: UnitId, file: Unreadable) -> Problem:
    return Problem(
        message=f"not removed: {file.path} cannot be read, and its text mentions this unit",
        remedy=f"fix {file.path}",
        service=unit.name or None,
        unit=unit,
    )
