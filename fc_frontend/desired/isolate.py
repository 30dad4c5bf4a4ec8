"""Isolation: apply as many changes as HAProxy accepts, and withhold the others.

    changes ─► compose ─► removals, needs ─► trial ─► accepted
                 ▲                                        │
                 └──────── withhold who is refused ◄──────┘

The base is the running configuration.  Changes are removed from the full set, never added to the
base, so that changes which are valid only together remain together.  The trial is a parameter: for
the daemon and for commands it runs all checks of a text, including `haproxy -c` and the preflight
checks; in tests it is a function.  If two units claim the same bind or name, the trial blames the
newcomer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from fc_frontend.desired.changes import (
    Change,
    Sections,
    Unreadable,
    blocked_removals,
    changes_between,
    compose,
    groups,
    unmet_needs,
)
from fc_frontend.errors import Cause, Problem, errors_in
from fc_frontend.model.units import (
    ENVIRONMENT,
    SETTINGS,
    TEMPLATES,
    ChangeKind,
    Resource,
    Section,
    UnitId,
)

MAX_TRIALS = 12
"""Trials after which the best composition found so far is deployed."""
MAX_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Declared:
    """The declared units: the sections of those without errors, and the errors of the others."""

    sections: Sections
    faulty: Mapping[UnitId, tuple[Problem, ...]] = field(default_factory=dict)
    claims: Mapping[UnitId, frozenset[Resource]] = field(default_factory=dict)
    """The resources that faulty units would hold and publish, as far as these could be read."""
    unreadable: tuple[Unreadable, ...] = ()
    untrusted: frozenset[UnitId] = frozenset()
    """The units declared in untrusted files."""
    forced: frozenset[UnitId] = frozenset()
    """The units to whose declared form, or removal, an operator has consented."""


_NOTHING: Mapping[UnitId, tuple[Problem, ...]] = MappingProxyType({})
Declare = Callable[[frozenset[UnitId]], Declared]
"""Returns the declared units, with the given ones of `ENVIRONMENT` as they run."""
Trial = Callable[[Sequence[Section], AbstractSet[UnitId]], tuple[Problem, ...]]
"""Returns the problems of a composition in which the changes of some units are withheld.

Errors refuse it.
"""


@dataclass(frozen=True, slots=True)
class Withheld:
    """A change that is not deployed, and why."""

    unit: UnitId
    kind: ChangeKind
    problems: tuple[Problem, ...]
    is_kept: bool = False
    """True if the unit keeps running as before; otherwise it is not deployed at all."""
    is_refused: bool = False
    """True if a trial refused it; False if its own errors or other withheld changes did."""
    is_known: bool = False
    """True if this very form was withheld before: it must not hinder other changes."""
    fingerprint: str = field(default="", repr=False)
    """A digest of the contents of its files."""
    text: str | None = field(default=None, repr=False)
    """The withheld section; None if there is none."""

    @property
    def is_waiting(self) -> bool:
        """Whether it is a removal that is only delayed."""
        return any(problem.cause is Cause.REMOVAL_WAITS for problem in self.problems)

    def as_json(self) -> dict[str, Any]:
        """Return the change in the format of all JSON output."""
        return {
            "kind": self.unit.kind.value,
            "name": self.unit.name,
            "effect": self.effect,
            "is_kept": self.is_kept,
            "is_known": self.is_known,
            "problems": [problem.as_json() for problem in self.problems],
        }

    @property
    def effect(self) -> str:
        """The effect in the meantime, for people."""
        return "the last good version keeps running" if self.is_kept else "not deployed"


@dataclass(frozen=True, slots=True)
class Isolated:
    """The composition to deploy.

    `accepted` is False if HAProxy refuses even the running configuration; `problems` has the
    reasons.  If `is_complete` is False, the budget ended before the smallest set of withheld
    changes was found.
    """

    sections: tuple[Section, ...]
    withheld: tuple[Withheld, ...]
    problems: tuple[Problem, ...] = ()
    accepted: bool = True
    is_complete: bool = True


class BudgetSpent(Exception):
    """The budget of trials or time for isolation is used up."""


def isolate(
    running: Sections,
    declare: Declare,
    trial: Trial,
    *,
    clock: Callable[[], float],
    refused: Mapping[UnitId, tuple[Problem, ...]] = _NOTHING,
    waiting: bool = False,
    max_trials: int = MAX_TRIALS,
    max_seconds: float = MAX_SECONDS,
) -> Isolated:
    """Apply as many of the declared changes to `running` as the trial accepts.

    Changes of `refused` units are withheld without another trial.  With `waiting`, removals are
    delayed unless another unit replaces the removed one.  `clock` is monotonic, in seconds.  Raises
    whatever `trial` raises if it cannot reach a verdict.
    """
    search = _Search(
        running, declare, trial, clock, max_trials, clock() + max_seconds, waiting=waiting
    )
    return search.run(refused)


@dataclass(frozen=True, slots=True)
class _Composition:
    """The sections that result from withholding some changes, and all withheld changes."""

    sections: Sections
    withheld: Mapping[UnitId, tuple[Problem, ...]]
    changes: Mapping[UnitId, Change]
    """All changes, withheld or not."""

    @property
    def applied(self) -> list[Change]:
        """The changes that are not withheld."""
        return [change for unit, change in self.changes.items() if unit not in self.withheld]


class _Search:
    """One isolation: the trials so far, and the best accepted composition."""

    def __init__(
        self,
        running: Sections,
        declare: Declare,
        trial: Trial,
        clock: Callable[[], float],
        max_trials: int,
        deadline: float,
        *,
        waiting: bool,
    ) -> None:
        self._running = running
        self._declare = declare
        self._trial = trial
        self._clock = clock
        self._trials_left = max_trials
        self._deadline = deadline
        self._waiting = waiting
        self._verdicts: dict[tuple[object, ...], tuple[Problem, ...]] = {}
        self._best: _Composition | None = None
        self._dropped: set[UnitId] = set()
        """Running units of untrusted files that conflict with trusted ones."""

    def run(self, refused: Mapping[UnitId, tuple[Problem, ...]]) -> Isolated:
        withheld = dict(refused)
        try:
            while True:
                composition = self._composed(withheld)
                problems = self._verdict(composition)
                if not errors_in(problems):
                    return self._isolated(composition, problems, withheld)
                found = self._refused(composition, errors_in(problems), withheld)
                if not found:
                    base = compose(self._running, {}, self._running)
                    return Isolated(tuple(base.values()), (), problems, accepted=False)
                withheld.update(found)
        except BudgetSpent:
            everything = dict.fromkeys(self._composed(withheld).changes, _NOT_TRIED)
            composition = self._best or self._composed({**everything, **withheld})
            return self._isolated(composition, (), withheld, is_complete=False)

    def _isolated(
        self,
        composition: _Composition,
        problems: tuple[Problem, ...],
        refused: Mapping[UnitId, tuple[Problem, ...]],
        *,
        is_complete: bool = True,
    ) -> Isolated:
        declared = self._declare(frozenset()).sections

        def withheld(unit: UnitId, found: tuple[Problem, ...]) -> Withheld:
            change = composition.changes.get(unit)
            section = declared.get(unit)
            return Withheld(
                unit,
                change.kind if change else ChangeKind.EDITED,
                found,
                is_kept=unit in self._running and unit not in self._dropped,
                is_refused=unit in refused,
                text=section.text if section else None,
            )

        return Isolated(
            sections=tuple(composition.sections.values()),
            withheld=tuple(
                withheld(unit, found) for unit, found in sorted(composition.withheld.items())
            ),
            problems=problems,
            is_complete=is_complete,
        )

    def _composed(self, refused: Mapping[UnitId, tuple[Problem, ...]]) -> _Composition:
        """Withhold `refused`, and all changes that cannot be applied without them."""
        withheld = dict(refused)
        while True:
            declared = self._declare(ENVIRONMENT.intersection(withheld))
            withheld = {**declared.faulty, **withheld}
            if ENVIRONMENT.intersection(declared.faulty) - ENVIRONMENT.intersection(refused):
                # Everything else has to be rendered with the running environment.
                declared = self._declare(ENVIRONMENT.intersection(withheld))
                withheld = {**declared.faulty, **withheld}
            sections = declared.sections
            if declared.faulty:
                sections = {u: each for u, each in sections.items() if u not in declared.faulty}
            faulty = {
                unit: declared.claims.get(unit, frozenset())
                for unit in declared.faulty
                if unit in withheld
            }
            more: dict[UnitId, tuple[Problem, ...]] = {}
            removals = blocked_removals(
                self._running,
                sections,
                faulty,
                withheld,
                declared.unreadable,
                declared.untrusted,
                declared.forced,
                waiting=self._waiting,
            )
            more.update({u: p for u, p in removals.items() if u not in withheld})
            composed = compose(self._running, sections, {*withheld, *more})
            for unit in self._dropped:
                composed.pop(unit, None)
            needs = unmet_needs(self._running, sections, composed)
            if needs:
                applied = changes_between(self._running, composed)
                for unit, problem in needs.items():
                    origin = _origin_of(applied[unit], applied) if unit in applied else unit
                    if origin not in withheld:
                        more.setdefault(origin, (problem,))
            if not more:
                changes = changes_between(self._running, sections)
                for unit in declared.faulty:
                    changes[unit] = Change(unit, self._running.get(unit), None)
                return _Composition(composed, withheld, changes)
            withheld.update(more)

    def _verdict(self, composition: _Composition) -> tuple[Problem, ...]:
        texts = (
            *sorted(ENVIRONMENT.intersection(composition.withheld)),
            *(section.text for section in composition.sections.values()),
        )
        if texts not in self._verdicts:
            if self._trials_left <= 0 or self._clock() >= self._deadline:
                raise BudgetSpent
            self._trials_left -= 1
            self._verdicts[texts] = self._trial(
                tuple(composition.sections.values()), composition.withheld.keys()
            )
        problems = self._verdicts[texts]
        if not errors_in(problems):
            best = self._best
            if best is None or len(best.applied) < len(composition.applied):
                self._best = composition
        return problems

    def _refused(
        self,
        composition: _Composition,
        errors: Sequence[Problem],
        withheld: Mapping[UnitId, tuple[Problem, ...]],
    ) -> dict[UnitId, tuple[Problem, ...]]:
        """Return the changes to withhold because of `errors`; empty if no change is the cause.

        The first settings and templates cannot be withheld: nothing can be deployed without them.
        """
        applied = {
            change.unit: change
            for change in composition.applied
            if change.before is not None or change.unit not in ENVIRONMENT
        }
        named: dict[UnitId, tuple[Problem, ...]] = {}
        for problem in errors:
            if problem.unit is not None and problem.unit in applied:
                unit = _origin_of(applied[problem.unit], applied)
                named[unit] = (*named.get(unit, ()), problem)
        # Settings or templates may cause errors of services: the next trial withholds them first.
        environment = {unit: found for unit, found in named.items() if unit in ENVIRONMENT}
        if named:
            return environment or named
        untrusted = self._declare(ENVIRONMENT.intersection(withheld)).untrusted
        for problem in errors:
            if problem.unit in untrusted and problem.unit in composition.sections:
                assert problem.unit is not None
                self._dropped.add(problem.unit)
                named[problem.unit] = (*named.get(problem.unit, ()), problem)
        if named:
            return named
        guilty, others = self._guilty(groups(applied.values()), withheld)
        if len(guilty) > 1:
            alone, _ = self._guilty([(unit,) for unit in guilty], others)
            guilty = alone or guilty
        return {unit: tuple(errors) for unit in guilty}

    def _guilty(
        self,
        suspects: Sequence[tuple[UnitId, ...]],
        withheld: Mapping[UnitId, tuple[Problem, ...]],
    ) -> tuple[tuple[UnitId, ...], dict[UnitId, tuple[Problem, ...]]]:
        """Return the last suspected group that is refused, and everything else to be withheld.

        The group is empty if none of them is the cause.  Takes at most ⌈log₂ n⌉ + 1 trials.
        """

        def without(count: int) -> dict[UnitId, tuple[Problem, ...]]:
            units = [unit for group in suspects[:count] for unit in group]
            return {**dict.fromkeys(units, _NOT_TRIED), **withheld}

        def accepts(count: int) -> bool:
            return not errors_in(self._verdict(self._composed(without(count))))

        if not suspects or not accepts(len(suspects)):
            return (), dict(withheld)
        few, enough = 0, len(suspects)
        while enough - few > 1:
            middle = (few + enough) // 2
            if accepts(middle):
                enough = middle
            else:
                few = middle
        return suspects[few], without(few)


_NOT_TRIED: tuple[Problem, ...] = (
    Problem(
        message="not tried yet: other changes took up the time for this step",
        remedy="nothing to do: the search continues in the next step",
    ),
)


def _origin_of(change: Change, applied: Mapping[UnitId, Change]) -> UnitId:
    """Return the unit to blame for an error in a changed section.

    If the declaration of the section is the same, templates or settings have changed it.
    """
    before, after = change.before, change.after
    if before is not None and after is not None and before.declaration == after.declaration:
        for unit in (TEMPLATES, SETTINGS):
            if unit in applied:
                return unit
    return change.unit
