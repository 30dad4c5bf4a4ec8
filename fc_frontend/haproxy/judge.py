"""HAProxy's verdict on a rendered configuration, traced to the services that it is about."""

from __future__ import annotations

import re

from fc_frontend.errors import Problem, Severity
from fc_frontend.haproxy.binary import find_binary
from fc_frontend.haproxy.validate import Message, Verdict, validate
from fc_frontend.haproxy.version import binary_version
from fc_frontend.plan.model import Haproxy
from fc_frontend.render.config import Config

_OF_STATE = re.compile(
    r"server state file|\(leaving (?:forced )?maintenance\)|from server-state after"
)
"""What HAProxy says of its servers' last state, which is no matter of the configuration."""


def judge(haproxy: Haproxy, config: Config) -> tuple[bool, tuple[Problem, ...]]:
    """HAProxy's verdict, traced to services.  Raises `Unavailable` if HAProxy cannot be asked."""
    binary = find_binary(haproxy.binary)
    verdict = validate(binary, config.text, timeout=haproxy.check_timeout)
    problems = verdict_problems(verdict, config)
    if not verdict.accepted:
        problems = (*_too_old(binary), *problems)
    return verdict.accepted, problems


def _too_old(binary: str) -> tuple[Problem, ...]:
    """That HAProxy is older than what is supported, which would explain a refusal."""
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


def verdict_problems(verdict: Verdict, config: Config) -> tuple[Problem, ...]:
    """HAProxy's alerts and warnings as problems of the services that they are about."""
    found = [
        *(_said(message, config, Severity.ERROR) for message in verdict.alerts),
        *(
            _said(message, config, Severity.WARNING)
            for message in verdict.warnings
            if not _OF_STATE.search(message.text)
        ),
    ]
    return tuple(found)


def _said(message: Message, config: Config, severity: Severity) -> Problem:
    unit = config.unit_at(message.line) if message.line else None
    if unit is None and message.section:
        unit = config.unit_named(message.section)
    line = ""
    if message.line:
        line = config.text.split("\n")[message.line - 1].strip()
    remedy = f"the line is `{line}`" if line else "see HAProxy's configuration manual"
    return Problem(
        message=f"HAProxy says: {message.text}",
        remedy=remedy,
        severity=severity,
        service=unit.name if unit else None,
        unit=unit,
    )
