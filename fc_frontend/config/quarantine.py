"""One unit's fault costs only that unit: it goes back to its last good form, or is left out.

    declare → errors? → revert the units that they are about → declare again → …

Pure: the same sources, last good forms and refusals give the same declaration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fc_frontend.config.last_good import Form, LastGood, Piece, Quarantine, Unit
from fc_frontend.config.loader import Declaration, Sources, declare, file_verdicts
from fc_frontend.config.trust import Level, Verdict
from fc_frontend.errors import Problem, errors_in

Faults = Mapping[Unit, tuple[Problem, ...]]

_SETTINGS = Unit(Piece.SETTINGS)
_TEMPLATES = Unit(Piece.TEMPLATES)


@dataclass(slots=True)
class Withdrawn:
    """What HAProxy, or a trial, would not have: `left_out` not in its last good form either."""

    refused: dict[Unit, tuple[Problem, ...]] = field(default_factory=dict)
    left_out: set[Unit] = field(default_factory=set)

    def withdraw(self, faults: Faults) -> bool:
        """Have units go back to their last good form, or out; False if nothing changes by it."""
        changed = False
        for unit, problems in faults.items():
            if unit not in self.refused:
                self.refused[unit] = problems
                changed = True
            elif unit not in self.left_out:
                self.left_out.add(unit)
                changed = True
        return changed

    def without(self, units: Iterable[Unit]) -> Withdrawn:
        """These and `units`, to see what would be."""
        more = {unit: () for unit in units if unit not in self.refused}
        return Withdrawn({**self.refused, **more}, set(self.left_out))

    def copy(self) -> Withdrawn:
        """As it is now."""
        return self.without(())

    def clear(self) -> None:
        """Give all another chance."""
        self.refused.clear()
        self.left_out.clear()


def tolerate(
    sources: Sources, last_good: LastGood, withdrawn: Withdrawn | None = None
) -> Declaration:
    """What can be had of `sources`: faulty units are reverted, and listed as `quarantined`.

    Errors that stay in `problems` are about nothing that could be reverted: they refuse everything.
    """
    withdrawn = withdrawn or Withdrawn()
    faults = {**_unreadable(sources, last_good), **withdrawn.refused}
    settings = last_good.settings if _SETTINGS in faults else None
    verdicts = file_verdicts(sources, settings or sources.settings)

    def keeps_last_good(unit: Unit) -> bool:
        return _has_last_good(unit, last_good) and not _is_foreign(
            unit, sources, last_good, verdicts
        )

    keeps = {unit: unit not in withdrawn.left_out and keeps_last_good(unit) for unit in faults}
    while True:
        declaration = declare(sources, last_good, keeps)
        blamed = dict(declaration.faults)
        attributed = {problem for problems in blamed.values() for problem in problems}
        found = errors_in(declaration.problems[len(sources.problems) :])
        rest = [problem for problem in found if problem not in attributed]
        for unit, problems in _blamed(rest, declaration, last_good, keeps).items():
            blamed[unit] = (*blamed.get(unit, ()), *problems)
        fresh = False
        for unit, problems in blamed.items():
            if unit not in keeps:
                faults[unit] = problems
                keeps[unit] = keeps_last_good(unit)
                fresh = True
            elif keeps[unit]:
                # Its last good form does not fit to what is there now.
                keeps[unit] = False
                fresh = True
        if not fresh:
            break
    if not keeps.get(_SETTINGS, True):
        # Nothing can be had without settings.
        fatal = faults.pop(_SETTINGS)
        faults = {unit: problems for unit, problems in faults.items() if problems != fatal}
    known = {problem for problems in faults.values() for problem in problems}
    return replace(
        declaration,
        problems=tuple(problem for problem in declaration.problems if problem not in known),
        quarantined=tuple(Quarantine(unit, faults[unit], keeps[unit]) for unit in sorted(faults)),
    )


def unit_of(name: str, forms: LastGood) -> Unit:
    """The unit of a section in haproxy.cfg: a fragment's or a service's."""
    return Unit(Piece.FRAGMENT if name in forms.fragments else Piece.SERVICE, name)


def _unreadable(sources: Sources, last_good: LastGood) -> dict[Unit, tuple[Problem, ...]]:
    """The units that could not be read, or that two files define."""
    faults: dict[Unit, list[Problem]] = {}
    for problem in errors_in(sources.problems):
        if problem.service:
            unit = Unit(Piece.SERVICE, problem.service)
        elif problem.file in sources.broken:
            unit = Unit(Piece.FILE, problem.file or "")
        else:
            unit = _TEMPLATES
        faults.setdefault(unit, []).append(problem)
    whole = Unit(Piece.FILE, sources.settings_file)
    if whole in faults:
        faults[_SETTINGS] = list(faults[whole])
    directory = sources.directory
    if not sources.has_directory and _any_below(directory, last_good):
        faults[Unit(Piece.FILE, directory)] = [
            Problem(
                message="is gone, and with it all that it declared",
                remedy="make it again; an empty directory takes its services away",
                file=directory,
            )
        ]
    return {unit: tuple(problems) for unit, problems in faults.items()}


def _blamed(
    errors: Iterable[Problem],
    declaration: Declaration,
    last_good: LastGood,
    keeps: Mapping[Unit, bool],
) -> dict[Unit, tuple[Problem, ...]]:
    forms = declaration.forms
    settings_changed = forms.settings != last_good.settings and _SETTINGS not in keeps
    blamed: dict[Unit, list[Problem]] = {}
    for problem in errors:
        if problem.service:
            unit = Unit(Piece.SERVICE, problem.service)
            is_old = _same(problem.service, forms.services, last_good.services)
            if is_old and settings_changed and last_good.settings is not None:
                unit = _SETTINGS
        elif (name := Path(problem.file or "").name.removesuffix(".cfg")) in last_good.fragments:
            unit = Unit(Piece.FRAGMENT, name)
        elif problem.file == declaration.settings_file:
            unit = _SETTINGS
        else:
            unit = Unit(Piece.FRAGMENT, name)
        blamed.setdefault(unit, []).append(problem)
    return {unit: tuple(problems) for unit, problems in blamed.items()}


def _same(name: str, now: Mapping[str, Form], before: Mapping[str, Form]) -> bool:
    return name in now and name in before and now[name].value == before[name].value


def _has_last_good(unit: Unit, last_good: LastGood) -> bool:
    if unit.piece is Piece.SERVICE:
        return unit.name in last_good.services
    if unit.piece is Piece.FRAGMENT:
        return unit.name in last_good.fragments
    if unit.piece is Piece.FILE:
        return _any_below(unit.name, last_good)
    return unit.piece is not Piece.DUPLICATE and last_good.settings is not None


def _is_foreign(
    unit: Unit, sources: Sources, last_good: LastGood, verdicts: Mapping[str, Verdict]
) -> bool:
    """True if the last good form of a service is one that its untrusted file must not bring back.

    Else such a file could keep what a trusted file withdrew, by a faulty service of that name.
    """
    if unit.piece is not Piece.SERVICE or unit.name not in sources.services:
        return False
    form = last_good.services[unit.name]
    files = {raw.file for raw in sources.duplicates.get(unit.name, ())}
    files.add(sources.services[unit.name].file)
    return (
        form.level is Level.TRUSTED
        and form.file not in files
        and not any(file in verdicts and verdicts[file].is_trusted for file in files)
    )


def _any_below(path: str, last_good: LastGood) -> bool:
    forms = [*last_good.services.values(), *last_good.fragments.values()]
    return any(form.file == path or str(Path(form.file).parent) == path for form in forms)
