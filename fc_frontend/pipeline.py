"""The one way from files to a configuration, for the daemon and for every command.

    files ─► declare ─► plan ─► render ─► isolate ─► Prepared ─► haproxy.deploy
    what HAProxy runs ─► Base ────────────┘  ▲
                         checks, haproxy -c ─┘

What HAProxy runs is the base, and a declaration is a set of changes against it.  `isolate` applies
as many of them as all checks accept, and withholds the others.
"""

from __future__ import annotations

import contextlib
import json
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

from fc_frontend.config.declare import (
    Declaration,
    declare,
    running_fragments,
    running_settings,
    running_spec,
    running_specs,
)
from fc_frontend.config.fingerprint import digest, fingerprint
from fc_frontend.config.loader import Sources, read, state_directory
from fc_frontend.config.running import RunningDeclarations
from fc_frontend.config.templates import templates
from fc_frontend.config.trust import Level
from fc_frontend.desired.changes import is_changed
from fc_frontend.desired.isolate import Declared, Isolated, Withheld, isolate
from fc_frontend.errors import Cause, Problem, Refused, Unavailable, errors_in, warnings_in
from fc_frontend.haproxy import history, install, kept_files, runtime
from fc_frontend.haproxy.conflicts import listener_problems
from fc_frontend.haproxy.contents import Contents
from fc_frontend.haproxy.foreign import FileOrigin
from fc_frontend.haproxy.judge import judge
from fc_frontend.haproxy.patience import Patience
from fc_frontend.haproxy.server_state import servers_in
from fc_frontend.migrate import lost
from fc_frontend.model.units import (
    ENVIRONMENT,
    SETTINGS,
    TEMPLATES,
    ChangeKind,
    Section,
    UnitId,
    UnitKind,
)
from fc_frontend.plan import planner
from fc_frontend.plan.model import (
    Answer,
    Fragment,
    Kind,
    Plan,
    Resolution,
    ServicePlan,
    ServiceSpec,
    Settings,
)
from fc_frontend.plan.planner import plan
from fc_frontend.render import render as renderer
from fc_frontend.render.config import Config, assemble, config_hash, sections_in
from fc_frontend.render.names import name_problems
from fc_frontend.render.render import render_sections
from fc_frontend.stored import question, stored_answers, stored_pending, stored_running
from fc_frontend.syntax.binds import read_listeners
from fc_frontend.syntax.files import base_lines

if TYPE_CHECKING:
    from fc_frontend.haproxy.deploy import Deployment


class BaseOrigin(StrEnum):
    """Where the base of changes is known from."""

    RUNNING = "running"
    """HAProxy's worker reports it."""
    INSTALLED = "installed"
    """HAProxy does not answer: it is what is installed, or what was deployed last."""
    NONE = "none"
    """Nothing of ours was deployed yet."""
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Base:
    """What changes are compared with: what HAProxy runs or, if it does not, would start with.

    `config` is that text with its sections, None if there is none.  `declarations` say what it was
    made of, as far as that is known.
    """

    origin: BaseOrigin = BaseOrigin.NONE
    config: Config | None = None
    declarations: RunningDeclarations = field(default_factory=RunningDeclarations)
    sections: Mapping[UnitId, Section] = field(default_factory=dict)
    """The sections by unit, with copies of files in place of those that have changed since."""
    is_substituted: bool = False
    is_reverted: bool = False
    """True if `sections` has an earlier form of services that lost all their servers, or lacks some
    of what runs."""

    @property
    def hash(self) -> str | None:
        """The digest of the text."""
        return self.config.hash if self.config else None

    def without(self, units: AbstractSet[UnitId]) -> Base:
        """The base in which `units` do not run, so that they need not stay."""
        left = {unit: each for unit, each in self.sections.items() if unit not in units}
        return replace(self, sections=left, is_reverted=self.is_reverted or bool(units))


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What to deploy, and how it follows from what is declared.

    `declaration` has what is in the configuration: withheld services as they run, and the faults of
    what is declared.  `config` is None if not even what runs now is accepted; `problems` has errors
    then.
    """

    declaration: Declaration
    resolution: Resolution
    plan: Plan
    config: Config | None
    problems: tuple[Problem, ...]
    withheld: tuple[Withheld, ...] = ()
    waiting: tuple[UnitId, ...] = ()
    """The removals that are only waited with."""
    base: Base = field(default_factory=Base)
    is_complete: bool = True
    """False if the search for what to withhold continues in the next step."""
    is_checked: bool = False
    """True if HAProxy's check accepted the text just now."""

    @property
    def ok(self) -> bool:
        """True if it can be deployed."""
        return self.config is not None and not errors_in(self.problems)

    @property
    def changed_files(self) -> tuple[str, ...]:
        """The files whose units differ from what HAProxy ran before, if it ran anything of ours."""
        assert self.config is not None
        if self.base.config is None:
            return ()
        before, after = self.base.sections, {each.unit: each for each in self.config.sections}
        changed = {
            section.file
            for unit in before.keys() | after.keys()
            if (before[unit].text if unit in before else None)
            != (after[unit].text if unit in after else None)
            for section in (after.get(unit), before.get(unit))
            if section is not None and section.file
        }
        return tuple(sorted(changed))


@dataclass(frozen=True, slots=True)
class ProposalMemo:
    """What was planned and rendered before; see there."""

    plan: planner.PlanMemo = field(default_factory=planner.PlanMemo)
    contents: Contents = field(default_factory=Contents)
    render: renderer.RenderMemo = field(default_factory=renderer.RenderMemo)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A composition that may be deployed."""

    declaration: Declaration
    resolution: Resolution
    plan: Plan
    config: Config
    newcomers: frozenset[UnitId]
    """The units that HAProxy does not have in this form."""
    moved: frozenset[str] = frozenset()
    """Those services whose pods are looked for elsewhere than HAProxy has them."""

    def left_without_server(self, serving: AbstractSet[str]) -> tuple[Problem, ...]:
        """The services that have a server now, and would have none by what DNS says.

        `serving` are the proxies, and the binds of a haproxy.cfg that others wrote, that serve.
        """
        if not serving:
            return ()
        found = []
        for planned in self.plan.services:
            name = planned.spec.name
            unit = UnitId(UnitKind.SERVICE, name)
            answer = self.resolution.get(name)
            has_server = name in serving or not serving.isdisjoint(map(str, planned.spec.binds))
            if (
                has_server
                and name in self.moved
                and unit not in self.declaration.forced
                and answer is not None
                and not answer.endpoints
            ):
                found.append(_no_server_left(unit, answer))
        return tuple(self.declaration.located(problem) for problem in found)

    def problems(self) -> tuple[Problem, ...]:
        """What is wrong between its units, before HAProxy is asked."""
        found = [*errors_in(self.plan.problems), *name_problems(self.config, self.newcomers)]
        found += listener_problems(
            self.plan, self.config, self.newcomers, self.declaration.untrusted
        )
        return tuple(self.declaration.located(problem) for problem in found)


Check = Callable[[Candidate, bool], tuple[Problem, ...]]
"""HAProxy's verdict, and all that can refuse a text which is sound for us.

The second argument is False for the first candidate, True for trials without some changes.
"""


def _no_server_left(unit: UnitId, answer: Answer) -> Problem:
    said = "it has a server up, and would have none: "
    if answer.rejected:
        shown = ", ".join(answer.rejected[:3])
        said += f"cluster DNS names only addresses outside of the networks: {shown}"
        remedy = "correct cluster.pod_network and cluster.service_network"
    else:
        said += answer.error or "cluster DNS names no pod"
        remedy = "correct service, namespace, port or cluster.domain"
    return Problem(
        said,
        f"{remedy}, or force it: `fc-frontend apply --force {unit.name}`",
        service=unit.name,
        unit=unit,
        cause=Cause.NO_SERVER_LEFT,
    )


def haproxy_check(patience: Patience | None = None) -> Check:
    """Let `haproxy -c` judge, as a user who can do nothing else.  Raises `Unavailable`."""
    limits = patience or Patience()
    serving: frozenset[str] | None = None

    def check(candidate: Candidate, is_trial: bool) -> tuple[Problem, ...]:
        nonlocal serving
        settings = candidate.plan.settings
        if serving is None:
            serving = frozenset()
            with contextlib.suppress(Unavailable):
                serving = runtime.serving(
                    runtime.servers_with_address(settings.haproxy.runtime_socket)
                )
        if left := candidate.left_without_server(serving):
            return left
        kept = kept_files.directory(settings.state_directory)
        return judge(
            settings.haproxy,
            candidate.config,
            candidate.plan,
            kept=kept,
            patience=limits,
            is_trial=is_trial,
        ).problems

    return check


def no_check(_candidate: Candidate, _is_trial: bool) -> tuple[Problem, ...]:
    """Ask nobody: only what is wrong by itself or between units is withheld."""
    return ()


def find_base(
    settings: Settings,
    declarations: RunningDeclarations,
    pending: RunningDeclarations | None,
    running: str | None,
) -> Base:
    """The base of changes, while HAProxy's worker reports the digest `running`.

    Without a worker it is haproxy.cfg, if that is ours and unedited.  Otherwise it is what was
    deployed last, as the history has it.  `pending` is what was being deployed when fc-frontend was
    killed.
    """
    directory = settings.state_directory
    origin = BaseOrigin.RUNNING if running else BaseOrigin.INSTALLED
    unknown = BaseOrigin.NONE
    try:
        data = install.read(settings.haproxy.config_file)
    except Unavailable:
        data, unknown = None, BaseOrigin.UNREADABLE
    installed = data.decode("utf-8", "surrogateescape") if data else ""
    digest = config_hash(installed)
    text: str | None = installed
    if digest is None or (running is not None and digest != running):
        digest = running or declarations.hash
        text = _from_history(directory, digest)
        if text is None and running is not None and declarations.hash != running:
            # The worker runs a text that is not ours.
            digest = declarations.hash
            text = _from_history(directory, digest)
    if text is None or digest is None:
        return Base(unknown, declarations=declarations)
    if pending is not None and pending.hash == digest:
        declarations = pending
    config = _with_declarations(Config(text, digest, sections_in(text)), declarations)
    by_unit = {section.unit: section for section in config.sections}
    by_unit[TEMPLATES] = _templates_section(declarations.templates)
    copies = kept_files.substitutes(directory, declarations.files)
    if not copies:
        return Base(origin, config, declarations, by_unit)
    substituted = {
        unit: replace(section, text=kept_files.with_copies(section.text, copies))
        for unit, section in by_unit.items()
    }
    return Base(origin, config, declarations, substituted, is_substituted=True)


def _with_ways_back(base: Base, settings_file: str, answers: Resolution) -> Base:
    """`base` with an earlier form of the services that lost all their servers as they run.

    What is withheld falls back to that form then.
    """
    running = base.declarations
    back = {
        name: form
        for name, form in running.ways_back().items()
        if UnitId(UnitKind.SERVICE, name) in base.sections
    }
    settings = running_settings(running, settings_file) if back else None
    if settings is None:
        return base
    former = replace(running, services=back)
    specs = running_specs(former)
    planned = plan(settings, specs.values(), (), answers)
    refused: list[Problem] = []
    sections = dict(base.sections)
    for section in render_sections(planned, templates(running.templates), refused):
        if section.unit.kind is UnitKind.SERVICE:
            form = back[section.unit.name]
            sections[section.unit] = replace(
                section,
                declaration=digest(form.value),
                file=form.file,
                is_trusted=form.level is Level.TRUSTED,
            )
    declarations = replace(running, services={**running.services, **back})
    return replace(base, declarations=declarations, sections=sections, is_reverted=True)


def base_of(prepared: Prepared, declarations: RunningDeclarations, *, is_running: bool) -> Base:
    """The base of changes once HAProxy has `prepared`, which is made of `declarations`."""
    config = prepared.config
    assert config is not None
    if prepared.base.is_substituted and config.hash == prepared.base.hash:
        return replace(prepared.base, declarations=declarations)
    by_unit = {section.unit: section for section in config.sections}
    by_unit[TEMPLATES] = _templates_section(declarations.templates)
    origin = BaseOrigin.RUNNING if is_running else BaseOrigin.INSTALLED
    return Base(origin, config, declarations, by_unit)


def _from_history(directory: str, digest: str | None) -> str | None:
    if digest is None:
        return None
    for entry in reversed(history.entries(directory)):
        if entry.hash == digest and entry.has_text:
            with contextlib.suppress(Unavailable, Refused):
                return history.text(directory, entry)
    return None


def _with_declarations(config: Config, declarations: RunningDeclarations) -> Config:
    """`config` whose sections have what is known of their declarations."""
    sections = []
    for section in config.sections:
        unit, raw = section.unit, None
        if unit == SETTINGS:
            known = digest(declarations.settings) if declarations.settings is not None else ""
            sections.append(replace(section, declaration=known))
            continue
        if unit.kind is UnitKind.SERVICE:
            raw = declarations.services.get(unit.name)
        elif unit.kind is UnitKind.FRAGMENT:
            raw = declarations.fragments.get(unit.name)
        if raw is None:
            sections.append(section)
        else:
            is_trusted = raw.level is Level.TRUSTED
            sections.append(
                replace(
                    section,
                    declaration=digest(raw.value),
                    file=raw.file,
                    is_trusted=is_trusted,
                )
            )
    return replace(config, sections=tuple(sections))


def _templates_section(texts: Mapping[str, str]) -> Section:
    text = json.dumps(dict(sorted(texts.items())))
    return Section(TEMPLATES, text, declaration=text)


def propose(
    sources: Sources,
    base: Base,
    answers: Resolution,
    running_answers: Resolution,
    check: Check,
    *,
    refused: Mapping[UnitId, Withheld] | None = None,
    withhold: Mapping[UnitId, tuple[Problem, ...]] | None = None,
    must_check: bool = False,
    shrink: bool = False,
    waiting: bool = False,
    memo: ProposalMemo | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Prepared:
    """Apply as many changes of `sources` to `base` as all checks accept.

    `answers` are those to the questions of declared services, `running_answers` those for services
    that stay as they run.  What runs already is not checked again, unless `must_check`.  `refused`
    were withheld before, and are so again without a trial if their sections are the same; changes
    to `withhold` are so in any case.  With `waiting`, removals wait.  Raises what `check` raises.
    """
    composer = _Composer(
        sources, base, answers, running_answers, shrink=shrink, memo=memo or ProposalMemo()
    )
    declaration = composer.declaration(frozenset())
    has_settings = base.declarations.settings is not None and SETTINGS in base.sections
    declared = composer(frozenset())
    if not has_settings and (SETTINGS not in declared.sections or SETTINGS in declared.faulty):
        # Nothing can be had without settings, and none run.
        faults = (problem for found in declared.faulty.values() for problem in found)
        return composer.refused((*declaration.problems, *faults))
    is_trial = False

    def trial(sections: Sequence[Section], withheld: AbstractSet[UnitId]) -> tuple[Problem, ...]:
        nonlocal is_trial
        candidate = composer.candidate(sections, withheld)
        is_running = base.origin is BaseOrigin.RUNNING and candidate.config.hash == base.hash
        # In a search, what runs is checked as well: if it is refused, nobody is to blame.
        is_known = is_running and not must_check and not is_trial
        if is_known and not candidate.newcomers:
            return ()
        found = candidate.problems()
        if not errors_in(found) and not is_known:
            said = check(candidate, is_trial)
            found = (*found, *map(candidate.declaration.located, said))
        is_trial = True
        return found

    isolated = isolate(
        composer.base.sections,
        composer,
        trial,
        clock=clock,
        refused={**composer.still_refused(refused or {}), **(withhold or {})},
        waiting=waiting,
    )
    return composer.prepared(isolated)


class _Composer:
    """Declares, plans and renders for one isolation, and makes values of its result."""

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
        self._base = base = _with_ways_back(base, sources.settings_file, running_answers)
        self._answers = answers
        self._running_answers = running_answers
        self._shrink = shrink
        self._memo = memo
        self._made: dict[AbstractSet[UnitId], _Made] = {}
        self._running_specs: dict[str, ServiceSpec | None] = {}
        self._candidates: dict[tuple[object, ...], Candidate] = {}

    @property
    def base(self) -> Base:
        """What withheld units fall back to."""
        return self._base

    def __call__(self, kept: frozenset[UnitId]) -> Declared:
        """What is declared, with the given units of the environment as they run."""
        return self._make(kept).declared

    def declaration(self, kept: frozenset[UnitId]) -> Declaration:
        """The declaration behind that."""
        return self._make(kept).declaration

    def still_refused(
        self, refused: Mapping[UnitId, Withheld]
    ) -> dict[UnitId, tuple[Problem, ...]]:
        """Those of `refused` whose declared sections are the same still."""
        sections = self._make(frozenset()).declared.sections
        found: dict[UnitId, tuple[Problem, ...]] = {}
        for unit, withheld in refused.items():
            section = sections.get(unit)
            if (section.text if section else None) == withheld.text:
                found[unit] = withheld.problems
        return found

    def candidate(self, sections: Sequence[Section], withheld: AbstractSet[UnitId]) -> Candidate:
        """The configuration of a composition, in which the changes of some units are `withheld`."""
        key = (*sorted(ENVIRONMENT.intersection(withheld)), *(each.text for each in sections))
        if key not in self._candidates:
            self._candidates[key] = self._candidate(sections, withheld)
        return self._candidates[key]

    def refused(self, problems: Sequence[Problem]) -> Prepared:
        """Nothing can be deployed."""
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
        """The result of an isolation, for those who deploy and report it."""
        declared = self._make(frozenset()).declaration
        if not isolated.accepted and not isolated.sections:
            return self.refused(isolated.problems)
        withheld = {each.unit for each in isolated.withheld}
        candidate = self.candidate(isolated.sections, withheld)
        config = candidate.config
        if self._base.config is not None and self._applies_nothing(isolated):
            # Copies of files are for a new text only.
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
        """Everything withheld; an unreadable file in place of all that it declared."""
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
            shrink=self._shrink,
            memo=self._memo.plan,
        )
        faults = dict(declaration.faults)
        sections: tuple[Section, ...] = ()
        refused: list[Problem] = []
        try:
            sections = render_sections(
                planned, templates(declaration.templates), refused, memo=self._memo.render
            )
        except Refused as exc:
            refused += exc.problems
        for problem in refused:
            unit = self._at_fault(problem, declaration, kept)
            faults[unit] = (*faults.get(unit, ()), replace(problem, unit=unit))
        bases = base_lines(sections[0].text) if sections else ""
        by_unit = {
            section.unit: self._described(section, bases, declaration) for section in sections
        }
        if TEMPLATES not in kept:
            by_unit[TEMPLATES] = _templates_section(declaration.templates)
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
        """The answers that count with the `kept` settings: those may be of another cluster."""
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
        """The unit to blame if a template fails.

        That is the templates if they have changed, else the unit that was rendered.
        """
        running = self._base.declarations
        has_own = bool(declaration.templates) and TEMPLATES not in kept
        if problem.unit is None or (has_own and declaration.templates != running.templates):
            return TEMPLATES if has_own else SETTINGS
        return problem.unit

    def _described(self, section: Section, bases: str, declaration: Declaration) -> Section:
        """`section` with the digests of its files and its declaration; the running one if equal."""
        unit = section.unit
        before = self._base.sections.get(unit)
        text = self._memo.contents.marked(section.text, bases, before.text if before else "")
        if unit == SETTINGS:
            return replace(section, text=text, declaration=digest(declaration.raw.settings))
        if before is not None and before.text == text:
            return before
        raws = declaration.raw
        of_kind = raws.services if unit.kind is UnitKind.SERVICE else raws.fragments
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
        services = tuple(plans[name] for name in sorted(plans))
        parts = tuple(fragments[name] for name in sorted(fragments))
        untrusted = {
            section.unit.name
            for section in sections
            if section.unit.kind is UnitKind.SERVICE and not section.is_trusted
        }
        return replace(
            candidate,
            declaration=replace(
                declaration,
                services=tuple(service.spec for service in services),
                fragments=parts,
                untrusted=frozenset(untrusted),
                raw=replace(
                    declaration.raw,
                    services={name: raws[name] for name in sorted(raws)},
                    fragments={name: raw_fragments[name] for name in sorted(raw_fragments)},
                ),
            ),
            resolution=answers,
            plan=replace(made.plan, services=services, fragments=parts),
        )

    def _moved(self, candidate: Candidate) -> frozenset[str]:
        """The services whose pods are looked for elsewhere than HAProxy has them."""
        declaration = candidate.declaration
        is_same_place = self._running_settings is not None and is_same_cluster(
            self._base, declaration.settings, declaration.settings_file
        )
        found = set()
        for unit in candidate.newcomers:
            spec = self._running_spec(unit.name)
            is_same = (
                spec is not None
                and is_same_place
                and question(spec) in {question(each) for each in self._spec(candidate, unit.name)}
            )
            if unit.kind is UnitKind.SERVICE and not is_same:
                found.add(unit.name)
        return frozenset(found)

    @staticmethod
    def _spec(candidate: Candidate, name: str) -> tuple[ServiceSpec, ...]:
        services = candidate.declaration.services
        at = bisect_left(services, name, key=lambda spec: spec.name)
        return services[at : at + 1] if at < len(services) and services[at].name == name else ()

    @cached_property
    def _running_settings(self) -> Settings | None:
        return running_settings(self._base.declarations, self._sources.settings_file)

    def _running_spec(self, name: str) -> ServiceSpec | None:
        # Few of thousands are needed, and each is validated.
        if name not in self._running_specs:
            self._running_specs[name] = running_spec(self._base.declarations, name)
        return self._running_specs[name]

    @cached_property
    def _running_fragments(self) -> Mapping[str, Fragment]:
        return running_fragments(self._base.declarations)

    def _running_plan(self, name: str, settings: Settings) -> ServicePlan | None:
        """The plan of a service as it runs; None if its declaration is not valid any more."""
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
    """What is declared with one environment."""

    declaration: Declaration
    answers: Resolution
    plan: Plan
    declared: Declared


def as_in_text(planned: ServicePlan, text: str) -> ServicePlan:
    """`planned` with the servers that the section `text` has, which may be older."""
    made = servers_in(text).get(planned.spec.name, ())
    if not made or planned.query is None:
        return planned
    first = made[0]
    if first.names == ("service",):
        return replace(planned, kind=Kind.SERVICE, query=first.target, slots=1, by_runtime=False)
    kind = planned.kind if planned.has_pods else Kind.HEADLESS
    if kind is Kind.API and not first.is_disabled:
        kind = Kind.HEADLESS
    kind = Kind.SRV if first.port is None else Kind.HEADLESS if kind is Kind.SRV else kind
    return replace(
        planned,
        kind=kind,
        query=first.target,
        slots=len(first.names),
        by_runtime=first.is_disabled,
        standby=planned.standby if kind is Kind.API else None,
    )


def prepare(
    sources: Sources,
    check: Check,
    *,
    base: Base | None = None,
    answers: Resolution | None = None,
    withhold: Mapping[UnitId, tuple[Problem, ...]] | None = None,
    must_check: bool = False,
) -> Prepared:
    """What the daemon would do now with `sources`, for commands.

    `answers` are those to the questions of declared services, by default the stored ones.  `base`
    is what HAProxy runs, which is found out by default.  Raises what `check` raises.
    """
    base = base or stored_base(sources)
    declaration = declared_now(sources, base)
    settings = declaration.settings
    if answers is None:
        answers = stored_answers(settings, declaration.services)
    running = stored_answers(settings, running_specs(base.declarations).values())
    return propose(sources, base, answers, running, check, withhold=withhold, must_check=must_check)


def settings_now(sources: Sources, declarations: RunningDeclarations) -> Settings:
    """The declared settings; those that run, if the declared ones have errors."""
    declaration = declare(sources, declarations)
    if SETTINGS in declaration.faults:
        former = running_settings(declarations, sources.settings_file)
        return former or declaration.settings
    return declaration.settings


def declared_now(sources: Sources, base: Base) -> Declaration:
    """What is declared, with the settings that run if the declared ones have errors."""
    declaration = declare(sources, base.declarations)
    if SETTINGS in declaration.faults:
        declaration = declare(sources, base.declarations, ENVIRONMENT)
    return declaration


def prepare_offline(
    settings_file: str, check: Check = no_check, *, base: Base | None = None
) -> Prepared:
    """As `prepare`, with what is in the files now, and everything checked."""
    return prepare(read(settings_file), check, base=base, must_check=True)


def running_plan(base: Base, settings_file: str) -> Plan | None:
    """The plan of what HAProxy runs, as far as its declarations are known; None if they are not."""
    settings = running_settings(base.declarations, settings_file)
    if settings is None or base.config is None:
        return None
    specs = running_specs(base.declarations)
    planned = plan(settings, specs.values(), (), stored_answers(settings, specs.values()))
    texts = {section.unit: section.text for section in base.config.sections}
    services = [
        as_in_text(each, texts[unit])
        for each in planned.services
        if (unit := UnitId(UnitKind.SERVICE, each.spec.name)) in texts
    ]
    fragments = running_fragments(base.declarations)
    return replace(
        planned,
        services=tuple(services),
        fragments=tuple(fragments[name] for name in sorted(fragments)),
    )


def stored_base(sources: Sources) -> Base:
    """The base of changes, for commands."""
    directory = state_directory(sources)
    declarations, pending = stored_running(directory), stored_pending(directory)
    settings = settings_now(sources, declarations)
    running = None
    with contextlib.suppress(Unavailable):
        running = runtime.running_hash(settings.haproxy.runtime_socket)
    return find_base(settings, declarations, pending, running)


def served_binds(base: Base) -> dict[str, tuple[str, ...]]:
    """The binds of each service as HAProxy runs it, by name."""
    sections = base.config.sections if base.config else ()
    return {
        section.unit.name: tuple(
            str(found.endpoint) for _, found in read_listeners(section.text).listeners
        )
        for section in sections
        if section.unit.kind is UnitKind.SERVICE
    }


def with_slots(plan: Plan, resolution: Resolution) -> dict[str, Answer]:
    """The answers with the slot counts of `plan`, which is what HAProxy now has."""
    planned = {service.spec.name: service for service in plan.services}
    return {name: _with_slots(answer, planned.get(name)) for name, answer in resolution.items()}


def _with_slots(answer: Answer, planned: ServicePlan | None) -> Answer:
    """The very same answer where nothing changes: what follows from it stays the same then."""
    if planned is None or (answer.slots, answer.by_runtime) == (planned.slots, planned.by_runtime):
        return answer
    return replace(answer, slots=planned.slots, by_runtime=planned.by_runtime)


def is_same_cluster(base: Base, settings: Settings, settings_file: str) -> bool:
    """True if HAProxy has pods of the cluster that `settings` name, as far as that is known."""
    running = running_settings(base.declarations, settings_file)
    return running is None or running.cluster == settings.cluster


async def resolve(
    declaration: Declaration,
    previous: Resolution | None = None,
    *,
    base: Base | None = None,
    hold: bool = True,
) -> dict[str, Answer]:
    """What API and cluster DNS say now of every service; never raises for what they do.

    `previous` are the answers that stay good where DNS fails: by default the stored ones, unless
    `base`, which is what HAProxy runs, has pods of another cluster.  With
    `hold`, they stay as well where DNS suddenly names nobody: one look cannot tell how long.
    """
    from fc_frontend.discovery.once import resolve_once
    from fc_frontend.kubernetes.answers import ask_api

    cluster = declaration.settings.cluster
    if previous is None:
        settings, file = declaration.settings, declaration.settings_file
        is_same = base is None or is_same_cluster(base, settings, file)
        previous = stored_answers(settings, declaration.services) if is_same else {}
    answers = await ask_api(declaration.services, cluster, previous)
    others = [spec for spec in declaration.services if spec.name not in answers]
    wait = declaration.settings.intervals.hold if hold else 0.0
    return answers | await resolve_once(others, cluster, previous, wait)


def record(
    prepared: Prepared, deployment: Deployment, reasons: tuple[str, ...], *, by: str = ""
) -> None:
    """Keep in the history how a deployment of `prepared` went, if it did anything.

    `by` is the user whose command it was.  Raises `Unavailable`.
    """
    assert prepared.config is not None
    if deployment.outcome.value in ("in-sync", "held", "needs-consent"):
        return
    entry = history.Entry(
        at=time.time(),
        hash=prepared.config.hash,
        outcome=deployment.outcome.value,
        reasons=reasons,
        services=len(prepared.plan.services),
        slots=prepared.plan.slot_count,
        seconds=round(deployment.duration, 3),
        by=by,
        files=prepared.changed_files,
    )
    settings = prepared.plan.settings
    mode = install.mode_of_copies(settings.haproxy.config_file)
    history.record(settings.state_directory, entry, prepared.config.text, mode=mode)


def lost_settings(prepared: Prepared, deployment: Deployment) -> tuple[Problem, ...]:
    """Warnings about what a haproxy.cfg that was taken over had in `global` and `defaults`."""
    replaced = deployment.replaced
    is_foreign = replaced is not None and replaced.found.origin in (
        FileOrigin.BARE,
        FileOrigin.FOREIGN,
    )
    if replaced is None or replaced.content is None or not is_foreign or not deployment.ok:
        return ()
    assert prepared.config is not None
    text = replaced.content.data.decode("utf-8", "surrogateescape")
    with contextlib.suppress(Refused):
        return lost.lost_settings(text, prepared.plan.settings.haproxy, prepared.config.text)
    return ()
