"""`fc-frontend apply`: deploy once."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from fc_frontend.cli.common import (
    Exit,
    common_options,
    deployed,
    echo_unless_quiet,
    emit,
    fail,
    format_options,
    print_problems,
    refuse,
    say,
    style,
    user,
)
from fc_frontend.cli.progress import step
from fc_frontend.errors import Problem, Severity, Unavailable
from fc_frontend.model.units import SETTINGS, TEMPLATES, UnitId, UnitKind
from fc_frontend.plurals import counted
from fc_frontend.text import printable

if TYPE_CHECKING:
    from fc_frontend.config.loader import Sources
    from fc_frontend.haproxy.consent import Consent
    from fc_frontend.haproxy.deploy import Deployment
    from fc_frontend.pipeline import Base, Check, Prepared
    from fc_frontend.plan.model import Resolution, Settings
    from fc_frontend.rollout import Options, Rollout
    from fc_frontend.stored import RunningState

EPILOG = """\
\b
Examples:
  fc-frontend apply               deploy all changes once
  fc-frontend apply --strict      deploy all changes or none
  fc-frontend apply --force shop  deploy shop although that may be a mistake
  fc-frontend apply --take-over   replace a haproxy.cfg that fc-frontend did not write
"""


@click.command("apply", epilog=EPILOG)
@common_options
@click.option(
    "--force",
    "forced",
    metavar="[UNIT]",
    multiple=True,
    is_flag=False,
    flag_value="",
    help="Deploy or remove a service, a fragment or `settings` although that may be a mistake. "
    "Without UNIT: retry changes that failed at a reload, and accept an empty services.d.",
)
@click.option(
    "--drop",
    "dropped",
    metavar="UNIT",
    multiple=True,
    help="Leave out a running service or fragment that HAProxy refuses.",
)
@click.option(
    "--strict", "is_strict", is_flag=True, help="Deploy nothing while any change is withheld."
)
@click.option(
    "--take-over",
    "takes_over",
    is_flag=True,
    help="Replace a haproxy.cfg that fc-frontend did not write.",
)
@format_options("text", "json")
def command(
    config: str,
    forced: tuple[str, ...],
    dropped: tuple[str, ...],
    is_strict: bool,
    takes_over: bool,
    shape: str,
) -> None:
    """Deploy once: find pods, validate, install haproxy.cfg, reload and confirm.

    Does what the daemon does on a change. A change that HAProxy or a check refuses is withheld:
    its service keeps running as before, and all other changes are deployed. With --strict, nothing
    is deployed then. A deployment that fails leaves HAProxy and haproxy.cfg unchanged.

    Changes that are probably mistakes are withheld as well: the removal of a service whose new
    version has an error, or a change after which the service lost all its servers. `--force NAME`
    deploys exactly the version in the files now; the daemon honours that. If HAProxy refuses a
    service that is already running, for example after an upgrade, `--drop NAME` leaves it out.

    A failed reload may stop all listeners for 2 seconds. The same change is tried again only when
    its text or the obstacle changes, or with --force.

    A haproxy.cfg that fc-frontend did not write and that has proxies is replaced only with
    --take-over. This consent is recorded for the current text, so the daemon may replace it, too.
    The file is kept in `fc-frontend history`, and `rollback` restores it.

    \b
    0  HAProxy runs the configuration, or loads it when it starts
    1  a change is withheld, the reload failed, deployments are paused by a rollback, or
       haproxy.cfg needs --take-over
    3  unknown, for example because haproxy is not installed
    """
    from fc_frontend.config.fingerprint import fingerprint
    from fc_frontend.config.loader import read
    from fc_frontend.haproxy import hold
    from fc_frontend.haproxy.binary import find_binary
    from fc_frontend.haproxy.deploy import Outcome, forget_refused
    from fc_frontend.pipeline import (
        declared_now,
        lost_settings,
        record,
        resolve,
        stored_base,
        with_slots,
    )
    from fc_frontend.rollout import Options, deployed_declarations
    from fc_frontend.stored import RunningState, save_answers

    with step("reading the configuration"):
        sources = replace(read(config), believes_empty="" in forced)
        base = stored_base(sources)
        units = {name: _unit(name, sources, base) for name in (*forced, *dropped) if name}
        consents = {units[name]: fingerprint(sources, units[name]) for name in forced if name}
        declaration = declared_now(sources, base)
    if SETTINGS in declaration.faults:
        refuse(declaration.problems)
    settings = declaration.settings
    try:
        find_binary(settings.haproxy.binary)
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)
    # Report a hold before querying cluster DNS; the check in `roll_out` is decisive.
    unseen = hold.unseen(settings.state_directory)
    if unseen is not None:
        fail([unseen], Exit.CANNOT_TELL)
    held = hold.load(settings.state_directory)
    if held is not None:
        fail([hold.problem(held)], Exit.PROBLEMS)
    with step(f"querying cluster DNS for {counted(len(declaration.services), 'service')}"):
        resolution = asyncio.run(resolve(declaration, base=base))
    given = _take_over(settings, shape) if takes_over else None
    state = RunningState(settings.state_directory)
    # HAProxy outlives this command, and must not keep the pipe of its output open.
    options = Options(
        output=os.devnull,
        is_forced=bool(forced),
        is_strict=is_strict,
        given=given,
        consents=consents,
    )
    drop = frozenset(units[name] for name in dropped)
    with step("checking, installing and reloading"):
        rollout = _rolled_out(sources, settings, state, resolution, options, drop)
    prepared, deployment = rollout.prepared, rollout.deployment
    if prepared is None or deployment.outcome in (Outcome.HELD, Outcome.NEEDS_CONSENT):
        is_unknown = deployment.outcome is Outcome.FAILED
        fail(deployment.problems, Exit.CANNOT_TELL if is_unknown else Exit.PROBLEMS)
    withheld = tuple(problem for each in prepared.withheld for problem in each.problems)
    lost = lost_settings(prepared, deployment)
    problems = tuple(dict.fromkeys((*withheld, *prepared.problems, *deployment.problems, *lost)))
    if prepared.config is not None:
        problems += _unless_unavailable(lambda: record(prepared, deployment, ("apply",), by=user()))
    if not deployment.ok:
        refuse(problems)
    if not withheld:
        forget_refused(settings.haproxy)
    answers = with_slots(prepared.plan, prepared.resolution)
    specs = prepared.declaration.services
    state.promote(deployed_declarations(prepared, state.confirmed, sources))
    problems += _unless_unavailable(lambda: save_answers(settings, specs, answers))
    problems += _unless_unavailable(lambda: state.save(settings))
    sys.exit(_report(prepared, deployment, problems, shape))


def _report(
    prepared: Prepared, deployment: Deployment, problems: tuple[Problem, ...], shape: str
) -> Exit:
    """Print the result of the deployment, and return the exit code."""
    from fc_frontend.haproxy.deploy import Outcome

    code = Exit.PROBLEMS if prepared.withheld else Exit.GOOD
    if shape == "json":
        document = deployed(deployment, problems)
        if prepared.withheld:
            document["status"] = "withheld"
        emit({**document, "withheld": [each.as_json() for each in prepared.withheld]})
        return code
    print_problems(problems)
    words = {
        Outcome.IN_SYNC: "nothing to do: HAProxy has this configuration",
        Outcome.ROUTED: f"changed at runtime in {deployment.duration:.2f} s, without a reload",
        Outcome.RELOADED: f"reloaded in {deployment.duration:.2f} s",
        Outcome.STARTED: f"HAProxy started in {deployment.duration:.2f} s",
        Outcome.INSTALLED: "installed; HAProxy is not running and loads it when it starts",
    }
    echo_unless_quiet(f"{style('good', 'green')}: {words[deployment.outcome]} ({deployment.hash})")
    replaced = deployment.replaced
    if replaced is not None and replaced.entry is not None:
        echo_unless_quiet(
            f"the former haproxy.cfg is kept: fc-frontend rollback {replaced.entry.id}"
        )
    for each in prepared.withheld:
        say(f"withheld: {each.unit}: {each.effect}", err=True)
    return code


def _rolled_out(
    sources: Sources,
    settings: Settings,
    state: RunningState,
    answers: Resolution,
    options: Options,
    drop: frozenset[UnitId],
) -> Rollout:
    from fc_frontend.config.declare import running_specs
    from fc_frontend.pipeline import propose
    from fc_frontend.rollout import deployed_declarations, roll_out
    from fc_frontend.stored import stored_answers

    def proposed(base: Base, check: Check) -> Prepared:
        running = stored_answers(settings, running_specs(base.declarations).values())
        return propose(sources, base.without(drop), answers, running, check)

    def attempt(prepared: Prepared) -> None:
        state.attempt(settings, deployed_declarations(prepared, state.confirmed, sources))

    return roll_out(settings, state, proposed, attempt, options)


def _unit(name: str, sources: Sources, base: Base) -> UnitId:
    """Return the unit of that name.  Raises `click.BadParameter` if there is none."""
    fixed = {"settings": SETTINGS, "templates": TEMPLATES}
    kinds = (UnitKind.SERVICE, UnitKind.FRAGMENT, UnitKind.FRONTEND)
    known = {
        *base.sections,
        *(UnitId(UnitKind.SERVICE, each) for each in sources.services),
        *(UnitId(UnitKind.FRAGMENT, each.name) for each in sources.fragments),
        *(UnitId(UnitKind.FRONTEND, each) for each in sources.frontends),
    }
    found = next((unit for kind in kinds if (unit := UnitId(kind, name)) in known), None)
    if found is None and name not in fixed:
        raise click.BadParameter(f"there is no service, fragment or frontend {printable(name)}")
    return found or fixed[name]


def _unless_unavailable(act: Callable[[], None]) -> tuple[Problem, ...]:
    """Call `act`, which HAProxy does not depend on; return its errors as warnings."""
    try:
        act()
    except Unavailable as exc:
        return tuple(replace(problem, severity=Severity.WARNING) for problem in exc.problems)
    return ()


def _take_over(settings: Settings, shape: str) -> Consent:
    """Show what will be replaced, and return the consent to it."""
    from fc_frontend.haproxy import take_over
    from fc_frontend.haproxy.consent import Consent

    try:
        judged = take_over.present(settings)
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)
    if shape == "text" and judged.decision.allowed:
        echo_unless_quiet("nothing to take over: haproxy.cfg may be replaced without consent")
    elif shape == "text":
        echo_unless_quiet(f"takes over {judged.path}:")
        for served in judged.found.proxies or judged.worker.proxies:
            echo_unless_quiet(f"    {served}")
    return Consent(judged.decision.needed, user())
