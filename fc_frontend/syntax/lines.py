"""Split HAProxy text into lines, and classify each line as HAProxy does.

HAProxy classifies a line by its first word *after* quotes and escapes are removed: `"glo"bal`
begins a section, `\\x2eif` is a condition, and a line whose first word is empty is a blank line.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from fc_frontend.syntax.keywords import PREFIXES, PREPROCESSOR, SECTIONS
from fc_frontend.syntax.words import MAX_WORDS, QUOTED_WORDS, NotWords, Word, WordFlaw, split

MAX_LINE = 65_536
"""Characters per line that fc-frontend accepts.  HAProxy itself is limited only by memory."""
_INDENT = " \t\v\f\r"
_PLAIN = re.compile(
    # The keyword, without any character that could change its meaning.
    r"[ \t\v\f]*([^ \t\v\f.\['\"\\#\r\n\0][^ \t\v\f'\"\\#\r\n\0]*)"
    r"(?![^ \t\v\f])" + QUOTED_WORDS
)
_NOT_PLAIN = SECTIONS | PREPROCESSOR | frozenset(PREFIXES)
_ANY_FIRST_WORD = re.compile(r"[ \t\v\f\r]*([^ \t\v\f\r]*)")
_SPECIAL = re.compile(r"[\"'\\#\0]")


class LineKind(StrEnum):
    """How HAProxy classifies a line (`readcfgfile` in its src/cfgparse.c)."""

    BLANK = "blank"
    """It is empty or a comment."""
    EMPTY = "empty"
    """Its first word is empty, as in `"" server`: HAProxy skips the whole line."""
    SECTION = "section"
    """It begins a section."""
    PREPROCESSOR = "preprocessor"
    """Its first word begins with a dot: `.if`, `.endif`, `.alert`…"""
    SCOPE = "scope"
    """It begins with `[`: a scope in a SPOE file."""
    STATEMENT = "statement"
    """It belongs to the current section."""
    VARIABLE = "variable"
    """Its keyword contains a variable: it may be of any kind."""
    INVALID = "invalid"
    """HAProxy refuses it; `fault` contains the reason."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line: its number from 1, its text without indentation, and its words.

    `end` is the end of its last word in `source`; a comment may follow.
    """

    number: int
    source: str
    kind: LineKind
    words: tuple[Word, ...] = ()
    end: int = 0
    fault: NotWords | None = field(default=None, compare=False)

    @property
    def prefix(self) -> str:
        """`no` or `default` if it precedes the keyword, else empty."""
        if len(self.words) > 1 and self.words[0].text in PREFIXES:
            return self.words[0].text
        return ""

    @property
    def negated(self) -> bool:
        """Whether the line begins with `no`."""
        return self.prefix == "no"

    @property
    def keyword(self) -> str:
        """The first word after `no` or `default`; empty if there are no words."""
        return self.words[bool(self.prefix)].text if self.words else ""

    @property
    def arguments(self) -> tuple[str, ...]:
        """The texts of the words after the keyword."""
        return tuple(word.text for word in self.words[1 + bool(self.prefix) :])

    @property
    def code(self) -> str:
        """The source without a trailing comment."""
        return self.source[: self.end]

    @property
    def comment(self) -> str:
        """The trailing comment, including the blanks before it; empty if there is none."""
        rest = self.source[self.end :]
        return rest if rest.lstrip(_INDENT).startswith("#") else ""


def read_line(text: str, number: int = 1) -> Line:
    """Parse `text`, one line without its line feed, as HAProxy does.  Never raises."""
    source = text.lstrip(_INDENT)
    if not source or source[0] == "#":
        return Line(number, source, LineKind.BLANK)
    if source[0] == "[":
        return Line(number, source, LineKind.SCOPE)
    try:
        found = split(source)
    except NotWords as exc:
        return Line(number, source, LineKind.INVALID, fault=exc)
    kind, fault = _kind(found.words)
    return Line(number, source, kind, found.words, found.end, fault)


def is_plain_statement(text: str) -> bool:
    """Return whether the line `text` is obviously a statement, as nearly all lines are.

    If not, use `read_line` to classify it, which takes 10 times longer.
    """
    match = _PLAIN.fullmatch(text)
    if match is None or match[1] in _NOT_PLAIN:
        return False
    return len(text) < MAX_WORDS or len(text.split()) < MAX_WORDS - 1


def notable_lines(text: str, keywords: Collection[str]) -> Iterator[Line]:
    """Return the lines of `text` except statements with other keywords, which are skipped fast.

    This is for finding a few keywords in a large text.  Statements after `no` or `default` are
    always included.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        match = _ANY_FIRST_WORD.match(line)
        first = match[1] if match else ""
        if first in keywords or first in _NOT_PLAIN or _SPECIAL.search(first):
            yield read_line(line, number)


def read_lines(text: str) -> Iterator[Line]:
    """Return the lines of `text`; for HAProxy, only a line feed ends a line."""
    for number, line in enumerate(text.split("\n"), start=1):
        yield read_line(line, number)


def _kind(words: tuple[Word, ...]) -> tuple[LineKind, NotWords | None]:
    if not words:
        return LineKind.BLANK, None
    first = words[0]
    if first.variable:
        return LineKind.VARIABLE, None
    if not first.text:
        return LineKind.EMPTY, None
    if first.text in SECTIONS:
        return LineKind.SECTION, None
    if first.text[0] == ".":
        return LineKind.PREPROCESSOR, None
    if first.text in PREFIXES and len(words) > 1:
        if words[1].variable:
            return LineKind.VARIABLE, None
        if words[1].text in SECTIONS:
            message = f"`{first.text}` before the section keyword `{words[1].text}`"
            return LineKind.INVALID, NotWords(WordFlaw.PREFIX, message, "remove one of the two")
    return LineKind.STATEMENT, None
