"""The one way from files to a configuration, for every command.

    load → (resolve) → plan → render → judge

`check` and `render` stop before HAProxy is touched; `apply` and `run` hand the result to
`haproxy.deploy`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fc_frontend import files
from fc_frontend.config import last_good as forms
from fc_frontend.config.last_good import (
    LastGood,
    Piece,
    Quarantine,
    Unit,
    dump_last_good,
    load_last_good,
)
from fc_frontend.config.loader import Declaration, load, read, state_directory
from fc_frontend.config.quarantine import Faults, Withdrawn, tolerate, unit_of
from fc_frontend.config.templates import templates
from fc_frontend.config.trusted_users import state_verdict
from fc_frontend.discovery.store import dump_written, load_answers, write_answer
from fc_frontend.errors import Problem, Refused, Unavailable, errors_in
from fc_frontend.haproxy import history, install
from fc_frontend.haproxy.conflicts import listener_problems
from fc_frontend.haproxy.foreign import Origin
from fc_frontend.haproxy.judge import judge
from fc_frontend.haproxy.patience import Patience
from fc_frontend.migrate import lost
from fc_frontend.model.units import UnitId, UnitKind
from fc_frontend.plan import planner
from fc_frontend.plan.model import (
    Answer,
    Freshness,
    Plan,
    Resolution,
    ServicePlan,
    ServiceSpec,
    Settings,
)
from fc_frontend.plan.planner import plan
from fc_frontend.render import render as renderer
from fc_frontend.render.config import Config
from fc_frontend.render.names import name_problems
from fc_frontend.render.render import render

if TYPE_CHECKING:
    from fc_frontend.haproxy.deploy import Deployment

ANSWERS_FILE = "answers.json"
LAST_GOOD_FILE = "last-good.json"
PENDING_FILE = "pending.json"
MOST_TRIALS = 100
"""Times that units are withdrawn before everything is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A declaration and what follows from it; `config` is None if it could not be rendered."""

    declaration: Declaration
    resolution: Resolution
    plan: Plan
    config: Config | None
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """True if nothing refuses it so far."""
        return self.config is not None and not errors_in(self.problems)


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """An answer to a service's question, as it is written."""

    spec: ServiceSpec
    answer: Answer
    question: str
    written: str


@dataclass(frozen=True, slots=True)
class Memo:
    """What was planned, rendered and written before; see there."""

    plan: planner.Memo = field(default_factory=planner.Memo)
    render: renderer.Memo = field(default_factory=renderer.Memo)
    forms: forms.Memo = field(default_factory=forms.Memo)
    answers: dict[str, StoredAnswer] = field(default_factory=dict)
    """By service."""


def prepare(
    declaration: Declaration,
    resolution: Resolution,
    *,
    shrink: bool = False,
    memo: Memo | None = None,
) -> Prepared:
    """Plan and render what was declared.  The plan has the services without faults.

    What `memo` has of services that are still the same is taken from there.
    """
    memo = memo or Memo()
    planned = plan(
        declaration.settings,
        declaration.services,
        declaration.fragments,
        resolution,
        shrink=shrink,
        memo=memo.plan,
    )
    found = [*declaration.problems, *planned.problems]
    config = None
    try:
        config = render(planned, templates(declaration.templates), memo=memo.render)
        newcomers = _newcomers(declaration)
        found += name_problems(config, newcomers)
        found += listener_problems(planned, config, newcomers, declaration.untrusted)
    except Refused as exc:
        found += exc.problems
    return Prepared(
        declaration=declaration,
        resolution=resolution,
        plan=planned,
        config=config,
        problems=tuple(declaration.located(problem) for problem in found),
    )


def _newcomers(declaration: Declaration) -> frozenset[UnitId]:
    """The units that HAProxy does not have in this form."""
    return frozenset(UnitId(UnitKind(unit.piece), unit.name) for unit in declaration.fresh)


def prepare_offline(settings_file: str) -> Prepared:
    """Load, plan and render with the answers that cluster DNS gave last, asking nobody now."""
    declaration = load(settings_file)
    return prepare(declaration, stored_answers(declaration))


def answers_path(declaration: Declaration) -> str:
    """Where the last good answers of cluster DNS are kept."""
    return f"{declaration.settings.state_directory}/{ANSWERS_FILE}"


def stored_answers(declaration: Declaration) -> dict[str, Answer]:
    """The stored answers, by service, for those whose declaration still asks the same question."""
    stored = load_answers(answers_path(declaration))
    return {
        spec.name: stored[question(spec)]
        for spec in declaration.services
        if question(spec) in stored
    }


def stored_form(
    declaration: Declaration, resolution: Resolution, *, memo: Memo | None = None
) -> bytes:
    """The answers as `stored_answers` will read them."""
    known = memo.answers if memo else {}
    stored: dict[str, StoredAnswer] = {}
    for spec in declaration.services:
        answer = resolution.get(spec.name)
        if answer is None or answer.freshness is Freshness.UNKNOWN:
            continue
        was = known.get(spec.name)
        if was is None or was.spec is not spec or was.answer is not answer:
            was = StoredAnswer(spec, answer, question(spec), write_answer(answer))
        stored[spec.name] = was
    if memo:
        memo.answers.clear()
        memo.answers.update(stored)
    return dump_written({each.question: each.written for each in stored.values()})


def with_slots(plan: Plan, resolution: Resolution) -> dict[str, Answer]:
    """The answers with the slot counts of `plan`, which is what HAProxy now has."""
    planned = {service.spec.name: service for service in plan.services}
    return {name: _with_slots(answer, planned.get(name)) for name, answer in resolution.items()}


def _with_slots(answer: Answer, planned: ServicePlan | None) -> Answer:
    """The very same answer where nothing changes: what follows from it stays the same then."""
    if planned is None or (answer.slots, answer.by_runtime) == (planned.slots, planned.by_runtime):
        return answer
    return replace(answer, slots=planned.slots, by_runtime=planned.by_runtime)


def save_answers(
    declaration: Declaration, resolution: Resolution, *, memo: Memo | None = None
) -> None:
    """Keep the answers for the next start, and for `check`.  Raises `Unavailable`."""
    files.write_own(answers_path(declaration), stored_form(declaration, resolution, memo=memo))


async def resolve(
    declaration: Declaration, previous: Resolution | None = None, *, hold: bool = True
) -> dict[str, Answer]:
    """What cluster DNS says now of every service; never raises for what DNS does.

    `previous` are the answers that stay good where DNS fails: the stored ones by default.  With
    `hold`, they stay as well where DNS suddenly names nobody: one look cannot tell how long.
    """
    from fc_frontend.discovery.client import DnsClient
    from fc_frontend.discovery.resolve import resolve_all

    cluster = declaration.settings.cluster
    if previous is None:
        previous = stored_answers(declaration)
    client = DnsClient(cluster.nameservers)
    try:
        return await resolve_all(
            declaration.services,
            cluster,
            client,
            previous,
            hold=declaration.settings.intervals.hold if hold else 0.0,
        )
    finally:
        client.close()


def record(prepared: Prepared, deployment: Deployment, reasons: tuple[str, ...]) -> None:
    """Keep in the history how a deployment of `prepared` went, if it did anything.

    Raises `Unavailable`.
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
    )
    settings = prepared.plan.settings
    mode = install.mode_of_copies(settings.haproxy.config_file)
    history.record(settings.state_directory, entry, prepared.config.text, mode=mode)


def lost_settings(prepared: Prepared, deployment: Deployment) -> tuple[Problem, ...]:
    """Warnings about what a haproxy.cfg that was taken over had in `global` and `defaults`."""
    replaced = deployment.replaced
    is_foreign = replaced is not None and replaced.found.origin in (Origin.BARE, Origin.FOREIGN)
    if replaced is None or replaced.content is None or not is_foreign or not deployment.ok:
        return ()
    assert prepared.config is not None
    text = replaced.content.data.decode("utf-8", "surrogateescape")
    with contextlib.suppress(Refused):
        return lost.lost_settings(text, prepared.plan.settings.haproxy, prepared.config.text)
    return ()


def question(spec: ServiceSpec) -> str:
    """What is asked of cluster DNS for a service; answers to other questions are worth nothing."""
    return f"{spec.name} {spec.service}.{spec.namespace} {spec.target} {spec.port} {spec.discovery}"


def quarantines(settings_file: str) -> tuple[Quarantine, ...]:
    """What the daemon would put into quarantine now, with HAProxy's own word on each.

    Raises `Unavailable` if HAProxy cannot be asked.
    """
    sources = read(settings_file)
    last_good = stored_last_good(state_directory(sources))
    withdrawn = Withdrawn()

    patience = Patience()

    def settled(without: Iterable[Unit] = ()) -> Prepared:
        declaration = tolerate(sources, last_good, withdrawn.without(without))
        prepared = prepare(declaration, stored_answers(declaration))
        return judged(prepared, patience=patience, is_trial=bool(without))

    for _ in range(MOST_TRIALS):
        prepared = settled()
        if prepared.ok:
            break
        faults = traced(prepared.problems, prepared.declaration)
        if not faults:
            changed = prepared.declaration.forms.differing(last_good) - withdrawn.left_out
            found = culprit(sorted(changed), lambda units: settled(units).ok)
            faults = {found: errors_in(prepared.problems)} if found else {}
        if not withdrawn.withdraw(faults):
            break
    return prepared.declaration.quarantined


def last_good_path(state_directory: str) -> str:
    """Where the last good forms are kept."""
    return f"{state_directory}/{LAST_GOOD_FILE}"


def stored_last_good(state_directory: str) -> LastGood:
    """The last good forms; nothing where none are kept, or where others may have written them."""
    verdict = state_verdict(state_directory)
    if verdict is not None and not verdict.is_trusted:
        return LastGood()
    return load_last_good(last_good_path(state_directory))


def stored_pending(state_directory: str) -> LastGood | None:
    """The forms that were being deployed when the daemon ended, if it ended in a deployment."""
    found = load_last_good(_pending_path(state_directory))
    return found if found.hash else None


def save_last_good(settings: Settings, last_good: LastGood, *, memo: Memo | None = None) -> None:
    """Keep the last good forms for the next start.  Raises `Unavailable`."""
    _save_forms(settings, last_good_path(settings.state_directory), last_good, memo)


def save_pending(settings: Settings, pending: LastGood, *, memo: Memo) -> None:
    """Write the forms that are about to be deployed.  Raises `Unavailable`."""
    files.make_directory(settings.state_directory, mode=0o750)
    _save_forms(settings, _pending_path(settings.state_directory), pending, memo)


def forget_pending(state_directory: str) -> None:
    """Remove the forms that were being deployed: the last good ones tell how that ended."""
    # One that stays counts only while HAProxy runs exactly that configuration.
    with contextlib.suppress(Unavailable):
        files.remove(_pending_path(state_directory))


def _pending_path(state_directory: str) -> str:
    return f"{state_directory}/{PENDING_FILE}"


def _save_forms(settings: Settings, path: str, saved: LastGood, memo: Memo | None) -> None:
    content = dump_last_good(saved, memo.forms if memo else None)
    files.write_own(path, content, mode=install.mode_of_copies(settings.haproxy.config_file))


def traced(problems: Iterable[Problem], declaration: Declaration) -> Faults:
    """The units that errors name: by identity, by a section's name, or by a template's file.

    Settings are to blame only if they are not in their last good form.
    """
    found: dict[Unit, list[Problem]] = {}
    for problem in errors_in(problems):
        if problem.unit is not None:
            unit = Unit(Piece(problem.unit.kind), problem.unit.name)
        elif problem.service:
            unit = unit_of(problem.service, declaration.forms)
        elif problem.file in declaration.templates:
            unit = Unit(Piece.TEMPLATES)
        else:
            continue
        if unit.piece is not Piece.SETTINGS or unit in declaration.fresh:
            found.setdefault(unit, []).append(problem)
    return {unit: tuple(said) for unit, said in found.items()}


def culprit(suspects: Sequence[Unit], accepts: Callable[[frozenset[Unit]], bool]) -> Unit | None:
    """One of `suspects` that HAProxy refuses, None if it is none of them.

    `accepts` tells whether HAProxy takes the configuration with these units reverted; it is asked
    at most ⌈log₂ n⌉ + 1 times for n suspects.  Of several, it is the last one.
    """
    if not suspects or not accepts(frozenset(suspects)):
        return None
    # All up to `enough` mend it and all up to `few` do not: what lies between them is refused,
    # however many others are.
    few, enough = 0, len(suspects)
    while enough - few > 1:
        middle = (few + enough) // 2
        if accepts(frozenset(suspects[:middle])):
            enough = middle
        else:
            few = middle
    return suspects[few]


def judged(
    prepared: Prepared, *, patience: Patience | None = None, is_trial: bool = False
) -> Prepared:
    """`prepared` with HAProxy's verdict.  Raises `Unavailable` if HAProxy cannot be run.

    `patience` limits how long the check may take: see there.
    """
    if prepared.config is None:
        return prepared
    haproxy = prepared.declaration.settings.haproxy
    judgement = judge(haproxy, prepared.config, prepared.plan, patience=patience, is_trial=is_trial)
    said = judgement.problems
    located = tuple(prepared.declaration.located(problem) for problem in said)
    return replace(prepared, problems=(*prepared.problems, *located))
