"""`fc-frontend diff`: show what `apply` would change."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from fc_frontend.cli.common import (
    Exit,
    common_options,
    emit,
    fail,
    format_options,
    print_problems,
    refuse,
    say,
    style,
)
from fc_frontend.cli.progress import is_quiet, step
from fc_frontend.errors import Problem, Severity, Unavailable
from fc_frontend.plurals import counted

if TYPE_CHECKING:
    from fc_frontend.config.declare import Declaration
    from fc_frontend.explain.differences import Difference, Installed
    from fc_frontend.pipeline import Base
    from fc_frontend.plan.model import Answer, Settings

_MARKS = {"added": "+", "removed": "-", "changed": "~"}
_COLORS = {"added": "green", "removed": "red", "changed": "yellow"}
_SHOWN = 40
_DNS_PATIENCE = 10.0

EPILOG = """\
\b
Examples:
  fc-frontend diff         show the changes by service
  fc-frontend diff --text  show the changes as lines of haproxy.cfg
"""


@click.command("diff", epilog=EPILOG)
@common_options
@click.option("--text", "as_text", is_flag=True, help="Print a unified diff of haproxy.cfg.")
@format_options("text", "json")
def command(config: str, as_text: bool, shape: str) -> None:
    """Show what `apply` would change, and whether it takes a reload.

    Lists changes by service: fields that differ, binds that are opened (+) and closed (-), and
    slots. Finds pods as `apply` does and validates the result with HAProxy; changes nothing. Needs
    read access to haproxy.cfg. Passwords are shown with --text only.

    \b
    0  no changes
    1  there are changes, a change would be withheld, or HAProxy refuses what it runs
    3  unknown, for example because haproxy.cfg cannot be read
    """
    from fc_frontend.config.loader import read
    from fc_frontend.explain.differences import Effect, differences
    from fc_frontend.haproxy import hold, take_over
    from fc_frontend.pipeline import declared_now, haproxy_check, prepare, stored_base

    with step("reading the configuration"):
        sources = read(config)
        base = stored_base(sources)
        declaration = declared_now(sources, base)
    number = counted(len(declaration.services), "service")
    with step(f"querying cluster DNS for {number}"):
        resolution, problems = _resolution(declaration, base)
    try:
        with step("reading the installed haproxy.cfg"):
            installed = _installed(config, declaration.settings, base, resolution)
        with step("validating with HAProxy"):
            prepared = prepare(
                sources, haproxy_check(), base=base, answers=resolution, must_check=True
            )
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)
    if prepared.config is None or not prepared.ok:
        _refuse(prepared.problems)
    assert prepared.config is not None
    unseen = hold.unseen(declaration.settings.state_directory)
    held = None if unseen else hold.load(declaration.settings.state_directory)
    if unseen is not None:
        problems = (replace(unseen, severity=Severity.WARNING), *problems)
    if held is not None:
        problems = (replace(hold.problem(held), severity=Severity.WARNING), *problems)
    problems = (*take_over.missing_consent(declaration.settings), *problems)
    withheld = (problem for each in prepared.withheld for problem in each.problems)
    warnings = (each for each in prepared.problems if each.severity is Severity.WARNING)
    problems = tuple(dict.fromkeys((*withheld, *problems, *warnings)))
    changes = differences(installed, prepared.plan, prepared.config)
    code = Exit.PROBLEMS if changes or prepared.withheld else Exit.GOOD
    if shape == "json":
        document = {
            "version": 1,
            "hash": prepared.config.hash,
            "running_hash": installed.running_hash,
            "reload": any(change.effect is Effect.RELOAD for change in changes),
            "withheld": [each.as_json() for each in prepared.withheld],
            "changes": [change.as_json() for change in changes],
            "problems": [problem.as_json() for problem in problems],
        }
        emit(document)
        sys.exit(code)
    print_problems(problems)
    if as_text:
        _unified(installed.text or "", prepared.config.text, declaration.settings)
    elif not is_quiet():
        print_changes(changes)
    sys.exit(code)


def _refuse(problems: tuple[Problem, ...]) -> None:
    refuse(problems)


def _resolution(
    declaration: Declaration, base: Base
) -> tuple[dict[str, Answer], tuple[Problem, ...]]:
    """Return the current answers of cluster DNS, or the stored ones if that takes too long."""
    from fc_frontend.pipeline import resolve
    from fc_frontend.stored import stored_answers

    async def bounded() -> dict[str, Answer]:
        return await asyncio.wait_for(resolve(declaration, base=base), _DNS_PATIENCE)

    try:
        return asyncio.run(bounded()), ()
    except TimeoutError:
        warning = Problem(
            message=f"cluster DNS took more than {_DNS_PATIENCE:g} s: its last answers are used",
            remedy="see `fc-frontend status`",
            severity=Severity.WARNING,
        )
        return stored_answers(declaration.settings, declaration.services), (warning,)


def _installed(
    config: str, settings: Settings, base: Base, resolution: dict[str, Answer]
) -> Installed:
    """Return the installed configuration.  Raises `Unavailable` if haproxy.cfg cannot be read.

    Services without a fresh answer in `resolution` have no `pods`: HAProxy keeps its own.
    """
    from fc_frontend.explain.differences import Installed, Pods
    from fc_frontend.haproxy import install, runtime
    from fc_frontend.haproxy.assign import is_free
    from fc_frontend.pipeline import running_plan
    from fc_frontend.plan.model import Freshness

    content = install.read(settings.haproxy.config_file)
    text = None if content is None else content.decode("utf-8", "surrogateescape")
    is_base = base.config is not None and base.config.text == text
    plan = running_plan(base, config) if is_base and base.declarations.hash == base.hash else None
    try:
        running_hash = runtime.running_hash(settings.haproxy.runtime_socket)
        servers = runtime.servers(settings.haproxy.runtime_socket)
    except Unavailable:
        return Installed(text=text, plan=plan)
    fresh = {name for name, each in resolution.items() if each.freshness is Freshness.FRESH}
    addresses: dict[str, set[str]] = {}
    free: dict[str, int] = {}
    for server in servers:
        addresses.setdefault(server.proxy, set())
        free.setdefault(server.proxy, 0)
        if server.address is None or is_free(server):
            free[server.proxy] += 1
        elif server.server.startswith("pod"):
            addresses[server.proxy].add(server.address)
    return Installed(
        text=text,
        plan=plan,
        is_running=True,
        running_hash=running_hash,
        pods={
            name: Pods(addresses=frozenset(found), free=free[name])
            for name, found in addresses.items()
            if (found or free[name]) and name in fresh
        },
    )


def print_changes(changes: tuple[Difference, ...]) -> None:
    """Print the changes, and what each of them requires."""
    from fc_frontend.explain.differences import Effect

    for change in changes:
        mark = style(_MARKS[change.how], _COLORS[change.how])
        # HAProxy does not run, which is the reason for all changes.
        at_start = change.effect is Effect.START
        subject = f"{change.what} {change.name}".strip()
        repeats = (subject, f"{subject} {change.how}", f"{change.what}-{change.how} {change.name}")
        is_new = change.because and change.because not in repeats
        because = f", because {change.because}" if is_new and not at_start else ""
        effect = "once HAProxy is started" if at_start else change.effect
        say(f"{mark} {subject}: {effect}{because}")
        for field in change.fields:
            say(f"      {field}")
        for bind in change.binds:
            word = "opens" if bind.startswith("+") else "closes"
            say(f"      {word} {bind[1:]}")
        lines = _lines(change)
        for line in lines[:_SHOWN]:
            say(f"      {line.expandtabs()}")
        if len(lines) > _SHOWN:
            say(f"      and {counted(len(lines) - _SHOWN, 'more line')}")
    if not changes:
        say(f"{style('nothing', 'green')} would change")
        return
    reload = any(change.effect is Effect.RELOAD for change in changes)
    number = counted(len(changes), "change")
    say(f"{number}, {'one reload' if reload else 'no reload'}")


def _lines(change: Difference) -> list[str]:
    """Return the lines that fields, binds and slots do not already show."""
    names = {field.name for field in change.fields}
    if change.how != "changed" or names - {"slots"}:
        return []
    told = ("bind ", "server-template ") if names else ("bind ",)
    return [line for line in change.lines if not line[1:].startswith(told)]


def _unified(before: str, after: str, settings: Settings) -> None:
    from difflib import unified_diff

    path = settings.haproxy.config_file
    for line in unified_diff(
        before.splitlines(), after.splitlines(), path, f"{path} (declared)", lineterm=""
    ):
        shown = line.expandtabs()
        color = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
        say(style(shown, color) if color else shown)
