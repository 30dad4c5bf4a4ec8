"""The result of files without HAProxy: at a first deployment, or compared to what is running."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from fc_frontend.config.declare import Declaration
from fc_frontend.config.loader import Sources, read
from fc_frontend.config.running import RunningDeclarations
from fc_frontend.config.templates import templates
from fc_frontend.errors import Problem, Refused, errors_in
from fc_frontend.model.units import SETTINGS, TEMPLATES, UnitId, UnitKind
from fc_frontend.pipeline import Base, Candidate, Prepared, ProposalMemo, base_of, no_check, propose
from fc_frontend.plan.model import Plan, Resolution
from fc_frontend.plan.planner import plan
from fc_frontend.render.config import Config
from fc_frontend.render.render import render


@dataclass(frozen=True, slots=True)
class Rendered:
    """A declaration rendered with nothing withheld; without `config` if rendering fails."""

    plan: Plan
    config: Config | None
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether there are no errors."""
        return self.config is not None and not errors_in(self.problems)


def prepare(
    declaration: Declaration,
    answers: Resolution,
    *,
    newcomers: Collection[UnitId] | None = None,
    shrink: bool = False,
    memo: ProposalMemo | None = None,
) -> Rendered:
    """Plan and render the declaration; by default, all units are `newcomers`."""
    memo = memo or ProposalMemo()
    planned = plan(
        declaration.settings,
        declaration.services,
        declaration.fragments,
        answers,
        frontends=declaration.frontends,
        shrink=shrink,
        memo=memo.plan,
    )
    found = [*declaration.problems, *planned.problems]
    config = None
    try:
        config = render(planned, templates(declaration.templates), memo=memo.render)
        units = {section.unit for section in config.sections} if newcomers is None else newcomers
        candidate = Candidate(
            declaration=declaration,
            resolution=answers,
            plan=planned,
            config=config,
            newcomers=frozenset(units),
        )
        found += candidate.problems()
    except Refused as exc:
        found += exc.problems
    located = dict.fromkeys(map(declaration.located, found))
    return Rendered(planned, config, tuple(located))


def newcomers(declaration: Declaration, running: RunningDeclarations) -> frozenset[UnitId]:
    """Return the units whose declaration differs from the running one."""
    raw = declaration.raw
    found = {
        UnitId(kind, name)
        for kind, mine, theirs in (
            (UnitKind.SERVICE, raw.services, running.services),
            (UnitKind.FRAGMENT, raw.fragments, running.fragments),
            (UnitKind.FRONTEND, raw.frontends, running.frontends),
        )
        for name, form in mine.items()
        if name not in theirs or theirs[name].value != form.value
    }
    found |= {SETTINGS} if raw.settings != running.settings else set()
    return frozenset(found | ({TEMPLATES} if raw.templates != running.templates else set()))


def prepared(
    sources: Sources | str | Path, running: RunningDeclarations | Base | None = None
) -> Prepared:
    """Propose a deployment, given the running declarations, without answers of cluster DNS."""
    if not isinstance(sources, Sources):
        sources = read(str(sources))
    base = running if isinstance(running, Base) else Base()
    if isinstance(running, RunningDeclarations):
        base = replace(base, declarations=running)
    return propose(sources, base, {}, {}, no_check)


def running(found: Prepared) -> Base:
    """Return the base of further changes once HAProxy runs the prepared configuration."""
    return base_of(found, found.declaration.raw, is_running=True)


def withheld(found: Prepared) -> dict[str, tuple[Problem, ...]]:
    """Return the problems of withheld units, by unit."""
    return {str(each.unit): each.problems for each in found.withheld}
