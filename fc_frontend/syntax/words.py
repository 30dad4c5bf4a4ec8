r"""A line of haproxy.cfg taken apart into words as HAProxy does it (manual 2.2 and 2.3).

Quotes, backslashes, comments and variables mean what they mean in HAProxy's `parse_line`, measured
against it.  Nothing is expanded: a word that holds a variable says so, and keeps its source.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MOST_WORDS = 64
"""In a line (MAX_LINE_ARGS)."""

_SPACE = b" \t\v\f"
_PLAIN_ESCAPES = {0x74: b"\t", 0x6E: b"\n", 0x72: b"\r"}
_ESCAPED_ALWAYS = b" \\#'\""
_HEX = re.compile(rb"[0-9A-Fa-f]{2}")
_VARIABLE = re.compile(rb"\$(\{)?(\.?)([A-Za-z_][A-Za-z0-9_]*|)")
_PSEUDO_VARIABLES = (b"LINE", b"FILE", b"SECTION")


class NotWords(ValueError):
    """A line that HAProxy could not take apart, with the remedy."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Word:
    """One word: its meaning, its source, and whether a variable stands in it.

    `text` has bytes that are not UTF-8 as surrogates, and variables as they are written.
    """

    text: str
    source: str
    variable: bool = False


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a line, and where its last word ends in the line: what follows is comment."""

    words: tuple[Word, ...]
    end: int


def split(line: str) -> Words:
    """The words of `line`, which is one line without its line feed.  Raises NotWords."""
    return _Reader(line.encode("utf-8", "surrogatepass")).read()


def quote(text: str) -> str:
    r"""A source of which `split` makes the one word `text`, whatever is in it except NUL."""
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
        while self._at < len(line):
            byte = line[self._at]
            if not self._quote and byte in _SPACE:
                self._finish()
                self._at += 1
            elif not self._quote and byte == ord("#"):
                break
            else:
                if byte in b"\0\n\r":
                    raise NotWords("a control character", "leave it out")
                self._letter(byte)
        if self._quote:
            raise NotWords(
                f"the quote at column {self._column(self._quote_at)} is never closed",
                "close it, or write \\ before it if it is meant as a letter",
            )
        self._finish()
        end = len(line[: self._end].decode("utf-8", "surrogatepass"))
        return Words(tuple(self._words), end)

    def _column(self, at: int) -> int:
        return len(self._line[:at].decode("utf-8", "replace")) + 1

    def _finish(self) -> None:
        if self._begun is None:
            return
        if len(self._words) >= MOST_WORDS:
            raise NotWords(f"more than {MOST_WORDS} words", "HAProxy takes no more in a line")
        self._words.append(
            Word(
                self._word.decode("utf-8", "surrogateescape"),
                self._line[self._begun : self._at].decode("utf-8", "surrogatepass"),
                self._variable,
            )
        )
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
            self._word.append(byte)
            self._at += 1

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
            if not _HEX.fullmatch(digits) or digits == b"00":
                raise NotWords(
                    f"\\x at column {self._column(self._at)} is not followed by the two "
                    "hexadecimal digits of a letter",
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
        where = self._column(self._at)
        if not name or (dot and name not in _PSEUDO_VARIABLES):
            raise NotWords(
                f"$ at column {where} is not followed by a variable's name",
                "write \\$ if a dollar sign is meant",
            )
        end = match.end()
        if brace:
            if self._line[end : end + 3] == b"[*]":
                end += 3
            close = self._line.find(b"}", end)
            if close < 0 or (close > end and self._line[end : end + 1] != b"-"):
                raise NotWords(f"${{ at column {where} is never closed", "write ${NAME}")
            end = close + 1
        self._word += self._line[self._at : end]
        self._variable = True
        self._at = end
