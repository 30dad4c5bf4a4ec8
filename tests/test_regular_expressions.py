"""Regular expressions mean the same in every supported Python, and end in bounded time."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import fc_frontend
from fc_frontend.syntax.lines import read_line
from fc_frontend.syntax.words import QUOTED_WORDS, NotWords, split

PACKAGE = Path(fc_frontend.__file__).parent


def test_no_pattern_has_possessive_quantifiers_or_atomic_groups() -> None:
    """Before Python 3.11.5, `fullmatch` accepts too much with them (CPython issue 106052)."""
    found = [
        f"{path.name}:{node.lineno}: {node.value}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and is_possessive(node.value)
    ]
    assert not found
    assert is_possessive("(?:[^ '+]++|'[^']*')*+")
    assert not is_possessive(r"[a-z*+]+\+")


def is_possessive(text: str) -> bool:
    """Return whether a regular expression, or part of one, has such a quantifier or group."""
    text = re.sub(r"\\.|\[[^\]]*\]", "C", text)
    return " " not in text and re.search(r"[*+?}]\+|\(\?>", text) is not None


def test_an_open_quote_is_refused_wherever_it_is() -> None:
    for line in ('acl a str(x) "', "acl a 'x", 'a "b" \'c', 'a "b"\'', "'", "a \"'\"'"):
        assert re.fullmatch(QUOTED_WORDS, line) is None
        try:
            split(line)
        except NotWords:
            continue
        raise AssertionError(line)


def test_long_lines_take_no_time_that_grows_faster_than_they_do() -> None:
    """With nested repetitions, these matches would take longer than the age of the universe."""
    for piece in ("a", "a ", "'a'", '"a" ', "a'b'", "'' "):
        line = piece * 20_000 + "'"
        assert re.fullmatch(QUOTED_WORDS, line) is None
        assert read_line(line, 1).kind.value == "invalid"
