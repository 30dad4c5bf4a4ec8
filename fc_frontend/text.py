"""Text from outside: names, messages and numbers from any source.

Input names are accepted only if they are printable.  All other text is printed through `printable`,
`one_line` or `json_text`, so that no output fails for a character without an encoding, and no text
can begin a line, move a terminal's cursor or reorder the text beside it.
"""

from __future__ import annotations

import json
import re
import unicodedata

LONGEST_NAME = 120
"""Maximum number of characters shown of a rejected name: accepted names have at most 63."""
LONGEST_TEXT = 2000
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Characters that are letters or symbols by category, but invisible or like a space."""
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def is_printable(text: str) -> bool:
    """Return whether `text` contains only visible characters and single-width spaces.

    Control and format characters, such as those that change the direction of writing, surrogates,
    private and unassigned characters are not printable, nor are marks that change the character
    before them.
    """
    return text.isprintable() and (text.isascii() or all(map(_is_plain, text)))


def printable(text: object, longest: int = LONGEST_NAME) -> str:
    """Return `text` in printable form: others are escaped as in Python (`\\n`, `\\u202e`).

    A text of more than `longest` characters is cut to that length, with `…` at the end.
    """
    found = str(text)[: longest + 1]
    if not is_printable(found):
        found = "".join(letter if _is_plain(letter) else _escaped(letter) for letter in found)
    return found if len(found) <= longest else f"{found[: longest - 1]}…"


def one_line(text: object, longest: int = LONGEST_TEXT) -> str:
    """Like `printable`, for sentences: line ends and other runs of blanks become a space."""
    found = str(text)
    if len(found) <= longest and is_printable(found) and "  " not in found:
        return found.strip()
    return printable(" ".join(found[: 4 * longest].split()), longest)


def json_text(document: object, *, indent: int | None = 2) -> str:
    """Return JSON without a final line end, safe for UTF-8 and for terminals.

    Unprintable characters are escaped; half a surrogate pair, which JSON text must not contain (RFC
    8259, 8.2), becomes U+FFFD.
    """
    text = json.dumps(document, ensure_ascii=False, indent=indent)
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    lines = (line if is_printable(line) else _json_escaped(line) for line in text.split("\n"))
    return "\n".join(lines)


def whole_number(text: str | None, most: int = 2**63) -> int | None:
    """Return the number in ASCII digits, or None if it is not one or exceeds `most`."""
    if not text or len(text) > 20 or not (text.isascii() and text.isdigit()):
        return None
    number = int(text)
    return number if number <= most else None


def _is_plain(letter: str) -> bool:
    if letter.isascii():
        return letter.isprintable()
    return (
        letter.isprintable()
        and letter not in _BLANK
        and unicodedata.category(letter) not in ("Mn", "Me")
    )


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


def _json_escaped(line: str) -> str:
    found = _SURROGATE.sub("\ufffd", line)
    return "".join(letter if _is_plain(letter) else json.dumps(letter)[1:-1] for letter in found)
