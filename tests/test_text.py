"""Text from outside, as it is printed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_frontend.errors import Problem
from fc_frontend.text import is_printable, json_text, one_line, printable, whole_number

TEXTS = st.text(st.characters(exclude_categories=()), max_size=50)
"""Any code points, including surrogates."""


@given(TEXTS)
def test_whatever_is_printed_is_printable_and_bounded(text: str) -> None:
    for shown in (printable(text, 30), one_line(text, 30)):
        assert is_printable(shown)
        assert len(shown) <= 30
        shown.encode()
    assert is_printable(text) == (printable(text) == text)


@given(TEXTS)
def test_what_is_printable_stays_as_it_is(text: str) -> None:
    shown = printable(text)
    assert printable(shown) == shown
    assert one_line(one_line(text)) == one_line(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a.yaml", "a.yaml"),
        ("Größe 日本 שלום 😀", "Größe 日本 שלום 😀"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\x1b[2J\x9b", r"\x1b[2J\x9b"),
        ("\udcff", r"\udcff"),
        ("a\u202eb\u2066", r"a\u202eb\u2066"),
        ("e\u0301", r"e\u0301"),
        ("\u3164\u200b\xa0\ue000\U000e0041", r"\u3164\u200b\xa0\ue000\U000e0041"),
        ("x" * 500, "x" * 119 + "…"),
    ],
)
def test_what_deceives_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_sentences_are_one_line() -> None:
    assert one_line(" one\n  | two \r\n three ") == "one | two three"


@given(
    st.recursive(
        TEXTS | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner)
    )
)
def test_json_can_be_printed_and_says_the_same(value: object) -> None:
    for indent in (None, 2):
        text = json_text(value, indent=indent)
        assert is_printable(text.replace("\n", ""))
        text.encode()
        whole = json.dumps(value, ensure_ascii=False)
        if all(not 0xD800 <= ord(letter) < 0xE000 for letter in whole):
            assert json.loads(text) == value


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("17", 17), ("²", None), ("٣", None), ("-1", None), ("9" * 5000, None), ("", None)],
)
def test_numbers_are_ascii_digits(text: str, number: int | None) -> None:
    assert whole_number(text) == number


@given(TEXTS)
def test_a_problem_is_printable_whatever_it_quotes(text: str) -> None:
    problem = Problem(message=text, remedy=text, file=text, service=text, field=text)
    assert is_printable(str(problem))
