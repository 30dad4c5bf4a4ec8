"""Check a rendered configuration with HAProxy, and trace its messages to the services."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from fc_frontend.errors import Problem, Severity
from fc_frontend.haproxy.binary import find_binary
from fc_frontend.haproxy.named_files import file_problems
from fc_frontend.haproxy.patience import Patience
from fc_frontend.haproxy.places import Places, words_of
from fc_frontend.haproxy.validate import CheckVerdict, Ending, Message, validate
from fc_frontend.haproxy.version import binary_version
from fc_frontend.haproxy.wording import without_content, without_lines
from fc_frontend.plan.model import Haproxy, Plan
from fc_frontend.render.config import Config

_OF_STATE = re.compile(
    r"server state file|\(leaving (?:forced )?maintenance\)|from server-state after"
)
"""HAProxy's messages about the saved state of servers, which do not concern the configuration."""


_REMEDIES = {
    Ending.TIME: "remove what blocks HAProxy, such as a host name that does not resolve or an "
    "endless Lua script; if the configuration is large, raise haproxy.check_timeout",
    Ending.KILLED: "if it was SIGKILL, HAProxy ran out of memory: look for large files and numbers "
    "in the configuration, then at `dmesg`",
}


@dataclass(frozen=True, slots=True)
class Judgement:
    """HAProxy's verdict on a rendered configuration, and how the check ended."""

    accepted: bool
    problems: tuple[Problem, ...]
    ending: Ending


def judge(
    haproxy: Haproxy,
    config: Config,
    plan: Plan | None = None,
    *,
    kept: str | None = None,
    patience: Patience | None = None,
    is_trial: bool = False,
) -> Judgement:
    """Return HAProxy's verdict, with its messages attributed to services and fragments.

    HAProxy is not run if a file that `config` names would block it or must not be disclosed.
    `plan` is the source of `config`, used to locate declarations.  `kept` is the directory of
    fc-frontend's own copies of such files.

    A check that takes longer than `patience` allows, or than `haproxy.check_timeout` without it,
    refuses the configuration.  Raises `Unavailable` if HAProxy cannot be run.
    """
    binary = find_binary(haproxy.binary)
    if problems := file_problems(config, haproxy, plan, kept):
        return Judgement(False, problems, Ending.JUDGED)
    patience = patience or Patience()
    timeout = patience.limit(haproxy.check_timeout, is_trial=is_trial)
    verdict = validate(binary, config.text, timeout=timeout)
    problems = verdict_problems(verdict, config, plan)
    if verdict.accepted:
        patience.accepted(verdict.duration)
    else:
        problems = (*_too_old(binary), *problems)
    if verdict.ending is Ending.TIME:
        patience.exceeded()
    return Judgement(verdict.accepted, problems, verdict.ending)


def _too_old(binary: str) -> tuple[Problem, ...]:
    """Return the problem that HAProxy is older than supported, which would explain a refusal."""
    version = binary_version(binary)
    if version.supported:
        return ()
    return (
        Problem(
            message=f"HAProxy {version} is too old",
            remedy="install HAProxy 2.6 or later, or fc-frontend[haproxy]",
            field="haproxy.binary",
        ),
    )


def verdict_problems(
    verdict: CheckVerdict, config: Config, plan: Plan | None = None
) -> tuple[Problem, ...]:
    """Return HAProxy's alerts and warnings as problems of the units that they concern.

    They quote names and declared fields, but no other content of files.
    """
    if verdict.ending is not Ending.JUDGED:
        remedy = _REMEDIES[verdict.ending]
        return tuple(Problem(message=alert.text, remedy=remedy) for alert in verdict.alerts)
    places = Places(config, plan)
    found = [
        *(_said(message, config, places, Severity.ERROR) for message in verdict.alerts),
        *(
            _said(message, config, places, Severity.WARNING)
            for message in verdict.warnings
            if not _OF_STATE.search(message.text)
        ),
    ]
    return tuple(found)


def _said(message: Message, config: Config, places: Places, severity: Severity) -> Problem:
    problem = places.placed(Problem(message="", severity=severity), message.line, message.section)
    unit = problem.unit
    lines = config.text.split("\n") if message.line else []
    line = lines[message.line - 1].strip() if message.line and message.line <= len(lines) else ""
    remedy = "see HAProxy's configuration manual"
    if line in places.raw_lines(unit):
        remedy = f"the line is `{line}`"
    elif problem.line:
        remedy = "correct the line: see HAProxy's configuration manual"
    visible = places.visible_words(unit) | {message.section or "", message.server or ""}
    hidden = words_of(places.text(unit)) - visible
    text = without_lines(without_content(message.text, visible, hidden))
    return replace(problem, message=f"HAProxy says: {text}", remedy=remedy)
