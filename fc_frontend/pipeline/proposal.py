"""The single path from files to a configuration, for the daemon and for every command.

    files ─► declare ─► plan ─► render ─► isolate ─► Prepared ─► haproxy.deploy
    what HAProxy runs ─► Base ────────────┘  ▲
                         checks, haproxy -c ─┘

The running configuration is the base, and a declaration is a set of changes against it.  `isolate`
applies as many of them as all checks accept, and withholds the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

from fc_frontend.config.declare import running_specs
from fc_frontend.config.loader import Sources, read
from fc_frontend.config.running import RunningDeclarations
from fc_frontend.desired.isolate import Withheld, isolate
from fc_frontend.errors import Problem, errors_in
from fc_frontend.model.units import SETTINGS, TEMPLATES, Section, UnitId
from fc_frontend.pipeline.base import Base, BaseOrigin, declared_now, stored_base, templates_section
from fc_frontend.pipeline.candidate import Check, Prepared, no_check
from fc_frontend.pipeline.composer import Composer, ProposalMemo
from fc_frontend.plan.model import Answer, Plan, Resolution, ServicePlan
from fc_frontend.stored import stored_answers


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

    `answers` belong to the questions of declared services, `running_answers` to services that keep
    their running form.  The running configuration is not checked again, unless `must_check`.
    Changes that were `refused` before are withheld without another trial while their sections are
    the same; changes in `withhold` are always withheld.  With `waiting`, removals wait.  Raises
    whatever `check` raises.
    """
    composer = Composer(
        sources, base, answers, running_answers, shrink=shrink, memo=memo or ProposalMemo()
    )
    declaration = composer.declaration(frozenset())
    has_settings = base.declarations.settings is not None and SETTINGS in base.sections
    declared = composer(frozenset())
    if not has_settings and (SETTINGS not in declared.sections or SETTINGS in declared.faulty):
        # Nothing can be deployed without settings, and none are running.
        faults = (problem for found in declared.faulty.values() for problem in found)
        return composer.refused((*declaration.problems, *faults))
    is_trial = False

    def trial(sections: Sequence[Section], withheld: AbstractSet[UnitId]) -> tuple[Problem, ...]:
        nonlocal is_trial
        candidate = composer.candidate(sections, withheld)
        is_running = base.origin is BaseOrigin.RUNNING and candidate.config.hash == base.hash
        # A search also checks the running configuration: if refused, no change is to blame.
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


def base_of(prepared: Prepared, declarations: RunningDeclarations, *, is_running: bool) -> Base:
    """Return the base of changes once HAProxy has `prepared`, which is made of `declarations`."""
    config = prepared.config
    assert config is not None
    if prepared.base.is_substituted and config.hash == prepared.base.hash:
        return replace(prepared.base, declarations=declarations)
    by_unit = {section.unit: section for section in config.sections}
    by_unit[TEMPLATES] = templates_section(declarations.templates)
    origin = BaseOrigin.RUNNING if is_running else BaseOrigin.INSTALLED
    return Base(origin, config, declarations, by_unit)


def prepare(
    sources: Sources,
    check: Check,
    *,
    base: Base | None = None,
    answers: Resolution | None = None,
    withhold: Mapping[UnitId, tuple[Problem, ...]] | None = None,
    must_check: bool = False,
) -> Prepared:
    """Return what the daemon would do now with `sources`, for commands.

    `answers` belong to the questions of declared services; the default is the stored ones.  `base`
    is the running configuration, found by default.  Raises whatever `check` raises.
    """
    base = base or stored_base(sources)
    declaration = declared_now(sources, base)
    settings = declaration.settings
    if answers is None:
        answers = stored_answers(settings, declaration.services)
    running = stored_answers(settings, running_specs(base.declarations).values())
    return propose(sources, base, answers, running, check, withhold=withhold, must_check=must_check)


def prepare_offline(
    settings_file: str, check: Check = no_check, *, base: Base | None = None
) -> Prepared:
    """Do as `prepare`, with the present files, and check everything."""
    return prepare(read(settings_file), check, base=base, must_check=True)


def with_slots(plan: Plan, resolution: Resolution) -> dict[str, Answer]:
    """Return the answers with the slot counts of `plan`, which HAProxy now has."""
    planned = {service.spec.name: service for service in plan.services}
    return {name: _with_slots(answer, planned.get(name)) for name, answer in resolution.items()}


def _with_slots(answer: Answer, planned: ServicePlan | None) -> Answer:
    """Return the same object if nothing changes, so that results derived from it remain valid."""
    if planned is None or (answer.slots, answer.by_runtime) == (planned.slots, planned.by_runtime):
        return answer
    return replace(answer, slots=planned.slots, by_runtime=planned.by_runtime)
