"""HAProxy's verdict on a rendered configuration, traced to the services that it is about."""

from __future__ import annotations

from fc_frontend.errors import Problem, Severity
from fc_frontend.haproxy.binary import find_binary
from fc_frontend.haproxy.validate import Message, Verdict, validate
from fc_frontend.plan.model import Haproxy
from fc_frontend.render.render import RenderedConfig


def judge(haproxy: Haproxy, config: RenderedConfig) -> tuple[bool, tuple[Problem, ...]]:
    """HAProxy's verdict, traced to services.  Raises `Unavailable` if HAProxy cannot be asked."""
    verdict = validate(find_binary(haproxy.binary), config.text, timeout=haproxy.check_timeout)
    return verdict.accepted, verdict_problems(verdict, config)


def verdict_problems(verdict: Verdict, config: RenderedConfig) -> tuple[Problem, ...]:
    """HAProxy's alerts and warnings as problems of the services that they are about."""
    found = [
        *(_said(message, config, Severity.ERROR) for message in verdict.alerts),
        *(
            _said(message, config, Severity.WARNING)
            for message in verdict.warnings
            if "server state file" not in message.text
        ),
    ]
    return tuple(found)


def _said(message: Message, config: RenderedConfig, severity: Severity) -> Problem:
    names = {section.name for section in config.sections}
    service = config.section_at(message.line) if message.line else None
    if service is None and message.section in names:
        service = message.section
    line = ""
    if message.line:
        line = config.text.split("\n")[message.line - 1].strip()
    remedy = f"the line is `{line}`" if line else "see HAProxy's configuration manual"
    return Problem(
        message=f"HAProxy says: {message.text}",
        remedy=remedy,
        severity=severity,
        service=service,
    )
