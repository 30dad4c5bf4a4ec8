"""The checks, connections and threads that HAProxy reserves at startup for a configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fc_frontend.syntax.keywords import SECTIONS
from fc_frontend.syntax.lines import read_line

_KEYWORDS = ("server", "server-template", "default-server", "maxconn", "nbthread")
_SPECIAL = "\"'\\\\$#"
_NOTABLE = re.compile(
    rf"^[ \t]*(?:(?:{'|'.join((*_KEYWORDS, *sorted(SECTIONS)))})(?![^ \t\n])"
    rf"|option[ \t]+splice-|[^ \t\n]*[{_SPECIAL}]).*",
    re.MULTILINE,
)
"""Lines that may be relevant, and lines whose keyword is quoted or escaped."""
_CHECKS = {"check": "no-check", "agent-check": "no-agent-check"}
"""Server options that reserve a file descriptor each, and the options that revoke them."""
_SPLICES = ("splice-auto", "splice-request", "splice-response")


@dataclass(frozen=True, slots=True)
class Demand:
    """The resources that a configuration reserves.

    `checks` is the number of health and agent checks of all servers, `connections` the global
    `maxconn` and `threads` the global `nbthread`; None if the text leaves them to HAProxy.
    `has_splicing` is true if any proxy may use `splice(2)`.
    """

    checks: int = 0
    connections: int | None = None
    threads: int | None = None
    has_splicing: bool = False


def demand_of(text: str) -> Demand:
    """Return the resources that the configuration `text` reserves (manual 3.1, 4.2, 5.2)."""
    checks = 0
    numbers: dict[str, int] = {}
    has_splicing = False
    section = ""
    defaults: dict[str, frozenset[str]] = {"": frozenset()}
    enabled: frozenset[str] = frozenset()
    name = ""
    for keyword, *arguments in _statements(text):
        if keyword in SECTIONS:
            section = keyword
            parent = _parent(arguments)
            # The last `defaults` section applies to sections that name no other one.
            enabled = defaults.get(parent, frozenset()) if section != "defaults" else frozenset()
            if section == "defaults":
                enabled = defaults.get(parent, frozenset()) if parent else frozenset()
                name = arguments[0] if arguments and arguments[0] != "from" else ""
                defaults[name] = defaults[""] = enabled
        elif keyword == "default-server":
            enabled = _enabled(enabled, arguments)
            if section == "defaults":
                defaults[name] = defaults[""] = enabled
        elif keyword in ("server", "server-template"):
            count = _slots(arguments) if keyword == "server-template" else 1
            checks += count * len(_enabled(enabled, arguments))
        elif keyword == "option":
            has_splicing |= bool(arguments) and arguments[0] in _SPLICES
        elif section == "global" and arguments and arguments[0].isdigit():
            numbers[keyword] = int(arguments[0])
    return Demand(checks, numbers.get("maxconn"), numbers.get("nbthread"), has_splicing)


def _statements(text: str) -> Iterator[Sequence[str]]:
    """Return the words of lines that may be relevant, as HAProxy reads them.

    Lines without quotes, escapes, variables and comments are split at blanks: 1,000 services take
    10 ms instead of 95 ms.
    """
    for match in _NOTABLE.finditer(text):
        line = match[0]
        if any(letter in line for letter in _SPECIAL):
            words: Sequence[str] = [word.text for word in read_line(line).words]
        else:
            words = line.split()
        if words:
            yield words


def _parent(arguments: Sequence[str]) -> str:
    """Return the name after `from` in a section header; empty if there is none."""
    at = arguments.index("from") + 1 if "from" in arguments else len(arguments)
    return arguments[at] if at < len(arguments) else ""


def _enabled(before: frozenset[str], arguments: Sequence[str]) -> frozenset[str]:
    """Return the checks enabled by these options, on top of those enabled `before`."""
    found = set(before)
    for word in arguments:
        for check, revoked in _CHECKS.items():
            if word == check:
                found.add(check)
            elif word == revoked:
                found.discard(check)
    return frozenset(found)


def _slots(arguments: Sequence[str]) -> int:
    """Return the number of servers of a template: `10`, or `3-12`."""
    first, _, last = (arguments[1] if len(arguments) > 1 else "").partition("-")
    if not first.isdigit() or (last and not last.isdigit()):
        return 0
    return max(0, int(last) - int(first) + 1) if last else int(first)
