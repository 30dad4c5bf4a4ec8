"""Validate the HAProxy text of a service, the settings or a fragment.

The text of one unit must not begin, end or condition a section of another unit.  It is checked as
HAProxy reads it, and text that cannot be checked (a variable in place of a keyword) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple

from fc_frontend.syntax.keywords import PREPROCESSOR, SECTIONS
from fc_frontend.syntax.lines import MAX_LINE, Line, LineKind, is_plain_statement, read_line
from fc_frontend.syntax.sections import read_sections
from fc_frontend.syntax.words import MAX_WORDS, NotWords, split

OWN_NAMES = "fc-"
"""The prefix of names of fc-frontend's own sections."""
_OWN_RESOLVERS = ("resolvers", "cluster")
MAX_CONDITIONS = 99
"""Nested `.if` conditions: HAProxy refuses the hundredth (MAXNESTEDCONDS)."""
MAX_OPTION_WORDS = 46
"""Words in `server_options` and `bind_options`; fc-frontend adds up to 18 to a server line."""
assert MAX_OPTION_WORDS + 18 <= MAX_WORDS

MAX_LINE_WITH_DEFAULT = 1000
"""Characters in a line with `${NAME-value}`.

HAProxy (2.6 and 2.8) reads a line twice if it is longer than 1,023 bytes and longer than all lines
before it, and then loses the value: whether it accepts the line depends on the text of other units.
"""
_DEFAULT = re.compile(r"\$\{\.?\w+(?:\[\*\])?-")
GLOBAL_RESERVED: Mapping[str, str] = MappingProxyType(
    {
        "description": "fc-frontend recognises its own configuration by it",
        "server-state-file": "servers keep their addresses over reloads by fc-frontend's own file",
        "daemon": "HAProxy must stay in the foreground for its supervisor",
        "zero-warning": "a warning about one service would stop HAProxy",
        "resetenv": "HAProxy's master needs its environment to reload",
    }
)
"""Reserved keywords of `global`, with the reason; measured on 2.6 and 2.8."""
DEFAULTS_RESERVED: Mapping[str, str] = MappingProxyType(
    {
        "load-server-state-from-file": "servers keep their addresses over reloads by it",
        "disabled": "it would disable every service",
        "mode": "each service has a field `mode`",
    }
)
_ENVIRONMENT = ("setenv", "presetenv", "unsetenv")
_MASTERS_ENVIRONMENT = ("HAPROXY_", "NOTIFY_SOCKET")
_SHOWN = frozenset(
    (*SECTIONS, *PREPROCESSOR, *GLOBAL_RESERVED, *DEFAULTS_RESERVED, *_ENVIRONMENT, "unix-bind")
)


class Owner(Enum):
    """The owner of raw lines, with the keywords that are reserved there."""

    SERVICE = MappingProxyType[str, str]({})
    GLOBAL = GLOBAL_RESERVED
    DEFAULTS = DEFAULTS_RESERVED


class UnitFault(NamedTuple):
    """A fault in a text, with its line (from 1) and a remedy."""

    line: int
    message: str
    remedy: str


def raw_line_faults(text: str, owner: Owner) -> Iterator[UnitFault]:
    """Return the faults of raw lines that become part of one of fc-frontend's own sections.

    They may contain statements and comments, but no section header, no preprocessor line, no line
    that HAProxy refuses to split into words, and no reserved keyword of their `owner`.
    """
    for number, raw in enumerate(text.split("\n"), start=1):
        if len(raw) > MAX_LINE:
            yield _too_long(number)
            continue
        if _is_blank(raw) or (owner is Owner.SERVICE and is_plain_statement(raw)):
            continue
        line = read_line(raw, number)
        fault = _line_fault(line)
        if fault is None and line.kind is LineKind.SECTION:
            fault = UnitFault(
                number,
                f"{_keyword(line)} begins a section{_as_read(line)}",
                "put whole sections into a fragment, services.d/NAME.cfg",
            )
        elif fault is None and line.kind is LineKind.PREPROCESSOR:
            fault = UnitFault(
                number,
                f"{_keyword(line)} is a preprocessor directive{_as_read(line)}",
                "put it into a section of a fragment, services.d/NAME.cfg, or into a template",
            )
        elif fault is None:
            fault = _reserved_fault(line, owner)
        if fault is not None:
            yield fault


def clean_line(raw: str) -> str:
    r"""Return a raw line without surrounding blanks, except an escaped one at the end (`\ `)."""
    line = raw.lstrip(" \t")
    trimmed = line.rstrip(" \t")
    is_escaped = trimmed.endswith("\\")
    return line[: len(trimmed) + is_escaped]


def option_fault(text: str) -> UnitFault | None:
    """Return the fault if `server_options` or `bind_options` are not plain words of one line."""
    if "\n" in text or "\r" in text:
        return UnitFault(1, "a line break", "write all words in one line")
    if len(text) > MAX_LINE:
        return _too_long(1)
    try:
        found = split(text)
    except NotWords as exc:
        return UnitFault(1, str(exc), exc.remedy)
    last = found.words[-1].source if found.words else ""
    if (len(last) - len(last.rstrip("\\"))) % 2:
        return UnitFault(1, "\\ at the end", "remove it: it would join the word after it")
    if text[found.end :].strip(" \t\v\f"):
        return UnitFault(1, "# begins a comment", "write \\# if the letter is meant")
    if len(found.words) > MAX_OPTION_WORDS:
        return UnitFault(
            1,
            f"more than {MAX_OPTION_WORDS} words",
            f"write fewer: HAProxy reads at most {MAX_WORDS} words in a line",
        )
    for word in found.words:
        if word.is_cut or not word.text:
            return UnitFault(
                1,
                "a word is empty or has a NUL character",
                "remove it: HAProxy ignores the rest of the line",
            )
    return None


def section_faults(text: str) -> Iterator[UnitFault]:
    """Return the faults of `text` if it does not consist of complete sections.

    Only comments may precede the first section header, and conditions (`.if`) must begin and end
    inside one section.
    """
    reader = _SectionReader()
    for number, raw in enumerate(text.split("\n"), start=1):
        if len(raw) > MAX_LINE:
            yield _too_long(number)
        elif not _is_blank(raw) and not (reader.in_section and is_plain_statement(raw)):
            yield from reader.read(read_line(raw, number))
    yield from reader.end()


def fragment_faults(text: str) -> Iterator[UnitFault]:
    """Return the faults of a fragment: those of `section_faults`, and reserved section names."""
    is_faulty = False
    for fault in section_faults(text):
        is_faulty = True
        yield fault
    if is_faulty:
        return
    for section in read_sections(text):
        line = section.header.number if section.header else 1
        if section.kind == "global":
            yield UnitFault(
                line, "`global` in a fragment", "use haproxy.global_extra in the settings"
            )
        elif section.name.startswith(OWN_NAMES) or (section.kind, section.name) == _OWN_RESOLVERS:
            yield UnitFault(
                line,
                f"`{section.kind} {section.name}` is the name of a section of fc-frontend's own",
                "choose another name",
            )


class _SectionReader:
    """Tracks sections and conditions through a text."""

    def __init__(self) -> None:
        self.in_section = False
        self._open: list[tuple[Line, bool]] = []
        """The open conditions, and whether their `.else` has been read."""

    def read(self, line: Line) -> Iterator[UnitFault]:
        fault = _line_fault(line)
        if fault is not None:
            yield fault
        elif line.kind is LineKind.SECTION:
            yield from self.end()
            self.in_section = True
            if any(word.variable for word in line.words):
                yield UnitFault(
                    line.number,
                    f"{_keyword(line)} has a variable in the section's name",
                    "write the name itself",
                )
        elif line.kind is LineKind.BLANK:
            return
        elif not self.in_section:
            yield UnitFault(
                line.number,
                f"{_keyword(line)} comes before the first section",
                "begin with a section, such as `listen NAME`; conditions go inside of it",
            )
        elif line.kind is LineKind.PREPROCESSOR:
            yield from self._preprocess(line)

    def end(self) -> Iterator[UnitFault]:
        """End a section or the text; return the faults of conditions that are still open."""
        for line, _ in self._open:
            yield UnitFault(
                line.number,
                f"{_keyword(line)} does not end in the section where it begins",
                "write `.endif` before the next section; a condition cannot enclose sections",
            )
        self._open = []

    def _preprocess(self, line: Line) -> Iterator[UnitFault]:
        directive = line.keyword
        if directive not in PREPROCESSOR:
            yield UnitFault(
                line.number,
                "the line begins with a dot, and is no directive of HAProxy's preprocessor",
                f"known are {', '.join(sorted(PREPROCESSOR))}",
            )
        elif directive in (".else", ".endif") and len(line.words) > 1:
            yield UnitFault(
                line.number, f"{directive} with arguments", "write # before what is a comment"
            )
        elif directive == ".if":
            self._open.append((line, False))
            if len(self._open) > MAX_CONDITIONS:
                yield UnitFault(
                    line.number,
                    f"more than {MAX_CONDITIONS} conditions inside each other",
                    "write them one after the other",
                )
        elif directive in (".elif", ".else", ".endif"):
            if not self._open:
                yield UnitFault(
                    line.number, f"{directive} without .if in this section", "add the .if before it"
                )
                return
            begun, has_else = self._open.pop()
            if has_else and directive != ".endif":
                yield UnitFault(line.number, f"{directive} after .else", "move it before the .else")
            if directive != ".endif":
                self._open.append((begun, has_else or directive == ".else"))


def _is_blank(raw: str) -> bool:
    """Return whether a line is obviously blank or a comment."""
    text = raw.lstrip(" \t")
    return not text or text[0] == "#"


def _too_long(number: int) -> UnitFault:
    return UnitFault(number, f"more than {MAX_LINE} characters in a line", "shorten it")


def _line_fault(line: Line) -> UnitFault | None:
    """Return the fault of a line that is invalid in any context."""
    if line.fault is not None:
        return UnitFault(
            line.number, f"the line cannot be split into words: {line.fault}", line.fault.remedy
        )
    if line.kind is LineKind.SCOPE:
        return UnitFault(line.number, "the line is a scope, as in SPOE files", "remove the line")
    if line.kind is LineKind.EMPTY:
        return UnitFault(
            line.number,
            "the line begins with an empty word: HAProxy ignores it",
            "remove the empty word or the line",
        )
    if line.kind is LineKind.VARIABLE:
        return UnitFault(
            line.number,
            "the line has a variable in the place of its keyword",
            "write the keyword itself; variables may follow it",
        )
    if len(line.source) > MAX_LINE_WITH_DEFAULT and any(
        word.variable and _DEFAULT.search(word.source) for word in line.words
    ):
        return UnitFault(
            line.number,
            f"more than {MAX_LINE_WITH_DEFAULT} characters in a line with a variable's default "
            "value: HAProxy may not find the value",
            "shorten the line, or write it without ${NAME-value}",
        )
    if any(word.is_cut for word in line.words):
        return UnitFault(line.number, "the line has a NUL character", "remove \\x00")
    return None


def _reserved_fault(line: Line, owner: Owner) -> UnitFault | None:
    reason = owner.value.get(line.keyword)
    if owner is Owner.GLOBAL and reason is None:
        if line.keyword in _ENVIRONMENT and line.arguments[:1]:
            if line.arguments[0].startswith(_MASTERS_ENVIRONMENT):
                reason = f"HAProxy's master needs {line.arguments[0]} to reload"
            elif line.words[1].variable:
                reason = "the name of a variable cannot depend on another one"
        elif line.keyword == "unix-bind" and "prefix" in line.arguments:
            reason = "it would move the unix sockets of all services"
    if reason is None:
        return None
    return UnitFault(line.number, f"{_keyword(line)} is reserved: {reason}", "remove the line")


def _keyword(line: Line) -> str:
    """Return the keyword of a line if faults may show it, else "the line".

    Only these keywords are ever shown, because a link in services.d can lead to any file.
    """
    return f"`{line.keyword}`" if line.keyword in _SHOWN else "the line"


def _as_read(line: Line) -> str:
    """Return the keyword as HAProxy reads it, if it is written differently."""
    first = line.words[0]
    is_plain = first.source == first.text
    return "" if is_plain or first.text not in _SHOWN else f": HAProxy reads `{first.text}`"
