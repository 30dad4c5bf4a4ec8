"""Declare, plan and render for one isolation: its candidates, and its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import cached_property

from fc_frontend.balancer.declare import is_of_cluster
from fc_frontend.config.declare import (
    Declaration,
    declare,
    running_fragments,
    running_frontends,
    running_settings,
    running_spec,
)
from fc_frontend.config.fingerprint import digest, fingerprint
from fc_frontend.config.loader import Sources
from fc_frontend.config.templates import templates
from fc_frontend.config.trust import Level
from fc_frontend.desired.changes import is_changed
from fc_frontend.desired.isolate import Declared, Isolated, Withheld
from fc_frontend.errors import Problem, Refused, warnings_in
from fc_frontend.haproxy.contents import Contents
from fc_frontend.model.units import (
    ENVIRONMENT,
    SETTINGS,
    TEMPLATES,
    ChangeKind,
    Section,
    UnitId,
    UnitKind,
)
from fc_frontend.pipeline.base import (
    Base,
    BaseOrigin,
    as_in_text,
    is_same_cluster,
    templates_section,
    with_ways_back,
)
from fc_frontend.pipeline.candidate import Candidate, Prepared
from fc_frontend.pipeline.site_files import SiteFileReader
from fc_frontend.plan import planner
from fc_frontend.plan.model import (
    Fragment,
    FrontendSpec,
    Plan,
    Resolution,
    ServicePlan,
    ServiceSpec,
    Settings,
)
from fc_frontend.plan.planner import plan
from fc_frontend.render import render as renderer
from fc_frontend.render.config import assemble
from fc_frontend.render.render import render_sections
from fc_frontend.stored import question
from fc_frontend.syntax.files import base_lines


@dataclass(frozen=True, slots=True)
class ProposalMemo:
    """Memos of earlier plans, files and rendered sections; see their classes."""

    plan: planner.PlanMemo = field(default_factory=planner.PlanMemo)
    contents: Contents = field(default_factory=Contents)
    site_files: SiteFileReader = field(default_factory=SiteFileReader)
    render: renderer.RenderMemo = field(default_factory=renderer.RenderMemo)


class Composer:
    """Declares, plans and renders for one isolation, and converts its result."""

    def __init__(
        self,
        sources: Sources,
        base: Base,
        answers: Resolution,
        running_answers: Resolution,
        *,
        shrink: bool,
        memo: ProposalMemo,
    ) -> None:
        self._sources = sources
        self._base = base = with_ways_back(base, sources.settings_file, running_answers)
        self._answers = answers
        self._running_answers = running_answers
        self._shrink = shrink
        self._memo = memo
        self._made: dict[AbstractSet[UnitId], _Made] = {}
        self._running_specs: dict[str, ServiceSpec | None] = {}
        self._candidates: dict[tuple[object, ...], Candidate] = {}

    @property
    def base(self) -> Base:
        """The base to which withheld units fall back."""
        return self._base

    def __call__(self, kept: frozenset[UnitId]) -> Declared:
        """Return the declared units, with the `kept` units of the environment as they run."""
        return self._make(kept).declared

    def declaration(self, kept: frozenset[UnitId]) -> Declaration:
        """Return the declaration behind these units."""
        return self._make(kept).declaration

    def still_refused(
        self, refused: Mapping[UnitId, Withheld]
    ) -> dict[UnitId, tuple[Problem, ...]]:
        """Return the units of `refused` whose declared sections have not changed."""
        sections = self._make(frozenset()).declared.sections
        found: dict[UnitId, tuple[Problem, ...]] = {}
        for unit, withheld in refused.items():
            section = sections.get(unit)
            if (section.text if section else None) == withheld.text:
                found[unit] = withheld.problems
        return found

    def candidate(self, sections: Sequence[Section], withheld: AbstractSet[UnitId]) -> Candidate:
        """Return the configuration of a composition in which some changes are `withheld`."""
        key = (*sorted(ENVIRONMENT.intersection(withheld)), *(each.text for each in sections))
        if key not in self._candidates:
            self._candidates[key] = self._candidate(sections, withheld)
        return self._candidates[key]

    def refused(self, problems: Sequence[Problem]) -> Prepared:
        """Return a result with which nothing can be deployed."""
        declaration = self._make(frozenset()).declaration
        return Prepared(
            declaration=declaration,
            resolution=self._answers,
            plan=Plan(settings=declaration.settings, services=()),
            config=None,
            problems=tuple(dict.fromkeys(problems)),
            base=self._base,
        )

    def prepared(self, isolated: Isolated) -> Prepared:
        """Return the result of an isolation, for deployment and reports."""
        declared = self._make(frozenset()).declaration
        if not isolated.accepted and not isolated.sections:
            return self.refused(isolated.problems)
        withheld = {each.unit for each in isolated.withheld}
        candidate = self.candidate(isolated.sections, withheld)
        config = candidate.config
        if self._base.config is not None and self._applies_nothing(isolated):
            # Only a new text refers to copies of files.
            config = self._base.config
        warnings = (*warnings_in(declared.problems), *warnings_in(candidate.plan.problems))
        problems = (*map(candidate.declaration.located, warnings), *isolated.problems)
        return Prepared(
            declaration=candidate.declaration,
            resolution=candidate.resolution,
            plan=candidate.plan,
            config=config if isolated.accepted else None,
            problems=tuple(dict.fromkeys(problems)),
            withheld=self._withheld(isolated, declared),
            waiting=tuple(each.unit for each in isolated.withheld if each.is_waiting),
            base=self._base,
            is_complete=isolated.is_complete,
        )

    def _applies_nothing(self, isolated: Isolated) -> bool:
        base = self._base.sections
        return (
            self._base.origin is BaseOrigin.RUNNING
            and not self._base.is_reverted
            and len(isolated.sections) == len(base)
            and all(section is base.get(section.unit) for section in isolated.sections)
        )

    def _withheld(self, isolated: Isolated, declared: Declaration) -> tuple[Withheld, ...]:
        """Return all withheld changes; an unreadable file replaces everything that it declared."""
        hidden = {file.problems for file in declared.unreadable}
        found = [
            replace(each, problems=tuple(map(declared.located, each.problems)))
            for each in isolated.withheld
            if (each.unit in ENVIRONMENT or each.problems not in hidden) and not each.is_waiting
        ]
        found += [
            Withheld(
                UnitId(UnitKind.FILE, file.path),
                ChangeKind.EDITED,
                file.problems,
                is_kept=any(file.covers(s.file) for s in self._base.sections.values()),
            )
            for file in declared.unreadable
            if UnitId(UnitKind.FILE, file.path) not in {each.unit for each in found}
        ]
        known = self._base.declarations.withheld
        marked = []
        # Files first: everything in them is affected.
        for each in sorted(
            found, key=lambda e: (e.unit.kind is not UnitKind.FILE, e.unit.position)
        ):
            declares = fingerprint(self._sources, each.unit)
            is_known = known.get(each.unit) == declares
            marked.append(replace(each, fingerprint=declares, is_known=is_known))
        return tuple(marked)

    def _make(self, kept: frozenset[UnitId]) -> _Made:
        if kept not in self._made:
            self._made[kept] = self._declare(kept)
        return self._made[kept]

    def _declare(self, kept: frozenset[UnitId]) -> _Made:
        running = self._base.declarations
        declaration = declare(self._sources, running, kept)
        answers = self._answers_with(declaration, kept)
        planned = plan(
            declaration.settings,
            declaration.services,
            declaration.fragments,
            answers,
            frontends=declaration.frontends,
            shrink=self._shrink,
            memo=self._memo.plan,
        )
        faults = dict(declaration.faults)
        sections: tuple[Section, ...] = ()
        refused: list[Problem] = []
        site_files, unusable = self._memo.site_files.of(declaration.services)
        try:
            sections = render_sections(
                planned,
                templates(declaration.templates),
                refused,
                memo=self._memo.render,
                files=site_files,
            )
        except Refused as exc:
            refused += exc.problems
        blamed = [(self._at_fault(problem, declaration, kept), problem) for problem in refused]
        blamed += [(p.unit, declaration.located(p)) for p in unusable if p.unit is not None]
        for unit, problem in blamed:
            faults[unit] = (*faults.get(unit, ()), replace(problem, unit=unit))
        bases = base_lines(sections[0].text) if sections else ""
        by_unit = {
            section.unit: self._described(section, bases, declaration) for section in sections
        }
        if TEMPLATES not in kept:
            by_unit[TEMPLATES] = templates_section(declaration.templates)
        for unit in kept:
            by_unit.pop(unit, None)
            if unit in self._base.sections:
                by_unit[unit] = self._base.sections[unit]
        return _Made(
            declaration,
            answers,
            planned,
            Declared(
                sections=by_unit,
                faulty={unit: found for unit, found in faults.items() if unit not in kept},
                claims=declaration.claims,
                unreadable=declaration.unreadable,
                forced=declaration.forced,
                untrusted=frozenset(
                    UnitId(UnitKind.SERVICE, name) for name in declaration.untrusted
                ),
            ),
        )

    def _answers_with(self, declaration: Declaration, kept: frozenset[UnitId]) -> Resolution:
        """Return the answers valid with the `kept` settings, which may name another cluster."""
        if SETTINGS not in kept:
            return self._answers
        same = {
            spec.name: self._running_answers[spec.name]
            for spec in declaration.services
            if spec.name in self._running_answers
            and (running := self._running_spec(spec.name)) is not None
            and question(running) == question(spec)
        }
        return {**self._answers, **same}

    def _at_fault(
        self, problem: Problem, declaration: Declaration, kept: frozenset[UnitId]
    ) -> UnitId:
        """Return the unit to blame if a template fails.

        The templates are to blame if they have changed, otherwise the unit that was rendered.
        """
        running = self._base.declarations
        has_own = bool(declaration.templates) and TEMPLATES not in kept
        if problem.unit is None or (has_own and declaration.templates != running.templates):
            return TEMPLATES if has_own else SETTINGS
        return problem.unit

    def _described(self, section: Section, bases: str, declaration: Declaration) -> Section:
        """Return `section` with digests of its files and declaration, or the equal running one."""
        unit = section.unit
        before = self._base.sections.get(unit)
        text = self._memo.contents.marked(section.text, bases, before.text if before else "")
        if unit == SETTINGS:
            return replace(section, text=text, declaration=digest(declaration.raw.settings))
        if before is not None and before.text == text:
            return before
        raws = declaration.raw
        of_kind = {
            UnitKind.SERVICE: raws.services,
            UnitKind.FRAGMENT: raws.fragments,
            UnitKind.FRONTEND: raws.frontends,
        }[unit.kind]
        raw = of_kind[unit.name]
        return replace(
            section,
            text=text,
            declaration=digest(raw.value),
            file=raw.file,
            is_trusted=raw.level is Level.TRUSTED,
        )

    def _candidate(self, sections: Sequence[Section], withheld: AbstractSet[UnitId]) -> Candidate:
        made = self._make(ENVIRONMENT.intersection(withheld))
        base, declaration = self._base, made.declaration
        candidate = Candidate(
            declaration=declaration,
            resolution=made.answers,
            plan=made.plan,
            config=assemble(section for section in sections if section.unit != TEMPLATES),
            newcomers=frozenset(
                section.unit
                for section in sections
                if (before := base.sections.get(section.unit)) is None
                or is_changed(before, section)
            ),
        )
        candidate = replace(candidate, moved=self._moved(candidate))
        kept = [section.unit for section in sections if section.unit in withheld - ENVIRONMENT]
        left_out = withheld - ENVIRONMENT
        if not left_out:
            return candidate
        names = {unit.name for unit in left_out if unit.kind is UnitKind.SERVICE}
        plans = {each.spec.name: each for each in made.plan.services if each.spec.name not in names}
        raws = {n: raw for n, raw in declaration.raw.services.items() if n not in names}
        answers = dict(made.answers)
        cut = {unit.name for unit in left_out if unit.kind is UnitKind.FRAGMENT}
        fragments = {each.name: each for each in made.plan.fragments if each.name not in cut}
        raw_fragments = {n: raw for n, raw in declaration.raw.fragments.items() if n not in cut}
        cut = {unit.name for unit in left_out if unit.kind is UnitKind.FRONTEND}
        frontends = {each.name: each for each in made.plan.frontends if each.name not in cut}
        raw_frontends = {n: raw for n, raw in declaration.raw.frontends.items() if n not in cut}
        running = base.declarations
        for unit in kept:
            name = unit.name
            if unit.kind is UnitKind.SERVICE and name in running.services:
                raws[name] = running.services[name]
                if (planned := self._running_plan(name, made.plan.settings)) is not None:
                    plans[name] = planned
                answers.pop(name, None)
                if name in self._running_answers:
                    answers[name] = self._running_answers[name]
            elif unit.kind is UnitKind.FRAGMENT and name in running.fragments:
                raw_fragments[name] = running.fragments[name]
                if (fragment := self._running_fragments.get(name)) is not None:
                    fragments[name] = fragment
            elif unit.kind is UnitKind.FRONTEND and name in running.frontends:
                raw_frontends[name] = running.frontends[name]
                if (frontend := self._running_frontends.get(name)) is not None:
                    frontends[name] = frontend
        services = tuple(plans[name] for name in sorted(plans))
        parts = tuple(fragments[name] for name in sorted(fragments))
        shared = tuple(frontends[name] for name in sorted(frontends))
        untrusted = {
            section.unit.name
            for section in sections
            if section.unit.kind is UnitKind.SERVICE
            and not section.is_trusted
            and not is_of_cluster(section.file)
        }
        return replace(
            candidate,
            declaration=replace(
                declaration,
                services=tuple(service.spec for service in services),
                fragments=parts,
                frontends=shared,
                untrusted=frozenset(untrusted),
                raw=replace(
                    declaration.raw,
                    services={name: raws[name] for name in sorted(raws)},
                    fragments={name: raw_fragments[name] for name in sorted(raw_fragments)},
                    frontends={name: raw_frontends[name] for name in sorted(raw_frontends)},
                ),
            ),
            resolution=answers,
            plan=replace(made.plan, services=services, fragments=parts, frontends=shared),
        )

    def _moved(self, candidate: Candidate) -> frozenset[str]:
        """Return the services whose pods are looked up differently from those that HAProxy has."""
        declaration = candidate.declaration
        is_same_place = self._running_settings is not None and is_same_cluster(
            self._base, declaration.settings, declaration.settings_file
        )
        if not is_same_place and SETTINGS in candidate.newcomers:
            # Other nameservers do not change the section of any service.
            return frozenset(spec.name for spec in declaration.services)
        found = set()
        for unit in candidate.newcomers:
            spec = self._running_spec(unit.name)
            is_same = (
                spec is not None
                and is_same_place
                and question(spec) in {question(each) for each in declaration.named((unit.name,))}
            )
            if unit.kind is UnitKind.SERVICE and not is_same:
                found.add(unit.name)
        return frozenset(found)

    @cached_property
    def _running_settings(self) -> Settings | None:
        return running_settings(self._base.declarations, self._sources.settings_file)

    def _running_spec(self, name: str) -> ServiceSpec | None:
        # Only few of thousands are needed, and each has to be validated.
        if name not in self._running_specs:
            self._running_specs[name] = running_spec(self._base.declarations, name)
        return self._running_specs[name]

    @cached_property
    def _running_fragments(self) -> Mapping[str, Fragment]:
        return running_fragments(self._base.declarations)

    @cached_property
    def _running_frontends(self) -> Mapping[str, FrontendSpec]:
        return running_frontends(self._base.declarations)

    def _running_plan(self, name: str, settings: Settings) -> ServicePlan | None:
        """Return the plan of a service as it runs; None if its declaration is no longer valid."""
        spec = self._running_spec(name)
        if spec is None:
            return None
        answer = self._running_answers.get(name)
        answers = {name: answer} if answer is not None else {}
        (planned,) = plan(settings, (spec,), (), answers).services
        section = self._base.sections[UnitId(UnitKind.SERVICE, name)]
        return as_in_text(planned, section.text)


@dataclass(frozen=True, slots=True)
class _Made:
    """The units that result from one environment, and how they were made."""

    declaration: Declaration
    answers: Resolution
    plan: Plan
    declared: Declared
