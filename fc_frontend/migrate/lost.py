"""Find lines in `global` and `defaults` of a replaced haproxy.cfg that the new one lacks."""

from __future__ import annotations

from collections.abc import Iterable

from fc_frontend.errors import Problem, Severity
from fc_frontend.migrate.proxies import meaning_of
from fc_frontend.migrate.sections import OldSection, read_sections
from fc_frontend.migrate.settings import OWN_GLOBAL
from fc_frontend.plan.model import Haproxy
from fc_frontend.plurals import counted
from fc_frontend.syntax.lines import Line

_FILE = "haproxy.cfg"
_MAX_SHOWN = 20
_BY_SERVICE = frozenset(("mode", "log", "option httplog", "option tcplog", "option dontlognull"))
"""Lines of fc-frontend's own `defaults` that depend on a service's mode and `haproxy.log`."""


def lost_settings(text: str, haproxy: Haproxy, ours: str) -> tuple[Problem, ...]:
    """Return warnings about lines of `text` that its replacement `ours` lacks.

    Each warning contains the setting to use.  Raises `Refused` if a text is too large.
    """
    sections, _ = read_sections([(_FILE, text)])
    own_sections, _ = read_sections([(_FILE, ours)])
    own = {meaning_of(line) for line in _lines(own_sections, "global")}
    accounts: list[str] = []
    lines: list[str] = []
    for line in _lines(sections, "global"):
        words = meaning_of(line)
        if words in own or line.keyword in OWN_GLOBAL or words[0].startswith("."):
            continue
        if words[0] in ("user", "group"):
            accounts.append(f"haproxy.{words[0]}: {' '.join(words[1:])}")
        elif words[:3] != ("stats", "socket", haproxy.runtime_socket):
            lines.append(" ".join(words))
    problems = []
    if accounts:
        message = "the former haproxy.cfg set another user or group for HAProxy"
        problems.append(_warning(message, f"set {' and '.join(accounts)}", "haproxy.user"))
    if lines:
        message = f"the former `global` had lines that the new one lacks: {_listed(lines)}"
        remedy = "add those you need to haproxy.global_extra"
        problems.append(_warning(message, remedy, "haproxy.global_extra"))
    defaults = _lost_defaults(sections, own_sections)
    if defaults:
        message = f"the former `defaults` had lines that the new ones lack: {_listed(defaults)}"
        remedy = "add those you need to haproxy.defaults_extra or to a service's extra_config"
        problems.append(_warning(message, remedy, "haproxy.defaults_extra"))
    return tuple(problems)


def _lost_defaults(sections: Iterable[OldSection], own_sections: Iterable[OldSection]) -> list[str]:
    own = {meaning_of(line) for line in _lines(own_sections, "defaults")}
    lost: dict[str, None] = {}
    for line in _lines(sections, "defaults"):
        words = meaning_of(line)
        if words not in own and not {words[0], " ".join(words[:2])} & _BY_SERVICE:
            lost[" ".join(words)] = None
    return list(lost)


def _lines(sections: Iterable[OldSection], kind: str) -> list[Line]:
    return [line for section in sections if section.kind == kind for line in section.statements]


def _listed(lines: list[str]) -> str:
    shown = "; ".join(lines[:_MAX_SHOWN])
    more = len(lines) - _MAX_SHOWN
    return f"{shown}; and {counted(more, 'more line')}" if more > 0 else shown


def _warning(message: str, remedy: str, field: str) -> Problem:
    return Problem(message, remedy, severity=Severity.WARNING, field=field)
