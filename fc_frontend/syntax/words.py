r"""Split a line of haproxy.cfg into words exactly as HAProxy does (manual 2.2 and 2.3).

Quotes, backslashes, comments and variables are handled as in `parse_line` of HAProxy's src/tools.c;
tests/hostile/test_words.py compares the two on generated lines.  Nothing is expanded: a word with a
variable is marked and keeps the variable's source.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple

MAX_WORDS = 64
"""Per line (MAX_LINE_ARGS)."""

_BLANKS = " \t\v\f\r\n"
"""The characters that C's isspace() accepts.  HAProxy skips all of them between words."""
_SPACE = _BLANKS.encode()
_LINE_END = b"\0\n\r"
_SPECIAL = re.compile("[\"'\\\\#\r\n\0]")
_PLAIN_WORD = re.compile("[^ \t\v\f]+")
_QUOTED = r"(?:'[^'\r\n\0]*'|\"[^\"\\$\r\n\0]*\")"
"""A closed quoted string without escapes and variables."""
QUOTED_WORDS = rf"[^'\"\\#\r\n\0]*(?:{_QUOTED}[^'\"\\#\r\n\0]*)*"
"""Words and closed quoted strings, without escapes, variables and comments.

Possessive quantifiers are not used: with them, `fullmatch` accepts an open quote before Python
3.11.5 (CPython issue 106052), and Debian 12 has an earlier version.  Each part begins with a
different character, so there is no backtracking.
"""
_QUOTED_WORDS = re.compile(QUOTED_WORDS)
_QUOTED_WORD = re.compile(
    rf"[^ \t\v\f'\"]+(?:{_QUOTED}[^ \t\v\f'\"]*)*|(?:{_QUOTED}[^ \t\v\f'\"]*)+"
)
_QUOTES = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_PLAIN_ESCAPES = {0x74: b"\t", 0x6E: b"\n", 0x72: b"\r"}
_ESCAPED_ALWAYS = b" \\#'\""
_ORDINARY = {
    0: re.compile(rb"[^ \t\v\f\r\n\0\\'\"#]+"),
    ord("'"): re.compile(rb"[^\r\n\0']+"),
    ord('"'): re.compile(rb"[^\r\n\0\\\"$]+"),
}
"""Characters that are copied unchanged: outside quotes (0), and inside each kind of quotes."""
_HEX = re.compile(rb"[0-9A-Fa-f]{2}")
_VARIABLE = re.compile(rb"\$(\{)?(\.?)([A-Za-z_][A-Za-z0-9_]*|)")
_PSEUDO_VARIABLES = (b"LINE", b"FILE", b"SECTION")


class WordFlaw(StrEnum):
    """Why HAProxy refuses to split a line (PARSE_ERR_* in its include/haproxy/tools-t.h)."""

    QUOTE = "quote"
    BRACE = "brace"
    VARIABLE = "variable"
    HEX = "hex"
    EXPANSION = "expansion"
    TOO_MANY = "too-many"
    NUL = "nul"
    PREFIX = "prefix"
    """`no` or `default` before a section keyword."""


class NotWords(ValueError):
    """A line that HAProxy refuses to split, with a remedy."""

    def __init__(self, flaw: WordFlaw, message: str, remedy: str) -> None:
        super().__init__(message)
        self.flaw = flaw
        self.remedy = remedy


class Word(NamedTuple):
    r"""One word: its meaning, its source, and whether it contains a variable.

    `text` contains bytes that are not UTF-8 as surrogates, and variables as written.  It ends at
    the first `\x00`, as in HAProxy; in this case, `is_cut` is true.
    """

    text: str
    source: str
    variable: bool = False
    is_cut: bool = False


class Words(NamedTuple):
    """The words of a line, and the end of its last word: a comment may follow."""

    words: tuple[Word, ...]
    end: int


def split(line: str) -> Words:
    """Split `line`, one line without its line feed, into words.  Raises NotWords."""
    if not _SPECIAL.search(line):
        return _finished(line, [Word(text, text) for text in _PLAIN_WORD.findall(line)])
    if _QUOTED_WORDS.fullmatch(line):
        return _finished(line, [_unquoted(source) for source in _QUOTED_WORD.findall(line)])
    return _Reader(_encoded(line)).read()


def quote(text: str) -> str:
    r"""Return source that `split` turns into the single word `text`, which must not contain NUL."""
    if not text:
        return '""'
    quoted = bytearray()
    for byte in text.encode("utf-8", "surrogateescape"):
        letter = bytes([byte])
        if letter in b" \\#'\"":
            quoted += b"\\" + letter
        elif byte in b"\t\n\r":
            quoted += {9: b"\\t", 10: b"\\n", 13: b"\\r"}[byte]
        elif byte < 0x20 or byte == 0x7F:
            quoted += b"\\x%02x" % byte
        else:
            quoted += letter
    try:
        return quoted.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(chr(byte) if byte < 0x80 else f"\\x{byte:02x}" for byte in quoted)


# Most lines have no escapes, variables or comments, and many have no quotes: regular expressions
# split these 5 to 20 times faster than `_Reader`, which handles all others.


def _finished(line: str, words: list[Word]) -> Words:
    end = len(line.rstrip(_BLANKS))
    if len(words) > MAX_WORDS or (len(words) == MAX_WORDS and end < len(line)):
        raise _too_many()
    return Words(tuple(words), end)


def _unquoted(source: str) -> Word:
    return Word(_QUOTES.sub(lambda quoted: quoted[1] or quoted[2] or "", source), source)


def _too_many() -> NotWords:
    return NotWords(
        WordFlaw.TOO_MANY,
        f"more than {MAX_WORDS} words",
        f"write several lines: HAProxy reads at most {MAX_WORDS} words in one, and counts a blank "
        "at the end as one more",
    )


def _encoded(line: str) -> bytes:
    try:
        return line.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return line.encode("utf-8", "surrogatepass")


def _decoded(source: bytes | bytearray) -> str:
    return source.decode("utf-8", "surrogateescape")


class _Reader:
    """Reads one line."""

    def __init__(self, line: bytes) -> None:
        self._line = line
        self._at = 0
        self._word = bytearray()
        self._begun: int | None = None
        self._variable = False
        self._quote = 0
        self._quote_at = 0
        self._words: list[Word] = []
        self._end = 0

    def read(self) -> Words:
        line = self._line
        while self._at < len(line) and line[self._at] in _SPACE:
            self._at += 1
        while self._at < len(line):
            byte = line[self._at]
            if byte in _LINE_END:
                if not byte:
                    raise NotWords(WordFlaw.NUL, "a NUL character", "remove it")
                break
            if not self._quote and byte in _SPACE:
                self._finish()
                if len(self._words) >= MAX_WORDS:
                    raise _too_many()
                while self._at < len(line) and line[self._at] in _SPACE:
                    self._at += 1
            elif not self._quote and byte == ord("#"):
                break
            else:
                self._letter(byte)
        if self._quote:
            raise NotWords(
                WordFlaw.QUOTE,
                f"the quote at column {self._column(self._quote_at)} is never closed",
                "close it, or write \\ before it if it is meant as a letter",
            )
        self._finish()
        return Words(tuple(self._words), len(_decoded(line[: self._end])))

    def _column(self, at: int) -> int:
        return len(self._line[:at].decode("utf-8", "replace")) + 1

    def _finish(self) -> None:
        if self._begun is None:
            return
        text, nul, _ = self._word.partition(b"\0")
        source = self._line[self._begun : self._at]
        self._words.append(Word(_decoded(text), _decoded(source), self._variable, bool(nul)))
        self._end = self._at
        self._word = bytearray()
        self._begun = None
        self._variable = False

    def _letter(self, byte: int) -> None:
        if self._begun is None:
            self._begun = self._at
        if byte == self._quote:
            self._quote = 0
            self._at += 1
        elif byte in b"'\"" and not self._quote:
            self._quote, self._quote_at = byte, self._at
            self._at += 1
        elif byte == ord("\\") and self._quote != ord("'"):
            self._escape()
        elif byte == ord("$") and self._quote == ord('"'):
            self._take_variable()
        else:
            run = _ORDINARY[self._quote].match(self._line, self._at)
            assert run
            self._word += run[0]
            self._at = run.end()

    def _escape(self) -> None:
        follows = self._line[self._at + 1 : self._at + 2]
        taken = 2
        if follows and (
            follows in _ESCAPED_ALWAYS or (follows == b"$" and self._quote == ord('"'))
        ):
            self._word += follows
        elif follows and follows[0] in _PLAIN_ESCAPES:
            self._word += _PLAIN_ESCAPES[follows[0]]
        elif follows == b"x":
            digits = self._line[self._at + 2 : self._at + 4]
            if not _HEX.fullmatch(digits):
                raise NotWords(
                    WordFlaw.HEX,
                    f"\\x at column {self._column(self._at)} is not followed by two hexadecimal "
                    "digits",
                    "write \\x41, or \\\\x if a backslash is meant",
                )
            self._word.append(int(digits, 16))
            taken = 4
        else:
            self._word += b"\\"
            taken = 1
        self._at += taken

    def _take_variable(self) -> None:
        match = _VARIABLE.match(self._line, self._at)
        assert match
        brace, dot, name = match.groups()
        if not name or (dot and name not in _PSEUDO_VARIABLES):
            raise NotWords(
                WordFlaw.VARIABLE,
                f"$ at column {self._column(self._at)} is not followed by a variable's name",
                "write \\$ if a dollar sign is meant",
            )
        end = match.end()
        if brace:
            if self._line[end : end + 1] == b"[":
                if self._line[end : end + 3] != b"[*]":
                    raise NotWords(
                        WordFlaw.EXPANSION,
                        f"[ at column {self._column(end)} is not [*]",
                        "write ${NAME[*]}",
                    )
                end += 3
            close = self._line.find(b"}", end)
            if close < 0 or (close > end and self._line[end : end + 1] != b"-"):
                raise NotWords(
                    WordFlaw.BRACE,
                    f"${{ at column {self._column(self._at)} is never closed",
                    "write ${NAME}",
                )
            end = close + 1
        self._word += self._line[self._at : end]
        self._variable = True
        self._at = end
